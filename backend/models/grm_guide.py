"""What geometry tells a guided GRM before it looks: the masks' visual hull, and the surface of a coarse radiance grid
that explains masks and colours after a few steps.

A network that only corrects this learns in hours what it would need days to find. Nothing here has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.cameras import Cameras, Views
from backend.hull import NothingSeen
from backend.models.grm_cameras import Poses
from backend.models.grm_hull import Hull, hull_of
from backend.radiance_grid import GridConfig, Level, fit_grid

CHANNELS = 3
COARSE = GridConfig(levels=(Level(24, 60),))  # a third of a second on one core
STRIDE = 1.0  # way between the samples of a ray through it, voxels
FAINTEST = 1e-3  # alpha from which a pixel has a colour of its own


@dataclass(frozen=True)
class Guide:
    """Where V views' pixels see the hull, and a surface in it.

    surface  [B,V,R,R] depth at which the coarse grid is seen, or else that of the origin, held between the hull's
             entry and its last leave
    """

    hull: Hull
    surface: Tensor

    def channels(self) -> Tensor:
        """[B,V,3,R,R]: the surface measured from the origin's depth, how far it is inside the hull, and the room."""
        hull = self.hull
        return torch.stack([self.surface - hull.origin[..., None, None], self.surface - hull.entry, hull.room], dim=2)


@torch.no_grad()
def guide_of(images: Tensor, Ks: Tensor, poses: Poses) -> Guide:
    """The guide of pictures [B,V,4,R,R], -1..1, RGB over white and alpha, with Ks [B,V,3,3] in their pixels."""
    side = images.shape[-1]
    hull = hull_of(images[:, :, 3].add(1).div(2), poses)
    depths = []
    for item, pictures in enumerate(images):
        cameras = Cameras(poses.c2w[item], Ks[item].to(poses.c2w), poses.orthographic[item], side, side)
        depths.append(coarse_depth(straight(pictures).float().cpu(), cameras.to("cpu")))
    depth = torch.stack(depths).to(hull.entry)
    surface = torch.where(depth > 0, depth, hull.origin[..., None, None])
    return Guide(hull, torch.minimum(torch.maximum(surface, hull.entry), hull.entry + hull.room))


def coarse_depth(images: Tensor, cameras: Cameras) -> Tensor:
    """[V,H,W] planar depth of the coarse grid that fits images [V,H,W,4], straight alpha; 0 where it shows nothing.

    A single view, or views without a common object, tell no depth: there is no grid then.
    """
    if len(images) < 2:
        return torch.zeros(images.shape[:3])
    try:
        fitted = fit_grid(Views(images, cameras), COARSE, np.random.default_rng(0), lambda *_: False)
    except NothingSeen:
        return torch.zeros(images.shape[:3])
    depth = fitted.views(cameras, STRIDE).depth
    assert depth is not None, "a grid's views have depth"
    return depth


def straight(pictures: Tensor) -> Tensor:
    """[...,4,R,R] -1..1, RGB over white and alpha -> [...,R,R,4] 0..1, straight alpha."""
    colour, alpha = pictures.add(1).div(2).movedim(-3, -1).split([3, 1], dim=-1)
    return torch.cat([((colour - 1 + alpha) / alpha.clamp_min(FAINTEST)).clamp(0, 1), alpha], dim=-1)
