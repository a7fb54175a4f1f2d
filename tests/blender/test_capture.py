"""Captures of real scenes with Cycles: where points land, what is seen, what is said when nothing is, what is left
behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpy
import numpy as np
import pytest
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Euler, Matrix, Vector

from blender_addon import capture as capture_module
from blender_addon import exr, render_jobs, temporary
from blender_addon.capture import CapturedViews, CaptureError, CaptureRun, CaptureSettings, capture

SMALL = CaptureSettings(count=4, resolution=48, quality="preview")
CAMERAS = CaptureSettings(source="cameras", resolution=48, quality="preview", selected_only=False)


def settings(base: CaptureSettings = SMALL, **changes: Any) -> CaptureSettings:
    return CaptureSettings(**{**base.__dict__, **changes})


def project(views: CapturedViews, view: int, point: Any) -> np.ndarray:
    """[3]: pixel column, pixel row, depth."""
    local = (np.linalg.inv(views.c2w[view].astype(np.float64)) @ np.append(np.array(point, dtype=np.float64), 1))[:3]
    scale = 1 if views.orthographic[view] else local[2]
    return np.append((views.Ks[view] @ np.append(local[:2] / scale, 1))[:2], local[2])


def emissive(name: str, colour: tuple[float, float, float]) -> bpy.types.Material:
    material = bpy.data.materials.new(name)
    if not material.node_tree:
        material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    emission = tree.nodes.new("ShaderNodeEmission")
    emission.inputs["Color"].default_value = (*colour, 1)
    tree.links.new(emission.outputs["Emission"], tree.nodes.new("ShaderNodeOutputMaterial").inputs["Surface"])
    return material


def render_disabled(item: bpy.types.Object) -> None:
    item.hide_render = True


# ---- where points land


def test_markers_of_the_odd_camera(open_scene: Any, expected: dict[str, Any]) -> None:
    """Five glowing balls on black, 320x200: by the matrices to 0.01 pixel, and as found in the picture to half a
    pixel."""
    context = open_scene("06")
    views = capture(context, settings(CAMERAS, resolution=320))
    assert (views.width, views.height) == (320, 200)
    markers = expected["06_odd_camera"]["marker_projections"]
    found = [project(views, 0, marker["world"]) for marker in markers]
    wanted = np.array([[*marker["pixel_xy"], marker["depth"]] for marker in markers])
    np.testing.assert_allclose(found, wanted, atol=0.01)
    rows, columns = np.mgrid[:200, :320] + 0.5
    alpha = views.images[0, ..., 3] / 255.0
    for column, row, depth in wanted:
        near = alpha * (np.hypot(columns - column, rows - row) < 12)
        assert abs((near * columns).sum() / near.sum() - column) < 0.5
        assert abs((near * rows).sum() / near.sum() - row) < 0.5
        assert views.depth is not None
        assert views.depth[0, int(row), int(column)] == pytest.approx(depth - 0.05, abs=0.01)  # a ball of radius 0.05


def test_constraints_decide_where_cameras_look(open_scene: Any, expected: dict[str, Any]) -> None:
    """Cam_16 to Cam_31 get their rotation from a Track To constraint; the scene's own rotation of them is wrong."""
    context = open_scene("04")
    for item in context.view_layer.objects:
        item.select_set(item.name in ("Cam_03", "Cam_16", "Cam_29"))
    views = capture(context, settings(CAMERAS, cameras="selected", resolution=64))
    assert views.names == ("Cam_03", "Cam_16", "Cam_29")
    listed = {item["name"]: np.array(item["matrix_world"]) for item in expected["04_tabletop_32cams"]["objects"]}
    for c2w, name in zip(views.c2w, views.names, strict=True):
        np.testing.assert_allclose(c2w * [1, -1, -1, 1], listed[name], atol=2e-6)
    assert all(0.05 < (image[..., 3] > 127).mean() < 0.95 for image in views.images)


@pytest.mark.parametrize("kind", ["PERSP", "ORTHO"])
def test_depth_is_planar_and_exact(factory: Any, kind: str) -> None:
    """A tilted cube seen from the side of a wide lens, against rays cast through the pixels' centres."""
    factory.object.rotation_euler = 0.4, 0.3, 0.2
    camera = factory.scene.camera
    camera.data.type, camera.data.lens, camera.data.ortho_scale, camera.data.shift_x = kind, 24, 6, 0.15
    views = capture(factory, settings(CAMERAS, resolution=128))
    assert views.depth is not None and (views.depth > 0).sum() > 100
    depsgraph = factory.evaluated_depsgraph_get()
    K, c2w = views.Ks[0], views.c2w[0].astype(np.float64)
    for row, column in list(zip(*np.nonzero(views.depth[0]), strict=True))[::7]:
        x, y = (column + 0.5 - K[0, 2]) / K[0, 0], (row + 0.5 - K[1, 2]) / K[1, 1]
        start, ray = ([0, 0, 0], [x, y, 1]) if kind == "PERSP" else ([x, y, 0], [0, 0, 1])
        origin = c2w[:3, :3] @ np.array(start) + c2w[:3, 3]
        hit, place, *_ = factory.scene.ray_cast(depsgraph, Vector(origin), Vector(c2w[:3, :3] @ np.array(ray)))
        assert hit
        planar = float((np.array(place) - c2w[:3, 3]) @ c2w[:3, 2])
        assert views.depth[0, row, column] == pytest.approx(planar, rel=2e-4)


def test_a_camera_with_mirrored_and_scaled_parents(factory: Any) -> None:
    """The picture and the matrices agree, whatever the parents do: a small cube is found where it projects to."""
    parent = bpy.data.objects.new("Parent", None)
    factory.collection.objects.link(parent)
    parent.scale = -2, 3, 1.5
    parent.rotation_euler = 0.2, 0.4, 1.0
    camera = factory.scene.camera
    aim = Matrix.LocRotScale(Vector((3, -7, 4)), Vector((2.6, -7, 3.6)).to_track_quat("Z", "Y"), None)
    camera.parent, camera.matrix_parent_inverse = parent, Matrix()
    camera.matrix_world = aim
    factory.object.scale, factory.object.location = (0.2, 0.2, 0.2), (0.4, 0, 0.4)
    factory.view_layer.update()
    views = capture(factory, settings(CAMERAS, resolution=128))
    assert np.linalg.det(views.c2w[0, :3, :3]) == pytest.approx(1, abs=1e-5)
    rows, columns = np.nonzero(views.images[0, ..., 3] > 127)
    column, row, _ = project(views, 0, (0.4, 0, 0.4))
    assert np.hypot(columns.mean() + 0.5 - column, rows.mean() + 0.5 - row) < 1


def test_an_animated_camera_over_a_frame_range(factory: Any) -> None:
    scene, camera = factory.scene, factory.scene.camera
    for frame, x, lens in ((1, 6.0, 35.0), (11, 8.0, 70.0)):
        camera.location.x, camera.data.lens = x, lens
        camera.keyframe_insert("location", frame=frame)
        camera.data.keyframe_insert("lens", frame=frame)
    scene.frame_set(4)
    before = tuple(camera.location), camera.data.lens, scene.frame_current
    run = settings(CAMERAS, source="animation", frames=(1, 11, 5), resolution=32)
    views = capture(factory, run)
    assert views.names == ("Camera_0001", "Camera_0006", "Camera_0011")
    assert (tuple(camera.location), camera.data.lens, scene.frame_current) == before
    for view, frame in enumerate((1, 6, 11)):
        scene.frame_set(frame)
        seen = world_to_camera_view(scene, camera, Vector((0.3, 0.2, 0.5)))
        width, height = views.width, views.height
        scene.render.resolution_x, scene.render.resolution_y = width, height
        np.testing.assert_allclose(
            project(views, view, (0.3, 0.2, 0.5))[:2], [seen.x * width, (1 - seen.y) * height], atol=0.02
        )


def test_markers_change_the_camera_of_an_animation(factory: Any) -> None:
    second = bpy.data.objects.new("Second", bpy.data.cameras.new("Second"))
    factory.collection.objects.link(second)
    second.matrix_world = Matrix.Translation((0, 0, 8))
    factory.scene.timeline_markers.new("a", frame=1).camera = factory.scene.camera
    factory.scene.timeline_markers.new("b", frame=3).camera = second
    views = capture(factory, settings(CAMERAS, source="animation", frames=(2, 3, 1), resolution=16))
    assert views.names == ("Camera_0002", "Second_0003")
    np.testing.assert_allclose(views.c2w[1, :3, 3], [0, 0, 8], atol=1e-6)


def test_an_orbit_sees_the_whole_subject(open_scene: Any, expected: dict[str, Any]) -> None:
    """Centimetres, nested rotated and scaled parents: the torus alone, whole in each picture, filling most of it."""
    context = open_scene("03")
    views = capture(context, settings(resolution=64))
    listed = {item["name"]: item for item in expected["03_selected_object_cm_parents"]["objects"]}
    torus = listed["Target_Torus"]
    corners = np.stack(np.meshgrid(*zip(torus["bbox_min"], torus["bbox_max"], strict=True)), axis=-1).reshape(-1, 3)
    for view, image in enumerate(views.images):
        solid = image[..., 3] > 127
        assert not (solid[0].any() or solid[-1].any() or solid[:, 0].any() or solid[:, -1].any())
        rows, columns = np.nonzero(solid)
        assert max(np.ptp(rows), np.ptp(columns)) > 40
        assert views.depth is not None
        depths = views.depth[view][views.depth[view] > 0]
        reach = [project(views, view, corner)[2] for corner in corners]
        assert min(reach) - 0.01 <= depths.min() and depths.max() <= max(reach) + 0.01


# ---- what is seen


def two_cubes(context: Any) -> tuple[bpy.types.Object, bpy.types.Object]:
    """A red cube, selected, and a green one between it and the front."""
    subject = context.object
    subject.data.materials.clear()
    subject.data.materials.append(emissive("Red", (1, 0, 0)))
    mesh = subject.data.copy()
    mesh.materials.clear()
    mesh.materials.append(emissive("Green", (0, 1, 0)))
    other = bpy.data.objects.new("Other", mesh)
    context.collection.objects.link(other)
    other.location = 0, -2.5, 0
    other.scale = 0.4, 0.1, 3.0
    return subject, other


def pixels_of(views: CapturedViews, channel: int, view: int = 0) -> int:
    image = views.images[view].astype(int)
    return int(((image[..., channel] > 200) & (image[..., 3] > 200)).sum())


def test_selected_only_with_the_rest_hidden_or_as_a_hole(factory: Any) -> None:
    two_cubes(factory)
    hidden = capture(factory, settings(others="hidden", elevations=(0.0,)))
    holdout = capture(factory, settings(others="holdout", elevations=(0.0,)))
    everything = capture(factory, settings(selected_only=False, elevations=(0.0,)))
    assert pixels_of(hidden, 1) == pixels_of(holdout, 1) == 0 < pixels_of(everything, 1)
    assert pixels_of(holdout, 0) < 0.9 * pixels_of(hidden, 0)
    assert abs(pixels_of(holdout, 0) - pixels_of(everything, 0)) <= 2


def test_render_disabled_objects_do_not_show(factory: Any) -> None:
    _, other = two_cubes(factory)
    other.hide_render = True
    assert pixels_of(capture(factory, settings(selected_only=False, elevations=(0.0,))), 1) == 0


def test_an_object_hidden_in_the_viewport_only_still_renders(factory: Any) -> None:
    _, other = two_cubes(factory)
    other.hide_set(True)
    assert pixels_of(capture(factory, settings(selected_only=False, elevations=(0.0,))), 1) > 0


def test_children_of_a_selected_empty_and_instances_count(factory: Any) -> None:
    """An empty with a cube below it and an empty that instances a collection: both are captured, framed to fit."""
    cube = factory.object
    parent = bpy.data.objects.new("Parent", None)
    factory.collection.objects.link(parent)
    cube.parent = parent
    library = bpy.data.collections.new("Library")
    library.objects.link(bpy.data.objects.new("Inner", cube.data))
    instancer = bpy.data.objects.new("Instancer", None)
    instancer.instance_type, instancer.instance_collection = "COLLECTION", library
    instancer.location = 6, 0, 0
    factory.collection.objects.link(instancer)
    cube.select_set(False)
    parent.select_set(True)
    alone = capture(factory, settings(elevations=(0.0,), resolution=32))
    instancer.select_set(True)
    both = capture(factory, settings(elevations=(0.0,), resolution=32))
    np.testing.assert_allclose(alone.c2w[:, :3, 3].mean(axis=0), [0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(both.c2w[:, :3, 3].mean(axis=0), [3, 0, 0], atol=0.05)
    columns = np.nonzero((both.images[0, ..., 3] > 127).any(axis=0))[0]
    assert np.diff(columns).max() > 3  # two separate cubes, side by side from the front


def test_colours_are_standard_whatever_the_view_transform(factory: Any) -> None:
    two_cubes(factory)
    factory.object.data.materials[0] = emissive("Known", (0.5, 0.2, 0.05))
    centres = []
    for transform in ("AgX", "Standard"):
        factory.scene.view_settings.view_transform = transform
        factory.scene.view_settings.exposure = 2.0
        centres.append(capture(factory, settings(elevations=(0.0,))).images[0, 24, 24].tolist())
    assert centres[0] == centres[1]
    np.testing.assert_allclose(centres[0], [188, 124, 63, 255], atol=1)  # the sRGB curve by hand


def test_motion_blur_border_and_compositor_leave_no_trace(factory: Any) -> None:
    scene = factory.scene
    plain = capture(factory, settings())
    scene.render.use_motion_blur = True
    scene.render.use_border, scene.render.border_max_x = True, 0.3
    scene.render.use_crop_to_border = True
    scene.camera.data.dof.use_dof = True
    factory.object.location.x = 0
    factory.object.keyframe_insert("location", frame=0)
    factory.object.location.x = 0.0
    np.testing.assert_array_equal(capture(factory, settings()).images, plain.images)


def test_workbench_gives_pictures_and_depth(factory: Any) -> None:
    factory.scene.render.engine = "BLENDER_WORKBENCH"
    try:
        views = capture(factory, settings(elevations=(0.0,), resolution=64))
    except CaptureError as error:
        pytest.skip(f"no graphics here: {error}")
    assert views.engine == "BLENDER_WORKBENCH" and views.depth is not None
    front = views.depth[0, 32, 32]
    assert front == pytest.approx(np.linalg.norm(views.c2w[0, :3, 3]) - 1, rel=1e-3)
    assert (views.images[0, 32, 32, 3], views.images[0, 0, 0, 3]) == (pytest.approx(255, abs=2), 0)


# ---- what is said when nothing can be captured


@pytest.mark.parametrize("source", ["orbit", "cameras", "animation", "viewport"])
def test_an_empty_scene(open_scene: Any, source: Any) -> None:
    with pytest.raises(CaptureError, match="nothing to render"):
        capture(open_scene("05"), settings(source=source))


def test_the_default_cube_and_suzanne_are_captured_as_they_come(open_scene: Any) -> None:
    cube = capture(open_scene("01"), settings(resolution=32))
    assert cube.names == ("orbit_000", "orbit_001", "orbit_002", "orbit_003")
    centre = cube.images[0, 16, 16].astype(int)
    assert centre[0] > 1.5 * centre[1]  # red
    suzanne = capture(open_scene("02"), settings(CAMERAS, resolution=32, selected_only=True))
    assert suzanne.names == tuple(f"Cam_{i}" for i in range(6))
    assert all((image[..., 3] > 127).any() for image in suzanne.images)


def test_no_selection(factory: Any) -> None:
    factory.object.select_set(False)
    with pytest.raises(CaptureError, match="Nothing is selected"):
        capture(factory, SMALL)


def test_only_a_lamp_selected(factory: Any) -> None:
    factory.object.select_set(False)
    bpy.data.objects["Light"].select_set(True)
    with pytest.raises(CaptureError, match="Nothing is selected"):
        capture(factory, SMALL)


@pytest.mark.parametrize("hide", [render_disabled, lambda item: setattr(item.users_collection[0], "hide_render", True)])
def test_the_selected_object_is_hidden_in_renders(factory: Any, hide: Callable[[bpy.types.Object], None]) -> None:
    spare = bpy.data.objects.new("Spare", factory.object.data)
    factory.scene.collection.objects.link(spare)
    hide(factory.object)
    with pytest.raises(CaptureError, match="Cube is selected but hidden in renders"):
        capture(factory, SMALL)


def test_no_camera(factory: Any) -> None:
    bpy.data.objects.remove(factory.scene.camera)
    with pytest.raises(CaptureError, match="no camera"):
        capture(factory, CAMERAS)
    with pytest.raises(CaptureError, match="no active camera"):
        capture(factory, settings(CAMERAS, source="animation"))


def test_no_camera_selected(factory: Any) -> None:
    with pytest.raises(CaptureError, match="No camera is selected"):
        capture(factory, settings(CAMERAS, cameras="selected"))


def test_a_camera_inside_the_object(factory: Any) -> None:
    with pytest.raises(CaptureError, match="inside Cube"):
        capture(factory, settings(distance=0.1))
    factory.scene.camera.location = 0.1, 0.2, 0.3
    with pytest.raises(CaptureError, match="inside Cube"):
        capture(factory, CAMERAS)


def test_a_camera_in_a_room_that_is_not_selected(factory: Any) -> None:
    factory.object.select_set(False)
    factory.scene.camera.location = 0.1, 0.2, 0.3
    assert (capture(factory, CAMERAS).images[..., 3] == 255).all()


def test_a_fully_transparent_capture(factory: Any) -> None:
    factory.scene.camera.rotation_euler = Euler((3.0, 0, 0))
    factory.scene.camera.location = 0, 0, 20
    with pytest.raises(CaptureError, match="fully transparent"):
        capture(factory, CAMERAS)


def test_no_viewport_in_background(factory: Any) -> None:
    with pytest.raises(CaptureError, match="no 3D viewport"):
        capture(factory, settings(source="viewport"))


@pytest.mark.parametrize(
    "changes", [{"count": 3}, {"count": 65}, {"distance": 0}, {"frames": (5, 1, 1)}, {"elevations": (91.0,)}]
)
def test_settings_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(CaptureError):
        settings(**changes)


# ---- what is left behind

PLAIN = {"BOOLEAN", "INT", "FLOAT", "STRING", "ENUM"}


def plain_values(owner: Any) -> dict[str, Any]:
    """All of a struct's properties that are values, by name."""
    values = {}
    for prop in owner.bl_rna.properties:
        if prop.type in PLAIN and prop.identifier != "use_nodes":  # going away in 6.0, and says so at each look
            value = getattr(owner, prop.identifier)
            values[prop.identifier] = tuple(map(str, value)) if getattr(prop, "is_array", False) else str(value)
    return values


def snapshot(context: Any) -> dict[str, Any]:
    scene = context.scene
    owners = {
        "scene": scene,
        "render": scene.render,
        "image": scene.render.image_settings,
        "view": scene.view_settings,
        "display": scene.display_settings,
        "cycles": scene.cycles,
        "eevee": scene.eevee,
        "workbench": scene.display,
        "preferences": context.preferences.view,
        "camera": scene.camera.data,
    }
    for layer in scene.view_layers:
        owners[f"layer {layer.name}"] = layer
        owners[f"layer {layer.name} cycles"] = layer.cycles
        owners[f"layer collection {layer.name}"] = layer.layer_collection
    for item in bpy.data.objects:
        owners[f"object {item.name}"] = item
    found: dict[str, Any] = {name: plain_values(owner) for name, owner in owners.items()}
    found["counts"] = {
        name: len(value)
        for name in dir(bpy.data)
        if isinstance(value := getattr(bpy.data, name), bpy.types.bpy_prop_collection)
    }
    found["selected"] = sorted(item.name for item in context.view_layer.objects.selected)
    found["active"] = (context.view_layer.objects.active.name, scene.camera.name)
    found["world"] = {item.name: [tuple(row) for row in item.matrix_world] for item in bpy.data.objects}
    found["hidden"] = {item.name: item.hide_get() for item in scene.objects}
    found["users"] = {item.name: (item.users, item.data.users if item.data else 0) for item in bpy.data.objects}
    found["dirty"] = context.preferences.is_dirty
    return found


def busy_scene(context: Any) -> None:
    """Two view layers, animation on objects and render settings, a hidden object, unusual settings."""
    scene = context.scene
    two_cubes(context)
    scene.view_layers.new("Second")
    context.object.keyframe_insert("location", frame=1)
    context.object.location.z = 2
    context.object.keyframe_insert("location", frame=20)
    scene.render.resolution_percentage = 37
    scene.view_settings.keyframe_insert("exposure", frame=1)
    scene.render.filepath = "//somewhere/user_"
    scene.render.use_border = True
    scene.frame_set(7)
    bpy.data.objects["Other"].hide_set(True)


def fail_at_second(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    read, calls = exr.read, []

    def failing(path: Path) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise error
        return read(path)

    monkeypatch.setattr(capture_module.exr, "read", failing)


@pytest.mark.parametrize("others", ["hidden", "holdout"])
@pytest.mark.parametrize("end", ["success", "reading fails", "a bug", "cancel", "animation"])
def test_nothing_changes(factory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, others: Any) -> None:
    busy_scene(factory)
    monkeypatch.setattr(capture_module.Stage.__init__.__globals__["tempfile"], "tempdir", str(tmp_path))
    before = snapshot(factory)
    wanted = settings(resolution=16, others=others)
    if end == "success":
        capture(factory, wanted)
    elif end == "animation":
        capture(factory, settings(wanted, source="animation", frames=(1, 20, 10)))
    elif end == "reading fails":
        fail_at_second(monkeypatch, ValueError("cut short"))
        with pytest.raises(CaptureError, match="cut short"):
            capture(factory, wanted)
    elif end == "a bug":
        fail_at_second(monkeypatch, ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            capture(factory, wanted)
    else:
        run = CaptureRun(wanted)
        run.start(factory)
        while run.done < 2:
            assert not run.tick()
        run.cancel()
        run.cancel()
        assert run.cancelled and run.result is None and run.tick()
    after = snapshot(factory)
    assert {name: after[name] for name in before if after[name] != before[name]} == {}
    assert list(tmp_path.iterdir()) == []


def test_a_run_gives_what_a_blocking_capture_gives(factory: Any) -> None:
    seen: list[tuple[int, int, str]] = []
    blocking = capture(factory, SMALL, lambda *progress: seen.append(progress))
    assert seen == [(i, 4, f"orbit_{i:03d}") for i in range(4)] + [(4, 4, "")]
    run = CaptureRun(SMALL)
    run.start(factory)
    assert (run.done, run.total, run.label) == (0, 4, "orbit_000")
    while not run.tick():
        pass
    assert run.error is None and run.result is not None and run.done == 4
    np.testing.assert_array_equal(run.result.images, blocking.images)
    np.testing.assert_array_equal(run.result.c2w, blocking.c2w)


def test_a_run_reports_its_error_and_cleans_up(factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at_second(monkeypatch, ValueError("cut short"))
    run = CaptureRun(SMALL)
    run.start(factory)
    while not run.tick():
        pass
    assert run.result is None and "cut short" in str(run.error)
    assert [scene.name for scene in bpy.data.scenes] == ["Scene"]


@pytest.mark.skipif(bpy.app.version < render_jobs.FIRST_SOUND, reason="no render jobs are used in this Blender")
def test_stopping_a_job_deletes_the_stage_and_never_the_artists_scene(factory: Any) -> None:
    """Called from a window's event, whose own scene must not be taken for the one to delete."""
    stage = factory.scene.copy()
    temporary.mark(stage)
    window = bpy.context.window_manager.windows[0]
    with bpy.context.temp_override(window=window):
        render_jobs.stop(stage)
    assert [scene.name for scene in bpy.data.scenes] == ["Scene"]


def test_opening_a_file_in_the_middle_is_survived(factory: Any) -> None:
    run = CaptureRun(SMALL)
    run.start(factory)
    run.tick()
    bpy.ops.wm.read_factory_settings(use_empty=False)
    run.cancel()
    assert [scene.name for scene in bpy.data.scenes] == ["Scene"]


def test_leftovers_of_a_file_saved_in_the_middle_are_swept(factory: Any, tmp_path: Path) -> None:
    run = CaptureRun(SMALL)
    run.start(factory)
    run.tick()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "half.blend"))
    run.cancel()
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "half.blend"))
    assert len(bpy.data.cameras) == 2
    temporary.remove_all()
    assert [scene.name for scene in bpy.data.scenes] == ["Scene"]
    assert len(bpy.data.cameras) == 1 and len(bpy.data.objects) == 3


# ---- files


def test_saved_views_are_read_back(factory: Any, tmp_path: Path) -> None:
    bpy.data.objects["Camera"].data.type = "ORTHO"
    extra = bpy.data.objects.new("Camera 2/b", bpy.data.cameras.new("x"))
    factory.collection.objects.link(extra)
    extra.matrix_world = Matrix.Translation((0, 0, 9))
    pictures = len(bpy.data.images)
    views = capture(factory, CAMERAS)
    path = views.save(tmp_path / "new" / "folder")
    assert path.name == "transforms.json"
    for place in (path, path.parent):
        read = CapturedViews.load(place)
        np.testing.assert_array_equal(read.images, views.images)
        np.testing.assert_array_equal(read.depth, views.depth)
        np.testing.assert_allclose(read.c2w, views.c2w, atol=1e-6)
        np.testing.assert_allclose(read.Ks, views.Ks, rtol=1e-6)
        assert read.orthographic.tolist() == views.orthographic.tolist() == [True, False]
    assert len(bpy.data.images) == pictures


def test_pictures_of_other_programs(factory: Any, tmp_path: Path) -> None:
    """A JPEG beside a file that gives only camera_angle_x, in OpenGL axes, as NeRF's own scenes do."""
    image = bpy.data.images.new("x", 24, 16)
    image.pixels.foreach_set(np.tile(np.array([1.0, 0, 0, 1], np.float32), 24 * 16))
    image.file_format, image.filepath_raw = "JPEG", str(tmp_path / "a.jpg")
    image.save()
    matrix = np.array(Matrix.Translation((0, 0, 4)))
    frame = {"file_path": "./a", "transform_matrix": matrix.tolist()}
    (tmp_path / "transforms.json").write_text(__import__("json").dumps({"camera_angle_x": 1.0, "frames": [frame]}))
    views = CapturedViews.load(tmp_path)
    assert views.images.shape == (1, 16, 24, 4) and views.depth is None
    np.testing.assert_allclose(views.images[0, 8, 8], [254, 0, 0, 255], atol=3)
    assert views.Ks[0, 0, 0] == pytest.approx(12 / np.tan(0.5)) and views.Ks[0, 1, 2] == 8
    np.testing.assert_allclose(views.c2w[0], matrix * [1, -1, -1, 1])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "expected JSON"),
        ("[]", "JSON object"),
        ('{"frames": []}', "list 'frames'"),
        ('{"frames": [{"file_path": "../a.png"}]}', "inside the folder"),
        ('{"frames": [{"file_path": "/etc/a.png"}]}', "inside the folder"),
        ('{"frames": [{"file_path": "none.png"}]}', "no picture"),
    ],
)
def test_bad_files_are_refused_with_the_field(factory: Any, tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(CaptureError, match=sentence):
        CapturedViews.load(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"expected a transforms\.json"):
        CapturedViews.load(tmp_path / "nothing")
