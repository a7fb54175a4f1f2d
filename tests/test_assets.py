"""Model files: what is in them, what is refused, and the normals of their corners."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from backend import assets
from backend.assets import Asset, Material, corner_normals, models_in, read_asset, read_texture, textures_in
from backend.bad_input import BadInput


def encoded(picture: np.ndarray, kind: str = "PNG") -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def arrays() -> dict[str, np.ndarray]:
    """Two triangles; the first has a cut-out texture, the second a colour."""
    texture = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    return {
        "vertices": np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float16),
        "faces": np.array([[0, 1, 2], [0, 2, 3]], np.uint16),
        "uvs": np.linspace(-1, 2, 12).reshape(2, 3, 2).astype(np.float16),
        "face_material": np.array([0, 1], np.uint8),
        "face_smooth": np.array([0, 1], np.uint8),
        "base_color": np.array([[255, 255, 255, 255], [0, 188, 255, 102]], np.uint8),
        "texture_index": np.array([0, -1], np.int16),
        "texture_0": encoded(texture),
        "roughness": np.array([0.25, 0.75], np.float32),
        "metallic": np.array([0, 1], np.float32),
    }


def written(folder: Path, changes: dict[str, np.ndarray | None] | None = None) -> Path:
    fields = arrays() | {name: array for name, array in (changes or {}).items() if array is not None}
    for name in [name for name, array in (changes or {}).items() if array is None]:
        del fields[name]
    (folder / "models").mkdir(exist_ok=True)
    path = folder / "models" / "two_faces.npz"
    np.savez_compressed(path, allow_pickle=True, **fields)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    asset, given = read_asset(written(tmp_path)), arrays()
    assert (asset.name, asset.caption) == ("two_faces", "")
    np.testing.assert_array_equal(asset.vertices, given["vertices"])
    np.testing.assert_array_equal(asset.faces, given["faces"])
    np.testing.assert_array_equal(asset.uvs, given["uvs"])
    assert asset.face_material.tolist() == [0, 1]
    textured, plain = asset.materials
    assert textured.texture is not None
    np.testing.assert_array_equal(textured.texture, np.arange(24).reshape(2, 3, 4))
    assert textured.base_color == (1, 1, 1, 1) and plain.texture is None
    np.testing.assert_allclose(plain.base_color, (0, 0.5029, 1, 1), atol=1e-4)  # linear; its alpha is not heeded
    assert (textured.roughness, textured.metallic, plain.roughness, plain.metallic) == (0.25, 0, 0.75, 1)


def test_a_jpeg_has_three_channels(tmp_path: Path) -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    asset = read_asset(written(tmp_path, {"texture_0": encoded(grey, "JPEG")}))
    np.testing.assert_array_equal(asset.materials[0].texture, grey)


def test_caption_comes_from_the_table(tmp_path: Path) -> None:
    (tmp_path / "LICENSES.csv").write_text("name,title,category\ntwo_faces,WoodenChair_old_02,scan_shape\n", "utf-8")
    assert read_asset(written(tmp_path)).caption == "wooden chair old, scan shape"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vertices": None}, "vertices is missing"),
        ({"texture_0": None}, "texture_0 is missing"),
        ({"vertices": np.full((4, 3), np.nan, np.float16)}, "every vertex must lie within"),
        ({"vertices": np.full((4, 3), 3, np.float16)}, "every vertex must lie within"),
        ({"vertices": np.zeros((4, 2), np.float16)}, "vertices must have the shape"),
        ({"faces": np.array([[0, 1, 4], [0, 1, 2]], np.uint16)}, "faces must hold numbers from 0 to 3"),
        ({"faces": np.array([[0, 1, -1], [0, 1, 2]], np.int16)}, "faces must hold numbers from 0 to 3"),
        ({"faces": np.zeros((2, 3), np.float32)}, "faces has the wrong form"),
        ({"faces": np.zeros((0, 3), np.uint16)}, "must have the shape"),
        ({"uvs": np.full((2, 3, 2), np.inf, np.float16)}, "every uv be finite"),
        ({"face_material": np.array([0, 2], np.uint8)}, "face_material must hold numbers from 0 to 1"),
        ({"roughness": np.zeros(3, np.float32)}, "roughness must have the shape"),
        ({"texture_0": np.arange(9, dtype=np.uint8)}, "no JPEG or PNG"),
        ({"texture_0": encoded(np.zeros((4, 4, 3), np.uint8), "BMP")}, "no JPEG or PNG"),
        ({"metallic": np.array([{}, {}], object)}, "not a model"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], words: str) -> None:
    path = written(tmp_path, changes)
    with pytest.raises(BadInput, match=words) as refusal:
        read_asset(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(written(tmp_path).read_bytes()[:300])
    for path in (broken, tmp_path / "absent.npz"):
        with pytest.raises(BadInput, match="not a model"):
            read_asset(path)
    monkeypatch.setattr(assets, "LARGEST_ARRAY", 100)
    with pytest.raises(BadInput, match="more than 100"):
        read_asset(written(tmp_path))
    with pytest.raises(BadInput, match="no JPEG"):
        read_texture(broken)


def test_listings_are_sorted(tmp_path: Path) -> None:
    for folder, ending in (("models", "npz"), ("textures", "jpg")):
        (tmp_path / folder).mkdir()
        for name in ("b", "a", "c"):
            (tmp_path / folder / f"{name}.{ending}").touch()
        (tmp_path / folder / "notes.txt").touch()
    assert [path.name for path in models_in(tmp_path)] == ["a.npz", "b.npz", "c.npz"]
    assert [path.name for path in textures_in(tmp_path)] == ["a.jpg", "b.jpg", "c.jpg"]


def test_the_bank_can_be_read(shared_folder: Path) -> None:
    paths = models_in(shared_folder / "assets")
    for path in paths[::60]:
        asset = read_asset(path)
        assert asset.caption and np.linalg.norm(asset.vertices, axis=1).max() < 1.101
        np.testing.assert_allclose(np.linalg.norm(asset.normals, axis=2), 1, atol=1e-5)
    assert read_texture(textures_in(shared_folder / "assets")[0]).shape == (256, 256, 3)


# ---- values


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="texture must be"):
        Material((1.0, 1.0, 1.0, 1.0), np.zeros((4, 4, 3), np.float32))
    face, normals = np.array([[0, 1, 2]], np.int32), np.zeros((1, 3, 3), np.float32)
    with pytest.raises(ValueError, match="uvs must be"):
        Asset("", "", np.zeros((3, 3), np.float32), face, np.zeros((1, 3), np.float32), normals, face[:, 0], ())


# ---- normals


def test_a_cube_stays_sharp_and_a_ball_gets_round() -> None:
    cube, ball = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(3)
    for smooth in (False, True):
        normals = corner_normals(cube.vertices, cube.faces, np.full(12, smooth))
        np.testing.assert_allclose(normals, np.repeat(cube.face_normals[:, None], 3, 1), atol=1e-5)
    round_ = corner_normals(ball.vertices, ball.faces, np.full(len(ball.faces), True))
    np.testing.assert_allclose(round_, ball.vertices[ball.faces], atol=0.01)
    flat = corner_normals(ball.vertices, ball.faces, np.full(len(ball.faces), False))
    np.testing.assert_allclose(flat, np.repeat(ball.face_normals[:, None], 3, 1), atol=1e-5)


def test_normals_as_by_hand() -> None:
    """Two smooth faces that meet at 30 degrees, and a flat one: at the common edge the means, weighted by angle."""
    up = np.radians(30)
    vertices = np.array([[0, 0, 0], [0, 1, 0], [-1, 0, 0], [np.cos(up), 0, np.sin(up)], [0, -1, 0.0]])
    faces = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 4]])
    normals = corner_normals(vertices, faces, np.array([True, True, False]))
    first, second = np.array([0, 0, 1]), np.array([-np.sin(up), 0, np.cos(up)])
    middle = (first + second) / np.linalg.norm(first + second)  # both faces have 90 and 45 degrees there
    np.testing.assert_allclose(normals[0], [middle, middle, first], atol=1e-5)
    np.testing.assert_allclose(normals[1], [middle, second, middle], atol=1e-5)
    np.testing.assert_allclose(normals[2], [first] * 3, atol=1e-5)


def test_a_face_without_an_area_has_unit_normals() -> None:
    normals = corner_normals(np.zeros((3, 3)), np.array([[0, 1, 2]]), np.array([True]))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=2), 1)
