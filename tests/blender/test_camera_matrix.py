"""K and c2w against Blender's own projection, for cameras of all sorts."""

from __future__ import annotations

import random
from typing import Any

import bpy
import numpy as np
import pytest
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Euler, Matrix, Vector

from blender_addon import axes, camera_matrix
from blender_addon.camera_matrix import Frame, Lens
from blender_addon.views import CaptureError


def project(c2w: np.ndarray, K: np.ndarray, point: np.ndarray, *, orthographic: bool) -> np.ndarray:
    local = (np.linalg.inv(c2w) @ np.append(point, 1))[:3]
    return (K @ np.append(local[:2] / (1 if orthographic else local[2]), 1))[:2]


def random_lens(dice: random.Random, kind: str, fit: str) -> Lens:
    return Lens(
        type=kind,
        lens=dice.uniform(10, 200),
        ortho_scale=dice.uniform(0.5, 20),
        sensor_fit=fit,
        sensor_width=dice.uniform(8, 50),
        sensor_height=dice.uniform(8, 50),
        shift_x=dice.uniform(-0.5, 0.5),
        shift_y=dice.uniform(-0.5, 0.5),
    )


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
@pytest.mark.parametrize("fit", ["AUTO", "HORIZONTAL", "VERTICAL"])
@pytest.mark.parametrize("seed", range(6))
def test_projection_agrees_with_blender(factory: Any, kind: str, fit: str, seed: int) -> None:
    """Portrait and landscape, odd pixel aspects, shifts: within a hundredth of a pixel."""
    dice = random.Random(f"{kind} {fit} {seed}")
    frame = Frame(dice.randint(50, 900), dice.randint(50, 900), dice.uniform(1, 2), dice.uniform(1, 2))
    render = factory.scene.render
    render.resolution_x, render.resolution_y, render.resolution_percentage = frame.width, frame.height, 100
    render.pixel_aspect_x, render.pixel_aspect_y = frame.pixel_aspect_x, frame.pixel_aspect_y
    camera = factory.scene.camera
    lens = random_lens(dice, kind, fit)
    camera_matrix.write_lens(lens, camera.data)
    camera.location = [dice.uniform(-5, 5) for _ in range(3)]
    camera.rotation_euler = [dice.uniform(-3, 3) for _ in range(3)]
    factory.view_layer.update()

    K = camera_matrix.intrinsics(camera_matrix.read_lens(camera.data, "Camera"), frame)
    c2w = axes.opencv_from_blender(camera_matrix.rigid(np.array(camera.matrix_world)))
    for _ in range(10):
        point = camera.matrix_world @ Vector((dice.uniform(-1, 1), dice.uniform(-1, 1), -dice.uniform(1, 9)))
        seen = world_to_camera_view(factory.scene, camera, point)
        wanted = seen.x * frame.width, (1 - seen.y) * frame.height
        found = project(c2w, K, np.array(point, dtype=np.float64), orthographic=kind == "ORTHO")
        np.testing.assert_allclose(found, wanted, atol=0.01 + 1e-5 * max(map(abs, wanted)))


def test_opengl_projection_of_the_odd_camera(open_scene: Any, expected: dict[str, Any]) -> None:
    """Shift, vertical fit, 36x24 sensor, pixel aspect 1 : 1.25, half size, against the matrix OpenGL would use."""
    context = open_scene("06")
    wanted = expected["06_odd_camera"]
    lens = camera_matrix.read_lens(context.scene.camera.data, "OddCamera")
    K = camera_matrix.intrinsics(lens, Frame(320, 200, 1.0, 1.25))
    gl = np.array(wanted["opengl_projection_matrix"])
    found = [2 * K[0, 0] / 320, 2 * K[1, 1] / 200, 1 - 2 * K[0, 2] / 320, 2 * K[1, 2] / 200 - 1]
    np.testing.assert_allclose(found, [gl[0, 0], gl[1, 1], gl[0, 2], gl[1, 2]], atol=1e-5)


@pytest.mark.parametrize("scale", [(1, 1, 1), (2, 2, 2), (0.3, 4, 1.7), (-1, 1, 1), (1, -2, 1), (-1, -1, -3)])
def test_scaled_and_mirrored_cameras_become_rigid(scale: tuple[float, float, float]) -> None:
    """What a camera looks along stays; a mirrored one becomes right-handed."""
    rotation = Euler((0.4, -1.1, 2.0)).to_matrix().to_4x4()
    matrix = np.array(Matrix.Translation((1, 2, 3)) @ rotation @ Matrix.Diagonal((*scale, 1)))
    c2w = camera_matrix.rigid(matrix)
    np.testing.assert_allclose(c2w[:3, :3].T @ c2w[:3, :3], np.eye(3), atol=1e-9)
    assert np.linalg.det(c2w[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(c2w[:3, 2], matrix[:3, 2] / np.linalg.norm(matrix[:3, 2]), atol=1e-6)
    np.testing.assert_allclose(c2w[:3, 3], [1, 2, 3])
    if min(scale) > 0:
        np.testing.assert_allclose(c2w[:3, :3], np.array(rotation)[:3, :3], atol=1e-6)


def test_a_camera_scaled_to_nothing_is_refused() -> None:
    with pytest.raises(CaptureError, match="scaled to nothing"):
        camera_matrix.rigid(np.diag([0.0, 0, 0, 1]))


def test_a_panorama_is_refused_by_name(factory: Any) -> None:
    factory.scene.camera.data.type = "PANO"
    with pytest.raises(CaptureError, match="The camera Sky is of type Pano"):
        camera_matrix.read_lens(factory.scene.camera.data, "Sky")


def test_write_lens_gives_back_what_was_read(factory: Any) -> None:
    lens = random_lens(random.Random(0), "ORTHO", "VERTICAL")
    data = bpy.data.cameras.new("x")
    camera_matrix.write_lens(lens, data)
    read = camera_matrix.read_lens(data, "x")
    for field in camera_matrix.LENS_FIELDS:
        assert getattr(read, field) == (pytest.approx(v) if isinstance(v := getattr(lens, field), float) else v)
