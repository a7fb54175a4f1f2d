"""THE wire contract between Blender and the backend. Standard library and numpy only.

A message is one frozen dataclass. On the wire, frame 0 is JSON (type, version, plain fields, dtype and shape of each
array) and each following frame is one array's bytes, in field order. No pickle.

All geometry is in OpenCV axes and scene units; images are sRGB with straight alpha.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

VERSION = 1

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


def array(dtype: str, *shape: int | str) -> Any:
    return field(metadata={"array": ArraySpec(dtype, shape)})


def optional_array(dtype: str, *shape: int | str) -> Any:
    return field(default=None, metadata={"array": ArraySpec(dtype, shape, optional=True)})


# ---- Blender to backend


@dataclass(frozen=True)
class Hello:
    version: int
    token: str


@dataclass(frozen=True)
class Reconstruct:
    """Views in, splats (and a mesh if wanted) out."""

    job_id: str
    images: np.ndarray = array("uint8", "V", "H", "W", 4)  # sRGB, straight alpha
    c2w: np.ndarray = array("float32", "V", 4, 4)
    Ks: np.ndarray = array("float32", "V", 3, 3)
    orthographic: np.ndarray = array("bool", "V")
    depth: np.ndarray | None = optional_array("float32", "V", "H", "W")  # planar, 0 where nothing was hit
    model: str = "fit"
    weights: str = ""  # a checkpoint's name or path; empty: the model's default
    steps: int = 0  # optimisation steps of `fit`; 0: the default for these views
    refine: int = 0  # fit steps after a network
    max_splats: int = 0  # 0: the default
    mesh: bool = False
    faces: int = 20_000
    texture_size: int = 1024
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Cancel:
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
    total: int


@dataclass(frozen=True)
class Preview:
    job_id: str
    image: np.ndarray = array("uint8", "H", "W", 4)


@dataclass(frozen=True)
class Splats:
    job_id: str
    means: np.ndarray = array("float32", "N", 3)
    quats: np.ndarray = array("float32", "N", 4)  # wxyz, unit
    scales: np.ndarray = array("float32", "N", 3)  # linear
    opacities: np.ndarray = array("float32", "N")
    sh: np.ndarray = array("float32", "N", "K", 3)


@dataclass(frozen=True)
class TexturedMesh:
    """Vertices are split at texture seams: one uv a vertex, v up as in Blender and OpenGL."""

    job_id: str
    vertices: np.ndarray = array("float32", "N", 3)
    faces: np.ndarray = array("int32", "F", 3)
    uvs: np.ndarray = array("float32", "N", 2)
    texture: np.ndarray = array("uint8", "H", "W", 4)  # row 0 is the top of the picture (v = 1)


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
