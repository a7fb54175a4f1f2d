"""GLB files: axes, texture, and that a file is there whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from backend.texturing import TexturedMesh, save_glb
from blender_addon import atomic_file


def one_face() -> TexturedMesh:
    texture = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    texture[..., 3] = 255
    return TexturedMesh(
        vertices=np.array([[1, 2, 3], [4, 5, 7], [-1, 0, 2]], np.float32),
        faces=np.array([[0, 1, 2]], np.int32),
        uvs=np.array([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]], np.float32),
        texture=texture,
    )


def test_round_trip(tmp_path: Path) -> None:
    """Y is up in the file: z-up (x, y, z) is (x, -z, y) of the file's. The corners' order is kept."""
    textured = one_face()
    save_glb(textured, tmp_path / "a.glb")
    loaded = trimesh.load(tmp_path / "a.glb", force="mesh", process=False)
    assert isinstance(loaded, trimesh.Trimesh)
    np.testing.assert_allclose(loaded.vertices[:, [0, 2, 1]] * [1, -1, 1], textured.vertices)
    np.testing.assert_array_equal(loaded.faces, textured.faces)
    assert isinstance(loaded.visual, TextureVisuals)
    np.testing.assert_allclose(np.asarray(loaded.visual.uv), textured.uvs, atol=1e-6)
    material = loaded.visual.material
    assert isinstance(material, PBRMaterial)
    picture = material.baseColorTexture
    assert isinstance(picture, Image.Image)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), textured.texture[..., :3])
    assert material.metallicFactor == 0 and material.roughnessFactor == 1


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.glb").write_bytes(b"old")

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_file.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_glb(one_face(), tmp_path / "a.glb")
    assert [path.name for path in tmp_path.iterdir()] == ["a.glb"]
    assert (tmp_path / "a.glb").read_bytes() == b"old"
