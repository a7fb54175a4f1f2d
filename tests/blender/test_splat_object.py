"""Splats as Blender objects: what is stored, what comes back, what stands in for a splat when Blender evaluates it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import splat_nodes, splat_object  # noqa: E402
from blender_addon.ply import SplatArrays  # noqa: E402
from blender_addon.splat_rotation import harmonics, matrices, transformed  # noqa: E402

SQUARE_REACH = math.sqrt(2 * math.log(0.9 / splat_nodes.OPACITY_CUT)) * math.sqrt(2)  # of a splat with opacity 0.9


def random_splats(count: int, bases: int = 1) -> SplatArrays:
    rng = np.random.default_rng(3)
    quats = rng.normal(size=(count, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    values = (
        rng.normal(size=(count, 3)),
        quats,
        np.exp(rng.normal(-3, 1, size=(count, 3))),
        rng.uniform(0.1, 1, size=count),
        rng.normal(size=(count, bases, 3)),
    )
    return SplatArrays(*(value.astype(np.float32) for value in values))


def one_splat(
    scales: tuple[float, float, float], quat: tuple[float, float, float, float] = (1, 0, 0, 0)
) -> SplatArrays:
    arrays = ([(0.5, -1, 2)], [quat], [scales], [0.9], np.full((1, 1, 3), 0.4))
    return SplatArrays(*(np.array(value, dtype=np.float32) for value in arrays))


def linked(context: Any, splats: SplatArrays) -> Any:
    item = splat_object.create("Splats", splats)
    context.scene.collection.objects.link(item)
    return item


def evaluated_vertices(context: Any, item: Any) -> np.ndarray:
    """[F,C,3] corners of the faces that stand in for the splats, in the object's space."""
    evaluated = item.evaluated_get(context.evaluated_depsgraph_get())
    geometry = evaluated.evaluated_geometry() if hasattr(evaluated, "evaluated_geometry") else None  # owns its mesh
    mesh = evaluated.data if geometry is None else geometry.mesh
    points = np.array([vertex.co for vertex in mesh.vertices])
    return np.array([[points[index] for index in face.vertices] for face in mesh.polygons])


@pytest.mark.parametrize("bases", [1, 4, 9, 16])
def test_what_is_stored_comes_back_exactly(factory: Any, bases: int) -> None:
    splats = random_splats(50, bases)
    item = linked(factory, splats)
    assert splat_object.is_splats(item)
    for stored, given in zip(splat_object.read_splats(item), splats, strict=True):
        np.testing.assert_array_equal(stored, given)


def test_attributes_have_the_names_and_types_of_native_splats(factory: Any) -> None:
    item = linked(factory, random_splats(5, 4))
    types = {attribute.name: attribute.data_type for attribute in item.data.attributes}
    expected = {"position": "FLOAT_VECTOR", "scale": "FLOAT_VECTOR", "rotation": "QUATERNION"}
    expected |= {f"radiance:sh_{index}": "FLOAT_VECTOR" for index in range(3)}
    expected["radiance:base"] = "FLOAT4" if bpy.app.version >= (5, 2) else "FLOAT_COLOR"
    assert expected.items() <= types.items()
    assert "radiance:sh_3" not in types
    assert item.type == ("MESH" if bpy.app.version < (4, 5) else "POINTCLOUD")


def test_making_splats_leaves_nothing_else_behind(factory: Any) -> None:
    def counts() -> list[int]:
        return [len(bpy.data.scenes), len(bpy.data.objects), len(bpy.data.meshes) + len(bpy.data.pointclouds)]

    before = counts()
    linked(factory, random_splats(5))
    assert counts() == [before[0], before[1] + 1, before[2] + 1]
    groups, materials = len(bpy.data.node_groups), len(bpy.data.materials)
    linked(factory, random_splats(5))  # a second object shares what shows it
    assert (len(bpy.data.node_groups), len(bpy.data.materials)) == (groups, materials)


def test_a_million_splats_arrive_in_slices(factory: Any, record_property: Any) -> None:
    import time

    count = 1_000_000
    splats = SplatArrays(
        *(np.ones(shape, dtype=np.float32) for shape in ((count, 3), (count, 4), (count, 3), (count,), (count, 4, 3)))
    )
    builder = splat_object.SplatBuilder(splats, "Million")
    with pytest.raises(RuntimeError, match="not made yet"):
        _ = builder.object
    took, done = [], False
    while not done:
        start = time.perf_counter()
        done = builder.step()
        took.append(time.perf_counter() - start)
    record_property("steps", len(took))
    record_property("longest_step_ms", round(max(took) * 1000, 1))
    assert len(took) > 20
    assert max(took) < 0.6 * sum(took)  # no step does the bulk of the work
    assert len(splat_object.read_local(builder.object).means) == count
    share = splat_nodes.get_input(splat_nodes.modifier_of(builder.object), splat_nodes.DENSITY)
    assert share == pytest.approx(splat_nodes.VIEWPORT_SPLATS / count)
    assert builder.step()  # once done, done


def test_no_splats_make_an_empty_object(factory: Any) -> None:
    splats = SplatArrays(*(value[:0] for value in random_splats(2)))
    item = linked(factory, splats)
    assert len(splat_object.read_splats(item).means) == 0
    splat_object.world_bounds(item)


def test_wrong_shapes_are_named() -> None:
    good = random_splats(3)
    with pytest.raises(ValueError, match=r"scales must have shape \(3, 3\), found \(3, 2\)"):
        splat_object.SplatBuilder(good._replace(scales=good.scales[:, :2]), "Bad")
    with pytest.raises(ValueError, match="1, 4, 9 or 16 coefficients, found 2"):
        splat_object.SplatBuilder(good._replace(sh=np.zeros((3, 2, 3), dtype=np.float32)), "Bad")


def test_an_object_without_splats_is_refused(factory: Any) -> None:
    with pytest.raises(ValueError, match="'Cube' holds no splats"):
        splat_object.read_splats(bpy.data.objects["Cube"])
    assert not splat_object.is_splats(bpy.data.objects["Camera"])
    assert not splat_object.is_splats(None)


def test_world_bounds_follow_the_objects_transform(factory: Any) -> None:
    splats = random_splats(20)
    item = linked(factory, splats)
    item.location, item.scale = (1, 2, 3), (2, 2, 2)
    low, high = splat_object.world_bounds(item)
    np.testing.assert_allclose(low, splats.means.min(axis=0) * 2 + (1, 2, 3), rtol=1e-5)
    np.testing.assert_allclose(high, splats.means.max(axis=0) * 2 + (1, 2, 3), rtol=1e-5)


# ---- reading in the world


def test_the_objects_turn_goes_into_rotations(factory: Any) -> None:
    item = linked(factory, one_splat((0.1, 0.2, 0.3)))
    item.rotation_euler, item.scale = (0, 0, math.pi / 2), (2, 2, 2)
    factory.view_layer.update()
    splats = splat_object.read_splats(item)
    np.testing.assert_allclose(splats.means[0], (2, 1, 4), atol=1e-5)  # (0.5, -1, 2) doubled, x to y, y to -x
    np.testing.assert_allclose(splats.scales[0], (0.2, 0.4, 0.6), rtol=1e-5)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(splats.quats[0] * np.sign(splats.quats[0, 0]), (half, 0, 0, half), atol=1e-5)


@pytest.mark.parametrize("kind", ["uneven", "shear", "mirror"])
def test_covariances_follow_any_linear_map(kind: str) -> None:
    linear = {
        "uneven": np.diag([1.0, 2.0, 0.5]),
        "shear": np.array([[1, 0.7, 0], [0, 1, 0], [0.2, 0, 1]]),
        "mirror": np.diag([-1.0, 1.0, 1.0]),
    }[kind]
    splats, matrix = random_splats(10), np.eye(4)
    matrix[:3, :3] = linear
    after = transformed(splats, matrix)
    expected = linear @ covariances(splats) @ linear.T
    np.testing.assert_allclose(covariances(after), expected, rtol=1e-3, atol=1e-3 * expected.max())


def covariances(splats: SplatArrays) -> np.ndarray:
    axes = matrices(splats.quats.astype(np.float64)) * splats.scales[:, None, :]
    return axes @ np.swapaxes(axes, 1, 2)


def test_a_turned_splat_shows_the_same_colours_from_the_turned_side() -> None:
    turn = matrices(np.array([[0.5, 0.1, -0.7, 0.5]]) / np.linalg.norm([0.5, 0.1, -0.7, 0.5]))[0]
    splats, matrix = random_splats(4, 16), np.eye(4)
    matrix[:3, :3] = turn
    directions = np.random.default_rng(5).normal(size=(30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before = np.einsum("dk,nkc->ndc", harmonics(directions, 3), splats.sh)
    after = np.einsum("dk,nkc->ndc", harmonics(directions @ turn.T, 3), transformed(splats, matrix).sh)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.abs(transformed(splats, matrix).sh - splats.sh).max() > 0.1


# ---- what stands in for a splat


def test_squares_stand_across_the_splats_axes(factory: Any) -> None:
    half = math.sqrt(0.5)
    item = linked(factory, one_splat((0.1, 0.2, 0.3), (half, 0, 0, half)))  # a quarter turn about Z: x along Y
    corners = evaluated_vertices(factory, item) - np.array((0.5, -1, 2))
    reach = np.array((0.2, 0.1, 0.3)) * SQUARE_REACH
    assert corners.shape == (3, 4, 3)
    flat_axes = [int(np.argmin(np.abs(face).max(axis=0))) for face in corners]
    assert sorted(flat_axes) == [0, 1, 2]
    for face, axis in zip(corners, flat_axes, strict=True):
        expected = np.where(np.arange(3) == axis, 0, reach)
        np.testing.assert_allclose(np.abs(face), np.broadcast_to(expected, (4, 3)), atol=1e-5)
        assert len({tuple(np.sign(np.delete(corner, axis))) for corner in face}) == 4


def test_a_flat_splat_needs_one_square(factory: Any) -> None:
    item = linked(factory, one_splat((0.3, 0.01, 0.2)))
    corners = evaluated_vertices(factory, item) - np.array((0.5, -1, 2))
    assert corners.shape == (1, 4, 3)
    np.testing.assert_allclose(np.abs(corners[0, :, 1]), 0, atol=1e-6)


def test_the_display_input_chooses_the_stand_in(factory: Any) -> None:
    item = linked(factory, one_splat((0.1, 0.2, 0.3)))
    modifier = splat_nodes.modifier_of(item)
    assert splat_nodes.get_input(modifier, splat_nodes.DISPLAY) == "Splats"
    splat_nodes.set_input(modifier, splat_nodes.DISPLAY, "Ellipsoids")
    assert splat_nodes.get_input(modifier, splat_nodes.DISPLAY) == "Ellipsoids"
    factory.view_layer.update()
    points = evaluated_vertices(factory, item).reshape(-1, 3) - np.array((0.5, -1, 2))
    on_surface = np.linalg.norm(points / (np.array((0.1, 0.2, 0.3)) * 1.5), axis=1)
    np.testing.assert_allclose(on_surface, 1, atol=1e-4)


def test_the_viewport_can_show_a_share(factory: Any) -> None:
    item = linked(factory, random_splats(2000))
    modifier = splat_nodes.modifier_of(item)
    whole = len(evaluated_vertices(factory, item))
    splat_nodes.set_input(modifier, splat_nodes.DENSITY, 0.25)
    factory.view_layer.update()
    assert 0.2 < len(evaluated_vertices(factory, item)) / whole < 0.3


def test_choosing_all_round_splats_keeps_the_inputs(factory: Any) -> None:
    item = linked(factory, random_splats(10))
    modifier = splat_nodes.modifier_of(item)
    splat_nodes.set_input(modifier, splat_nodes.SIZE, 0.5)
    assert splat_nodes.faces_camera(item)
    splat_nodes.set_faces_camera(item, False)
    assert not splat_nodes.faces_camera(item)
    assert splat_nodes.get_input(modifier, splat_nodes.SIZE) == 0.5
    assert splat_nodes.get_input(modifier, splat_nodes.MATERIAL) is item.data.materials[0]
