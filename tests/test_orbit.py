"""Where an orbit's cameras stand."""

from __future__ import annotations

import numpy as np
import pytest

from blender_addon import orbit


@pytest.mark.parametrize(
    ("azimuth", "direction"), [(0, (0, -1, 0)), (90, (1, 0, 0)), (180, (0, 1, 0)), (270, (-1, 0, 0))]
)
def test_azimuths_are_blenders_views(azimuth: float, direction: tuple[float, float, float]) -> None:
    c2w = orbit.matrix(np.array([5.0, 6, 7]), 2.0, azimuth, 0)
    np.testing.assert_allclose(c2w[:3, 3] - [5, 6, 7], 2 * np.array(direction), atol=1e-12)
    np.testing.assert_allclose(c2w[:3, 1], [0, 0, -1], atol=1e-12)


@pytest.mark.parametrize("elevation", [-90, -45, 0, 20, 89.9, 90])
@pytest.mark.parametrize("azimuth", [0, 33, 200])
def test_cameras_are_rigid_level_and_look_at_the_centre(azimuth: float, elevation: float) -> None:
    centre = np.array([1.0, -2, 3])
    c2w = orbit.matrix(centre, 4.0, azimuth, elevation)
    rotation = c2w[:3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert rotation[2, 0] == pytest.approx(0)  # right is level
    np.testing.assert_allclose(c2w[:3, 3] + 4 * c2w[:3, 2], centre, atol=1e-12)


def test_angles_of_undoes_matrix() -> None:
    c2w = orbit.matrix(np.zeros(3), 3.0, 123.0, -37.0)
    assert orbit.angles_of(c2w[:3, 3]) == pytest.approx((123.0, -37.0))


def test_the_same_cameras_as_the_benchmark() -> None:
    """Position = r (cos e sin a, -cos e cos a, sin e): the four inputs of the shared benchmark stand at 0, 90, 180,
    270."""
    assert orbit.angles(4) == [(0, 20), (90, 20), (180, 20), (270, 20)]


@pytest.mark.parametrize("count", [4, 5, 8, 11, 12, 17, 18, 24, 40, 64])
def test_automatic_elevations_are_spread(count: int) -> None:
    placed = orbit.angles(count)
    assert len(placed) == count and len(set(placed)) == count
    elevations = {elevation for _, elevation in placed}
    if count > 5:
        assert min(elevations) < 0 < max(elevations)
    if count > 17:
        assert max(elevations) >= 60 and min(elevations) <= -40


@pytest.mark.parametrize("seed", range(5))
def test_bounding_sphere_holds_all_and_is_tight(seed: int) -> None:
    """Points within a known sphere that touch it on all sides: no smaller sphere holds them."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(4000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    centre, radius = generator.normal(size=3) * 100, generator.uniform(0.01, 50)
    points = centre + directions * radius * np.r_[np.ones(2000), generator.uniform(0, 1, 2000)][:, None]
    sphere = orbit.bounding_sphere(points)
    assert np.linalg.norm(points - sphere.centre, axis=1).max() <= sphere.radius * (1 + 1e-9)
    assert sphere.radius == pytest.approx(radius, rel=0.01)


def test_bounding_sphere_of_two_points_and_of_a_box() -> None:
    two = orbit.bounding_sphere(np.array([[0.0, 0, 0], [2, 0, 0]]))
    np.testing.assert_allclose(two.centre, [1, 0, 0], atol=1e-9)
    assert two.radius == pytest.approx(1)
    corners = np.stack(np.meshgrid([-1, 1], [-2, 2], [-3, 3]), axis=-1).reshape(-1, 3)
    assert orbit.bounding_sphere(corners).radius == pytest.approx(np.sqrt(14), rel=1e-6)


def test_a_fitting_sphere_touches_the_edge_of_the_picture() -> None:
    distance = orbit.fitting_distance(2.0, lens=50, sensor=36)
    tangent = 2 / np.sqrt(distance**2 - 4)  # of the cone around the sphere
    assert tangent == pytest.approx(18 / 50)
