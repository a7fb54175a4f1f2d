"""Render jobs in an open Blender: how they start and end, and what of the interface they need changed meanwhile."""

from __future__ import annotations

import bpy

from . import temporary
from .views import CaptureError

# Until 5.0 Blender frees the graphics contexts of renders whose scene no window shows, even while they run, and crashes
# (RE_FreeUnusedGPUResources). There a window has to show the scene that is rendered.
_NEEDS_WINDOW = bpy.app.version < (5, 0, 0)


class Interface:
    """The interface during a run: no render window opens and, where Blender needs it, a window shows the stage's scene.
    `restore` puts all back; it is sound after an undo or a file load too."""

    def __init__(self, source: bpy.types.Scene, stage: bpy.types.Scene) -> None:
        self._source = source.name
        preferences = bpy.context.preferences
        self._preferences = (preferences.view.render_display_type, preferences.is_dirty)
        preferences.view.render_display_type = "NONE"
        if _NEEDS_WINDOW and not bpy.app.background:
            _main_window(source).scene = stage

    def restore(self) -> None:
        preferences = bpy.context.preferences
        preferences.view.render_display_type, preferences.is_dirty = self._preferences
        ordinary = [scene for scene in bpy.data.scenes if temporary.MARK not in scene]
        back = bpy.data.scenes.get(self._source) or (ordinary[0] if ordinary else None)
        for window in bpy.context.window_manager.windows:
            if back is not None and temporary.MARK in window.scene:
                window.scene = back


def _main_window(scene: bpy.types.Scene) -> bpy.types.Window:
    """The window the artist works in: the context's, else one that shows the scene, without what hangs on it."""
    windows = [window for window in bpy.context.window_manager.windows if window.parent is None]
    showing = [window for window in windows if window.scene == scene]
    return (showing or windows)[0]


def running() -> bool:
    """Whether Blender renders now, for us or for the artist."""
    return bpy.app.is_job_running("RENDER")


def start(scene: bpy.types.Scene) -> None:
    """Render one still picture of `scene` to its file, in a job. Raises CaptureError when Blender refuses."""
    window = bpy.context.window or bpy.context.window_manager.windows[0]
    with bpy.context.temp_override(window=window):
        answer = bpy.ops.render.render("INVOKE_DEFAULT", scene=scene.name, write_still=True)
    if "CANCELLED" in answer:
        raise CaptureError("Blender did not start the render: its console says why.")


def stop(scene: bpy.types.Scene) -> None:
    """End the job that renders `scene`, and the scene with it. Blender has no call that ends a job, but deleting a
    scene as its menu does ends the jobs that it owns."""
    with bpy.context.temp_override(scene=scene):  # without a window, whose own scene would win
        if bpy.context.scene == scene:
            bpy.ops.scene.delete()
