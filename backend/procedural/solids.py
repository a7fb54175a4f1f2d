"""Bodies that are cut from space by planes, balls, cones and cylinders.

Every builder makes a Shape about the origin, z up, that about fills [-half, half].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from backend.procedural.grids import Grids
from backend.procedural.sweeps import circle

BOX_NORMALS = np.concatenate([np.eye(3), -np.eye(3)])
UP, DOWN = np.array([0.0, 0, 1]), np.array([0.0, 0, -1])
STAND = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # what lies on its back stands up, y upwards


@dataclass(frozen=True)
class Detail:
    """flat: cells along a flat side; around: columns round a whole turn."""

    flat: int = 1
    around: int = 24


@dataclass(frozen=True)
class Shape:
    """quadrics: as in Part. wall: thickness of the thinnest wall, None for a solid body. noun: None for the kind's."""

    grids: tuple[Grids, ...]
    quadrics: np.ndarray | None = None
    wall: float | None = None
    noun: str | None = None


Builder = Callable[[np.random.Generator, np.ndarray, Detail], Shape]


# ---- solids between quadrics


def plane(normal: np.ndarray, offset: float) -> np.ndarray:
    """[4,4] of the half space normal . p <= offset."""
    quadric = np.zeros((4, 4))
    quadric[:3, 3] = quadric[3, :3] = normal / 2
    quadric[3, 3] = -offset
    return quadric


def revolved(radius: float, slope: float) -> np.ndarray:
    """[4,4] of x^2 + y^2 <= (radius + slope z)^2."""
    quadric = np.diag([1.0, 1, -(slope**2), -(radius**2)])
    quadric[2, 3] = quadric[3, 2] = -radius * slope
    return quadric


def stretched(grids: list[Grids], half: np.ndarray) -> tuple[Grids, ...]:
    return tuple(replace(grid, points=grid.points * half) for grid in grids)


def _solid(half: np.ndarray, grids: list[Grids], quadrics: list[np.ndarray]) -> Shape:
    """A unit body and its quadrics, stretched to the half extents."""
    shrink = np.append(1 / half, 1.0)
    return Shape(stretched(grids, half), np.stack(quadrics) * shrink * shrink[:, None])


def lathe(profile: np.ndarray, around: int) -> np.ndarray:
    """[1,R,C,3] a profile [R,2] of radius and height turned about z; going upwards, it faces out."""
    turn = circle(around)
    radius, height = profile[:, :1], profile[:, 1:]
    rings = [radius * turn[:, 0], radius * turn[:, 1], np.broadcast_to(height, (len(profile), around + 1))]
    return np.stack(rings, axis=-1)[None]


def turned(profile: np.ndarray, around: int, *, planar: bool = False) -> Grids:
    return Grids(lathe(profile, around), closed_columns=True, planar=planar)


def straight(
    start: np.ndarray | tuple[float, float], stop: np.ndarray | tuple[float, float], cells: int = 1
) -> np.ndarray:
    return np.linspace(np.asarray(start), np.asarray(stop), cells + 1)


def caps(detail: Detail, bottom: float, top: float) -> list[Grids]:
    """The discs at z = -1 and z = 1 of these radii; none where the radius is 0."""
    cells = max(1, detail.flat // 2)
    low = turned(straight((0, -1), (bottom, -1), cells), detail.around, planar=True)
    high = turned(straight((top, 1), (0, 1), cells), detail.around, planar=True)
    return [low] * (bottom > 0) + [high] * (top > 0)


def cube_faces(ticks: np.ndarray) -> np.ndarray:
    """[6,R,R,3] faces of the cube [-1,1]^3 with lines at the ticks; upright on the four sides."""
    u, v = np.meshgrid(ticks, ticks)
    one = np.ones_like(u)
    faces = [(u, -one, v), (one, u, v), (-u, one, v), (-one, -u, v), (u, v, one), (-u, v, -one)]
    return np.stack([np.stack(face, axis=-1) for face in faces])


def box(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    faces = Grids(cube_faces(np.linspace(-1, 1, detail.flat + 1)))
    return _solid(half, [faces], [plane(normal, 1) for normal in BOX_NORMALS])


def ball(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    angles = np.linspace(-np.pi / 2, np.pi / 2, detail.around // 2 + 2)
    profile = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    profile[[0, -1], 0] = 0
    return _solid(half, [turned(profile, detail.around)], [np.diag([1.0, 1, 1, -1])])


def dome(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    angles = np.linspace(0, np.pi / 2, detail.around // 4 + 2)
    profile = np.stack([np.cos(angles), 2 * np.sin(angles) - 1], axis=1)
    profile[-1, 0] = 0
    ball = np.diag([1.0, 1, 0.25, -0.75])  # x^2 + y^2 + ((z + 1) / 2)^2 <= 1
    ball[2, 3] = ball[3, 2] = 0.25
    return _solid(half, [turned(profile, detail.around), *caps(detail, 1, 0)], [ball, plane(DOWN, 1)])


def _frustum(half: np.ndarray, detail: Detail, bottom: float, top: float) -> Shape:
    wall = turned(straight((bottom, -1), (top, 1), detail.flat), detail.around)
    cone = revolved((bottom + top) / 2, (top - bottom) / 2)
    return _solid(half, [wall, *caps(detail, bottom, top)], [cone, plane(UP, 1), plane(DOWN, 1)])


def cylinder(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    return _frustum(half, detail, 1, 1)


def cone(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    return _frustum(half, detail, 1, 0)


def tapered_cylinder(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    return _frustum(half, detail, 1, rng.uniform(0.35, 0.85))


def _polygonal(half: np.ndarray, detail: Detail, sides: int, top: float) -> Shape:
    """A prism, or with top = 0 a pyramid, over a regular polygon with a side in front."""
    turn = circle(sides) @ _rotation2(np.pi / sides - np.pi / 2).T
    turn = 2 * (turn - turn.min(axis=0)) / np.ptp(turn, axis=0) - 1
    low, high = np.column_stack([turn, np.full(sides + 1, -1.0)]), np.column_stack([turn * top, np.ones(sides + 1)])
    s = np.linspace(0, 1, detail.flat + 1)[:, None]
    bottom, summit = (edge[:-1, None] * (1 - s) + edge[1:, None] * s for edge in (low, high))  # [sides,C,3]
    up = s[:, None]
    walls = Grids(bottom[:, None] * (1 - up) + summit[:, None] * up)
    rims = [np.stack([low * np.array([0, 0, 1]), low])] + [np.stack([high, high * np.array([0, 0, 1])])] * (top > 0)
    normals = np.cross(low[1:] - low[:-1], (high - low)[:-1])
    sloping = [plane(normal, float(normal @ corner)) for normal, corner in zip(normals, low[:-1], strict=True)]
    return _solid(half, [walls, Grids(np.stack(rims), planar=True)], [*sloping, plane(UP, 1), plane(DOWN, 1)])


def _rotation2(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def prism(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    return _polygonal(half, detail, (5, 6, 6, 8)[int(rng.integers(4))], 1)


def wedge(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """A prism over a triangle, lying along y like a roof."""
    lying = _polygonal(half[[0, 2, 1]], detail, 3, 1)
    assert lying.quadrics is not None
    back = np.eye(4)
    back[:3, :3] = STAND.T
    grids = tuple(replace(grid, points=grid.points @ STAND.T) for grid in lying.grids)
    return Shape(grids, back.T @ lying.quadrics @ back)


def pyramid(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    return _polygonal(half, detail, (3, 4, 4, 6)[int(rng.integers(4))], 0)
