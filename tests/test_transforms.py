"""transforms.json as others write it, as we write it, and as nobody should."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backend.cameras import BadInput, look_at, orbit
from backend.transforms import read_cameras, read_views, write_transforms

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROWS = [[1.0, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]  # OpenGL: looks along +Y, up is +Z


def write(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda data: None, name: str = "transforms.json"
) -> Path:
    """A valid file of two frames with pictures of 6x4 pixels, after a change."""
    for index in range(2):
        Image.new("RGBA", (6, 4), (10, 20, 30, 255 * index)).save(folder / f"view_{index}.png")
    frames = [{"file_path": f"view_{index}.png", "transform_matrix": ROWS} for index in range(2)]
    data: dict[str, Any] = {"w": 6, "h": 4, "fl_x": 5.0, "fl_y": 4.0, "cx": 3.5, "cy": 2.5, "frames": frames}
    change(data)
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def test_axes_and_intrinsics(tmp_path):
    views = read_views(write(tmp_path))
    assert views.images.shape == (2, 4, 6, 4) and views.images.dtype == torch.float32
    assert views.images[1, 0, 0].tolist() == pytest.approx([10 / 255, 20 / 255, 30 / 255, 1])
    assert views.names == ("view_0.png", "view_1.png") and views.depth is None
    c2w = views.cameras.c2w[0]
    assert c2w[:3, 2].tolist() == pytest.approx([0, 1, 0]), "looks along +Y"
    assert c2w[:3, 1].tolist() == pytest.approx([0, 0, -1]), "down is -Z"
    assert c2w[:3, 3].tolist() == [1, 2, 3]
    assert views.cameras.Ks[0].tolist() == [[5, 0, 3.5], [0, 4, 2.5], [0, 0, 1]]
    assert not views.cameras.orthographic.any()


def test_what_we_write_we_read(tmp_path):
    cameras = orbit(3, target=torch.tensor([1.0, 2, 3]), radius=2, elevation=0.3, fov=1.0, size=8)
    write_transforms(cameras, [f"{index}.png" for index in range(3)], tmp_path / "transforms.json")
    read, names = read_cameras(tmp_path)
    assert names == ("0.png", "1.png", "2.png") and (read.width, read.height) == (8, 8)
    assert read.c2w == pytest.approx(cameras.c2w, abs=1e-5) and read.Ks == pytest.approx(cameras.Ks, abs=1e-4)


def test_the_form_of_the_nerf_data_sets(tmp_path):
    """camera_angle_x for all, no size, file names without an ending, folders."""
    (tmp_path / "train").mkdir()

    def change(data: dict[str, Any]) -> None:
        for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
            del data[key]
        data["camera_angle_x"] = 1.0
        for index, frame in enumerate(data["frames"]):
            (tmp_path / f"view_{index}.png").rename(tmp_path / "train" / f"r_{index}.png")
            frame["file_path"] = f"./train/r_{index}"

    views = read_views(write(tmp_path, change))
    focal = 3 / math.tan(0.5)
    assert views.cameras.Ks[0].flatten().tolist() == pytest.approx([focal, 0, 3, 0, focal, 2, 0, 0, 1])
    assert views.names == ("r_0", "r_1")


def test_intrinsics_of_one_frame_go_before_those_of_all(tmp_path):
    views = read_views(write(tmp_path, lambda data: data["frames"][1].update(fl_x=9.0, camera_model="OPENCV", k1=0)))
    assert views.cameras.Ks[:, 0, 0].tolist() == [5, 9]


def test_orthographic_cameras(tmp_path):
    read = read_views(write(tmp_path, lambda data: data["frames"][1].update(camera_model="ORTHOGRAPHIC"))).cameras
    assert read.orthographic.tolist() == [False, True]
    write_transforms(read, ["a.png", "b.png"], tmp_path / "again.json")
    assert read_cameras(tmp_path / "again.json")[0].orthographic.tolist() == [False, True]


def test_pictures_without_alpha_are_opaque(tmp_path):
    path = write(tmp_path)
    Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "view_0.png")
    Image.new("L", (6, 4), 9).save(tmp_path / "view_1.png")
    assert (read_views(path).images[..., 3] == 1).all()


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_depth(tmp_path, ending):
    depth = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.save(tmp_path / "depth.npy", depth)
    np.savez(tmp_path / "depth.npz", depth=depth.astype(np.float16))

    def change(data: dict[str, Any]) -> None:
        for frame in data["frames"]:
            frame["depth_file_path"] = f"depth.{ending}"

    views = read_views(write(tmp_path, change))
    assert views.depth is not None and views.depth.dtype == torch.float32
    np.testing.assert_array_equal(views.depth[1].numpy(), depth)


def test_few_digits_are_made_exact(tmp_path):
    centres = torch.tensor([[1.0, 2, 0.7]], dtype=torch.float64)
    rows = (
        look_at(centres, torch.zeros(3, dtype=torch.float64))[0] @ torch.diag(torch.tensor([1.0, -1, -1, 1]).double())
    ).round(decimals=3)
    read = read_cameras(write(tmp_path, lambda data: data["frames"][0].update(transform_matrix=rows.tolist())))[0]
    rotation = read.c2w[0, :3, :3]
    assert rotation.T @ rotation == pytest.approx(torch.eye(3), abs=1e-6)


def test_which_file_of_a_folder(tmp_path):
    write(tmp_path, lambda data: data.update(fl_x=1.0))
    write(tmp_path, lambda data: data.update(fl_x=2.0), name="transforms_input.json")
    assert read_cameras(tmp_path)[0].Ks[0, 0, 0] == 2


def of(frame: int, **fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["frames"][frame].update(fields)


SCALED = [[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
MIRRORED = [[-1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda data: data.pop("frames"), "expected a list 'frames'"),
    (lambda data: data.update(frames=[]), "at least one frame"),
    (lambda data: data.update(frames=[3]), "frame 0: expected an object, found 3"),
    (lambda data: data["frames"][1].pop("transform_matrix"), "frame 1: expected transform_matrix"),
    (of(1, transform_matrix=[[1, 2], [3]]), "expected transform_matrix to hold numbers"),
    (of(1, transform_matrix=[[1, 2], [3, 4]]), "expected transform_matrix to be 4x4"),
    (of(1, transform_matrix=[["x"] * 4] * 4), "expected transform_matrix to hold numbers"),
    (of(0, transform_matrix=SCALED), "found one that scales by [2.0, 2.0, 2.0]"),
    (of(0, transform_matrix=MIRRORED), "or mirrors"),
    (of(0, file_path="missing"), "expected the image"),
    (of(0, file_path=7), "expected file_path"),
    (of(0, file_path="/etc/hostname"), "inside the folder"),
    (of(0, file_path="../view_0.png"), "inside the folder"),
    (of(0, file_path="a\\..\\..\\view_0.png"), "inside the folder"),
    (of(0, file_path="C:\\windows\\x.png"), "inside the folder"),
    (lambda data: [frame.update(depth_file_path="../x.npy") for frame in data["frames"]], "inside the folder"),
    (of(0, k1=0.1), "undistort"),
    (of(0, camera_model="FISHEYE"), "found 'FISHEYE'"),
    (of(0, fl_x=-5), "positive focal lengths"),
    (of(0, fl_x="5"), "expected fl_x to be a finite number, found '5'"),
    (of(0, fl_x=True), "expected fl_x to be a finite number"),
    (of(0, cx=float("nan")), "expected cx to be a finite number, found nan"),
    (of(0, w=7), "expected an image of 7x4 pixels, found 6x4"),
    (lambda data: [data.pop("fl_x"), data.pop("fl_y")], "expected fl_x or camera_angle_x"),
    (lambda data: [data.pop("fl_x"), data.update(camera_angle_x=4)], "between 0 and pi"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_what_is_wrong_is_named(tmp_path, change, words):
    path = write(tmp_path, change)
    with pytest.raises(BadInput) as error:
        read_views(path)
    assert words in str(error.value) and str(path.parent) in str(error.value)


def test_a_picture_of_another_size(tmp_path):
    path = write(tmp_path)
    Image.new("RGB", (5, 4)).save(tmp_path / "view_1.png")
    with pytest.raises(BadInput, match=r"frame 1: expected an image of 6x4 pixels, found 5x4"):
        read_views(path)


def test_sizes_that_differ_between_frames(tmp_path):
    path = write(tmp_path, of(1, w=5))
    Image.new("RGB", (5, 4)).save(tmp_path / "view_1.png")
    with pytest.raises(BadInput, match=r"size of the first frame, 6x4, found 5x4"):
        read_views(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{", b"[" * 100_000])
def test_files_that_are_no_json_object(tmp_path, content):
    path = tmp_path / "transforms.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"transforms\.json"):
        read_views(path)


def test_places_where_nothing_is(tmp_path):
    with pytest.raises(BadInput, match="found nothing there"):
        read_views(tmp_path / "no")
    with pytest.raises(BadInput, match="found neither"):
        read_views(tmp_path)


def test_files_that_are_no_picture_and_no_depth(tmp_path):
    path = write(tmp_path)
    (tmp_path / "view_0.png").write_bytes(b"not a picture")
    with pytest.raises(BadInput, match=r"view_0.png: expected an image"):
        read_views(path)
    path = write(tmp_path, lambda data: [frame.update(depth_file_path="depth.npy") for frame in data["frames"]])
    for content in (b"", b"x" * 100):
        (tmp_path / "depth.npy").write_bytes(content)
        with pytest.raises(BadInput, match=r"depth.npy: expected depth"):
            read_views(path)
    np.save(tmp_path / "depth.npy", np.zeros((3, 6), np.float32))
    with pytest.raises(BadInput, match=r"expected depth of 4 rows and 6 columns of floats"):
        read_views(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder is not beside the checkout")
def test_the_benchmark_reads():
    """Its README gives the camera circle: radius 2.7, 50 degrees, azimuth 0 on -Y."""
    views = read_views(SHARED / "bench" / "open" / "spot")
    assert len(views) == 4 and views.has_alpha
    assert views.cameras.centres.norm(dim=1) == pytest.approx(torch.full((4,), 2.7), abs=1e-4)
    assert views.cameras.centres[0, 1] < -2.5
    assert views.cameras.Ks[0, 0, 0] == pytest.approx(128 / math.tan(math.radians(25)))
    photographs = read_views(SHARED / "bench" / "scene_desk")
    assert photographs.images.shape == (32, 270, 480, 4) and not photographs.has_alpha
    cameras, names = read_cameras(SHARED / "bench" / "scene_desk" / "transforms_test.json")
    assert len(cameras) == 8 and names[0] == "test_00.png"
