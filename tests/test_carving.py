"""Cuts against a slow twin, and what is really gone after them, by counting the surfaces that rays meet."""

from __future__ import annotations

import numpy as np
import pytest

from backend.procedural.carving import Pieces, bitten, carved, crossing, hollowed, refined, split, symmetric, values
from backend.procedural.grids import areas, placed
from backend.procedural.solids import Detail, plane
from tests.test_primitives import inside, made, volume

RAY = np.array([0.31, 0.53, 0.79])
BALL = np.diag([1.0, 1, 1, -0.25])  # of radius 0.5


def triangle_soup(seed: int, count: int = 200) -> Pieces:
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(count, 3, 8))
    corners[..., 3:6] /= np.linalg.norm(corners[..., 3:6], axis=-1, keepdims=True)
    return Pieces(corners, rng.integers(0, 7, count))


def clipped_area(corners: np.ndarray, normal: np.ndarray, offset: float) -> float:
    """The slow twin (Sutherland and Hodgman 1974): area of one triangle where normal . p <= offset."""
    kept = []
    for k in range(3):
        a, b = corners[k, :3], corners[(k + 1) % 3, :3]
        da, db = normal @ a - offset, normal @ b - offset
        if da <= 0:
            kept.append(a)
        if (da <= 0) != (db <= 0):
            kept.append(a + da / (da - db) * (b - a))
    fan = [np.linalg.norm(np.cross(kept[k] - kept[0], kept[k + 1] - kept[0])) for k in range(1, len(kept) - 1)]
    return 0.5 * float(np.sum(fan))


def test_a_plane_splits_as_the_slow_twin_does():
    soup, normal = triangle_soup(0), np.array([0.6, -0.8, 0.3])
    outside, within, border = split(soup, plane(normal, 0.2))
    want = np.zeros(7)
    for corners, surface in zip(soup.corners, soup.surfaces, strict=True):
        want[surface] += clipped_area(corners, normal, 0.2)
    np.testing.assert_allclose(np.bincount(within.surfaces, areas(within.corners), 7), want, rtol=1e-9)
    assert areas(within.corners).sum() + areas(outside.corners).sum() == pytest.approx(areas(soup.corners).sum())
    np.testing.assert_allclose(border.corners[..., :3] @ normal, 0.2, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(border.corners[..., 3:6], axis=-1), 1, atol=1e-9)


def test_an_edge_meets_a_quadric_where_bisection_says():
    rng = np.random.default_rng(1)
    quadric = rng.normal(size=(4, 4))
    quadric += quadric.T
    start, stop = rng.normal(size=(2, 500, 3))
    differ = (values(quadric, start) > 0) != (values(quadric, stop) > 0)
    start, stop = start[differ], stop[differ]
    low, high = np.zeros(len(start)), np.ones(len(start))
    for _ in range(50):
        middle = 0.5 * (low + high)
        same = (values(quadric, start + middle[:, None] * (stop - start)) > 0) == (values(quadric, start) > 0)
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    assert len(start) > 100
    np.testing.assert_allclose(crossing(quadric, start, stop), low, atol=1e-7)


def test_halving_large_triangles_changes_neither_area_nor_volume():
    part = made("box")
    fine = refined(Pieces(part.corners, part.surfaces), np.array([0.7, 0, 0]), 0.3, 0.15)
    assert len(fine.corners) > 2 * len(part.corners)
    assert volume(fine.corners) == pytest.approx(volume(part.corners))
    np.testing.assert_allclose(
        np.bincount(fine.surfaces, areas(fine.corners)), np.bincount(part.surfaces, areas(part.corners))
    )


def test_a_bite_out_of_a_box_is_gone_and_the_rest_is_not():
    box = made("box", np.ones(3))
    ball = placed(made("ball", np.full(3, 0.5), Detail(4, 48)), np.eye(3), np.array([1.0, 0, 0]))
    parts = bitten([box], ball)
    assert len(parts) == 2
    corners = np.concatenate([part.corners for part in parts])
    assert volume(corners) == pytest.approx(8 - 2 / 3 * np.pi * 0.5**3, rel=2e-3)
    points = np.random.default_rng(2).uniform(-0.95, 0.95, (300, 3)) * np.array([0.5, 0.7, 0.7]) + np.array([0.5, 0, 0])
    distance = np.linalg.norm(points - np.array([1.0, 0, 0]), axis=1)
    clear = np.abs(distance - 0.5) > 0.03
    gone = distance < 0.5
    wrong = inside(corners, points[clear], RAY) == gone[clear]
    assert wrong.mean() < 0.01  # a ray may meet the seam, where the walls reach a hair below the surface
    assert 20 < (gone & clear).sum() < 280
    assert inside(box.corners, points, RAY).all()


def test_a_box_out_of_a_box_is_exact():
    corner = placed(made("box", np.full(3, 0.5)), np.eye(3), np.ones(3))
    parts = bitten([made("box", np.ones(3))], corner)
    assert volume(np.concatenate([part.corners for part in parts])) == pytest.approx(8 - 0.5**3, rel=1e-9)
    assert parts[-1].area == pytest.approx(3 * 0.25)


def test_solids_that_overlap_share_one_wall_of_the_bite():
    first, second = made("box", np.ones(3)), placed(made("box", np.ones(3)), np.eye(3), np.array([0.2, 0.1, 0]))
    corner = placed(made("box", np.full(3, 0.5)), np.eye(3), np.array([0.0, 0, 1]))
    assert bitten([first, second], corner)[-1].area == pytest.approx(4 * 0.5 + 1)


def test_what_the_cutter_does_not_meet_stays_the_same():
    box, far = made("box"), placed(made("ball"), np.eye(3), np.array([5.0, 0, 0]))
    assert bitten([box], far) == [box]
    assert hollowed(box, far, 0.02) is box


def test_a_hollowed_body_is_a_sheet_open_where_it_was_cut():
    box = made("box", np.ones(3))
    cutter = placed(made("box", np.full(3, 0.4)), np.eye(3), np.array([0.0, 0, 1]))
    shell = hollowed(box, cutter, 0.05)
    points = np.array([[0, 0, 0.9], [0, 0, 0], [0.7, 0.6, 0.2], [0.7, 0.6, 0.975], [0, -0.975, 0.3], [0.5, 0.1, 0.975]])
    assert inside(shell.corners, points, RAY).tolist() == [False, False, False, True, True, True]
    assert inside(box.corners, points, RAY).all()
    assert shell.thinnest == 0.05 and shell.quadrics is None
    top = shell.corners[
        (np.abs(shell.corners[..., :2]) < 0.39).all(axis=(1, 2)) & (shell.corners[..., 2] > 0).all(axis=1)
    ]
    assert len(top) == 0  # nothing spans the opening


def test_the_rim_of_a_cut_joins_both_sides_of_the_sheet():
    ball = made("ball", np.ones(3), Detail(1, 48))
    half_space = placed(made("box", np.full(3, 2.0)), np.eye(3), np.array([0.0, 0, 2.3]))
    shell = hollowed(ball, half_space, 0.1)
    flat = shell.corners[(np.abs(shell.corners[..., 5]) > 0.99).all(axis=1) & (shell.corners[..., 2] > 0.2).all(axis=1)]
    assert len(flat) == 0  # a rim leans with the radius
    edges = areas(shell.corners[np.ptp(np.linalg.norm(shell.corners[..., :3], axis=-1), axis=1) > 0.05])
    assert edges.sum() == pytest.approx(2 * np.pi * np.sqrt(1 - 0.3**2) * 0.95 * 0.1, rel=0.02)
    np.testing.assert_allclose(volume(shell.corners), (2 + 0.6) * np.pi * 0.1 * 0.905, rtol=0.02)


def test_only_what_lies_inside_all_quadrics_is_inside():
    soup = triangle_soup(3)
    quadrics = np.stack([BALL * 4, plane(np.array([0.0, 0, 1]), 0.1), plane(np.array([1.0, 0, 0]), 0.2)])
    outside, within, border = carved(soup, quadrics)
    assert areas(within.corners).sum() + areas(outside.corners).sum() == pytest.approx(areas(soup.corners).sum())
    for quadric in quadrics:
        assert values(quadric, within.corners[..., :3]).max() < 1e-9
        assert values(quadric, border.corners[..., :3]).max() < 1e-9
    middles = outside.corners[..., :3].mean(axis=1)
    assert (np.stack([values(quadric, middles) for quadric in quadrics[1:]]).max(axis=0) > 0).mean() > 0.5


def test_two_equal_sides():
    part = placed(made("cone"), np.eye(3), np.array([0.3, 0.1, 0]))
    both = symmetric(part)
    assert both is not None
    points = both.corners[..., :3].reshape(-1, 3)
    image = points * np.array([-1, 1, 1])
    key = np.lexsort(np.round(points, 9).T), np.lexsort(np.round(image, 9).T)
    np.testing.assert_allclose(np.round(points, 9)[key[0]], np.round(image, 9)[key[1]], atol=1e-8)
    assert symmetric(placed(part, np.eye(3), np.array([-5.0, 0, 0]))) is None
