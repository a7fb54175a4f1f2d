"""What the commands return, and how they say why it is not success. Needs the standard library alone."""

from __future__ import annotations

import sys

SUCCESS, BROKEN, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def complain(sentence: str, status: int) -> int:
    """Writes the sentence to the standard error; returns the status."""
    sys.stderr.write(f"error: {sentence}\n")
    return status
