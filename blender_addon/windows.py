"""Blender's windows, for what runs outside of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import bpy


@contextlib.contextmanager
def main_window(scene: bpy.types.Scene) -> Iterator[None]:
    """A timer's context lacks a window; operators want one that shows the scene."""
    windows = bpy.context.window_manager.windows
    window = next((window for window in windows if window.scene == scene), None)
    layer = window.view_layer if window is not None else scene.view_layers[0]
    override: dict[str, Any] = {"scene": scene, "view_layer": layer}
    if window is not None:
        override["window"] = window
    with bpy.context.temp_override(**override):
        yield


def redraw() -> None:
    """Draws the sidebars and the preferences again, and nothing else: a 3D view may be costly."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "PREFERENCES":
                area.tag_redraw()
            elif area.type == "VIEW_3D":
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()
