"""Posed pictures of a coloured ball, computed exactly: something small to reconstruct."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image

from backend.cameras import Cameras, Views, orbit, rays
from backend.transforms import write_transforms

RADIUS = 0.5


def ball_cameras(count: int = 4, size: int = 32) -> Cameras:
    return orbit(count, target=torch.zeros(3), radius=2.0, elevation=0.3, fov=math.radians(40), size=size)


def ball_views(count: int = 4, size: int = 32) -> Views:
    """A ball of radius 0.5 about the origin whose colour is its normal, with depth."""
    cameras = ball_cameras(count, size)
    rays_o, rays_d = rays(cameras)
    along = (rays_o * rays_d).sum(-1)
    inside = along**2 - (rays_o**2).sum(-1) + RADIUS**2
    hit = inside > 0
    points = rays_o + (-along - inside.clamp(min=0).sqrt())[..., None] * rays_d
    colour = torch.where(hit[..., None], 0.5 + points, 0.0)
    images = torch.cat([colour, hit[..., None].float()], dim=-1).clamp(0, 1)
    ahead = ((points - rays_o) * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    return Views(images, cameras, torch.where(hit, ahead, 0.0), tuple(f"ball_{index}.png" for index in range(count)))


def write_ball(folder: Path, views: Views | None = None) -> Path:
    """The views' pictures and transforms.json in a folder, without depth."""
    views = ball_views() if views is None else views
    for image, name in zip(views.images, views.names, strict=True):
        Image.fromarray((image * 255).round().byte().numpy()).save(folder / name)
    write_transforms(views.cameras, views.names, folder / "transforms.json")
    return folder / "transforms.json"
