"""Render jobs in an open Blender: how they start and end, and what of the interface they need changed meanwhile."""

from __future__ import annotations

import bpy

from .views import CaptureError

# Until 5.1 Blender crashes when a job renders a scene that no window shows (it frees contexts in use) and when a
# scene is deleted without a window in the context, which is how a job is ended. There, pictures are rendered in place.
FIRST_SOUND = (5, 1, 0)


def usable() -> bool:
    """Whether pictures can be rendered in jobs, with the interface alive meanwhile."""
    return not bpy.app.background and bpy.app.version >= FIRST_SOUND


class Interface:
    """The interface during a run: no render window opens. `restore` is sound after an undo or a file load too."""

    def __init__(self) -> None:
        preferences = bpy.context.preferences
        self._preferences = (preferences.view.render_display_type, preferences.is_dirty)
        preferences.view.render_display_type = "NONE"

    def restore(self) -> None:
        preferences = bpy.context.preferences
        preferences.view.render_display_type, preferences.is_dirty = self._preferences


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
