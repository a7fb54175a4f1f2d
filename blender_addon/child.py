"""A program that tells what it does as lines of JSON, followed without waiting and without a thread. No bpy.

A line may hold `stage` and `fraction`; the last one holds `done`, or `failure` (a kind) with `sentence` and `detail`.
The program leaves when its standard input closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .backend_process import clean_environment

STOP_SECONDS = 3


@dataclass(frozen=True)
class ChildFailure:
    """Why a program did not do what it was started for: `sentence` for the person, `detail` is what it said."""

    kind: str
    sentence: str
    detail: str = ""


class Child:
    """A program that runs. Read `stage`, `fraction`, `done` and `failure`; call `pump` now and then until it is True.

    stage      what it does
    fraction   0..1 of the whole; never goes back
    done       whether it has done all
    told       its last line, then
    failure    why it has ended without
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cancelled: str,
        ended: str,
        folder: Path | None = None,
        cache: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it and returns at once.

        cancelled  the sentence for when a person has ended it
        ended      the sentence for when it has ended without a word
        folder     where it runs
        cache      the folder for compiled code; None: one that goes when it ends
        variables  of its environment, beside those of this process that are not Blender's

        Raises OSError when it cannot be started.
        """
        self.stage = "Starting"
        self.fraction = 0.0
        self.done = False
        self.told: dict[str, Any] = {}
        self.failure: ChildFailure | None = None
        self._cancelled, self._ended = cancelled, ended
        self._folder = Path(tempfile.mkdtemp(prefix="gaussmith-child-"))
        self._read = 0
        self._over = False  # the process has ended and its words are read
        try:
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=clean_environment(os.environ, cache or self._folder) | dict(variables or {}),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    @property
    def _output(self) -> Path:
        return self._folder / "output"

    def pump(self) -> bool:
        """Takes in what the program has told; True when it has ended."""
        if self._over:
            return True
        code = self._process.poll()  # asked first, so that its last words are read
        self._take_in()
        if code is None:
            return False
        if not self.done and self.failure is None:
            self.failure = ChildFailure("failed", self._ended, self._said())
        self._clean_up()
        return True

    def cancel(self) -> None:
        """Ends it, within about three seconds at the worst."""
        if self._over:
            return
        self._close_stdin()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._take_in()
        if not self.done and self.failure is None:
            self.failure = ChildFailure("cancelled", self._cancelled)
        self._clean_up()

    def _take_in(self) -> None:
        with self._output.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # the rest of it is not written yet
                self._read += len(line)
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            told: Any = json.loads(line)
        except ValueError:
            return  # a warning of Python's own
        if not isinstance(told, dict):
            return
        self.stage = told.get("stage", self.stage)
        self.fraction = max(self.fraction, told.get("fraction", 0.0))
        if "failure" in told:
            self.failure = ChildFailure(told["failure"], told["sentence"], told["detail"])
        elif told.get("done"):
            self.done, self.fraction, self.told = True, 1.0, told

    def _said(self) -> str:
        return self._output.read_text(errors="replace")[-4000:]

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _clean_up(self) -> None:
        self._over = True
        self._close_stdin()
        shutil.rmtree(self._folder, ignore_errors=True)
