"""What will be taken of a picture, to be seen before a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import picture_files, protocol
from .preview import PreviewIcon
from .protocol import Cut
from .session import Failure, Job, Session, new_job_id


class CutPreview:
    """One picture at a time. Panels read it; the timer calls `pump`."""

    def __init__(self) -> None:
        self._icon = PreviewIcon()
        self._job: Job | None = None
        self._of: tuple[str, Cut] = ("", "auto")  # what is shown, or worked on

    @property
    def busy(self) -> bool:
        return self._job is not None

    @property
    def shown(self) -> int:
        return self._icon.shown

    def icon_id(self, path: str, cut: Cut) -> int:
        """0 unless it was of this picture, cut in this way."""
        return self._icon.icon_id if self._of == (path, cut) else 0

    def begin(self, session: Session, path: str, cut: Cut) -> None:
        """Asks the backend. Raises CaptureError when the file cannot be read."""
        file = Path(path)
        data = np.frombuffer(picture_files.read(file), np.uint8)
        self.drop(session)
        request = protocol.CutOut(new_job_id(), data, file.name, cut)
        self._of, self._job = (path, cut), session.submit(request, file.name)

    def pump(self) -> Failure | None:
        """Takes in the answer; why there is none."""
        job = self._job
        if job is None or job.active:
            return None
        self._job = None
        if job.state == "done":
            self._icon.show(job.preview)
        return job.failure if job.state == "failed" else None

    def drop(self, session: Session) -> None:
        """Gives up what is worked on, and takes the picture away."""
        if self._job is not None:
            session.cancel(self._job.id)
        self._job = None
        self._icon.show(None)

    def close(self) -> None:
        """To be called once."""
        self._icon.close()
