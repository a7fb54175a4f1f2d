"""The temporary scene of a capture: a copy of the artist's, with our render settings and our one camera.

The artist's scene, objects and cameras are not changed at all, so nothing of them has to be restored: closing the stage
removes what it made. Objects are shared; which of them show, and how, is said by collections of the stage's own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import bpy
import numpy as np
from mathutils import Matrix

from . import axes, camera_matrix, render_settings, subjects, temporary
from .camera_matrix import Lens
from .subjects import Rendered
from .views import CaptureError, CaptureSettings

_NAME = "Gaussmith Capture"
_RENDER_RESULT = "Render Result"


@dataclass(frozen=True)
class Shot:
    """One picture to take: with a scene's camera as it stands at `frame`, or from a fixed place (c2w [4,4], OpenCV
    axes)."""

    name: str
    camera: str = ""
    c2w: np.ndarray | None = None
    lens: Lens | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Pose:
    """Where a shot was taken from: c2w [4,4] (OpenCV axes) and K [3,3], float64."""

    c2w: np.ndarray
    K: np.ndarray
    orthographic: bool


class Stage:
    """Made from the context's scene and view layer; `close` when done, whatever happened. Raises CaptureError."""

    def __init__(self, context: bpy.types.Context, settings: CaptureSettings) -> None:
        temporary.remove_all()  # what an undo may have brought back
        self.had_render_result = _RENDER_RESULT in bpy.data.images
        self.folder = Path(tempfile.mkdtemp(prefix="gaussmith-capture-"))
        try:
            self._build(context, settings)
        except BaseException:
            self.close()
            raise

    def _build(self, context: bpy.types.Context, settings: CaptureSettings) -> None:
        source, layer = context.scene, context.view_layer
        rendered = subjects.rendered_objects(layer)
        needs_subject = settings.selected_only or settings.source == "orbit"
        self.subject = subjects.choose(layer, rendered, required=needs_subject)
        self.frame = render_settings.frame_of(source, settings)
        self._copy_scene(source, layer.name)
        render_settings.configure(self.scene, settings, self.frame)
        if settings.selected_only:
            self._rearrange(rendered, settings)
        self._add_camera()

    @property
    def scene(self) -> bpy.types.Scene:
        return bpy.data.scenes[self._scene]

    @property
    def depsgraph(self) -> bpy.types.Depsgraph:
        layer = self.scene.view_layers[0]
        layer.update()
        return layer.depsgraph

    def _copy_scene(self, source: bpy.types.Scene, layer_name: str) -> None:
        scene = source.copy()
        temporary.mark(scene)
        scene.name = _NAME
        self._scene = scene.name
        scene.animation_data_clear()  # else it would animate the settings we choose
        scene.timeline_markers.clear()  # else they would change the camera
        for layer in [layer for layer in scene.view_layers if layer.name != layer_name]:
            scene.view_layers.remove(layer)

    def _rearrange(self, rendered: list[Rendered], settings: CaptureSettings) -> None:
        """Replace the copy's collections by ours. Lights and whatever else has no surface stay as they are."""
        root = self.scene.collection
        for child in list(root.children):
            root.children.unlink(child)
        for item in list(root.objects):
            root.objects.unlink(item)
        for item in rendered:
            is_rest = subjects.has_surface(item.object) and item.object.name not in self.subject
            if is_rest and settings.others == "hidden":
                continue
            self._collection(holdout=item.holdout or is_rest, indirect_only=item.indirect_only).objects.link(
                item.object
            )

    def _collection(self, *, holdout: bool, indirect_only: bool) -> bpy.types.Collection:
        """The stage's collection whose objects show in this way."""
        branches = self.scene.view_layers[0].layer_collection.children
        for branch in branches:
            if (branch.holdout, branch.indirect_only) == (holdout, indirect_only):
                return branch.collection
        collection = bpy.data.collections.new(_NAME)
        temporary.mark(collection)
        self.scene.collection.children.link(collection)
        branch = branches[collection.name]
        branch.holdout, branch.indirect_only = holdout, indirect_only
        return collection

    def _add_camera(self) -> None:
        data = bpy.data.cameras.new(_NAME)
        camera = bpy.data.objects.new(_NAME, data)
        temporary.mark(data)
        temporary.mark(camera)
        self._camera = camera.name
        self.scene.collection.objects.link(camera)
        self.scene.camera = camera

    def place(self, shot: Shot) -> Pose:
        """Put the frame and our camera where the shot says; returns where that is."""
        if shot.frame is not None:
            self.scene.frame_set(shot.frame)
        c2w, lens = self._scene_camera(shot.camera) if shot.c2w is None or shot.lens is None else (shot.c2w, shot.lens)
        camera = bpy.data.objects[self._camera]
        camera_matrix.write_lens(lens, camera.data)
        camera.matrix_world = Matrix(axes.blender_from_opencv(c2w).tolist())
        self.scene.camera = camera
        return Pose(c2w, camera_matrix.intrinsics(lens, self.frame), lens.type == "ORTHO")

    def _scene_camera(self, name: str) -> tuple[np.ndarray, Lens]:
        """An artist's camera, evaluated: constraints, parents, drivers, animation."""
        camera = bpy.data.objects[name]
        self.scene.camera = camera  # so that it is evaluated even where its collection is excluded
        evaluated = camera.evaluated_get(self.depsgraph)
        c2w = camera_matrix.rigid(np.array(evaluated.matrix_world))
        return axes.opencv_from_blender(c2w), camera_matrix.read_lens(evaluated.data, name)

    def close(self) -> None:
        """Remove the scene, camera, collections and files of the stage; idempotent."""
        temporary.remove_all()
        if not self.had_render_result and _RENDER_RESULT in bpy.data.images:
            bpy.data.images.remove(bpy.data.images[_RENDER_RESULT])
        rmtree(self.folder, ignore_errors=True)


def check_not_inside(stage: Stage, shots: list[Shot]) -> None:
    """Raises CaptureError when a fixed camera, or a scene's camera where it stands now, is inside a subject."""
    places = [stage.place(shot).c2w[:3, 3] for shot in shots if shot.frame is None]
    around = subjects.object_around(stage.depsgraph, stage.subject, places) if places else None
    if around is not None:
        raise CaptureError(
            f"A camera is inside {around} and would see its back sides only: move the cameras away, or deselect "
            f"{around} if it is the room around them."
        )
