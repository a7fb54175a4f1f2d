"""What in a scene keeps splats from looking as they should, and changes that help. Nothing here acts unasked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import bpy

from . import splat_nodes, splat_object

FEW_BOUNCES, ENOUGH_BOUNCES = 32, 64


class Advice(NamedTuple):
    sentence: str
    fix: str  # a key of FIXES


def scene_advice(scene: bpy.types.Scene) -> list[Advice]:
    """Sentences for the panel, each with the fix that a button may apply; empty without splats that render."""
    shown = _shown_splats(scene)
    advice: list[Advice] = []
    if not shown:
        return advice
    if scene.view_settings.view_transform not in ("Standard", "Raw"):
        view = scene.view_settings.view_transform
        advice.append(
            Advice(f"The view transform {view} shifts captured colours; Standard shows them as they were", "VIEW")
        )
    if scene.render.engine == "CYCLES" and hasattr(scene, "cycles"):
        bounces = scene.cycles.transparent_max_bounces
        if bounces < FEW_BOUNCES:
            advice.append(Advice(f"Cycles looks through {bounces} layers of splats; more give softer edges", "BOUNCES"))
    if any(not splat_nodes.faces_camera(item) for item in shown):
        advice.append(Advice("Renders are quicker when splats turn to the camera", "FACE_CAMERA"))
    return advice


def apply_fix(scene: bpy.types.Scene, fix: str) -> None:
    """Makes one change. KeyError for a fix there is not."""
    FIXES[fix](scene)


def _shown_splats(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    found = [item for item in scene.objects if not item.hide_render and splat_object.is_splats(item)]
    return [item for item in found if splat_nodes.modifier_of(item) is not None]


def _standard_view(scene: bpy.types.Scene) -> None:
    scene.view_settings.view_transform = "Standard"


def _more_bounces(scene: bpy.types.Scene) -> None:
    scene.cycles.transparent_max_bounces = max(ENOUGH_BOUNCES, scene.cycles.transparent_max_bounces)


def _face_camera(scene: bpy.types.Scene) -> None:
    for item in _shown_splats(scene):
        splat_nodes.set_faces_camera(item, True)


FIXES: dict[str, Callable[[bpy.types.Scene], None]] = {
    "VIEW": _standard_view,
    "BOUNCES": _more_bounces,
    "FACE_CAMERA": _face_camera,
}
