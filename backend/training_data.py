"""The batches of a run in their order: each is a function of the configuration and its own number alone, so that a run
goes on with the very next one, and any number of processes sees the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from backend.data import DataConfig, Scene, draw, take
from backend.folders import check
from backend.recipes import Batch
from backend.sample import Sample
from backend.train_config import TrainConfig

AHEAD = 4  # micro-batches that each worker has ready


@dataclass(frozen=True)
class Request:
    """What a micro-batch is to hold.

    number   among all micro-batches of the run
    stage    number of the stage
    indices  of the samples, first and one past the last
    views    of each sample
    inputs   of them that are given to the network
    """

    number: int
    stage: int
    indices: tuple[int, int]
    views: int
    inputs: int


def requests(
    config: TrainConfig, first_step: int, share_at: Callable[[int], float], *, rank: int, ranks: int
) -> Iterator[Request]:
    """What one of `ranks` processes is to make, from a step on, without end; share_at says how far the run is at a
    step.
    """
    parts = config.batch // config.micro_batch
    for step in itertools.count(first_step):
        number = config.stage_at(share_at(step))
        for part in range(rank, parts, ranks):
            yield _request(config, step * parts + part, number)


def _request(config: TrainConfig, number: int, stage: int) -> Request:
    chance = np.random.default_rng((config.seed, number))
    views, inputs = config.stages[stage].views, config.stages[stage].inputs
    first = number * config.micro_batch
    return Request(
        number=number,
        stage=stage,
        indices=(first, first + config.micro_batch),
        views=int(chance.integers(views[0], views[1], endpoint=True)),
        inputs=int(chance.integers(inputs[0], inputs[1], endpoint=True)),
    )


def data_of(config: TrainConfig, request: Request) -> DataConfig:
    """The stream that a request's samples are of."""
    size = config.stages[request.stage].size
    return replace(config.data, size=size, views=request.views, inputs=request.inputs)


def scenes_of(config: TrainConfig, request: Request) -> list[Scene | Sample]:
    """What a request's samples show, and from where; the samples themselves where folders have their pictures."""
    stream = data_of(config, request)
    return [draw(stream, index) for index in range(*request.indices)]


def batch_of(config: TrainConfig, request: Request, device: torch.device) -> Batch:
    """The samples of a request, made on a device."""
    return Batch.stack(take(scenes_of(config, request), device), request.inputs)


def held_out(config: TrainConfig, device: torch.device) -> list[Batch]:
    """The objects that a run is judged by, one a batch, which it never trains on."""
    stage = config.stages[-1]
    inputs = config.validation_inputs or stage.inputs[1]
    apart = replace(config, data=replace(config.data, held_out=True))
    return [
        batch_of(apart, Request(0, len(config.stages) - 1, (index, index + 1), stage.views[1], inputs), device)
        for index in range(config.validation_objects)
    ]


def batches(config: TrainConfig, wanted: Iterable[Request], device: torch.device) -> Iterator[tuple[Request, Batch]]:
    """What is requested, in order, on the device.

    Without workers all of it is made here. Workers are some requests ahead: they make the samples where a processor
    trains, and where a GPU does, all but the photographs, which it makes itself faster.
    Raises BadInput for a folder of the data's that cannot be used, before anything is made.
    """
    check(config.data.folders)
    if not config.workers:
        return ((request, batch_of(config, request, device)) for request in wanted)
    if device.type == "cpu":
        return _made_ahead(_Batches(config), wanted, config.workers)
    ahead = _made_ahead(_Scenes(config), wanted, config.workers)
    return ((request, Batch.stack(take(scenes, device), request.inputs)) for request, scenes in ahead)


class _Batches(Dataset[tuple[Request, Batch]]):
    """For workers: a request's samples."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __getitem__(self, request: Request) -> tuple[Request, Batch]:
        return request, batch_of(self.config, request, torch.device("cpu"))


class _Scenes(Dataset[tuple[Request, list[Scene | Sample]]]):
    """For workers: what a GPU makes a request's samples of."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __getitem__(self, request: Request) -> tuple[Request, list[Scene | Sample]]:
        return request, scenes_of(self.config, request)


def _made_ahead(made: Dataset[Any], wanted: Iterable[Request], workers: int) -> Iterator[Any]:
    return iter(
        DataLoader(
            made,
            sampler=wanted,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=AHEAD,
            worker_init_fn=_on_one_core,
            multiprocessing_context="spawn",  # a fork of a process that computes in parallel may hang
        )
    )


def _as_it_is(made: Any) -> Any:
    return made


def _on_one_core(_: int) -> None:
    numba.set_num_threads(1)
    torch.set_num_threads(1)
