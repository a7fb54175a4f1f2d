"""From settings to the list of pictures to take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import bpy
import numpy as np

from . import axes, camera_matrix, orbit, subjects
from .camera_matrix import Lens
from .orbit import Sphere
from .stage import Shot, Stage
from .views import CaptureError, CaptureSettings

_SENSOR = 36.0
_NEAR, _FAR = 0.01, 1000.0  # clipping of our own cameras, in their distance from what they look at


@dataclass(frozen=True)
class _Viewport:
    """What the artist looks through: a fixed view, or a scene's camera (by name); and the point that the view turns
    around."""

    c2w: np.ndarray
    lens: Lens
    pivot: np.ndarray
    distance: float
    camera: str


def plan(context: bpy.types.Context, settings: CaptureSettings, stage: Stage) -> list[Shot]:
    """The shots in order. Raises CaptureError when the source gives none."""
    if settings.source == "orbit":
        lens = Lens(lens=settings.lens, sensor_width=_SENSOR)
        return _orbit(subjects.bounding_sphere(stage.depsgraph, stage.subject), lens, settings)
    if settings.source == "cameras":
        return [Shot(name, camera=name) for name in _scene_cameras(context, settings)]
    if settings.source == "animation":
        first, last, step = settings.frames
        cameras = {frame: _camera_at(context.scene, frame) for frame in range(first, last + 1, step)}
        return [Shot(f"{camera}_{frame:04d}", camera=camera, frame=frame) for frame, camera in cameras.items()]
    return _viewport_shots(_viewport(context), settings, stage)


# ---- orbit


def _orbit(sphere: Sphere, lens: Lens, settings: CaptureSettings) -> list[Shot]:
    placed = orbit.angles(settings.count, settings.elevations)
    return [_orbit_shot(f"orbit_{i:03d}", sphere, lens, settings, *angle) for i, angle in enumerate(placed)]


def _orbit_shot(
    name: str, sphere: Sphere, lens: Lens, settings: CaptureSettings, azimuth: float, elevation: float
) -> Shot:
    reach = settings.distance * sphere.radius
    if lens.type == "ORTHO":
        distance, lens = 2 * reach, replace(lens, ortho_scale=2 * reach)
    else:
        distance = settings.distance * orbit.fitting_distance(sphere.radius, lens=lens.lens, sensor=lens.sensor_width)
    lens = replace(lens, clip_start=_NEAR * distance, clip_end=_FAR * distance)
    return Shot(name, c2w=orbit.matrix(sphere.centre, distance, azimuth, elevation), lens=lens)


# ---- the scene's cameras


def _scene_cameras(context: bpy.types.Context, settings: CaptureSettings) -> list[str]:
    layer = context.view_layer
    chosen = layer.objects.selected if settings.cameras == "selected" else layer.objects
    names = sorted(item.name for item in chosen if item.type == "CAMERA")
    if not names and settings.cameras == "selected":
        raise CaptureError("No camera is selected: select the cameras to capture from, or use all of them.")
    if not names:
        raise CaptureError("The scene has no camera: add one, or capture an orbit around the selection.")
    return names


def _camera_at(scene: bpy.types.Scene, frame: int) -> str:
    """The camera that is active at a frame: the last marker that binds one decides, as it does in a render."""
    bound = [marker for marker in scene.timeline_markers if marker.camera is not None and not marker.camera.hide_render]
    before = [marker for marker in bound if marker.frame <= frame]
    if before:
        return max(before, key=lambda marker: marker.frame).camera.name
    if bound:
        return min(bound, key=lambda marker: marker.frame).camera.name
    if scene.camera is None:
        raise CaptureError("The scene has no active camera: add one, or capture an orbit around the selection.")
    return scene.camera.name


# ---- the viewport


def _viewport_shots(viewport: _Viewport, settings: CaptureSettings, stage: Stage) -> list[Shot]:
    """The artist's own view, then an orbit that starts in its direction around the subject, or around what it looks
    at."""
    first = Shot("viewport_000", c2w=viewport.c2w, lens=viewport.lens)
    if viewport.camera:
        first = Shot("viewport_000", camera=viewport.camera)
    if settings.count == 1:
        return [first]
    sphere = (
        subjects.bounding_sphere(stage.depsgraph, stage.subject)
        if stage.subject
        else Sphere(viewport.pivot, viewport.distance / 2)
    )
    azimuth, elevation = orbit.angles_of(viewport.c2w[:3, 3] - sphere.centre)
    lens = replace(viewport.lens, shift_x=0.0, shift_y=0.0, sensor_fit="AUTO")
    placed = orbit.angles(settings.count, settings.elevations or (elevation, 20.0, -15.0, 45.0), first_azimuth=azimuth)
    return [
        first,
        *(_orbit_shot(f"viewport_{i:03d}", sphere, lens, settings, *placed[i]) for i in range(1, settings.count)),
    ]


def _viewport(context: bpy.types.Context) -> _Viewport:
    space = _view3d(context)
    region = space.region_3d
    c2w = axes.opencv_from_blender(camera_matrix.rigid(np.array(region.view_matrix.inverted())))
    pivot, distance = np.array(region.view_location, dtype=np.float64), region.view_distance
    camera = space.camera if space.use_local_camera else context.scene.camera
    if region.view_perspective == "CAMERA" and camera is not None:
        lens = camera_matrix.read_lens(camera.data, camera.name)
        return _Viewport(c2w, lens, pivot, distance, camera.name)
    window = np.array(region.window_matrix)
    half = 1 / min(window[0, 0], window[1, 1])  # of the longer side: its tangent, or scene units when orthographic
    clips = {"clip_start": space.clip_start, "clip_end": space.clip_end}
    if region.is_perspective:
        return _Viewport(c2w, Lens(lens=_SENSOR / 2 / half, sensor_width=_SENSOR, **clips), pivot, distance, "")
    # An orthographic viewport clips on both sides of the point it turns around: a camera in front of all it shows.
    c2w[:3, 3] = pivot - space.clip_end / 2 * c2w[:3, 2]
    return _Viewport(c2w, Lens(type="ORTHO", ortho_scale=2 * half, **clips), pivot, distance, "")


def _view3d(context: bpy.types.Context) -> bpy.types.SpaceView3D:
    """The 3D view the context is in, else the largest one open."""
    if not bpy.app.background:
        if context.space_data is not None and context.space_data.type == "VIEW_3D":
            return context.space_data
        windows = [context.window] if context.window is not None else list(context.window_manager.windows)
        areas = [area for window in windows for area in window.screen.areas if area.type == "VIEW_3D"]
        if areas:
            return max(areas, key=lambda area: area.width * area.height).spaces.active
    raise CaptureError("There is no 3D viewport to look through: open one, or capture an orbit or the scene's cameras.")
