"""From a scene to posed views. `capture` blocks, for scripts and `blender -b`; `CaptureRun` leaves the interface alive.

Both render single views of a temporary scene (stage.py) into a folder of their own as scene-linear EXR files, and
encode those as Blender's Standard view shows them, whatever view transform the scene uses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

from . import exr, pictures, render_jobs, render_settings, shots
from .stage import Pose, Stage, check_not_inside
from .views import CapturedViews, CaptureError, CaptureSettings

__all__ = ["CaptureError", "CaptureRun", "CaptureSettings", "CapturedViews", "capture"]

OnProgress = Callable[[int, int, str], None]


def capture(
    context: bpy.types.Context, settings: CaptureSettings, on_progress: OnProgress | None = None
) -> CapturedViews:
    """Render all views, blocking. `on_progress(done, total, label)` is called before each view and at the end.

    Raises CaptureError with a sentence for the artist. The user's scene and settings are left as they were."""
    film = _Film(context, settings)
    try:
        for index, shot in enumerate(film.shots):
            if on_progress is not None:
                on_progress(index, len(film.shots), shot.name)
            film.aim()
            film.render_blocking()
            film.develop()
        if on_progress is not None:
            on_progress(len(film.shots), len(film.shots), "")
        return film.views()
    finally:
        film.close()


class CaptureRun:
    """A capture in an open Blender: one render job at a time, between which and during which the interface lives.

    `start(context)`, then `tick()` from a timer until it returns True; then `result` or `error` is set (neither after
    `cancel()`). `done`, `total` and `label` say how far it is. Without a window (`blender -b`) a tick renders a
    view."""

    def __init__(self, settings: CaptureSettings) -> None:
        self.settings = settings
        self.done = 0
        self.total = 0
        self.label = ""
        self.result: CapturedViews | None = None
        self.error: CaptureError | None = None
        self.cancelled = False
        self._film: _Film | None = None
        self._job_started = False
        self._interface: render_jobs.Interface | None = None

    def start(self, context: bpy.types.Context) -> None:
        """Check and prepare; raises CaptureError at once when the capture cannot begin."""
        self._film = _Film(context, self.settings)
        self._interface = render_jobs.Interface()
        self.total = len(self._film.shots)
        self.label = self._film.shots[0].name

    def tick(self) -> bool:
        """Advance without waiting; True when the capture is over (finished, failed or cancelled)."""
        if self._film is None:
            return True
        try:
            self._advance(self._film)
        except CaptureError as error:
            self.error = error
            self._close()
        except BaseException:
            self._close()
            raise
        return self._film is None

    def cancel(self) -> None:
        """Stop the running render, drop the views and restore everything; idempotent."""
        if self._film is not None:
            self.cancelled = True
            self._close()

    def _advance(self, film: _Film) -> None:
        if render_jobs.running():
            return  # ours, or one of the artist's that ours waits for
        if not self._job_started:
            film.aim()
            if render_jobs.usable():
                film.start_render_job()
            else:
                film.render_blocking()
            self._job_started = True
            return
        self._job_started = False
        if not film.rendered:  # the artist pressed Esc over the render
            self.cancel()
            return
        film.develop()
        self.done += 1
        if self.done < self.total:
            self.label = film.shots[self.done].name
            return
        self.label = ""
        self.result = film.views()
        self._close()

    def _close(self) -> None:
        film, self._film = self._film, None
        interface, self._interface = self._interface, None
        if film is not None and self._job_started and render_jobs.running():
            film.stop_render_job()
        if interface is not None:
            interface.restore()
        if film is not None:
            film.close()


class _Film:
    """The stage of a capture and the pictures taken so far. Raises CaptureError when nothing can be captured."""

    def __init__(self, context: bpy.types.Context, settings: CaptureSettings) -> None:
        self._settings = settings
        self._stage = Stage(context, settings)
        self._poses: list[Pose] = []
        self._images: list[np.ndarray] = []
        self._depths: list[np.ndarray | None] = []
        try:
            self._scene = self._stage.scene.name
            self._engine = self._stage.scene.render.engine
            self.shots = shots.plan(context, settings, self._stage)
            check_not_inside(self._stage, self.shots)
        except BaseException:
            self.close()
            raise

    @property
    def scene(self) -> bpy.types.Scene:
        """The temporary scene that is rendered."""
        return self._stage.scene

    @property
    def _file(self) -> Path:
        return self._stage.folder / f"{len(self._images):04d}.exr"

    @property
    def rendered(self) -> bool:
        """Whether the file of the shot that was aimed at is there."""
        return self._file.is_file()

    def aim(self) -> None:
        """Prepare the next shot."""
        self._poses.append(self._stage.place(self.shots[len(self._images)]))
        render_settings.set_output(self._stage.scene, self._file)

    def render_blocking(self) -> None:
        try:
            bpy.ops.render.render(scene=self._scene, write_still=True)
        except RuntimeError as error:
            raise CaptureError(f"Blender could not render the view: {_first_line(error)}") from error
        if not self.rendered:
            raise CaptureError(f"Blender's {self._engine} rendered no picture: its console says why.")

    def start_render_job(self) -> None:
        render_jobs.start(self.scene)

    def stop_render_job(self) -> None:
        if self._scene in bpy.data.scenes:  # else an undo or another file has ended it
            render_jobs.stop(self.scene)

    def develop(self) -> None:
        """Read and encode the rendered file."""
        try:
            channels = exr.read(self._file)
        except (OSError, ValueError) as error:
            raise CaptureError(f"A rendered picture could not be read: {error}") from error
        self._file.unlink()
        image = pictures.encode(channels, working_space=working_space())
        self._depths.append(pictures.depth(channels) if self._settings.depth else None)
        self._images.append(image)

    def views(self) -> CapturedViews:
        images = np.stack(self._images)
        if not images[..., 3].any():
            raise CaptureError(
                "The pictures came out fully transparent: no camera sees the object, or its material lets everything "
                "through."
            )
        depths = [depth for depth in self._depths if depth is not None]
        return CapturedViews(
            images=images,
            c2w=np.stack([pose.c2w for pose in self._poses]).astype(np.float32),
            Ks=np.stack([pose.K for pose in self._poses]).astype(np.float32),
            orthographic=np.array([pose.orthographic for pose in self._poses]),
            depth=np.stack(depths) if len(depths) == len(images) else None,
            names=tuple(shot.name for shot in self.shots),
            engine=self._engine,
        )

    def close(self) -> None:
        self._stage.close()


def working_space() -> str:
    colorspace = getattr(bpy.data, "colorspace", None)  # Blender 5.0 and later
    return colorspace.working_space if colorspace is not None else "Linear Rec.709"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].removeprefix("Error: ") if str(error).strip() else "no reason given"
