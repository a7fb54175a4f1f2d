"""Folders of posed pictures that users have, each object a Sample to train on, as `data.sample` makes them.

    transforms.json    BlenderNeRF, NeRF, nerfstudio and our own captures; see transforms.py
    G-Objaverse        views NNNNN/NNNNN.png, or NNNNN.png, with NNNNN.json: the camera's axes (OpenCV) and place in a
                       world with Z up, and angles of view; NNNNN_nd.exr has normals, with Unity's axes, and depth
    zero123, GSO       views NNN.png with NNN.npy: world to camera [3,4], with Blender's axes; one lens for all

What has no depth has `views.depth` None; what has no normals has zeros, as a pixel without a surface has.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.cameras import BadInput, Cameras, Views
from backend.fit import Frame
from backend.hull import MARGIN, common_box
from backend.sample import BOX, Sample
from backend.transforms import OPENGL_TO_OPENCV, read_cameras, read_views
from blender_addon import exr

log = logging.getLogger(__name__)

TRANSFORMS = ("transforms.json", "transforms_train.json", "transforms_input.json")  # the first that is there counts
GOBJAVERSE_FOLDER = "campos_512_v4"  # below an object's folder, as published
GOBJAVERSE_REACH = math.sqrt(3) / 2  # its objects fit a cube of edge 1 about the origin
ZERO123_FOV = 2 * math.atan(16 / 35)  # a lens of 35 mm before a sensor of 32 mm
SOLID = 0.99  # alpha from which depth and normal are of one surface alone
ROUNDING = 1e-2  # how far a rotation may be from orthonormal and still count as one written with few digits


def read_object(folder: Path, only: Sequence[int] | None = None) -> Sample:
    """An object's views, in whichever of the three forms its folder is. Raises BadInput.

    only  numbers of the views that are wanted; without it, all
    """
    match form_of(folder):
        case "transforms":
            return read_transforms(folder, only)
        case "gobjaverse":
            return read_gobjaverse(folder, only)
        case "zero123":
            return read_zero123(folder, only)
    raise _no_object(folder)


def cameras_of(folder: Path) -> Cameras:
    """The cameras of all views of such an object, whose pictures are there and of one size; what they show is not
    looked at. Raises BadInput.
    """
    match form_of(folder):
        case "transforms":
            return read_cameras(_transforms_file(folder), with_images=True)[0]
        case "gobjaverse":
            return _gobjaverse_cameras(_gobjaverse_files(folder))
        case "zero123":
            return _zero123_cameras(_zero123_files(folder), ZERO123_FOV)
    raise _no_object(folder)


def _no_object(folder: Path) -> BadInput:
    return BadInput(
        f"{folder}: expected {' or '.join(TRANSFORMS)}, or views numbered from 0 with .json or .npy, found none"
    )


def object_folders(root: Path) -> Iterator[Path]:
    """The folders of all objects in a folder, at any depth, in the order of their names."""
    if form_of(root):
        yield root
    elif root.is_dir():
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            yield from object_folders(folder)


def form_of(folder: Path) -> str:
    """The form of an object's folder: transforms, gobjaverse, zero123, or empty for what is none."""
    if any((folder / name).is_file() for name in TRANSFORMS):
        return "transforms"
    for views in (folder / GOBJAVERSE_FOLDER, folder):
        if (views / "00000/00000.json").is_file() or (views / "00000.json").is_file():
            return "gobjaverse"
    return "zero123" if (folder / "000.npy").is_file() else ""


def framed(sample: Sample) -> Sample:
    """The same object in the middle of the world, as large as those of `data.sample`. Raises NothingSeen."""
    return replace(sample, views=frame_of(sample.views).views(sample.views))


def frame_of(views: Views) -> Frame:
    """What brings an object there, by the box that its masks leave.

    Raises NothingSeen where the masks show nothing or contradict each other.
    """
    low, high = common_box(views)
    side = float((high - low).max()) / (1 + 2 * MARGIN)
    return Frame((low + high) / 2, side / BOX)


# ---- the three forms


def read_transforms(folder: Path, only: Sequence[int] | None = None) -> Sample:
    """The views of the first of TRANSFORMS that is there, with depth where every one has it. Raises BadInput."""
    return _sample(folder, read_views(_transforms_file(folder), only))


def read_gobjaverse(folder: Path, only: Sequence[int] | None = None) -> Sample:
    """The views of an object of G-Objaverse, with depth and normals where each has them. Raises BadInput."""
    files = _chosen(_gobjaverse_files(folder), only)
    views = _views(_gobjaverse_cameras(files), files)
    surfaces = [_gobjaverse_surface(file, views, view) for view, file in enumerate(files)]
    if any(surface is None for surface in surfaces):
        return _sample(folder, views)
    normals, depth = (torch.from_numpy(np.stack(maps)) for maps in zip(*filter(None, surfaces), strict=True))
    return _sample(folder, replace(views, depth=depth), normals)


def read_zero123(folder: Path, only: Sequence[int] | None = None, *, fov: float = ZERO123_FOV) -> Sample:
    """The views of an object rendered as for zero123, `fov` radians across the picture. Raises BadInput."""
    files = _chosen(_zero123_files(folder), only)
    return _sample(folder, _views(_zero123_cameras(files, fov), files))


def _chosen(files: list[Path], only: Sequence[int] | None) -> list[Path]:
    return files if only is None else [files[number] for number in only]


def _transforms_file(folder: Path) -> Path:
    found = next((folder / name for name in TRANSFORMS if (folder / name).is_file()), None)
    if found is None:
        raise BadInput(f"{folder}: expected {' or '.join(TRANSFORMS)} in this folder, found none")
    return found


def _gobjaverse_files(folder: Path) -> list[Path]:
    inner = folder / GOBJAVERSE_FOLDER
    place = inner if inner.is_dir() else folder
    files = sorted(path for path in (*place.glob("*/*.json"), *place.glob("*.json")) if path.stem.isdigit())
    if not files:
        raise BadInput(f"{place}: expected views NNNNN.json with NNNNN.png, found none")
    return files


def _zero123_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*.npy") if path.stem.isdigit())
    if not files:
        raise BadInput(f"{folder}: expected views NNN.npy with NNN.png, found none")
    return files


# ---- cameras


def _gobjaverse_cameras(files: Sequence[Path]) -> Cameras:
    width, height = _common_size(files)
    c2w, Ks = zip(*(_gobjaverse_camera(file, width, height) for file in files), strict=True)
    return _cameras(np.stack(c2w), np.stack(Ks), width, height)


def _zero123_cameras(files: Sequence[Path], fov: float) -> Cameras:
    width, height = _common_size(files)
    focal = 0.5 * width / math.tan(0.5 * fov)
    Ks = np.tile([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], (len(files), 1, 1))
    return _cameras(np.stack([_zero123_camera(file) for file in files]), Ks, width, height)


def _cameras(c2w: np.ndarray, Ks: np.ndarray, width: int, height: int) -> Cameras:
    flat = torch.zeros(len(c2w), dtype=torch.bool)
    return Cameras(torch.from_numpy(c2w).float(), torch.from_numpy(Ks).float(), flat, width, height)


def _gobjaverse_camera(file: Path, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """c2w [4,4], OpenCV axes, and K [3,3]."""
    data = _read_json(file)
    columns = [_vector(file, data, key) for key in ("x", "y", "z", "origin")]
    fx, fy = (_focal(file, data, key, pixels) for key, pixels in (("x_fov", width), ("y_fov", height)))
    return _rigid(file, np.stack(columns, axis=1)), np.array([[fx, 0, width / 2], [0, fy, height / 2], [0, 0, 1]])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file}: expected JSON, found what cannot be read as such: {error}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{file}: expected a JSON object, found a {type(data).__name__}")
    return data


def _vector(file: Path, data: dict[str, Any], key: str) -> np.ndarray:
    try:
        vector = np.array(data.get(key), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{file}: expected {key} to be three numbers, found {data[key]!r:.60}") from error
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise BadInput(f"{file}: expected {key} to be three finite numbers, found {data.get(key)!r:.60}")
    return vector


def _focal(file: Path, data: dict[str, Any], key: str, pixels: int) -> float:
    angle = data.get(key)
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 < angle < math.pi:
        raise BadInput(f"{file}: expected {key} between 0 and pi radians, found {angle!r:.60}")
    return 0.5 * pixels / math.tan(0.5 * angle)


def _zero123_camera(file: Path) -> np.ndarray:
    """c2w [4,4], OpenCV axes."""
    try:
        w2c = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{file}: expected a matrix as .npy, found: {error}") from error
    if w2c.shape not in ((3, 4), (4, 4)) or w2c.dtype.kind != "f" or not np.isfinite(w2c).all():
        raise BadInput(f"{file}: expected 3x4 finite numbers, found {w2c.dtype} of shape {w2c.shape}")
    world = _rigid(file, w2c[:3].astype(np.float64))
    c2w = np.eye(4)
    c2w[:3, :3], c2w[:3, 3] = world[:3, :3].T, -world[:3, :3].T @ world[:3, 3]
    return c2w @ OPENGL_TO_OPENCV


def _rigid(file: Path, matrix: np.ndarray) -> np.ndarray:
    """[4,4] of [3,4], with the nearest exact rotation; transforms.py does the same."""
    u, stretch, vt = np.linalg.svd(matrix[:, :3])
    if np.abs(stretch - 1).max() > ROUNDING or np.linalg.det(u @ vt) < 0:
        raise BadInput(
            f"{file}: expected a rotation and a place, found one that scales by {stretch.round(4).tolist()} or mirrors"
        )
    rigid = np.eye(4)
    rigid[:3, :3], rigid[:3, 3] = u @ vt, matrix[:, 3]
    return rigid


# ---- pictures


def _common_size(files: Sequence[Path]) -> tuple[int, int]:
    """Width and height of the pictures beside the cameras' files. Raises BadInput where they differ."""
    sizes = []
    for path in (file.with_suffix(".png") for file in files):
        with _opened(path) as image:
            sizes.append(image.size)
        (width, height), (found_width, found_height) = sizes[0], sizes[-1]
        if (width, height) != (found_width, found_height):
            raise BadInput(
                f"{path}: expected the size of the first view, {width}x{height}, found {found_width}x{found_height}"
            )
    return sizes[0]


def _read_picture(path: Path) -> np.ndarray:
    """[H,W,4] float32, 0..1, straight alpha; 1 where a picture has none."""
    with _opened(path) as image:
        return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path}: expected an image, found what cannot be read as one: {error}") from error


def _gobjaverse_surface(file: Path, views: Views, view: int) -> tuple[np.ndarray, np.ndarray] | None:
    """World normals [H,W,3] and planar depth [H,W]; None where there is no file, or an EXR of a kind we cannot read.

    At the outline both are mixed with the background: neither is taken there, nor where the object cannot be.
    """
    path = file.with_name(f"{file.stem}_nd.exr")
    if not path.is_file():
        return None
    try:
        channels = exr.read(path)
        red, green, blue, depth = (channels[name].astype(np.float32) for name in "RGBA")
    except (ValueError, KeyError) as error:
        log.warning("%s: no depth and no normals are taken from it: %s", path, error)
        return None
    if depth.shape != (views.cameras.height, views.cameras.width):
        raise BadInput(f"{path}: expected the size of {file.stem}.png, found {depth.shape[1]}x{depth.shape[0]}")
    normals = np.stack([-red, -blue, green], axis=-1)  # Unity is left-handed, with Y up
    length = np.linalg.norm(normals, axis=-1)
    nearest = float(views.cameras.centres[view].norm()) - GOBJAVERSE_REACH
    solid = (views.images[view, ..., 3].numpy() >= SOLID) & np.isfinite(length) & (length > 0) & np.isfinite(depth)
    solid &= depth >= nearest
    normals = np.where(solid[..., None], normals / np.where(solid, length, 1)[..., None], 0)
    return normals.astype(np.float32), np.where(solid, depth, 0).astype(np.float32)


# ---- the result


def _views(cameras: Cameras, files: Sequence[Path]) -> Views:
    pictures = np.stack([_read_picture(file.with_suffix(".png")) for file in files])
    return Views(torch.from_numpy(pictures), cameras, names=tuple(f"{file.stem}.png" for file in files))


def _sample(folder: Path, views: Views, normals: torch.Tensor | None = None) -> Sample:
    place = folder.resolve()
    name = place.parent.name if place.name == GOBJAVERSE_FOLDER else place.name
    unknown = torch.zeros(*views.images.shape[:3], 3)
    return Sample(views=views, normals=unknown if normals is None else normals, name=name, caption="")
