"""The kinds of body that procedural objects are made of: those of solids.py, and round, hollow, flat and bent ones.

Every builder makes a Shape about the origin, z up, that about fills [-half, half].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from backend.procedural import outlines, solids
from backend.procedural.grids import Grids, normalised
from backend.procedural.solids import STAND, Builder, Detail, Shape, caps, cube_faces, straight, stretched, turned
from backend.procedural.sweeps import RECTANGLE, circle, edges_of, rods, swept

# ---- round and hollow bodies


def _rounded_box(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """Flat sides, and edges of one radius in steps of equal angles."""
    radius = float(half.min() * rng.uniform(0.15, 1))
    bend = np.tan(np.linspace(0, np.pi / 4, max(2, detail.around // 8) + 1))  # 0..1 out of the flat side
    middle = np.linspace(-1, 1, max(1, detail.flat - 2) + 1)[1:-1]
    core = np.concatenate([np.full(len(bend), -1.0), middle, np.full(len(bend), 1.0)])
    lean = np.concatenate([-bend[::-1], np.zeros(len(middle)), bend])
    points = cube_faces(core) * (half - radius) + radius * normalised(cube_faces(lean))
    return Shape((Grids(points),))


def _capsule(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """Half balls, or flatter ones where it is wider than high, on a straight middle."""
    angles = np.linspace(0, np.pi / 2, detail.around // 4 + 2)
    end = min(1.0, float(half[:2].mean() / half[2]) * 0.99)
    quarter = np.stack([np.cos(angles), 1 - end + end * np.sin(angles)], axis=1)
    quarter[-1, 0] = 0
    profile = np.concatenate([quarter[::-1] * np.array([1, -1]), quarter])
    return Shape(stretched([turned(profile, detail.around)], half))


def _ring(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """A torus, lying flat; its tube is round where the half extents allow."""
    tube = min(float(half[2]), 0.45 * float(half[:2].min()))
    angles = np.linspace(-np.pi, np.pi, max(8, detail.around // 2) + 1)
    turn = circle(detail.around)
    spine = turn * (half[:2] - tube)
    out = tube * np.cos(angles)[:, None, None] * turn
    points = np.concatenate(
        [spine + out, np.broadcast_to(tube * np.sin(angles)[:, None, None], (*out.shape[:2], 1))], axis=2
    )
    return Shape((Grids(points[None], closed_rows=True, closed_columns=True),), wall=2 * tube)


def _rounded(profile: Callable[[np.random.Generator, int], np.ndarray]) -> Builder:
    """A body turned from a profile, with flat ends where that does not meet the axis."""

    def build(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
        line = profile(rng, detail.around // 2 + 4)
        ends = caps(detail, float(line[0, 0]), float(line[-1, 0]))
        return Shape(stretched([turned(line, detail.around), *ends], half))

    return build


def _vessel(profile: Callable[[np.random.Generator, int], np.ndarray]) -> Builder:
    """Open at the top, with a wall and a floor."""

    def build(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
        outer, wall = profile(rng, detail.around // 2), rng.uniform(0.05, 0.14)
        inner = outer[outer[:, 1] > wall - 1] - np.array([wall, 0])
        inner[:, 0] = np.maximum(inner[:, 0], 0.02)
        lines = [outer, straight(outer[-1], inner[-1]), inner[::-1]]
        grids = [turned(line, detail.around) for line in lines]
        discs = [straight((0, -1), outer[0]), straight(inner[0], (0, inner[0, 1]))]
        grids += [turned(line, detail.around, planar=True) for line in discs]
        return Shape(stretched(grids, half), wall=wall * float(half[:2].min()))

    return build


def _bottle(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    profile = outlines.bottle(rng, detail.around // 3)
    ends = caps(detail, 1, float(profile[-1, 0]))
    grids = [turned(piece, detail.around) for piece in (profile[:2], profile[1:-1], profile[-2:])]
    return Shape(stretched([*grids, *ends], half))


def _open(half: np.ndarray, detail: Detail, wall: float, top: float) -> Shape:
    """A wall round an axis, open at both ends, with the radius 1 at the bottom."""
    corners = [(1, -1), (top, 1), (top - wall, 1), (1 - wall, -1), (1, -1)]
    lines = [straight(corners[i], corners[i + 1], 1 if i % 2 else detail.flat) for i in range(4)]
    return Shape(stretched([turned(line, detail.around) for line in lines], half), wall=wall * float(half[:2].min()))


def _pipe(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """As thin as a sheet or as thick as a nut."""
    return _open(half, detail, rng.uniform(0.05, 0.5), 1)


def _lampshade(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    return _open(half, detail, rng.uniform(0.04, 0.08), rng.uniform(0.4, 0.85))


# ---- cut out of a board


def _board(outline: np.ndarray, hole: np.ndarray | None, smooth: bool) -> list[Grids]:
    """A flat outline (counter-clockwise, closed, whole from the origin) between z = -1 and z = 1."""

    def at(line: np.ndarray, z: float) -> np.ndarray:
        return np.column_stack([line, np.full(len(line), z)])

    inside = np.zeros_like(outline) if hole is None else hole
    lids = np.stack([[at(inside, -1), at(outline, -1)], [at(outline, 1), at(inside, 1)]])
    walls = [np.stack([at(outline, -1), at(outline, 1)])]
    if hole is not None:
        walls.append(np.stack([at(hole, 1), at(hole, -1)]))
    grids = [Grids(wall[None], closed_columns=smooth, smooth=smooth) for wall in walls]
    return [*grids, Grids(lids, planar=True, smooth=False)]


def _cut_out(name: str) -> Builder:
    outline, smooth = outlines.OUTLINES[name]

    def build(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
        return Shape(_upright(_board(outline(rng), None, smooth), half))

    return build


def _frame(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    inside = 1 - rng.uniform(0.1, 0.45)
    grids = _upright(_board(RECTANGLE, inside * RECTANGLE, False), half)
    return Shape(grids, wall=(1 - inside) * float(half[[0, 2]].min()))


def _letter(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """Square cells of a letter: front, back and the walls between full and empty."""
    name = tuple(outlines.LETTERS)[int(rng.integers(len(outlines.LETTERS)))]
    full = np.pad(np.array([[c == "#" for c in row] for row in outlines.LETTERS[name]][::-1]), 1)
    rows, columns = (side - 2 for side in full.shape)
    middle = np.array([columns / 2 + 1, rows / 2 + 1])
    size = np.array([2 / columns, 2 / rows])
    cells = (np.argwhere(full)[:, ::-1] - middle) * size  # lower left corners
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * size
    sides = [
        np.stack([cells[gone] + square[k], cells[gone] + square[k + 1]], axis=1)
        for k, (dx, dy) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0)))
        if (gone := ~np.roll(full, (-dy, -dx), (0, 1))[full]).any()
    ]
    tiles = cells[:, None, None] + square[np.array([[0, 1], [3, 2]])]
    walls = np.concatenate(sides)
    levels = [np.concatenate([walls, np.full((*walls.shape[:-1], 1), z)], axis=-1) for z in (-1, 1)]
    front = np.concatenate([tiles, np.ones((*tiles.shape[:-1], 1))], axis=-1)
    back = front[:, :, ::-1] * np.array([1, 1, -1])
    grids = [Grids(np.stack(levels, axis=1), merged=True)]
    grids += [Grids(lid, planar=True, merged=True) for lid in (front, back)]
    return Shape(
        _upright(grids, half), wall=float((half * np.array([size[0], 2, size[1]])).min()), noun=f"letter {name}"
    )


def _upright(grids: list[Grids], half: np.ndarray) -> tuple[Grids, ...]:
    """Bodies made lying, y up, stood up and stretched."""
    return tuple(replace(grid, points=grid.points @ STAND.T * half) for grid in grids)


# ---- along curves


def _tube(curve: Callable[[np.random.Generator], np.ndarray]) -> Builder:
    def build(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
        radius = float(half.min() * rng.uniform(0.1, 0.22))
        line = _fitted(curve(rng), half - radius)
        return Shape(swept(line, circle(max(6, detail.around // 3)), np.full(len(line), radius)), wall=radius)

    return build


def _fitted(line: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Centred and stretched to the half extents; a direction without any extent keeps none."""
    low, high = line.min(axis=0), line.max(axis=0)
    extent = np.maximum(high - low, 1e-9)
    return np.where(extent > 1e-6, (line - (low + high) / 2) * 2 / extent, 0) * half


def _horn(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """A bent tube that grows thinner to one end or, as a banana or a leaf, to both."""
    thick = float(half[:2].min() * rng.uniform(0.3, 0.6))
    t = np.linspace(0, 1, 14)
    bow = rng.uniform(-1, 1, 2)
    line = _fitted(
        np.stack([bow[0] * t * t, bow[1] * t * (1 - t), 2 * t - 1], axis=1), half - np.array([thick, thick, 0])
    )
    swell = np.sqrt(np.sin(np.pi * np.clip(t, 0.02, 0.98))) if rng.random() < 0.5 else 1 - 0.93 * t
    return Shape(swept(line, circle(max(8, detail.around // 2)), thick * swell))


def wired(shape: Shape, radius: float) -> Shape:
    """The lines of a body's grids as thin rods."""
    return Shape((rods(edges_of(shape.grids), radius),), wall=radius)


# ---- kept out of training


def _knot(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    radius = float(half.min() * rng.uniform(0.15, 0.28))
    line = _fitted(outlines.knot(rng), half - radius)
    return Shape(swept(line, circle(max(6, detail.around // 3)), np.full(len(line), radius), closed=True), wall=radius)


def _pen_stroke(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """A round letter or figure as a bent bar of rectangular section."""
    name = tuple(outlines.STROKES)[int(rng.integers(len(outlines.STROKES)))]
    pen = float(min(half[0], half[2]) * rng.uniform(0.15, 0.25))
    depth = min(float(half[1]), 4 * pen)
    line = _fitted(outlines.pen_line(name), half - np.array([pen, 0, pen]))
    bar = swept(line, RECTANGLE * np.array([1, depth / pen]), np.full(len(line), pen), smooth=False)
    return Shape(bar, wall=pen, noun=name)


def _supershape(rng: np.random.Generator, half: np.ndarray, detail: Detail) -> Shape:
    """Two superformulas (Gielis 2003), one round the axis and one from pole to pole."""
    around = np.linspace(-np.pi, np.pi, 3 * detail.around // 2 + 1)
    upward = np.linspace(-np.pi / 2, np.pi / 2, 3 * detail.around // 4 + 1)
    level, rise = _superformula(rng, around), _superformula(rng, upward)
    ring = level[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    points = np.concatenate(
        [
            (rise * np.cos(upward))[:, None, None] * ring,
            np.broadcast_to((rise * np.sin(upward))[:, None, None], (len(upward), len(around), 1)),
        ],
        axis=2,
    )
    points[[0, -1], :, :2] = 0
    return Shape((Grids((points / np.abs(points).max(axis=(0, 1)) * half)[None], closed_columns=True),))


def _superformula(rng: np.random.Generator, angles: np.ndarray) -> np.ndarray:
    lobes = int(rng.integers(3, 8))
    n1, n2 = rng.uniform(0.8, 3), rng.uniform(0.8, 3)
    return (np.abs(np.cos(lobes * angles / 4)) ** n2 + np.abs(np.sin(lobes * angles / 4)) ** n2) ** (-1 / n1)


KINDS: dict[str, Builder] = {
    "box": solids.box,
    "ball": solids.ball,
    "cylinder": solids.cylinder,
    "cone": solids.cone,
    "ring": _ring,
    "tapered cylinder": solids.tapered_cylinder,
    "prism": solids.prism,
    "wedge": solids.wedge,
    "pyramid": solids.pyramid,
    "dome": solids.dome,
    "rounded box": _rounded_box,
    "capsule": _capsule,
    "egg": _rounded(outlines.drop),
    "bottle": _bottle,
    "vase": _vessel(outlines.vase),
    "bowl": _vessel(outlines.bowl),
    "cup": _vessel(outlines.cup),
    "pipe": _pipe,
    "lampshade": _lampshade,
    "frame": _frame,
    "letter": _letter,
    "horn": _horn,
    **{name: _cut_out(name) for name in outlines.OUTLINES},
    **{name: _tube(curve) for name, curve in outlines.CURVES.items()},
}
HELD_OUT_KINDS: dict[str, Builder] = {
    "torus knot": _knot,
    "goblet": _vessel(outlines.goblet),
    "spindle": _rounded(outlines.spindle),
    "supershape": _supershape,
    "bent letter": _pen_stroke,
}
