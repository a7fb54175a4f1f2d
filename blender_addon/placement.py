"""Where in the scene a result stands that no camera has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import bpy
import numpy as np
from mathutils import Vector

from . import subjects
from .imagining import Placing
from .views import CaptureError


@dataclass(frozen=True)
class Spot:
    """A place in the world that something stands on.

    location  scene units
    facing    turn about Z, radians
    size      longest side of what stands there, scene units
    """

    location: tuple[float, float, float]
    facing: float
    size: float


def spot_for(context: bpy.types.Context, placing: Placing) -> Spot:
    """The spot as the scene is now. Raises CaptureError when nothing is selected to stand on."""
    location = _location(context, placing)
    return Spot((location.x, location.y, location.z), math.radians(placing.facing), units(context.scene, placing.size))


def units(scene: bpy.types.Scene, metres: float) -> float:
    """A length in the scene's units; a scene without a system of units counts in metres."""
    settings = scene.unit_settings
    return metres if settings.system == "NONE" else metres / settings.scale_length


def nothing_to_stand_on(context: bpy.types.Context) -> str:
    """Why the selection is no place, or nothing. Cheap: it is asked at each redraw."""
    return "" if context.selected_objects else "Select what the result shall stand on"


def _location(context: bpy.types.Context, placing: Placing) -> Vector:
    if placing.place == "origin":
        return Vector((0, 0, 0))
    if placing.place == "cursor":
        return Vector(context.scene.cursor.location)
    corners = _corners(context.view_layer)
    if not len(corners):
        raise CaptureError("Nothing is selected that a result can stand on: select an object, or choose another place.")
    low, high = corners.min(axis=0), corners.max(axis=0)
    return Vector(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[2]))


def _corners(layer: bpy.types.ViewLayer) -> np.ndarray:
    """[N,3] world: of the boxes of what is selected, and of what is below selected empties."""
    layer.update()
    items = (layer.objects.get(name) for name in sorted(subjects.selected_names(layer)))
    shown = [item for item in items if item is not None and subjects.has_surface(item)]
    corners = [item.matrix_world @ Vector(corner) for item in shown for corner in item.bound_box]
    return np.array(corners, np.float64).reshape(-1, 3)
