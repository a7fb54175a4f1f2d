"""The checkpoints in the preferences: which there are, what their licences say, and buttons for each."""

from __future__ import annotations

from typing import Any

import bpy
from bpy.app.translations import pgettext_iface as iface
from bpy.props import BoolProperty, StringProperty

from . import operators, preferences, studio
from .sentence import WINDOW, draw_sentence
from .shelf import COMMERCIAL, Action, Item

Result = set[str]
GB = 1e9
OFFLINE = (
    "Downloading a checkpoint needs the network, and Blender is set to stay offline. "
    "Allow it under Preferences > System > Network > Allow Online Access."
)
STATE_ICONS = {"shipped": "CHECKMARK", "fetched": "CHECKMARK", "partial": "SORTTIME", "absent": "BLANK1"}


def why_not(*, online: bool = False) -> str:
    """Why no task with a checkpoint can begin, or nothing."""
    shelf = studio.current().shelf
    if shelf.task is not None and shelf.action != "list":
        return "Another checkpoint is being handled"
    return operators.backend_missing() or ("" if preferences.online_allowed() or not online else OFFLINE)


class _Task:
    """What the operators share that start a task with the checkpoint `name`."""

    online = False  # whether the task needs the network

    name: StringProperty(name="Checkpoint", description="Its name in the list", options={"SKIP_SAVE"})  # type: ignore[valid-type]

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        reason = why_not(online=cls.online)
        if reason:
            cls.poll_message_set(reason)  # type: ignore[attr-defined]
        return not reason

    def begin(self, action: Action, *, accept: bool = False) -> Result:
        try:
            studio.current().begin_weights(action, self.name, accept=accept)
        except OSError as error:
            self.report({"ERROR"}, str(error))  # type: ignore[attr-defined]
            return {"CANCELLED"}
        return {"FINISHED"}


class GAUSSMITH_OT_fetch_weights(_Task, bpy.types.Operator):
    bl_idname = "gaussmith.fetch_weights"
    bl_label = "Download"
    bl_description = "Read the checkpoint's licence, then download it. An interrupted download goes on where it was"
    online = True

    accept: BoolProperty(  # type: ignore[valid-type]
        name="I have read the licence and accept it",
        description="Without this nothing is downloaded",
        options={"SKIP_SAVE"},
    )

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> Result:
        return context.window_manager.invoke_props_dialog(self, width=520)

    def draw(self, _context: bpy.types.Context) -> None:
        draw_licence(self.layout, studio.current().shelf.item(self.name))
        self.layout.prop(self, "accept")

    def execute(self, _context: bpy.types.Context) -> Result:
        item = studio.current().shelf.item(self.name)
        if not self.accept and not (item is not None and item.accepted):
            self.report({"ERROR"}, "Accept the licence first: nothing was downloaded")
            return {"CANCELLED"}
        return self.begin("fetch", accept=self.accept)


class GAUSSMITH_OT_verify_weights(_Task, bpy.types.Operator):
    bl_idname = "gaussmith.verify_weights"
    bl_label = "Verify"
    bl_description = "Compare the checkpoint's files with the hashes that its publisher's hub told"

    def execute(self, _context: bpy.types.Context) -> Result:
        return self.begin("verify")


class GAUSSMITH_OT_remove_weights(_Task, bpy.types.Operator):
    bl_idname = "gaussmith.remove_weights"
    bl_label = "Remove"
    bl_description = "Delete the checkpoint from the disk"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> Result:
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, _context: bpy.types.Context) -> Result:
        return self.begin("remove")


class GAUSSMITH_OT_list_weights(bpy.types.Operator):
    bl_idname = "gaussmith.list_weights"
    bl_label = "Refresh"
    bl_description = "Look again which checkpoints are on this machine"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return not why_not()

    def execute(self, _context: bpy.types.Context) -> Result:
        try:
            studio.current().begin_weights("list")
        except OSError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class GAUSSMITH_OT_cancel_weights(bpy.types.Operator):
    bl_idname = "gaussmith.cancel_weights"
    bl_label = "Stop"
    bl_description = "Stop what is done with the checkpoint; what is downloaded stays for the next try"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return studio.current().shelf.task is not None

    def execute(self, _context: bpy.types.Context) -> Result:
        studio.current().cancel_weights()
        return {"FINISHED"}


CLASSES = (
    GAUSSMITH_OT_fetch_weights,
    GAUSSMITH_OT_verify_weights,
    GAUSSMITH_OT_remove_weights,
    GAUSSMITH_OT_list_weights,
    GAUSSMITH_OT_cancel_weights,
)


# ---- drawing


def draw_weights(box: bpy.types.UILayout, chosen: preferences.GaussmithPreferences) -> None:
    """The section of the preferences. That it is seen is what makes the timer ask the backend for the list."""
    shelf = studio.current().shelf
    row = box.row()
    row.label(text="Checkpoints")
    row.operator("gaussmith.list_weights", text="", icon="FILE_REFRESH")
    box.prop(chosen, "weights_folder")
    missing = operators.backend_missing()
    if missing:
        box.label(text=missing, icon="INFO")
        return
    shelf.wanted = True
    if shelf.task is not None and shelf.action != "list":
        row = box.row()
        row.progress(factor=shelf.task.fraction, text=f"{shelf.name}: {iface(shelf.task.stage)}")
        row.operator("gaussmith.cancel_weights", text="", icon="CANCEL")
    for item in shelf.items or ():
        draw_item(box, item)
    if shelf.items is not None:
        used, free = f"{shelf.disk_bytes / GB:.1f} GB", f"{shelf.free_bytes / GB:.0f} GB"
        text = f"{iface('On the disk')}: {used}. {iface('Free')}: {free}. {shelf.folder}"
        box.label(text=text, translate=False)
    if not preferences.online_allowed():
        draw_sentence(box.column(align=True), OFFLINE, icon="INTERNET_OFFLINE", width=WINDOW)


def draw_item(box: bpy.types.UILayout, item: Item) -> None:
    row = box.row(align=True)
    split = row.split(factor=0.3)
    split.label(text=item.name, translate=False, icon=STATE_ICONS[item.state])
    figures = f"{(item.disk_bytes or item.bytes) / GB:.2f} GB   {iface(COMMERCIAL[item.commercial])}   {item.purpose}"
    split.label(text=figures, translate=False)
    if item.state != "shipped":
        draw_actions(row, item)
    row.operator("wm.url_open", text="", icon="URL").url = item.page


def draw_actions(row: Any, item: Item) -> None:
    """Buttons for what comes and goes; what ships does neither."""
    if item.state != "fetched":
        row.operator("gaussmith.fetch_weights", text="", icon="IMPORT").name = item.name
    else:
        row.operator("gaussmith.verify_weights", text="", icon="CHECKMARK").name = item.name
    removal = row.row(align=True)
    removal.active = item.disk_bytes > 0
    removal.operator("gaussmith.remove_weights", text="", icon="TRASH").name = item.name


def draw_licence(layout: Any, item: Item | None) -> None:
    """What a person agrees to before a download."""
    if item is None:
        return
    layout.label(text=f"{item.name}, {item.bytes / GB:.2f} GB", translate=False)
    for sentence in (item.purpose, item.licence, iface("The licence's own words are on the publisher's page.")):
        draw_sentence(layout.column(align=True), sentence, width=WINDOW)
    layout.operator("wm.url_open", text="Open the Publisher's Page", icon="URL").url = item.page
