"""The objects that the starter's generator learns from, and those that it is judged by, made once and kept in files."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.captioned import captioned
from backend.compositing import premultiplied
from backend.monitor import Monitor
from blender_addon.atomic_file import replacing

FILE = 100  # objects


@dataclass(frozen=True)
class Wanted:
    """Which objects there are to be.

    objects   that are learned from, in whole files
    held_out  that are judged by: kinds in colours that no other shows
    assets    folder of models and textures, see data.py; None: all are made up
    workers   processes that make them
    """

    objects: int = 8000
    held_out: int = 200
    assets: Path | None = None
    seed: int = 1
    workers: int = 2


@dataclass(frozen=True)
class Objects:
    """N objects: views and pictures [N,V+P,S,S,4] uint8, colours premultiplied; prompts [N][P], kinds, colours."""

    images: np.ndarray
    prompts: list[list[str]]
    kinds: list[str]
    colours: list[str]


def make_objects(wanted: Wanted, folder: Path, monitor: Monitor) -> None:
    """Makes what files are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [(number, False) for number in range(wanted.objects // FILE)]
    files += [(number, True) for number in range(wanted.held_out // FILE)]
    missing = [one for one in files if not _file(folder, *one).is_file()]
    if not missing:
        return
    with ProcessPoolExecutor(wanted.workers, get_context("spawn"), _on_one_core) as pool:
        jobs = [pool.submit(_make_file, wanted.seed, wanted.assets, folder, *one) for one in missing]
        for done, job in enumerate(jobs):
            job.result()
            monitor.progress("objects", done + 1, len(jobs))


def read_objects(wanted: Wanted, folder: Path, *, held_out: bool) -> Objects:
    count = (wanted.held_out if held_out else wanted.objects) // FILE
    paths = [path for number in range(count) if (path := _file(folder, number, held_out)).is_file()]
    told = [row for path in paths for row in json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))]
    images = np.concatenate([np.load(path, mmap_mode="r") for path in paths])
    return Objects(images, [row[2:] for row in told], [row[0] for row in told], [row[1] for row in told])


def _file(folder: Path, number: int, held_out: bool) -> Path:
    return folder / f"{'held' if held_out else 'train'}_{number:05d}.npy"


def _make_file(seed: int, assets: Path | None, folder: Path, number: int, held_out: bool) -> None:
    path = _file(folder, number, held_out)
    made = [captioned(seed, index, assets, held_out=held_out) for index in range(number * FILE, (number + 1) * FILE)]
    with replacing(path.with_suffix(".json")) as file:
        file.write(json.dumps([[one.kind, one.colour, *one.prompts] for one in made]).encode())
    images = premultiplied(torch.stack([torch.cat([one.views, one.pictures]) for one in made]))
    with replacing(path) as file:
        np.save(file, (images * 255).round().byte().numpy())


def _on_one_core() -> None:
    torch.set_num_threads(1)


def planes(images: np.ndarray) -> Tensor:
    """[...,4,S,S] float32, 0..1, of images [...,S,S,4] uint8."""
    return torch.from_numpy(np.ascontiguousarray(images)).float().div_(255).movedim(-1, -3)
