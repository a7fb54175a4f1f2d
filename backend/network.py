"""A network's whole job: a checkpoint into memory, posed views through it, Gaussians in the views' world.

The model files know their network and nothing of files, memory or progress; this file knows nothing of networks.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import psutil
import torch
from torch import nn

from backend import weights
from backend.bad_input import BadInput
from backend.cameras import Views
from backend.checkpoint_files import load_into, read_checkpoint
from backend.gaussians import Gaussians, prune
from backend.meshing import Mesh
from backend.monitor import Monitor
from backend.projection import ALPHA_MIN
from backend.triplane import Triplane
from blender_addon.families import Precision, problem

# Module and class of each kind of network; the family lrm has two kinds.
KINDS = {
    "grm": ("backend.models.grm", "GRM"),
    "lgm": ("backend.models.lgm", "LGM"),
    "long_lrm": ("backend.models.long_lrm", "LongLRM"),
    "openlrm": ("backend.models.lrm", "Lrm"),
    "triposr": ("backend.models.triposr", "TripoSr"),
}
# What `auto` tries in turn until the memory suffices: exact first on a processor, where half precision may be slow.
TRIED = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16, torch.float16)}
FIELD_KINDS = ("openlrm", "triposr")  # these make a density in space, which has a surface of its own
FIELD_GRID = 192  # points a side at which that is looked for
USABLE_MEMORY = 0.9  # of what is free: the rest of the machine goes on working


class ModelFile(Protocol):
    """What every file of a network offers besides the network itself; see `backend/models/`."""

    IGNORED: tuple[str, ...]

    def config_from(self, data: Mapping[str, Any]) -> Any: ...
    def reconstruct(self, model: nn.Module, views: Views) -> Gaussians: ...
    def memory_needed(self, config: Any, views: int, height: int, width: int, bytes_per_number: int) -> int: ...


class FieldFile(ModelFile, Protocol):
    """The files of FIELD_KINDS."""

    def triplane(self, model: nn.Module, views: Views) -> Triplane: ...


@dataclass(frozen=True)
class Network:
    """A network with its weights, ready to run."""

    kind: str
    file: ModelFile
    model: nn.Module
    sha256: str

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in memory."""
        return next(self.model.parameters()).dtype


@dataclass(frozen=True)
class Outcome:
    """What a network made of some views.

    gaussians  in the views' world; what can never be seen is left out
    surface    the network's own surface, where it has one
    weights    name or path of the checkpoint; sha256 of its file
    precision  of the numbers it ran in
    """

    gaussians: Gaussians
    surface: Mesh | None
    weights: str
    sha256: str
    precision: str


def reconstruct(
    family: str,
    views: Views,
    *,
    checkpoint: str,
    precision: Precision,
    device: torch.device,
    mesh: bool,
    monitor: Monitor,
) -> Outcome:
    """Gaussians of some views by one pass of a network.

    checkpoint  name in the catalogue or a path; empty: the family's default
    mesh        also the network's own surface, where it has one

    Raises BadInput for views or weights that do not suit the family, MemoryError where no precision fits into memory.
    """
    unfit = problem(family, len(views), orthographic=bool(views.cameras.orthographic.any()))
    if unfit:
        raise BadInput(f"views: {unfit}")
    monitor.progress("load", 0, 1)
    path, entry = weights.resolve(checkpoint, cast(weights.Family, family))
    network = load(path, family)
    dtype = choose_precision(network, views, precision, device)
    if network.dtype not in (dtype, torch.float32):  # it ran in another half precision before: its weights are rounded
        _loaded.cache_clear()
        network = load(path, family)
    model = network.model.to(device=device, dtype=dtype)
    monitor.progress("load", 1, 1)
    with watched(model, monitor):
        gaussians, surface = _run(network, model, views, mesh=mesh)
    gaussians = prune(gaussians.detach(), min_opacity=ALPHA_MIN)
    if len(gaussians) == 0:
        raise BadInput(f"weights: {path.name} makes nothing that can be seen of these views")
    name = entry.name if entry is not None else str(path)
    return Outcome(gaussians, surface, name, network.sha256, str(dtype).removeprefix("torch."))


def _run(network: Network, model: nn.Module, views: Views, *, mesh: bool) -> tuple[Gaussians, Mesh | None]:
    """Gaussians, and the surface of a network that makes a field rather than Gaussians."""
    if not (mesh and network.kind in FIELD_KINDS):
        return network.file.reconstruct(model, views), None
    field = cast(FieldFile, network.file).triplane(model, views)
    return field.splats(FIELD_GRID), field.mesh(FIELD_GRID)[0]


def choose_precision(network: Network, views: Views, wanted: Precision, device: torch.device) -> torch.dtype:
    """The most exact type of number that was asked for and fits into the free memory.

    Raises MemoryError, with what is needed and free, when none does.
    """
    tried = TRIED[device.type] if wanted == "auto" else (getattr(torch, wanted),)
    free = free_memory(device) + _held(network.model, device)  # the estimate counts the weights too
    sizes = (len(views), views.cameras.height, views.cameras.width)
    config = cast(Any, network.model).config
    needed = 0
    for dtype in tried:
        needed = network.file.memory_needed(config, *sizes, dtype.itemsize)
        if needed <= USABLE_MEMORY * free:
            return dtype
    raise MemoryError(
        f"memory: {network.kind} needs about {needed / 2**30:.1f} GiB for {sizes[0]} views of {sizes[2]}x{sizes[1]}, "
        f"and {free / 2**30:.1f} GiB are free; use fewer or smaller views, or close other programs"
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a job may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _held(model: nn.Module, device: torch.device) -> int:
    """Bytes of the weights that already lie in the memory of a device."""
    there = (weight for weight in model.parameters() if weight.device.type == device.type)
    return sum(weight.numel() * weight.element_size() for weight in there)


def load(path: Path, family: str) -> Network:
    """The network of a checkpoint; kept until another is asked for or its file changes. Raises BadInput."""
    status = path.stat()
    return _loaded(path, status.st_mtime_ns, status.st_size, family)


@lru_cache(maxsize=1)
def _loaded(path: Path, _modified: int, _size: int, family: str) -> Network:
    checkpoint = read_checkpoint(path, cast(weights.Family, family))
    module, name = KINDS[checkpoint.kind]
    file = importlib.import_module(module)
    model = getattr(file, name)(file.config_from(checkpoint.config)).eval().requires_grad_(False)
    load_into(model, checkpoint.state, file.IGNORED)
    return Network(checkpoint.kind, cast(ModelFile, file), model, checkpoint.sha256)


@contextmanager
def watched(model: nn.Module, monitor: Monitor) -> Iterator[None]:
    """Meanwhile each layer that finishes is a step of progress, at which a job can also be cancelled."""
    layers = [module for module in model.modules() if not list(module.children()) and list(module.parameters())]
    done = 0

    def step(*_: object) -> None:
        nonlocal done
        done = min(done + 1, len(layers))
        monitor.progress("network", done, len(layers))

    hooks = [layer.register_forward_hook(step) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    monitor.progress("network", len(layers), len(layers))
