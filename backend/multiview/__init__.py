"""From a prompt or a picture to views: one module for each kind of diffusion model, and the form of all of them.

A module offers `load`, which makes a Sampler of a folder in the layout in which its weights are published. Which
cameras the views are of is a line of `blender_addon.front_ends`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor

from backend.bad_input import BadInput
from backend.monitor import Monitor
from blender_addon.front_ends import FRONT_ENDS

MODULES = {  # of each front end
    "starter": "backend.multiview.starter",
    "mvadapter-sdxl": "backend.multiview.mv_adapter",
    "mvadapter-sdxl-image": "backend.multiview.mv_adapter",
    "mvadapter-sd21": "backend.multiview.mv_adapter",
    "mvadapter-sd21-image": "backend.multiview.mv_adapter",
    "zero123plus-1.2": "backend.multiview.zero123plus",
    "zero123plus-1.1": "backend.multiview.zero123plus",
    "mvdream": "backend.multiview.mvdream",
    "imagedream": "backend.multiview.mvdream",
    "instant3d": "backend.multiview.instant3d",
}


@dataclass(frozen=True)
class Held:
    """Views that are given, of which only one is made anew.

    images  [V,H,W,4] float32, 0..1, sRGB, straight alpha, at the rig's size
    redo    number of the view to make
    """

    images: Tensor
    redo: int


@dataclass(frozen=True)
class Wish:
    """What views are wanted.

    prompt, negative_prompt  "" where there is none
    picture                  [H,W,4] float32, 0..1, sRGB, straight alpha: square, the object in the middle, as large as
                             the front end wants it; None where there is none
    steps                    of the sampler, at least 1
    guidance                 how much more the prompt or picture counts than it would by itself, 1: not more
    seed                     of all chance
    held                     views to keep; None where all are made
    """

    prompt: str
    negative_prompt: str
    picture: Tensor | None
    steps: int
    guidance: float
    seed: int
    held: Held | None = None


@dataclass(frozen=True)
class Budget:
    """How a model is to be run.

    device   that computes
    dtype    of its numbers
    offload  whether its parts wait in main memory until each is needed
    slicing  whether attention is computed a part at a time: slower, with less memory
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    offload: bool = False
    slicing: bool = False


class Sampler(Protocol):
    """A loaded model."""

    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        """The rig's views in its order, [V,S,S,3], or [V,S,S,4] with straight alpha: float32, 0..1, sRGB, on the CPU.

        Tells of the stage "views" a step at a time, and shows a preview now and then. Raises JobCancelled.
        """
        ...


Load: TypeAlias = Callable[[str, Path, Budget], Sampler]


def load(front_end: str, folder: Path, budget: Budget) -> Sampler:
    """The model of a front end, from its folder. Raises BadInput for a missing, broken or foreign file."""
    if front_end not in MODULES:
        raise BadInput(f"front end: expected one of {', '.join(FRONT_ENDS)}, found {front_end!r}")
    return cast(Load, importlib.import_module(MODULES[front_end]).load)(front_end, folder, budget)
