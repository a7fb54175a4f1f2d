"""The operators and the run they start, with real sockets and a real child process that plays the backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import preferences, registration, result, splat_object, studio  # noqa: E402
from blender_addon.generation import Generation  # noqa: E402
from blender_addon.order import Order  # noqa: E402
from blender_addon.session import Session, SessionState  # noqa: E402
from blender_addon.views import CapturedViews, CaptureError, CaptureSettings  # noqa: E402
from tests import fakes  # noqa: E402

SECONDS = 60.0
SMALL = CaptureSettings(count=4, resolution=16, quality="preview")


@pytest.fixture
def running(factory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[studio.Studio]:
    """The extension, switched on, with the fake backend; the default cube is selected."""
    backend = tmp_path / "python"
    backend.touch()
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, str(backend))
    registration.register()
    studio.current().session = Session(lambda: fakes.launch(tmp_path), lambda _job: None)
    yield studio.current()
    registration.unregister()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A transforms.json with four pictures."""
    views = CapturedViews(
        images=np.full((4, 8, 8, 4), 200, np.uint8),
        c2w=np.tile(np.eye(4, dtype=np.float32), (4, 1, 1)),
        Ks=np.tile(np.array([[8, 0, 4], [0, 8, 4], [0, 0, 1]], np.float32), (4, 1, 1)),
        orthographic=np.zeros(4, bool),
        names=("a", "b", "c", "d"),
    )
    return views.save(tmp_path / "pictures")


def tick_until(running: studio.Studio, holds: Callable[[], bool]) -> None:
    """Does what Blender's timer would; timers do not fire in background mode."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, (running.generation and run_of(running).phase, running.problem)
        time.sleep(min(running.tick(), 0.02))


def run_of(running: studio.Studio) -> Generation:
    assert running.generation is not None
    return running.generation


def phase(running: studio.Studio) -> str:
    return run_of(running).phase


def job_state(running: studio.Studio) -> str:
    job = run_of(running).job
    return job.state if job is not None else ""


def sentence(running: studio.Studio) -> str:
    return running.problem.sentence if running.problem is not None else ""


def face(empty: Any, role: Any) -> Any:
    found = result.part(empty, role)
    assert found is not None
    return found


def finished(running: studio.Studio) -> Callable[[], bool]:
    return lambda: phase(running) in ("DONE", "FAILED", "CANCELLED")


def test_a_run_from_capture_to_result(running: studio.Studio) -> None:
    running.generate(bpy.context, Order(SMALL, weights="works", output="both", name="Thing"))
    seen = set()
    tick_until(running, lambda: seen.add(phase(running)) or finished(running)())
    assert phase(running) == "DONE", running.problem
    assert {"CAPTURING", "RECONSTRUCTING"} <= seen
    empty = bpy.data.objects["Thing"]
    assert result.is_result(empty) and bpy.context.scene.gaussmith.last_result == "Thing"
    assert {child[result.ROLE] for child in empty.children} == {"SPLATS", "MESH"}
    recipe = result.recipe_of(empty)
    assert recipe["psnr"] == 30.0 and recipe["model"] == "fit" and len(recipe["cameras"]["c2w"]) == 4
    assert recipe["method"] == "" and recipe["made_by"] == "Fit (per scene): 4 views"
    assert [item.name for item in bpy.context.selected_objects] == ["Cube"], "the user's selection stays"
    assert running.figures.ticks > 5 and not running.busy


def test_mesh_only_brings_no_splats(running: studio.Studio, pictures: Path) -> None:
    running.generate(bpy.context, Order(transforms=pictures, weights="works", output="mesh", name="Thing"))
    tick_until(running, finished(running))
    assert [child[result.ROLE] for child in bpy.data.objects["Thing"].children] == ["MESH"]


def test_cancel_while_pictures_are_taken(running: studio.Studio) -> None:
    before = names()
    running.generate(bpy.context, Order(SMALL, weights="works"))
    running.tick()
    assert bpy.ops.gaussmith.cancel() == {"FINISHED"}
    assert phase(running) == "CANCELLED" and names() == before


def test_cancel_while_the_backend_works(running: studio.Studio, pictures: Path) -> None:
    before = names()
    running.generate(bpy.context, Order(transforms=pictures, weights="patient"))
    tick_until(running, lambda: running.session.state is SessionState.RUNNING and run_of(running).fraction >= 0)
    tick_until(running, lambda: job_state(running) == "running")
    began = time.monotonic()
    bpy.ops.gaussmith.cancel()
    tick_until(running, lambda: running.session.state is SessionState.READY)
    assert time.monotonic() - began < 3
    assert names() == before
    running.generate(bpy.context, Order(transforms=pictures, weights="works", name="Next"))
    tick_until(running, finished(running))
    assert phase(running) == "DONE", "the next job works"


def test_finish_now_takes_what_there_is(running: studio.Studio, pictures: Path) -> None:
    running.generate(bpy.context, Order(transforms=pictures, weights="patient", name="Early"))
    tick_until(running, lambda: job_state(running) == "running")
    assert bpy.ops.gaussmith.finish_early() == {"FINISHED"}
    tick_until(running, finished(running))
    assert phase(running) == "DONE" and "Early" in bpy.data.objects


@pytest.mark.parametrize("act", ["killed", "out_of_memory", "internal"])
def test_a_failure_is_a_sentence_with_details(running: studio.Studio, pictures: Path, act: str) -> None:
    before = names()
    running.generate(bpy.context, Order(transforms=pictures, weights=act))
    tick_until(running, finished(running))
    assert phase(running) == "FAILED" and names() == before
    assert sentence(running).endswith(".")
    details = running.details()
    assert sentence(running) in details and bpy.app.version_string in details


def test_an_undo_while_objects_are_built_does_not_lose_the_result(running: studio.Studio, pictures: Path) -> None:
    running.generate(bpy.context, Order(transforms=pictures, weights="works", output="both", name="Thing"))
    tick_until(running, lambda: phase(running) == "BUILDING")
    run_of(running).tick(bpy.context, 0.0)  # one slice, so that something half-built is there
    studio._before_undo()
    tick_until(running, finished(running))
    assert phase(running) == "DONE" and len(bpy.data.objects["Thing"].children) == 2


def test_an_undo_while_pictures_are_taken_starts_them_again(running: studio.Studio) -> None:
    running.generate(bpy.context, Order(SMALL, weights="works", name="Thing"))
    running.tick()
    studio._before_undo()
    studio._after_replacing()
    tick_until(running, finished(running))
    assert phase(running) == "DONE", running.problem


def test_opening_another_file_ends_the_run(running: studio.Studio, pictures: Path) -> None:
    running.generate(bpy.context, Order(transforms=pictures, weights="patient"))
    tick_until(running, lambda: job_state(running) == "running")
    bpy.ops.wm.read_homefile(use_empty=True)
    assert not running.busy and "another file" in sentence(running)
    tick_until(running, lambda: running.session.state is SessionState.READY)
    assert not bpy.data.objects


def test_deleting_the_scene_fails_the_run(running: studio.Studio, pictures: Path) -> None:
    other = bpy.data.scenes.new("Other")
    running.generate(bpy.context, Order(transforms=pictures, weights="patient"))
    bpy.data.scenes.remove(next(scene for scene in bpy.data.scenes if scene != other))
    running.tick()
    assert phase(running) == "FAILED" and "scene" in sentence(running)


def test_one_undo_step_brings_the_result_and_takes_it_away(running: studio.Studio, pictures: Path) -> None:
    bpy.ops.ed.undo_push(message="before")
    before = names()
    running.generate(bpy.context, Order(transforms=pictures, weights="works", output="both", name="Thing"))
    tick_until(running, finished(running))
    assert "Thing" in names()
    if bpy.ops.ed.undo.poll():
        bpy.ops.ed.undo()
        assert names() == before
        bpy.ops.ed.redo()
        assert "Thing" in names() and len(bpy.data.objects["Thing"].children) == 2


def test_the_reason_for_a_grey_button(running: studio.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    from blender_addon import operators

    assert bpy.ops.gaussmith.generate.poll()
    bpy.ops.object.select_all(action="DESELECT")
    assert not bpy.ops.gaussmith.generate.poll()
    assert operators.nothing_to_capture(bpy.context) == "Select the object to capture"
    bpy.context.scene.gaussmith.source = "FILES"
    assert operators.nothing_to_capture(bpy.context) == "Choose a transforms.json"
    bpy.context.scene.gaussmith.source = "CAMERAS"
    assert not operators.nothing_to_capture(bpy.context)
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, "/nowhere")
    assert not bpy.ops.gaussmith.generate.poll()
    assert preferences.PYTHON_VARIABLE in operators.backend_missing()


def test_a_capture_that_cannot_begin_is_told_at_once(running: studio.Studio) -> None:
    bpy.ops.object.select_all(action="DESELECT")
    with pytest.raises(CaptureError):
        running.generate(bpy.context, Order(SMALL))
    assert running.problem is not None and not running.busy
    with pytest.raises(RuntimeError, match=r"test_operators\.py: expected JSON"):
        bpy.context.scene.gaussmith.source = "FILES"
        bpy.context.scene.gaussmith.transforms = str(Path(__file__))
        bpy.ops.gaussmith.generate()


def test_ply_out_and_in(running: studio.Studio, pictures: Path, tmp_path: Path) -> None:
    running.generate(bpy.context, Order(transforms=pictures, weights="works", name="Thing"))
    tick_until(running, finished(running))
    assert bpy.ops.gaussmith.select_result() == {"FINISHED"}
    file = tmp_path / "splats.ply"
    assert bpy.ops.gaussmith.export_ply(filepath=str(file)) == {"FINISHED"}
    assert bpy.ops.gaussmith.import_ply(filepath=str(file)) == {"FINISHED"}
    imported = bpy.context.object
    bpy.context.view_layer.update()
    original = splat_object.read_splats(face(bpy.data.objects["Thing"], "SPLATS"))
    assert imported.name.startswith("splats")
    np.testing.assert_allclose(splat_object.read_splats(imported).means, original.means, atol=1e-6)
    (tmp_path / "no.ply").write_text("ply\nnothing")
    with pytest.raises(RuntimeError, match=r"no\.ply"):
        bpy.ops.gaussmith.import_ply(filepath=str(tmp_path / "no.ply"))


def test_the_two_faces_of_a_result(running: studio.Studio, pictures: Path) -> None:
    running.generate(bpy.context, Order(transforms=pictures, weights="works", output="both", name="Thing"))
    tick_until(running, finished(running))
    empty = bpy.data.objects["Thing"]
    splats, mesh = (face(empty, role) for role in ("SPLATS", "MESH"))
    assert (splats.hide_render, mesh.hide_render) == (False, True)
    assert bpy.ops.gaussmith.show(display="MESH", name="Thing") == {"FINISHED"}
    assert (splats.hide_render, mesh.hide_render) == (True, False)
    bpy.context.view_layer.objects.active = None
    with pytest.raises(RuntimeError, match="Select a result"):
        bpy.ops.gaussmith.show(display="MESH", name="")


def names() -> set[str]:
    return {item.name for item in bpy.data.objects}
