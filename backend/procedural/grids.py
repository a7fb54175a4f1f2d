"""Surfaces as grids of points, and what is done to them before they become triangles.

A grid's columns run along u and its rows along v, and u x v points out of the solid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

KNOTS = 5  # random heights along each side of a height field (Xie et al. 2024, appendix on Zeroverse)
TINY = 1e-12


@dataclass(frozen=True)
class Grids:
    """B surfaces of one resolution.

    points          [B,R,C,3]; a grid that closes on itself repeats its first row or column as its last one
    closed_rows     whether the last row is the first
    closed_columns  whether the last column is the first
    smooth          shading follows the surface; else every triangle is flat
    planar          textures lie flat, along two of the axes; else along the columns and rows
    merged          the B grids are one surface, of one material
    """

    points: np.ndarray
    closed_rows: bool = False
    closed_columns: bool = False
    smooth: bool = True
    planar: bool = False
    merged: bool = False


@dataclass(frozen=True)
class Part:
    """Triangles in S surfaces, each of which takes one material.

    corners   [F,3,8] position, unit shading normal, uv in 0..1 over the whole surface
    surfaces  [F] number of the surface
    sizes     [S,2] length of each surface along u and v
    closed    [S,2] whether the surface closes on itself along u and v
    quadrics  None or [P,4,4]: the solid is where (p,1) Q (p,1) <= 0 for all of them
    thinnest  of its walls, or of the solid itself
    """

    corners: np.ndarray
    surfaces: np.ndarray
    sizes: np.ndarray
    closed: np.ndarray
    quadrics: np.ndarray | None
    thinnest: float

    @property
    def area(self) -> float:
        return float(areas(self.corners).sum())


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a x b over the last axis; on small arrays several times faster than numpy's."""
    x, y, z = a[..., 0], a[..., 1], a[..., 2]
    u, v, w = b[..., 0], b[..., 1], b[..., 2]
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=-1)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a . b over the last axis, of length 3; a sum along so short an axis is several times slower."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(dot(vectors, vectors))


def bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[3] least and [3] greatest coordinates of [...,3]; axis by axis, which is faster for the same reason."""
    axes = [points[..., k] for k in range(3)]
    return np.array([axis.min() for axis in axes]), np.array([axis.max() for axis in axes])


def normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(length(vectors), TINY)[..., None]


def facing(corners: np.ndarray) -> np.ndarray:
    """[F,3] across the triangles `corners` [F,3,...], as long as twice their area."""
    start = corners[:, 0, :3]
    return cross(corners[:, 1, :3] - start, corners[:, 2, :3] - start)


def areas(corners: np.ndarray) -> np.ndarray:
    """[F] of triangles [F,3,...]."""
    return 0.5 * length(facing(corners))


# ---- directions of a surface


def _steps(points: np.ndarray, axis: int, closed: bool) -> np.ndarray:
    """Differences along an axis: central, and one-sided at the ends of an open one."""
    p = np.moveaxis(points, axis, 0)
    steps = np.empty_like(p)
    steps[1:-1] = p[2:] - p[:-2]
    if closed:
        steps[0] = steps[-1] = p[1] - p[-2]
    elif len(p) == 2:
        steps[:] = p[1] - p[0]
    else:  # of second order too, so that two round surfaces that meet are shaded alike there
        steps[0], steps[-1] = 4 * p[1] - 3 * p[0] - p[2], 3 * p[-1] - 4 * p[-2] + p[-3]
    return np.moveaxis(steps, 0, axis)


def grid_normals(grids: Grids) -> np.ndarray:
    """[B,R,C,3] unit normals at the points. A row that is a single point takes them from the rows before it."""
    p = grids.points
    across = cross(_steps(p, 2, grids.closed_columns), _steps(p, 1, grids.closed_rows))
    lengths = length(across)
    normals = across / np.maximum(lengths, TINY)[..., None]
    flat = lengths < 1e-9 * np.maximum(lengths.max(), TINY)
    for end, first, second in ((0, 1, 2), (-1, -2, -3)):
        if flat[:, end].any():
            beyond = normals[:, first] if p.shape[1] < 4 else 2 * normals[:, first] - normals[:, second]
            normals[:, end] = np.where(flat[:, end, :, None], normalised(beyond), normals[:, end])
    return normals


# ---- height fields and bends


@functools.cache
def interpolation(knots: int, samples: int, closed: bool) -> np.ndarray:
    """[samples,knots] weights of Catmull and Rom's cubic through evenly spaced knots, ends included.

    Closed, the last sample is the first one again.
    """
    at = np.linspace(0, knots if closed else knots - 1, samples)
    left = np.minimum(np.floor(at).astype(int), knots - (1 if closed else 2))
    t = at - left
    cubic = [(-t + 2 * t**2 - t**3), (2 - 5 * t**2 + 3 * t**3), (t + 4 * t**2 - 3 * t**3), (-(t**2) + t**3)]
    weights = np.zeros((samples, knots))
    for offset, weight in zip((-1, 0, 1, 2), cubic, strict=True):
        knot = (left + offset) % knots if closed else np.clip(left + offset, 0, knots - 1)
        np.add.at(weights, (np.arange(samples), knot), 0.5 * weight)
    return weights


def height_field(rng: np.random.Generator, grids: Grids) -> np.ndarray:
    """[B,R,C] smooth random heights in about -1..1; zero at the border of an open grid, so that borders still meet."""
    count, rows, columns = grids.points.shape[:3]
    knots = rng.uniform(-1, 1, (count, KNOTS, KNOTS))
    if not grids.closed_rows:
        knots[:, [0, -1]] = 0
    if not grids.closed_columns:
        knots[:, :, [0, -1]] = 0
    down, along = interpolation(KNOTS, rows, grids.closed_rows), interpolation(KNOTS, columns, grids.closed_columns)
    return down @ knots @ along.T


def displaced(rng: np.random.Generator, grids: Grids, amplitude: float) -> Grids:
    """Moved along the normals by a height field of this amplitude; flat-shaded grids stay as they are."""
    if not grids.smooth or min(grids.points.shape[1:3]) < KNOTS:
        return grids
    heights = amplitude * height_field(rng, grids)
    return replace(grids, points=grids.points + heights[..., None] * grid_normals(grids))


def bent(grids: Grids, half: np.ndarray, *, taper: float, twist: float, bow: float) -> Grids:
    """Tapered, twisted about and bowed along the z axis of a body of half extents `half` [3].

    taper  relative growth of the width from the middle to the top
    twist  radians from the middle to the top
    bow    how far the ends move along x, in half extents along z
    """
    x, y, z = np.moveaxis(grids.points, -1, 0)
    t = z / half[2]
    angle, grow = twist * t, 1 + taper * t
    cos, sin = np.cos(angle) * grow, np.sin(angle) * grow
    turned = np.stack([x * cos - y * sin + bow * half[2] * (t * t - 0.5), x * sin + y * cos, z], axis=-1)
    return replace(grids, points=turned)


# ---- triangles


def triangles(grids: tuple[Grids, ...], *, quadrics: np.ndarray | None = None, wall: float | None = None) -> Part:
    """The grids as one part, in their own coordinates; triangles without an area are left out."""
    corners, surfaces, sizes, closed, first = [], [], [], [], 0
    for grid in grids:
        uvs, lengths = _uvs(grid)
        quads = _quads(grid, uvs)
        numbers = np.zeros(len(quads), dtype=np.int64) if grid.merged else np.arange(len(quads))
        corners.append(quads.reshape(-1, 3, 8))
        surfaces.append(np.repeat(first + numbers, quads[0].size // 24))
        count = 1 if grid.merged else len(quads)
        sizes.append(lengths[:count])
        closed.append(np.tile([grid.closed_columns, grid.closed_rows], (count, 1)))
        first += count
    soup = np.concatenate(corners)
    low, high = bounds(soup)
    extent = high - low
    full = areas(soup) > 1e-9 * float(extent.max()) ** 2
    return Part(
        corners=soup[full],
        surfaces=np.concatenate(surfaces)[full],
        sizes=np.concatenate(sizes),
        closed=np.concatenate(closed),
        quadrics=quadrics,
        thinnest=float(extent.min()) if wall is None else wall,
    )


def _uvs(grid: Grids) -> tuple[np.ndarray, np.ndarray]:
    """[B,R,C,2] uv in 0..1 and [B,2] the lengths they stand for."""
    p = grid.points
    if grid.planar:
        return _planar_uvs(grid)
    means = []
    for axis, other in ((2, 1), (1, 2)):
        steps = length(np.diff(p, axis=axis)).mean(axis=other)
        means.append(np.concatenate([np.zeros((len(p), 1)), np.cumsum(steps, axis=1)], axis=1))
    sizes = np.maximum(np.stack([means[0][:, -1], means[1][:, -1]], axis=1), TINY)
    u = np.broadcast_to((means[0] / sizes[:, :1])[:, None, :], p.shape[:3])
    v = np.broadcast_to((means[1] / sizes[:, 1:])[:, :, None], p.shape[:3])
    return np.stack([u, v], axis=-1), sizes


def _planar_uvs(grid: Grids) -> tuple[np.ndarray, np.ndarray]:
    """Along the two axes that the grids lie along most, and not mirrored, seen from outside."""
    facing_to = grid_normals(grid).mean(axis=(1, 2))
    across = int(np.abs(facing_to).mean(axis=0).argmax())
    plane = grid.points[..., ((1, 2), (0, 2), (0, 1))[across]]
    right = np.sign(facing_to[:, across]) * (-1 if across == 1 else 1)
    plane[..., 0] *= right[:, None, None]
    axes = (0, 1, 2) if grid.merged else (1, 2)
    low, high = plane.min(axis=axes, keepdims=True), plane.max(axis=axes, keepdims=True)
    sizes = np.maximum(high - low, TINY)
    return (plane - low) / sizes, np.broadcast_to(sizes.reshape(-1, 2), (len(plane), 2))


def _quads(grid: Grids, uvs: np.ndarray) -> np.ndarray:
    """[B,R-1,C-1,2,3,8] two triangles a cell."""
    normals = grid_normals(grid) if grid.smooth else np.zeros_like(grid.points)
    data = np.concatenate([grid.points, normals, uvs], axis=-1)
    a, b, c, d = data[:, :-1, :-1], data[:, :-1, 1:], data[:, 1:, 1:], data[:, 1:, :-1]
    quads = np.stack([a, b, c, a, c, d], axis=3).reshape(*a.shape[:3], 2, 3, 8)
    if not grid.smooth:
        flat = quads.reshape(-1, 3, 8)
        flat[..., 3:6] = normalised(facing(flat))[:, None]
    return quads


def placed(part: Part, turn: np.ndarray, centre: np.ndarray) -> Part:
    """Turned by the rotation [3,3], then moved by `centre` [3]."""
    corners = part.corners.copy()
    corners[..., :3] = corners[..., :3] @ turn.T + centre
    corners[..., 3:6] = corners[..., 3:6] @ turn.T
    if part.quadrics is None:
        return replace(part, corners=corners)
    back = np.eye(4)
    back[:3, :3], back[:3, 3] = turn.T, -turn.T @ centre
    return replace(part, corners=corners, quadrics=back.T @ part.quadrics @ back)


def mirrored(corners: np.ndarray) -> np.ndarray:
    """[F,3,8] seen in the plane x = 0, still turned outwards."""
    return corners[:, ::-1] * np.array([-1.0, 1, 1, -1, 1, 1, 1, 1])
