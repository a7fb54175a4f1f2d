"""Where more Gaussians are needed: adaptive density control (Kerbl et al. 2023, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.gaussians import Gaussians
from backend.splat_adam import SplatAdam

SPLIT_SHRINK = 1.6  # the two halves of a split splat are this much smaller (3D Gaussian splatting's value)


@dataclass(frozen=True)
class GrowthConfig:
    """When and how far the set of Gaussians grows.

    first, last  shares of the fit between which it grows
    every        steps between two rounds
    gradient     mean gradient by the centre, in half widths of the picture, above which a splat is too coarse
    most_share   one round adds at most this share of the splats there are
    split_above  splats wider than this, in scene radii, are split in two, smaller ones are doubled
    """

    first: float = 0.05
    last: float = 0.6
    every: int = 100
    gradient: float = 2e-4
    most_share: float = 0.15
    split_above: float = 0.01


class Growth:
    """The mean gradient of each splat's centre in the picture plane since the last round."""

    def __init__(self, splats: int) -> None:
        self.total = torch.zeros(splats)
        self.seen = torch.zeros(splats)

    def observe(self, offsets: Tensor, width: int, height: int) -> None:
        """Take in the gradient that `offsets` [1,N,2], zeros added to the centres in pixels, received."""
        assert offsets.grad is not None, "backward() comes first"
        slopes = torch.linalg.vector_norm(offsets.grad[0] * (0.5 * torch.tensor([width, height])), dim=1)
        self.total += slopes
        self.seen += slopes > 0

    def keep(self, rows: Tensor) -> None:
        self.total, self.seen = self.total[rows], self.seen[rows]


def grow(adam: SplatAdam, growth: Growth, config: GrowthConfig, limit: int, generator: torch.Generator) -> Growth:
    """Split or double the splats that are too coarse, at most to `limit` splats; fresh statistics."""
    room = min(limit - len(adam), int(config.most_share * len(adam)))
    mean = growth.total / growth.seen.clamp_min(1)
    coarse = torch.nonzero(mean > config.gradient)[:, 0]
    if room > 0 and len(coarse):
        chosen = coarse[mean[coarse].argsort(descending=True, stable=True)[:room]]
        _divide(adam, chosen, config.split_above, generator)
    return Growth(len(adam))


def _divide(adam: SplatAdam, chosen: Tensor, split_above: float, generator: torch.Generator) -> None:
    """Replace each chosen splat by two: smaller and drawn from it where it is wide, else the same, each less solid."""
    parents = adam.gaussians().detach()[chosen]
    wide = (parents.scales.amax(1) > split_above)[:, None]
    scales = torch.where(wide, parents.scales / SPLIT_SHRINK, parents.scales)
    opacities = torch.where(wide[:, 0], parents.opacities, 1 - (1 - parents.opacities).sqrt())
    children = []
    for _ in range(2):
        offset = torch.randn(len(chosen), 3, generator=generator) * parents.scales * torch.where(wide, 1.0, 0.1)
        means = parents.means + rotated(parents.quats, offset)
        children.append(Gaussians(means, parents.quats, scales, opacities, parents.sh))
    rest = torch.ones(len(adam), dtype=torch.bool)
    rest[chosen] = False
    adam.keep(rest)
    for child in children:
        adam.append(child)


def rotated(quats: Tensor, vectors: Tensor) -> Tensor:
    """[N,3] vectors turned by unit quaternions [N,4] wxyz."""
    quats = F.normalize(quats, dim=1)
    w, axis = quats[:, :1], quats[:, 1:]
    twice = 2 * torch.linalg.cross(axis, vectors)
    return vectors + w * twice + torch.linalg.cross(axis, twice)


def is_due(done: int, total: int, config: GrowthConfig) -> bool:
    """Whether a round of growth follows step `done` of `total`."""
    share = done / max(1, total)
    return config.first <= share <= config.last and done % config.every == 0
