"""The textured mesh as a Blender object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import mesh_object  # noqa: E402
from blender_addon.protocol import TexturedMesh  # noqa: E402


def textured(height: int = 8, width: int = 12) -> TexturedMesh:
    vertices = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], dtype=np.float32)
    faces = np.array([(0, 1, 2), (0, 2, 3)], dtype=np.int32)
    uvs = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float32)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return TexturedMesh("job", vertices, faces, uvs, picture)


def test_geometry_and_uv_map_are_as_given(factory: Any) -> None:
    given = textured()
    mesh = mesh_object.create("Thing", given).data
    np.testing.assert_array_equal([tuple(vertex.co) for vertex in mesh.vertices], given.vertices)
    np.testing.assert_array_equal([tuple(face.vertices) for face in mesh.polygons], given.faces)
    assert all(face.use_smooth for face in mesh.polygons)
    assert not mesh.validate()
    assert len(mesh.edges) == 5
    assert [layer.name for layer in mesh.uv_layers] == [mesh_object.UV_MAP]
    corners = [tuple(corner.vector) for corner in mesh.uv_layers[0].uv]
    np.testing.assert_array_equal(corners, given.uvs[given.faces.reshape(-1)])


def test_the_picture_is_packed_with_its_first_row_at_the_top(factory: Any, tmp_path: Any) -> None:
    given = textured()
    item = mesh_object.create("Thing", given)
    factory.scene.collection.objects.link(item)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "saved.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "saved.blend"))
    image = bpy.data.images["Thing"]
    assert image.packed_file is not None
    assert tuple(image.size) == (12, 8)
    assert image.colorspace_settings.name == "sRGB"
    values = np.empty(8 * 12 * 4, dtype=np.float32)
    image.pixels.foreach_get(values)
    np.testing.assert_allclose(values.reshape(8, 12, 4)[::-1] * 255, given.texture, atol=0.01)


def test_the_material_shows_the_captured_light_and_can_be_lit_again(factory: Any) -> None:
    item = mesh_object.create("Thing", textured())
    tree = item.data.materials[0].node_tree
    output = next(node for node in tree.nodes if node.type == "OUTPUT_MATERIAL")
    relight, captured, lit = (link.links[0].from_node for link in output.inputs["Surface"].links[0].from_node.inputs)
    assert relight.outputs[0].default_value == 0
    assert (captured.type, lit.type) == ("EMISSION", "BSDF_PRINCIPLED")
    assert (lit.inputs["Roughness"].default_value, lit.inputs["Specular IOR Level"].default_value) == (1, 0)
    for shader, socket in ((captured, "Color"), (lit, "Base Color")):
        assert shader.inputs[socket].links[0].from_node.image.name == "Thing"


def test_a_large_mesh_arrives_in_slices(factory: Any) -> None:
    builder = mesh_object.MeshBuilder("Thing", textured(512, 512))
    with pytest.raises(RuntimeError, match="not made yet"):
        _ = builder.object
    steps = 1
    while not builder.step():
        steps += 1
    assert steps > 10
    assert builder.object.data.materials[0] is not None


def test_an_origin_moves_the_object_not_its_points(factory: Any) -> None:
    builder = mesh_object.MeshBuilder("Thing", textured(), origin=(0.5, 0.5, 1))
    while not builder.step():
        pass
    item = builder.object
    assert tuple(item.location) == (0.5, 0.5, 1)
    np.testing.assert_allclose(item.matrix_basis @ item.data.vertices[2].co, (1, 1, 0), atol=1e-6)


def test_faces_beyond_the_vertices_are_refused() -> None:
    given = textured()
    faces = np.array([(0, 1, 4)], dtype=np.int32)
    with pytest.raises(ValueError, match="must index its 4 vertices"):
        mesh_object.MeshBuilder("Thing", TexturedMesh("job", given.vertices, faces, given.uvs, given.texture))
