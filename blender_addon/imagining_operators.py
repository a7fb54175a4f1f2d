"""The operators of prompts, pictures and candidates: each checks, asks the studio, and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import bpy
from bpy.props import BoolProperty, IntProperty, StringProperty

from . import imagining, imagining_properties, operators, picture_files, preferences, properties, studio
from .candidates import Candidate, new_seed
from .generation import Generation
from .imagining import Placing
from .views import CaptureError

Result = set[str]
BUSY = "A run is in progress"


def why_not() -> str:
    """Why no run can begin, or nothing."""
    return BUSY if studio.current().busy else operators.backend_missing()


def picture_path(context: bpy.types.Context) -> str:
    """The panel's picture of the front, as the system names it; empty where there is none."""
    path = context.scene.gaussmith.imagining.picture_front
    return bpy.path.abspath(path) if path else ""


class GAUSSMITH_OT_vary(bpy.types.Operator):
    bl_idname = "gaussmith.vary"
    bl_label = "Vary"
    bl_description = "Choose another seed, so that the next result is a different one"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> Result:
        context.scene.gaussmith.seed = new_seed()
        return {"FINISHED"}


class GAUSSMITH_OT_generate_again(bpy.types.Operator):
    bl_idname = "gaussmith.generate_again"
    bl_label = "Generate Again"
    bl_description = "Set the panel as it was for this result, and generate; the same seed gives the same result"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        reason = why_not()
        if not reason and "imagining" not in operators.last_recipe(context):
            reason = "Select a result that was made of a prompt or a picture"
        if reason:
            cls.poll_message_set(reason)
        return not reason

    def execute(self, context: bpy.types.Context) -> Result:
        recipe = operators.last_recipe(context)
        chosen = context.scene.gaussmith
        try:
            wanted = imagining.of_recipe(recipe["imagining"])
            imagining_properties.fill(chosen.imagining, wanted, Placing(**recipe["placing"]))
            properties.fill(chosen, wanted.source.upper(), recipe)
            studio.current().generate(context, properties.order(chosen, preferences.device()))
        except (CaptureError, KeyError, TypeError) as error:
            sentence = str(error) if isinstance(error, CaptureError) else "The result does not say how it was made."
            self.report({"ERROR"}, sentence)
            return {"CANCELLED"}
        return {"FINISHED"}


# ---- candidates


class _OfCandidate:
    """What the operators share that act on the candidate `number`."""

    number: IntProperty(name="Candidate", description="Its number in the panel", options={"SKIP_SAVE"})  # type: ignore[valid-type]

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        reason = why_not() or ("" if studio.current().candidates.items else "There are no candidates")
        if reason:
            cls.poll_message_set(reason)  # type: ignore[attr-defined]
        return not reason

    def found(self) -> Candidate:
        """Raises CaptureError for one that is gone."""
        item = studio.current().candidates.find(self.number)
        if item is None:
            raise CaptureError(f"There is no candidate {self.number}.")
        return item

    def try_to(self, act: Any, *arguments: Any) -> Result:
        """Does it, or says in a sentence why not."""
        try:
            act(*arguments)
        except CaptureError as error:
            self.report({"ERROR"}, str(error))  # type: ignore[attr-defined]
            return {"CANCELLED"}
        return {"FINISHED"}


class _OfView(_OfCandidate):
    """And on one of its views."""

    view: IntProperty(name="View", description="Its place in the candidate, from 0", options={"SKIP_SAVE"})  # type: ignore[valid-type]

    def found(self) -> Candidate:
        item = super().found()
        if not 0 <= self.view < len(item.imagined.images):
            raise CaptureError(f"Candidate {self.number} has no view {self.view + 1}.")
        return item


class GAUSSMITH_OT_use_candidate(_OfCandidate, bpy.types.Operator):
    bl_idname = "gaussmith.use_candidate"
    bl_label = "Use"
    bl_description = "Turn these views into a result, with the panel's settings as they are now"

    def execute(self, context: bpy.types.Context) -> Result:
        return self.try_to(self._use, context)

    def _use(self, context: bpy.types.Context) -> None:
        running, item = studio.current(), self.found()
        order = properties.order_with_views(
            context.scene.gaussmith, preferences.device(), running.candidates.wanted(item), item.seed
        )
        views = imagining.views_of(item.imagined)
        running.begin(context, Generation(order, running.session, views=views))


class GAUSSMITH_OT_more_candidates(_OfCandidate, bpy.types.Operator):
    bl_idname = "gaussmith.more_candidates"
    bl_label = "More"
    bl_description = "Make one more candidate, with another seed"

    def execute(self, context: bpy.types.Context) -> Result:
        return self.try_to(self._ask, context)

    def _ask(self, context: bpy.types.Context) -> None:
        running = studio.current()
        order, again = running.candidates.more()
        running.begin(context, Generation(order, running.session, again=again))


class GAUSSMITH_OT_redo_view(_OfView, bpy.types.Operator):
    bl_idname = "gaussmith.redo_view"
    bl_label = "Redo View"
    bl_description = "Make this view anew, and keep the others"

    def execute(self, context: bpy.types.Context) -> Result:
        return self.try_to(self._ask, context)

    def _ask(self, context: bpy.types.Context) -> None:
        running = studio.current()
        order, again = running.candidates.redo(self.found(), self.view)
        running.begin(context, Generation(order, running.session, again=again))


class GAUSSMITH_OT_replace_view(_OfView, bpy.types.Operator):
    bl_idname = "gaussmith.replace_view"
    bl_label = "Replace View"
    bl_description = "Put a picture of your own in this view's place; it must show the object cut out"

    filepath: StringProperty(  # type: ignore[valid-type]
        name="Picture", description="Its file", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    filter_image: BoolProperty(default=True, options={"HIDDEN", "SKIP_SAVE"})  # type: ignore[valid-type]
    filter_folder: BoolProperty(default=True, options={"HIDDEN", "SKIP_SAVE"})  # type: ignore[valid-type]

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> Result:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, _context: bpy.types.Context) -> Result:
        return self.try_to(self._replace)

    def _replace(self) -> None:
        item = self.found()
        height, width = item.imagined.images.shape[1:3]
        image = picture_files.fitted(Path(bpy.path.abspath(self.filepath)), width=width, height=height)
        studio.current().candidates.replace_view(item, self.view, image)


class GAUSSMITH_OT_discard_candidate(_OfCandidate, bpy.types.Operator):
    bl_idname = "gaussmith.discard_candidate"
    bl_label = "Discard"
    bl_description = "Throw this candidate away"

    def execute(self, _context: bpy.types.Context) -> Result:
        studio.current().candidates.discard(self.number)
        return {"FINISHED"}


# ---- pictures


class GAUSSMITH_OT_preview_cut(bpy.types.Operator):
    bl_idname = "gaussmith.preview_cut"
    bl_label = "Preview Cut"
    bl_description = "Show what will be taken of the picture"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        reason = why_not() or ("" if picture_path(context) else "Choose a picture first")
        if reason:
            cls.poll_message_set(reason)
        return not reason

    def execute(self, context: bpy.types.Context) -> Result:
        try:
            cut = context.scene.gaussmith.imagining.cut.lower()
            studio.current().preview_cut(picture_path(context), cut)
        except CaptureError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return {"FINISHED"}


class GAUSSMITH_OT_use_picture(bpy.types.Operator):
    bl_idname = "gaussmith.use_picture"
    bl_label = "Generate from Picture"
    bl_description = "Choose this picture as what a result is made of; nothing starts before you say so"
    bl_options = {"UNDO"}

    filepath: StringProperty(  # type: ignore[valid-type]
        name="Picture", description="Its file", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    start: BoolProperty(  # type: ignore[valid-type]
        name="Generate now", description="Start with the panel's settings as they are", options={"SKIP_SAVE"}
    )

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> Result:
        return context.window_manager.invoke_props_dialog(self, width=320)

    def draw(self, _context: bpy.types.Context) -> None:
        self.layout.label(text=Path(self.filepath).name, translate=False, icon="IMAGE_DATA")
        self.layout.prop(self, "start")

    def execute(self, context: bpy.types.Context) -> Result:
        if not Path(bpy.path.abspath(self.filepath)).is_file():
            self.report({"ERROR"}, f"There is no picture {self.filepath}")
            return {"CANCELLED"}
        take_picture(context, self.filepath)
        if self.start and bpy.ops.gaussmith.generate.poll():
            bpy.ops.gaussmith.generate()
        return {"FINISHED"}


def take_picture(context: bpy.types.Context, path: str) -> None:
    """Makes a file the panel's picture of the front, and its only one."""
    chosen = context.scene.gaussmith
    chosen.source = "PICTURE"
    for name in imagining_properties.FIELDS.values():
        setattr(chosen.imagining, name, "")
    chosen.imagining.picture_front = path


class GAUSSMITH_OT_paste_picture(bpy.types.Operator):
    bl_idname = "gaussmith.paste_picture"
    bl_label = "Paste Path"
    bl_description = "Take the picture whose path is in the clipboard"
    bl_options = {"REGISTER", "UNDO"}

    def execute(self, context: bpy.types.Context) -> Result:
        path = pasted(context.window_manager.clipboard)
        if path is None or not path.is_file():
            self.report({"ERROR"}, "The clipboard holds no path of a picture")
            return {"CANCELLED"}
        take_picture(context, str(path))
        return {"FINISHED"}


def pasted(text: str) -> Path | None:
    """The path that a clipboard's first line names: as it is, in quotes, or as the address of a file."""
    line = next(iter(text.strip().splitlines()), "").strip().strip("\"'")
    if line.startswith("file://"):
        line = unquote(urlsplit(line).path)
    return Path(line).expanduser() if line and "\0" not in line else None


class GAUSSMITH_FH_picture(bpy.types.FileHandler):
    bl_idname = "GAUSSMITH_FH_picture"
    bl_label = "Generate from Picture"
    bl_import_operator = "gaussmith.use_picture"
    bl_file_extensions = ";".join(picture_files.ENDINGS)

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        return context.area is not None and context.area.type == "VIEW_3D"


CLASSES: tuple[Any, ...] = (
    GAUSSMITH_OT_vary,
    GAUSSMITH_OT_generate_again,
    GAUSSMITH_OT_use_candidate,
    GAUSSMITH_OT_more_candidates,
    GAUSSMITH_OT_redo_view,
    GAUSSMITH_OT_replace_view,
    GAUSSMITH_OT_discard_candidate,
    GAUSSMITH_OT_preview_cut,
    GAUSSMITH_OT_use_picture,
    GAUSSMITH_OT_paste_picture,
    GAUSSMITH_FH_picture,
)
