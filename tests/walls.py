"""Pictures of a textured wall, for tests of depth and of scenes without masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from backend.cameras import Cameras, Views, look_at, rays


def cameras_before_a_wall(unit: float, *, parallel: bool = False) -> Cameras:
    """Six cameras side by side, 4 units before the plane x + z/2 = 0, looking a little askew at it."""
    places = torch.tensor([[-4.0, 0.35 * (i % 3), 0.35 * (i // 3)] for i in range(6)]) * unit
    c2w = look_at(places, torch.tensor([0.0, 0.3, 0.2]) * unit)
    focal = 96 / (3.0 * unit) if parallel else 96.0
    K = torch.tensor([[focal, 0, 48], [0, focal, 36], [0, 0, 1]])
    return Cameras(c2w, K.expand(6, 3, 3).clone(), torch.full((6,), parallel), 96, 72)


def wall_views(cameras: Cameras, unit: float) -> tuple[Views, torch.Tensor]:
    """Pictures of the textured plane, without any alpha, and its true planar depth."""
    normal = torch.tensor([1.0, 0.0, 0.5])
    origins, directions = rays(cameras)
    distance = -(origins @ normal) / (directions @ normal)
    points = origins + distance[..., None] * directions
    texture = F.interpolate(
        torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(3)), scale_factor=8, mode="bicubic"
    ).clamp(0, 1)
    place = points[..., 1:] / (3.5 * unit)
    colours = F.grid_sample(texture.expand(len(cameras), -1, -1, -1), place, align_corners=False).permute(0, 2, 3, 1)
    images = torch.cat([colours, torch.ones_like(colours[..., :1])], dim=-1)
    depth = distance * (directions * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    return Views(images, cameras), depth
