"""A result in the scene: where its parts are, which one shows, what it remembers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import mesh_object, result, splat_object  # noqa: E402
from blender_addon.ply import SplatArrays  # noqa: E402
from blender_addon.protocol import TexturedMesh  # noqa: E402

RECIPE = {"source": "ORBIT", "seed": 7, "model": "fit", "settings": {"views": 24}, "psnr": 31.5, "times": [1.5, 2.0]}


@pytest.fixture
def scene(factory: Any) -> Iterator[Any]:
    """A context in which objects have the result's property, as the extension registers it."""
    bpy.utils.register_class(result.GaussmithResult)
    bpy.types.Object.gaussmith = bpy.props.PointerProperty(type=result.GaussmithResult)
    yield factory
    del bpy.types.Object.gaussmith
    bpy.utils.unregister_class(result.GaussmithResult)


def splats() -> Any:
    means = np.array([(1, 2, 3), (3, 2, 5)], dtype=np.float32)
    identity = np.tile(np.array([1, 0, 0, 0], dtype=np.float32), (2, 1))
    arrays = SplatArrays(means, identity, np.full((2, 3), 0.1, np.float32), np.ones(2, np.float32), np.ones((2, 1, 3)))
    return splat_object.create("Splats", arrays)


def mesh() -> Any:
    vertices = np.array([(1, 1, 3), (2, 1, 3), (1, 4, 4)], dtype=np.float32)
    faces, uvs = np.array([[0, 1, 2]], dtype=np.int32), np.zeros((3, 2), dtype=np.float32)
    return mesh_object.create("Mesh", TexturedMesh("job", vertices, faces, uvs, np.zeros((4, 4, 4), dtype=np.uint8)))


def test_parts_keep_their_places_under_the_empty(scene: Any) -> None:
    seen, textured = splats(), mesh()
    empty = result.assemble(scene, "Thing", seen, textured, RECIPE)
    scene.view_layer.update()
    np.testing.assert_allclose(empty.location, (2, 2.5, 4), atol=1e-6)  # the middle of (1, 1, 3) to (3, 4, 5)
    assert seen.parent == empty and textured.parent == empty
    np.testing.assert_allclose(seen.matrix_world, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(splat_object.read_splats(seen).means, [(1, 2, 3), (3, 2, 5)], atol=1e-6)
    np.testing.assert_allclose(textured.matrix_world @ textured.data.vertices[2].co, (1, 4, 4), atol=1e-6)


def test_an_origin_may_be_given(scene: Any) -> None:
    seen = splats()
    empty = result.assemble(scene, "Thing", seen, None, RECIPE, origin=(0, 0, 1))
    scene.view_layer.update()
    assert tuple(empty.location) == (0, 0, 1)
    np.testing.assert_allclose(splat_object.read_splats(seen).means, [(1, 2, 3), (3, 2, 5)], atol=1e-6)


def test_everything_is_in_one_collection_of_the_scene(scene: Any) -> None:
    empty = result.assemble(scene, "Thing", splats(), mesh(), RECIPE)
    collection = bpy.data.collections["Thing"]
    assert collection.name in scene.scene.collection.children
    assert set(collection.objects) == {empty, *empty.children}
    assert [item.users_collection for item in collection.objects] == [(collection,)] * 3


def test_the_switch_hides_one_face_and_shows_the_other(scene: Any) -> None:
    seen, textured = splats(), mesh()
    empty = result.assemble(scene, "Thing", seen, textured, RECIPE)

    def hidden() -> list[bool]:
        return [seen.hide_viewport, seen.hide_render, textured.hide_viewport, textured.hide_render]

    assert empty.gaussmith.display == "SPLATS"
    assert hidden() == [False, False, True, True]
    empty.gaussmith.display = "MESH"
    assert hidden() == [True, True, False, False]
    result.show(empty, "SPLATS")
    assert hidden() == [False, False, True, True]


def test_a_result_of_one_part_always_shows_it(scene: Any) -> None:
    textured = mesh()
    empty = result.assemble(scene, "Thing", None, textured, RECIPE)
    assert empty.gaussmith.display == "MESH"
    result.show(empty, "SPLATS")
    assert not textured.hide_viewport and not textured.hide_render


def test_it_works_without_the_registered_property(factory: Any) -> None:
    seen, textured = splats(), mesh()
    empty = result.assemble(factory, "Thing", seen, textured, RECIPE)
    assert textured.hide_render and not seen.hide_render
    result.show(empty, "MESH")
    assert seen.hide_render and not textured.hide_render


def test_the_recipe_comes_back(scene: Any, tmp_path: Any) -> None:
    result.assemble(scene, "Thing", splats(), None, RECIPE)
    path = str(tmp_path / "saved.blend")
    bpy.ops.wm.save_as_mainfile(filepath=path)
    bpy.ops.wm.open_mainfile(filepath=path)
    empty = bpy.data.objects["Thing"]
    assert result.recipe_of(empty) == RECIPE
    assert result.is_result(empty) and not result.is_result(bpy.data.objects["Cube"])
    empty[result.RECIPE] = "not json"
    assert result.recipe_of(empty) == {}


def test_parts_and_owner_find_each_other(scene: Any) -> None:
    seen, textured = splats(), mesh()
    empty = result.assemble(scene, "Thing", seen, textured, RECIPE)
    assert result.part(empty, "SPLATS") == seen and result.part(empty, "MESH") == textured
    assert result.owner(seen) == empty and result.owner(empty) == empty
    assert result.owner(bpy.data.objects["Cube"]) is None and result.owner(None) is None


def test_no_part_is_refused(scene: Any) -> None:
    with pytest.raises(ValueError, match="splats, a mesh or both"):
        result.assemble(scene, "Thing", None, None, RECIPE)
    assert "Thing" not in bpy.data.collections
