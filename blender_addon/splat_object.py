"""Splats as a Blender object, and back: a point cloud that carries the attributes Blender 5.3 gives its own splats.

    version      holder                                   radiance:base
    4.2 - 4.4    mesh of loose points                     colour attribute
    4.5 - 5.0    point cloud, made from such a mesh       colour attribute
    5.1          point cloud                              colour attribute
    5.2          point cloud                              four floats
    5.3 -        point cloud of type GAUSSIAN_SPLAT       four floats

Attributes: `position`; `scale` linear standard deviations; `rotation` quaternion, w first; `radiance:base` three raw DC
coefficients and the opacity 0..1; `radiance:sh_0` and on, one r, g, b vector for each coefficient after the first. What
a version lacks is found by asking Blender for the feature, not by its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import bpy
import numpy as np

from . import splat_material, splat_nodes
from .ply import SplatArrays
from .splat_rotation import transformed

BASE = "radiance:base"
SH_PREFIX = "radiance:sh_"
NATIVE_TYPE = "GAUSSIAN_SPLAT"
ROWS_A_SLICE = 250_000
VALUE_PROPERTY = {"FLOAT_VECTOR": "vector", "FLOAT_COLOR": "color", "QUATERNION": "value", "FLOAT4": "vector"}


class SplatSource(Protocol):
    """Anything that holds N activated splats: protocol.Splats, ply.SplatArrays."""

    @property
    def means(self) -> np.ndarray: ...  # [N,3] float32, Blender's world, scene units
    @property
    def quats(self) -> np.ndarray: ...  # [N,4] wxyz, unit
    @property
    def scales(self) -> np.ndarray: ...  # [N,3] linear, scene units
    @property
    def opacities(self) -> np.ndarray: ...  # [N] 0..1
    @property
    def sh(self) -> np.ndarray: ...  # [N,K,3], K of 1, 4, 9 or 16


class SplatBuilder:
    """Makes the object a slice at a time, so that no timer tick is long: call `step` until it returns True.

    Each step makes or fills one attribute; of 1,000,000 splats that takes a few milliseconds. The object is linked to
    no collection. `origin` becomes the object's position; the splats keep their places in the world.
    """

    def __init__(self, splats: SplatSource, name: str, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        check(splats)
        self._splats = splats
        self._name = name
        self._origin = np.asarray(origin, dtype=np.float32)
        self._object: bpy.types.Object | None = None
        self._work = self._slices()

    def step(self) -> bool:
        """Does the next slice; True when the object is whole."""
        for _ in self._work:
            return False
        return True

    @property
    def object(self) -> bpy.types.Object:
        if self._object is None:
            raise RuntimeError("the splat object is not made yet: call step() until it returns True")
        return self._object

    def _slices(self) -> Iterator[None]:
        splats = self._splats
        points = new_points(self._name, len(splats.means))
        yield
        positions = splats.means - self._origin if self._origin.any() else splats.means
        yield
        yield from _write(points, "position", "FLOAT_VECTOR", positions)
        yield from _write(points, "scale", "FLOAT_VECTOR", splats.scales)
        yield from _write(points, "rotation", "QUATERNION", splats.quats)
        yield from _write(points, BASE, base_type(), splats.sh[:, 0], splats.opacities[:, None])
        for index in range(1, splats.sh.shape[1]):
            yield from _write(points, f"{SH_PREFIX}{index - 1}", "FLOAT_VECTOR", splats.sh[:, index])
        item = bpy.data.objects.new(self._name, points)
        item.location = self._origin.tolist()
        yield
        yield from _dress(item, int(splats.sh.shape[1]))
        self._object = item


def create(name: str, splats: SplatSource) -> bpy.types.Object:
    """The whole object at once; see SplatBuilder."""
    builder = SplatBuilder(splats, name)
    while not builder.step():
        pass
    return builder.object


def check(splats: SplatSource) -> None:
    """ValueError that names the field when shapes do not agree or values are not finite numbers."""
    count, bases = len(splats.means), splats.sh.shape[1] if splats.sh.ndim == 3 else 0
    expected = {
        "means": (count, 3),
        "quats": (count, 4),
        "scales": (count, 3),
        "opacities": (count,),
        "sh": (count, bases, 3),
    }
    for field, shape in expected.items():
        if getattr(splats, field).shape != shape:
            raise ValueError(f"splats: {field} must have shape {shape}, found {getattr(splats, field).shape}")
    if bases not in (1, 4, 9, 16):
        raise ValueError(f"splats: sh must hold 1, 4, 9 or 16 coefficients, found {bases}")


# ---- the holder of the points


def new_points(name: str, count: int) -> Any:
    """A point cloud, or before 4.5 a mesh, of `count` points."""
    if "resize" in bpy.types.PointCloud.bl_rna.functions:
        cloud = bpy.data.pointclouds.new(name)
        cloud.resize(count)
        return cloud
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(count)
    if not hasattr(bpy.types.Object, "evaluated_geometry"):
        return mesh
    if count == 0:  # an evaluated geometry without points has no point cloud to copy
        bpy.data.meshes.remove(mesh)
        return bpy.data.pointclouds.new(name)
    try:
        return _converted(mesh, name)
    finally:
        bpy.data.meshes.remove(mesh)


def _converted(mesh: bpy.types.Mesh, name: str) -> bpy.types.PointCloud:
    """The mesh's points as a point cloud, evaluated in a scene of its own: the user's is not touched."""
    scene = bpy.data.scenes.new(name)
    carrier = bpy.data.objects.new(name, mesh)
    tree = splat_nodes.mesh_to_points()
    try:
        scene.collection.objects.link(carrier)
        modifier = carrier.modifiers.new(name, "NODES")
        modifier.node_group = tree
        layer = scene.view_layers[0]
        layer.update()
        geometry = carrier.evaluated_get(layer.depsgraph).evaluated_geometry()
        cloud = geometry.pointcloud.copy()
    finally:
        bpy.data.objects.remove(carrier)
        bpy.data.scenes.remove(scene)
    cloud.name = name
    for left_over in [item for item in cloud.attributes if item.name not in ("position", "radius")]:
        cloud.attributes.remove(left_over)
    return cloud


def base_type() -> str:
    """The attribute type of `radiance:base` in this Blender."""
    types = bpy.types.Attribute.bl_rna.properties["data_type"].enum_items
    return "FLOAT4" if "FLOAT4" in types else "FLOAT_COLOR"


def has_native_splats() -> bool:
    """Whether this Blender draws Gaussian splats itself (5.3 and later)."""
    kind = bpy.types.PointCloud.bl_rna.properties.get("type")
    return kind is not None and NATIVE_TYPE in kind.enum_items


def _write(points: Any, name: str, kind: str, *columns: np.ndarray) -> Iterator[None]:
    """Columns [N,C], side by side, into an attribute; made contiguous some rows at a time, then copied at once."""
    attribute = points.attributes.get(name) or points.attributes.new(name, kind, "POINT")  # `position` may be there
    yield
    values = np.empty((len(columns[0]), sum(column.shape[1] for column in columns)), dtype=np.float32)
    for start in range(0, len(values), ROWS_A_SLICE):
        rows = slice(start, start + ROWS_A_SLICE)
        np.concatenate([column[rows] for column in columns], axis=1, out=values[rows])
        yield
    attribute.data.foreach_set(VALUE_PROPERTY[attribute.data_type], values.reshape(-1))
    yield


def _dress(item: bpy.types.Object, bases: int) -> Iterator[None]:
    """Gives the object what shows its points: Blender's own splats, or our node group and material."""
    points: Any = item.data
    if has_native_splats() and isinstance(points, bpy.types.PointCloud):
        points.type = NATIVE_TYPE
        return
    yield from splat_nodes.ensure_slices(bases)
    yield
    yield from splat_material.ensure_slices(bases)
    yield
    material = splat_material.ensure(bases)
    points.materials.append(material)
    yield
    splat_nodes.add_modifier(item, material, bases)


# ---- reading back


def is_splats(item: bpy.types.Object | None) -> bool:
    """Whether the object's own data, before modifiers, holds splats."""
    attributes = getattr(item.data, "attributes", {}) if item is not None and item.data is not None else {}
    return all(name in attributes for name in ("position", "scale", "rotation", BASE))


def world_bounds(item: bpy.types.Object) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner [3] of the object's own points in the world: splat centres or vertices, not modifiers.

    The object's transform is composed from its own channels, so it is right before the scene is evaluated.
    """
    points = _read(item.data.attributes["position"], 3)
    if not len(points):
        return np.array(item.location, dtype=np.float64), np.array(item.location, dtype=np.float64)
    matrix = np.array(item.matrix_basis if item.parent is None else item.matrix_world, dtype=np.float64)
    world = points @ matrix[:3, :3].T + matrix[:3, 3]
    return world.min(axis=0), world.max(axis=0)


def read_splats(item: bpy.types.Object) -> SplatArrays:
    """The object's splats in the WORLD, with its transform applied to centres, shapes and harmonics.

    Any transform of the object is right for the shapes, uneven scale and shear too (the covariance is transformed and
    taken apart again); harmonics turn with the rotation in it. Raises ValueError for an object without splats.
    """
    if not is_splats(item):
        raise ValueError(f"{item.name!r} holds no splats: expected the attributes position, scale, rotation and {BASE}")
    return transformed(read_local(item), np.array(item.matrix_world, dtype=np.float64))


def read_local(item: bpy.types.Object) -> SplatArrays:
    """The stored splats, in the object's own space, value for value."""
    attributes = item.data.attributes
    base = _read(attributes[BASE], 4)
    coefficients = [base[:, :3]]
    while (name := f"{SH_PREFIX}{len(coefficients) - 1}") in attributes:
        coefficients.append(_read(attributes[name], 3))
    whole = max(bases for bases in (1, 4, 9, 16) if bases <= len(coefficients))
    return SplatArrays(
        means=_read(attributes["position"], 3),
        quats=_read(attributes["rotation"], 4),
        scales=_read(attributes["scale"], 3),
        opacities=np.ascontiguousarray(base[:, 3]),
        sh=np.stack(coefficients[:whole], axis=1),
    )


def _read(attribute: Any, width: int) -> np.ndarray:
    values = np.empty(len(attribute.data) * width, dtype=np.float32)
    attribute.data.foreach_get(VALUE_PROPERTY[attribute.data_type], values)
    return values.reshape(-1, width)
