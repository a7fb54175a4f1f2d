"""Standing a result on the world's origin, at a stated size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend.gaussians import Gaussians, transform
from backend.texturing import TexturedMesh

STRAY = 0.002  # share of all opacity that may lie outside of the box, at each of its sides


@dataclass(frozen=True)
class Placed:
    """A result after each of its points p went to scale * p + offset; `offset` [3], scene units."""

    gaussians: Gaussians
    mesh: TexturedMesh | None
    scale: float
    offset: tuple[float, float, float]

    @property
    def report(self) -> dict[str, Any]:
        return {"scale": self.scale, "offset": list(self.offset)}


def stand(gaussians: Gaussians, mesh: TexturedMesh | None, size: float) -> Placed:
    """The result with its longest side `size` scene units long, its lowest point at z = 0, its middle at x = y = 0."""
    low, high = bounding_box(gaussians)
    longest = float((high - low).max())
    scale = size / longest if longest > 0 else 1.0
    foot = torch.cat([(low[:2] + high[:2]) / 2, low[2:]])
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] *= scale
    matrix[:3, 3] = -scale * foot.double()
    if mesh is not None:
        moved = mesh.vertices * np.float32(scale) + matrix[:3, 3].float().numpy()
        mesh = replace(mesh, vertices=moved.astype(np.float32))
    x, y, z = matrix[:3, 3].tolist()
    return Placed(transform(gaussians, matrix), mesh, scale, (x, y, z))


def bounding_box(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
    """low, high [3], world: around the Gaussians to one standard deviation, without the outermost that weigh nothing.

    A floater far from the rest moves no side, as long as such hold less than STRAY of all opacity.
    """
    seen = gaussians[gaussians.finite].to("cpu")
    if len(seen) == 0:
        return torch.zeros(3), torch.zeros(3)
    reach = seen.covariances.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    low = _quantile(seen.means - reach, seen.opacities, STRAY)
    high = -_quantile(-(seen.means + reach), seen.opacities, STRAY)
    return low, high


def _quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:
    """[3] of values [N,3]: where `share` of all weight lies below."""
    ordered, order = values.sort(dim=0)
    total = weights.double()[order].cumsum(0)  # [N,3]
    below = (total < share * total[-1]).sum(0).clamp_max(len(values) - 1)
    return ordered.gather(0, below[None])[0]
