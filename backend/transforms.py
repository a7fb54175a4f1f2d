"""transforms.json as NeRF and nerfstudio write it, to and from Views. Its cameras have OpenGL axes, ours OpenCV's.

A frame has its intrinsics in itself or, for all frames, beside them: `fl_x fl_y cx cy w h` in pixels, or
`camera_angle_x` in radians. Beyond that our files may say `"camera_model": "ORTHOGRAPHIC"`, where `fl_x` is in pixels
per scene unit, and `depth_file_path`: a .npy or .npz (key `depth`) of planar depth in scene units, 0 for nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.cameras import BadInput, Cameras, Views
from blender_addon.atomic_file import replacing

FILE_NAMES = ("transforms_input.json", "transforms.json")
IMAGE_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp")
PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
MAX_SIDE = 8192
JSON_LIMIT = 64 * 2**20
ROUNDING = 1e-2  # how far a rotation may be from orthonormal and still count as one written with few digits
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True)
class _Frame:
    """One frame of a file: `name` and `depth` are paths as written there, `where` says which frame in which file."""

    where: str
    name: str
    depth: str
    c2w: np.ndarray
    K: np.ndarray
    orthographic: bool
    width: int
    height: int


def read_views(path: Path | str, only: Sequence[int] | None = None) -> Views:
    """The posed images of a transforms.json, or of a folder with transforms_input.json or transforms.json.

    only  numbers of the frames that are wanted; without it, all
    Depth is read when every such frame has it. Raises BadInput naming the file or field, what was expected and found.
    """
    file = find_transforms(Path(path))
    frames = _read_frames(file, measure_images=True)
    frames = frames if only is None else [frames[number] for number in only]
    images = np.stack([_read_image(file.parent, frame) for frame in frames])
    depth = None
    if all(frame.depth for frame in frames):
        depth = torch.from_numpy(np.stack([_read_depth(file.parent, frame) for frame in frames]))
    names = tuple(PurePosixPath(frame.name).name for frame in frames)
    return Views(torch.from_numpy(images), _cameras_of(frames), depth, names)


def read_cameras(path: Path | str, *, with_images: bool = False) -> tuple[Cameras, tuple[str, ...]]:
    """The cameras of such a file and their frames' file names, without folders. Raises BadInput as `read_views`.

    with_images  whether the images must exist, in the size that the file says; else they need not if it says one
    """
    file = find_transforms(Path(path))
    frames = _read_frames(file, measure_images=with_images)
    return _cameras_of(frames), tuple(PurePosixPath(frame.name).name for frame in frames)


def find_transforms(path: Path) -> Path:
    """The file meant by a file's or a folder's path."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise BadInput(f"{path}: expected a folder or a transforms.json, found nothing there")
    for name in FILE_NAMES:
        if (path / name).is_file():
            return path / name
    raise BadInput(f"{path}: expected {' or '.join(FILE_NAMES)} in this folder, found neither")


def write_transforms(cameras: Cameras, names: Sequence[str], path: Path | str) -> None:
    """Writes cameras in OpenGL axes, each with its own intrinsics, the frames' `file_path` being `names`."""
    frames = []
    for view, name in enumerate(names):
        K = cameras.Ks[view].double().numpy()
        frames.append(
            {
                "file_path": name,
                "camera_model": "ORTHOGRAPHIC" if cameras.orthographic[view] else "PINHOLE",
                "fl_x": float(K[0, 0]),
                "fl_y": float(K[1, 1]),
                "cx": float(K[0, 2]),
                "cy": float(K[1, 2]),
                "transform_matrix": (cameras.c2w[view].double().numpy() @ OPENGL_TO_OPENCV).tolist(),
            }
        )
    with replacing(Path(path)) as file:
        file.write(json.dumps({"w": cameras.width, "h": cameras.height, "frames": frames}, indent=1).encode())


# ---- the file


def _read_frames(file: Path, *, measure_images: bool) -> list[_Frame]:
    data = _read_json(file)
    frames = data.get("frames")
    if not isinstance(frames, list) or not frames:
        raise BadInput(f"{file}: expected a list 'frames' with at least one frame, found {_short(frames)}")
    read = [_read_frame(file, index, data, frame, measure_images) for index, frame in enumerate(frames)]
    first = read[0]
    for frame in read[1:]:
        if (frame.width, frame.height) != (first.width, first.height):
            raise BadInput(
                f"{frame.where}: expected the size of the first frame, {first.width}x{first.height}, "
                f"found {frame.width}x{frame.height}"
            )
    return read


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > JSON_LIMIT:
            raise BadInput(f"{file}: expected at most {JSON_LIMIT} bytes, found {file.stat().st_size}")
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: expected JSON, found what cannot be read as such: {error}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{file}: expected a JSON object, found {_short(data)}")
    return data


def _read_frame(file: Path, index: int, data: dict[str, Any], frame: Any, measure: bool) -> _Frame:
    where = f"{file}: frame {index}"
    if not isinstance(frame, dict):
        raise BadInput(f"{where}: expected an object, found {_short(frame)}")
    fields = {**data, **frame}
    name, depth = fields.get("file_path"), frame.get("depth_file_path", "")
    if not isinstance(name, str) or not name or not isinstance(depth, str):
        raise BadInput(f"{where}: expected file_path to be the name of an image, found {_short(name)}")
    width, height = _size_of(where, fields, file.parent, name, measure)
    model = str(fields.get("camera_model", "PINHOLE")).upper()
    if model not in (*PINHOLE_MODELS, "ORTHOGRAPHIC"):
        raise BadInput(f"{where}: expected camera_model PINHOLE or ORTHOGRAPHIC, found {_short(model)}")
    for key in DISTORTION:
        if _number(where, fields, key, 0.0) != 0:
            raise BadInput(
                f"{where}: expected no lens distortion, found {key} = {fields[key]}; undistort the images first"
            )
    K = _intrinsics(where, fields, width, height)
    c2w = _camera_to_world(where, fields.get("transform_matrix"))
    return _Frame(where, name, depth, c2w, K, model == "ORTHOGRAPHIC", width, height)


def _size_of(where: str, fields: dict[str, Any], folder: Path, name: str, measure: bool) -> tuple[int, int]:
    """width, height as the file says, else as the image says; both when the image is going to be read."""
    said = None
    if "w" in fields and "h" in fields:
        said = (int(_number(where, fields, "w", 0)), int(_number(where, fields, "h", 0)))
    found = _image_size(_image_path(where, folder, name)) if measure or said is None else said
    if said is not None and said != found:
        raise BadInput(f"{where}: expected an image of {said[0]}x{said[1]} pixels, found {found[0]}x{found[1]}")
    if not (1 <= found[0] <= MAX_SIDE and 1 <= found[1] <= MAX_SIDE):
        raise BadInput(f"{where}: expected a size from 1 to {MAX_SIDE} pixels, found {found[0]}x{found[1]}")
    return found


def _number(where: str, fields: dict[str, Any], key: str, default: float) -> float:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{where}: expected {key} to be a finite number, found {_short(value)}")
    return float(value)


def _intrinsics(where: str, fields: dict[str, Any], width: int, height: int) -> np.ndarray:
    """[3,3] in pixels."""
    if "fl_x" in fields:
        fx = _number(where, fields, "fl_x", 0)
    elif "camera_angle_x" in fields:
        fx = _focal(where, "camera_angle_x", _number(where, fields, "camera_angle_x", 0), width)
    else:
        raise BadInput(f"{where}: expected fl_x or camera_angle_x, found neither")
    if "fl_y" not in fields and "fl_x" not in fields and "camera_angle_y" in fields:
        fy = _focal(where, "camera_angle_y", _number(where, fields, "camera_angle_y", 0), height)
    else:
        fy = _number(where, fields, "fl_y", fx)
    if fx <= 0 or fy <= 0:
        raise BadInput(f"{where}: expected positive focal lengths, found {fx:g} and {fy:g}")
    cx, cy = _number(where, fields, "cx", width / 2), _number(where, fields, "cy", height / 2)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _focal(where: str, key: str, angle: float, pixels: int) -> float:
    if not 0 < angle < math.pi:
        raise BadInput(f"{where}: expected {key} between 0 and pi radians, found {angle:g}")
    return 0.5 * pixels / math.tan(0.5 * angle)


def _camera_to_world(where: str, rows: Any) -> np.ndarray:
    """[4,4] rigid, OpenCV axes; a rotation written with few digits becomes the nearest exact one."""
    try:
        matrix = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: expected transform_matrix to hold numbers, found {_short(rows)}") from error
    if matrix.shape not in ((4, 4), (3, 4)) or not np.isfinite(matrix).all():
        raise BadInput(f"{where}: expected transform_matrix to be 4x4 finite numbers, found {_short(rows)}")
    u, stretch, vt = np.linalg.svd(matrix[:3, :3])
    if np.abs(stretch - 1).max() > ROUNDING or np.linalg.det(u @ vt) < 0:
        raise BadInput(
            f"{where}: expected transform_matrix to be a rotation and a position, "
            f"found one that scales by {_short(stretch.round(4).tolist())} or mirrors"
        )
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = u @ vt, matrix[:3, 3]
    return c2w @ OPENGL_TO_OPENCV


# ---- its images


def _inside(where: str, folder: Path, name: str) -> Path:
    """`name` below `folder`. A file made elsewhere must not make us read other files of this machine."""
    windows, posix = PureWindowsPath(name), PurePosixPath(name.replace("\\", "/"))
    if windows.is_absolute() or windows.drive or windows.root or posix.is_absolute() or ".." in posix.parts:
        raise BadInput(f"{where}: expected a path inside the folder of the file, found {_short(name)}")
    return folder / posix


def _image_path(where: str, folder: Path, name: str) -> Path:
    path = _inside(where, folder, name)
    for ending in IMAGE_ENDINGS:
        candidate = path.with_name(path.name + ending)
        if candidate.is_file():
            return candidate
    raise BadInput(f"{where}: expected the image {path}, found no such file")


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path}: expected an image, found what cannot be read as one: {error}") from error


def _read_image(folder: Path, frame: _Frame) -> np.ndarray:
    """[H,W,4] float32, 0..1, straight alpha; 1 where the image has none."""
    path = _image_path(frame.where, folder, frame.name)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path}: expected an image, found what cannot be read as one: {error}") from error


def _read_depth(folder: Path, frame: _Frame) -> np.ndarray:
    """[H,W] float32."""
    path = _inside(frame.where, folder, frame.depth)
    try:
        loaded = np.load(path, allow_pickle=False)
        depth = loaded["depth"] if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadInput(f"{path}: expected depth as .npy, or .npz with the key 'depth', found: {error}") from error
    if depth.shape != (frame.height, frame.width) or depth.dtype.kind != "f":
        raise BadInput(
            f"{path}: expected depth of {frame.height} rows and {frame.width} columns of floats, "
            f"found {depth.dtype} {depth.shape}"
        )
    return depth.astype(np.float32)


def _cameras_of(frames: list[_Frame]) -> Cameras:
    return Cameras(
        torch.from_numpy(np.stack([frame.c2w for frame in frames])).float(),
        torch.from_numpy(np.stack([frame.K for frame in frames])).float(),
        torch.tensor([frame.orthographic for frame in frames]),
        frames[0].width,
        frames[0].height,
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
