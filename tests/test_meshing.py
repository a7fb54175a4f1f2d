"""From depth, masks and Gaussians to a closed mesh: shapes whose volume and surface are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import KDTree

from backend import mesh_repair, volume
from backend.cameras import Views
from backend.gaussians import Gaussians
from backend.meshing import LONGEST_SIDE, Mesh, _choose_grid, _one_solid, extract_mesh, mesh_report
from tests.shapes import capture, gaussians_on, orbit

ALL_ROUND = (-60.0, -20.0, 20.0, 60.0)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def f_score(mesh: Mesh, truth: trimesh.Trimesh, distance: float) -> float:
    made = np.asarray(trimesh.sample.sample_surface(as_trimesh(mesh), 40_000, seed=0)[0])
    want = np.asarray(trimesh.sample.sample_surface(truth, 40_000, seed=0)[0])
    inner = np.linalg.norm(want, ord=np.inf, axis=1) < 0.499  # of the overlapping boxes: in the first one
    inner |= np.linalg.norm(want - 0.4, ord=np.inf, axis=1) < 0.499  # in the second
    want = want[~inner] if truth is SHAPES["overlapping boxes"] else want
    precision = (KDTree(want).query(made)[0] < distance).mean()
    recall = (KDTree(made).query(want)[0] < distance).mean()
    return float(2 * precision * recall / (precision + recall))


def no_gaussians() -> Gaussians:
    return Gaussians(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 1, 3))


def scaled(views: Views, factor: float) -> Views:
    c2w = views.cameras.c2w.clone()
    c2w[:, :3, 3] *= factor
    depth = None if views.depth is None else views.depth * factor
    return replace(views, cameras=replace(views.cameras, c2w=c2w), depth=depth)


def together(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]
    return trimesh.Trimesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces), process=False)


SHAPES = {
    "sphere": trimesh.creation.icosphere(subdivisions=4),
    "torus": trimesh.creation.torus(0.7, 0.3, major_sections=64, minor_sections=32),
    "box": trimesh.creation.box((1.2, 0.8, 1.0)),
    "overlapping boxes": together(
        trimesh.creation.box((1, 1, 1)),
        trimesh.creation.box(bounds=[[-0.1] * 3, [0.9] * 3]),
    ),
}
VOLUMES = {"sphere": 4 / 3 * np.pi, "torus": 2 * np.pi**2 * 0.7 * 0.09, "box": 0.96, "overlapping boxes": 2 - 0.6**3}
GENUS = {"sphere": 0, "torus": 1, "box": 0, "overlapping boxes": 0}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_from_exact_depth(name: str) -> None:
    """Closed, of the right volume, topology and place, at the face count asked for."""
    views = capture(SHAPES[name], orbit(20, ALL_ROUND))
    mesh = extract_mesh(gaussians_on(SHAPES[name]), views, faces=4000)
    report = mesh_report(mesh)
    assert report["watertight"] and report["holes"] == 0 and report["components"] == 1
    assert 3000 < report["faces"] <= 4100
    assert report["vertices"] - report["faces"] / 2 == 2 - 2 * GENUS[name]  # Euler: V - E + F, with E = 3F/2
    assert as_trimesh(mesh).volume == pytest.approx(VOLUMES[name], rel=0.03)  # positive: faces turn outwards
    assert f_score(mesh, SHAPES[name], 0.03) > 0.97


def test_area_of_a_sphere() -> None:
    mesh = extract_mesh(gaussians_on(SHAPES["sphere"]), capture(SHAPES["sphere"], orbit(20, ALL_ROUND)))
    assert as_trimesh(mesh).area == pytest.approx(4 * np.pi, rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 1, atol=0.025)


def test_depth_of_the_gaussians_when_none_was_captured() -> None:
    shape = SHAPES["torus"]
    mesh = extract_mesh(gaussians_on(shape), capture(shape, orbit(12, (-40, 0, 40)), depth=False))
    assert mesh_report(mesh)["watertight"]
    assert f_score(mesh, shape, 0.05) > 0.95


def test_orthographic_cameras() -> None:
    views = capture(SHAPES["box"], orbit(12, ALL_ROUND, orthographic=True))
    mesh = extract_mesh(gaussians_on(SHAPES["box"]), views)
    assert mesh_report(mesh)["watertight"]
    assert as_trimesh(mesh).volume == pytest.approx(VOLUMES["box"], rel=0.04)


@pytest.mark.parametrize("factor", [0.01, 1000.0])
def test_any_scale(factor: float) -> None:
    views = scaled(capture(SHAPES["box"], orbit(12, ALL_ROUND)), factor)
    gaussians = gaussians_on(SHAPES["box"])
    gaussians = replace(gaussians, means=gaussians.means * factor, scales=gaussians.scales * factor)
    mesh = extract_mesh(gaussians, views)
    assert mesh_report(mesh)["watertight"]
    assert as_trimesh(mesh).volume / factor**3 == pytest.approx(VOLUMES["box"], rel=0.04)


def test_what_no_camera_saw_is_closed_by_what_they_saw() -> None:
    """A flat slab seen only from above, with Gaussians only on its upper side: the bottom is where the rim ends."""
    slab = trimesh.creation.cylinder(0.9, 0.2, sections=96)
    views = capture(slab, orbit(12, (20, 50)))
    gaussians = gaussians_on(slab, 40_000)
    gaussians = gaussians[gaussians.means[:, 2] > -0.09]
    mesh = extract_mesh(gaussians, views)
    assert mesh_report(mesh)["watertight"] and mesh_report(mesh)["components"] == 1
    assert as_trimesh(mesh).volume == pytest.approx(np.pi * 0.81 * 0.2, rel=0.12)
    assert mesh.vertices[:, 2].min() == pytest.approx(-0.1, abs=0.03)


def test_floaters_and_inner_shells_go() -> None:
    """A hollow ball with a core, beside a crumb: one solid ball is left."""
    at = np.stack(np.meshgrid(*[np.linspace(-1.5, 1.5, 61)] * 3, indexing="ij"), axis=-1)
    radius = np.linalg.norm(at, axis=-1)
    shell = np.abs(radius - 0.8) - 0.2
    core = radius - 0.2
    crumb = np.linalg.norm(at - 1.35, axis=-1) - 0.08
    field = np.minimum(np.minimum(shell, core), crumb) / 0.05
    solid = _one_solid(field) < 0
    clear = np.abs(radius - 1) > 1e-6
    np.testing.assert_array_equal(solid[clear], radius[clear] < 1)


def test_two_objects_both_stay() -> None:
    ball = trimesh.creation.icosphere(radius=0.4)
    left, right = ball.copy().apply_translation([-0.6, 0, 0]), ball.copy().apply_translation([0.6, 0, 0])
    two = together(left, right)
    mesh = extract_mesh(gaussians_on(two), capture(two, orbit(16, ALL_ROUND)))
    assert mesh_report(mesh)["components"] == 2 and mesh_report(mesh)["watertight"]


def test_scene_without_masks_is_open_where_nothing_was_seen() -> None:
    """A ground seen at a slant, opaque to the picture's border: only the ground, no wall where the view ends."""
    ground = trimesh.creation.box((40, 40, 0.2))
    bump = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    scene = together(ground, bump)
    views = capture(scene, orbit(12, (50, 60)), background=True)
    assert not views.has_alpha
    mesh = extract_mesh(gaussians_on(bump), views)
    assert len(mesh.faces) > 1000
    distance = KDTree(np.asarray(trimesh.sample.sample_surface(scene, 400_000, seed=0)[0])).query(mesh.vertices)[0]
    assert np.quantile(distance, 0.98) < 0.2
    assert not mesh_report(mesh)["watertight"]
    normals = as_trimesh(mesh).face_normals[as_trimesh(mesh).triangles_center[:, 2] > 0]
    assert (normals[:, 2] > -0.3).mean() > 0.95  # turned to the cameras


def test_nothing_to_mesh_is_said_clearly() -> None:
    views = capture(SHAPES["box"], orbit(4, (20,)))
    with pytest.raises(ValueError, match="no Gaussians"):
        extract_mesh(no_gaussians(), views)
    away = gaussians_on(SHAPES["box"], 100)
    away = replace(away, means=away.means + 50)
    with pytest.raises(ValueError, match="do not see a common object"):
        extract_mesh(away, replace(views, depth=None))
    blank = replace(views, images=torch.zeros_like(views.images), depth=None)
    with pytest.raises(ValueError, match="do not see a common object"):
        extract_mesh(gaussians_on(SHAPES["box"], 100), blank)


def test_report_counts_holes_and_parts() -> None:
    box = trimesh.creation.box()
    two = np.concatenate([box.faces[2:], box.faces + 8])  # the first with a side missing
    report = mesh_report(Mesh(np.tile(box.vertices, (2, 1)).astype(np.float32), two.astype(np.int32)))
    assert report == {"faces": 22, "vertices": 16, "components": 2, "holes": 1, "watertight": False}


@pytest.mark.parametrize("seed", range(5))
def test_closing_a_torn_mesh(seed: int) -> None:
    """Faces lost, doubled and turned at random: afterwards every edge has two faces that run along it both ways."""
    ball = trimesh.creation.icosphere(subdivisions=3)
    rng = np.random.default_rng(seed)
    faces = ball.faces[rng.random(len(ball.faces)) > 0.1]
    turned = rng.random(len(faces)) < 0.03
    faces[turned] = faces[turned][:, ::-1]
    faces = np.concatenate([faces, faces[:9]])
    vertices, closed = mesh_repair.close(np.asarray(ball.vertices), faces)
    assert mesh_report(Mesh(vertices.astype(np.float32), closed.astype(np.int32)))["watertight"]
    assert trimesh.Trimesh(vertices, closed).volume == pytest.approx(ball.volume, rel=0.1)


def test_silhouette_distance_is_right_to_a_fraction_of_a_pixel() -> None:
    """A straight edge at column 10.3: the distance at pixel centres is their way to it."""
    cover = np.clip(np.arange(32) + 1 - 10.3, 0, 1)
    cameras = orbit(1, (0,), size=32)
    signed = volume.silhouettes(np.tile(cover, (1, 32, 1)), cameras).distance[0]
    np.testing.assert_allclose(signed[16], np.arange(32) + 0.5 - 10.3, atol=0.51)
    assert signed[16, 10] == pytest.approx(0.2, abs=0.01)


def test_visual_hull_of_one_view_is_its_cone() -> None:
    cameras = orbit(1, (0,), size=64)
    views = capture(trimesh.creation.icosphere(subdivisions=4, radius=0.8), cameras)
    grid = volume.Grid(np.array([-1.0, -1, -1]), 0.1, (21, 21, 21))
    hull = volume.carve(grid, volume.silhouettes(views.images[..., 3].numpy(), cameras))
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 21)] * 3, indexing="ij"), axis=-1) - [3, 0, 0]
    angle = np.arccos(-at[..., 0] / np.linalg.norm(at, axis=-1))
    outline = np.arcsin(0.8 / 3)
    clear = (np.abs(angle - outline) > 0.012) & np.isfinite(hull)
    assert clear.mean() > 0.8
    np.testing.assert_array_equal((hull > 0)[clear], (angle < outline)[clear])


def test_voxels_stay_within_the_limit() -> None:
    grid = _choose_grid(np.array([[-1.0, -1, -1], [1, 1, 1]]), orbit(2, (0,), size=4096))
    assert max(grid.shape) == LONGEST_SIDE + 1
