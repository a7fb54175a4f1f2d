"""How long work tells its progress and learns that it should stop."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class JobCancelled(Exception):
    """Raised inside a job by `Monitor.progress` once its user has cancelled it; nothing of the job is kept."""


class Monitor(Protocol):
    def progress(self, stage: str, step: int, total: int) -> None:
        """Tell that `step` of `total` steps of a stage are done. Call it several times a second at least.

        Raises JobCancelled when the job was cancelled.
        """

    def preview(self, image: np.ndarray) -> None:
        """Show a picture of the result so far: [H,W,4] uint8, sRGB, straight alpha."""

    def finish_early(self) -> bool:
        """Whether the work should stop now and hand over its best result so far."""
        ...


class Silent:
    """A monitor that nobody watches."""

    def progress(self, stage: str, step: int, total: int) -> None:
        del stage, step, total

    def preview(self, image: np.ndarray) -> None:
        del image

    def finish_early(self) -> bool:
        return False
