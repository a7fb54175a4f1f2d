"""The textured mesh as a Blender object: smooth faces, a UV map, the picture packed into the file, a material.

The picture holds the light of the capture. So the material first shows it as it is, by emission, like the splats; its
node *Relight* goes from that (0) to matte paper that the scene's lamps shade (1), which lights it a second time.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import bpy
import numpy as np

from .node_building import NodeGraph
from .protocol import TexturedMesh

UV_MAP = "UVMap"
RELIGHT = "Relight"  # a Value node of the material: 0 as captured, 1 shaded by the scene
SLICE_TEXELS = 32768  # encoded in a few milliseconds


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
        image = bpy.data.images.new(self._name, 1, 1, alpha=True)
        yield from _picture(image, self._textured.texture)
        mesh.materials.append(_material(self._name, image, _mean_colour(self._textured.texture)))
        yield
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
    """uint8 [H,W,4], row 0 at the top, into the image as a packed PNG.

    The PNG is written here, some rows a slice: Blender needs a quarter of a second to pack a picture of 2048 pixels.
    """
    encoded = bytearray(b"\x89PNG\r\n\x1a\n")
    encoded += _chunk(b"IHDR", struct.pack(">IIBBBBB", *_size(texture), 8, 6, 0, 0, 0))  # 8 bits, RGBA
    deflate = zlib.compressobj(level=1)
    for start in range(0, len(texture), rows := max(1, SLICE_TEXELS // texture.shape[1])):
        part = texture[start : start + rows]
        filtered = np.zeros((len(part), part.shape[1] * 4 + 1), dtype=np.uint8)  # a leading 0: the row as it is
        filtered[:, 1:] = part.reshape(len(part), -1)
        data = deflate.compress(filtered.tobytes())
        if data:
            encoded += _chunk(b"IDAT", data)
        yield
    encoded += _chunk(b"IDAT", deflate.flush()) + _chunk(b"IEND", b"")
    yield
    image.source = "FILE"
    image.filepath_raw = f"//{image.name}.png"  # where unpacking would put it
    image.pack(data=bytes(encoded), data_len=len(encoded))
    image.colorspace_settings.name = "sRGB"
    yield


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _material(name: str, image: bpy.types.Image, solid: tuple[float, float, float, float]) -> bpy.types.Material:
    material = bpy.data.materials.new(name)
    if material.node_tree is None:  # before 5.0 a new material has none
        material.use_nodes = True
    tree: Any = material.node_tree
    tree.nodes.clear()
    if hasattr(material, "cycles"):  # Cycles may be switched off; a surface that only looks lit is no lamp
        material.cycles.emission_sampling = "NONE"
    graph = NodeGraph(tree)
    picture = graph.add("ShaderNodeTexImage", image=image).outputs["Color"]
    captured = graph.add("ShaderNodeEmission", {"Color": picture}).outputs["Emission"]
    matte = graph.add(
        "ShaderNodeBsdfPrincipled", {"Base Color": picture, "Roughness": 1.0, "Specular IOR Level": 0.0}
    ).outputs["BSDF"]
    relight = graph.add("ShaderNodeValue", name=RELIGHT, label=RELIGHT).outputs["Value"]
    relight.default_value = 0.0
    mix = graph.add("ShaderNodeMixShader")
    for target, source in zip(mix.inputs, (relight, captured, matte), strict=True):
        graph.feed(target, source)
    graph.add("ShaderNodeOutputMaterial", {"Surface": mix.outputs["Shader"]})
    graph.arrange()
    material.diffuse_color = solid
    return material


def _mean_colour(texture: np.ndarray) -> tuple[float, float, float, float]:
    """What the solid viewport shows: the picture's mean over its covered texels, linear."""
    sample = texture.reshape(-1, 4)[:: max(1, texture.shape[0] * texture.shape[1] // 65536)].astype(np.float32) / 255
    covered = sample[sample[:, 3] > 0.5, :3]
    mean = covered.mean(axis=0) if len(covered) else np.full(3, 0.8)
    return (*(float(value) ** 2.2 for value in mean), 1.0)  # near enough to the sRGB curve for a mean
