"""What the masks alone tell about each pixel: where its ray enters the visual hull of all views, and how far inside it
can end (Laurentini 1994).

Rays are cut against the other views' masks directly, without a grid: on the CPU by numba, elsewhere by torch, with the
same answer. All of it stays in float32 or higher, and nothing here has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from backend.models.grm_cameras import HALF_EXTENT, Poses, depth_of_origin, ray_lines

STEPS = 64  # samples of a ray, from HALF_EXTENT before the origin's depth to as far behind it
FINER = 4  # times as many where those find nothing
HALVINGS = 4  # of a step, to find where the hull begins and ends
INSIDE = 0.4999  # alpha that counts as the object: a half, but no value that a whole stretch of a mask may have
ALIKE = 1e-4  # alphas that differ by less are the same: which of them is the largest must not hang on rounding
RAYS_AT_ONCE = 2**16  # for torch, whose every step has a number for each sample of each ray


@dataclass(frozen=True)
class Hull:
    """Where V views' pixels see the hull. Pixels without any alpha have the origin's depth and no room.

    entry   [B,V,R,R] depth at which the ray enters the hull
    room    [B,V,R,R] from there to where it leaves it for the last time, at least 0
    origin  [B,V] depth of the world's origin
    """

    entry: Tensor
    room: Tensor
    origin: Tensor


@torch.no_grad()
def hull_of(alpha: Tensor, poses: Poses) -> Hull:
    """The hull of alpha masks [B,V,R,R], 0..1, in the network's world.

    A mask goes on beyond its frame as it is at the frame's edge. Behind a camera nothing is ruled out, nor by a view
    that shows nothing at all.
    """
    side = alpha.shape[-1]
    origin = depth_of_origin(poses, "centres")
    starts, steps = ray_lines(poses, side, "centres")  # [B,V,R,R,3] each: a point of the ray is start + depth * step
    cut = _cut_on_cpu if alpha.device.type == "cpu" else cut_by_torch
    shown = (alpha > 0).flatten(2).any(-1)[..., None, None]
    entry, leave = cut(torch.where(shown, alpha, 1.0), starts, steps, poses, origin)
    entry = torch.where(shown, entry, origin[..., None, None])
    return Hull(entry, torch.where(shown, leave - entry, 0.0).clamp_min(0), origin)


def cut_by_torch(alpha: Tensor, starts: Tensor, steps: Tensor, poses: Poses, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Depths [B,V,R,R] of the first entry and the last leave, of the origin where alpha is 0."""
    entry = origin[..., None, None].expand(alpha.shape).clone()
    leave = entry.clone()
    for some in (alpha > 0).nonzero().split(RAYS_AT_ONCE):
        place = some.unbind(1)
        entry[place], leave[place] = _cut_rays(_rays(alpha, starts[place], steps[place], poses, origin, *place[:2]))
    return entry, leave


@dataclass(frozen=True)
class _Rays:
    """P rays of any objects and views of a batch, as all V cameras of the object see them.

    masks   [B,V,R,R] alpha
    item    [P] the object, view [P] the ray's own, which rules nothing out; origin [P] depth of the world's origin
    near    [P,V,4] x w, y w, w and depth of the ray's point at depth 0 in each camera, x and y as shares of its side
    along   [P,V,4] what they grow by with the depth
    """

    masks: Tensor
    item: Tensor
    view: Tensor
    origin: Tensor
    near: Tensor
    along: Tensor

    def __getitem__(self, chosen: Tensor) -> _Rays:
        parts = (part[chosen] for part in (self.item, self.view, self.origin, self.near, self.along))
        return _Rays(self.masks, *parts)

    def least(self, depth: Tensor) -> Tensor:
        """depth [P,K] -> [P,K] the least alpha of the other views, 1 behind them."""
        least = torch.ones_like(depth)
        for other in range(self.masks.shape[1]):
            x, y, w, z = (self.near[:, other, :, None] + depth[:, None] * self.along[:, other, :, None]).unbind(1)
            rules = (z > 0) & (self.view != other)[:, None]
            w = torch.where(rules, w, 1.0)
            least = torch.where(rules, torch.minimum(least, self._alpha_at(other, x / w, y / w)), least)
        return least

    def _alpha_at(self, other: int, x: Tensor, y: Tensor) -> Tensor:
        """[P,K] a view's alpha at shares of its side, bilinear, the edge going on."""
        _, views, side, _ = self.masks.shape
        x, y = (side * x - 0.5).clamp(0, side - 1), (side * y - 0.5).clamp(0, side - 1)
        left, top = x.long(), y.long()
        right, bottom = (left + 1).clamp_max(side - 1), (top + 1).clamp_max(side - 1)
        upper, lower = ((self.item * views + other)[:, None] * side + row for row in (top, bottom))
        corners = [self.masks.take(side * row + column) for row in (upper, lower) for column in (left, right)]
        fx, fy = x - left, y - top
        above, below = ((1 - fx) * corners[i] + fx * corners[i + 1] for i in (0, 2))
        return (1 - fy) * above + fy * below


def _rays(
    alpha: Tensor, starts: Tensor, steps: Tensor, poses: Poses, origin: Tensor, item: Tensor, view: Tensor
) -> _Rays:
    """starts, steps [P,3], item, view [P]"""
    turns, centres = poses.c2w[item, :, :3, :3], poses.c2w[item, :, :3, 3]  # [P,V,3,3], [P,V,3]
    focal, middle = poses.intrinsics[item].split(2, dim=-1)
    flat = poses.orthographic[item, :, None]
    lines = []
    for vectors, widening in ((starts[:, None] - centres, 1.0), (steps[:, None].expand_as(centres), 0.0)):
        local = (vectors[..., None] * turns).sum(-2)
        w = torch.where(flat, widening, local[..., 2:])
        lines.append(torch.cat([focal * local[..., :2] + middle * w, w, local[..., 2:]], dim=-1))
    return _Rays(alpha, item, view, origin[item, view], *lines)


def _cut_rays(rays: _Rays) -> tuple[Tensor, Tensor]:
    found, entry, leave, _ = _ends(rays, STEPS)
    missed = ~found
    found, *ends, likeliest = _ends(rays[missed], FINER * STEPS)
    entry[missed], leave[missed] = (torch.where(found, end, likeliest) for end in ends)
    return entry, leave


def _ends(rays: _Rays, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[P] each: whether one of so many samples is inside; first entry and last leave; where the most alpha is."""
    step, place = 2 * HALF_EXTENT / count, torch.arange(count, device=rays.origin.device)
    base = rays.origin - HALF_EXTENT + 0.5 * step
    value = rays.least(base[:, None] + place * step)
    inside, most = value >= INSIDE, value >= value.amax(-1, keepdim=True) - ALIKE
    first, last = torch.where(inside, place, count).amin(-1), torch.where(inside, place, -1).amax(-1)
    entry, leave = base + first * step, base + last * step
    before, behind = entry - step, leave + step
    for _ in range(HALVINGS):
        middle = 0.5 * torch.stack([entry + before, leave + behind], dim=-1)
        (front, back), (at, to) = (rays.least(middle) >= INSIDE).unbind(-1), middle.unbind(-1)
        entry, before = torch.where(front, at, entry), torch.where(front, before, at)
        leave, behind = torch.where(back, to, leave), torch.where(back, behind, to)
    likeliest = base + torch.where(most, place, count).amin(-1) * step
    return inside.any(-1), 0.5 * (entry + before), 0.5 * (leave + behind), likeliest


def _cut_on_cpu(alpha: Tensor, starts: Tensor, steps: Tensor, poses: Poses, origin: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `cut_by_torch`, looking only as far as it must."""
    masks, lines = alpha.float().contiguous().numpy(), (starts.float().contiguous(), steps.float().contiguous())
    viewmats = poses.c2w.transpose(2, 3)[:, :, :3, :3].float().contiguous().numpy()
    entry, leave = np.empty_like(masks), np.empty_like(masks)
    _cut(
        masks,
        lines[0].numpy(),
        lines[1].numpy(),
        (
            viewmats,
            poses.c2w[:, :, :3, 3].float().contiguous().numpy(),
            poses.intrinsics.float().contiguous().numpy(),
            poses.orthographic.contiguous().numpy(),
        ),
        origin.float().numpy(),
        _frames(alpha).numpy(),
        entry,
        leave,
    )
    return torch.from_numpy(entry).to(origin.dtype), torch.from_numpy(leave).to(origin.dtype)


def _frames(alpha: Tensor) -> Tensor:
    """[B,V,4] float32 left, right, top, bottom as shares of the side: what lies beyond cannot be inside a mask."""
    side = alpha.shape[-1]
    limits = []
    for seen in ((alpha > 0).any(-2), (alpha > 0).any(-1)):  # by column, by row: [B,V,R]
        place = torch.arange(side, device=alpha.device)
        first = torch.where(seen, place, side).amin(-1)
        last = torch.where(seen, place, -1).amax(-1)
        limits += [
            torch.where(first == 0, -torch.inf, (first - 1) / side),
            torch.where(last == side - 1, torch.inf, (last + 2) / side),
        ]
    return torch.stack(limits, dim=-1).float()


# Arrays are handed on whole, with the numbers of what is meant, and every call is inlined: a part of an array, made for
# one sample, and a call each cost more than the sample.


@numba.njit(cache=True, parallel=True, error_model="numpy")
def _cut(masks, starts, steps, cameras, origin, frames, entry, leave):
    """masks [B,V,R,R], starts and steps [B,V,R,R,3]; cameras: rotations into them, centres, intrinsics, kinds."""
    batch, views, side, _ = masks.shape
    for row in numba.prange(batch * views * side):
        item, view, y = row // (views * side), row // side % views, row % side
        # Along a ray each other camera's homogeneous pixel, and depth, are linear: near + depth * along, one row each.
        lines = (np.zeros((views, 4), dtype=np.float32), np.zeros((views, 4), dtype=np.float32))
        order = np.arange(views)
        for x in range(side):
            middle = origin[item, view]
            entry[item, view, y, x] = leave[item, view, y, x] = middle
            if masks[item, view, y, x] <= 0:
                continue
            for other in range(views):
                if other != view:
                    _seen_from(starts, steps, (item, view, y, x), cameras, other, lines)
            span = _span(frames, item, view, lines, middle)
            first, last = _search(masks, item, view, lines, order, middle, span, STEPS)
            if first > last:
                first, last = _search(masks, item, view, lines, order, middle, span, FINER * STEPS)
            if first > last:
                first = last = _likeliest(masks, item, view, lines, middle)
            entry[item, view, y, x], leave[item, view, y, x] = first, last


@numba.njit(cache=True, forceinline=True, error_model="numpy")
def _seen_from(starts, steps, ray, cameras, other, lines):
    """Fills row `other` of near and along: x w, y w, w and depth of a ray's points there, as shares of the side."""
    viewmats, centres, intrinsics, orthographic = cameras
    near, along = lines
    item, view, y, x = ray
    for axis in range(3):
        total, slope = np.float32(0), np.float32(0)
        for k in range(3):
            total += viewmats[item, other, axis, k] * (starts[item, view, y, x, k] - centres[item, other, k])
            slope += viewmats[item, other, axis, k] * steps[item, view, y, x, k]
        near[other, axis], along[other, axis] = total, slope
    near[other, 3], along[other, 3] = near[other, 2], along[other, 2]
    if orthographic[item, other]:
        near[other, 2], along[other, 2] = 1, 0
    for axis in range(2):
        focal, middle = intrinsics[item, other, axis], intrinsics[item, other, 2 + axis]
        near[other, axis] = focal * near[other, axis] + middle * near[other, 2]
        along[other, axis] = focal * along[other, axis] + middle * along[other, 2]


@numba.njit(cache=True, forceinline=True, error_model="numpy")
def _value(masks, item, other, lines, depth):
    """A mask's alpha at a point of the ray, bilinear, the edge going on; 1 behind the camera."""
    near, along = lines
    if near[other, 3] + depth * along[other, 3] <= 0:
        return np.float32(1)
    side = masks.shape[3]
    w = near[other, 2] + depth * along[other, 2]
    x = (near[other, 0] + depth * along[other, 0]) / w * side - np.float32(0.5)
    y = (near[other, 1] + depth * along[other, 1]) / w * side - np.float32(0.5)
    x, y = min(max(x, np.float32(0)), np.float32(side - 1)), min(max(y, np.float32(0)), np.float32(side - 1))
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, side - 1), min(y0 + 1, side - 1)
    fx, fy = x - x0, y - y0
    above = (1 - fx) * masks[item, other, y0, x0] + fx * masks[item, other, y0, x1]
    below = (1 - fx) * masks[item, other, y1, x0] + fx * masks[item, other, y1, x1]
    return (1 - fy) * above + fy * below


@numba.njit(cache=True, forceinline=True, error_model="numpy")
def _inside(masks, item, view, lines, order, depth):
    """order [V]: the views; the one that rules a point out comes first from then on: mostly it does so again."""
    for k in range(masks.shape[1]):
        other = order[k]
        if other != view and _value(masks, item, other, lines, depth) < INSIDE:
            order[k], order[0] = order[0], other
            return False
    return True


@numba.njit(cache=True, forceinline=True, error_model="numpy")
def _least(masks, item, view, lines, depth):
    """The least alpha of the other views."""
    least = np.float32(1)
    for other in range(masks.shape[1]):
        if other != view:
            least = min(least, np.float32(_value(masks, item, other, lines, depth)))
    return least


@numba.njit(cache=True, forceinline=True, error_model="numpy")
def _span(frames, item, view, lines, origin):
    """The depths between which a ray can be inside: there it is in all frames, each side of which is a plane."""
    near, along = lines
    nearest, farthest = origin - HALF_EXTENT, origin + HALF_EXTENT
    low, high = nearest, farthest
    for other in range(near.shape[0]):
        ends = min(near[other, 3] + low * along[other, 3], near[other, 3] + high * along[other, 3])
        if other == view or ends <= 0:  # behind a camera nothing is ruled out
            continue
        for side in range(4):
            limit = frames[item, other, side]
            if np.isinf(limit):
                continue
            sign = 1 if side % 2 == 0 else -1
            start = sign * (near[other, side // 2] - limit * near[other, 2])
            slope = sign * (along[other, side // 2] - limit * along[other, 2])
            if slope > 0:
                low = max(low, -start / slope)
            elif slope < 0:
                high = min(high, -start / slope)
    return min(low, farthest), max(high, nearest)


@numba.njit(cache=True, forceinline=True, error_model="numpy")
def _search(masks, item, view, lines, order, origin, span, count):
    """First entry and last leave among so many samples; the first beyond the last where none is inside."""
    step = np.float32(2 * HALF_EXTENT / count)
    base = origin - np.float32(HALF_EXTENT) + np.float32(0.5) * step
    first = min(max(int((span[0] - base) / step) - 1, 0), count)
    count = max(min(int((span[1] - base) / step) + 2, count), first)
    while first < count and not _inside(masks, item, view, lines, order, base + first * step):
        first += 1
    if first == count:
        return base, base - step
    last = count - 1
    while not _inside(masks, item, view, lines, order, base + last * step):
        last -= 1
    return _halved(masks, item, view, lines, base + first * step, base + last * step, step)


@numba.njit(cache=True, forceinline=True, error_model="numpy")
def _halved(masks, item, view, lines, entry, leave, step):
    """Both ends, from samples that are inside, nearer to the surface. Neither waits for the other: they go together."""
    before, behind = entry - step, leave + step
    for _ in range(HALVINGS):
        at, to = np.float32(0.5) * (entry + before), np.float32(0.5) * (leave + behind)
        front, back = _least(masks, item, view, lines, at), _least(masks, item, view, lines, to)
        if front >= INSIDE:
            entry = at
        else:
            before = at
        if back >= INSIDE:
            leave = to
        else:
            behind = to
    return np.float32(0.5) * (entry + before), np.float32(0.5) * (leave + behind)


@numba.njit(cache=True, error_model="numpy")
def _likeliest(masks, item, view, lines, origin):
    """Depth of the fine sample whose least alpha is largest, the first of those that are alike."""
    step = np.float32(2 * HALF_EXTENT / (FINER * STEPS))
    base = origin - np.float32(HALF_EXTENT) + np.float32(0.5) * step
    values = np.empty(FINER * STEPS, dtype=np.float32)
    for k in range(len(values)):
        values[k] = _least(masks, item, view, lines, base + k * step)
    first, enough = 0, values.max() - ALIKE
    while values[first] < enough:
        first += 1
    return base + first * step
