"""Tubes: a section carried along a curve, and along the edges of a body."""

from __future__ import annotations

import numba
import numpy as np

from backend.procedural.grids import Grids, cross, normalised

RECTANGLE = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])


def circle(sides: int) -> np.ndarray:
    """[sides+1,2] counter-clockwise, closed."""
    angles = np.linspace(0, 2 * np.pi, sides + 1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def swept(
    curve: np.ndarray, section: np.ndarray, radii: np.ndarray, *, closed: bool = False, smooth: bool = True
) -> tuple[Grids, ...]:
    """The surface of `section` [M,2] (counter-clockwise, first point last) along `curve` [N,3], with flat ends.

    radii   [N] factors of the section
    closed  the last point of the curve is the first one
    """
    tangents = _tangents(curve, closed)
    across = _frames(curve, tangents, _perpendicular(tangents[0]))
    over = cross(tangents, across)
    if closed:  # carried all the way round, the frame comes back turned: spread that turn over the curve
        turn = np.arctan2(across[-1] @ over[0], across[-1] @ across[0])
        angles = -turn * np.linspace(0, 1, len(curve))[:, None]
        across, over = np.cos(angles) * across + np.sin(angles) * over, np.cos(angles) * over - np.sin(angles) * across
    x, y = (radii[:, None] * section[:, k] for k in (0, 1))  # [N,M]
    points = curve[:, None] + x[..., None] * across[:, None] + y[..., None] * over[:, None]
    tube = Grids(points[None], closed_rows=closed, closed_columns=smooth, smooth=smooth)
    if closed:
        return (tube,)
    rims, middles = points[[0, -1]], np.broadcast_to(curve[[0, -1], None], points[[0, -1]].shape)
    ends = np.stack([np.stack([middles[0], rims[0]]), np.stack([rims[1], middles[1]])])
    return (tube, Grids(ends, merged=True, smooth=False))


def _tangents(curve: np.ndarray, closed: bool) -> np.ndarray:
    steps = np.diff(curve, axis=0)
    ends = (steps[-1:], steps[:1]) if closed else (steps[:1], steps[-1:])
    return normalised(np.concatenate([ends[0], steps]) + np.concatenate([steps, ends[1]]))


def _perpendicular(direction: np.ndarray) -> np.ndarray:
    """Unit, at right angles; in the xz plane where the direction is."""
    axis = np.array([0.0, 1, 0]) if abs(direction[1]) < 0.99 else np.array([0.0, 0, 1])
    return normalised(cross(axis, direction))


@numba.njit(cache=True)
def _frames(points, tangents, first):
    """[N,3] the vector `first` carried along without turning about the curve: the double reflection of Wang et al.,
    "Computation of rotation minimizing frames", 2008.
    """
    frames = np.empty_like(points)
    frames[0] = first
    for i in range(len(points) - 1):
        step = points[i + 1] - points[i]
        c = max(np.dot(step, step), 1e-20)
        carried = frames[i] - 2 / c * np.dot(step, frames[i]) * step
        tangent = tangents[i] - 2 / c * np.dot(step, tangents[i]) * step
        step = tangents[i + 1] - tangent
        c = max(np.dot(step, step), 1e-20)
        carried = carried - 2 / c * np.dot(step, carried) * step
        frames[i + 1] = carried / np.sqrt(np.dot(carried, carried))
    return frames


def rods(edges: np.ndarray, radius: float, sides: int = 5) -> Grids:
    """One open tube along each edge [E,2,3], half its radius longer at either end, so that joints look closed."""
    along = normalised(edges[:, 1] - edges[:, 0])
    axis = np.where(np.abs(along[:, 2:]) < 0.9, np.array([0.0, 0, 1]), np.array([1.0, 0, 0]))
    across = normalised(cross(axis, along))
    over = cross(along, across)
    ring = radius * circle(sides)
    rim = ring[:, :1] * across[:, None] + ring[:, 1:] * over[:, None]  # [E,sides+1,3]
    reach = 0.5 * radius * along
    ends = edges + np.stack([-reach, reach], axis=1)
    return Grids(ends[:, :, None] + rim[:, None], closed_columns=True, merged=True)


def edges_of(grids: tuple[Grids, ...]) -> np.ndarray:
    """[E,2,3] each line between neighbouring points of the grids once."""
    found = []
    for grid in grids:
        p = grid.points
        for a, b in ((p[:, :-1], p[:, 1:]), (p[:, :, :-1], p[:, :, 1:])):
            found.append(np.stack([a, b], axis=-2).reshape(-1, 2, 3))
    edges = np.concatenate(found)
    size = float(np.abs(edges).max())
    edges = edges[np.square(edges[:, 1] - edges[:, 0]).sum(axis=1) > (1e-3 * size) ** 2]
    keys = np.round(edges / size * 1e4).astype(np.int64) @ np.array([1, 40_000, 1_600_000_000])
    return edges[np.unique(np.sort(keys, axis=1), axis=0, return_index=True)[1]]
