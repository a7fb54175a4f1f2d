"""Has numba compile, and keep, everything that jobs on the CPU run: a minute that no first job then waits for."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import torch

from backend import pipelines
from backend.cameras import Views, orbit, rays
from backend.monitor import Silent

SIZE, RADIUS = 32, 0.5
QUICK = pipelines.ReconstructOptions(steps=4, max_splats=400, mesh=True, faces=100, texture_size=32, device="cpu")


def warm_up() -> None:
    """Reconstructs a small ball once for each kind of views: with depth, with masks, and as opaque pictures; then by
    the starter, which looks at masks with code of its own.
    """
    ball = _ball()
    for views in (ball, replace(ball, depth=None), _opaque(ball)):
        pipelines.reconstruct(views, QUICK, Silent())
    pipelines.reconstruct(ball[[0, 2]], replace(QUICK, model="grm", mesh=False), Silent())
    importlib.import_module("rembg.sessions")  # what cuts pictures out compiles code of its own when it is first loaded


def _ball() -> Views:
    """A ball about the origin whose colour is its normal, seen by six cameras."""
    cameras = orbit(6, target=torch.zeros(3), radius=2.0, elevation=0.3, fov=math.radians(40), size=SIZE)
    origins, directions = rays(cameras)
    along = (origins * directions).sum(-1)
    inside = along**2 - (origins**2).sum(-1) + RADIUS**2
    hit = inside > 0
    way = -along - inside.clamp(min=0).sqrt()
    points = origins + way[..., None] * directions
    colour = torch.where(hit[..., None], 0.5 + points, 0.0).clamp(0, 1)
    planar = way * (directions * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    return Views(torch.cat([colour, hit[..., None].float()], dim=-1), cameras, torch.where(hit, planar, 0.0))


def _opaque(views: Views) -> Views:
    """The same before a striped wall at infinity, without depth."""
    stripes = 0.5 + 0.5 * torch.sin(torch.arange(SIZE) / 2.0)
    alpha = views.images[..., 3:]
    rgb = views.images[..., :3] * alpha + stripes[:, None] * (1 - alpha)
    return Views(torch.cat([rgb, torch.ones_like(alpha)], dim=-1), views.cameras)
