"""transforms.json, as NeRF and nerfstudio write it, on Blender's side: OpenGL axes, pictures beside it.

Beyond that format: `"camera_model": "ORTHOGRAPHIC"`, whose `fl_x` is in pixels per scene unit, and `depth_file_path`, a
.npy of planar depth [H,W] float32 in scene units, 0 where there is no surface. backend/transforms.py reads the same.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from . import axes, pictures
from .atomic_file import replacing
from .views import CapturedViews, CaptureError

FILE_NAME = "transforms.json"
_FILE_NAMES = ("transforms_input.json", FILE_NAME)
_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".webp")
_DISTORTIONS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


def write(views: CapturedViews, folder: Path) -> Path:
    """Pictures, depth, then the file that names them, each whole or not at all. Returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = _file_labels(views.names)
    frames = []
    for index, label in enumerate(labels):
        _write_file(folder / f"{label}.png", pictures.png(views.images[index]))
        frame = _frame(views, index, label)
        if views.depth is not None:
            _write_file(folder / f"{label}_depth.npy", _npy(views.depth[index]))
            frame["depth_file_path"] = f"{label}_depth.npy"
        frames.append(frame)
    text = json.dumps({"w": views.width, "h": views.height, "frames": frames}, indent=1)
    _write_file(folder / FILE_NAME, text.encode())
    return folder / FILE_NAME


def _frame(views: CapturedViews, index: int, label: str) -> dict[str, Any]:
    K = views.Ks[index].astype(np.float64)
    return {
        "file_path": f"{label}.png",
        "camera_model": "ORTHOGRAPHIC" if views.orthographic[index] else "PINHOLE",
        "fl_x": K[0, 0],
        "fl_y": K[1, 1],
        "cx": K[0, 2],
        "cy": K[1, 2],
        "transform_matrix": axes.blender_from_opencv(views.c2w[index].astype(np.float64)).tolist(),
    }


def _file_labels(names: tuple[str, ...]) -> list[str]:
    """Names as file names that every system takes, told apart by a number where that made them equal."""
    labels: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) or "view"
        label, number = plain, 1
        while label.lower() in taken:
            label, number = f"{plain}_{number}", number + 1
        taken.add(label.lower())
        labels.append(label)
    return labels


def _write_file(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def read(path: Path) -> CapturedViews:
    """The views of a transforms.json, or of a folder with one. Depth is kept when every frame has it.

    Raises CaptureError that names the file and field at fault."""
    file = _find(path)
    data = _read_json(file)
    frames = data.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise CaptureError(f"{file}: expected a list 'frames' of objects.")
    images, depths, cameras, names = [], [], [], []
    for index, frame in enumerate(frames):
        where = f"{file}, frame {index}"
        fields = {**data, **frame}
        picture = _picture_path(where, file.parent, fields.get("file_path"))
        images.append(_read_picture(picture))
        if images[-1].shape != images[0].shape:
            raise CaptureError(
                f"{picture}: expected the size of the first picture, {_size(images[0])}, found {_size(images[-1])}."
            )
        cameras.append(_read_camera(where, fields, images[0].shape[1], images[0].shape[0]))
        names.append(picture.stem)
        if "depth_file_path" in frame:
            depths.append(_read_depth(where, file.parent, frame["depth_file_path"], images[0].shape[:2]))
    return CapturedViews(
        images=np.stack(images),
        c2w=np.stack([c2w for c2w, _, _ in cameras]).astype(np.float32),
        Ks=np.stack([K for _, K, _ in cameras]).astype(np.float32),
        orthographic=np.array([orthographic for _, _, orthographic in cameras]),
        depth=np.stack(depths) if len(depths) == len(frames) else None,
        names=tuple(names),
    )


def _find(path: Path) -> Path:
    for candidate in (path, *(path / name for name in _FILE_NAMES)):
        if candidate.is_file():
            return candidate
    raise CaptureError(f"{path}: expected a {FILE_NAME} or a folder with one, found none.")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaptureError(f"{file}: expected JSON: {error}.") from error
    if not isinstance(data, dict):
        raise CaptureError(f"{file}: expected a JSON object with 'frames'.")
    return data


def _inside(where: str, folder: Path, name: Any) -> Path:
    """`name` below `folder`: a file made elsewhere must not make us read other files of this machine."""
    if not isinstance(name, str) or not name:
        raise CaptureError(f"{where}: expected file_path to be the name of a picture, found {name!r}.")
    windows, posix = PureWindowsPath(name), PurePosixPath(name.replace("\\", "/"))
    if windows.drive or windows.root or posix.is_absolute() or ".." in posix.parts:
        raise CaptureError(f"{where}: expected a path inside the folder of the file, found {name!r}.")
    return folder / posix


def _picture_path(where: str, folder: Path, name: Any) -> Path:
    path = _inside(where, folder, name)
    for ending in _ENDINGS:
        if path.with_name(path.name + ending).is_file():
            return path.with_name(path.name + ending)
    raise CaptureError(f"{where}: there is no picture {path}.")


def _read_picture(path: Path) -> np.ndarray:
    """[H,W,4] uint8, straight alpha, by Blender's own loaders; 255 where the file has no alpha."""
    import bpy

    try:
        image = bpy.data.images.load(str(path), check_existing=False)
    except RuntimeError as error:
        raise CaptureError(f"{path}: Blender cannot read this picture.") from error
    try:
        image.colorspace_settings.is_data = True  # the file's own values, which are sRGB
        image.alpha_mode = "STRAIGHT" if not image.is_float else "CHANNEL_PACKED"
        width, height = image.size
        if width * height == 0 or image.channels not in (1, 3, 4):
            raise CaptureError(f"{path}: Blender cannot read this picture.")
        flat = np.empty(width * height * image.channels, dtype=np.float32)
        image.pixels.foreach_get(flat)
    finally:
        bpy.data.images.remove(image)
    values = np.rint(np.nan_to_num(flat).clip(0, 1) * 255).astype(np.uint8).reshape(height, width, -1)[::-1]
    picture = np.full((height, width, 4), 255, dtype=np.uint8)
    picture[..., : max(values.shape[2], 3)] = values
    return picture


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _read_depth(where: str, folder: Path, name: Any, size: tuple[int, ...]) -> np.ndarray:
    path = _inside(where, folder, name)
    try:
        depth = np.load(path, allow_pickle=False)
        depth = depth["depth"] if isinstance(depth, np.lib.npyio.NpzFile) else depth
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise CaptureError(f"{path}: expected depth as .npy, or .npz with the key 'depth': {error}.") from error
    if depth.shape != tuple(size) or depth.dtype.kind != "f":
        raise CaptureError(f"{path}: expected floats of shape {tuple(size)}, found {depth.dtype} {depth.shape}.")
    return depth.astype(np.float32)


def _read_camera(where: str, fields: dict[str, Any], width: int, height: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """c2w [4,4] in OpenCV axes, K [3,3], whether orthographic."""
    model = str(fields.get("camera_model", "PINHOLE")).upper()
    if model not in (*_PINHOLES, "ORTHOGRAPHIC"):
        raise CaptureError(f"{where}: expected camera_model PINHOLE or ORTHOGRAPHIC, found {model}.")
    for key in _DISTORTIONS:
        if _number(where, fields, key, 0.0) != 0:
            raise CaptureError(f"{where}: the lens is distorted ({key}): undistort the pictures first.")
    scale_x, scale_y = (size / _number(where, fields, key, size) for key, size in (("w", width), ("h", height)))
    fx = _focal(where, fields, width / scale_x)
    K = np.eye(3)
    K[0, 0], K[1, 1] = fx * scale_x, _number(where, fields, "fl_y", fx) * scale_y
    K[0, 2] = _number(where, fields, "cx", width / scale_x / 2) * scale_x
    K[1, 2] = _number(where, fields, "cy", height / scale_y / 2) * scale_y
    return _camera_to_world(where, fields.get("transform_matrix")), K, model == "ORTHOGRAPHIC"


def _focal(where: str, fields: dict[str, Any], width: float) -> float:
    if "fl_x" not in fields and "camera_angle_x" in fields:
        return 0.5 * width / math.tan(0.5 * _number(where, fields, "camera_angle_x", 0.0))
    fx = _number(where, fields, "fl_x", 0.0)
    if fx <= 0:
        raise CaptureError(f"{where}: expected fl_x or camera_angle_x to be a positive number.")
    return fx


def _number(where: str, fields: dict[str, Any], key: str, default: float) -> float:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CaptureError(f"{where}: expected {key} to be a number, found {value!r}.")
    return float(value)


def _camera_to_world(where: str, rows: Any) -> np.ndarray:
    try:
        matrix = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CaptureError(f"{where}: expected transform_matrix to hold numbers.") from error
    if matrix.shape not in ((4, 4), (3, 4)) or not np.isfinite(matrix).all():
        raise CaptureError(f"{where}: expected transform_matrix to be four rows of four numbers.")
    u, stretch, vt = np.linalg.svd(matrix[:3, :3])
    if np.abs(stretch - 1).max() > 1e-2 or np.linalg.det(u @ vt) < 0:
        raise CaptureError(
            f"{where}: expected transform_matrix to be a rotation and a position, without scale or mirroring."
        )
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = u @ vt, matrix[:3, 3]
    return axes.opencv_from_blender(c2w)
