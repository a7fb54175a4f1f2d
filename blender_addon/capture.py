"""From a scene to posed views. `capture` blocks, for scripts and `blender -b`; `CaptureRun` leaves the interface alive."""

from __future__ import annotations

from collections.abc import Callable

import bpy

from .views import CapturedViews, CaptureError, CaptureSettings

__all__ = ["CaptureError", "CaptureRun", "CaptureSettings", "CapturedViews", "capture"]

OnProgress = Callable[[int, int, str], None]


def capture(
    context: bpy.types.Context, settings: CaptureSettings, on_progress: OnProgress | None = None
) -> CapturedViews:
    """Render all views, blocking. `on_progress(done, total, label)` is called before each view and at the end.

    Raises CaptureError with a sentence for the artist. The user's scene and settings are left as they were."""
    raise NotImplementedError


class CaptureRun:
    """A capture in an open Blender: one render job at a time, between which and during which the interface lives.

    `start(context)`, then `tick()` from a timer until it returns True; then `result` or `error` is set (neither after
    `cancel()`). `done`, `total` and `label` say how far it is."""

    def __init__(self, settings: CaptureSettings) -> None:
        self.settings = settings
        self.done = 0
        self.total = 0
        self.label = ""
        self.result: CapturedViews | None = None
        self.error: CaptureError | None = None
        self.cancelled = False

    def start(self, context: bpy.types.Context) -> None:
        """Check and prepare; raises CaptureError at once when the capture cannot begin."""
        raise NotImplementedError

    def tick(self) -> bool:
        """Advance without waiting; True when the capture is over (finished, failed or cancelled)."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Stop the running render, drop the views and restore everything; idempotent."""
        raise NotImplementedError
