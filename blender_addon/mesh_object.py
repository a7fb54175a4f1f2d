"""The textured mesh as a Blender object: smooth faces, a UV map, the picture packed into the file, a matte material.

The picture holds the light of the capture. The material is a Principled one of roughness 1 without specular, so lamps
of the scene shade it like matte paper; the captured colours as they are appear under a white environment of strength 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bpy
import numpy as np

from .protocol import TexturedMesh

UV_MAP = "UVMap"


class MeshBuilder:
    """Makes the object a slice at a time: call `step` until it returns True. It is linked to no collection."""

    def __init__(self, name: str, textured: TexturedMesh, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        _check(textured)
        self._name = name
        self._textured = textured
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
            raise RuntimeError("the mesh object is not made yet: call step() until it returns True")
        return self._object

    def _slices(self) -> Iterator[None]:
        mesh = bpy.data.meshes.new(self._name)
        yield from _geometry(mesh, self._textured, self._origin)
        yield from _uv_map(mesh, self._textured)
        image = bpy.data.images.new(self._name, *_size(self._textured.texture), alpha=True)
        yield from _picture(image, self._textured.texture)
        mesh.materials.append(_material(self._name, image))
        item = bpy.data.objects.new(self._name, mesh)
        item.location = self._origin.tolist()
        self._object = item


def create(name: str, textured: TexturedMesh) -> bpy.types.Object:
    """The whole object at once; see MeshBuilder."""
    builder = MeshBuilder(name, textured)
    while not builder.step():
        pass
    return builder.object


def _check(textured: TexturedMesh) -> None:
    count = len(textured.vertices)
    if textured.faces.size and (textured.faces.min() < 0 or textured.faces.max() >= count):
        raise ValueError(f"textured mesh: faces must index its {count} vertices")
    if textured.uvs.shape != (count, 2):
        raise ValueError(f"textured mesh: uvs must have shape {(count, 2)}, found {textured.uvs.shape}")


def _size(texture: np.ndarray) -> tuple[int, int]:
    return texture.shape[1], texture.shape[0]


def _geometry(mesh: bpy.types.Mesh, textured: TexturedMesh, origin: np.ndarray) -> Iterator[None]:
    faces = np.ascontiguousarray(textured.faces, dtype=np.int32)
    mesh.vertices.add(len(textured.vertices))
    mesh.loops.add(faces.size)
    mesh.polygons.add(len(faces))
    yield
    mesh.attributes["position"].data.foreach_set("vector", (textured.vertices - origin).astype(np.float32).reshape(-1))
    mesh.loops.foreach_set("vertex_index", faces.reshape(-1))
    mesh.polygons.foreach_set("loop_start", np.arange(0, faces.size, 3, dtype=np.int32))
    yield
    mesh.update(calc_edges=True)
    mesh.polygons.foreach_set("use_smooth", np.ones(len(faces), dtype=bool))
    yield


def _uv_map(mesh: bpy.types.Mesh, textured: TexturedMesh) -> Iterator[None]:
    corners = np.ascontiguousarray(textured.uvs[textured.faces.reshape(-1)], dtype=np.float32)
    layer = mesh.uv_layers.new(name=UV_MAP, do_init=False)
    yield
    layer.uv.foreach_set("vector", corners.reshape(-1))
    yield


def _picture(image: bpy.types.Image, texture: np.ndarray) -> Iterator[None]:
    """uint8 [H,W,4] into the image, row 0 at the top, packed into the .blend as a PNG."""
    image.colorspace_settings.name = "sRGB"
    values = texture[::-1].astype(np.float32)  # Blender's first row is the bottom one
    yield
    values /= 255
    yield
    image.pixels.foreach_set(values.reshape(-1))
    yield
    image.pack()


def _material(name: str, image: bpy.types.Image) -> bpy.types.Material:
    material = bpy.data.materials.new(name)
    if material.node_tree is None:  # before 5.0 a new material has none
        material.use_nodes = True
    tree: Any = material.node_tree
    surface = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
    surface.inputs["Roughness"].default_value = 1.0
    surface.inputs["Specular IOR Level"].default_value = 0.0
    picture = tree.nodes.new("ShaderNodeTexImage")
    picture.image = image
    picture.location = (surface.location.x - 320, surface.location.y)
    tree.links.new(picture.outputs["Color"], surface.inputs["Base Color"])
    material.diffuse_color = _mean_colour(image)
    return material


def _mean_colour(image: bpy.types.Image) -> tuple[float, float, float, float]:
    """What the solid viewport shows: the picture's mean over its covered texels, linear."""
    step = max(1, image.size[0] * image.size[1] // 65536)
    values = np.empty(len(image.pixels), dtype=np.float32)
    image.pixels.foreach_get(values)
    sample = values.reshape(-1, 4)[::step]
    covered = sample[sample[:, 3] > 0.5, :3]
    mean = covered.mean(axis=0) if len(covered) else np.full(3, 0.8)
    return (*(float(value) ** 2.2 for value in mean), 1.0)
