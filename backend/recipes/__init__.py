"""How each family of networks is trained: one file a family, and the one form in which all of them get their pictures.

A recipe is a module that knows its network, what it minimises and how a batch becomes what the network wants. Of
optimisers, files, processes and time it knows nothing; that is `backend/train.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from backend.bad_input import BadInput
from backend.cameras import Cameras
from backend.gaussians import Gaussians

if TYPE_CHECKING:
    from backend.sample import Sample

RECIPES = {  # module of each family
    "grm": "backend.recipes.grm",
    "lgm": "backend.recipes.lgm",
    "long_lrm": "backend.recipes.long_lrm",
    "lrm": "backend.recipes.lrm",
}


@dataclass(frozen=True)
class Batch:
    """B objects, each seen in V views, about the world's origin. All views supervise.

    images        [B,V,H,W,4] float32, 0..1, sRGB, straight alpha
    depth         [B,V,H,W] float32, along the view axis, scene units; 0 where nothing is
    normals       [B,V,H,W,3] float32, world, unit length; 0 where nothing is
    c2w           [B,V,4,4] float32, camera to world, OpenCV axes
    Ks            [B,V,3,3] float32, pixels
    orthographic  [B,V] bool
    inputs        the first so many views are given to the network
    """

    images: Tensor
    depth: Tensor
    normals: Tensor
    c2w: Tensor
    Ks: Tensor
    orthographic: Tensor
    inputs: int

    def __post_init__(self) -> None:
        lead, size = tuple(self.images.shape[:2]), tuple(self.images.shape[2:4])
        expected = {
            "images": (*lead, *size, 4),
            "depth": (*lead, *size),
            "normals": (*lead, *size, 3),
            "c2w": (*lead, 4, 4),
            "Ks": (*lead, 3, 3),
            "orthographic": lead,
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"batch: {name} must have shape {shape}, found {tuple(getattr(self, name).shape)}")
        if not 1 <= self.inputs <= lead[1]:
            raise ValueError(f"batch: inputs must be from 1 to {lead[1]} views, found {self.inputs}")

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def stack(samples: Sequence[Sample], inputs: int) -> Batch:
        """Samples that have as many views of the same size; where one has no depth it is 0 everywhere."""
        views = [sample.views for sample in samples]
        depth = [torch.zeros(v.images.shape[:3]).to(v.images) if v.depth is None else v.depth for v in views]
        return Batch(
            images=torch.stack([v.images for v in views]),
            depth=torch.stack(depth),
            normals=torch.stack([sample.normals for sample in samples]),
            c2w=torch.stack([v.cameras.c2w for v in views]),
            Ks=torch.stack([v.cameras.Ks for v in views]),
            orthographic=torch.stack([v.cameras.orthographic for v in views]),
            inputs=inputs,
        )

    def to(self, device: torch.device | str) -> Batch:
        names = [field.name for field in fields(self) if field.name != "inputs"]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def cameras(self, item: int) -> Cameras:
        """All V cameras of one object."""
        height, width = self.images.shape[2:4]
        return Cameras(self.c2w[item], self.Ks[item], self.orthographic[item], width, height)


class Recipe(Protocol):
    """What a module in RECIPES offers.

    MODEL    the network's class, made with a configuration
    PRESETS  configurations by name
    WEIGHTS  of the loss's terms by name, as published; a stage of training may set others

    Only `model(...)` runs in the run's precision; what a recipe does around it is float32.
    """

    MODEL: type[nn.Module]
    PRESETS: Mapping[str, Any]
    WEIGHTS: Mapping[str, float]

    def config_from(self, data: Mapping[str, Any]) -> Any:
        """The network's configuration of its file form. Raises BadInput."""

    def config_data(self, config: Any) -> dict[str, Any]:
        """The file form of a configuration, which `config_from` reads back; JSON can hold it."""
        ...

    def loss(
        self, model: nn.Module, batch: Batch, share: float, rng: torch.Generator, weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Terms by name, each a mean over the batch's objects and weighted already; their sum is minimised.

        share    0..1, how far the run is
        rng      on the CPU; the only source of chance
        weights  WEIGHTS, with what the stage sets
        Raises BadInput for a batch that the network cannot take.
        """
        ...

    def predict(self, model: nn.Module, batch: Batch) -> list[Gaussians]:
        """What the network makes of each object's inputs, float32, in the batch's world."""
        ...


def recipe_of(family: str) -> Recipe:
    """The recipe of a family. Raises BadInput for one that has none."""
    if family not in RECIPES:
        raise BadInput(f"family: expected one of {', '.join(RECIPES)}, found {family!r}")
    return cast(Recipe, importlib.import_module(RECIPES[family]))
