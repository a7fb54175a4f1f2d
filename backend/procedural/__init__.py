"""An endless source of textured objects to train on: seeded, made of simple bodies, in a few milliseconds each.

The recipe follows LRM-Zero (Xie et al., "LRM-Zero: Training Large Reconstruction Models with Synthesized Data", 2024):
one to nine primitives with height fields, some cut open, some beside a wire cage. To it come things in outline, such as
tables and animals, hollow and bent bodies, symmetry, drawn patterns, and a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from backend.assets import Asset
from backend.procedural.bodies import Body, bodies_of, both_sides, cut, with_wire
from backend.procedural.captions import Group, caption
from backend.procedural.grids import areas, bounds, dot, facing, length, normalised
from backend.procedural.paints import Paint, Palette
from backend.procedural.plans import assembly, pick, single
from backend.procedural.primitives import HELD_OUT_KINDS, KINDS
from backend.procedural.things import thing

THINGS_SHARE = 0.4  # of the objects for training; the others are assemblies
SYMMETRIC_SHARE = 0.2  # of the assemblies
CUT_SHARE, WIRE_SHARE = 0.35, 0.2  # of the assemblies, never both (40 and 20 % in the paper)
CUT_THINGS, WIRE_THINGS = 0.08, 0.04
BUMPY, CURVED = 0.5, 0.12  # of the bodies of an assembly
BUMPY_THINGS, CURVED_THINGS = 0.04, 0.0
MOST_HELD_OUT = 3  # bodies of an object for validation
BARE_SHARE = 0.2  # of the simple objects: a single body instead of a thing
SIMPLE_REUSE = (0.35, 0.8, 0.95)  # chances that a surface of a simple object takes a paint that it has already
EVERY_SURFACE = 0.25  # chance that each surface of a body takes a paint of its own
SIDE, RADIUS = 1.8, 1.1  # longest side of a finished object, and the sphere that it stays in
WELD = 2.0**-18  # vertices nearer than this are one
LEAST_AREA = 1e-10  # of a triangle
LEAST_AGREEMENT = 0.2  # cosine between a shading normal and its triangle's

Families = Literal["train", "held_out"]


def make_object(rng: np.random.Generator, textures: Sequence[np.ndarray], *, families: Families = "train") -> Asset:
    """The next random object; the same one for the same state of `rng` and the same textures.

    textures  [h,w,3|4] uint8 sRGB pictures to paint with, besides flat colours and drawn patterns; may be empty
    families  "held_out": of bodies that "train" never makes, to validate with
    """
    return _made(rng, *_object(rng, families), Palette(rng, textures))[0]


def make_simple_object(
    rng: np.random.Generator, textures: Sequence[np.ndarray]
) -> tuple[Asset, str, tuple[Group, ...]]:
    """The next random object of those that people have a word for, its title ("" for a bare body), and its groups.

    It is a thing or a single body, whole, and often of few paints.
    """
    if rng.random() < BARE_SHARE:
        title, bodies = "", bodies_of(rng, single(rng, KINDS), KINDS, bumpy=0, curved=0)
    else:
        plan = thing(rng)
        title, bodies = plan.title, bodies_of(rng, plan, KINDS, bumpy=BUMPY_THINGS, curved=CURVED_THINGS)
    return _made(rng, title, bodies, [], Palette(rng, textures, reuse=pick(rng, SIMPLE_REUSE)))


def _made(
    rng: np.random.Generator, title: str, bodies: list[Body], remarks: list[str], palette: Palette
) -> tuple[Asset, str, tuple[Group, ...]]:
    """The painted object, its title and its groups."""
    painted, groups = _painted(rng, bodies, palette)
    corners = np.concatenate([corners for corners, _ in painted])
    numbers = np.concatenate([numbers for _, numbers in painted])
    words = caption(rng, title, groups, remarks)
    named = title or max(groups, key=lambda group: group.area).noun
    return _finished(f"procedural {named}", words, corners, numbers, palette.paints), title, tuple(groups)


def _object(rng: np.random.Generator, families: Families) -> tuple[str, list[Body], list[str]]:
    """Title, bodies and what there is to remark."""
    if families == "held_out":
        plan = assembly(rng, HELD_OUT_KINDS, MOST_HELD_OUT)
        return "", bodies_of(rng, plan, HELD_OUT_KINDS, bumpy=0.5 * BUMPY, curved=0), []
    if rng.random() < THINGS_SHARE:
        plan = thing(rng)
        bodies = bodies_of(rng, plan, KINDS, bumpy=BUMPY_THINGS, curved=CURVED_THINGS)
        return plan.title, *_edited(rng, bodies, CUT_THINGS, WIRE_THINGS)
    plan = assembly(rng, KINDS, 9)
    bodies, remarks = _edited(rng, bodies_of(rng, plan, KINDS, bumpy=BUMPY, curved=CURVED), CUT_SHARE, WIRE_SHARE)
    if rng.random() < SYMMETRIC_SHARE:
        before, bodies = bodies, both_sides(bodies)
        remarks += ["symmetric"] * (bodies is not before)
    return "", bodies, remarks


def _edited(
    rng: np.random.Generator, bodies: list[Body], cut_share: float, wire_share: float
) -> tuple[list[Body], list[str]]:
    edit = rng.random()
    if edit < cut_share:
        bodies, met = cut(rng, bodies)
        return bodies, [pick(rng, ("cut open", "with a piece cut out", "partly cut away"))] if met else []
    if edit < cut_share + wire_share:
        return with_wire(rng, bodies), []
    return bodies, []


# ---- paint


def _painted(
    rng: np.random.Generator, bodies: list[Body], palette: Palette
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[Group]]:
    """Corners [F,3,8] with uvs as their textures want them and paint numbers [F] of each body; and the groups."""
    members: dict[int, list[Body]] = {}
    for body in bodies:
        members.setdefault(body.group, []).append(body)
    painted, groups = [], []
    for group in members.values():
        surfaces = max(len(body.part.sizes) for body in group)
        each = surfaces > 1 and rng.random() < EVERY_SURFACE
        numbers = np.array([palette.draw() for _ in range(surfaces)] if each else [palette.draw()] * surfaces)
        shift = rng.random(2)
        painted += [(_textured(body, numbers, palette.paints, shift), numbers[body.part.surfaces]) for body in group]
        if group[0].noun:
            groups.append(_group(group, numbers, palette.paints))
    return painted, groups


def _textured(body: Body, numbers: np.ndarray, paints: list[Paint], shift: np.ndarray) -> np.ndarray:
    """[F,3,8] corners whose uvs repeat as often as the paint of each surface says, whole times round a closed one."""
    part = body.part
    density = np.array([paints[number].density or 0.0 for number in numbers[: len(part.sizes)]])
    repeats = part.sizes * density[:, None]
    repeats = np.where(part.closed, np.maximum(np.round(repeats), 1), repeats)
    once = density == 0
    repeats[once] = 1
    start = np.where(once[:, None], 0, shift)
    corners = part.corners.copy()
    corners[..., 6:] = corners[..., 6:] * repeats[part.surfaces][:, None] + start[part.surfaces][:, None]
    return corners


def _group(bodies: list[Body], numbers: np.ndarray, paints: list[Paint]) -> Group:
    covered = np.zeros(len(paints))
    for body in bodies:
        np.add.at(covered, numbers[body.part.surfaces], areas(body.part.corners))
    order = [int(number) for number in np.argsort(-covered, kind="stable") if covered[number] > 0]
    ranked = tuple(paints[number] for number in order)
    return Group(
        bodies[0].noun,
        sum(body.copies for body in bodies),
        float(covered.sum()),
        ranked,
        any(body.bumpy for body in bodies),
    )


# ---- finish


def _finished(name: str, words: str, corners: np.ndarray, numbers: np.ndarray, paints: list[Paint]) -> Asset:
    """Centred, scaled and welded; shading normals that look away from their triangle are replaced by its own."""
    points = corners[..., :3].reshape(-1, 3)
    low, high = bounds(points)
    points = points - 0.5 * (low + high)
    radius = float(length(points).max())
    points *= min(SIDE / float((high - low).max()), RADIUS / radius)
    vertices, faces = _welded(points)
    across = facing(vertices[faces])
    kept = length(across) > 2 * LEAST_AREA
    faces, across, corners = faces[kept], normalised(across[kept])[:, None], corners[kept]
    normals = normalised(corners[..., 3:6])
    normals = np.where(dot(normals, across)[..., None] < LEAST_AGREEMENT, across, normals)
    return Asset(
        name=name,
        caption=words,
        vertices=vertices.astype(np.float32),
        faces=faces.astype(np.int32),
        uvs=corners[..., 6:].astype(np.float32),
        normals=normals.astype(np.float32),
        face_material=numbers[kept].astype(np.int32),
        materials=tuple(paint.material for paint in paints),
    )


def _welded(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[V,3] vertices and [F,3] faces of triangles whose corners [3F,3] follow one another."""
    cells = np.round(points / WELD).astype(np.int64) + (1 << 20)
    keys = (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return points[first], inverse.reshape(-1, 3)
