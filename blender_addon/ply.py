"""Gaussian splats in PLY files. The one place that knows their raw storage: log scales, logit opacities.

The layout is the one of the 3D Gaussian splatting paper's code, which every viewer reads: x y z, f_dc_0..2, f_rest_0..
(all coefficients of red, then green, then blue), opacity, scale_0..2, rot_0..3 (w first). Numpy and the standard
library only, since Blender's side reads these files too.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from .atomic_file import replacing

HEADER_LIMIT = 65536  # bytes; a degree 3 file needs under 2000
OPACITY_MARGIN = 1e-6  # opacities are kept this far from 0 and 1, where the logit has no value
SMALLEST_SCALE = 1e-30  # a flat splat's scale of 0 has no logarithm
DEGREE_OF_REST = {0: 0, 9: 1, 24: 2, 45: 3}

SCALAR_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}

POSITION = ("x", "y", "z")
BASE_COLOUR = ("f_dc_0", "f_dc_1", "f_dc_2")
SCALE = ("scale_0", "scale_1", "scale_2")
ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")


class PlyError(ValueError):
    """The file is no readable splat PLY; the message names the file, what was expected and what was found."""


class SplatArrays(NamedTuple):
    """N activated Gaussians, float32.

    means [N,3] scene units; quats [N,4] wxyz, unit; scales [N,3] linear; opacities [N] 0..1; sh [N,K,3] with K of
    1, 4, 9 or 16
    """

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    sh: np.ndarray


class _Element(NamedTuple):
    name: str
    count: int
    properties: list[tuple[str, str]]  # name and numpy type without byte order; "" for a list


class _Header(NamedTuple):
    encoding: str
    elements: list[_Element]
    size: int  # bytes up to the first value


# ---- reading


def read(path: Path | str) -> SplatArrays:
    """The splats of a PLY file of degree 0 to 3, text or binary, whatever the order of its properties.

    Properties beyond the needed ones (normals, say) are passed over. Quaternions come back normalised. Raises PlyError
    for anything else than splats, for a file shorter than its header promises (before memory is taken) and for values
    that are not finite; an infinite stored opacity or a stored scale of minus infinity is 0 or 1, and 0.
    """
    path = Path(path)
    with path.open("rb") as file:
        header = _read_header(file, path)
        _check_size(header, path)
        columns = _read_vertices(file, header, path)
    return _activate(columns, path)


def _read_header(file: BinaryIO, path: Path) -> _Header:
    start = file.read(HEADER_LIMIT)
    if start[:4].rstrip(b"\r\n") != b"ply":
        raise PlyError(f"{path}: this is no PLY file; its first line should be 'ply'")
    end = start.find(b"end_header")
    newline = start.find(b"\n", end)
    if end < 0 or newline < 0:
        raise PlyError(f"{path}: no 'end_header' line within the first {HEADER_LIMIT} bytes")
    encoding, elements = "", []
    for line in start[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format":
            encoding = words[1] if len(words) > 1 else ""
        elif words[0] == "element" and len(words) == 3 and words[2].isdigit():
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[0] == "property" and elements and len(words) >= 3:
            elements[-1].properties.append((words[-1], _scalar_type(words, path)))
        else:
            raise PlyError(f"{path}: cannot read the header line {line[:80]!r}")
    if encoding not in BYTE_ORDERS:
        raise PlyError(f"{path}: format {encoding!r} is none of {', '.join(BYTE_ORDERS)}")
    return _Header(encoding, elements, newline + 1)


def _scalar_type(words: list[str], path: Path) -> str:
    if words[1] == "list":
        return ""
    if words[1] not in SCALAR_TYPES:
        raise PlyError(f"{path}: unknown type {words[1][:40]!r} of property {words[-1][:40]!r}")
    return SCALAR_TYPES[words[1]]


def _elements_to_vertex(header: _Header, path: Path) -> list[_Element]:
    """The elements up to and with `vertex`, all of fixed size."""
    names = [element.name for element in header.elements]
    if "vertex" not in names:
        raise PlyError(f"{path}: no element 'vertex', only {', '.join(names) or 'none at all'}")
    needed = header.elements[: names.index("vertex") + 1]
    for element in needed:
        if any(kind == "" for _, kind in element.properties):
            raise PlyError(f"{path}: element {element.name!r} holds a list, which no splat file has before its end")
    _check_properties([name for name, _ in needed[-1].properties], path)
    return needed


def _check_properties(names: list[str], path: Path) -> None:
    if "packed_position" in names:
        raise PlyError(f"{path}: a compressed splat PLY (packed_position); convert it to a plain one first")
    if len(set(names)) != len(names):
        raise PlyError(f"{path}: a property is named twice")
    missing = [n for n in (*POSITION, *BASE_COLOUR, "opacity", *SCALE, *ROTATION) if n not in names]
    if missing:
        raise PlyError(f"{path}: not a Gaussian splat file: it has no property {', '.join(missing)}")
    rest = sum(n.startswith("f_rest_") for n in names)
    if rest not in DEGREE_OF_REST or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise PlyError(f"{path}: expected 0, 9, 24 or 45 properties f_rest_0, f_rest_1, ..., found {rest}")


def _row_dtype(element: _Element, encoding: str) -> np.dtype:
    order = BYTE_ORDERS[encoding]
    return np.dtype([(name, order + kind) for name, kind in element.properties])


def _check_size(header: _Header, path: Path) -> None:
    """Compares the header's promise with the file's length, so that a forged count costs no memory."""
    if header.encoding == "ascii":  # a digit and a separator at least, the last separator may be missing
        promised = sum(e.count * 2 * len(e.properties) for e in _elements_to_vertex(header, path)) - 1
    else:
        elements = _elements_to_vertex(header, path)
        promised = sum(e.count * _row_dtype(e, header.encoding).itemsize for e in elements)
    found = path.stat().st_size - header.size
    if found < promised:
        raise PlyError(f"{path}: truncated: the header promises {promised} bytes of values, the file has {found}")


def _read_vertices(file: BinaryIO, header: _Header, path: Path) -> dict[str, np.ndarray]:
    *before, vertex = _elements_to_vertex(header, path)
    file.seek(header.size)
    if header.encoding == "ascii":
        for _ in range(sum(element.count for element in before)):
            file.readline()
        return _read_text_rows(file, vertex, path)
    file.seek(sum(e.count * _row_dtype(e, header.encoding).itemsize for e in before), 1)
    rows = np.fromfile(file, dtype=_row_dtype(vertex, header.encoding), count=vertex.count)
    if len(rows) != vertex.count:
        raise PlyError(f"{path}: truncated: expected {vertex.count} splats, found {len(rows)}")
    return {name: rows[name] for name, _ in vertex.properties}


def _read_text_rows(file: BinaryIO, vertex: _Element, path: Path) -> dict[str, np.ndarray]:
    names = [name for name, _ in vertex.properties]
    if vertex.count == 0:
        return {name: np.zeros(0) for name in names}
    try:
        rows = np.loadtxt(file, dtype=np.float64, max_rows=vertex.count, ndmin=2, comments=None)
    except ValueError as error:
        raise PlyError(f"{path}: the values cannot be read as numbers: {error}") from error
    if rows.shape != (vertex.count, len(names)):
        raise PlyError(f"{path}: expected {vertex.count} rows of {len(names)} numbers, found {rows.shape}")
    return dict(zip(names, rows.T, strict=True))


def _activate(columns: dict[str, np.ndarray], path: Path) -> SplatArrays:
    def stack(names: tuple[str, ...]) -> np.ndarray:
        return np.stack([columns[name] for name in names], axis=-1).astype(np.float32)

    rest = tuple(f"f_rest_{i}" for i in range(sum(name.startswith("f_rest_") for name in columns)))
    bases = 1 + len(rest) // 3
    base = stack(BASE_COLOUR)[:, None, :]
    count = len(base)
    higher = stack(rest).reshape(count, 3, bases - 1).transpose(0, 2, 1) if rest else base[:, :0]
    logits = columns["opacity"].astype(np.float64)
    with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf the right opacity
        splats = SplatArrays(
            means=stack(POSITION),
            quats=_normalised(stack(ROTATION)),
            scales=np.exp(stack(SCALE)),
            opacities=(1 / (1 + np.exp(-logits))).astype(np.float32),
            sh=np.ascontiguousarray(np.concatenate([base, higher], axis=1)),
        )
    _check_finite(splats, str(path))
    return splats


def _normalised(quats: np.ndarray) -> np.ndarray:
    """Unit quaternions; one of length 0, which says nothing, becomes the identity."""
    length = np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)
    unit = (quats / np.where(length == 0, 1, length)).astype(np.float32)
    return np.where(length == 0, np.array([1, 0, 0, 0], dtype=np.float32), unit)


def _check_finite(splats: SplatArrays, where: str) -> None:
    for name, values in splats._asdict().items():
        good = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        if not good.all():
            first = int(np.argmin(good))
            raise PlyError(f"{where}: {int((~good).sum())} splats have {name} that are not finite, first splat {first}")


# ---- writing


def write(path: Path | str, splats: SplatArrays) -> None:
    """Writes a binary little-endian PLY of float properties that all splat viewers read; no normals.

    Opacities are moved into [1e-6, 1 - 1e-6]. The file appears whole or not at all. Raises PlyError for wrong shapes
    and values that are not finite, OSError when the disk is full.
    """
    path = Path(path)
    _check_shapes(splats, path)
    _check_finite(splats, str(path))
    bases = splats.sh.shape[1]
    rest = [f"f_rest_{i}" for i in range(3 * (bases - 1))]
    names = [*POSITION, *BASE_COLOUR, *rest, "opacity", *SCALE, *ROTATION]
    count = len(splats.means)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in names]
    with replacing(path) as file:
        file.write(("\n".join([*header, "end_header"]) + "\n").encode("ascii"))
        for start in range(0, count, 65536):  # in blocks, so that writing needs no second copy of a large set
            part = SplatArrays(*(values[start : start + 65536] for values in splats))
            file.write(_deactivate(part).tobytes())


def _check_shapes(splats: SplatArrays, path: Path) -> None:
    count = len(splats.means)
    expected = {"means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,)}
    for name, shape in expected.items():
        if getattr(splats, name).shape != shape:
            raise PlyError(f"{path}: {name} must have shape {shape}, found {getattr(splats, name).shape}")
    if splats.sh.shape not in [(count, bases, 3) for bases in (1, 4, 9, 16)]:
        raise PlyError(f"{path}: sh must have shape ({count}, 1, 4, 9 or 16, 3), found {splats.sh.shape}")


def _deactivate(splats: SplatArrays) -> np.ndarray:
    """[N,14 + 3(K-1)] stored values, little-endian float32, in the order of the header."""
    count = len(splats.means)
    chance = np.clip(splats.opacities.astype(np.float64), OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    logits = np.log(chance / (1 - chance))
    logs = np.log(np.maximum(splats.scales.astype(np.float64), SMALLEST_SCALE))
    rest = splats.sh[:, 1:].transpose(0, 2, 1).reshape(count, 3 * (splats.sh.shape[1] - 1))
    columns = [splats.means, splats.sh[:, 0], rest, logits[:, None], logs, splats.quats]
    return np.concatenate(columns, axis=1).astype("<f4")
