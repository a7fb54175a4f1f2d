"""The diffusion model that was loaded last, kept from one job to the next."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch

from backend import multiview, weights
from backend.budgets import choose_budget
from backend.multiview import Budget, Sampler
from backend.network import free_memory

ROOM = 8 * 2**30  # free bytes beside which a kept model disturbs no reconstruction


@dataclass(frozen=True)
class Loaded:
    """A model and how it runs."""

    sampler: Sampler
    budget: Budget


@dataclass(frozen=True)
class _Key:
    """What a model was loaded from; `state` tells of changed files."""

    front_end: str
    folder: Path
    state: tuple[int, int]
    device: torch.device


class Samplers:
    """Holds at most one model. `load` makes it of a folder, see backend.multiview.load."""

    def __init__(self, load: multiview.Load = multiview.load) -> None:
        self._load = load
        self._key: _Key | None = None
        self._loaded: Loaded | None = None

    def get(self, front_end: str, folder: Path, device: torch.device) -> Loaded:
        """The model of a front end; the one that was held leaves the memory first. Raises BadInput, MemoryError."""
        key = _Key(front_end, folder, _state_of(folder), device)
        if self._loaded is None or key != self._key:
            self.clear()
            budget = choose_budget(device, weights.tensor_bytes(folder), free_memory(device))
            self._loaded = Loaded(self._load(front_end, folder, budget), budget)
            self._key = key
        return self._loaded

    def make_room(self) -> None:
        """Drops the model where little memory is left beside it."""
        if self._loaded is not None and free_memory(self._loaded.budget.device) < ROOM:
            self.clear()

    def clear(self) -> None:
        self._key, self._loaded = None, None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _state_of(folder: Path) -> tuple[int, int]:
    """Bytes and newest change of a folder's files."""
    states = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)
