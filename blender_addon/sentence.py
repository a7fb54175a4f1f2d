"""Sentences in panels."""

from __future__ import annotations

import textwrap

import bpy
from bpy.app.translations import pgettext_rpt as rpt

SIDEBAR = 36  # characters of a line beside an icon in a sidebar of usual width
WINDOW = 90  # in the preferences and in dialogs


def draw_sentence(layout: bpy.types.UILayout, sentence: str, icon: str = "NONE", width: int = SIDEBAR) -> None:
    """A sentence over as many lines as it needs; Blender's labels do not wrap."""
    for number, line in enumerate(textwrap.wrap(rpt(sentence), width)):
        layout.label(text=line, translate=False, icon=icon if number == 0 else "BLANK1")
