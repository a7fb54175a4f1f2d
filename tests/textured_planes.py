"""Pictures and depth of textured rectangles by ray-plane intersection: what stereo should find, known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.cameras import Cameras, Views, look_at, rays

WAVES = 40
SKY = 0.5


@dataclass(frozen=True)
class Rectangle:
    """A textured rectangle: corner + s right + t down with s and t in 0..1; `seed` of its texture."""

    corner: tuple[float, float, float]
    right: tuple[float, float, float]
    down: tuple[float, float, float]
    seed: int
    contrast: float = 1.0


def photographs(cameras: Cameras, rectangles: list[Rectangle], *, exact: bool = False) -> Views:
    """What the cameras see of the rectangles, grey elsewhere; with depth (0 for nothing) if `exact`."""
    rays_o, rays_d = rays(cameras)
    forward = cameras.c2w[:, None, None, :3, 2]
    rgb, depth = torch.full_like(rays_o, SKY), torch.full(rays_o.shape[:3], torch.inf)
    for rectangle in rectangles:
        corner, right, down = (torch.tensor(v) for v in (rectangle.corner, rectangle.right, rectangle.down))
        normal = torch.linalg.cross(right, down)
        t = ((corner - rays_o) @ normal) / (rays_d @ normal)
        hit = rays_o + t[..., None] * rays_d
        s, r = (hit - corner) @ right / (right @ right), (hit - corner) @ down / (down @ down)
        z = ((hit - cameras.centres[:, None, None]) * forward).sum(-1)
        nearer = (t > 0) & (s >= 0) & (s <= 1) & (r >= 0) & (r <= 1) & (z < depth)
        depth = torch.where(nearer, z, depth)
        across, along = s * right.norm(), r * down.norm()
        rgb = torch.where(nearer[..., None], _texture(across, along, rectangle), rgb)
    depth = torch.where(torch.isfinite(depth), depth, 0.0)
    images = torch.cat([rgb, torch.ones_like(rgb[..., :1])], dim=-1)
    return Views(images, cameras, depth if exact else None)


def true_depth(cameras: Cameras, rectangles: list[Rectangle]) -> Tensor:
    """[V,H,W] planar depth, 0 for nothing."""
    depth = photographs(cameras, rectangles, exact=True).depth
    assert depth is not None
    return depth


def _texture(x: Tensor, y: Tensor, rectangle: Rectangle) -> Tensor:
    """[...,3] a sum of waves in random directions with wavelengths from 0.4 to 4 units."""
    generator = torch.Generator().manual_seed(rectangle.seed)
    wave, turn, phase = torch.rand(3, WAVES, generator=generator)
    number = 2 * torch.pi / (0.4 * 10**wave)
    colour = torch.randn(WAVES, 3, generator=generator) * (0.08 * rectangle.contrast)
    angle = 2 * torch.pi * turn
    argument = x[..., None] * (number * angle.cos()) + y[..., None] * (number * angle.sin()) + 6.3 * phase
    return (0.5 + torch.sin(argument) @ colour).clamp(0, 1)


def row_of_cameras(count: int, spacing: float, target: Tensor, *, width: int = 96, height: int = 64) -> Cameras:
    """Pinhole cameras in a row along X at z = 0, every second one a little higher, that look at `target` [3]."""
    x = (torch.arange(count) - (count - 1) / 2) * spacing
    y = torch.where(torch.arange(count) % 2 == 0, 0.0, -0.5 * spacing)
    c2w = look_at(torch.stack([x, y, torch.zeros(count)], dim=1), target, up=(0.0, -1.0, 0.0))
    K = torch.tensor([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    return Cameras(c2w, K.repeat(count, 1, 1), torch.zeros(count, dtype=torch.bool), width, height)


WALL = Rectangle((-4.0, -3.0, 5.0), (8.0, 0.0, 1.0), (0.0, 6.0, 0.0), seed=1)
BOX = Rectangle((-0.8, -0.6, 3.0), (1.4, 0.0, 0.0), (0.0, 1.2, 0.0), seed=2)
AHEAD = torch.tensor([0.0, 0.0, 5.0])
