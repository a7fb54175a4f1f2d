"""The one exception for what a user gave. Here, so that commands which need no torch can raise it too."""

from __future__ import annotations


class BadInput(ValueError):
    """What a user gave makes no sense; the text names the file or field, what was expected and what was found."""
