"""The bodies of a plan, made and then changed: bumps, bends, bites, wire cages, two equal sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from backend.procedural.carving import bitten, hollowed, symmetric
from backend.procedural.grids import Part, bent, bounds, displaced, placed, triangles
from backend.procedural.plans import Piece, Plan, half_extents, pick, rotation
from backend.procedural.primitives import KINDS, wired
from backend.procedural.solids import Builder, Detail, Shape

AMPLITUDE = (0.05, 0.2)  # of a height field, in least half extents (at most 0.2 in the paper)
CUTTERS = ("box", "ball", "cylinder", "cone", "prism", "dome")  # no ring, as in the paper
CUTTER_DETAIL = Detail(flat=5, around=24)
CAGES = ("box", "box", "ball", "cylinder", "cone", "prism", "pyramid", "ring", "egg")
WIRE = (0.012, 0.035)  # radius of a wire, in the half of the object's longest side
LEAST_LEFT = 0.4  # of the surface, after a cut or a mirror


@dataclass(frozen=True)
class Body:
    """A part of an object.

    group   bodies of one group share their paints
    noun    what a caption calls it, "" for what it leaves out
    bumpy   whether a height field dents it
    copies  how many bodies one sees: a mirror shows two of what it does not cut
    """

    part: Part
    group: int
    noun: str
    bumpy: bool = False
    copies: int = 1


def bodies_of(
    rng: np.random.Generator, plan: Plan, kinds: Mapping[str, Builder], *, bumpy: float, curved: float
) -> list[Body]:
    """Every piece of the plan as a body. bumpy, curved: chances of a height field and of a bend."""
    largest = max(float(piece.half.max()) for piece in plan.pieces)
    made: dict[tuple, Body] = {}
    bodies = []
    for piece in plan.pieces:
        key = (piece.group, piece.kind, *piece.half)
        if key not in made:
            detail = _detail(float(piece.half.max()) / largest, len(plan.pieces))
            made[key] = _body(rng, piece, kinds[piece.kind], detail, bumpy, curved)
        bodies.append(replace(made[key], part=placed(made[key].part, piece.turn, piece.centre)))
    return bodies


def _detail(size: float, count: int) -> Detail:
    """Of a body of this size, in that of the largest: less for a small one and for one of many."""
    if count <= 2:
        return Detail(8, 4 * round(3 + 5 * size))
    return Detail(6, 4 * round(3 + 4 * size)) if count <= 5 else Detail(5, 4 * round(2 + 3 * size))


def _body(rng: np.random.Generator, piece: Piece, build: Builder, detail: Detail, bumpy: float, curved: float) -> Body:
    dented, bend = rng.random() < bumpy, rng.random() < curved
    shape = build(rng, piece.half, detail if dented or bend else replace(detail, flat=1))
    if bend:
        shape = _bent(rng, shape, piece.half)
    if dented:
        least = float(piece.half.min()) if shape.wall is None else min(float(piece.half.min()), 2 * shape.wall)
        amplitude = least * rng.uniform(*AMPLITUDE)
        shape = replace(shape, grids=tuple(displaced(rng, grid, amplitude) for grid in shape.grids), quadrics=None)
    part = triangles(shape.grids, quadrics=shape.quadrics, wall=shape.wall)
    return Body(part, piece.group, piece.noun or shape.noun or piece.kind, dented)


def _bent(rng: np.random.Generator, shape: Shape, half: np.ndarray) -> Shape:
    taper, twist = rng.uniform(-0.5, 0.5), rng.uniform(-0.8, 0.8) * (rng.random() < 0.5)
    bow = rng.uniform(-0.4, 0.4) * (rng.random() < 0.5)
    grids = tuple(bent(grid, half, taper=taper, twist=twist, bow=bow) for grid in shape.grids)
    return replace(shape, grids=grids, quadrics=None)


def _extent(bodies: list[Body]) -> float:
    """Half of the longest side of the box round all bodies."""
    lows, highs = zip(*(bounds(body.part.corners) for body in bodies), strict=True)
    return 0.5 * float((np.max(highs, axis=0) - np.min(lows, axis=0)).max())


def _on_surface(rng: np.random.Generator, bodies: list[Body]) -> np.ndarray:
    """[3] the middle of a random triangle of a random body."""
    corners = pick(rng, bodies).part.corners
    return corners[int(rng.integers(len(corners))), :, :3].mean(axis=0)


def cut(rng: np.random.Generator, bodies: list[Body]) -> tuple[list[Body], bool]:
    """A random solid taken out of the bodies, and whether it met any.

    Half of the time what is solid shows the walls of the bite; all else becomes a thin sheet, open where it was cut.
    """
    extent = _extent(bodies)
    centre = _on_surface(rng, bodies)
    cutter = _cutter(rng, extent * rng.uniform(0.2, 0.6, 3), centre)
    biting = rng.random() < 0.5
    firm = [body for body in bodies if biting and body.part.quadrics is not None]
    loose = [body for body in bodies if not (biting and body.part.quadrics is not None)]
    carved = bitten([body.part for body in firm], cutter)
    result = [replace(body, part=part) for body, part in zip(firm, carved, strict=False)]
    if len(carved) > len(firm):
        result.append(Body(carved[-1], 1 + max(body.group for body in bodies), ""))
    sheet = extent * rng.uniform(0.015, 0.04)
    result += [replace(b, part=hollowed(b.part, cutter, min(sheet, 0.4 * b.part.thinnest))) for b in loose]
    result = [body for body in result if len(body.part.corners) > 0]
    before = {id(body.part) for body in bodies}
    touched = any(id(body.part) not in before for body in result)
    if not touched or _area(result) < LEAST_LEFT * _area(bodies):
        return bodies, False
    return result, True


def _area(bodies: list[Body]) -> float:
    return sum(body.part.area for body in bodies if body.noun)


def _cutter(rng: np.random.Generator, half: np.ndarray, centre: np.ndarray) -> Part:
    """A solid whose triangles lie just outside its quadrics, so that no gap opens along a round cut."""
    shape = KINDS[pick(rng, CUTTERS)](rng, half, CUTTER_DETAIL)
    part = triangles(shape.grids, quadrics=shape.quadrics)
    assert part.quadrics is not None
    if part.quadrics[:, :3, :3].any():
        swollen = part.corners.copy()
        swollen[..., :3] /= np.cos(np.pi / CUTTER_DETAIL.around) ** 2
        part = replace(part, corners=swollen)
    return placed(part, rotation(rng), centre)


def with_wire(rng: np.random.Generator, bodies: list[Body]) -> list[Body]:
    """A wire cage at a random place of the surface; sometimes one of the bodies makes way for it."""
    extent = _extent(bodies)
    half = half_extents(rng)
    half *= extent * rng.uniform(0.3, 0.6) / half.max()
    detail = Detail(flat=int(rng.integers(1, 4)), around=2 * int(rng.integers(3, 6)))
    shape = wired(KINDS[pick(rng, CAGES)](rng, half, detail), extent * rng.uniform(*WIRE))
    part = triangles(shape.grids, wall=shape.wall)
    group = 1 + max(body.group for body in bodies)
    if len(bodies) > 1 and rng.random() < 0.3:
        gone = int(rng.integers(len(bodies)))
        bodies = [*bodies[:gone], *bodies[gone + 1 :]]
    where = _on_surface(rng, bodies)
    return [*bodies, Body(placed(part, rotation(rng), where), group, pick(rng, ("wire frame", "wire cage")))]


def both_sides(bodies: list[Body]) -> list[Body]:
    """The right half of all bodies, x >= 0, and its mirror image; the bodies themselves where little is there."""
    result = []
    for body in bodies:
        part = symmetric(body.part)
        if part is not None:
            apart = bool((body.part.corners[..., 0] > 0).all())
            result.append(replace(body, part=part, copies=1 + apart))
    return result if _area(result) >= LEAST_LEFT * _area(bodies) else bodies
