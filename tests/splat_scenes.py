"""Random Gaussians and cameras for the tests of rendering."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.cameras import Cameras
from backend.gaussians import Gaussians


def random_gaussians(count: int, *, bases: int = 1, seed: int = 0) -> Gaussians:
    """`count` Gaussians in a unit ball, some thin, some nearly opaque (alpha above the clamp), some too faint to
    matter.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    radii = torch.rand(count, 1, generator=generator) ** (1 / 3)
    opacities = torch.rand(count, generator=generator)
    opacities[::7] = 0.998
    opacities[::11] = 0.003
    return Gaussians(
        means=directions * radii,
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=0.02 + 0.15 * torch.rand(count, 3, generator=generator) ** 3,
        opacities=opacities,
        sh=0.5 * torch.randn(count, bases, 3, generator=generator),
    )


def look_at_origin(position: Tensor) -> Tensor:
    """[4,4] camera to world at `position` [3], looking at the origin, picture's down near world -Z."""
    forward = torch.nn.functional.normalize(-position, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    c2w = torch.eye(4)
    c2w[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], 1)
    c2w[:3, 3] = position
    return c2w


def cameras_around(count: int, width: int, height: int, *, orthographic: bool = False) -> Cameras:
    """Cameras that see the unit ball, with a principal point off the middle and unequal focal lengths."""
    angles = torch.arange(count) * 2.4
    positions = torch.stack([3 * torch.cos(angles), 3 * torch.sin(angles), 0.5 + 0 * angles], 1)
    focal = 0.45 * min(width, height) if orthographic else 1.3 * min(width, height)
    K = torch.tensor([[focal, 0, 0.53 * width], [0, 1.1 * focal, 0.46 * height], [0, 0, 1]])
    return Cameras(
        c2w=torch.stack([look_at_origin(position) for position in positions]),
        Ks=K.expand(count, 3, 3).clone(),
        orthographic=torch.full((count,), orthographic),
        width=width,
        height=height,
    )


def with_gradients(gaussians: Gaussians, dtype: torch.dtype = torch.float32) -> tuple[Gaussians, list[Tensor]]:
    """A copy whose five fields are leaves that collect gradients, and those leaves."""
    fields = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh]
    leaves = [field.detach().to(dtype).clone().requires_grad_() for field in fields]
    return Gaussians(*leaves), leaves


def in_float64(gaussians: Gaussians) -> Gaussians:
    return with_gradients(gaussians.detach(), torch.float64)[0].detach()
