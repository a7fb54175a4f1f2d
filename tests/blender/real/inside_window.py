"""Runs inside an open Blender: opens the sidebar, chooses small settings, and writes to a file what the window shows.

blender ... -P inside_window.py -- STATE.json SETTINGS.json
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import bpy

STATE, SETTINGS = (Path(name) for name in sys.argv[sys.argv.index("--") + 1 :][:2])
PACKAGE = next(name for name in bpy.context.preferences.addons.keys() if name.endswith(".gaussmith"))
SCENE = bpy.context.scene.name  # during a capture an older Blender's window shows another for a while
studio = importlib.import_module(f"{PACKAGE}.blender_addon.studio")
USED: list[int] = []  # candidates that have been chosen


def sidebar() -> tuple[bpy.types.Area, bpy.types.Region]:
    area = next(area for area in bpy.context.window_manager.windows[0].screen.areas if area.type == "VIEW_3D")
    return area, next(region for region in area.regions if region.type == "UI")


def colour_of(widget: str) -> list[int]:
    """What the theme paints a kind of widget with, 0..255."""
    theme = getattr(bpy.context.preferences.themes[0].user_interface, widget)
    return [round(255 * value) for value in theme.inner[:3]]


def state() -> dict[str, Any]:
    area, region = sidebar()
    window, running = bpy.context.window_manager.windows[0], studio.current()
    run = running.generation
    found: dict[str, Any] = {
        "sidebar": [region.x, window.height - region.y - region.height, region.width, region.height],
        "category": getattr(region, "active_panel_category", ""),
        "button_colour": colour_of("wcol_tool"),
        "text_colour": colour_of("wcol_text"),
        "shading": area.spaces[0].shading.type,
        "problem": running.problem.sentence if running.problem else "",
        "backend": running.session.state.value,
        "objects": sorted(item.name for item in bpy.data.scenes[SCENE].objects),
        "last_result": bpy.data.scenes[SCENE].gaussmith.last_result,
        "places": {item.name: list(item.location) for item in bpy.data.scenes[SCENE].objects if item.type == "EMPTY"},
        "prompt": bpy.data.scenes[SCENE].gaussmith.imagining.prompt,
        "candidates": [item.number for item in running.candidates.items],
        "figures": vars(running.figures),
    }
    if run is not None:
        found |= {"phase": run.phase, "label": run.label, "fraction": run.fraction, "seconds_left": run.seconds_left}
    return found


def write_state() -> float:
    part = STATE.with_suffix(".part")
    part.write_text(json.dumps(state()))
    part.replace(STATE)
    apply_settings()
    return 0.1


def apply_settings() -> None:
    """What the file asks for now; nothing while it is being written or a run is in progress."""
    if studio.current().busy:
        return
    try:
        wanted = json.loads(SETTINGS.read_text())
    except json.JSONDecodeError:
        return
    hidden = wanted.pop("hidden", ())
    for item in bpy.context.view_layer.objects:
        if item.type == "MESH" and item.parent is None and item.hide_get() != (item.name in hidden):
            item.hide_set(item.name in hidden)
    area, _ = sidebar()
    area.spaces[0].shading.type = wanted.pop("shading", "SOLID")
    bpy.data.scenes[SCENE].cursor.location = wanted.pop("cursor", (0, 0, 0))
    use = wanted.pop("use", 0)
    chosen = bpy.data.scenes[SCENE].gaussmith
    for name, value in wanted.items():
        *groups, field = name.split(".")
        owner = getattr(chosen, groups[0]) if groups else chosen
        if getattr(owner, field) != value:
            setattr(owner, field, value)
    if use and use not in USED:
        use_candidate(use)


def use_candidate(number: int) -> None:
    """Presses a candidate's Use, whose place in the panel is not known outside; once."""
    USED.append(number)
    window = bpy.context.window_manager.windows[0]
    with bpy.context.temp_override(window=window, scene=window.scene, view_layer=window.view_layer):
        bpy.ops.gaussmith.use_candidate(number=number)


def prepare() -> None:
    area, _ = sidebar()
    area.spaces[0].show_region_ui = True
    bpy.app.timers.register(write_state, first_interval=1, persistent=True)


faulthandler.enable(STATE.with_name("crash.txt").open("w"))  # says which line of ours was running
bpy.context.preferences.view.show_splash = False
bpy.app.timers.register(prepare, first_interval=2, persistent=True)
