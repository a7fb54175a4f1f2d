"""The nearest triangle at every sample of V cameras: numba on the CPU, plain torch elsewhere, the same answer.

A triangle is set up in homogeneous coordinates (Olano and Greer, "Triangle scan conversion using 2D homogeneous
coordinates", 1997): with its corners (x w, y w, w) in pixels, w being the depth, the cross products of two corners are
the edges' functions, positive inside. So nothing is clipped against the near plane. An orthographic camera has w = 1.
Where a row of samples crosses the edges, the triangle's span begins and ends; within it only depths are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from backend.cameras import Cameras

TOLERANCE = 1e-6  # pixels: a sample on a shared edge must not fall between two triangles
NEAR = 1e-6  # of the largest distance of a vertex from the camera: what lies nearer counts as behind it
BAND_ROWS = 64  # rows of one parallel piece of work
SPAN_LIMIT, SAMPLE_LIMIT = 1 << 24, 1 << 26  # of torch's way: spans and samples handled at once
NO_FACE = (1 << 63) - 1


class Mesh(NamedTuple):
    """vertices [N,3] world; faces [F,3] int64."""

    vertices: Tensor
    faces: Tensor


@dataclass(frozen=True)
class Outlines:
    """Triangles as V cameras see them, set up for rasterising. (x, y) are pixels, sample centres at +0.5.

    Each camera sees one of several meshes; P is the number of pairs of a camera and a triangle of its mesh. Triangles
    are numbered through all meshes.

    edges         [P,3,3] float64, for each corner a function e . (x, y, 1) of the opposite edge: not negative inside,
                  and to each other as the corners' weights, right in perspective
    depths        [P,3] float64, d . (x, y, 1) is the depth for an orthographic camera, its inverse for a pinhole one
    boxes         [P,4] int32, first and last + 1 column, first and last + 1 row that may be covered
    areas         [P] float32, pixels, negative where the corners run counter-clockwise in the picture, that is, where
                  the camera is on the face's outer side; infinite if the outline passes through infinity
    views         [P] int64, the pair's camera
    starts        [V+1] int64, a camera's first pair
    offsets       [V] int64, added to the number of a triangle for the number of its pair with this camera
    near          [V] float32, depth from which on something is seen
    orthographic  [V] bool
    size          height and width of the pictures
    """

    edges: Tensor
    depths: Tensor
    boxes: Tensor
    areas: Tensor
    views: Tensor
    starts: Tensor
    offsets: Tensor
    near: Tensor
    orthographic: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Hits:
    """What V cameras see at each sample.

    faces  [V,H,W] int32, number of the nearest triangle, the lowest of equals; -1 where there is none
    depth  [V,H,W] float32, planar depth in scene units, 0 where there is none
    """

    faces: Tensor
    depth: Tensor


def nearest(outlines: Outlines, *, beyond: Tensor | None = None) -> Hits:
    """The nearest triangle, of either orientation, at every sample centre.

    beyond  None or [V,H,W] float32: only what is farther away than this depth counts
    """
    if beyond is None:
        beyond = outlines.near[:, None, None].expand(-1, *outlines.size)
    by_device = nearest_by_numba if outlines.edges.device.type == "cpu" else nearest_by_torch
    return by_device(outlines, beyond)


# ---- set-up


@torch.no_grad()
def outline(meshes: Sequence[Mesh], cameras: Sequence[Cameras]) -> Outlines:
    """Meshes set up for the cameras of each, which share an image size and a device with them.

    The cameras are numbered through, those of the first mesh first.
    """
    parts = [_corners(mesh, own) for mesh, own in zip(meshes, cameras, strict=True)]
    corners = torch.cat([corners for corners, _ in parts], dim=2)  # [3 corners, 4, P]: x w, y w, w, depth
    near, flat = torch.cat([near for _, near in parts]), torch.cat([own.orthographic for own in cameras])
    counts = [(len(mesh.faces), len(own)) for mesh, own in zip(meshes, cameras, strict=True)]
    sizes = [faces for faces, views in counts for _ in range(views)]
    first_faces = itertools.accumulate((faces for faces, _ in counts), initial=0)
    firsts = [first for first, (_, views) in zip(first_faces, counts, strict=False) for _ in range(views)]
    starts = torch.tensor(list(itertools.accumulate(sizes, initial=0)), device=near.device)
    views = torch.repeat_interleave(torch.tensor(sizes, device=near.device), output_size=sum(sizes))
    pixels, depth = corners[:, :3], corners[:, 3]  # [3,3,P], [3,P]
    edges = torch.stack([_cross(pixels[i - 2], pixels[i - 1]) for i in range(3)])
    determinant = (pixels[0] * edges[0]).sum(0)
    sign = determinant.sign()
    depths = (torch.where(flat[views], depth, 1.0)[:, None] * edges).sum(0) / determinant
    ahead = depth > near[views]
    area = torch.where(ahead.all(0), 0.5 * determinant / pixels[:, 2].prod(0), sign * torch.inf)
    return Outlines(
        edges=(edges * sign).permute(2, 0, 1).contiguous(),
        depths=depths.T.contiguous(),
        boxes=_boxes(pixels, ahead, determinant != 0, cameras[0].width, cameras[0].height),
        areas=area.float(),
        views=views,
        starts=starts,
        offsets=starts[:-1] - torch.tensor(firsts, device=near.device),
        near=near.float(),
        orthographic=flat,
        size=(cameras[0].height, cameras[0].width),
    )


def _corners(mesh: Mesh, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """[3,4,V*F] float64, (x w, y w, w, depth) of each corner of the faces, camera by camera; and `near` [V] float64."""
    viewmats, Ks = cameras.viewmats.double(), cameras.Ks.double()
    homogeneous = torch.nn.functional.pad(mesh.vertices.double(), (0, 1), value=1.0)
    points = viewmats @ homogeneous.T  # [V,4,N]
    x, y, z, one = points.unbind(1)
    near = NEAR * points[:, :3].abs().flatten(1).amax(dim=1) if points.numel() else points.new_zeros(len(points))
    w = torch.where(cameras.orthographic[:, None], one, z)
    column = Ks[:, 0, :1] * x + Ks[:, 0, 1:2] * y + Ks[:, 0, 2:] * w
    projected = torch.stack([column, Ks[:, 1, 1:2] * y + Ks[:, 1, 2:] * w, w, z])  # [4,V,N]
    corners = [projected.index_select(2, mesh.faces[:, corner]).flatten(1) for corner in range(3)]
    return torch.stack(corners), near


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Of [3,...] and [3,...]. Not torch's own, which may fuse steps: b x a must be the exact opposite of a x b."""
    return torch.stack([a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)])


def _boxes(pixels: Tensor, ahead: Tensor, solid: Tensor, width: int, height: int) -> Tensor:
    """[P,4] int32; everything where the outline passes through infinity, nothing without an area or all behind."""
    whole, seen = ahead.all(0), ahead.any(0) & solid
    sides = []
    for axis, size in ((0, width), (1, height)):
        places = pixels[:, axis] / pixels[:, 2]
        low = torch.where(whole, places.amin(0), 0.0).nan_to_num(0.0).clamp(-1, size + 1)
        high = torch.where(whole, places.amax(0), float(size)).nan_to_num(0.0).clamp(-1, size + 1)
        first, end = (low - 0.5 - TOLERANCE).ceil().clamp_min(0), ((high - 0.5 + TOLERANCE).floor() + 1).clamp_max(size)
        sides += [first, torch.where(seen, end, 0.0)]
    return torch.stack(sides, dim=-1).int()


def weight_table(outlines: Outlines) -> Tensor:
    """[11,P] float32: the edges' functions and the place that they start from, for `weights`."""
    # from the box's first sample on, coordinates are small: float32 is enough for the many samples
    start = outlines.boxes[:, ::2].double() + 0.5
    scale = outlines.edges.abs().amax((1, 2)).clamp_min(1e-300)[:, None, None]
    edges = outlines.edges / scale
    constant = edges[..., 2] + edges[..., 0] * start[:, :1] + edges[..., 1] * start[:, 1:]
    return torch.cat([edges[..., 0], edges[..., 1], constant, start], dim=1).float().T.contiguous()


def weights(table: Tensor, pairs: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[3,S] float32 weights of the corners of triangles at places in the picture, right in perspective; sum 1.

    table  of `weight_table`
    pairs  [S] int64, triangle + its camera's offset
    x, y   [S] pixels; a place outside the triangle gets the weights of a place on its border
    """
    rows = table.index_select(1, pairs)
    parts = (rows[0:3] * (x - rows[9]) + rows[3:6] * (y - rows[10]) + rows[6:9]).clamp_min(0)
    return parts / parts.sum(dim=0).clamp_min(1e-30)


def plane_depth(outlines: Outlines, pairs: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[S] float32 depth of triangles' planes at places in the picture; of a plane that is missed there, any number."""
    slope, steep, constant = outlines.depths.index_select(0, pairs).unbind(1)
    value = slope * x + (steep * y + constant)
    flat = outlines.orthographic.index_select(0, outlines.views.index_select(0, pairs))
    return torch.where(flat, value, 1 / value).float()


# ---- the CPU's way


def nearest_by_numba(outlines: Outlines, beyond: Tensor) -> Hits:
    """See `nearest`."""
    index, depth = np.full(beyond.shape, -1, dtype=np.int32), np.full(beyond.shape, np.inf, dtype=np.float32)
    edges, depths, boxes = outlines.edges.numpy(), outlines.depths.numpy(), outlines.boxes.numpy()
    ranges = torch.stack([outlines.starts[:-1], outlines.starts[1:], outlines.offsets], dim=1).numpy()
    limits = np.ascontiguousarray(beyond.numpy())
    _fill(edges, depths, boxes, ranges, outlines.orthographic.numpy(), limits, index, depth)
    depth[index < 0] = 0
    return Hits(torch.from_numpy(index), torch.from_numpy(depth))


@numba.njit(parallel=True, cache=True)
def _fill(edges, depths, boxes, ranges, orthographic, beyond, index, depth):
    views, height, _ = index.shape
    bands = (height + BAND_ROWS - 1) // BAND_ROWS
    for task in numba.prange(views * bands):
        view, band = task // bands, task % bands
        top, bottom = band * BAND_ROWS, min((band + 1) * BAND_ROWS, height)
        for pair in range(ranges[view, 0], ranges[view, 1]):
            box = boxes[pair]
            if box[0] >= box[1]:
                continue
            for row in range(max(box[2], top), min(box[3], bottom)):
                first, end = _span(edges[pair], box, row)
                if first >= end:
                    continue
                slope, down, constant = depths[pair]
                start = np.float32(slope * (first + 0.5) + (down * (row + 0.5) + constant))
                _compare(
                    pair - ranges[view, 2], start, np.float32(slope), orthographic[view],
                    beyond[view, row, first:end], index[view, row, first:end], depth[view, row, first:end],
                )  # fmt: skip


@numba.njit(cache=True)
def _span(edges, box, row):
    """First and last + 1 column of a triangle in a row."""
    low, high = float(box[0]), float(box[1])
    for edge in range(3):
        slope, value = edges[edge, 0], edges[edge, 1] * (row + 0.5) + edges[edge, 2]
        if slope > 0:
            low = max(low, -value / slope)
        elif slope < 0:
            high = min(high, -value / slope)
        elif value < 0:
            return 0, 0
    if not high >= low - 2:
        return 0, 0
    return max(box[0], int(np.ceil(low - 0.5 - TOLERANCE))), min(box[1], int(np.floor(high - 0.5 + TOLERANCE)) + 1)


@numba.njit(cache=True, error_model="numpy")
def _compare(face, start, slope, orthographic, beyond, index, depth):
    for column in range(len(index)):
        value = start + slope * np.float32(column)
        z = value if orthographic else np.float32(1) / value
        nearer = (z > beyond[column]) & (z < depth[column])
        depth[column] = z if nearer else depth[column]
        index[column] = face if nearer else index[column]


# ---- the way of all other devices


def nearest_by_torch(outlines: Outlines, beyond: Tensor) -> Hits:
    """See `nearest`. Triangles become spans, spans become samples, and each sample keeps the least (depth, face)."""
    best = torch.full((beyond.numel(),), NO_FACE, dtype=torch.int64, device=beyond.device)
    heights = (outlines.boxes[:, 3] - outlines.boxes[:, 2]) * (outlines.boxes[:, 1] > outlines.boxes[:, 0])
    chosen = (heights > 0).nonzero()[:, 0]
    heights = heights.index_select(0, chosen)
    for part in _parts(heights, SPAN_LIMIT):
        _scatter(best, outlines, beyond, chosen[part], heights[part])
    found = best != NO_FACE
    faces = torch.where(found, best & 0xFFFFFFFF, -1).int()
    depth = torch.where(found, (best >> 32).int().view(torch.float32), 0.0)
    return Hits(faces.view(beyond.shape), depth.view(beyond.shape))


def _parts(counts: Tensor, limit: int) -> list[slice]:
    """Consecutive slices of `counts` [N] whose sums stay about below the limit."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    steps = torch.arange(1, total // limit + 1, device=counts.device) * limit
    cuts = [0, *torch.searchsorted(ends, steps).tolist(), len(counts)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For `counts` [N], the owner of each of their sum of items and the item's place within its owner's."""
    owners = torch.repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    return owners, torch.arange(len(owners), device=counts.device) - starts.index_select(0, owners)


def _scatter(best: Tensor, outlines: Outlines, beyond: Tensor, chosen: Tensor, heights: Tensor) -> None:
    """Lower `best` [V*H*W] by the samples of the chosen pairs, whose boxes have these heights."""
    owner, down = expand(heights)
    pair = chosen.index_select(0, owner)
    boxes = outlines.boxes.index_select(0, pair)
    rows = boxes[:, 2] + down
    first, end = _spans(outlines.edges.index_select(0, pair), boxes, rows)
    full = (end > first).nonzero()[:, 0]
    pair, rows, first, end = (part.index_select(0, full) for part in (pair, rows, first, end))
    view = outlines.views.index_select(0, pair)
    slope, steep, constant = outlines.depths.index_select(0, pair).unbind(-1)
    start = (slope * (first + 0.5) + (steep * (rows + 0.5) + constant)).float()
    numbers = torch.stack([(view * beyond.shape[1] + rows) * beyond.shape[2] + first, pair - outlines.offsets[view]])
    lines = torch.stack([start, slope.float(), outlines.orthographic[view].float()])
    widths, limits = end - first, beyond.reshape(-1)
    for part in _parts(widths, SAMPLE_LIMIT):
        span, right = expand(widths[part])
        start, slope, flat = lines[:, part].index_select(1, span)
        where, face = numbers[:, part].index_select(1, span)
        value, where = start + slope * right, where + right
        z = torch.where(flat > 0, value, 1 / value)
        key = (z.view(torch.int32).long() << 32) | face
        key = torch.where((z > limits.index_select(0, where)) & (z < torch.inf), key, NO_FACE)
        best.scatter_reduce_(0, where, key, "amin")


def _spans(edges: Tensor, boxes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """First and last + 1 column [R] of triangles with edges [R,3,3] in rows [R]."""
    slope = edges[..., 0]
    value = edges[..., 1] * (rows + 0.5)[:, None] + edges[..., 2]
    crossing = -value / slope
    low = torch.where(slope > 0, crossing, boxes[:, :1].double()).amax(1)
    high = torch.where(slope < 0, crossing, boxes[:, 1:2].double()).amin(1)
    outside = ((slope == 0) & (value < 0)).any(1)
    first = torch.maximum((low - 0.5 - TOLERANCE).ceil().clamp(-1, 1e9).long(), boxes[:, 0])
    end = torch.minimum((high - 0.5 + TOLERANCE).floor().clamp(-2, 1e9).long() + 1, boxes[:, 1])
    return first, torch.where(outside, first, end)
