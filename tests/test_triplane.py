"""The field on three planes: its values, grid, surface, splats and pictures against slow twins and formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend import ray_marching, triplane
from backend.cameras import orbit, rays
from backend.gaussians import rotation_matrices
from backend.hull import NothingSeen
from backend.mesh_repair import boundary_loops
from backend.models import lrm, triposr
from backend.ray_marching import march_importance, march_uniform
from backend.rendering import render
from backend.triplane import Reading, Triplane, build_decoder
from tests.ellipsoids import CONTRAST, MIDDLE, SEMI_AXES, ellipsoid

TRIPOSR = triposr.TripoSr(
    triposr.TripoSrConfig(channels=4, heads=1, head_width=4, layers=0, norm_groups=1, plane_side=1)
).reading
READINGS = {"openlrm": lrm.READING, "triposr": TRIPOSR}


def random_field(reading: Reading, *, channels: int = 5, height: int = 6, seed: int = 0) -> Triplane:
    torch.manual_seed(seed)
    planes = 4 * torch.randn(3, channels, height, height)
    return Triplane(planes, build_decoder(3 * channels, 16, 3, "relu"), reading, torch.eye(4, dtype=torch.float64))


def constant_field(reading: Reading, density: float) -> Triplane:
    """The same density and mid grey everywhere."""
    linear = nn.Linear(3, 4)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([reading.raw(density), 0.0, 0.0, 0.0]))
    return Triplane(torch.zeros(3, 1, 4, 4), nn.Sequential(linear), reading, torch.eye(4, dtype=torch.float64))


def points_around(radius: float, count: int = 60) -> Tensor:
    """Some of them outside the cube."""
    return (torch.rand(count, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1) * 1.2 * radius


# ---- reading


def texel(plane: Tensor, row: int, column: int) -> Tensor:
    inside = 0 <= row < plane.shape[1] and 0 <= column < plane.shape[2]
    return plane[:, row, column] if inside else torch.zeros_like(plane[:, 0, 0])


def bilinear(plane: Tensor, x: float, y: float) -> Tensor:
    """By hand: x along the columns and y along the rows, both -1..1 from edge to edge of the outer texels."""
    column, row = (x + 1) * plane.shape[2] / 2 - 0.5, (y + 1) * plane.shape[1] / 2 - 0.5
    left, top = math.floor(column), math.floor(row)
    total = torch.zeros_like(plane[:, 0, 0])
    for j, share_j in ((top, top + 1 - row), (top + 1, row - top)):
        for i, share_i in ((left, left + 1 - column), (left + 1, column - left)):
            total = total + share_j * share_i * texel(plane, j, i)
    return total


@pytest.mark.parametrize("family", READINGS)
def test_features_are_bilinear_on_the_planes_of_the_family(family: str) -> None:
    reading = READINGS[family]
    field, points = random_field(reading), points_around(reading.radius)
    # Written out, and not from reading.axes: (column, row) of each plane.
    third = (2, 1) if family == "openlrm" else (1, 2)
    expected = []
    for point in (points / reading.radius).tolist():
        parts = [
            bilinear(plane, point[column], point[row])
            for plane, (column, row) in zip(field.planes, ((0, 1), (0, 2), third), strict=True)
        ]
        expected.append(torch.cat(parts))
    torch.testing.assert_close(field.features(points), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", READINGS)
def test_the_grid_agrees_with_points(family: str) -> None:
    field = random_field(READINGS[family])
    line = torch.linspace(-1, 1, 9) * field.reading.radius
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
    density, _ = field.query(points)
    assert density.std() > 0.02
    torch.testing.assert_close(field.density_grid(9), density.detach(), atol=1e-5, rtol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    field, points = random_field(lrm.READING), points_around(1.0).reshape(3, 20, 3)
    whole, grid = field.raw(points), field.raw_grid(7)
    rays_o, rays_d = some_rays()
    picture = march_importance(field, rays_o, rays_d, samples=12)
    even = march_uniform(field, rays_o, rays_d, samples=12)
    monkeypatch.setattr(triplane, "CHUNK", 17)
    monkeypatch.setattr(ray_marching, "CHUNK", 17)
    torch.testing.assert_close(field.raw(points), whole)
    torch.testing.assert_close(field.raw_grid(7), grid)
    torch.testing.assert_close(march_importance(field, rays_o, rays_d, samples=12).rgb, picture.rgb)
    torch.testing.assert_close(march_importance(field, rays_o, rays_d, samples=12).depth, picture.depth)
    torch.testing.assert_close(march_uniform(field, rays_o, rays_d, samples=12).rgb, even.rgb)


@pytest.mark.parametrize("family", READINGS)
def test_raw_is_the_inverse_of_density(family: str) -> None:
    reading = READINGS[family]
    for density in (1e-3, 0.5, 3.0, 25.0, 80.0):
        back = reading.density(torch.tensor(reading.raw(density), dtype=torch.float64))
        assert float(back) == pytest.approx(density, rel=1e-9)


def test_gradients_reach_the_planes() -> None:
    field = random_field(lrm.READING)
    planes = field.planes.requires_grad_()
    rays_o, rays_d = some_rays()
    march_importance(replace(field, planes=planes), rays_o, rays_d, samples=12).rgb.sum().backward()
    assert planes.grad is not None and (planes.grad.abs().sum((1, 2, 3)) > 0).all()


# ---- surface


def volume_of(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Positive for faces that are counter-clockwise seen from outside."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return float((np.cross(a, b) * c).sum() / 6)


def similarity() -> Tensor:
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = 2.5 * turn * torch.linalg.det(turn)
    matrix[:3, 3] = torch.tensor([3.0, -1.0, 0.5])
    return matrix


@pytest.mark.parametrize("family", READINGS)
def test_the_mesh_is_the_ellipsoid(family: str) -> None:
    mesh, colours = ellipsoid(READINGS[family]).mesh(48)
    places = (mesh.vertices - np.array(MIDDLE)) / np.array(SEMI_AXES)
    assert np.abs(np.linalg.norm(places, axis=1) - 1).max() < 0.15
    exact = 4 / 3 * math.pi * math.prod(SEMI_AXES)
    assert volume_of(mesh.vertices.astype(np.float64), mesh.faces) == pytest.approx(exact, rel=0.25)
    assert len(boundary_loops(mesh.faces)) == 0
    expected = 1 / (1 + np.exp(-CONTRAST * mesh.vertices))
    assert np.abs(colours - expected).max() < 0.03, "red grows with x, green with y, blue with z"


def test_the_mesh_stands_in_the_world() -> None:
    field = ellipsoid(lrm.READING)
    here, _ = field.mesh(24)
    there, _ = replace(field, world=similarity()).mesh(24)
    matrix = similarity().numpy()
    np.testing.assert_allclose(there.vertices, here.vertices @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-5)
    np.testing.assert_array_equal(there.faces, here.faces)


def test_a_level_can_be_chosen() -> None:
    field = constant_field(lrm.READING, 2.0)
    with pytest.raises(NothingSeen, match="No surface at 3"):
        field.mesh(8, level=3.0)
    wide = volume_of(*_vertices_and_faces(ellipsoid(lrm.READING), 1.0))
    narrow = volume_of(*_vertices_and_faces(ellipsoid(lrm.READING), 300.0))
    assert narrow < 0.8 * wide


def _vertices_and_faces(field: Triplane, level: float) -> tuple[np.ndarray, np.ndarray]:
    mesh, _ = field.mesh(32, level=level)
    return mesh.vertices, mesh.faces


def test_a_field_without_a_surface_is_refused_and_a_faint_one_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NothingSeen, match="no surface"):
        constant_field(lrm.READING, 2.0).splats(8)
    with pytest.raises(NothingSeen, match="nan"):
        replace(ellipsoid(lrm.READING), planes=torch.full((3, 4, 8, 8), torch.nan)).splats(8)
    field = random_field(lrm.READING)
    assert 0 < field.density_grid(9).max() < 3
    assert len(field.splats(9)) > 0
    assert "never across 3" in caplog.text


# ---- splats


def test_splats_lie_flat_on_the_surface() -> None:
    splats = ellipsoid(lrm.READING).splats(64)
    places = (splats.means - torch.tensor(MIDDLE)) / torch.tensor(SEMI_AXES)
    assert (places.norm(dim=1) - 1).abs().max() < 0.06
    normals = F.normalize(places / torch.tensor(SEMI_AXES), dim=1)
    across = rotation_matrices(splats.quats)[:, :, 2]
    assert (across * normals).sum(1).min() > 0.8, "local z looks outwards"
    torch.testing.assert_close(splats.quats.norm(dim=1), torch.ones(len(splats)))
    assert (splats.scales[:, 2] < splats.scales[:, 0]).all() and (splats.scales > 0).all()
    torch.testing.assert_close(splats.colours, torch.sigmoid(CONTRAST * splats.means), atol=0.03, rtol=0)


def test_splats_cover_the_surface_once() -> None:
    """The squares of their sides add up to the surface's area, whatever the grid."""
    p = 1.6075  # Thomsen's formula
    a, b, c = (axis**p for axis in SEMI_AXES)
    area = 4 * math.pi * ((a * b + a * c + b * c) / 3) ** (1 / p)
    for resolution in (32, 64):
        sides = ellipsoid(lrm.READING).splats(resolution).scales[:, 0] / triplane.SPLAT_SPREAD
        assert float((sides**2).sum()) == pytest.approx(area, rel=0.05)


def test_splats_point_backwards_too() -> None:
    """The rotation to -z has no shortest way; all others do."""
    normals = F.normalize(torch.tensor([[0.0, 0, -1], [0, 0, 1], [1e-4, 0, -1], [0.3, -0.5, 0.2], [0, 1, 0]]), dim=1)
    across = rotation_matrices(triplane._quats_along(normals))[:, :, 2]
    torch.testing.assert_close(across, normals, atol=1e-3, rtol=0)


def test_splats_look_like_the_volume() -> None:
    field = ellipsoid(lrm.READING)
    cameras = orbit(2, target=torch.tensor(MIDDLE), radius=2.5, elevation=0.4, fov=math.radians(35), size=96)
    rays_o, rays_d = rays(cameras)
    volume = march_importance(field, rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), samples=64, background=0.0)
    alpha, rgb = volume.alpha.reshape(2, 96, 96), volume.rgb.reshape(2, 96, 96, 3).detach()
    picture = render(field.splats(64), cameras)
    solid, splatted = alpha > 0.5, picture.alpha > 0.5
    assert (solid & splatted).sum() / (solid | splatted).sum() > 0.87
    inner = F.max_pool2d((~solid).float()[:, None], 5, 1, 2)[:, 0] == 0
    assert picture.alpha[inner].min() > 0.97
    assert (picture.rgb - rgb)[inner].abs().mean() < 0.03
    assert (picture.rgb.flip(2) - rgb)[inner].abs().mean() > 0.06, "a mirrored picture must not pass"


def test_splats_move_with_the_world() -> None:
    field = ellipsoid(lrm.READING)
    here, there = field.splats(24), replace(field, world=similarity()).splats(24)
    matrix = similarity().float()
    torch.testing.assert_close(there.means, here.means @ matrix[:3, :3].T + matrix[:3, 3], atol=1e-5, rtol=0)
    torch.testing.assert_close(there.scales, 2.5 * here.scales, atol=1e-6, rtol=1e-3)
    turn = matrix[:3, :3] / 2.5
    moved = turn @ rotation_matrices(here.quats)[:, :, 2:]
    assert ((moved - rotation_matrices(there.quats)[:, :, 2:]).norm(dim=1) < 0.02).float().mean() > 0.99


# ---- pictures


def some_rays(count: int = 40) -> tuple[Tensor, Tensor]:
    """Towards the cube from all around; some miss it."""
    generator = torch.Generator().manual_seed(4)
    rays_o = 3 * F.normalize(torch.randn(count, 3, generator=generator), dim=1)
    aims = 1.5 * torch.randn(count, 3, generator=generator)
    return rays_o, F.normalize(aims - rays_o, dim=1)


def chords(rays_o: Tensor, rays_d: Tensor, radius: float) -> Tensor:
    """[N] length of each ray within the cube, by stepping along it."""
    steps = torch.arange(0, 7, 1e-3)
    points = rays_o[:, None] + steps[:, None] * rays_d[:, None]
    return (points.abs() <= radius).all(-1).sum(1) * 1e-3


def test_importance_marching_absorbs_by_length() -> None:
    rays_o, rays_d = some_rays()
    lengths = chords(rays_o, rays_d, 1.0)
    assert (lengths == 0).any() and (lengths > 1).any()
    result = march_importance(constant_field(lrm.READING, 0.7), rays_o, rays_d, samples=256, background=0.25)
    alpha = 1 - torch.exp(-0.7 * lengths)
    torch.testing.assert_close(result.alpha, alpha, atol=0.02, rtol=0)
    torch.testing.assert_close(result.rgb, (0.5 * alpha + 0.25 * (1 - alpha))[:, None].expand(-1, 3), atol=0.01, rtol=0)


def test_uniform_marching_absorbs_alike_for_all_lengths() -> None:
    rays_o, rays_d = some_rays()
    lengths = chords(rays_o, rays_d, 0.87)
    result = march_uniform(constant_field(TRIPOSR, 0.7), rays_o, rays_d, samples=16)
    inside, outside = lengths > 0.02, lengths == 0
    torch.testing.assert_close(result.alpha[inside], torch.full((int(inside.sum()),), 1 - math.exp(-0.7)))
    assert (result.alpha[outside] == 0).all() and (result.rgb[outside] == 1).all()


@pytest.mark.parametrize("family", READINGS)
def test_depth_is_where_a_solid_begins(family: str) -> None:
    field = ellipsoid(READINGS[family])
    axes, middle = torch.tensor(SEMI_AXES), torch.tensor(MIDDLE)
    rays_o = torch.tensor([[3.0, 0, 0], [0, -3, 0], [0, 0, 3], [-2, -2, 1]])
    rays_d = F.normalize(middle - rays_o, dim=1)
    through = ((middle - rays_o) / axes).norm(dim=1)  # the ellipsoid's surface is one unit before its middle
    expected = (middle - rays_o).norm(dim=1) * (1 - 1 / through)
    result = (march_importance if family == "openlrm" else march_uniform)(field, rays_o, rays_d, samples=96)
    assert (result.alpha > 0.99).all()
    torch.testing.assert_close(result.depth, expected, atol=0.05, rtol=0)


def test_nothing_is_seen_by_rays_that_all_miss() -> None:
    rays_o, rays_d = torch.tensor([[5.0, 5, 5]]), torch.tensor([[0.0, 0, 1]])
    for march, reading in ((march_importance, lrm.READING), (march_uniform, TRIPOSR)):
        result = march(constant_field(reading, 50.0), rays_o, rays_d, samples=8, background=0.5)
        assert float(result.alpha.detach()) == 0 and torch.equal(result.rgb, torch.full((1, 3), 0.5))


def test_rays_along_an_axis_are_rays_like_others() -> None:
    rays_o, rays_d = torch.tensor([[0.2, 0.3, -4.0], [0.2, 0.3, 0]]), torch.tensor([[0.0, 0, 1], [0, 0, 1]])
    result = march_importance(constant_field(lrm.READING, 0.5), rays_o, rays_d, samples=200)
    # As published, a camera inside the cube sees what is behind it too.
    torch.testing.assert_close(result.alpha, torch.full((2,), 1 - math.exp(-1.0)), atol=0.01, rtol=0)
    ahead = march_uniform(constant_field(TRIPOSR, 0.5), rays_o, rays_d, samples=8)
    torch.testing.assert_close(ahead.alpha, torch.full((2,), 1 - math.exp(-0.5)))


def test_fine_samples_go_where_the_weight_is() -> None:
    depths = torch.arange(10.0)[None]
    weights = torch.zeros(1, 9)
    weights[0, 4] = 1.0  # between depths 4 and 5
    drawn = ray_marching._draw(depths, weights, torch.linspace(0.01, 0.99, 99)[None])
    assert (drawn.diff(dim=1) > 0).all(), "larger quantiles lie deeper"
    assert ((drawn > 3) & (drawn < 6)).float().mean() > 0.85
    even = ray_marching._draw(depths, torch.zeros(1, 9), torch.tensor([[0.0, 0.25, 0.5, 0.75]]))
    # Knots 0.5 to 7.5, the last one (8.5) is never reached; in between all places are alike: 0.5 + 7 u.
    torch.testing.assert_close(even, torch.tensor([[0.5, 2.25, 4.0, 5.75]]), atol=1e-4, rtol=0)


def test_random_numbers_can_be_given() -> None:
    field, (rays_o, rays_d) = random_field(lrm.READING), some_rays()
    half = torch.full((len(rays_o), 6), 0.5)
    u = ((torch.arange(6) + 0.5) / 6).expand(len(rays_o), 6)
    default = march_importance(field, rays_o, rays_d, samples=12)
    given = march_importance(field, rays_o, rays_d, samples=12, jitter=half, u=u)
    torch.testing.assert_close(given.rgb, default.rgb)
    other = march_importance(field, rays_o, rays_d, samples=12, jitter=0 * half, u=u)
    assert (other.rgb - default.rgb).abs().max() > 1e-4
