"""What the sidebar and the preferences draw. Drawing reads; nothing is computed, no file and no socket is touched."""

from __future__ import annotations

from typing import Any

import bpy
from bpy.app.translations import pgettext_iface as iface

from . import (
    environment,
    imagining_panels,
    imagining_properties,
    operators,
    preferences,
    properties,
    result,
    scene_advice,
    studio,
    weights_panel,
)
from .families import FAMILIES
from .sentence import WINDOW, draw_sentence
from .session import SessionState

CATEGORY = "Gaussmith"


class _Sidebar:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = CATEGORY


class GAUSSMITH_PT_main(_Sidebar, bpy.types.Panel):
    bl_label = "Gaussmith"
    bl_idname = "GAUSSMITH_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        running = studio.current()
        missing = operators.backend_missing()
        if missing:
            draw_missing(layout, missing)
        draw_choices(layout, context)
        if running.busy and running.generation is not None:
            draw_progress(layout, running.generation)
        else:
            row = layout.row()
            row.scale_y = 1.8
            row.operator("gaussmith.generate", icon="OUTLINER_OB_POINTCLOUD")
            draw_reason(layout, missing or operators.nothing_to_capture(context))
            if context.scene.gaussmith.source in imagining_properties.SOURCES:
                imagining_panels.draw_candidates(layout)
        draw_problem(layout, running)


def draw_missing(layout: bpy.types.UILayout, reason: str) -> None:
    box = layout.box()
    draw_sentence(box, reason, icon="INFO")
    box.operator("gaussmith.open_preferences", icon="PREFERENCES")


def draw_choices(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    chosen = context.scene.gaussmith
    imagines = chosen.source in imagining_properties.SOURCES
    column = layout.column()
    column.use_property_split = True
    column.use_property_decorate = False
    column.prop(chosen, "source")
    if chosen.source == "FILES":
        column.prop(chosen, "transforms")
    if imagines:
        imagining_panels.draw_source(column, context)
    column.prop(chosen, "method")
    if chosen.method == properties.OWN_CHOICE[0]:
        column.prop(chosen, "model")
    if not imagines:
        column.prop(chosen, "quality")
    column.row().prop(chosen, "output", expand=True)


def draw_reason(layout: bpy.types.UILayout, reason: str) -> None:
    """Why the button is grey, without having to hover over it."""
    if reason:
        column = layout.column(align=True)
        column.active = False
        draw_sentence(column, reason)


def draw_progress(layout: bpy.types.UILayout, generation: Any) -> None:
    column = layout.column(align=True)
    picture = studio.current().preview.icon_id
    if picture:
        column.template_icon(icon_value=picture, scale=7)
    column.label(text=f"{iface(generation.label)} {generation.count}", translate=False)
    column.progress(factor=generation.fraction, text=progress_text(generation.fraction, generation.seconds_left))
    row = column.row(align=True)
    row.scale_y = 1.4
    row.operator("gaussmith.cancel", icon="CANCEL")
    if generation.phase == "RECONSTRUCTING":
        row.operator("gaussmith.finish_early", icon="CHECKMARK")


def progress_text(fraction: float, seconds_left: float | None) -> str:
    percent = f"{round(100 * fraction)} %"
    return percent if seconds_left is None else f"{percent}   {iface('Time Left')} {clock(seconds_left)}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes}:{rest:02d}"


def draw_problem(layout: bpy.types.UILayout, running: studio.Studio) -> None:
    if running.problem is None and not running.notice:
        return
    box = layout.box()
    row = box.row()
    column = row.column(align=True)
    problem = running.problem
    draw_sentence(column, problem.sentence if problem else running.notice, icon="ERROR" if problem else "INFO")
    row.operator("gaussmith.dismiss", text="", icon="X", emboss=False)
    if problem is not None:
        buttons = box.row(align=True)
        buttons.operator("gaussmith.copy_details", icon="COPYDOWN")
        buttons.operator("gaussmith.open_log", icon="TEXT")


class GAUSSMITH_PT_capture(_Sidebar, bpy.types.Panel):
    bl_label = "Capture"
    bl_parent_id = "GAUSSMITH_PT_main"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.scene.gaussmith.source in properties.RENDERED

    def draw(self, context: bpy.types.Context) -> None:
        chosen = context.scene.gaussmith
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        if chosen.source in ("ORBIT", "VIEWPORT"):
            draw_orbit(column, chosen)
        elif chosen.source == "CAMERAS":
            column.row().prop(chosen, "cameras", expand=True)
        elif chosen.source == "ANIMATION":
            for name in ("frame_start", "frame_end", "frame_step"):
                column.prop(chosen, name)
        draw_optional(column, chosen, "use_resolution", "resolution")
        column.prop(chosen, "depth")
        column.prop(chosen, "selected_only")
        if chosen.selected_only:
            column.row().prop(chosen, "others", expand=True)


def draw_orbit(column: bpy.types.UILayout, chosen: Any) -> None:
    column.prop(chosen, "count")
    most = FAMILIES[properties.model_of(chosen)].used
    if most is not None and most < chosen.count:
        column.label(text=f"{iface('The network takes at most')} {most}", translate=False, icon="INFO")
    column.prop(chosen, "distance")
    column.prop(chosen, "lens")
    column.prop(chosen, "use_elevations")
    if chosen.use_elevations:
        for name in ("elevation_low", "elevation_high", "rings"):
            column.prop(chosen, name)


def draw_optional(column: bpy.types.UILayout, chosen: Any, switch: str, name: str) -> None:
    row = column.row(heading=chosen.bl_rna.properties[name].name)
    row.prop(chosen, switch, text="")
    value = row.row()
    value.active = getattr(chosen, switch)
    value.prop(chosen, name, text="")


class GAUSSMITH_PT_reconstruction(_Sidebar, bpy.types.Panel):
    bl_label = "Reconstruction"
    bl_parent_id = "GAUSSMITH_PT_main"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        chosen = context.scene.gaussmith
        column = self.layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        if properties.model_of(chosen) == "fit":
            draw_optional(column, chosen, "use_steps", "steps")
        elif chosen.method == properties.OWN_CHOICE[0]:
            for name in ("weights", "precision", "refine"):
                column.prop(chosen, name)
        column.prop(chosen, "max_splats")
        if chosen.output != "SPLATS":
            column.prop(chosen, "faces")
            column.prop(chosen, "texture_size")
        if chosen.source not in imagining_properties.SOURCES:
            column.prop(chosen, "seed")


class GAUSSMITH_PT_result(_Sidebar, bpy.types.Panel):
    bl_label = "Result"
    bl_parent_id = "GAUSSMITH_PT_main"

    def draw(self, context: bpy.types.Context) -> None:
        empty = operators.last_result(context)
        layout = self.layout
        if result.is_result(empty):
            draw_result(layout, empty)
            draw_advice(layout, context.scene)
        else:
            row = layout.row()
            row.active = False
            row.label(text="None yet")
        row = layout.row(align=True)
        row.operator("gaussmith.import_ply", icon="IMPORT")
        row.operator("gaussmith.export_ply", icon="EXPORT")


def draw_result(layout: bpy.types.UILayout, empty: Any) -> None:
    row = layout.row()
    row.label(text=empty.name, translate=False, icon="OUTLINER_OB_POINTCLOUD")
    row.operator("gaussmith.select_result", text="", icon="RESTRICT_SELECT_OFF")
    if result.part(empty, "SPLATS") is not None and result.part(empty, "MESH") is not None:
        layout.row().prop(empty.gaussmith, "display", expand=True)
    figures = result.recipe_of(empty)
    if figures.get("imagined_by"):
        draw_sentence(layout.column(align=True), figures["imagined_by"], icon="SHADERFX")
        layout.operator("gaussmith.generate_again", icon="FILE_REFRESH")
    if figures.get("made_by"):
        draw_sentence(layout.column(align=True), figures["made_by"], icon="INFO")
    if figures.get("psnr") is not None:
        layout.label(text=iface("Match") + f": {figures['psnr']:.1f} dB", translate=False)


def draw_advice(layout: bpy.types.UILayout, scene: bpy.types.Scene) -> None:
    """What keeps splats from looking as they should, each with a button that changes it."""
    for sentence, fix in scene_advice.scene_advice(scene):
        box = layout.box()
        draw_sentence(box.column(align=True), sentence, icon="INFO")
        box.operator("gaussmith.fix_scene").fix = fix


# ---- preferences


def draw_preferences(layout: bpy.types.UILayout, chosen: preferences.GaussmithPreferences) -> None:
    running = studio.current()
    draw_state(layout, running)
    draw_setup(layout.box(), chosen, running)
    box = layout.box()
    box.label(text="Use an Existing Environment")
    row = box.row(align=True)
    row.prop(chosen, "existing_python")
    row.operator("gaussmith.check_environment", icon="CHECKMARK")
    layout.prop(chosen, "device")
    weights_panel.draw_weights(layout.box(), chosen)
    layout.operator("gaussmith.open_log", icon="TEXT")
    draw_problem(layout, running)


def draw_state(layout: bpy.types.UILayout, running: studio.Studio) -> None:
    welcome = running.session.welcome
    if welcome is not None:
        text = iface("The backend runs on") + f" {welcome.device_name or welcome.device}"
        layout.label(text=text, translate=False, icon="CHECKMARK")
    elif running.session.state is SessionState.STARTING:
        layout.label(text="The backend is starting", icon="SORTTIME")
    elif not operators.backend_missing():
        layout.label(text="The backend is set up", icon="CHECKMARK")
    else:
        layout.label(text="The backend is not set up", icon="INFO")


def draw_setup(box: bpy.types.UILayout, chosen: preferences.GaussmithPreferences, running: studio.Studio) -> None:
    box.label(text="Set Up Backend")
    if running.setup is not None:
        box.progress(factor=running.setup.fraction, text=iface(running.setup.stage))
        box.operator("gaussmith.cancel_setup", icon="CANCEL")
        return
    box.prop(chosen, "environment_folder")
    box.prop(chosen, "accelerator")
    box.prop(chosen, "package_index")
    needs = environment.describe_needs(preferences.accelerator())
    free = preferences.free_bytes(preferences.environment_folder()) / environment.GIB
    box.label(text=f"{needs}. {iface('Free')}: {free:.0f} GB", translate=False)
    row = box.row()
    row.scale_y = 1.4
    row.operator("gaussmith.set_up_backend", icon="IMPORT")
    if not preferences.online_allowed():
        draw_sentence(box.column(align=True), operators.OFFLINE, icon="INTERNET_OFFLINE", width=WINDOW)
