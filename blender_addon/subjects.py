"""What of a scene a render shows, which part of it is the subject, and how far that reaches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import bpy
import numpy as np
from mathutils import Matrix, Vector

from . import orbit
from .views import CaptureError

_SURFACES = ("MESH", "CURVE", "SURFACE", "FONT", "META", "CURVES", "POINTCLOUD", "VOLUME", "GPENCIL", "GREASEPENCIL")
_SEARCH = tuple(
    Vector(direction).normalized() for direction in ((0.83, 0.31, 0.46), (-0.27, 0.91, -0.31), (0.11, -0.37, -0.92))
)
_MAX_CROSSINGS = 10_000
_EXTREMES_KEPT = 1024


@dataclass(frozen=True)
class Rendered:
    """One object that a render of the view layer takes into account, and how its collections say to show it."""

    object: bpy.types.Object
    holdout: bool
    indirect_only: bool


def rendered_objects(layer: bpy.types.ViewLayer) -> list[Rendered]:
    """The objects of the layer that are in a collection which is neither excluded nor switched off in renders, each
    once. An object's own render switch is left to the renderer, since it may be animated."""
    found: dict[str, Rendered] = {}
    in_layer = set(layer.objects.keys())
    for branch in _branches(layer.layer_collection):
        for item in branch.collection.objects:
            if item.name not in in_layer:
                continue
            known = found.get(item.name)
            found[item.name] = Rendered(
                item,
                branch.holdout or (known is not None and known.holdout),
                branch.indirect_only or (known is not None and known.indirect_only),
            )
    return list(found.values())


def _branches(branch: bpy.types.LayerCollection) -> Iterator[bpy.types.LayerCollection]:
    if branch.collection.hide_render:
        return
    if not branch.exclude:
        yield branch
    for child in branch.children:
        yield from _branches(child)


def has_surface(item: bpy.types.Object) -> bool:
    """Whether an object can leave pixels in a picture by itself."""
    return item.type in _SURFACES or (item.type == "EMPTY" and item.instance_type == "COLLECTION")


def selected_names(layer: bpy.types.ViewLayer) -> set[str]:
    """Names of the selected objects; one without a surface (an empty, an armature) stands for all below it."""
    names: set[str] = set()
    for item in layer.objects.selected:
        names.add(item.name)
        if item.type not in _SURFACES:
            names.update(child.name for child in item.children_recursive)
    return names


def choose(layer: bpy.types.ViewLayer, rendered: Iterable[Rendered], *, required: bool) -> set[str]:
    """Names of the selected objects that a render shows. Raises CaptureError, with the reason, for a scene without any
    object to render, and, if a selection is required, when there is none."""
    visible = {item.object.name for item in rendered if has_surface(item.object) and not item.object.hide_render}
    if not visible:
        raise CaptureError("The scene has nothing to render: add an object, or switch its collection on in renders.")
    selected = selected_names(layer)
    if not required:
        return selected & visible
    with_surface = sorted(name for name in selected if has_surface(bpy.data.objects[name]))
    if not with_surface:
        raise CaptureError("Nothing is selected that a render shows: select the object to capture.")
    if not selected & visible:
        raise CaptureError(
            f"{with_surface[0]} is selected but hidden in renders: switch on the camera icon of the object and its "
            "collections in the Outliner."
        )
    return selected & visible


def bounding_sphere(depsgraph: bpy.types.Depsgraph, names: set[str]) -> orbit.Sphere:
    """Around the evaluated geometry of the named objects and of what they instance, in world space."""
    clouds, cache = [], {}
    for item, matrix, instanced in _shown(depsgraph, names):
        points = _local_points(item, cache if instanced else None)
        if len(points):
            clouds.append(points @ np.array(matrix.to_3x3()).T + np.array(matrix.translation))
    cloud = np.concatenate(clouds) if clouds else np.empty((0, 3))
    cloud = cloud[np.isfinite(cloud).all(axis=1)]
    if not len(cloud):
        raise CaptureError(f"{sorted(names)[0]} has no geometry to capture.")
    sphere = orbit.bounding_sphere(cloud)
    if sphere.radius <= 0:
        raise CaptureError(f"{sorted(names)[0]} has no size: there is nothing to stand around.")
    return sphere


def _shown(depsgraph: bpy.types.Depsgraph, names: set[str]) -> Iterator[tuple[bpy.types.Object, Matrix, bool]]:
    """Evaluated object, world matrix, and whether it is an instance. Each object is valid until the next step only."""
    for instance in depsgraph.object_instances:
        owner = instance.parent if instance.is_instance else instance.object
        item = instance.object
        if owner.original.name in names and instance.show_self and not item.hide_render and item.type in _SURFACES:
            yield item, instance.matrix_world.copy(), instance.is_instance


def _local_points(item: bpy.types.Object, cache: dict[int, np.ndarray] | None) -> np.ndarray:
    """[N,3] float64 in the object's own space; of something instanced many times only the outermost points, once."""
    if cache is None or item.data is None:
        return _all_local_points(item)
    key = item.data.as_pointer()
    if key not in cache:
        points = _all_local_points(item)
        cache[key] = orbit.extremes(points) if len(points) > _EXTREMES_KEPT else points
    return cache[key]


def _all_local_points(item: bpy.types.Object) -> np.ndarray:
    if item.type == "MESH":
        return _coordinates(item.data.vertices, "co")
    if item.type in ("POINTCLOUD", "CURVES"):
        return _coordinates(item.data.points, "co" if item.type == "POINTCLOUD" else "position")
    if item.type in ("CURVE", "SURFACE", "FONT", "META"):
        mesh = item.to_mesh()
        points = _coordinates(mesh.vertices, "co") if mesh else np.empty((0, 3))
        item.to_mesh_clear()
        return points
    return np.array(item.bound_box, dtype=np.float64)


def _coordinates(elements: bpy.types.bpy_prop_collection, name: str) -> np.ndarray:
    flat = np.empty(len(elements) * 3, dtype=np.float32)
    elements.foreach_get(name, flat)
    return flat.reshape(-1, 3).astype(np.float64)


def object_around(depsgraph: bpy.types.Depsgraph, names: set[str], positions: Iterable[np.ndarray]) -> str | None:
    """The name of a closed mesh among the named objects that one of `positions` [3] (world) is inside of, if any.

    Inside means: every way out crosses the surface an odd number of times and meets a back side first, so that a room
    whose faces look inwards is no obstacle."""
    places = [Vector(position.tolist()) for position in positions]
    for item, matrix, _ in _shown(depsgraph, names):
        if item.type != "MESH" or not item.data.polygons or matrix.determinant() == 0:
            continue
        into_local = matrix.inverted()
        if any(_encloses(item, into_local @ place) for place in places):
            return item.original.name
    return None


def _encloses(item: bpy.types.Object, place: Vector) -> bool:
    corners = np.array(item.bound_box)
    if not ((corners.min(axis=0) <= place) & (corners.max(axis=0) >= place)).all():
        return False
    return all(_leaves_through_back(item, place, direction) for direction in _SEARCH)


def _leaves_through_back(item: bpy.types.Object, start: Vector, direction: Vector) -> bool:
    step = max(item.dimensions) * 1e-6
    crossings, first_is_back = 0, False
    while crossings < _MAX_CROSSINGS:
        hit, place, normal, _ = item.ray_cast(start, direction)
        if not hit:
            break
        if crossings == 0:
            first_is_back = normal.dot(direction) > 0
        crossings += 1
        start = place + direction * step
    return first_is_back and crossings % 2 == 1
