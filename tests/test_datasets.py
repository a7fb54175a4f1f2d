"""Readers of training data, each on a folder in exactly its form, with cameras worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend.cameras import BadInput
from backend.datasets import framed, object_folders, read_gobjaverse, read_object, read_transforms, read_zero123
from backend.hull import NothingSeen, project
from tests.balls import RADIUS, ball_views, write_ball
from tests.test_exr import make_exr

WIDTH, HEIGHT = 6, 4
FOV = 0.6911112070083618  # of G-Objaverse: half of it has the tangent 0.36
# A camera on -Y, 2 away, that looks along +Y at the origin with +Z upwards: right is +X, down is -Z, forward is +Y.
FRONT = {"x": [1, 0, 0], "y": [0, 0, -1], "z": [0, 1, 0], "origin": [0, -2, 0], "x_fov": FOV, "y_fov": FOV}
# One on +X that looks along -X: right is +Y, down is -Z, forward is -X.
SIDE = {**FRONT, "x": [0, 1, 0], "z": [-1, 0, 0], "origin": [3, 0, 0]}
# World to camera of FRONT in Blender's axes, where a camera looks along its -Z: right +X, up +Z, backward -Y
FRONT_W2C = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, -2]])


def picture(path: Path, alpha: int = 255) -> None:
    image = Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, alpha))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(path)


def write_gobjaverse(folder: Path, *, flat: bool = False) -> Path:
    for number, camera in enumerate((FRONT, SIDE)):
        view = folder if flat else folder / "campos_512_v4" / f"{number:05d}"
        view.mkdir(parents=True, exist_ok=True)
        (view / f"{number:05d}.json").write_text(json.dumps({**camera, "bbox": [[-0.5] * 3, [0.5] * 3]}))
        picture(view / f"{number:05d}.png")
        picture(view / f"{number:05d}_albedo.png")
    return folder


def write_surface(folder: Path, number: int, depth: float, compression: int = 3) -> Path:
    """Normals along the world's +X in one row of pixels, +Y in the next, +Z in the others, in Unity's axes."""
    red, green, blue = (np.zeros((HEIGHT, WIDTH), "<f4") for _ in range(3))
    red[0], blue[1], green[2:] = -1, -1, 1
    distances = np.full((HEIGHT, WIDTH), depth, "<f4")
    distances[3] = 0.3  # mixed with the background: nearer than the object can be
    path = folder / "campos_512_v4" / f"{number:05d}" / f"{number:05d}_nd.exr"
    path.write_bytes(make_exr([("", {"A": distances, "B": blue, "G": green, "R": red})], compression))
    return path


def write_zero123(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, distance in enumerate((2.0, 1.5)):
        matrix = FRONT_W2C.copy()
        matrix[2, 3] = -distance
        np.save(folder / f"{number:03d}.npy", matrix)
        picture(folder / f"{number:03d}.png")
    return folder


# ---- G-Objaverse


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "files"])
def test_gobjaverse(tmp_path, flat):
    sample = read_object(write_gobjaverse(tmp_path / "thing", flat=flat))
    cameras = sample.views.cameras
    assert sample.name == "thing" and len(sample.views) == 2 and sample.views.names == ("00000.png", "00001.png")
    assert cameras.Ks[0].flatten().tolist() == pytest.approx([3 / 0.36, 0, 3, 0, 2 / 0.36, 2, 0, 0, 1])
    assert cameras.c2w[0].tolist() == [[1, 0, 0, 0], [0, 0, 1, -2], [0, -1, 0, 0], [0, 0, 0, 1]]
    assert cameras.centres[1].tolist() == [3, 0, 0]
    assert sample.views.images[0, 0, 1].tolist() == [1, 0, 0, 1] and float(sample.views.images[0, 0, 0, 3]) == 0
    assert sample.views.depth is None and not sample.normals.any()


def test_gobjaverse_sees_what_is_right_and_up(tmp_path):
    """From -Y, +X is to the right and +Z is up; from +X, +Y is to the right."""
    cameras = read_gobjaverse(write_gobjaverse(tmp_path / "thing")).views.cameras
    right, depth = project(torch.tensor([0.5, 0.0, 0.0]), cameras, 0)
    assert right.tolist() == pytest.approx([3 + 0.25 * 3 / 0.36, 2]) and float(depth) == 2
    above, _ = project(torch.tensor([0.0, 0.0, 0.5]), cameras, 0)
    assert above.tolist() == pytest.approx([3, 2 - 0.25 * 2 / 0.36])
    aside, depth = project(torch.tensor([0.0, 0.6, 0.0]), cameras, 1)
    assert aside.tolist() == pytest.approx([3 + 0.2 * 3 / 0.36, 2]) and float(depth) == 3


@pytest.mark.parametrize("compression", [0, 3])
def test_gobjaverse_depth_and_normals(tmp_path, compression):
    folder = write_gobjaverse(tmp_path / "thing")
    for number in range(2):
        write_surface(folder, number, 2.25 + number, compression)
    sample = read_gobjaverse(folder)
    depth = sample.views.depth
    assert depth is not None and depth.dtype == torch.float32 and sample.normals.dtype == torch.float32
    assert depth[:, 0, 1].tolist() == [2.25, 3.25]
    assert sample.normals[0, :3, 1].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert float(depth[0, 0, 0]) == 0 and not sample.normals[0, 0, 0].any(), "see-through"
    assert not depth[0, 3].any() and not sample.normals[0, 3].any(), "nearer than the object reaches"


def test_gobjaverse_with_depth_in_some_views_alone_has_none(tmp_path):
    folder = write_gobjaverse(tmp_path / "thing")
    write_surface(folder, 1, 2.25)
    assert read_gobjaverse(folder).views.depth is None


def test_gobjaverse_with_an_exr_of_another_kind_has_no_depth(tmp_path, caplog):
    folder = write_gobjaverse(tmp_path / "thing")
    for number in range(2):
        path = write_surface(folder, number, 2.25)
        zip_, piz = (b"compression\0\x01\0\0\0" + kind for kind in (b"\x03", b"\x04"))
        path.write_bytes(path.read_bytes().replace(zip_, piz))
    assert read_gobjaverse(folder).views.depth is None
    assert "neither none nor ZIP" in caplog.text


# ---- zero123


def test_zero123(tmp_path):
    sample = read_object(write_zero123(tmp_path / "shoe"))
    cameras = sample.views.cameras
    assert sample.name == "shoe" and sample.views.names == ("000.png", "001.png")
    assert cameras.c2w[0].tolist() == [[1, 0, 0, 0], [0, 0, 1, -2], [0, -1, 0, 0], [0, 0, 0, 1]]
    assert cameras.centres.tolist() == [[0, -2, 0], [0, -1.5, 0]]
    assert cameras.Ks[1].flatten().tolist() == pytest.approx([3 * 35 / 16, 0, 3, 0, 3 * 35 / 16, 2, 0, 0, 1])
    assert sample.views.depth is None and sample.normals.shape == (2, HEIGHT, WIDTH, 3)


def test_zero123_with_another_lens(tmp_path):
    cameras = read_zero123(write_zero123(tmp_path / "shoe"), fov=math.pi / 2).views.cameras
    assert cameras.Ks[0].diagonal().tolist() == pytest.approx([3, 3, 1])


# ---- transforms.json


@pytest.mark.parametrize("name", ["transforms.json", "transforms_train.json"])
def test_transforms_as_blendernerf_writes_them(tmp_path, name):
    (tmp_path / "train").mkdir()
    picture(tmp_path / "train" / "0001.png")
    rows = [[1, 0, 0, 0], [0, 0, -1, -2], [0, 1, 0, 0], [0, 0, 0, 1]]  # Blender's axes: up +Z, backward -Y
    frame = {"file_path": "train/0001.png", "transform_matrix": rows}
    lens = {"camera_angle_x": FOV, "camera_angle_y": 0.5, "fl_x": 7.5, "fl_y": 8.5, "cx": 3.0, "cy": 2.0}
    distortion = {"k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    data = {**lens, **distortion, "w": WIDTH, "h": HEIGHT, "aabb_scale": 4, "frames": [frame]}
    (tmp_path / name).write_text(json.dumps(data))
    sample = read_object(tmp_path)
    assert sample.views.cameras.c2w[0].tolist() == [[1, 0, 0, 0], [0, 0, 1, -2], [0, -1, 0, 0], [0, 0, 0, 1]]
    assert sample.views.cameras.Ks[0].tolist() == [[7.5, 0, 3], [0, 8.5, 2], [0, 0, 1]]
    assert sample.views.names == ("0001.png",) and not sample.normals.any()


def test_a_capture_of_ours_keeps_its_depth(tmp_path):
    write_ball(tmp_path)
    file = tmp_path / "transforms.json"
    data = json.loads(file.read_text())
    depth = ball_views().depth
    assert depth is not None
    for view, frame in enumerate(data["frames"]):
        np.save(tmp_path / f"depth_{view}.npy", depth[view].numpy())
        frame["depth_file_path"] = f"depth_{view}.npy"
    file.write_text(json.dumps(data))
    found = read_transforms(tmp_path).views.depth
    assert found is not None and torch.equal(found, depth)


# ---- all


def test_objects_are_found_at_any_depth(tmp_path):
    write_gobjaverse(tmp_path / "b" / "0" / "10010")
    write_zero123(tmp_path / "shoe")
    (tmp_path / "a").mkdir()
    write_ball(tmp_path / "a")
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    found = [path.relative_to(tmp_path).as_posix() for path in object_folders(tmp_path)]
    assert found == ["a", "b/0/10010", "shoe"]
    assert [len(read_object(tmp_path / name).views) for name in found] == [4, 2, 2]


def test_framed_puts_the_object_in_the_middle(tmp_path):
    """A ball of radius 0.5 anywhere becomes one of radius 0.9 at the origin, and looks the same.

    All cameras are a little above it, so that its box reaches a little too far down.
    """
    write_ball(tmp_path, ball_views(12, 64))
    sample = read_transforms(tmp_path)
    shift = torch.tensor([5.0, -3.0, 2.0])
    sample.views.cameras.c2w[:, :3, 3] += shift
    before, after = sample.views.cameras, framed(sample).views.cameras
    for view in range(12):
        middle, depth = project(torch.zeros(3), after, view)
        wanted, wanted_depth = project(shift, before, view)
        assert middle.tolist() == pytest.approx(wanted.tolist(), abs=2.5)
        assert float(depth) == pytest.approx(float(wanted_depth) * 0.9 / RADIUS, rel=0.1)


def test_framed_needs_something_to_see(tmp_path):
    sample = read_zero123(write_zero123(tmp_path))
    sample.views.images[..., 3] = 0
    with pytest.raises(NothingSeen):
        framed(sample)


def break_json(change: dict[str, Any]) -> dict[str, Any]:
    return {**FRONT, **change}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, found a list"),
        (json.dumps(break_json({"x": [1, 0]})), "expected x to be three finite numbers"),
        (json.dumps(break_json({"origin": ["a", 0, 0]})), "expected origin to be three numbers"),
        (json.dumps(break_json({"y": [0, 0, 1]})), "or mirrors"),
        (json.dumps(break_json({"z": [0, 2, 0]})), "found one that scales"),
        (json.dumps(break_json({"x_fov": 39.6})), "x_fov between 0 and pi radians, found 39.6"),
        (json.dumps({**FRONT, "y_fov": None}), "y_fov between 0 and pi"),
    ],
)
def test_bad_cameras_of_gobjaverse(tmp_path, content, words):
    folder = write_gobjaverse(tmp_path / "thing")
    file = folder / "campos_512_v4" / "00001" / "00001.json"
    file.write_text(content)
    with pytest.raises(BadInput) as error:
        read_object(folder)
    assert words in str(error.value) and "00001.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.eye(3), "expected 3x4 finite numbers"),
        (np.full((3, 4), np.nan), "expected 3x4 finite numbers"),
        (2 * FRONT_W2C, "found one that scales"),
        (np.array([{"a": 1}], dtype=object), "expected a matrix as .npy"),
    ],
)
def test_bad_cameras_of_zero123(tmp_path, array, words):
    folder = write_zero123(tmp_path / "shoe")
    np.save(folder / "001.npy", array, allow_pickle=True)
    with pytest.raises(BadInput) as error:
        read_object(folder)
    assert words in str(error.value) and "001.npy" in str(error.value)


def test_bad_pictures(tmp_path):
    folder = write_zero123(tmp_path / "shoe")
    Image.new("RGBA", (WIDTH, HEIGHT + 1)).save(folder / "001.png")
    with pytest.raises(BadInput, match=r"001\.png: expected the size of the first view, 6x4, found 6x5"):
        read_object(folder)
    (folder / "001.png").write_text("no picture")
    with pytest.raises(BadInput, match=r"001\.png: expected an image"):
        read_object(folder)
    (folder / "001.png").unlink()
    with pytest.raises(BadInput, match=r"001\.png: expected an image"):
        read_object(folder)


@pytest.mark.parametrize("reader", [read_object, read_transforms, read_gobjaverse, read_zero123])
def test_a_folder_without_views(tmp_path, reader):
    with pytest.raises(BadInput, match="found none"):
        reader(tmp_path)
    assert list(object_folders(tmp_path)) == []


def test_a_depth_of_another_size_is_refused(tmp_path):
    folder = write_gobjaverse(tmp_path / "thing")
    path = write_surface(folder, 0, 2.25)
    path.write_bytes(make_exr([("", {name: np.zeros((2, 2), "<f4") for name in "ABGR"})], 0))
    write_surface(folder, 1, 2.25)
    with pytest.raises(BadInput, match=r"expected the size of 00000\.png, found 2x2"):
        read_gobjaverse(folder)
