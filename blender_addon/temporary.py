"""Data-blocks that live only during a capture. Each carries a mark, so they are found and removed even when Blender
replaced all of its data in between (undo, file load), or a file was saved in the middle of a capture."""

from __future__ import annotations

import bpy

MARK = "gaussmith_temporary"
_KINDS = ("scenes", "objects", "cameras", "collections")  # users before what they use


def mark(block: bpy.types.ID) -> None:
    block[MARK] = True


def remove_all() -> None:
    """Remove every marked data-block. Safe to call at any time when no capture runs."""
    for kind in _KINDS:
        blocks = getattr(bpy.data, kind)
        for block in [block for block in blocks if MARK in block and block.library is None]:
            blocks.remove(block)
