"""The prompts of before, the newest first, in a small file of the user's: not in a .blend, which goes to others."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from .atomic_file import replacing

log = logging.getLogger(__name__)

MOST = 20


class PromptHistory:
    """Reads its file when it is first asked. A file that cannot be read or written costs the history, nothing else."""

    def __init__(self, place: Callable[[], Path]) -> None:
        """`place` says which file (OSError: there can be none)."""
        self._place = place
        self._prompts: tuple[str, ...] | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        if self._prompts is None:
            self._prompts = self._read()
        return self._prompts

    def add(self, prompt: str) -> None:
        """Puts a prompt first; it is there once."""
        prompt = " ".join(prompt.split())
        if not prompt or prompt == next(iter(self.prompts), ""):
            return
        self._prompts = (prompt, *(other for other in self.prompts if other != prompt))[:MOST]
        try:
            path = self._place()
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(json.dumps(self._prompts, indent=1).encode())
        except OSError as error:
            log.warning("the prompts could not be kept: %s", error)

    def _read(self) -> tuple[str, ...]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._place().read_text(encoding="utf-8"))
            if isinstance(found, list):
                return tuple(prompt for prompt in found if isinstance(prompt, str) and prompt)[:MOST]
        return ()
