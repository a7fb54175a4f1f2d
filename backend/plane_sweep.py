"""Depth maps of posed photographs: a plane sweep scored by correlation, smoothed, and checked between views.

Collins 1996 for the sweep, Hirschmüller 2008 for the smoothing (semi-global matching); planes even in inverse depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import Cameras, Views


@dataclass(frozen=True)
class SweepConfig:
    """How depth is swept.

    longest_side  pictures are reduced to this many pixels along their longest side
    planes        depths tried
    neighbours    other views that a view is compared with; the better half of them counts at each pixel
    radius        pixels of the correlation window on each side of its middle
    step_cost     cost of one plane more or less than the neighbouring pixel (a match costs (1 - correlation) / 2)
    jump_cost     cost of any larger jump
    tolerance     views agree on a depth within this many planes
    agreeing      other views that must agree
    worst_cost    matches above this count for nothing
    """

    longest_side: int = 240
    planes: int = 64
    neighbours: int = 4
    radius: int = 2
    step_cost: float = 0.03
    jump_cost: float = 0.15
    tolerance: float = 2.0
    agreeing: int = 1
    worst_cost: float = 0.3


def sweep(views: Views, config: SweepConfig, advance: Callable[[int, int], None]) -> tuple[Tensor, Tensor]:
    """Planar depth [V,h,w] of reduced pictures, scene units, and whether other views agree with it, [V,h,w] bool.

    advance  called with the number of views done and in all, for both passes together; may raise

    A first pass over a wide range with small pictures finds the depths that occur, a second sweeps those. Views without
    any other view to compare with have depth 0.
    """
    count = len(views)
    if count < 2:
        return torch.zeros(count, 1, 1), torch.zeros(count, 1, 1, dtype=torch.bool)
    partners = neighbours_of(views.cameras, config.neighbours)
    small = _grey(views, max(32, config.longest_side // 2))
    wide = _wide_range(small.cameras, partners)
    rough, cost = _depths_of(small, partners, wide, config, lambda view: advance(view, 2 * count))
    good = agreement(rough, small.cameras, partners, wide, config) & (cost < 0.5 * config.worst_cost)
    narrow = _narrow_range(rough[good], wide, config.planes)
    pictures = _grey(views, config.longest_side)
    depth, cost = _depths_of(pictures, partners, narrow, config, lambda view: advance(count + view, 2 * count))
    return depth, agreement(depth, pictures.cameras, partners, narrow, config) & (cost < config.worst_cost)


@dataclass(frozen=True)
class _Pictures:
    """Grey pictures [V,h,w] with their cameras."""

    grey: Tensor
    cameras: Cameras


def neighbours_of(cameras: Cameras, count: int) -> list[list[int]]:
    """For each view the others that likely see the same from elsewhere: near, turned the same way, not in its place."""
    centres, forward = cameras.centres, cameras.c2w[:, :3, 2]
    apart = torch.cdist(centres, centres)
    nearest = apart + torch.diag(torch.full((len(cameras),), math.inf))
    typical = nearest.amin(1).median().clamp_min(1e-9)
    angle = torch.rad2deg(torch.arccos((forward @ forward.T).clamp(-1, 1)))
    worth = apart / typical + angle / 20
    worth = torch.where(nearest < 0.1 * typical, math.inf, worth)
    worth.fill_diagonal_(math.inf)
    order = worth.argsort(dim=1)
    return [
        [int(other) for other in order[view, :count] if math.isfinite(float(worth[view, other]))]
        for view in range(len(cameras))
    ]


def agreement(
    depth: Tensor, cameras: Cameras, partners: list[list[int]], inverse: np.ndarray, config: SweepConfig
) -> Tensor:
    """[V,h,w] bool: where at least `agreeing` partners have nearly the same depth at the same place in the world.

    depth [V,h,w]; inverse [D] the planes' inverse depths, whose distance is the unit of the tolerance.
    """
    tolerance = config.tolerance * float(abs(inverse[1] - inverse[0]))
    votes = torch.zeros(depth.shape, dtype=torch.int32)
    for view, others in enumerate(partners):
        for other in others:
            ahead, shift = _to_other(cameras, view, other)
            local = depth[view][..., None] * torch.from_numpy(ahead) + torch.from_numpy(shift)
            seen = _sampled(depth[other], local, cameras, other)
            near = (1 / local[..., 2].clamp_min(1e-9) - 1 / seen.clamp_min(1e-9)).abs() < tolerance
            votes[view] += (near & (seen > 0) & (local[..., 2] > 0) & (depth[view] > 0)).int()
    return votes >= config.agreeing


def _sampled(depth: Tensor, local: Tensor, cameras: Cameras, view: int) -> Tensor:
    """[h,w] the nearest pixel of a depth map at points [h,w,3] of its camera's space; 0 outside the frame."""
    K = cameras.Ks[view]
    divisor = torch.ones_like(local[..., 2]) if cameras.orthographic[view] else local[..., 2].clamp_min(1e-9)
    pixels = (local[..., :2] / divisor[..., None]) * K.diagonal()[:2] + K[:2, 2]
    places = 2 * pixels / torch.tensor([cameras.width, cameras.height]) - 1
    sampled = F.grid_sample(depth[None, None], places[None], mode="nearest", align_corners=False)
    return sampled[0, 0]


def _grey(views: Views, longest_side: int) -> _Pictures:
    height, width = views.cameras.height, views.cameras.width
    shrink = min(1.0, longest_side / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    grey = views.images[..., :3] @ torch.tensor([0.299, 0.587, 0.114])
    return _Pictures(F.adaptive_avg_pool2d(grey[:, None], size)[:, 0], views.cameras.resized(size[1], size[0]))


def _wide_range(cameras: Cameras, partners: list[list[int]]) -> np.ndarray:
    """[D] inverse depths from almost nothing to where neighbouring pictures shift by half their width."""
    baselines = [
        float(torch.linalg.vector_norm(cameras.centres[view] - cameras.centres[others[0]]))
        for view, others in enumerate(partners)
        if others
    ]
    baseline = max(float(np.median(baselines)) if baselines else 1.0, 1e-9)
    nearest = float(cameras.Ks[0, 0, 0]) * baseline / (0.5 * cameras.width)
    if bool(cameras.orthographic.any()):
        nearest = 0.25 * baseline
    return np.linspace(0.01, 1, 96) / nearest


def _narrow_range(depths: Tensor, wide: np.ndarray, planes: int) -> np.ndarray:
    """[D] inverse depths over those found, with some room; the wide range where hardly any was found."""
    if len(depths) < 100:
        return np.linspace(wide[0], wide[-1], planes)
    inverse = np.quantile(1 / depths.numpy(), [0.005, 0.995])
    room = 0.1 * (inverse[1] - inverse[0])
    return np.linspace(max(inverse[0] - room, 0.2 * inverse[0]), inverse[1] + room, planes)


def _depths_of(
    pictures: _Pictures,
    partners: list[list[int]],
    inverse: np.ndarray,
    config: SweepConfig,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Depth [V,h,w] and cost [V,h,w] of every view."""
    depths, costs = [], []
    for view, others in enumerate(partners):
        advance(view)
        depth, cost = _depth_of(pictures, view, others, inverse, config)
        depths.append(depth)
        costs.append(cost)
    return torch.stack(depths), torch.stack(costs)


def _depth_of(
    pictures: _Pictures, view: int, partners: list[int], inverse: np.ndarray, config: SweepConfig
) -> tuple[Tensor, Tensor]:
    """Depth [h,w] and cost [h,w] of one view."""
    grey = pictures.grey.numpy()
    _, height, width = grey.shape
    if not partners:
        return torch.zeros(height, width), torch.ones(height, width)
    costs = np.empty((len(partners), len(inverse), height, width), np.float32)
    for row, other in enumerate(partners):
        ahead, shift = _to_other(pictures.cameras, view, other)
        K = pictures.cameras.Ks[other].numpy()
        lens = np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2], float(pictures.cameras.orthographic[other])], np.float32)
        depths = (1 / inverse).astype(np.float32)
        _correlate(grey[view], grey[other], ahead, shift, lens, depths, config.radius, costs[row])
    better = max(1, (len(partners) + 1) // 2)
    total = np.ascontiguousarray(np.sort(costs, axis=0)[:better].mean(axis=0).transpose(1, 2, 0))
    smoothed = np.zeros_like(total)
    _smooth(total, np.float32(config.step_cost), np.float32(config.jump_cost), smoothed)
    depth, cost = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    _choose(total, smoothed, inverse, depth, cost)
    return torch.from_numpy(depth), torch.from_numpy(cost)


def _to_other(cameras: Cameras, view: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """`ahead` and `shift` [h,w,3]: the pixel's point at depth z is z ahead + shift in the other camera's space."""
    K = cameras.Ks[view]
    v, u = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
    plane = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]], dim=-1)
    none, one = torch.zeros_like(plane), torch.ones_like(u)[..., None]
    flat = bool(cameras.orthographic[view])
    ahead = torch.cat([none if flat else plane, one], dim=-1)
    shift = torch.cat([plane if flat else none, 0 * one], dim=-1)
    between = (cameras.viewmats[other].double() @ cameras.c2w[view].double()).float()
    rotation = between[:3, :3].T
    return (ahead @ rotation).contiguous().numpy(), (shift @ rotation + between[:3, 3]).contiguous().numpy()


@numba.njit(fastmath=True, cache=True)
def _window_sum(image, radius, out):
    """Sums over square windows, cut at the frame, by running sums along rows and then columns."""
    height, width = image.shape
    rows = np.empty((height, width), np.float32)
    for y in range(height):
        running = np.float32(0)
        for x in range(min(radius, width)):
            running += image[y, x]
        for x in range(width):
            if x + radius < width:
                running += image[y, x + radius]
            if x - radius - 1 >= 0:
                running -= image[y, x - radius - 1]
            rows[y, x] = running
    for y in range(height):
        first, last = max(0, y - radius), min(height - 1, y + radius)
        for x in range(width):
            out[y, x] = 0
        for line in range(first, last + 1):
            for x in range(width):
                out[y, x] += rows[line, x]


@numba.njit(fastmath=True, cache=True)
def _warp(other, ahead, shift, lens, depth, warped, inside):
    """The other picture as seen through a plane at `depth`; `inside` is 0 where it does not reach."""
    height, width = warped.shape
    rows, columns = other.shape
    for y in range(height):
        for x in range(width):
            warped[y, x], inside[y, x] = 0, 0
            z = depth * ahead[y, x, 2] + shift[y, x, 2]
            if z <= 1e-6:
                continue
            scale = 1.0 if lens[4] > 0 else 1 / z
            u = lens[0] * scale * (depth * ahead[y, x, 0] + shift[y, x, 0]) + lens[2] - 0.5
            v = lens[1] * scale * (depth * ahead[y, x, 1] + shift[y, x, 1]) + lens[3] - 0.5
            if u < 0 or v < 0 or u >= columns - 1 or v >= rows - 1:
                continue
            i, j = int(v), int(u)
            a, b = v - i, u - j
            upper = (1 - b) * other[i, j] + b * other[i, j + 1]
            lower = (1 - b) * other[i + 1, j] + b * other[i + 1, j + 1]
            warped[y, x], inside[y, x] = (1 - a) * upper + a * lower, 1


@numba.njit(fastmath=True, parallel=True, cache=True)
def _correlate(grey, other, ahead, shift, lens, depths, radius, costs):
    """costs [D,h,w]: (1 - zero-mean normalised correlation) / 2 of windows, 1/2 where the other picture has nothing."""
    height, width = grey.shape
    for plane in numba.prange(len(depths)):
        warped, inside = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
        _warp(other, ahead, shift, lens, depths[plane], warped, inside)
        sums = np.empty((6, height, width), np.float32)
        _window_sum(inside, radius, sums[0])
        _window_sum(inside * grey, radius, sums[1])
        _window_sum(warped, radius, sums[2])
        _window_sum(inside * grey * grey, radius, sums[3])
        _window_sum(warped * warped, radius, sums[4])
        _window_sum(grey * warped, radius, sums[5])
        enough = 0.5 * (2 * radius + 1) ** 2
        for y in range(height):
            for x in range(width):
                n = sums[0, y, x]
                if inside[y, x] == 0 or n < enough:
                    costs[plane, y, x] = 0.5
                    continue
                mean, mean_other = sums[1, y, x] / n, sums[2, y, x] / n
                variance = max(sums[3, y, x] / n - mean * mean, np.float32(0)) + np.float32(1e-4)
                variance_other = max(sums[4, y, x] / n - mean_other * mean_other, np.float32(0)) + np.float32(1e-4)
                covariance = sums[5, y, x] / n - mean * mean_other
                # a plain difference of brightness settles what correlation cannot tell in flat places
                flat = min(abs(mean - mean_other), np.float32(0.25))
                costs[plane, y, x] = 0.5 * (1 - covariance / math.sqrt(variance * variance_other)) + flat


@numba.njit(fastmath=True, cache=True)
def _along(cost, y, x, previous, least, step, jump, current):
    """One step of semi-global matching's recursion (equation 13); the least entry of `current`."""
    planes = cost.shape[2]
    lowest = np.float32(1e9)
    for d in range(planes):
        best = min(previous[d], least + jump)
        if d > 0:
            best = min(best, previous[d - 1] + step)
        if d + 1 < planes:
            best = min(best, previous[d + 1] + step)
        current[d] = cost[y, x, d] + best - least
        lowest = min(lowest, current[d])
    return lowest


@numba.njit(fastmath=True, parallel=True, cache=True)
def _smooth(cost, step, jump, total):
    """Add to `total` [h,w,D] the path costs of semi-global matching from left, right, above and below."""
    height, width, planes = cost.shape
    for y in numba.prange(height):
        previous, current = np.zeros(planes, np.float32), np.zeros(planes, np.float32)
        for way in range(2):
            previous[:], least = 0, np.float32(0)
            for n in range(width):
                x = n if way == 0 else width - 1 - n
                least = _along(cost, y, x, previous, least, step, jump, current)
                for d in range(planes):
                    total[y, x, d] += current[d]
                    previous[d] = current[d]
    for x in numba.prange(width):
        previous, current = np.zeros(planes, np.float32), np.zeros(planes, np.float32)
        for way in range(2):
            previous[:], least = 0, np.float32(0)
            for n in range(height):
                y = n if way == 0 else height - 1 - n
                least = _along(cost, y, x, previous, least, step, jump, current)
                for d in range(planes):
                    total[y, x, d] += current[d]
                    previous[d] = current[d]


@numba.njit(cache=True)
def _choose(cost, smoothed, inverse, depth, best_cost):
    """The plane of least smoothed cost, refined by a parabola through its neighbours, and that plane's own cost."""
    height, width, planes = cost.shape
    for y in range(height):
        for x in range(width):
            best = 0
            for d in range(planes):
                if smoothed[y, x, d] < smoothed[y, x, best]:
                    best = d
            offset = 0.0
            if 0 < best < planes - 1:
                before, here, after = smoothed[y, x, best - 1], smoothed[y, x, best], smoothed[y, x, best + 1]
                bend = before - 2 * here + after
                if bend > 1e-9:
                    offset = 0.5 * (before - after) / bend
            depth[y, x] = 1 / (inverse[best] + offset * (inverse[1] - inverse[0]))
            best_cost[y, x] = cost[y, x, best]
