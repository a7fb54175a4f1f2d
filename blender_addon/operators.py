"""The operators: each checks, asks the studio or a helper, and reports. None knows sockets or arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy
from bpy.props import EnumProperty, StringProperty
from bpy_extras.io_utils import ExportHelper, ImportHelper

from . import (
    environment,
    imagining_properties,
    placement,
    ply,
    preferences,
    properties,
    result,
    scene_advice,
    splat_object,
    studio,
)
from .views import CaptureError

Result = set[str]


def backend_missing() -> str:
    """Why no job can run, or nothing. Looks at files only."""
    python, origin = preferences.backend_python()
    if python is not None:
        return ""
    if origin == preferences.PYTHON_VARIABLE:
        return f"The environment variable {preferences.PYTHON_VARIABLE} names a file that does not exist"
    if origin == "preferences":
        return "The Python named in the preferences does not exist"
    return "Set up the backend first"


def nothing_to_capture(context: bpy.types.Context) -> str:
    """Why the chosen source gives no views, or nothing. Cheap: it is asked at each redraw."""
    chosen = context.scene.gaussmith
    scene = context.scene
    if chosen.source == "ORBIT" and not context.selected_objects:
        return "Select the object to capture"
    if chosen.source == "CAMERAS":
        cameras = (item for item in scene.objects if item.type == "CAMERA")
        if not any(chosen.cameras == "ALL" or item.select_get() for item in cameras):
            return "Select cameras first" if chosen.cameras == "SELECTED" else "The scene has no camera"
    if chosen.source == "ANIMATION" and scene.camera is None:
        return "The scene has no active camera"
    if chosen.source == "FILES" and not Path(bpy.path.abspath(chosen.transforms)).is_file():
        return "Choose a transforms.json"
    if chosen.source in imagining_properties.SOURCES:
        return nothing_to_imagine(context)
    return ""


def nothing_to_imagine(context: bpy.types.Context) -> str:
    """Why the panel's prompt or picture is not enough, or has no place to stand; or nothing."""
    chosen = context.scene.gaussmith
    reason = imagining_properties.missing(chosen.imagining, chosen.source).rstrip(".")
    if not reason and chosen.imagining.place == "SELECTION":
        return placement.nothing_to_stand_on(context)
    return reason


class GAUSSMITH_OT_generate(bpy.types.Operator):
    bl_idname = "gaussmith.generate"
    bl_label = "Generate"
    bl_description = (
        "Capture the views, or make them of a prompt or a picture, and turn them into splats or a mesh in their place"
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        busy = "A run is in progress" if studio.current().busy else ""
        reason = busy or backend_missing() or nothing_to_capture(context)
        if reason:
            cls.poll_message_set(reason)
        return not reason

    def execute(self, context: bpy.types.Context) -> Result:
        try:
            order = properties.order(context.scene.gaussmith, preferences.device())
            studio.current().generate(context, order)
            if order.imagining is not None:
                studio.current().history.add(order.imagining.prompt)
        except CaptureError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class GAUSSMITH_OT_cancel(bpy.types.Operator):
    bl_idname = "gaussmith.cancel"
    bl_label = "Cancel"
    bl_description = "Stop the run; nothing of it is kept"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return studio.current().busy

    def execute(self, _context: bpy.types.Context) -> Result:
        studio.current().cancel()
        return {"FINISHED"}


class GAUSSMITH_OT_finish_early(bpy.types.Operator):
    bl_idname = "gaussmith.finish_early"
    bl_label = "Finish Now"
    bl_description = "Stop optimising and take the best result so far"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        generation = studio.current().generation
        return generation is not None and generation.phase == "RECONSTRUCTING"

    def execute(self, _context: bpy.types.Context) -> Result:
        generation = studio.current().generation
        if generation is not None:
            generation.finish_early()
        return {"FINISHED"}


class GAUSSMITH_OT_insert_result(bpy.types.Operator):
    bl_idname = "gaussmith.insert_result"
    bl_label = "Gaussmith Result"  # what the undo history shows
    bl_description = "Put the finished result into the scene"
    bl_options = {"UNDO", "INTERNAL"}

    def execute(self, context: bpy.types.Context) -> Result:
        generation = studio.current().generation
        if generation is None or generation.phase != "INSERTING":
            return {"CANCELLED"}
        generation.insert(context)
        return {"FINISHED"}


class GAUSSMITH_OT_show(bpy.types.Operator):
    bl_idname = "gaussmith.show"
    bl_label = "Show"
    bl_description = "Show the splats or the mesh of a result"
    bl_options = {"REGISTER", "UNDO"}

    display: EnumProperty(name="Show", items=result.DISPLAYS)  # type: ignore[valid-type]
    name: StringProperty(name="Result", description="Name of the result's empty", options={"SKIP_SAVE"})  # type: ignore[valid-type]

    def execute(self, context: bpy.types.Context) -> Result:
        empty = bpy.data.objects.get(self.name) or result.owner(context.object)
        if not result.is_result(empty):
            self.report({"ERROR"}, "Select a result first")
            return {"CANCELLED"}
        result.show(empty, self.display)
        return {"FINISHED"}


class GAUSSMITH_OT_select_result(bpy.types.Operator):
    bl_idname = "gaussmith.select_result"
    bl_label = "Select Result"
    bl_description = "Select the newest result"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.mode == "OBJECT" and result.is_result(last_result(context))

    def execute(self, context: bpy.types.Context) -> Result:
        empty = last_result(context)
        if empty is None or empty.name not in context.view_layer.objects:
            self.report({"ERROR"}, "The result is not in this view layer")
            return {"CANCELLED"}
        for item in context.selected_objects:
            item.select_set(False)
        empty.select_set(True)
        context.view_layer.objects.active = empty
        return {"FINISHED"}


class GAUSSMITH_OT_fix_scene(bpy.types.Operator):
    bl_idname = "gaussmith.fix_scene"
    bl_label = "Fix"
    bl_description = "Change this setting of the scene"
    bl_options = {"REGISTER", "UNDO"}

    fix: StringProperty(name="Fix", description="Which setting", options={"HIDDEN"})  # type: ignore[valid-type]

    def execute(self, context: bpy.types.Context) -> Result:
        if self.fix not in scene_advice.FIXES:
            self.report({"ERROR"}, f"There is no fix {self.fix!r}")
            return {"CANCELLED"}
        scene_advice.apply_fix(context.scene, self.fix)
        return {"FINISHED"}


def last_result(context: bpy.types.Context) -> bpy.types.Object | None:
    """The active object's result, else the scene's newest one."""
    return result.owner(context.object) or bpy.data.objects.get(context.scene.gaussmith.last_result)


def last_recipe(context: bpy.types.Context) -> dict[str, Any]:
    """How that result was made; empty where there is none."""
    empty = last_result(context)
    return result.recipe_of(empty) if empty is not None else {}


# ---- files


class GAUSSMITH_OT_import_ply(bpy.types.Operator, ImportHelper):
    bl_idname = "gaussmith.import_ply"
    bl_label = "Import Splats"
    bl_description = "Import Gaussian splats from a .ply file"
    bl_options = {"REGISTER", "UNDO"}
    filename_ext = ".ply"
    filter_glob: StringProperty(default="*.ply", options={"HIDDEN"})  # type: ignore[valid-type]

    def execute(self, context: bpy.types.Context) -> Result:
        path = Path(self.filepath)
        try:
            item = splat_object.create(path.stem, ply.read(path))
        except (ply.PlyError, OSError) as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        context.collection.objects.link(item)
        for other in context.selected_objects:
            other.select_set(False)
        item.select_set(True)
        context.view_layer.objects.active = item
        return {"FINISHED"}


class GAUSSMITH_FH_ply(bpy.types.FileHandler):
    bl_idname = "GAUSSMITH_FH_ply"
    bl_label = "Gaussian Splats"
    bl_import_operator = "gaussmith.import_ply"
    bl_file_extensions = ".ply"

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        return context.area is not None and context.area.type == "VIEW_3D"


class GAUSSMITH_OT_export_ply(bpy.types.Operator, ExportHelper):
    bl_idname = "gaussmith.export_ply"
    bl_label = "Export Splats"
    bl_description = "Export the active object's or result's splats, in world space, to a .ply file"
    filename_ext = ".ply"
    filter_glob: StringProperty(default="*.ply", options={"HIDDEN"})  # type: ignore[valid-type]

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if splats_of(context) is None:
            cls.poll_message_set("Select splats or a result that has them")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> Result:
        item = splats_of(context)
        assert item is not None
        try:
            ply.write(Path(self.filepath), splat_object.read_splats(item))
        except OSError as error:
            self.report({"ERROR"}, f"{self.filepath} could not be written: {error.strerror}")
            return {"CANCELLED"}
        return {"FINISHED"}


def splats_of(context: bpy.types.Context) -> bpy.types.Object | None:
    """The active object when it holds splats, else the splats of the result it belongs to."""
    item = context.object
    if splat_object.is_splats(item):
        return item
    empty = result.owner(item)
    return result.part(empty, "SPLATS") if empty is not None else None


# ---- the backend


class GAUSSMITH_OT_open_preferences(bpy.types.Operator):
    bl_idname = "gaussmith.open_preferences"
    bl_label = "Set Up Backend"
    bl_description = "Open Gaussmith's preferences, where the backend is set up"

    def execute(self, _context: bpy.types.Context) -> Result:
        bpy.ops.preferences.addon_show(module=preferences.ROOT_PACKAGE)
        return {"FINISHED"}


class GAUSSMITH_OT_copy_details(bpy.types.Operator):
    bl_idname = "gaussmith.copy_details"
    bl_label = "Copy Details"
    bl_description = "Copy the problem, the versions and the end of the log to the clipboard, for a report"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return studio.current().problem is not None

    def execute(self, context: bpy.types.Context) -> Result:
        context.window_manager.clipboard = studio.current().details()
        self.report({"INFO"}, "Copied")
        return {"FINISHED"}


class GAUSSMITH_OT_dismiss(bpy.types.Operator):
    bl_idname = "gaussmith.dismiss"
    bl_label = "Dismiss"
    bl_description = "Put the message away"

    def execute(self, _context: bpy.types.Context) -> Result:
        studio.current().problem, studio.current().notice = None, ""
        return {"FINISHED"}


class GAUSSMITH_OT_open_log(bpy.types.Operator):
    bl_idname = "gaussmith.open_log"
    bl_label = "Open Log"
    bl_description = "Open the backend's log file"

    def execute(self, _context: bpy.types.Context) -> Result:
        path = preferences.log_path()
        if not path.is_file():
            self.report({"INFO"}, "The backend has not run yet, so there is no log")
            return {"CANCELLED"}
        bpy.ops.wm.path_open(filepath=str(path))
        return {"FINISHED"}


OFFLINE = (
    "Setting up the backend downloads its packages, and Blender is set to stay offline. "
    "Allow it under Preferences > System > Network > Allow Online Access."
)


class GAUSSMITH_OT_set_up_backend(bpy.types.Operator):
    bl_idname = "gaussmith.set_up_backend"
    bl_label = "Set Up Backend"
    bl_description = (
        "Download the backend's packages into an environment of their own. An interrupted setup goes on where it was"
    )

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        running = studio.current()
        reason = "" if preferences.online_allowed() else OFFLINE
        reason = "A run is in progress" if running.busy or running.setup is not None else reason
        if reason:
            cls.poll_message_set(reason)
        return not reason

    def execute(self, _context: bpy.types.Context) -> Result:
        try:
            studio.current().begin_setup(preferences.new_setup())
        except environment.SetupError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class GAUSSMITH_OT_cancel_setup(bpy.types.Operator):
    bl_idname = "gaussmith.cancel_setup"
    bl_label = "Cancel Setup"
    bl_description = "Stop the setup; what is downloaded stays for the next try"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return studio.current().setup is not None

    def execute(self, _context: bpy.types.Context) -> Result:
        studio.current().cancel_setup()
        return {"FINISHED"}


class GAUSSMITH_OT_check_environment(bpy.types.Operator):
    bl_idname = "gaussmith.check_environment"
    bl_label = "Check"
    bl_description = "See whether this Python has what the backend needs"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return not backend_missing()

    def execute(self, _context: bpy.types.Context) -> Result:
        python, _ = preferences.backend_python()
        assert python is not None
        found = environment.check_environment(python)
        studio.current().tell_check(found)
        self.report({"INFO"} if found.usable else {"ERROR"}, found.problem or "The backend can run with it")
        return {"FINISHED"} if found.usable else {"CANCELLED"}
