"""Bodies against their analytic volumes, grids against slow twins."""

from __future__ import annotations

import numpy as np
import pytest

from backend.procedural.grids import (
    Grids,
    Part,
    areas,
    bent,
    displaced,
    facing,
    grid_normals,
    height_field,
    interpolation,
    mirrored,
    placed,
    triangles,
)
from backend.procedural.outlines import LETTERS, STROKES, knot
from backend.procedural.primitives import HELD_OUT_KINDS, KINDS, wired
from backend.procedural.solids import Builder, Detail, Shape
from backend.procedural.sweeps import circle, edges_of, swept

HALF = np.array([0.7, 0.5, 0.9])
EVERY = {**KINDS, **HELD_OUT_KINDS}


def part_of(shape: Shape) -> Part:
    return triangles(shape.grids, quadrics=shape.quadrics, wall=shape.wall)


def made(kind: str, half: np.ndarray = HALF, detail: Detail | None = None, seed: int = 0) -> Part:
    return part_of(EVERY[kind](np.random.default_rng(seed), half, detail or Detail()))


def volume(corners: np.ndarray) -> float:
    """By the divergence theorem, of a closed surface that is turned outwards."""
    a, b, c = np.moveaxis(corners[..., :3], 1, 0)
    return float((a * np.cross(b, c)).sum() / 6)


def inside(corners: np.ndarray, points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """[N] whether a ray from each point [N,3] meets the triangles [F,3,...] an odd number of times."""
    a, b, c = np.moveaxis(corners[..., :3], 1, 0)
    across = np.cross(direction, c - a)
    bottom = ((b - a) * across).sum(axis=1)
    bottom = np.where(np.abs(bottom) < 1e-15, np.inf, bottom)
    offset = points[:, None] - a
    u = (offset * across).sum(axis=2) / bottom
    turned = np.cross(offset, b - a)
    v = turned @ direction / bottom
    t = (turned * (c - a)).sum(axis=2) / bottom
    return ((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)).sum(axis=1) % 2 == 1


X, Y, Z = HALF
VOLUMES = {
    "box": 8 * X * Y * Z,
    "ball": 4 / 3 * np.pi * X * Y * Z,
    "cylinder": 2 * np.pi * X * Y * Z,
    "cone": 2 / 3 * np.pi * X * Y * Z,
    "wedge": 4 * X * Y * Z,
    "dome": 4 / 3 * np.pi * X * Y * Z,
}


@pytest.mark.parametrize("kind", VOLUMES)
def test_volume_is_the_analytic_one(kind):
    assert volume(made(kind, detail=Detail(2, 300)).corners) == pytest.approx(VOLUMES[kind], rel=2e-3)


def test_volume_of_a_ring_is_the_analytic_one():
    part = made("ring", np.array([0.9, 0.9, 0.2]), Detail(1, 300))
    assert volume(part.corners) == pytest.approx(2 * np.pi**2 * 0.7 * 0.2**2, rel=2e-3)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", EVERY)
def test_every_body_is_closed_turned_outwards_and_as_large_as_asked(kind, seed):
    part = made(kind, seed=seed)
    assert volume(part.corners) > 0
    np.testing.assert_allclose(facing(part.corners).sum(axis=0), 0, atol=1e-9)  # a hole would leave a direction
    extent = np.abs(part.corners[..., :3]).max(axis=(0, 1))
    assert (extent <= 1.6 * HALF).all() and (extent > 0.05 * HALF).all()
    np.testing.assert_allclose(np.linalg.norm(part.corners[..., 3:6], axis=-1), 1, atol=1e-9)
    assert part.corners[..., 6:].min() > -1e-9 and part.corners[..., 6:].max() < 1 + 1e-9
    assert part.surfaces.max() < len(part.sizes) == len(part.closed)


@pytest.mark.parametrize("kind", ["box", "ball", "cylinder", "cone", "ring", "dome", "wedge", "capsule", "egg", "cup"])
def test_shading_normals_agree_with_the_winding(kind):
    part = made(kind)
    own = facing(part.corners)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    assert (part.corners[..., 3:6] * own[:, None]).sum(axis=-1).min() > 0.75


def test_shading_of_a_ball_is_radial():
    part = made("ball", np.ones(3), Detail(1, 48))
    np.testing.assert_allclose(part.corners[..., 3:6], part.corners[..., :3], atol=0.01)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if made(kind).quadrics is not None])
def test_quadrics_bound_the_same_solid_as_the_triangles(kind):
    part = placed(
        made(kind, detail=Detail(1, 96)), np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), np.array([0.1, 0.2, 0])
    )
    points = np.random.default_rng(3).uniform(-1, 1, (400, 3))
    ones = np.concatenate([points, np.ones((400, 1))], axis=1)
    assert part.quadrics is not None
    within = (np.einsum("ni,pij,nj->np", ones, part.quadrics, ones) <= 0).all(axis=1)
    by_rays = inside(part.corners, points, np.array([0.3, 0.5, 0.81]))
    assert (
        within != by_rays
    ).mean() < 0.01 and by_rays.mean() > 0.03  # the rest lies between the surface and its chords


def test_what_is_kept_for_validation_is_never_trained_on():
    assert not set(KINDS) & set(HELD_OUT_KINDS)
    assert not {f"letter {name}" for name in LETTERS} & set(STROKES)
    builders: set[Builder] = set(KINDS.values())
    assert not builders & set(HELD_OUT_KINDS.values())


# ---- grids


def catmull_rom(knots: np.ndarray, at: float, closed: bool) -> float:
    """The slow twin, after the formula of the four control points."""
    count = len(knots)
    left = min(int(at), count - (1 if closed else 2))
    t = at - left
    p = [knots[k % count] if closed else knots[min(max(k, 0), count - 1)] for k in range(left - 1, left + 3)]
    return 0.5 * (
        2 * p[1]
        + (p[2] - p[0]) * t
        + (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3]) * t**2
        + (3 * p[1] - p[0] - 3 * p[2] + p[3]) * t**3
    )


@pytest.mark.parametrize("closed", [False, True])
def test_interpolation_is_that_of_the_slow_twin(closed):
    knots = np.random.default_rng(0).normal(size=5)
    got = interpolation(5, 14, closed) @ knots
    want = [catmull_rom(knots, at, closed) for at in np.linspace(0, 5 if closed else 4, 14)]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_height_fields_end_at_borders_and_close_where_the_grid_does():
    rng = np.random.default_rng(1)
    open_ = height_field(rng, Grids(np.zeros((2, 9, 11, 3))))
    assert np.abs(open_[:, [0, -1]]).max() < 1e-12 and np.abs(open_[:, :, [0, -1]]).max() < 1e-12
    closed = height_field(rng, Grids(np.zeros((2, 9, 11, 3)), closed_columns=True))
    np.testing.assert_allclose(closed[:, :, 0], closed[:, :, -1], atol=1e-12)
    assert np.abs(closed[:, 4, 0]).min() > 1e-3 and np.abs(open_).max() > 0.1


def test_a_displaced_body_is_still_closed_and_moves_by_its_amplitude():
    for kind in ("box", "ball", "cylinder", "ring"):
        shape = KINDS[kind](np.random.default_rng(0), HALF, Detail(8, 24))
        grids = tuple(displaced(np.random.default_rng(1), grid, 0.1) for grid in shape.grids)
        moved = max(np.linalg.norm(b.points - a.points, axis=-1).max() for a, b in zip(shape.grids, grids, strict=True))
        assert 0.02 < moved < 0.2
        np.testing.assert_allclose(facing(triangles(grids).corners).sum(axis=0), 0, atol=1e-9)


def test_bending_by_hand():
    grid = Grids(np.array([[[[0.5, 0, -1], [0.5, 0, 1]], [[0.5, 0, 0], [0.5, 0, 0.5]]]]))
    wide = bent(grid, np.ones(3), taper=0.5, twist=0, bow=0).points[0]
    np.testing.assert_allclose(wide[..., 0], [[0.25, 0.75], [0.5, 0.625]])
    turned = bent(grid, np.ones(3), taper=0, twist=np.pi / 2, bow=0).points[0]
    np.testing.assert_allclose(turned[0], [[0, -0.5, -1], [0, 0.5, 1]], atol=1e-12)


def test_normals_of_a_plane_and_of_a_pole():
    u, v = np.meshgrid(np.arange(4.0), np.arange(3.0))
    plane = Grids(np.stack([u, v, 0 * u], axis=-1)[None])
    np.testing.assert_allclose(grid_normals(plane), np.broadcast_to([0, 0, 1.0], (1, 3, 4, 3)))
    ball = made("ball", np.ones(3), Detail(1, 48)).corners.reshape(-1, 8)
    top = ball[ball[:, 2] > 1 - 1e-9]
    assert len(top) > 0
    np.testing.assert_allclose(top[:, 3:6], np.broadcast_to([0, 0, 1.0], (len(top), 3)), atol=0.02)


def test_mirroring_keeps_the_outside_outside():
    part = placed(made("wedge"), np.eye(3), np.array([2.0, 0, 0]))
    image = mirrored(part.corners)
    assert volume(image) == pytest.approx(volume(part.corners)) and image[..., 0].max() < 0
    assert areas(image).sum() == pytest.approx(part.area)


# ---- tubes


def test_a_tube_keeps_its_distance_from_its_curve():
    rng = np.random.default_rng(2)
    curve = knot(rng)
    (tube,) = swept(curve, circle(8), np.full(len(curve), 0.1), closed=True)
    np.testing.assert_allclose(np.linalg.norm(tube.points[0] - curve[:, None], axis=-1), 0.1, atol=1e-9)
    np.testing.assert_allclose(tube.points[0, 0], tube.points[0, -1], atol=1e-9)  # it meets itself without a turn


def test_frames_of_a_flat_curve_do_not_leave_its_plane():
    angles = np.linspace(0, 2, 9)
    curve = np.stack([np.cos(angles), np.zeros(9), np.sin(angles)], axis=1)
    tube, _ = swept(curve, np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1], [1, 0]]), np.full(9, 0.2))
    offsets = tube.points[0] - curve[:, None]
    np.testing.assert_allclose(np.abs(offsets[:, 1]), np.broadcast_to([0, 0.2, 0], (9, 3)), atol=1e-9)
    np.testing.assert_allclose(offsets[:, 0, 1], 0, atol=1e-9)


def test_wires_run_along_the_edges_and_have_their_thickness():
    shape = KINDS["box"](np.random.default_rng(0), np.ones(3), Detail(2))
    edges = edges_of(shape.grids)
    assert len(edges) == 12 * 2 + 6 * 4  # each edge of the cube in two pieces, a cross on each face
    points = wired(shape, 0.03).grids[0].points  # [E,2,6,3]
    along = (edges[:, 1] - edges[:, 0])[:, None, None]
    offset = points - edges[:, 0][:, None, None]
    across = offset - (offset * along).sum(axis=-1, keepdims=True) / (along * along).sum(axis=-1, keepdims=True) * along
    np.testing.assert_allclose(np.linalg.norm(across, axis=-1), 0.03, atol=1e-9)
    assert volume(triangles((wired(shape, 0.03).grids[0],)).corners) > 0
