"""Cutting triangles along quadrics: bites taken out of solids, hollow shells, and halves that are mirrored.

A quadric is a symmetric [4,4] matrix Q; a point p is inside where (p,1) Q (p,1) <= 0. Planes, balls, cylinders and
cones are quadrics, and an edge meets one where a quadratic equation says so: nothing is searched for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from backend.procedural.grids import TINY, Part, bounds, cross, dot, length, mirrored, normalised


class Pieces(NamedTuple):
    """Triangles [F,3,8] as in Part, with the number of the surface of each."""

    corners: np.ndarray
    surfaces: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Pieces:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Pieces(self.corners[chosen], self.surfaces[chosen])


def joined(pieces: list[Pieces]) -> Pieces:
    return Pieces(np.concatenate([p.corners for p in pieces]), np.concatenate([p.surfaces for p in pieces]))


def values(quadric: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[...] (p,1) Q (p,1) of points [...,3]."""
    if not quadric[:3, :3].any():
        return 2 * (points @ quadric[3, :3]) + quadric[3, 3]
    return dot(points @ quadric[:3, :3] + 2 * quadric[3, :3], points) + quadric[3, 3]


def crossing(quadric: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """[N] where on the way from `start` [N,3] to `stop`, 0..1, which lie on different sides, the quadric is met."""
    first, last, way = values(quadric, start), values(quadric, stop), stop - start
    square = dot(way @ quadric[:3, :3], way)
    linear = last - first - square
    root = np.sqrt(np.maximum(linear * linear - 4 * square * first, 0))
    bottom = -linear + np.where(first > 0, root, -root)
    return np.clip(2 * first / np.where(np.abs(bottom) < TINY, TINY, bottom), 0, 1)


def _between(start: np.ndarray, stop: np.ndarray, share: np.ndarray) -> np.ndarray:
    """[N,8] points on the edges, with unit normals."""
    found = start + share[:, None] * (stop - start)
    found[:, 3:6] = normalised(found[:, 3:6])
    return found


def split(pieces: Pieces, quadric: np.ndarray) -> tuple[Pieces, Pieces, Pieces]:
    """What lies outside, what lies inside, and where they part.

    That border is [S,2,8], the outside on the left of each edge seen from in front, with its surface numbers.
    """
    corners, surfaces = pieces
    out = values(quadric, corners[..., :3]) > 0
    count = out.sum(axis=1)
    mixed = (count == 1) | (count == 2)
    lone_out = count[mixed] == 1
    lone = (out[mixed] == lone_out[:, None]).argmax(axis=1)
    turn = (lone[:, None] + np.arange(3)) % 3
    cut = np.take_along_axis(corners[mixed], turn[..., None], axis=1)
    a, b, c = cut[:, 0], cut[:, 1], cut[:, 2]
    ab = _between(a, b, crossing(quadric, a[:, :3], b[:, :3]))
    ac = _between(a, c, crossing(quadric, a[:, :3], c[:, :3]))
    tips = np.stack([a, ab, ac], axis=1)
    rests = np.concatenate([np.stack([ab, b, c], axis=1), np.stack([ab, c, ac], axis=1)])
    numbers = surfaces[mixed]
    twice = np.tile(lone_out, 2)
    tip, rest = Pieces(tips, numbers), Pieces(rests, np.tile(numbers, 2))
    border = np.where(lone_out[:, None, None], np.stack([ab, ac], axis=1), np.stack([ac, ab], axis=1))
    return (
        joined([pieces[count == 3], tip[lone_out], rest[~twice]]),
        joined([pieces[count == 0], tip[~lone_out], rest[twice]]),
        Pieces(border, numbers),
    )


def _trimmed(border: Pieces, quadric: np.ndarray) -> Pieces:
    """What of the edges [S,2,8] lies inside."""
    edges, surfaces = border
    out = values(quadric, edges[..., :3]) > 0
    kept = edges.copy()
    for end in (0, 1):
        here = out[:, end] & ~out[:, 1 - end]
        start, stop = edges[here, end], edges[here, 1 - end]
        kept[here, end] = _between(start, stop, crossing(quadric, start[:, :3], stop[:, :3]))
    some = ~out.all(axis=1)
    return Pieces(kept[some], surfaces[some])


def carved(pieces: Pieces, quadrics: np.ndarray) -> tuple[Pieces, Pieces, Pieces]:
    """Outside of the body between all the quadrics [P,4,4], inside of it, and the border as in `split`."""
    points = pieces.corners[..., :3]
    clear = np.zeros(len(points), dtype=bool)  # these would only be cut to bits by the other quadrics
    for quadric in quadrics:
        clear |= (values(quadric, points) > 0).all(axis=1)
    outside, inside = [pieces[clear]], pieces[~clear]
    border = Pieces(np.empty((0, 2, 8)), np.empty(0, dtype=np.int64))
    for quadric in quadrics:
        if len(inside.corners) == 0:
            break
        out, inside, edges = split(inside, quadric)
        outside.append(out)
        border = joined([_trimmed(border, quadric), edges])
    return joined(outside), inside, border


def refined(pieces: Pieces, centre: np.ndarray, reach: float, longest: float) -> Pieces:
    """Triangles near the ball of radius `reach` halved across edges over `longest`, ten times at most.

    What is flat stays so: new points lie on the old edges, and neighbours that are not halved still meet them.
    """
    for _ in range(10):
        points = pieces.corners[..., :3]
        edges = length(points[:, [1, 2, 0]] - points)
        middle = points.mean(axis=1)
        gap = length(middle - centre) - length(points - middle[:, None]).max(axis=1)
        large = (edges.max(axis=1) > longest) & (gap < reach)
        if not large.any():
            break
        turn = (edges[large].argmax(axis=1)[:, None] + np.arange(3)) % 3
        a, b, c = np.moveaxis(np.take_along_axis(pieces.corners[large], turn[..., None], axis=1), 1, 0)
        middle = _between(a, b, np.full(len(a), 0.5))
        halves = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
        pieces = joined([pieces[~large], Pieces(halves, np.tile(pieces.surfaces[large], 2))])
    return pieces


# ---- what is cut


def bitten(parts: list[Part], cutter: Part) -> list[Part]:
    """Solids with the solid `cutter` taken out; the bite's walls are a part of their own, the last one.

    A part that the cutter does not touch stays the same object. Every touched part needs quadrics.
    """
    assert cutter.quadrics is not None
    left, walls, lining = [], [], Pieces(flipped(cutter.corners), cutter.surfaces)
    for part in parts:
        if not _boxes_meet(part, cutter):
            left.append(part)
            continue
        outside, inside, _ = carved(_near(part, cutter), cutter.quadrics)
        touched = len(inside.corners) > 0
        left.append(replace(part, corners=outside.corners, surfaces=outside.surfaces) if touched else part)
        if touched:
            assert part.quadrics is not None
            lining, wall, _ = carved(lining, part.quadrics)
            walls.append(wall)
    if not walls:
        return left
    wall = joined(walls)
    return [*left, replace(cutter, corners=wall.corners, surfaces=wall.surfaces, quadrics=None)]


def hollowed(part: Part, cutter: Part, thickness: float) -> Part:
    """What is left of the part as a sheet of this thickness that shows its inside where the cutter was.

    The part itself where the cutter does not touch it.
    """
    assert cutter.quadrics is not None
    if not _boxes_meet(part, cutter):
        return part
    outside, inside, border = carved(_near(part, cutter), cutter.quadrics)
    if len(inside.corners) == 0:
        return part
    lining = outside.corners.copy()
    lining[..., :3] -= thickness * lining[..., 3:6]
    shell = joined([outside, Pieces(flipped(lining), outside.surfaces), _rim(border, thickness)])
    return replace(part, corners=shell.corners, surfaces=shell.surfaces, quadrics=None, thinnest=thickness)


def symmetric(part: Part) -> Part | None:
    """The half of the part at x >= 0 and its mirror image; None where there is no such half."""
    plane = np.zeros((4, 4))
    plane[0, 3] = plane[3, 0] = 0.5
    half, _, _ = split(Pieces(part.corners, part.surfaces), plane)
    if len(half.corners) == 0:
        return None
    corners = np.concatenate([half.corners, mirrored(half.corners)])
    return replace(part, corners=corners, surfaces=np.tile(half.surfaces, 2), quadrics=None)


def flipped(corners: np.ndarray) -> np.ndarray:
    """[F,3,8] the same triangles seen from their other side."""
    return corners[:, ::-1] * np.array([1.0, 1, 1, -1, -1, -1, 1, 1])


def _boxes_meet(part: Part, other: Part) -> bool:
    (low, high), (other_low, other_high) = bounds(part.corners), bounds(other.corners)
    return bool((low < other_high).all() and (other_low < high).all())


def _near(part: Part, cutter: Part) -> Pieces:
    """The part's triangles, small enough where the cutter may cut them in a curve."""
    assert cutter.quadrics is not None
    if not cutter.quadrics[:, :3, :3].any():
        return Pieces(part.corners, part.surfaces)
    points = cutter.corners[..., :3].reshape(-1, 3)
    centre = points.mean(axis=0)
    reach = float(length(points - centre).max())
    return refined(Pieces(part.corners, part.surfaces), centre, reach, 0.5 * reach)


def _rim(border: Pieces, thickness: float) -> Pieces:
    """The wall of the cut: from every edge down to the same edge of the lining."""
    start, stop = border.corners[:, 0], border.corners[:, 1]
    low_start, low_stop = start.copy(), stop.copy()
    for low in (low_start, low_stop):
        low[:, :3] -= thickness * low[:, 3:6]
    quads = np.stack([low_start, low_stop, stop, low_start, stop, start], axis=1).reshape(-1, 3, 8)
    quads[..., 3:6] = normalised(cross(quads[:, 1, :3] - quads[:, 0, :3], quads[:, 2, :3] - quads[:, 0, :3]))[:, None]
    return Pieces(quads, np.repeat(border.surfaces, 2))
