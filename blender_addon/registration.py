"""Everything Blender is told about, and told to forget, in mirrored order."""

from __future__ import annotations

from typing import Any

import bpy

from . import (
    commands,
    imagining_operators,
    imagining_panels,
    imagining_properties,
    operators,
    panels,
    preferences,
    properties,
    result,
    studio,
    translations,
    weights_panel,
)

CLASSES: tuple[Any, ...] = (
    preferences.GaussmithPreferences,
    imagining_properties.GaussmithImagining,
    properties.GaussmithSettings,
    result.GaussmithResult,
    operators.GAUSSMITH_OT_generate,
    operators.GAUSSMITH_OT_cancel,
    operators.GAUSSMITH_OT_finish_early,
    operators.GAUSSMITH_OT_insert_result,
    operators.GAUSSMITH_OT_show,
    operators.GAUSSMITH_OT_select_result,
    operators.GAUSSMITH_OT_fix_scene,
    operators.GAUSSMITH_OT_import_ply,
    operators.GAUSSMITH_OT_export_ply,
    operators.GAUSSMITH_OT_open_preferences,
    operators.GAUSSMITH_OT_set_up_backend,
    operators.GAUSSMITH_OT_cancel_setup,
    operators.GAUSSMITH_OT_check_environment,
    operators.GAUSSMITH_OT_copy_details,
    operators.GAUSSMITH_OT_dismiss,
    operators.GAUSSMITH_OT_open_log,
    operators.GAUSSMITH_FH_ply,
    *imagining_operators.CLASSES,
    *weights_panel.CLASSES,
    panels.GAUSSMITH_PT_main,
    *imagining_panels.CLASSES,
    panels.GAUSSMITH_PT_capture,
    panels.GAUSSMITH_PT_reconstruction,
    panels.GAUSSMITH_PT_result,
)


def register() -> None:
    for cls in CLASSES:
        bpy.utils.register_class(cls)
    bpy.types.Scene.gaussmith = bpy.props.PointerProperty(type=properties.GaussmithSettings)
    bpy.types.Object.gaussmith = bpy.props.PointerProperty(type=result.GaussmithResult)
    bpy.types.TOPBAR_MT_file_import.append(draw_import)
    bpy.types.TOPBAR_MT_file_export.append(draw_export)
    bpy.app.translations.register(__package__, translations.TABLE)
    studio.open_studio(command=bpy.utils.register_cli_command(commands.NAME, commands.execute))


def unregister() -> None:
    bpy.utils.unregister_cli_command(studio.close_studio())
    bpy.app.translations.unregister(__package__)
    bpy.types.TOPBAR_MT_file_export.remove(draw_export)
    bpy.types.TOPBAR_MT_file_import.remove(draw_import)
    del bpy.types.Object.gaussmith
    del bpy.types.Scene.gaussmith
    for cls in reversed(CLASSES):
        bpy.utils.unregister_class(cls)


def draw_import(menu: Any, _context: bpy.types.Context) -> None:
    menu.layout.operator("gaussmith.import_ply", text="Gaussian Splats (.ply)")


def draw_export(menu: Any, _context: bpy.types.Context) -> None:
    menu.layout.operator("gaussmith.export_ply", text="Gaussian Splats (.ply)")
