"""The Gaussians as a density in space, and the surface on which it has the level that agrees best with the masks.

Four views leave Gaussians hazy: seen from the side, no single depth is where the object begins. Their density has a
surface all the same at any level, the same one from every side, and the masks say which level is the object's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from scipy import ndimage

from backend.cameras import Cameras, Views, rays
from backend.gaussians import Gaussians
from backend.volume import Grid

LOW_PASS = 0.5  # voxels; thinner Gaussians could slip through between the voxels' centres
SMOOTHING = 2.0  # voxels; what is finer than this is the lattice of the splats, not the object
REACH = 3.0  # standard deviations at which a Gaussian ends
STEP = 0.5  # voxels between the samples of a ray
LEVELS = np.geomspace(0.1, 0.8, 24)
JUDGES = 300_000  # pixels at most that choose the level


@dataclass(frozen=True)
class LevelSurface:
    """Where a density [X,Y,Z] float32 on a grid rises through a level."""

    grid: Grid
    values: np.ndarray
    level: float

    def depth(self, cameras: Cameras) -> np.ndarray:
        """[V,H,W] float32 planar depth, scene units, of the first place on each ray; inf where there is none, 0 where
        the camera itself is inside."""
        return np.stack([self._depth_of(cameras[[view]]) for view in range(len(cameras))])

    def _depth_of(self, camera: Cameras) -> np.ndarray:
        origins, directions, planar = _rays_in_voxels(camera, self.grid)
        hits = np.empty(len(origins))
        _first_crossing(self.values, origins, directions, self.level, hits)
        return (hits * planar).reshape(camera.height, camera.width).astype(np.float32)


def surface_of(gaussians: Gaussians, views: Views, grid: Grid) -> LevelSurface:
    """The level surface of the Gaussians whose outlines overlap most with the views' masks."""
    values = density(gaussians, grid)
    peaks, inside = _peaks(values, grid, views)
    both = [np.count_nonzero(inside & (peaks > level)) for level in LEVELS]
    either = [np.count_nonzero(inside | (peaks > level)) for level in LEVELS]
    overlap = np.divide(both, np.maximum(either, 1))
    return LevelSurface(grid, values, float(LEVELS[int(np.argmax(overlap))]))


def density(gaussians: Gaussians, grid: Grid) -> np.ndarray:
    """[X,Y,Z] float32: sum over the Gaussians of opacity * exp(-d^2 / 2), smoothed; d is Mahalanobis' distance."""
    solid = gaussians[gaussians.finite]
    before = solid.covariances.double() / grid.voxel**2
    after = before + LOW_PASS**2 * torch.eye(3, dtype=torch.float64)
    # a Gaussian that is made wider keeps its mass
    shares = (torch.linalg.det(before).clamp_min(0) / torch.linalg.det(after)).sqrt()
    peaks = (solid.opacities * shares).numpy()
    centres = (solid.means.double().numpy() - grid.origin) / grid.voxel
    reaches = REACH * after.diagonal(dim1=1, dim2=2).sqrt().numpy()
    values = np.zeros(grid.shape, np.float32)
    _add(values, centres, torch.linalg.inv(after).numpy(), peaks, reaches)
    return ndimage.gaussian_filter(values, SMOOTHING)


def _peaks(values: np.ndarray, grid: Grid, views: Views) -> tuple[np.ndarray, np.ndarray]:
    """Highest density along the rays of evenly chosen pixels of all views, and whether those are inside the masks."""
    pixels = views.cameras.height * views.cameras.width
    stride = max(1, -(-len(views) * pixels // JUDGES))
    peaks, inside = [], []
    for view in range(len(views)):
        origins, directions, _ = _rays_in_voxels(views.cameras[[view]], grid)
        chosen = slice(view % stride, None, stride)
        highest = np.zeros(len(origins[chosen]))
        _highest(values, origins[chosen], directions[chosen], highest)
        peaks.append(highest)
        inside.append((views.images[view, ..., 3] > 0.5).numpy().reshape(-1)[chosen])
    return np.concatenate(peaks), np.concatenate(inside)


def _rays_in_voxels(camera: Cameras, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origins and unit directions [P,3] of one camera's rays in voxels, and planar depth, scene units, per voxel."""
    origins, directions = (part.reshape(-1, 3).double().numpy() for part in rays(camera))
    planar = directions @ camera.c2w[0, :3, 2].double().numpy() * grid.voxel
    return (origins - grid.origin) / grid.voxel, directions, planar


@numba.njit(parallel=True, cache=True)
def _add(values, centres, precisions, peaks, reaches):
    """Each thread owns some planes of constant X and runs over all Gaussians."""
    size = values.shape
    for i in numba.prange(size[0]):
        for n in range(len(centres)):
            x = i - centres[n, 0]
            if abs(x) > reaches[n, 0]:
                continue
            precision = precisions[n]
            first_j, last_j = _span(centres[n, 1], reaches[n, 1], size[1])
            first_k, last_k = _span(centres[n, 2], reaches[n, 2], size[2])
            for j in range(first_j, last_j):
                y = j - centres[n, 1]
                constant = precision[0, 0] * x * x + 2 * precision[0, 1] * x * y + precision[1, 1] * y * y
                slope = 2 * (precision[0, 2] * x + precision[1, 2] * y)
                for k in range(first_k, last_k):
                    z = k - centres[n, 2]
                    square = constant + z * (slope + precision[2, 2] * z)
                    if square < REACH * REACH:
                        values[i, j, k] += peaks[n] * np.exp(-0.5 * square)


@numba.njit(cache=True)
def _span(centre, reach, size):
    return max(0, int(np.ceil(centre - reach))), min(size, int(np.floor(centre + reach)) + 1)


@numba.njit(cache=True)
def _part_inside(origin, direction, size):
    """The first and last way along a ray within the grid; the last is smaller than the first where it misses."""
    first, last = 0.0, np.inf
    for axis in range(3):
        if abs(direction[axis]) < 1e-12:
            if origin[axis] < 0 or origin[axis] > size[axis] - 1:
                return 1.0, 0.0
            continue
        one = -origin[axis] / direction[axis]
        other = (size[axis] - 1 - origin[axis]) / direction[axis]
        first, last = max(first, min(one, other)), min(last, max(one, other))
    return first, last


@numba.njit(cache=True)
def _interpolated(values, origin, direction, along):
    """The density some way along a ray."""
    X, Y, Z = values.shape
    x, y, z = origin[0] + along * direction[0], origin[1] + along * direction[1], origin[2] + along * direction[2]
    i, j, k = min(max(int(x), 0), X - 2), min(max(int(y), 0), Y - 2), min(max(int(z), 0), Z - 2)
    u, v, w = x - i, y - j, z - k
    near = (values[i, j, k] * (1 - w) + values[i, j, k + 1] * w) * (1 - v)
    near += (values[i, j + 1, k] * (1 - w) + values[i, j + 1, k + 1] * w) * v
    far = (values[i + 1, j, k] * (1 - w) + values[i + 1, j, k + 1] * w) * (1 - v)
    far += (values[i + 1, j + 1, k] * (1 - w) + values[i + 1, j + 1, k + 1] * w) * v
    return near * (1 - u) + far * u


@numba.njit(parallel=True, cache=True)
def _first_crossing(values, origins, directions, level, hits):
    """Fill `hits` [P] with the way along each ray, in voxels, at which the density first rises to the level, or inf."""
    for r in numba.prange(len(origins)):
        origin, direction = origins[r], directions[r]
        along, last = _part_inside(origin, direction, values.shape)
        before, hits[r] = 0.0, np.inf
        while along <= last:
            here = _interpolated(values, origin, direction, along)
            if here >= level:
                hits[r] = max(along - STEP * (here - level) / (here - before), 0.0)
                break
            before = here
            along += STEP


@numba.njit(parallel=True, cache=True)
def _highest(values, origins, directions, highest):
    """Fill `highest` [P] with the highest density along each ray."""
    for r in numba.prange(len(origins)):
        origin, direction = origins[r], directions[r]
        along, last = _part_inside(origin, direction, values.shape)
        while along <= last:
            here = _interpolated(values, origin, direction, along)
            highest[r] = max(highest[r], here)
            along += STEP
