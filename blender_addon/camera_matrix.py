"""A Blender camera as numbers: its lens, its rigid position, and the matrix K it amounts to at an image size. No bpy
import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .views import CaptureError


@dataclass(frozen=True)
class Lens:
    """What of a camera's settings decides where a point lands, under Blender's own names (lens and sensor in
    millimetres, shifts in parts of the fitted side, ortho_scale and clips in scene units)."""

    type: str = "PERSP"
    lens: float = 50.0
    ortho_scale: float = 6.0
    sensor_fit: str = "AUTO"
    sensor_width: float = 36.0
    sensor_height: float = 24.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    clip_start: float = 0.1
    clip_end: float = 1000.0


LENS_FIELDS = tuple(Lens.__dataclass_fields__)


@dataclass(frozen=True)
class Frame:
    """The picture's size in pixels and the shape of a pixel."""

    width: int
    height: int
    pixel_aspect_x: float = 1.0
    pixel_aspect_y: float = 1.0


def read_lens(camera: Any, name: str) -> Lens:
    """The lens of a bpy.types.Camera. Raises CaptureError for a kind no straight-line projection can stand for."""
    if camera.type not in ("PERSP", "ORTHO"):
        raise CaptureError(
            f"The camera {name} is of type {camera.type.capitalize()}: only perspective and orthographic cameras can "
            "be captured."
        )
    return Lens(**{field: getattr(camera, field) for field in LENS_FIELDS})


def write_lens(lens: Lens, camera: Any) -> None:
    """Give a bpy.types.Camera this lens."""
    for field in LENS_FIELDS:
        setattr(camera, field, getattr(lens, field))


def intrinsics(lens: Lens, frame: Frame) -> np.ndarray:
    """[3,3] float64 K in pixels (of an orthographic lens: pixels per scene unit), principal point from the top left
    corner.

    Blender measures lens, scale and shift along one fitted side, in units of a pixel's width."""
    tall = frame.pixel_aspect_y / frame.pixel_aspect_x
    landscape = frame.width >= tall * frame.height
    horizontal = landscape if lens.sensor_fit == "AUTO" else lens.sensor_fit == "HORIZONTAL"
    fitted_px = frame.width if horizontal else tall * frame.height
    sensor = lens.sensor_height if lens.sensor_fit == "VERTICAL" else lens.sensor_width
    focal = fitted_px / lens.ortho_scale if lens.type == "ORTHO" else fitted_px * lens.lens / sensor
    K = np.eye(3)
    K[0, 0], K[1, 1] = focal, focal / tall
    K[0, 2] = frame.width / 2 - lens.shift_x * fitted_px
    K[1, 2] = frame.height / 2 + lens.shift_y * fitted_px / tall
    return K


def rigid(matrix: np.ndarray) -> np.ndarray:
    """[4,4] float64: the right-handed rotation and position nearest in meaning to a camera's world matrix [4,4],
    Blender axes.

    Parents may scale, shear or mirror a camera. What it looks along is kept, then which side is up; a mirrored one
    sees the world unmirrored. Raises CaptureError when a scale is zero."""
    matrix = np.asarray(matrix, dtype=np.float64)
    up, back = matrix[:3, 1], matrix[:3, 2]
    back_length = np.linalg.norm(back)
    up = up - back * (up @ back) / max(back_length**2, np.finfo(float).tiny)
    up_length = np.linalg.norm(up)
    if not (np.isfinite(matrix).all() and back_length > 0 and up_length > 0):
        raise CaptureError("A camera is scaled to nothing: give it and its parents a scale other than zero.")
    c2w = np.eye(4)
    c2w[:3, 1], c2w[:3, 2] = up / up_length, back / back_length
    c2w[:3, 0] = np.cross(c2w[:3, 1], c2w[:3, 2])
    c2w[:3, 3] = matrix[:3, 3]
    return c2w
