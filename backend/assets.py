"""Textured objects to photograph, and the files they come from.

A model file is a plain NumPy archive (`models/<name>.npz` in a folder of assets, material pictures in `textures/`); a
table `LICENSES.csv` beside those folders may name its objects.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from PIL import Image, UnidentifiedImageError

from backend.bad_input import BadInput

LARGEST_ARRAY = 64 << 20  # bytes of one array in a file, unpacked
LARGEST_PICTURE = 4096  # pixels of a texture's side
REACH = 1.2  # no model reaches farther from the origin; they are made to fit a sphere of 1.1
CREASE = 50.0  # degrees between two faces from which their common edge stays sharp under smooth shading
# number of dimensions and kinds of number of each array that every model file holds
ARRAYS = {
    "vertices": (2, "f"),
    "faces": (2, "iu"),
    "uvs": (3, "f"),
    "face_material": (1, "iu"),
    "face_smooth": (1, "iub"),
    "base_color": (2, "u"),
    "texture_index": (1, "i"),
    "roughness": (1, "f"),
    "metallic": (1, "f"),
}


@dataclass(frozen=True)
class Material:
    """What a surface is made of; the same on both sides.

    base_color  linear red, green, blue and alpha, 0..1; multiplies the texture
    texture     None or [h,w,3|4] uint8 sRGB, straight alpha, row 0 at v = 1; repeats outside 0..1
    roughness   0..1
    metallic    0..1
    """

    base_color: tuple[float, float, float, float]
    texture: np.ndarray | None = None
    roughness: float = 0.5
    metallic: float = 0.0

    def __post_init__(self) -> None:
        texture = self.texture
        if texture is None:
            return
        if texture.ndim != 3 or texture.shape[2] not in (3, 4) or texture.dtype != np.uint8 or texture.size == 0:
            raise ValueError(f"material: texture must be uint8 [h,w,3|4], found {texture.dtype} {texture.shape}")


@dataclass(frozen=True)
class Asset:
    """One textured object. Z up; in [-0.9,0.9]^3 and in the sphere of radius 1.1 around the origin.

    caption        words that describe it, "" if unknown
    vertices       [V,3] float32
    faces          [F,3] int32
    uvs            [F,3,2] float32, per corner, v up
    normals        [F,3,3] float32, unit shading normals, per corner
    face_material  [F] int32, number in `materials`
    """

    name: str
    caption: str
    vertices: np.ndarray
    faces: np.ndarray
    uvs: np.ndarray
    normals: np.ndarray
    face_material: np.ndarray
    materials: tuple[Material, ...]

    def __post_init__(self) -> None:
        count = len(self.faces)
        expected = {
            "vertices": (np.float32, (len(self.vertices), 3)),
            "faces": (np.int32, (count, 3)),
            "uvs": (np.float32, (count, 3, 2)),
            "normals": (np.float32, (count, 3, 3)),
            "face_material": (np.int32, (count,)),
        }
        for name, (kind, shape) in expected.items():
            found = getattr(self, name)
            if found.shape != shape or found.dtype != kind:
                wanted = f"{np.dtype(kind)} {list(shape)}"
                raise ValueError(f"asset: {name} must be {wanted}, found {found.dtype} {list(found.shape)}")


def models_in(folder: Path) -> list[Path]:
    """The model files of a folder of assets, sorted by name."""
    return sorted((folder / "models").glob("*.npz"))


def textures_in(folder: Path) -> list[Path]:
    """The material pictures of a folder of assets, sorted by name."""
    return sorted((folder / "textures").glob("*.jpg"))


def read_texture(path: Path) -> np.ndarray:
    """[h,w,3] uint8 sRGB, from a JPEG or PNG file."""
    try:
        return _picture(path.read_bytes())[..., :3]
    except ValueError as reason:
        raise BadInput(f"{path}: {reason}") from reason


def read_asset(path: Path) -> Asset:
    """The object in a model file. BadInput names the file and what is wrong with it."""
    try:
        return _asset(path, _arrays(path))
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as reason:
        text = f"the array {reason.args[0]} is missing" if isinstance(reason, KeyError) else str(reason)
        raise BadInput(f"{path}: not a model: {text}") from reason


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > LARGEST_ARRAY:
                raise ValueError(f"the array {entry.filename} has {entry.file_size} bytes, more than {LARGEST_ARRAY}")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _asset(path: Path, arrays: Mapping[str, np.ndarray]) -> Asset:
    _check(arrays)
    vertices, faces = arrays["vertices"].astype(np.float32), arrays["faces"].astype(np.int32)
    return Asset(
        name=path.stem,
        caption=_captions(path.parent.parent / "LICENSES.csv").get(path.stem, ""),
        vertices=vertices,
        faces=faces,
        uvs=arrays["uvs"].astype(np.float32),
        normals=corner_normals(vertices, faces, arrays["face_smooth"] != 0),
        face_material=arrays["face_material"].astype(np.int32),
        materials=_materials(arrays),
    )


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    for name, (dimensions, kinds) in ARRAYS.items():
        array = arrays[name]
        if array.ndim != dimensions or array.dtype.kind not in kinds:
            raise ValueError(f"the array {name} has the wrong form, {array.dtype} {list(array.shape)}")
    faces, materials = len(arrays["faces"]), len(arrays["base_color"])
    shapes = {
        "vertices": (len(arrays["vertices"]), 3),
        "faces": (faces, 3),
        "uvs": (faces, 3, 2),
        "face_material": (faces,),
        "face_smooth": (faces,),
        "base_color": (materials, 4),
        "texture_index": (materials,),
        "roughness": (materials,),
        "metallic": (materials,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"the array {name} must have the shape {list(shape)}, has {list(arrays[name].shape)}")
    if faces == 0:
        raise ValueError("it has no faces")
    if not np.isfinite(arrays["uvs"]).all() or not np.abs(arrays["vertices"]).max() <= REACH:
        raise ValueError(f"every vertex must lie within {REACH} of the origin, and every uv be finite")
    for name, limit in (("faces", len(arrays["vertices"])), ("face_material", materials)):
        if arrays[name].min() < 0 or arrays[name].max() >= limit:
            raise ValueError(f"the array {name} must hold numbers from 0 to {limit - 1}")


def _materials(arrays: Mapping[str, np.ndarray]) -> tuple[Material, ...]:
    """All opaque but for cut-outs in the textures: half the alphas here are 0 or 0.4 over whole cars and animals."""
    used = sorted({int(number) for number in arrays["texture_index"] if number >= 0})
    textures = {number: _picture(arrays[f"texture_{number}"].tobytes()) for number in used}
    colours = arrays["base_color"].astype(np.float64) / 255
    colours[:, :3] = decode_srgb(colours[:, :3])
    return tuple(
        Material(
            base_color=(float(red), float(green), float(blue), 1.0),
            texture=textures.get(int(number)),
            roughness=float(np.clip(roughness, 0, 1)),
            metallic=float(np.clip(metallic, 0, 1)),
        )
        for (red, green, blue, _), number, roughness, metallic in zip(
            colours, arrays["texture_index"], arrays["roughness"], arrays["metallic"], strict=True
        )
    )


def decode_srgb(values: np.ndarray) -> np.ndarray:
    """sRGB 0..1 to linear 0..1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _picture(content: bytes) -> np.ndarray:
    try:
        picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        if max(picture.size) > LARGEST_PICTURE:
            raise ValueError(f"a texture of {picture.size} pixels is larger than {LARGEST_PICTURE}")
        see_through = "A" in picture.getbands() or "transparency" in picture.info
        return np.asarray(picture.convert("RGBA" if see_through else "RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as reason:
        raise ValueError(f"a texture is no JPEG or PNG picture ({reason})") from reason


@functools.lru_cache(maxsize=4)
def _captions(table: Path) -> Mapping[str, str]:
    """Name to caption, from the columns name, title and category of a table; empty where there is none."""
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        return {row["name"]: f"{_words(row['title'])}, {_words(row['category'])}" for row in csv.DictReader(file)}


def _words(title: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-\s]+", " ", title)
    return re.sub(r"\s+\d+$", "", spaced).strip().lower()


def corner_normals(vertices: np.ndarray, faces: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """[F,3,3] float32 unit normals per corner: the face's own, or, on a smooth face, the mean of those around.

    vertices [V,3], faces [F,3], smooth [F] bool. The mean goes over the smooth faces that share the vertex and are
    turned by less than CREASE from this face, weighted by their angle there.
    """
    corners = vertices[faces].astype(np.float64)
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-20)
    flat[np.linalg.norm(flat, axis=1) < 0.5] = (0, 0, 1)  # a face without an area
    order = np.argsort(faces.reshape(-1), kind="stable")
    starts = np.searchsorted(faces.reshape(-1)[order], np.arange(len(vertices) + 1))
    normals = np.empty((len(faces), 3, 3), dtype=np.float32)
    _average(flat, _angles(corners).reshape(-1), smooth, order, starts, float(np.cos(np.radians(CREASE))), normals)
    return normals


def _angles(corners: np.ndarray) -> np.ndarray:
    """[F,3] radians at the corners [F,3,3] of each face."""
    ahead, behind = np.roll(corners, -1, axis=1) - corners, np.roll(corners, 1, axis=1) - corners
    lengths = np.linalg.norm(ahead, axis=2) * np.linalg.norm(behind, axis=2)
    return np.arccos(np.clip((ahead * behind).sum(axis=2) / np.maximum(lengths, 1e-20), -1, 1))


@numba.njit(cache=True)
def _average(flat, angles, smooth, order, starts, crease, normals):
    """Fill `normals`; `order` lists the corners (face * 3 + corner) vertex by vertex, from `starts`."""
    for vertex in range(len(starts) - 1):
        around = order[starts[vertex] : starts[vertex + 1]]
        for corner in around:
            own = flat[corner // 3]
            total = own * 1e-6
            for other in around:
                theirs = flat[other // 3]
                if smooth[corner // 3] and smooth[other // 3] and np.dot(own, theirs) >= crease:
                    total += theirs * angles[other]
            normals[corner // 3, corner % 3] = (total / np.sqrt(np.dot(total, total))).astype(np.float32)
