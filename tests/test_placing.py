"""Standing a result on the origin: strays move nothing, and splats and mesh go together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.gaussians import Gaussians
from backend.placing import bounding_box, stand
from backend.texturing import TexturedMesh


def cuboid(low: tuple[float, float, float], high: tuple[float, float, float], count: int = 2000) -> Gaussians:
    """Small opaque Gaussians all over a box, its corners among them."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.cartesian_prod(*(torch.tensor([0.0, 1.0]) for _ in range(3)))
    share = torch.cat([corners, torch.rand(count - 8, 3, generator=generator)])
    means = torch.tensor(low) + share * (torch.tensor(high) - torch.tensor(low))
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1)
    return Gaussians(means, quats, torch.full((count, 3), 1e-4), torch.ones(count), torch.zeros(count, 4, 3))


def with_strays(gaussians: Gaussians, *, opacity: float, distance: float, count: int) -> Gaussians:
    means = gaussians.means.clone()
    means[:count] = torch.tensor([[distance, -distance, -distance]])
    opacities = gaussians.opacities.clone()
    opacities[:count] = opacity
    return Gaussians(means, gaussians.quats, gaussians.scales, opacities, gaussians.sh)


def test_the_longest_side_has_the_size_and_the_lowest_point_is_on_the_floor():
    placed = stand(cuboid((1, 2, 3), (2, 6, 5)), None, 2.0)
    low, high = bounding_box(placed.gaussians)
    assert high - low == pytest.approx(torch.tensor([0.5, 2.0, 1.0]), abs=0.02)
    assert low == pytest.approx(torch.tensor([-0.25, -1.0, 0.0]), abs=0.02)
    assert placed.scale == pytest.approx(0.5, rel=0.01) and placed.mesh is None
    assert placed.report["offset"] == pytest.approx([-0.75, -2.0, -1.5], abs=0.02)
    assert placed.gaussians.scales == pytest.approx(torch.full((2000, 3), 0.5e-4), rel=0.01)


@pytest.mark.parametrize(("opacity", "count"), [(1.0, 2), (0.02, 100)])
def test_strays_do_not_count(opacity, count):
    strays = with_strays(cuboid((-1, -1, 0), (1, 1, 1)), opacity=opacity, distance=50.0, count=count)
    low, high = bounding_box(strays)
    assert low == pytest.approx(torch.tensor([-1.0, -1.0, 0.0]), abs=0.03)
    assert high == pytest.approx(torch.tensor([1.0, 1.0, 1.0]), abs=0.03)
    many = with_strays(cuboid((-1, -1, 0), (1, 1, 1)), opacity=1.0, distance=50.0, count=100)
    assert float(bounding_box(many)[1][0]) > 40, "what holds five percent of all is a part of the object"


def test_the_reach_of_a_gaussian_counts():
    one = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.tensor([[1.0, 2, 3]]),
        torch.ones(1),
        torch.zeros(1, 1, 3),
    )
    low, high = bounding_box(one)
    assert low.tolist() == [-1, -2, -3] and high.tolist() == [1, 2, 3]


def test_the_mesh_goes_where_the_splats_go():
    gaussians = cuboid((1, 2, 3), (2, 6, 5))
    mesh = TexturedMesh(
        gaussians.means.numpy().copy(),
        np.zeros((1, 3), np.int32),
        np.zeros((2000, 2), np.float32),
        np.zeros((2, 2, 4), np.uint8),
    )
    placed = stand(gaussians, mesh, 7.0)
    assert placed.mesh is not None and placed.mesh.vertices.dtype == np.float32
    assert placed.mesh.vertices == pytest.approx(placed.gaussians.means.numpy(), abs=1e-4)


def test_a_point_and_what_is_not_finite():
    point = Gaussians(
        torch.ones(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1, 3), torch.ones(1), torch.zeros(1, 1, 3)
    )
    placed = stand(point, None, 2.0)
    assert placed.scale == 1.0 and placed.gaussians.means.tolist() == [[0, 0, 0]]
    broken = cuboid((0, 0, 0), (1, 1, 1))
    broken.means[5] = float("nan")
    assert float(bounding_box(broken)[1].max()) == pytest.approx(1.0, abs=0.02)
