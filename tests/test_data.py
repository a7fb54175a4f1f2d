"""The stream of samples: the same for the same seed, and what each sample must be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from backend import data
from backend.assets import Asset, Material
from backend.cameras import rays
from backend.data import DataConfig, sample, scene
from backend.sample import Sample, is_held_out

QUICK = DataConfig(size=32, views=5, inputs=3)


def same(one: Sample, other: Sample) -> bool:
    pairs = [
        (one.views.images, other.views.images),
        (one.views.depth, other.views.depth),
        (one.views.cameras.c2w, other.views.cameras.c2w),
        (one.normals, other.normals),
    ]
    return one.caption == other.caption and all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None)


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """A folder with 40 boxes, grey but for the first, and one texture."""
    (tmp_path / "models").mkdir()
    (tmp_path / "textures").mkdir()
    box = trimesh.creation.box((1.8, 0.6, 0.6))
    for number in range(40):
        np.savez(
            tmp_path / "models" / f"box_{number}.npz",
            vertices=box.vertices.astype(np.float16),
            faces=box.faces.astype(np.uint16),
            uvs=np.tile(np.array([[0, 0], [1, 0], [0, 1]], np.float16), (12, 1, 1)),
            face_material=np.zeros(12, np.uint8),
            face_smooth=np.zeros(12, np.uint8),
            base_color=np.array([[200, 60, 20, 255] if number == 0 else [231, 231, 231, 255]], np.uint8),
            texture_index=np.array([-1], np.int16),
            roughness=np.array([0.5], np.float32),
            metallic=np.array([0], np.float32),
        )
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), (0, 200, 0), np.uint8)).save(tmp_path / "textures" / "green.jpg")
    return tmp_path


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    first = [sample(QUICK, index) for index in (0, 1)]
    again = [sample(QUICK, index) for index in (1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not same(first[0], first[1])
    assert not same(first[0], sample(replace(QUICK, seed=1), 0))
    assert not same(first[0], sample(replace(QUICK, held_out=True), 0))


def test_what_a_sample_holds() -> None:
    shown = sample(QUICK, 2)
    assert shown.views.images.shape == (5, 32, 32, 4) and shown.views.depth is not None
    assert shown.views.depth.shape == (5, 32, 32) and shown.normals.shape == (5, 32, 32, 3)
    assert shown.name and shown.caption
    images, full = shown.views.images, shown.views.images[..., 3] == 1
    assert 0 <= images.min() and images.max() <= 1 and full.float().mean() > 0.01
    assert ((shown.views.depth > 0) == (images[..., 3] > 0)).all()
    torch.testing.assert_close(shown.normals[full].norm(dim=1), torch.ones(int(full.sum())))
    directions = rays(shown.views.cameras)[1]
    assert ((shown.normals * directions).sum(-1)[full] < 0.1).float().mean() > 0.99  # towards the camera


def test_depth_and_cameras_fit_together() -> None:
    """All that is seen lies in the sphere that objects stay in."""
    for orthographic in (0.0, 1.0):
        config = replace(QUICK, orthographic_share=orthographic)
        views = sample(config, 7).views
        assert views.depth is not None and views.cameras.orthographic.all() == bool(orthographic)
        origins, directions = rays(views.cameras)
        planar = (directions * views.cameras.c2w[:, None, None, :3, 2]).sum(-1)
        places = origins + directions * (views.depth / planar)[..., None]
        reach = places.norm(dim=-1)[views.images[..., 3] == 1]
        assert reach.max() < 1.15 and reach.max() > 0.5


def angles(config: DataConfig, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Azimuth and elevation in degrees, and distance, of the cameras of a sample."""
    centres = scene(config, index).cameras.centres.numpy().astype(float)
    distance = np.linalg.norm(centres, axis=1)
    azimuth = np.degrees(np.arctan2(centres[:, 0], -centres[:, 1])) % 360
    return azimuth, np.degrees(np.arcsin(centres[:, 2] / distance)), distance


def test_inputs_stand_evenly_around_and_targets_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(size=32, views=12, inputs=4, jitter=10, input_elevation=(5, 30), target_elevation=(-10, 60))
    gaps, targets = [], []
    for index in range(12):
        azimuth, elevation, _ = angles(config, index)
        gaps.append(np.diff(np.append(azimuth[:4], azimuth[0])) % 360)
        assert (elevation[:4] > 5 - 10.01).all() and (elevation[:4] < 30 + 10.01).all()
        assert (elevation[4:] > -10.01).all() and (elevation[4:] < 60.01).all()
        targets.append(azimuth[4:])
    assert (np.abs(np.array(gaps) - 90) <= 20.01).all() and np.std(gaps) > 0.5
    assert np.histogram(np.concatenate(targets), 4, (0, 360))[0].min() > 10
    monkeypatch.setattr(data, "LINED_UP", 1.0)
    azimuth, elevation, distance = angles(config, 0)
    np.testing.assert_allclose((azimuth[:4] + 1) % 360 - 1, [0, 90, 180, 270], atol=1e-3)
    assert np.ptp(elevation[:4]) < 1e-3 and np.ptp(distance[:4]) < 1e-3


def test_the_object_fills_the_picture() -> None:
    """At distance 1 the sphere that holds the object just fits; at 2 it fills half."""
    for multiple in (1.0, 2.0):
        for orthographic in (0.0, 1.0):
            config = replace(QUICK, distance=(multiple, multiple), orthographic_share=orthographic, size=64)
            cameras = scene(config, 1).cameras
            distance, focal = float(cameras.centres[0].norm()), float(cameras.Ks[0, 0, 0])
            radius = focal * 1.1 if orthographic else focal * 1.1 / (distance**2 - 1.1**2) ** 0.5
            expected = 32 if multiple == 1 else 16
            assert radius == pytest.approx(expected, rel=0.2 if multiple == 2 and not orthographic else 1e-3)


def test_held_out_models_are_never_trained_on(assets: Path) -> None:
    config = replace(QUICK, assets=assets, real_share=1.0)
    names = {held_out: set() for held_out in (False, True)}
    for held_out, index in itertools.product(names, range(40)):
        names[held_out].add(scene(replace(config, held_out=held_out), index).asset.name)
    assert names[True] and not names[True] & names[False]
    assert all(is_held_out(name) for name in names[True]) and not any(is_held_out(name) for name in names[False])
    share = np.mean([is_held_out(f"model_{number}") for number in range(4000)])
    assert share == pytest.approx(0.05, abs=0.01)


def test_the_share_of_real_models(assets: Path) -> None:
    config = replace(QUICK, assets=assets, real_share=0.3)
    real = np.mean([scene(config, index).asset.name.startswith("box_") for index in range(100)])
    assert 0.15 < real < 0.45
    assert not scene(replace(config, assets=None, real_share=1.0), 0).asset.name.startswith("box_")


def test_bare_shapes_get_a_texture_or_a_colour(assets: Path) -> None:
    config = replace(QUICK, assets=assets, real_share=1.0)
    painted = [scene(config, index).asset for index in range(40)]
    materials = [asset.materials[0] for asset in painted if asset.name != "box_0"]
    textured = [material for material in materials if material.texture is not None]
    plain = [material.base_color[:3] for material in materials if material.texture is None]
    assert 0.4 < len(textured) / len(materials) < 0.95
    assert all(abs(int(material.texture[0, 0, 1]) - 200) < 9 for material in textured if material.texture is not None)
    assert np.std(plain, axis=0).min() > 0.05


def test_new_colours_keep_what_materials_share() -> None:
    texture = np.random.default_rng(0).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    corner = np.zeros((1, 3, 3), np.float32)
    materials = (
        Material((0.5, 0.2, 0.1, 1.0), texture),
        Material((1.0, 1.0, 1.0, 1.0), texture),
        Material((0.5, 0.2, 0.1, 1.0)),
    )
    face = np.array([[0, 1, 2]], np.int32)
    asset = Asset("", "", corner[0], face, corner[..., :2].copy(), corner, face[:, 0], materials)
    for seed in range(5):
        new = data._recoloured(asset, np.random.default_rng(seed)).materials
        assert new[0].texture is new[1].texture and new[2].texture is None and new[0].texture is not None
        np.testing.assert_array_equal(new[0].texture[..., 3], texture[..., 3])
        np.testing.assert_array_equal(np.sort(new[0].texture, axis=-1), np.sort(texture, axis=-1))
        colours = np.array([material.base_color for material in new])
        assert (colours > 0).all() and (colours <= 1).all() and np.ptp(colours[:2] - colours[2]) > 0
    assert texture is materials[0].texture


def test_placed_objects_fit_again() -> None:
    rng = np.random.default_rng(0)
    for index in range(10):
        asset = data._placed(scene(QUICK, index).asset, rng, lined_up=False)
        low, high = asset.vertices.min(axis=0), asset.vertices.max(axis=0)
        np.testing.assert_allclose(low + high, 0, atol=1e-5)
        reach = np.linalg.norm(asset.vertices, axis=1).max()
        assert (high - low).max() <= 1.8001 and reach <= 1.1001
        assert (high - low).max() > 0.89 * 1.8 or reach > 0.89 * 1.1
        np.testing.assert_allclose(np.linalg.norm(asset.normals, axis=2), 1, atol=1e-4)
