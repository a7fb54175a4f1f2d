"""What the sidebar draws for prompts, pictures and candidates. Drawing reads; no file and no socket is touched."""

from __future__ import annotations

from typing import Any

import bpy
from bpy.app.translations import pgettext_iface as iface

from . import imagining_operators, imagining_properties, studio
from .candidates import Candidate
from .front_ends import FRONT_ENDS
from .imagining_properties import FIELDS, FRONT_END_FIELDS, SOURCES
from .sentence import draw_sentence

SHEET_SCALE = 9  # of a contact sheet, in units of a button's height
PICTURE_SCALE = 5
STARTER = "starter"
SIMPLE = "Starter model: simple objects. The preferences have others."
NO_WEIGHTS = "Its weights are not on this machine yet."


def settings_column(layout: bpy.types.UILayout) -> bpy.types.UILayout:
    column = layout.column()
    column.use_property_split = True
    column.use_property_decorate = False
    return column


def draw_source(column: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """What views are made of, and by what."""
    chosen = context.scene.gaussmith
    if chosen.source == "PROMPT":
        column.prop(chosen.imagining, "prompt", text="")
    else:
        draw_picture(column, context)
    column.prop(chosen.imagining, FRONT_END_FIELDS[chosen.source])
    draw_front_end_note(column, getattr(chosen.imagining, FRONT_END_FIELDS[chosen.source]))
    column.prop(chosen.imagining, "candidates")
    row = column.row(align=True)
    row.prop(chosen, "seed")
    row.operator("gaussmith.vary", text="", icon="FILE_REFRESH")


def draw_picture(column: bpy.types.UILayout, context: bpy.types.Context) -> None:
    wanted, running = context.scene.gaussmith.imagining, studio.current()
    row = column.row(align=True)
    row.prop(wanted, "picture_front", text="Picture")
    row.operator("gaussmith.paste_picture", text="", icon="PASTEDOWN")
    path = imagining_operators.picture_path(context)
    pictures = column.row()
    for icon in (running.thumbnails.icon_id(path), running.cut.icon_id(path, wanted.cut.lower())):
        if icon:
            pictures.template_icon(icon_value=icon, scale=PICTURE_SCALE)
    column.prop(wanted, "cut")
    column.operator("gaussmith.preview_cut", icon="SORTTIME" if running.cut.busy else "HIDE_OFF")


def draw_front_end_note(column: bpy.types.UILayout, name: str) -> None:
    """What to know of a front end before it is used."""
    if studio.lacks_weights(name):
        draw_sentence(column, NO_WEIGHTS, icon="INFO")
        column.operator("gaussmith.open_preferences", text="Open Preferences", icon="PREFERENCES")
    elif name == STARTER:
        draw_sentence(column, SIMPLE, icon="INFO")


def draw_candidates(layout: bpy.types.UILayout) -> None:
    """The sets of views to choose from."""
    held = studio.current().candidates
    for item in held.items:
        draw_candidate(layout.box(), item)
    if held.items:
        row = layout.row(align=True)
        row.operator("gaussmith.more_candidates", icon="ADD")


def draw_candidate(box: bpy.types.UILayout, item: Candidate) -> None:
    row = box.row()
    changed = f", {iface('changed')}" if item.changed else ""
    row.label(text=f"{iface('Candidate')} {item.number}   {iface('Seed')} {item.seed}{changed}", translate=False)
    row.operator("gaussmith.discard_candidate", text="", icon="X", emboss=False).number = item.number
    box.template_icon(icon_value=item.icon.icon_id, scale=SHEET_SCALE)
    row = box.row()
    row.scale_y = 1.2
    row.operator("gaussmith.use_candidate", icon="CHECKMARK").number = item.number
    for operator, label in (("gaussmith.redo_view", "Redo View"), ("gaussmith.replace_view", "Replace View")):
        draw_views(box, item, operator, label)


def draw_views(box: bpy.types.UILayout, item: Candidate, operator: str, label: str) -> None:
    """A button for each view, numbered as they stand in the contact sheet, row by row."""
    split = box.split(factor=0.4)
    split.label(text=label)
    row = split.row(align=True)
    for view in range(len(item.imagined.images)):
        button = row.operator(operator, text=str(view + 1))
        button.number, button.view = item.number, view


class _SubPanel:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Gaussmith"
    bl_parent_id = "GAUSSMITH_PT_main"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.scene.gaussmith.source in SOURCES


class GAUSSMITH_PT_placement(_SubPanel, bpy.types.Panel):
    bl_label = "Placement"

    def draw(self, context: bpy.types.Context) -> None:
        wanted = context.scene.gaussmith.imagining
        column = settings_column(self.layout)
        for name in ("place", "size", "facing"):
            column.prop(wanted, name)


class GAUSSMITH_PT_sides(_SubPanel, bpy.types.Panel):
    bl_label = "More Sides"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.scene.gaussmith.source == "PICTURE"

    def draw(self, context: bpy.types.Context) -> None:
        wanted = context.scene.gaussmith.imagining
        column = settings_column(self.layout)
        for name in [name for name in FIELDS.values() if name != "picture_front"]:
            column.prop(wanted, name)
        if any(picture.side != "front" for picture in imagining_properties.given(wanted, "PICTURE")):
            draw_sentence(column, "These pictures are the views; no front end makes any.", icon="INFO")


class GAUSSMITH_PT_imagining(_SubPanel, bpy.types.Panel):
    bl_label = "Views"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        chosen = context.scene.gaussmith
        column = settings_column(self.layout)
        for name in ("negative_prompt", "sampling_steps", "guidance"):
            column.prop(chosen.imagining, name)
        usual = FRONT_ENDS[getattr(chosen.imagining, FRONT_END_FIELDS[chosen.source])]
        column.label(text=f"{iface('Usual')}: {usual.steps}, {usual.guidance:g}", translate=False, icon="INFO")


CLASSES: tuple[Any, ...] = (GAUSSMITH_PT_sides, GAUSSMITH_PT_imagining, GAUSSMITH_PT_placement)
