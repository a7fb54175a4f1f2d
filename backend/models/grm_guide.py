"""What geometry tells a guided GRM before it looks: the masks' visual hull; the surface of a coarse radiance grid that
explains masks and colours after a few steps, or the true one where it is known; and what the other views show there.

A network that only corrects this learns in hours what it would need days to find. Nothing here has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import Cameras, Views
from backend.compositing import over, straight
from backend.hull import NothingSeen
from backend.models.grm_backdrop import FARTHEST, FEW, NEAR, Voxels, voxels_of
from backend.models.grm_cameras import Poses, project, unproject
from backend.models.grm_grid_torch import TorchGrid, fit_grids
from backend.models.grm_hull import Hull, hull_of
from backend.radiance_grid import GridConfig, Level, RadianceGrid, fit_grid

CHANNELS = 12
# Two seconds of one core for four views.
COARSE = GridConfig(levels=(Level(24, 40), Level(48, 30), Level(64, 30)), most_rays=12_000, stride=1.0)
MOST = 0.9  # share of an object's pixels whose depth is known, from which no grid is made
WHOLE = 0.9  # alpha of a pixel that shows nothing but the surface whose depth it has
STRIDE = 1.0  # way between the samples of a ray through it, voxels
FAINTEST = 1e-3  # alpha from which a pixel has a colour of its own


@dataclass(frozen=True)
class Guide:
    """Where V views' pixels see the hull, and a surface in it.

    surface   [B,V,R,R] the depth that is known, or at which the coarse grid is seen, or else that of the origin; what
              is not known is held between the hull's entry and its last leave
    known     [B,V,R,R] bool
    channels  [B,V,12,R,R] what the network sees of it: the surface measured from the origin's depth, how far it is
              inside the hull, the room there; what the coarse grid's colour over white (3) and alpha differ by from the
              picture's; and `agreement`
    voxels    of each object's coarse grid, where there is one
    """

    hull: Hull
    surface: Tensor
    known: Tensor
    channels: Tensor
    voxels: tuple[Voxels | None, ...]


@dataclass(frozen=True)
class _Coarse:
    """What one object's coarse grid shows.

    depth   [V,R,R] planar, 0 where it shows nothing
    beside  [V,4,R,R] what its colour over white and its alpha, 0..1, differ by from the picture's
    """

    depth: Tensor
    beside: Tensor
    voxels: Voxels | None


@torch.no_grad()
def guide_of(images: Tensor, Ks: Tensor, poses: Poses, depth: Tensor | None = None) -> Guide:
    """The guide of pictures [B,V,4,R,R], -1..1, RGB over white and alpha, with Ks [B,V,3,3] in their pixels.

    depth  [B,V,R,R] along the view axes where it is known, 0 elsewhere; None: nowhere. At the object's rim, where a
           pixel shows other things too, it is not taken for known
    """
    hull = hull_of(images[:, :, 3].add(1).div(2), poses)
    whole = images[:, :, 3] > 2 * WHOLE - 1
    known = torch.zeros_like(whole) if depth is None else whole & (depth > 0)
    coarse = _coarse(images, Ks, poses, known)
    found = torch.stack([one.depth for one in coarse]).to(hull.entry)
    surface = torch.where(found > 0, found, hull.origin[..., None, None])
    surface = torch.minimum(torch.maximum(surface, hull.entry), hull.entry + hull.room)
    surface = surface if depth is None else torch.where(known, depth.to(surface), surface)
    inside = [surface - hull.origin[..., None, None], surface - hull.entry, hull.room]
    beside = torch.stack([one.beside for one in coarse]).to(surface)
    channels = torch.cat([torch.stack(inside, dim=2), beside, agreement(images, surface, poses)], dim=2)
    return Guide(hull, surface, known, channels, tuple(one.voxels for one in coarse))


def _coarse(images: Tensor, Ks: Tensor, poses: Poses, known: Tensor) -> list[_Coarse]:
    """What each object's coarse grid shows; nothing where most depth is known: it would only stand before the truth."""
    side, device = images.shape[-1], images.device
    clear = without_white(images).float()
    wanted = [float(told[alpha > 0.5].float().mean()) < MOST for told, alpha in zip(known, clear[..., 3], strict=True)]
    cameras = [
        Cameras(c2w, own.to(c2w), flat, side, side)
        for c2w, own, flat in zip(poses.c2w.float(), Ks, poses.orthographic, strict=True)
    ]
    if device.type == "cpu":
        grids = [fitted(given, own) if use else None for use, given, own in zip(wanted, clear, cameras, strict=True)]
    else:
        grids = fit_grids(clear, poses.c2w.float(), Ks.float(), poses.orthographic, COARSE)
        grids = [grid if use else None for use, grid in zip(wanted, grids, strict=True)]
    return [
        _nothing(given) if grid is None else _shown(grid, given, own)
        for grid, given, own in zip(grids, clear, cameras, strict=True)
    ]


def fitted(images: Tensor, cameras: Cameras) -> RadianceGrid | None:
    """The coarse grid that fits images [V,H,H,4], straight alpha, on the CPU.

    A single view, or views without a common object, tell no depth: there is no grid then.
    """
    if len(images) < 2:
        return None
    try:
        return fit_grid(Views(images, cameras), COARSE, np.random.default_rng(0), lambda *_: False)
    except NothingSeen:
        return None


def _shown(grid: RadianceGrid | TorchGrid, images: Tensor, cameras: Cameras) -> _Coarse:
    shown = grid.views(cameras, STRIDE)
    assert shown.depth is not None, "a grid's views have depth"
    beside = torch.cat([over(shown.images, 1.0) - over(images, 1.0), shown.images[..., 3:] - images[..., 3:]], dim=-1)
    return _Coarse(shown.depth, beside.permute(0, 3, 1, 2), voxels_of(grid, images, shown.depth, cameras))


def _nothing(images: Tensor) -> _Coarse:
    """images [V,H,H,4]"""
    return _Coarse(torch.zeros_like(images[..., 0]), torch.zeros_like(images).movedim(-1, 1), None)


def agreement(images: Tensor, surface: Tensor, poses: Poses) -> Tensor:
    """[B,V,5,R,R] what the other views show at the points of a surface [B,V,R,R] that pixels see; 0 beside the object.

    The other views count by how near the point is to their own surface, in their masks. Channels: the mean difference
    of their colours to the pixel's own (3); how many views that are, at most 1; and how far the point is before the
    surface of that view before whose surface it is most, in FARTHEST: what is before a surface would hide it.
    """
    shown = torch.cat([without_white(images).movedim(-1, 2), surface[:, :, None]], dim=2)  # [B,V,5,R,R]
    points, count = unproject(surface, poses, "centres"), images.shape[1]
    total, weight = torch.zeros_like(shown[:, :, :3]), torch.zeros_like(surface)
    before = torch.full_like(surface, FARTHEST if count == 1 else -FARTHEST)
    for turn in range(1, count):
        there = Poses(*(getattr(poses, field.name).roll(turn, 1) for field in fields(poses)))
        place, depth = project(points, there)
        other = F.grid_sample(
            shown.roll(turn, 1).flatten(0, 1),
            2 * place.flatten(0, 1).to(shown) - 1,
            padding_mode="border",
            align_corners=False,
        ).unflatten(0, shown.shape[:2])
        gap = (depth - other[:, :, 4]).clamp(-FARTHEST, FARTHEST)
        near = other[:, :, 3] * torch.exp(-((gap / NEAR) ** 2))
        total += near[:, :, None] * (other[:, :, :3] - shown[:, :, :3])
        weight += near
        gap = torch.where(other[:, :, 3] > 0.5, gap, -FARTHEST)
        before = gap if turn == 1 else torch.minimum(before, gap)
    parts = [total / (weight + FEW)[:, :, None], weight.clamp_max(1)[:, :, None], before[:, :, None] / FARTHEST]
    return torch.cat(parts, dim=2) * shown[:, :, 3:4]


def without_white(pictures: Tensor) -> Tensor:
    """[...,4,R,R] -1..1, RGB over white and alpha -> [...,R,R,4] 0..1, straight alpha."""
    colour, alpha = pictures.add(1).div(2).movedim(-3, -1).split([3, 1], dim=-1)
    return straight(torch.cat([colour - 1 + alpha, alpha], dim=-1), FAINTEST)
