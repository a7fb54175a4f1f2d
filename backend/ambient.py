"""How much of uniform white surroundings each place on an object sees.

Pictures of depth from directions all around say for a point which directions are open. They are asked once an object,
at a lattice of points on each face and for both of its sides; a picture reads between the points. A lattice has its
rows parallel to the side opposite a face's first corner, so that a long thin face with the short side there has few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from backend import triangles
from backend.cameras import Cameras, look_at
from backend.triangles import Mesh

DIRECTIONS = 64
MAP_SIZE = 96  # pixels of a picture of depth
REACH = 1.2  # scene units from the origin, that the pictures of depth show
SPACING = 0.04  # scene units between the points of a lattice
INSET = 0.2  # of a lattice's cell: points on a face's very border could lie inside the neighbouring face
MOST_CELLS = 48  # along one side of a lattice
LIFT, BIAS = 0.72, 0.1  # pixels of a picture of depth, off the surface and towards the light; half a diagonal is 0.71
PAIRS_AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 22}  # triangles times directions; on a CPU, what its caches hold
POINTS_AT_ONCE = 1 << 25  # times directions, of torch's way


@dataclass(frozen=True)
class Openness:
    """Cosine-weighted share of the surroundings that is seen from points on F faces.

    values         [P,2] float32, 0..1, on the outer and the inner side
    starts         [F] int64, number of the face's first point
    rows, columns  [F] int64, cells of the face's lattice; it has (rows + 1) (columns + 1) points
    """

    values: Tensor
    starts: Tensor
    rows: Tensor
    columns: Tensor

    def at(self, faces: Tensor, weights: Tensor, inner: Tensor) -> Tensor:
        """[S] share seen from places on faces.

        faces    [S] int64
        weights  [3,S] of the corners
        inner    [S] int64: 0 on the outer, 1 on the inner side
        """
        rows, columns, start = (part.index_select(0, faces) for part in (self.rows, self.columns, self.starts))
        down = (1 - weights[0]).clamp(0, 1) * rows
        across = (weights[2] / (weights[1] + weights[2]).clamp_min(1e-12)).clamp(0, 1) * columns
        row, column = torch.minimum(down.long(), rows - 1), torch.minimum(across.long(), columns - 1)
        first = 2 * (start + row * (columns + 1) + column) + inner
        below, flat = first + 2 * (columns + 1), self.values.flatten()
        u, v = across - column, down - row
        top, bottom = (torch.lerp(flat.take(place), flat.take(place + 2), u) for place in (first, below))
        return torch.lerp(top, bottom, v)


@dataclass(frozen=True)
class _Lattices:
    """The points on all faces: rows, columns and first point [F] of each face's lattice; place, normal and face of each
    point [P,3], [P,3], [P]."""

    rows: Tensor
    columns: Tensor
    starts: Tensor
    points: Tensor
    normals: Tensor
    faces: Tensor


def apex_first(corners: Tensor) -> Tensor:
    """[F] 0..2: which corner of each face [F,3,3] is opposite its shortest side, and should come first."""
    return (corners[:, [1, 2, 0]] - corners[:, [2, 0, 1]]).square().sum(-1).argmin(dim=1)


def openness(meshes: Sequence[Mesh], occluders: Sequence[Mesh]) -> Openness:
    """What the places on each mesh see past its occluders; faces are numbered through all meshes.

    All must lie near the origin, as an asset does.
    """
    lattices = _lattices(torch.cat([mesh.vertices[mesh.faces] for mesh in meshes]))
    device = lattices.points.device
    cameras, maps = _around(device), _depth_maps(occluders)
    owner = torch.repeat_interleave(torch.tensor([len(mesh.faces) for mesh in meshes], device=device))
    first_map = owner.index_select(0, lattices.faces) * DIRECTIONS  # of each point
    by_device = _seen_by_numba if device.type == "cpu" else _seen_by_torch
    seen = by_device(lattices, cameras.c2w[:, :3, :3], maps, first_map)
    cosine = -lattices.normals @ cameras.c2w[:, :3, 2].T  # [P,K]
    everything = torch.stack([cosine.clamp_min(0).sum(1), (-cosine).clamp_min(0).sum(1)])
    values = (seen / everything).clamp_max(1).T.contiguous()
    return Openness(values, lattices.starts, lattices.rows, lattices.columns)


def _lattices(corners: Tensor) -> _Lattices:
    """On faces with `corners` [F,3,3]."""
    apex, left, right = corners.unbind(1)
    short = (right - left).norm(dim=1)
    long = torch.maximum((left - apex).norm(dim=1), (right - apex).norm(dim=1))
    rows, columns = ((length / SPACING).ceil().clamp(1, MOST_CELLS).long() for length in (long, short))
    counts = (rows + 1) * (columns + 1)
    face, place = triangles.expand(counts)
    deep, wide = rows.index_select(0, face), columns.index_select(0, face)
    down = ((place // (wide + 1)) / deep).clamp(INSET / deep, 1 - INSET / deep)[:, None]
    across = ((place % (wide + 1)) / wide).clamp(INSET / wide, 1 - INSET / wide)[:, None]
    normals = torch.nn.functional.normalize(torch.linalg.cross(left - apex, right - apex), dim=1)
    apex, left, right, normals = (part.index_select(0, face) for part in (apex, left, right, normals))
    points = torch.lerp(apex, torch.lerp(left, right, across), down)
    return _Lattices(rows, columns, counts.cumsum(0) - counts, points, normals, face)


def _around(device: torch.device) -> Cameras:
    """Orthographic cameras all around (Fibonacci's spiral)."""
    steps = torch.arange(DIRECTIONS, device=device, dtype=torch.float64) + 0.5
    height, angle = 1 - 2 * steps / DIRECTIONS, math.pi * (1 + 5**0.5) * steps
    ring = (1 - height.square()).sqrt()
    outward = torch.stack([ring * angle.cos(), ring * angle.sin(), height], dim=1).float()
    focal = 0.5 * MAP_SIZE / REACH
    K = torch.tensor([[focal, 0, MAP_SIZE / 2], [0, focal, MAP_SIZE / 2], [0, 0, 1]], device=device)
    flat = torch.ones(DIRECTIONS, dtype=torch.bool, device=device)
    c2w = look_at(outward * (2 * REACH), torch.zeros(3, device=device))
    return Cameras(c2w, K.repeat(DIRECTIONS, 1, 1), flat, MAP_SIZE, MAP_SIZE)


def _depth_maps(meshes: Sequence[Mesh]) -> Tensor:
    """[B * DIRECTIONS * MAP_SIZE^2] depth from the plane through the origin, pixels, inf where nothing is."""
    cameras = _around(meshes[0].vertices.device)
    limit, pairs = PAIRS_AT_ONCE[meshes[0].vertices.device.type], sum(len(mesh.faces) for mesh in meshes)
    step, parts = max(1, limit // max(pairs, 1)), []
    for start in range(0, DIRECTIONS, step):
        outlines = triangles.outline(meshes, [cameras[start : start + step]] * len(meshes))
        parts.append(triangles.nearest(outlines).depth.view(len(meshes), -1, MAP_SIZE**2))
    depth = torch.cat(parts, dim=1).flatten()
    return torch.where(depth > 0, (depth - 2 * REACH) * (0.5 * MAP_SIZE / REACH), torch.inf)


def _seen_by_torch(lattices: _Lattices, turns: Tensor, maps: Tensor, first_map: Tensor) -> Tensor:
    """[2,P] summed cosines of the directions that are open, on the outer and on the inner side.

    turns [K,3,3] cameras to world, maps of `_depth_maps`, first_map [P] int64
    """
    step = max(1, POINTS_AT_ONCE // max(len(first_map), 1))
    seen = maps.new_zeros(2, len(first_map))
    for start in range(0, len(turns), step):
        numbers = torch.arange(start, min(start + step, len(turns)), device=maps.device)
        seen += _seen_from(lattices, turns[numbers], maps, numbers[:, None] + first_map)
    return seen


def _seen_from(lattices: _Lattices, turns: Tensor, maps: Tensor, numbers: Tensor) -> Tensor:
    """As `_seen_by_torch`, of the directions `turns` with the maps `numbers` [K,P]."""
    cosine = -turns[:, :, 2] @ lattices.normals.T  # [K,P]
    lift = (1 - cosine.square()).clamp_min(0).sqrt().copysign(cosine) * LIFT
    right, down, ahead = (
        torch.addcmul((0.5 * MAP_SIZE / REACH * axis) @ lattices.points.T, axis @ lattices.normals.T, lift)
        for axis in turns.unbind(2)
    )  # in pixels
    column, row = ((along + 0.5 * MAP_SIZE).clamp(0, MAP_SIZE - 1).long() for along in (right, down))
    seen = maps.take((numbers * MAP_SIZE + row) * MAP_SIZE + column) >= ahead - BIAS
    signed, absolute = (cosine * seen).sum(0), (cosine.abs() * seen).sum(0)
    return 0.5 * torch.stack([absolute + signed, absolute - signed])


def _seen_by_numba(lattices: _Lattices, turns: Tensor, maps: Tensor, first_map: Tensor) -> Tensor:
    """See `_seen_by_torch`."""
    seen = np.zeros((2, len(first_map)), dtype=np.float32)
    axes = np.ascontiguousarray(turns.mT.numpy())  # [K,3,3] rightwards, down and ahead
    pictures = maps.view(-1, MAP_SIZE, MAP_SIZE).numpy()
    _look_around(lattices.points.numpy(), lattices.normals.numpy(), axes, pictures, first_map.numpy(), seen)
    return torch.from_numpy(seen)


@numba.njit(parallel=True, cache=True)
def _look_around(points, normals, axes, maps, first_map, seen):
    scale, middle, last = np.float32(0.5 * MAP_SIZE / REACH), np.float32(0.5 * MAP_SIZE), np.float32(MAP_SIZE - 1)
    zero, one = np.float32(0), np.float32(1)
    for point in numba.prange(len(points)):
        x, y, z = points[point, 0] * scale, points[point, 1] * scale, points[point, 2] * scale
        a, b, c = normals[point]
        for direction in range(len(axes)):
            axis = axes[direction]
            cosine = -(axis[2, 0] * a + axis[2, 1] * b + axis[2, 2] * c)
            lift = math.copysign(np.float32(LIFT) * math.sqrt(max(one - cosine * cosine, zero)), cosine)
            u, v, w = x + lift * a, y + lift * b, z + lift * c
            right = axis[0, 0] * u + axis[0, 1] * v + axis[0, 2] * w + middle
            down = axis[1, 0] * u + axis[1, 1] * v + axis[1, 2] * w + middle
            ahead = axis[2, 0] * u + axis[2, 1] * v + axis[2, 2] * w
            column, row = int(min(max(right, zero), last)), int(min(max(down, zero), last))
            if maps[first_map[point] + direction, row, column] >= ahead - np.float32(BIAS):
                seen[0 if cosine > zero else 1, point] += abs(cosine)
