"""THE wire contract between Blender and the backend. Standard library and numpy only.

A message is one frozen dataclass. On the wire, frame 0 is JSON (type, version, plain fields, dtype and shape of each
array) and each following frame is one array's bytes, little-endian, in field order. No pickle.

All geometry is in OpenCV axes and scene units; images are sRGB with straight alpha.
"""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np

from .families import Precision

VERSION = 3  # raise it with every change of a message

# how an object is told from a picture's background: by the picture's own alpha if it has some, else by a network if its
# weights are on this machine, else as what differs from a plain background; or by one of these; or not at all
Cut: TypeAlias = Literal["auto", "alpha", "network", "plain", "none"]

FailureKind = Literal[
    "bad_request",  # the job's own fields make no sense: message says which
    "nothing_seen",  # the cameras do not see a common object
    "missing_weights",
    "out_of_memory",
    "disk_full",
    "worker_died",  # the process that ran the job was killed or crashed
    "internal",
]


@dataclass(frozen=True)
class ArraySpec:
    """dtype and shape of an array field; a letter in the shape is a size that must agree within one message."""

    dtype: str
    shape: tuple[int | str, ...]
    optional: bool = False


# ---- Blender to backend


@dataclass(frozen=True)
class Hello:
    version: int
    token: str


@dataclass(frozen=True)
class Reconstruct:
    """Views in, splats (and a mesh if wanted) out."""

    job_id: str
    images: Annotated[np.ndarray, ArraySpec("uint8", ("V", "H", "W", 4))]  # sRGB, straight alpha
    c2w: Annotated[np.ndarray, ArraySpec("float32", ("V", 4, 4))]
    Ks: Annotated[np.ndarray, ArraySpec("float32", ("V", 3, 3))]
    orthographic: Annotated[np.ndarray, ArraySpec("bool", ("V",))]
    # planar depth along the view axis, 0 where nothing was hit
    depth: Annotated[np.ndarray | None, ArraySpec("float32", ("V", "H", "W"), optional=True)] = None
    model: str = "fit"
    weights: str = ""  # a checkpoint's name or path; empty: the model's default
    precision: Precision = "auto"
    steps: int = 0  # optimisation steps of `fit`; 0: the default for these views
    refine: int = 0  # fit steps after a network
    max_splats: int = 0  # 0: the default
    mesh: bool = False
    faces: int = 20_000
    texture_size: int = 1024
    size: float = 0.0  # longest side of the result, which is moved to stand on the world's origin; 0: left as it is
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Imagine:
    """A prompt or pictures in; out come an Imagined for each candidate, and Done.

    Several pictures are views already: of the named sides of one object, they are cut out and brought to one scale.
    """

    job_id: str
    pictures: Annotated[np.ndarray, ArraySpec("uint8", ("B",))]  # the files' bytes as they are, one after the other
    picture_bytes: Annotated[np.ndarray, ArraySpec("int64", ("P",))]  # how many are each picture's
    # of views to keep where one is made anew, with `redo`; as Imagined has them
    views: Annotated[np.ndarray | None, ArraySpec("uint8", ("V", "H", "W", 4), optional=True)] = None
    redo: int = -1  # number of the view that is made anew; -1: all are made
    picture_names: tuple[str, ...] = ()  # for sentences about them
    sides: tuple[str, ...] = ()  # which side of the object each picture shows: a key of front_ends.SIDES
    prompt: str = ""
    negative_prompt: str = ""
    front_end: str = "starter"
    weights: str = ""  # a folder; empty: where the catalogue's lie
    cut: Cut = "auto"
    candidates: int = 1
    steps: int = 0  # of sampling; 0: the front end's own
    guidance: float = 0.0  # 0: the front end's own
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0  # of the first candidate; each further one has the next


@dataclass(frozen=True)
class CutOut:
    """A picture in; out come a Preview, which shows what will be taken of it, and Done."""

    job_id: str
    picture: Annotated[np.ndarray, ArraySpec("uint8", ("B",))]  # the file's bytes as they are
    picture_name: str = ""
    cut: Cut = "auto"


@dataclass(frozen=True)
class Cancel:
    job_id: str


@dataclass(frozen=True)
class Finish:
    """Stop optimising now and hand over the best result so far."""

    job_id: str


@dataclass(frozen=True)
class Shutdown:
    pass


# ---- backend to Blender


@dataclass(frozen=True)
class Welcome:
    version: int
    device: str  # "cpu" or "cuda"
    device_name: str
    memory_bytes: int
    models: tuple[str, ...]  # families that can run now
    front_ends: tuple[str, ...] = ()  # whose weights are on this machine


@dataclass(frozen=True)
class Refused:
    """The answer to a wrong token, a wrong version or a message that cannot be read; the job, if any, does not run."""

    message: str
    version: int = VERSION
    job_id: str = ""


@dataclass(frozen=True)
class Queued:
    job_id: str
    position: int  # 0: runs next


@dataclass(frozen=True)
class Progress:
    job_id: str
    stage: str
    step: int
    total: int  # steps of this stage
    fraction: float = 0.0  # 0..1 of the whole job, as far as it can be told: one bar that never runs backwards


@dataclass(frozen=True)
class Preview:
    job_id: str
    image: Annotated[np.ndarray, ArraySpec("uint8", ("H", "W", 4))]


@dataclass(frozen=True)
class Imagined:
    """Views of one candidate, ready to be sent back in a Reconstruct."""

    job_id: str
    images: Annotated[np.ndarray, ArraySpec("uint8", ("V", "H", "W", 4))]  # sRGB, straight alpha
    c2w: Annotated[np.ndarray, ArraySpec("float32", ("V", 4, 4))]
    Ks: Annotated[np.ndarray, ArraySpec("float32", ("V", 3, 3))]
    orthographic: Annotated[np.ndarray, ArraySpec("bool", ("V",))]
    candidate: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Splats:
    job_id: str
    means: Annotated[np.ndarray, ArraySpec("float32", ("N", 3))]
    quats: Annotated[np.ndarray, ArraySpec("float32", ("N", 4))]  # wxyz, unit
    scales: Annotated[np.ndarray, ArraySpec("float32", ("N", 3))]  # linear
    opacities: Annotated[np.ndarray, ArraySpec("float32", ("N",))]
    sh: Annotated[np.ndarray, ArraySpec("float32", ("N", "K", 3))]


@dataclass(frozen=True)
class TexturedMesh:
    """Vertices are split at texture seams: one uv a vertex, v up as in Blender and OpenGL."""

    job_id: str
    vertices: Annotated[np.ndarray, ArraySpec("float32", ("N", 3))]
    faces: Annotated[np.ndarray, ArraySpec("int32", ("F", 3))]
    uvs: Annotated[np.ndarray, ArraySpec("float32", ("N", 2))]
    texture: Annotated[np.ndarray, ArraySpec("uint8", ("H", "W", 4))]  # row 0 is the top of the picture (v = 1)


@dataclass(frozen=True)
class Failed:
    job_id: str
    kind: FailureKind
    message: str
    detail: str = ""


@dataclass(frozen=True)
class Cancelled:
    job_id: str


@dataclass(frozen=True)
class Done:
    job_id: str
    report: dict[str, Any]


# ---- encoding

Message: TypeAlias = (
    Hello | Reconstruct | Imagine | CutOut | Cancel | Finish | Shutdown | Welcome | Refused | Queued | Progress
    | Preview | Imagined | Splats | TexturedMesh | Failed | Cancelled | Done
)  # fmt: skip
Frame: TypeAlias = bytes | bytearray | memoryview

KIB, MIB, GIB = 2**10, 2**20, 2**30
HEADER_LIMIT = MIB  # bytes of frame 0
ARRAY_LIMITS = {  # bytes of all arrays of one message; a message type not named here has none
    "Reconstruct": 3 * GIB,
    "Imagine": GIB,
    "CutOut": GIB,
    "Preview": 16 * MIB,
    "Imagined": 256 * MIB,
    "Splats": 4 * GIB,
    "TexturedMesh": 2 * GIB,
}
MAX_FRAME_BYTES = max(ARRAY_LIMITS.values())  # what a socket may accept before it has read a message's header


class ProtocolError(ValueError):
    """A message that cannot be sent or read, in one sentence that says which field, what was expected and found."""

    job_id = ""  # of the job the message spoke of, where that could be read


def encode(message: Message) -> list[memoryview | bytes]:
    """The message's frames: JSON, then one view a present array, which shares the array's memory if it is contiguous.

    Raises ProtocolError when a field does not have its declared type, dtype or shape, or the message is too large.
    """
    layout = _layout(type(message).__name__)
    arrays = {name: getattr(message, name) for name in layout.arrays}
    plain = {name: getattr(message, name) for name in layout.plain}
    for name, value in plain.items():
        _check_plain(layout, name, list(value) if isinstance(value, tuple) else value)
    described: dict[str, Any] = {}
    for name, value in arrays.items():
        if value is not None and not isinstance(value, np.ndarray):
            raise ProtocolError(f"{layout.name}.{name}: expected an array, found {type(value).__name__}")
        described[name] = None if value is None else {"dtype": value.dtype.name, "shape": list(value.shape)}
    _check_arrays(layout, described)
    try:
        header = json.dumps(
            {"type": layout.name, "version": VERSION, "fields": plain, "arrays": described}, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"{layout.name}: a field cannot be written as JSON: {error}") from error
    if len(header) > HEADER_LIMIT:
        raise ProtocolError(f"{layout.name}: the header may have {HEADER_LIMIT} bytes, found {len(header)}")
    return [header, *(_bytes_of(value) for value in arrays.values() if value is not None)]


def decode(frames: Sequence[Frame]) -> Message:
    """The message of some frames; its arrays are read-only views of the frames' memory.

    Raises ProtocolError for anything but one whole message of this VERSION with exactly its declared fields.
    """
    if not frames:
        raise ProtocolError("a message without frames")
    header = _read_header(frames[0])
    try:
        return _message_of(header, frames[1:])
    except ProtocolError as error:
        job_id = header["fields"].get("job_id")
        error.job_id = job_id if isinstance(job_id, str) else ""
        raise


@dataclass(frozen=True)
class _Layout:
    """What a message class declares: its plain fields with their types, its array fields with their specs."""

    name: str
    message: type
    plain: dict[str, Any]
    arrays: dict[str, ArraySpec]


@cache
def _layouts() -> dict[str, _Layout]:
    layouts = {}
    for message in typing.get_args(Message):
        hints = typing.get_type_hints(message, include_extras=True)
        specs = {name: hint.__metadata__[0] for name, hint in hints.items() if typing.get_origin(hint) is Annotated}
        plain = {name: hint for name, hint in hints.items() if name not in specs}
        layouts[message.__name__] = _Layout(message.__name__, message, plain, specs)
    return layouts


def _layout(name: object) -> _Layout:
    if not isinstance(name, str) or name not in _layouts():
        raise ProtocolError(f"unknown message type {_short(name)}")
    return _layouts()[name]


def _read_header(frame: Frame) -> dict[str, Any]:
    """Frame 0 as an object of known keys and this side's version."""
    if len(frame) > HEADER_LIMIT:
        raise ProtocolError(f"the header may have {HEADER_LIMIT} bytes, found {len(frame)}")
    try:
        header = json.loads(
            bytes(frame), parse_constant=_refuse_number, parse_float=_finite, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the header is not the JSON of a message: {_short(str(error))}") from error
    if not isinstance(header, dict) or "version" not in header:
        raise ProtocolError("the header is not the JSON of a message: it is no object with a version")
    if header["version"] != VERSION or isinstance(header["version"], bool):
        raise ProtocolError(
            f"the other side speaks version {_short(header['version'])} of the protocol, this side version {VERSION}: "
            "update the extension, then set up the backend again"
        )
    if set(header) != {"type", "version", "fields", "arrays"}:
        raise ProtocolError(f"the header has the wrong keys: {_names(header)}")
    if not isinstance(header["fields"], dict) or not isinstance(header["arrays"], dict):
        raise ProtocolError("the header's fields and arrays must be objects")
    return header


def _message_of(header: dict[str, Any], frames: Sequence[Frame]) -> Message:
    layout = _layout(header["type"])
    found = header["fields"]
    if set(found) != set(layout.plain):
        raise ProtocolError(f"{layout.name}: expected the fields {sorted(layout.plain)}, found {_names(found)}")
    plain = {name: _check_plain(layout, name, value) for name, value in found.items()}
    shapes = _check_arrays(layout, header["arrays"])
    if len(frames) != len(shapes):
        raise ProtocolError(f"{layout.name}: expected {len(shapes)} array frames, found {len(frames)}")
    arrays: dict[str, Any] = dict.fromkeys(layout.arrays)
    for (name, shape), frame in zip(shapes.items(), frames, strict=True):
        arrays[name] = _array_of(layout, name, shape, frame)
    return layout.message(**plain, **arrays)


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_number(text[:20])


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key is there twice")
    return keys


def _check_plain(layout: _Layout, name: str, value: Any) -> Any:
    """The value of a plain field as the dataclass wants it, from JSON's types."""
    hint = layout.plain[name]
    if typing.get_origin(hint) is Literal:
        if value in typing.get_args(hint):
            return value
        raise ProtocolError(f"{layout.name}.{name}: expected one of {typing.get_args(hint)}, found {_short(value)}")
    if typing.get_origin(hint) is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    python = hint if isinstance(hint, type) else typing.get_origin(hint)
    if python is float and type(value) is int:
        return float(value)
    if type(value) is not python or (isinstance(value, int) and not -(2**63) <= value < 2**63):
        raise ProtocolError(f"{layout.name}.{name}: expected {getattr(hint, '__name__', hint)}, found {_short(value)}")
    return value


def _check_arrays(layout: _Layout, described: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that are there, once dtypes, ranks, agreeing sizes and the message's limit are checked."""
    if list(described) != list(layout.arrays):
        raise ProtocolError(f"{layout.name}: expected the arrays {list(layout.arrays)}, found {_names(described)}")
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    total = 0
    for name, spec in layout.arrays.items():
        if described[name] is None and spec.optional:
            continue
        shape = _check_shape(f"{layout.name}.{name}", spec, described[name])
        for letter, size in zip(spec.shape, shape, strict=True):
            expected = sizes.setdefault(letter, size) if isinstance(letter, str) else letter
            if size != expected:
                raise ProtocolError(f"{layout.name}.{name}: expected size {expected} for {letter}, found {size}")
        shapes[name] = shape
        total += math.prod(shape) * np.dtype(spec.dtype).itemsize
    limit = ARRAY_LIMITS.get(layout.name, 0)
    if total > limit:
        raise ProtocolError(f"{layout.name}: its arrays may have {limit} bytes in all, found {total}")
    return shapes


def _check_shape(where: str, spec: ArraySpec, described: Any) -> tuple[int, ...]:
    if not isinstance(described, dict) or set(described) != {"dtype", "shape"}:
        raise ProtocolError(f"{where}: expected a dtype and a shape, found {_short(described)}")
    dtype, shape = described["dtype"], described["shape"]
    if dtype != spec.dtype:
        raise ProtocolError(f"{where}: expected {spec.dtype}, found {_short(dtype)}")
    if not isinstance(shape, list) or len(shape) != len(spec.shape):
        raise ProtocolError(f"{where}: expected a shape of {len(spec.shape)} sizes, found {_short(shape)}")
    if not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise ProtocolError(f"{where}: sizes must be whole and not negative, found {_short(shape)}")
    return tuple(shape)


def _bytes_of(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _array_of(layout: _Layout, name: str, shape: tuple[int, ...], frame: Frame) -> np.ndarray:
    dtype = np.dtype(layout.arrays[name].dtype)
    expected = math.prod(shape) * dtype.itemsize
    found = memoryview(frame).nbytes
    if found != expected:
        raise ProtocolError(f"{layout.name}.{name}: expected {expected} bytes for shape {shape}, found {found}")
    if dtype.kind == "b" and bytes(frame).strip(b"\0\1"):
        raise ProtocolError(f"{layout.name}.{name}: a truth value is one byte, 0 or 1")
    values = np.frombuffer(frame, dtype).reshape(shape)
    values.flags.writeable = False
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _names(described: dict[str, Any]) -> str:
    return _short(sorted(map(str, described)))
