"""A toy jack that tells its sides apart: six arms about the origin, those towards +X, +Y, +Z red, green and blue.

Boxes alone, so that Blender can build it and a network's trainer knows what is inside. No numpy, no torch, no bpy.
"""

from __future__ import annotations

from dataclasses import dataclass

Point = tuple[float, float, float]

REACH: Point = (1.0, 0.8, 0.9)  # of the arms along each axis, both ways
THICKNESS = 0.25  # half of an arm's
GREY: Point = (0.2, 0.2, 0.2)  # linear; the middle and the arms towards -X, -Y, -Z
COLOURS: tuple[Point, Point, Point] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Box:
    low: Point
    high: Point
    colour: Point  # linear


def _between(axis: int, start: float, end: float, colour: Point) -> Box:
    low, high = [-THICKNESS] * 3, [THICKNESS] * 3
    low[axis], high[axis] = start, end
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]), colour)


BOXES: tuple[Box, ...] = (
    _between(0, -THICKNESS, THICKNESS, GREY),
    *(_between(axis, THICKNESS, REACH[axis], COLOURS[axis]) for axis in range(3)),
    *(_between(axis, -REACH[axis], -THICKNESS, GREY) for axis in range(3)),
)
