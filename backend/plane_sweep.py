"""Depth of posed photographs by plane-sweep stereo (Collins 1996), on the CPU.

Each view is matched against a few neighbours over planes of even inverse depth (even depth for an orthographic view) by
zero-mean normalised cross-correlation, the best half of the neighbours counting, since some do not see the surface. The
cost is regularised along scanlines (Hirschmüller 2008), the depth refined between the planes and trusted where other
views' depth agrees. Rounds at half the resolution find each view's range of depth, which at first is bounded only by
how far the cameras are apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend import sweep_kernels as kernels
from backend.cameras import Cameras, Views
from backend.monitor import Monitor

RANGE_ROUNDS = 2  # sweeps at half the resolution that only find where the depth lies
NEAREST = 0.5  # first bound: no surface nearer than this share of the typical distance between neighbouring cameras
FARTHEST = 1000.0  # first bound, in units of the nearest
COMPANIONS = 8  # cameras around one that say what a typical distance is
WIDEST_TURN = 60.0  # degrees between viewing directions beyond which two views are not matched
BEST_ANGLE, SHARPER, WIDER = 7.0, 3.0, 12.0  # degrees of parallax: the best, and how fast less and more are worse
LEAST_WORTH = 1e-3  # of a pair of views: below it they have no overlap or no parallax
RANGE_QUANTILES = (0.01, 0.99)
RANGE_MARGIN = 1.4  # inverse depths found in a round leave this factor of room on both sides
ENOUGH = 100  # confirmed pixels that make a view's range its own
WINDOW_RADIUS = 2  # pixels
STEP_COST, JUMP_COST = np.float32(0.03), np.float32(0.2)
CONTRAST = 0.05  # summed over the four directions
TOLERANCE, REACH = 0.03, 1.0  # relative depth and pixels within which two views agree
VOTERS = 8  # other views that may confirm a depth
FULL_TRUST = 4  # so many that do are enough
PROBES = (6, 4)  # columns and rows of pixels, and at how many depths, that stand for a picture when pairs are chosen
PROBE_DEPTHS = 8


@dataclass(frozen=True)
class Span:
    """Depths that V views are swept between, scene units: near and far, [V] float64."""

    near: np.ndarray
    far: np.ndarray


@dataclass(frozen=True)
class Rig:
    """Cameras of pictures of one size as the kernels take them.

    viewmats, c2w  [V,4,4] float64, world to camera and back
    lenses         [V,5] float64: fx, fy, cx, cy in pixels, and 1 for an orthographic camera, else 0
    """

    viewmats: np.ndarray
    c2w: np.ndarray
    lenses: np.ndarray
    height: int
    width: int


def rig_of(cameras: Cameras) -> Rig:
    c2w, Ks = cameras.c2w.double().cpu().numpy(), cameras.Ks.double().cpu().numpy()
    lenses = np.stack([Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2], cameras.orthographic.cpu().numpy()], axis=1)
    return Rig(np.linalg.inv(c2w), c2w, lenses, cameras.height, cameras.width)


def sweep_depth(
    views: Views, *, planes: int = 96, neighbours: int = 4, side: int = 240, monitor: Monitor
) -> tuple[Tensor, Tensor]:
    """Depth of every view, matched against its `neighbours` best neighbours over `planes` planes.

    planes      depth hypotheses of a view between the nearest and farthest surface that a coarse sweep finds
    neighbours  views that each view is matched against
    side        pixels of the longer side at which the matching is done
    Returns depth [V,H,W] float32, planar, scene units, at the views' own size, 0 where there is nothing to match, and
    confidence [V,H,W] float32: the share of the other views (FULL_TRUST of them are enough) whose depth agrees. Where
    it is 0 the depth is a guess. Both are 0 everywhere if no two cameras have parallax. Reports the stage "depth".
    """
    total = (RANGE_ROUNDS + 1) * len(views)
    span = first_span(rig_of(views.cameras))
    depth = confidence = np.zeros((len(views), 1, 1), np.float32)
    for turn in range(RANGE_ROUNDS + 1):
        pictures = shrunk(views, side if turn == RANGE_ROUNDS else side // 2)
        sweep = _Sweep(pictures, span, neighbours, planes)
        depth, confidence = sweep.run(monitor, turn * len(views), total)
        span = _span_of(depth, confidence, span, sweep.rig)
    return _enlarged(depth, confidence, views.cameras.height, views.cameras.width)


def shrunk(views: Views, side: int) -> Views:
    """The views without depth, with pictures of at most `side` pixels a side."""
    height, width = views.cameras.height, views.cameras.width
    share = min(1.0, max(1, side) / max(height, width))
    size = (max(1, round(height * share)), max(1, round(width * share)))
    images = torch.stack([F.adaptive_avg_pool2d(image.permute(2, 0, 1), size) for image in views.images])
    return Views(images.permute(0, 2, 3, 1), views.cameras.resized(size[1], size[0]), None, views.names)


class _Sweep:
    """One pass over all views at one resolution."""

    def __init__(self, views: Views, span: Span, neighbours: int, planes: int) -> None:
        self.rig = rig_of(views.cameras)
        grey = views.images[..., :3] @ torch.tensor([0.299, 0.587, 0.114])
        self.grey = np.ascontiguousarray(grey.cpu().numpy(), dtype=np.float32)
        self.span, self.planes, self.neighbours = span, planes, neighbours
        self.worth = pair_worths(self.rig, span.near, span.far)

    def run(self, monitor: Monitor, done: int, total: int) -> tuple[np.ndarray, np.ndarray]:
        """depth and confidence [V,h,w] float32."""
        depth = np.zeros_like(self.grey)
        for view in range(len(depth)):
            monitor.progress("depth", done + view, total)
            depth[view] = self._depth_of(view)
        confidence = np.stack([self._confidence_of(depth, view) for view in range(len(depth))])
        monitor.progress("depth", done + len(depth), total)
        return depth, confidence

    def _depth_of(self, view: int) -> np.ndarray:
        """[h,w], 0 where nothing stands out."""
        others = self._best(view, self.neighbours)
        if len(others) == 0:
            return np.zeros_like(self.grey[view])
        places, depths = self._planes_of(view)
        ahead, shift = rays_in(self.rig, view, others)
        cost = np.empty((self.planes, *self.grey[view].shape), np.float32)
        lenses = self.rig.lenses[others].astype(np.float32)
        kernels.match(self.grey[view], self.grey[others], ahead, shift, lenses, depths, WINDOW_RADIUS, cost)
        total = kernels.regularise(cost, self.grey[view], STEP_COST, JUMP_COST)
        place = kernels.winners(total, places[0], places[1] - places[0], CONTRAST)
        depth = place if self.rig.lenses[view, 4] else 1 / place
        return np.nan_to_num(depth, nan=0.0)

    def _planes_of(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Places [D], evenly spaced, and depths [D] of the planes: depth itself if orthographic, else its inverse."""
        near, far = self.span.near[view], self.span.far[view]
        if self.rig.lenses[view, 4]:
            places = np.linspace(near, far, self.planes)
            return places, places.astype(np.float32)
        places = np.linspace(1 / far, 1 / near, self.planes)
        return places, (1 / places).astype(np.float32)

    def _confidence_of(self, depth: np.ndarray, view: int) -> np.ndarray:
        """[h,w] 0..1."""
        others = self._best(view, VOTERS)
        votes = np.zeros(depth[view].shape, np.float32)
        rig = self.rig
        for other in others:
            there_and_back = np.stack([rig.viewmats[other] @ rig.c2w[view], rig.viewmats[view] @ rig.c2w[other]])
            lenses = rig.lenses[[view, other]]
            kernels.confirm(depth[view], depth[other], there_and_back, lenses, TOLERANCE, REACH, votes)
        return np.minimum(votes / max(1, min(FULL_TRUST, len(others))), 1)

    def _best(self, view: int, count: int) -> np.ndarray:
        """The views that see most of what `view` sees at a useful angle, best first."""
        order = np.argsort(-self.worth[view], kind="stable")[:count]
        return order[self.worth[view][order] > LEAST_WORTH]


def pair_worths(rig: Rig, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """[V,V] 0..1: how well each view (row) can be matched against each other one, with surfaces from near to far [V].

    The mean over pixels and depths of whether the other sees the point, weighted by the angle between the two lines of
    sight (as MVSNet chooses its sources, Yao et al. 2018, section 4.1, but with points from the cameras alone).
    """
    forward = rig.c2w[:, :3, 2]
    turned = np.degrees(np.arccos(np.clip(forward @ forward.T, -1, 1))) > WIDEST_TURN
    worth = np.stack([_worths_of(rig, *_probes(rig, view, near[view], far[view])) for view in range(len(forward))])
    worth[turned] = 0
    np.fill_diagonal(worth, 0)
    return worth


def _probes(rig: Rig, view: int, near: float, far: float) -> tuple[np.ndarray, np.ndarray]:
    """World points [P,3] in a camera's view, and its unit lines of sight to them [P,3]."""
    fx, fy, cx, cy, orthographic = rig.lenses[view]
    u, v = (np.arange(n) + 0.5 for n in PROBES)
    u, v = u * rig.width / PROBES[0], v * rig.height / PROBES[1]
    share = (np.arange(PROBE_DEPTHS) + 0.5) / PROBE_DEPTHS
    z = near + (far - near) * share if orthographic else 1 / (1 / near + (1 / far - 1 / near) * share)
    z, v, u = (axis.ravel() for axis in np.meshgrid(z, v, u, indexing="ij"))
    scale = 1.0 if orthographic else z
    local = np.stack([(u - cx) / fx * scale, (v - cy) / fy * scale, z], axis=1)
    points = local @ rig.c2w[view, :3, :3].T + rig.c2w[view, :3, 3]
    return points, _sight(rig, points)[view]


def _sight(rig: Rig, points: np.ndarray) -> np.ndarray:
    """[V,P,3] unit directions in which the cameras look at world points [P,3]."""
    away = points - rig.c2w[:, None, :3, 3]
    away /= np.maximum(np.linalg.norm(away, axis=2, keepdims=True), 1e-30)
    return np.where(rig.lenses[:, 4, None, None] > 0, rig.c2w[:, None, :3, 2], away)


def _worths_of(rig: Rig, points: np.ndarray, sight: np.ndarray) -> np.ndarray:
    """[V] mean worth of points [P,3], that a camera sees along `sight` [P,3], to each camera."""
    fx, fy, cx, cy, orthographic = (column[:, None] for column in rig.lenses.T)
    local = points @ rig.viewmats[:, :3, :3].transpose(0, 2, 1) + rig.viewmats[:, None, :3, 3]
    z = local[..., 2]
    scale = np.where(orthographic > 0, 1.0, 1 / np.where(z > 0, z, np.inf))
    u, v = fx * local[..., 0] * scale + cx, fy * local[..., 1] * scale + cy
    seen = (z > 0) & (u > 0) & (u < rig.width) & (v > 0) & (v < rig.height)
    parallel = np.einsum("pc,vpc->vp", sight, _sight(rig, points))
    angle = np.degrees(np.arccos(np.clip(parallel, -1, 1)))
    spread = np.where(angle < BEST_ANGLE, SHARPER, WIDER)
    useful = np.exp(-0.5 * ((angle - BEST_ANGLE) / spread) ** 2) * np.minimum(1, angle / 0.5)
    return (seen * useful).mean(axis=1)


def rays_in(rig: Rig, view: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ahead, shift [K,h,w,3] float32: a pixel's point at depth z is z ahead + shift in each other camera's space."""
    fx, fy, cx, cy, orthographic = rig.lenses[view]
    v, u = np.meshgrid(np.arange(rig.height) + 0.5, np.arange(rig.width) + 0.5, indexing="ij")
    plane = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], axis=-1)
    ahead, shift = (np.array([0, 0, 1.0]), plane * [1, 1, 0]) if orthographic else (plane, np.zeros(3))
    between = rig.viewmats[others] @ rig.c2w[view]
    rotation = between[:, None, None, :3, :3]
    ahead, shift = (np.broadcast_to(vector, plane.shape)[None, ..., None] for vector in (ahead, shift))
    start = (rotation @ shift)[..., 0] + between[:, None, None, :3, 3]
    return (rotation @ ahead)[..., 0].astype(np.float32), start.astype(np.float32)


def first_span(rig: Rig) -> Span:
    """What the cameras alone say: nothing much nearer than the next cameras are apart is seen by two of them."""
    count = len(rig.c2w)
    centres, forward = rig.c2w[:, :3, 3], rig.c2w[:, :3, 2]
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    turned = np.degrees(np.arccos(np.clip(forward @ forward.T, -1, 1))) > WIDEST_TURN
    apart = np.where(turned | (apart <= 1e-6 * max(apart.max(), 1e-30)), np.inf, apart)
    near = np.ones(count)
    for view in range(count):
        companions = np.sort(apart[view])[:COMPANIONS]
        companions = companions[np.isfinite(companions)]
        near[view] = NEAREST * np.median(companions) if len(companions) else np.nan
    near = np.where(np.isfinite(near), near, np.nanmedian(near) if np.isfinite(near).any() else 1.0)
    # an orthographic camera has no preferred scale of depth but its picture's
    reach = np.maximum(rig.width / rig.lenses[:, 0], near / NEAREST)
    flat = rig.lenses[:, 4] > 0
    return Span(np.where(flat, 0.02 * reach, near), np.where(flat, 4 * reach, FARTHEST * near))


def _span_of(depth: np.ndarray, confidence: np.ndarray, span: Span, rig: Rig) -> Span:
    """The depths that other views confirmed, with room on both sides; where hardly any were, the old span."""
    near, far = span.near.copy(), span.far.copy()
    for view in range(len(depth)):
        sure = depth[view][confidence[view] > 0]
        if len(sure) < ENOUGH * depth[view].size / 10_000:
            continue
        low, high = np.quantile(sure, RANGE_QUANTILES)
        room = (RANGE_MARGIN - 1) * (high - low) + 0.02 * high if rig.lenses[view, 4] else 0.0
        near[view] = max(low - room, span.near[view]) if room else low / RANGE_MARGIN
        far[view] = high + room if room else high * RANGE_MARGIN
    return Span(near, far)


def _enlarged(depth: np.ndarray, confidence: np.ndarray, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Both at another size: depth is interpolated within a surface and taken from the nearest pixel elsewhere."""
    both = torch.from_numpy(np.stack([depth, confidence], axis=1))
    if both.shape[2:] == (height, width):
        return both[:, 0], both[:, 1]
    nearest = F.interpolate(both, (height, width), mode="nearest-exact")
    between = F.interpolate(both, (height, width), mode="bilinear", align_corners=False)
    jumps = F.max_pool2d(both[:, :1], 3, 1, 1) + F.max_pool2d(-both[:, :1], 3, 1, 1) > 0.1 * both[:, :1]
    jumps = F.interpolate(jumps.float(), (height, width), mode="nearest-exact") > 0
    return torch.where(jumps, nearest, between)[:, 0], nearest[:, 1]
