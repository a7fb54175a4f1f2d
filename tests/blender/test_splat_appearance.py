"""What Cycles shows of a splat, pixel by pixel, against the Gaussian worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import scene_advice, splat_nodes, splat_object  # noqa: E402
from blender_addon.ply import SplatArrays  # noqa: E402
from blender_addon.splat_rotation import harmonics, matrices  # noqa: E402

SIZE = 33
FOV = math.radians(40)
SH_C0 = 0.28209479177387814


@pytest.fixture
def stage(factory: Any) -> Any:
    """An empty scene with a camera at (0, -4, 0) that looks along +Y; one exact sample at each pixel's centre."""
    for item in list(bpy.data.objects):
        bpy.data.objects.remove(item)
    scene = factory.scene
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    scene.collection.objects.link(camera)
    camera.location, camera.rotation_euler = (0, -4, 0), (math.pi / 2, 0, 0)
    camera.data.angle = FOV
    scene.camera = camera
    scene.render.resolution_x = scene.render.resolution_y = SIZE
    scene.render.resolution_percentage = 100
    scene.render.film_transparent = True
    scene.view_settings.view_transform = "Standard"
    scene.cycles.samples, scene.cycles.use_adaptive_sampling, scene.cycles.use_denoising = 16, False, False
    scene.cycles.pixel_filter_type, scene.cycles.filter_width = "BLACKMAN_HARRIS", 0.01
    scene.cycles.transparent_max_bounces = scene.cycles.min_transparent_bounces = 32  # no early end by chance
    return factory


def rendered(context: Any, folder: Path) -> np.ndarray:
    """[H,W,4] straight sRGB, as a PNG stores it through the scene's view transform."""
    settings = context.scene.render.image_settings
    settings.file_format, settings.color_mode, settings.color_depth = "PNG", "RGBA", "16"
    context.scene.render.filepath = str(folder / "picture.png")
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(context.scene.render.filepath)
    image.colorspace_settings.name, image.alpha_mode = "Non-Color", "CHANNEL_PACKED"
    values = np.empty(SIZE * SIZE * 4, dtype=np.float32)
    image.pixels.foreach_get(values)
    return values.reshape(SIZE, SIZE, 4)[::-1]


def splats_of(*each: tuple[Any, Any, Any, float, Any]) -> SplatArrays:
    """Splats given as (mean, quat, scales, opacity, sRGB colour)."""
    means, quats, scales, opacities, colours = zip(*each, strict=True)
    sh = (np.array(colours)[:, None, :] - 0.5) / SH_C0
    quats = np.array(quats) / np.linalg.norm(quats, axis=1, keepdims=True)
    return SplatArrays(*(np.array(value, dtype=np.float32) for value in (means, quats, scales, opacities, sh)))


def shown(context: Any, splats: SplatArrays, *, facing: bool) -> Any:
    item = splat_object.create("Splats", splats)
    context.scene.collection.objects.link(item)
    splat_nodes.set_faces_camera(item, facing)
    return item


def pixel_rays() -> np.ndarray:
    """[H,W,3] directions of the stage's camera through the pixels' centres."""
    centre = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    x, z = np.meshgrid(centre, -centre)
    return np.stack([x * math.tan(FOV / 2), np.ones_like(x), z * math.tan(FOV / 2)], axis=-1)


def expected_alpha(splats: SplatArrays, index: int = 0) -> np.ndarray:
    """[H,W] the Gaussian's peak along each pixel's ray, times its opacity."""
    whiten = matrices(splats.quats.astype(np.float64))[index].T / splats.scales[index][:, None]
    origin = whiten @ (np.array((0, -4, 0)) - splats.means[index])
    rays = pixel_rays() @ whiten.T
    nearest = origin - rays * ((rays @ origin) / (rays * rays).sum(axis=-1))[..., None]
    return splats.opacities[index] * np.exp(-0.5 * (nearest**2).sum(axis=-1))


@pytest.mark.parametrize("facing", [True, False])
def test_one_splat_has_the_gaussians_opacity_and_its_colour(stage: Any, tmp_path: Path, facing: bool) -> None:
    colour = (0.8, 0.3, 0.15)
    splats = splats_of(((0.2, 0.1, -0.1), (0.8, 0.2, -0.5, 0.3), (0.5, 0.2, 0.3), 0.9, colour))
    shown(stage, splats, facing=facing)
    picture = rendered(stage, tmp_path)
    expected = expected_alpha(splats)
    drawn = expected > 0.03  # fainter than the cut nothing is drawn
    np.testing.assert_allclose(picture[..., 3][drawn], expected[drawn], atol=0.012)
    assert picture[..., 3][expected < 0.004].max() < 0.012
    solid = expected > 0.3
    np.testing.assert_allclose(picture[solid][:, :3], np.broadcast_to(colour, (solid.sum(), 3)), atol=2 / 255)


@pytest.mark.parametrize("facing", [True, False])
def test_a_nearer_splat_covers_a_farther_one(stage: Any, tmp_path: Path, facing: bool) -> None:
    near = ((0, -0.5, 0), (1, 0, 0, 0), (0.4, 0.2, 0.4), 0.6, (0.9, 0.2, 0.2))
    far = ((0, 0.5, 0), (1, 0, 0, 0), (0.5, 0.2, 0.5), 0.99, (0.2, 0.3, 0.9))
    splats = splats_of(far, near)
    shown(stage, splats, facing=facing)
    middle = rendered(stage, tmp_path)[SIZE // 2, SIZE // 2]
    linear = 0.6 * to_linear(np.array(near[4])) + 0.4 * 0.99 * to_linear(np.array(far[4]))
    np.testing.assert_allclose(to_linear(middle[:3].astype(np.float64)) * middle[3], linear, atol=0.01)


def to_linear(colour: np.ndarray) -> np.ndarray:
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("bases", [4, 16])
def test_harmonics_follow_the_viewing_direction(stage: Any, tmp_path: Path, bases: int) -> None:
    flat = splats_of(((0, 0, 0), (1, 0, 0, 0), (0.5, 0.5, 0.5), 0.95, (0.5, 0.5, 0.5)))
    higher = np.random.default_rng(1).normal(scale=0.12, size=(1, bases - 1, 3)).astype(np.float32)
    splats = flat._replace(sh=np.concatenate([flat.sh, higher], axis=1))
    item = shown(stage, splats, facing=True)
    item.rotation_euler = (0.3, -0.4, 0.9)
    stage.view_layer.update()
    middle = rendered(stage, tmp_path)[SIZE // 2, SIZE // 2, :3]
    towards = np.array(item.matrix_world.to_3x3().inverted()) @ (0, 1, 0)
    expected = 0.5 + harmonics(towards[None], int(bases**0.5) - 1)[0] @ splats.sh[0]
    assert np.abs(expected - 0.5).max() > 0.05
    np.testing.assert_allclose(middle, expected, atol=2.5 / 255)


def test_deep_stacks_do_not_turn_black_where_cycles_stops(stage: Any, tmp_path: Path) -> None:
    stage.scene.cycles.transparent_max_bounces = 8
    depths = np.linspace(-1, 1, 40)
    shown(
        stage, splats_of(*(((0, y, 0), (1, 0, 0, 0), (0.6, 0.02, 0.6), 0.08, (0.7,) * 3) for y in depths)), facing=True
    )
    middle = rendered(stage, tmp_path)[SIZE // 2, SIZE // 2]
    np.testing.assert_allclose(middle, (0.7, 0.7, 0.7, 1.0), atol=3 / 255)


def test_an_orthographic_camera_sees_the_same_outline(stage: Any, tmp_path: Path) -> None:
    stage.scene.camera.data.type = "ORTHO"
    stage.scene.camera.data.ortho_scale = 4
    splats = splats_of(((0.5, 0, 0.5), (1, 0, 0, 0), (0.3, 0.6, 0.2), 0.9, (0.5, 0.5, 0.5)))
    shown(stage, splats, facing=True)
    picture = rendered(stage, tmp_path)
    place = ((np.arange(SIZE) + 0.5) / SIZE - 0.5) * 4
    x, z = np.meshgrid(place, -place)
    expected = 0.9 * np.exp(-0.5 * (((x - 0.5) / 0.3) ** 2 + ((z - 0.5) / 0.2) ** 2))
    drawn = expected > 0.05
    np.testing.assert_allclose(picture[..., 3][drawn], expected[drawn], atol=0.012)


def test_advice_names_what_hinders_and_fixes_it(stage: Any) -> None:
    scene = stage.scene
    assert scene_advice.scene_advice(scene) == []
    item = shown(stage, splats_of(((0, 0, 0), (1, 0, 0, 0), (1, 1, 1), 1, (0, 0, 0))), facing=False)
    scene.view_settings.view_transform, scene.cycles.transparent_max_bounces = "AgX", 8
    advice = scene_advice.scene_advice(scene)
    assert {each.fix for each in advice} == {"VIEW", "BOUNCES", "FACE_CAMERA"}
    assert "AgX" in advice[0].sentence and "8 layers" in advice[1].sentence
    for each in advice:
        scene_advice.apply_fix(scene, each.fix)
    assert scene_advice.scene_advice(scene) == []
    assert splat_nodes.faces_camera(item)
