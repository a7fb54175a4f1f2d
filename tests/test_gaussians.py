"""Gaussians: shapes, colours, covariances, moving, merging, pruning; and the harmonics under them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from backend import spherical_harmonics
from backend.gaussians import Gaussians, merge, prune, quats_of, rgb_to_sh, rotation_matrices, sh_to_rgb, transform
from backend.rasterise_reference import rasterise_reference
from tests.splat_scenes import cameras_around, in_float64, random_gaussians


def similarity(scale: float = 1.7, seed: int = 4) -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = scale * torch.from_numpy(Rotation.random(rng=np.random.default_rng(seed)).as_matrix())
    matrix[:3, 3] = torch.tensor([0.3, -1.2, 2.0])
    return matrix


def test_wrong_shapes_are_named() -> None:
    good = random_gaussians(5)
    with pytest.raises(ValueError, match="quats must have shape"):
        replace(good, quats=good.quats[:4])
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        replace(good, sh=torch.zeros(5, 5, 3))


def test_colours_and_coefficients_are_inverse() -> None:
    rgb = torch.rand(20, 3)
    torch.testing.assert_close(sh_to_rgb(rgb_to_sh(rgb)), rgb)
    assert torch.equal(sh_to_rgb(torch.zeros(3)), torch.full((3,), 0.5))
    gaussians = replace(random_gaussians(20), sh=rgb_to_sh(rgb)[:, None])
    torch.testing.assert_close(gaussians.colours, rgb)


def test_rotation_matrices_match_scipy_for_quaternions_of_any_length() -> None:
    quats = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = Rotation.from_quat(quats.numpy(), scalar_first=True).as_matrix()
    torch.testing.assert_close(rotation_matrices(quats), torch.from_numpy(expected))


def test_quaternions_of_rotations_and_back() -> None:
    """Of any leading shape; half turns and the identity too, where formulas by the trace alone break down."""
    turns = Rotation.random(22, rng=np.random.default_rng(1)).as_matrix()
    half = [np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1]), np.diag([-1.0, -1, 1]), np.eye(3)]
    rotations = torch.from_numpy(np.concatenate([turns, np.stack(half)])).float().view(2, 13, 3, 3)
    quats = quats_of(rotations)
    assert quats.shape == (2, 13, 4) and quats.dtype == torch.float32
    torch.testing.assert_close(quats.norm(dim=-1), torch.ones(2, 13))
    torch.testing.assert_close(rotation_matrices(quats.view(-1, 4)), rotations.view(-1, 3, 3), atol=1e-5, rtol=0)
    quarter = quats_of(torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))  # about z
    torch.testing.assert_close(quarter, torch.tensor([0.5**0.5, 0, 0, 0.5**0.5]))


def test_a_covariance_written_out_by_hand() -> None:
    quarter = torch.tensor([[0.5**0.5, 0, 0, 0.5**0.5]])  # 90 degrees about z: local x points along world y
    one = Gaussians(torch.zeros(1, 3), quarter, torch.tensor([[3.0, 2.0, 1.0]]), torch.ones(1), torch.zeros(1, 1, 3))
    torch.testing.assert_close(one.covariances[0], torch.diag(torch.tensor([4.0, 9.0, 1.0])), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bases", [1, 4, 9, 16])
def test_moving_gaussians_and_cameras_together_leaves_the_picture_unchanged(bases: int) -> None:
    gaussians, cameras = in_float64(random_gaussians(150, bases=bases)), cameras_around(2, 24, 20)
    matrix = similarity()
    scale = 1.7
    # A camera moves with the similarity; its axes stay unit vectors.
    c2w = matrix @ cameras.c2w.double()
    c2w[:, :3, :3] /= scale
    moved = rasterise_reference(transform(gaussians, matrix), replace(cameras, c2w=c2w))
    expected = rasterise_reference(gaussians, cameras)
    expected = torch.cat([expected[..., :3], scale * expected[..., 3:4], expected[..., 4:]], -1)
    torch.testing.assert_close(moved, expected, atol=2e-5, rtol=1e-5)


def test_moves_compose() -> None:
    gaussians = in_float64(random_gaussians(30, bases=16))
    first, second = similarity(1.7, 1), similarity(0.4, 2)
    step, once = transform(transform(gaussians, first), second), transform(gaussians, second @ first)
    for name in ("means", "scales", "opacities", "sh", "covariances"):
        torch.testing.assert_close(getattr(step, name), getattr(once, name), atol=1e-9, rtol=1e-7)
    back = transform(transform(gaussians, first), torch.linalg.inv(first))
    torch.testing.assert_close(back.sh, gaussians.sh, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(back.means, gaussians.means, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("diagonal", [(-1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (float("nan"), 1.0, 1.0)])
def test_what_is_no_similarity_is_refused(diagonal: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="transform: expected a rotation"):
        transform(random_gaussians(3), torch.diag(torch.tensor([*diagonal, 1.0])))


def test_merging_keeps_order_and_fills_harmonics_with_zeros() -> None:
    a, b = random_gaussians(5, bases=1), random_gaussians(7, bases=9, seed=1)
    both = merge([a, b])
    assert len(both) == 12 and both.sh_degree == 2
    assert torch.equal(both[5:].sh, b.sh) and torch.equal(both[:5].sh[:, :1], a.sh) and not both[:5].sh[:, 1:].any()
    assert torch.equal(both.means, torch.cat([a.means, b.means]))
    with pytest.raises(ValueError, match="found none"):
        merge([])


def test_pruning_drops_the_faint_and_the_broken() -> None:
    gaussians = random_gaussians(10)
    opacities = torch.tensor([0.1, 0.5, 0.004, 0.9, 0.005, 0.2, 0.3, 0.4, float("nan"), 0.6])
    means = gaussians.means.clone()
    means[3, 1] = float("inf")
    kept = prune(replace(gaussians, opacities=opacities, means=means), min_opacity=0.005)
    assert torch.equal(kept.opacities, opacities[[0, 1, 4, 5, 6, 7, 9]])


def test_harmonics_are_orthonormal() -> None:
    """Over the sphere, by a quadrature exact for the products of degree 6: Gauss-Legendre in z, even in azimuth."""
    z, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
    radius = torch.sqrt(1 - z * z)[:, None]
    directions = torch.stack([radius * torch.cos(azimuth), radius * torch.sin(azimuth), z[:, None].expand(8, 16)], -1)
    values = spherical_harmonics.basis(directions, 3)
    gram = torch.einsum("zak,zal,z->kl", values, values, weights) * 2 * torch.pi / 16
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_kernels_harmonics_and_their_gradient_match_torch(degree: int) -> None:
    bases = (degree + 1) ** 2
    generator = torch.Generator().manual_seed(degree)
    direction = torch.nn.functional.normalize(torch.randn(3, dtype=torch.float64, generator=generator), dim=0)
    weights = torch.randn(bases, dtype=torch.float64, generator=generator)
    direction.requires_grad_()
    values = spherical_harmonics.basis(direction, degree)
    (values @ weights + 0 * direction.sum()).backward()  # degree 0 does not depend on the direction
    out = np.zeros(16)
    x, y, z = direction.tolist()
    spherical_harmonics.evaluate(bases, x, y, z, out)
    np.testing.assert_allclose(out[:bases], values.detach().numpy(), atol=1e-12)
    slope = spherical_harmonics.gradient(bases, weights.numpy(), x, y, z)
    assert direction.grad is not None
    np.testing.assert_allclose(slope, direction.grad, atol=1e-12)
