"""The Gaussians' density and its level surface: against plain sums, a Gaussian's own formula, and an outline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from scipy import ndimage

from backend import density
from backend.density import LOW_PASS, SMOOTHING, LevelSurface, surface_of
from backend.gaussians import Gaussians
from backend.volume import Grid
from tests.shapes import capture, orbit

GRID = Grid(np.array([-1.0, -1.0, -1.0]), 0.05, (41, 41, 41))


def some_gaussians(count: int, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.rand(count, 3, generator=generator) * 1.2 - 0.6,
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
        scales=torch.rand(count, 3, generator=generator) * 0.1 + 0.002,
        opacities=torch.rand(count, generator=generator),
        sh=torch.zeros(count, 1, 3),
    )


def centres() -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 3, indexing="ij"), axis=-1)


def test_density_is_the_sum_over_the_gaussians() -> None:
    """The plain sum, voxel by voxel; each Gaussian ends at three deviations, where 1.1 % of it is left."""
    gaussians = some_gaussians(30)
    expected = np.zeros(GRID.shape)
    for n in range(len(gaussians)):
        before = gaussians.covariances[n].double().numpy()
        after = before + (LOW_PASS * GRID.voxel) ** 2 * np.eye(3)
        offsets = centres() - gaussians.means[n].double().numpy()
        square = np.einsum("...i,ij,...j", offsets, np.linalg.inv(after), offsets)
        share = np.sqrt(np.linalg.det(before) / np.linalg.det(after))
        expected += np.where(square < 9, float(gaussians.opacities[n]) * share * np.exp(-square / 2), 0)
    expected = ndimage.gaussian_filter(expected, SMOOTHING)
    np.testing.assert_allclose(density.density(gaussians, GRID), expected, atol=1e-4)


def test_density_of_one_ball_has_its_own_formula() -> None:
    """Smoothing a Gaussian gives a wider Gaussian of the same mass."""
    sigma = 0.2
    ball = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), sigma),
        torch.tensor([0.8]),
        torch.zeros(1, 1, 3),
    )
    wide = np.sqrt(sigma**2 + (LOW_PASS**2 + SMOOTHING**2) * GRID.voxel**2)
    expected = 0.8 * (sigma / wide) ** 3 * np.exp(-(centres() ** 2).sum(-1) / (2 * wide**2))
    np.testing.assert_allclose(density.density(ball, GRID), expected, atol=0.01)


def test_what_is_not_finite_is_left_out() -> None:
    gaussians = some_gaussians(3)
    gaussians.means[1, 0] = torch.nan
    np.testing.assert_array_equal(
        density.density(gaussians, GRID), density.density(gaussians[torch.tensor([0, 2])], GRID)
    )


@pytest.mark.parametrize("orthographic", [False, True])
def test_depth_is_where_the_density_rises_through_the_level(orthographic: bool) -> None:
    """A density that falls linearly from a ball's middle: the surface at its level is a sphere."""
    values = (1 - np.linalg.norm(centres(), axis=-1)).astype(np.float32)
    cameras = orbit(3, (-30.0, 0.0, 50.0), size=48, orthographic=orthographic)
    depth = LevelSurface(GRID, values, level=0.4).depth(cameras)
    ball = capture(trimesh.creation.icosphere(subdivisions=5, radius=0.6), cameras)
    assert ball.depth is not None
    exact = ball.depth.numpy()
    # on the outline a pixel more or less decides
    inner = np.array(ndimage.binary_erosion(exact > 0, np.ones((1, 3, 3))), bool)
    outer = ~np.array(ndimage.binary_dilation(exact > 0, np.ones((1, 3, 3))), bool)
    assert inner.mean() > 0.1
    np.testing.assert_allclose(depth[inner], exact[inner], atol=0.01)
    assert np.isinf(depth[outer]).all()


def test_a_camera_within_the_grid() -> None:
    values = np.zeros(GRID.shape, np.float32)
    values[30:, :, :] = 1  # a wall from x = 0.5 on
    cameras = orbit(1, (0.0,), size=8)
    cameras.c2w[0, :3, 3] = torch.tensor([0.9, 0.0, 0.0])
    assert (LevelSurface(GRID, values, 0.5).depth(cameras) == 0).all()
    cameras.c2w[0, :3, 3] = torch.tensor([0.2, 0.0, 0.0])
    assert np.isinf(LevelSurface(GRID, values, 0.5).depth(cameras)).all()  # it looks along -X


@pytest.mark.parametrize("haze", [0.3, 0.9])
def test_the_level_follows_the_masks(haze: float) -> None:
    """Balls of any opacity in a lattice within a sphere: the outline of the surface is that of the sphere."""
    steps = np.linspace(-0.6, 0.6, 31)
    lattice = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lattice = lattice[np.linalg.norm(lattice, axis=1) < 0.6]
    count = len(lattice)
    gaussians = Gaussians(
        torch.from_numpy(lattice).float(),
        torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
        torch.full((count, 3), 0.02),
        torch.full((count,), haze),
        torch.zeros(count, 1, 3),
    )
    views = capture(trimesh.creation.icosphere(subdivisions=4, radius=0.6), orbit(4, (20.0,), size=96), depth=False)
    depth = surface_of(gaussians, views, GRID).depth(views.cameras)
    mask = views.images[..., 3].numpy() > 0.5
    found = np.isfinite(depth)
    assert (found & mask).sum() / (found | mask).sum() > 0.95
