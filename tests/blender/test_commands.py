"""The command line inside Blender: exit status, sentences, and once the whole path with the real backend."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import api, commands, pictures, preferences, registration, result, studio  # noqa: E402
from blender_addon.session import Session  # noqa: E402
from blender_addon.views import CapturedViews, CaptureError  # noqa: E402
from tests import fakes  # noqa: E402

TINY = ("--views", "4", "--resolution", "24", "--quality", "preview")


@pytest.fixture
def registered(factory: Any, tmp_path: Path) -> Iterator[Path]:
    """The extension with the fake backend; gives a folder."""
    registration.register()
    studio.current().session = Session(lambda: fakes.launch(tmp_path), lambda _job: None)
    yield tmp_path
    registration.unregister()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("generate", "--prompt", " "), "Type a prompt"),
        (("generate", "--prompt", "a chair", "--front-end", "imagedream"), "ImageDream needs a picture"),
        (("generate", "--prompt", "a chair", "--model", "lgm"), "LGM does not suit the views of Starter"),
        (("generate", "--prompt", "a chair", "--candidate", "2"), "between 1 and 1, found 2"),
        (("generate", "--prompt", "a chair", "--size", "-1"), "found -1"),
        (("generate", "--prompt", "a chair", "--source", "orbit"), "leave out the source"),
        (("generate", "--prompt", "a chair", "--place", "moon"), "'moon'"),
        (("generate", "--image", "no_such.png"), "no_such.png"),
        (("generate", "--size", "2"), "'size' is for a prompt or a picture"),
        (("generate", "--object", "Nobody"), "'Nobody'"),
        (("generate", "--views", "2"), "between 4 and 64, found 2"),
        (("generate", "--views", "many"), "'many'"),
        (("generate", "--source", "views"), "transforms.json"),
        (("generate", "--source", "orbit", "--transforms", "t.json"), "--source"),
        (("generate", "--transforms", "no_such.json"), "no_such.json"),
        (("generate", "--faces", "3"), "found 3"),
        (("generate", "--elevations", "100"), "Elevations"),
        (("generate", "--method", "fast", "--model", "fit"), "comes with model 'grm', found 'fit'"),
        (("generate", "--method", "best", "--refine", "5"), "comes with refine 0, found 5"),
        (("generate", "--method", "slow"), "'slow'"),
        (("generate", "--steps", "5"), "Steps are for the fit"),
        (("generate", "--frames", "9", "1", "1", "--source", "animation"), "last frame"),
        (("generate", "--backend-python", "/nowhere/python"), "/nowhere/python"),
        (("capture",), "--out"),
        (("dance",), "dance"),
        ((), "COMMAND"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    registered: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], named: str
) -> None:
    assert commands.execute(words) == commands.BAD_INPUT
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("gaussmith:")]
    assert len(said) == 1 and named in said[0], said


def test_nothing_selected_is_bad_input(registered: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bpy.ops.object.select_all(action="DESELECT")
    assert commands.execute(("capture", *TINY, "--out", str(registered / "views"))) == commands.BAD_INPUT
    assert "gaussmith: " in capfd.readouterr().err
    assert not (registered / "views").exists()


def test_capture_writes_views(registered: Path) -> None:
    bpy.ops.object.select_all(action="DESELECT")
    report = registered / "report.json"
    words = ("capture", *TINY, "--object", "Cube", "--out", str(registered / "views"), "--json", str(report))
    assert commands.execute(words) == commands.SUCCESS
    views = CapturedViews.load(registered / "views" / "transforms.json")
    assert views.images.shape == (4, 24, 24, 4) and views.images[..., 3].any()
    assert json.loads(report.read_text())["views"] == 4
    assert not bpy.context.selected_objects, "--object leaves the selection as it was"


def test_generate_reports_and_saves(registered: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report, saved = registered / "report.json", registered / "deep" / "out.blend"
    words = ("generate", *TINY, "--weights", "works", "--mesh", "--json", str(report), "--save", str(saved))
    assert commands.execute(words) == commands.SUCCESS
    found = json.loads(report.read_text())
    assert {item["role"] for item in found["objects"]} == {"splats", "mesh"}
    assert found["psnr"] == 30.0 and found["times"]["capture_seconds"] > 0
    assert (found["method"], found["made_by"]) == ("", "GRM: works network, 4 views")
    assert all(item["bbox_min"] <= item["bbox_max"] for item in found["objects"])
    assert "Taking pictures 100 %" in capfd.readouterr().err
    bpy.ops.wm.open_mainfile(filepath=str(saved))
    assert result.is_result(bpy.data.objects[found["result"]])


def test_generate_of_a_prompt(registered: Path) -> None:
    report, saved = registered / "report.json", registered / "out.blend"
    bpy.context.scene.cursor.location = (5, 0, 0)
    words = ("--prompt", "a red chair", "--candidates", "3", "--candidate", "2", "--seed", "4", "--name", "Chair")
    words += ("--facing", "90", "--size", "2", "--weights", "works", "--json", str(report), "--save", str(saved))
    assert commands.execute(("generate", *words)) == commands.SUCCESS
    found = json.loads(report.read_text())
    assert found["imagined_by"] == "Starter: a red chair (seed 5)" and found["front_end"] == "starter"
    assert found["result"] == "Chair" and found["seed"] == 5 and found["times"]["imagine_seconds"] > 0
    bpy.ops.wm.open_mainfile(filepath=str(saved))
    empty = bpy.data.objects["Chair"]
    assert tuple(empty.location) == (5, 0, 0) and empty.rotation_euler.z == pytest.approx(np.pi / 2)
    assert result.recipe_of(empty)["placing"] == {"size": 2.0, "facing": 90.0, "place": "cursor"}


def test_generate_of_a_picture_on_an_object(registered: Path) -> None:
    picture = registered / "chair.png"
    picture.write_bytes(pictures.png(np.full((4, 4, 4), 9, np.uint8)))
    report = registered / "report.json"
    bpy.data.objects["Cube"].location = (1, 2, 3)
    bpy.ops.object.select_all(action="DESELECT")
    words = ("--image", str(picture), "--place", "selection", "--weights", "works", "--json", str(report))
    assert commands.execute(("generate", *words)) == commands.BAD_INPUT, "nothing is selected to stand on"
    assert commands.execute(("generate", *words, "--object", "Cube")) == commands.SUCCESS
    made = bpy.data.objects[json.loads(report.read_text())["result"]]
    assert tuple(made.location) == (1, 2, 4) and made.name == "chair"
    assert not bpy.context.selected_objects


@pytest.mark.parametrize(("act", "status"), [("killed", commands.FAILURE), ("out_of_memory", commands.FAILURE)])
def test_a_failing_backend_gives_status_1(
    registered: Path, capfd: pytest.CaptureFixture[str], act: str, status: int
) -> None:
    before = set(bpy.data.objects.keys())
    assert commands.execute(("generate", *TINY, "--weights", act)) == status
    assert "gaussmith: " in capfd.readouterr().err
    assert set(bpy.data.objects.keys()) == before


def test_status(registered: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    python = registered / "python"
    python.touch()
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, str(python))
    assert commands.execute(("status",)) == commands.SUCCESS
    found = json.loads(capfd.readouterr().out)
    assert found["backend"] == "ready" and found["models"] == ["fit"] and found["named_by"] == "GAUSSMITH_PYTHON"
    assert found["front_ends"] == ["starter"]
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, "")
    assert commands.execute(("status",)) == commands.FAILURE
    assert "not set up" in capfd.readouterr().err


def test_help_is_no_failure(registered: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert commands.execute(("generate", "--help")) == commands.SUCCESS
    assert "--transforms" in capfd.readouterr().out


def test_words_of_the_api_are_those_of_the_command_line() -> None:
    options = vars(commands.parser().parse_args(["generate"]))
    words = {**api.Words.__annotations__}
    assert set(options) - set(commands.OWN_WORDS) == set(words) - {"output"}


def test_the_api_refuses_words_that_do_not_go_together() -> None:
    with pytest.raises(CaptureError, match="leave out the source"):
        api.order_of({"source": "orbit", "transforms": "t.json"})
    with pytest.raises(TypeError, match="colour"):
        api.order_of({"colour": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(CaptureError, match="one of fast, balanced, best, found 'slow'"):
        api.order_of({"method": "slow"})  # type: ignore[typeddict-item]
    with pytest.raises(CaptureError, match="'cut' is for a prompt or a picture"):
        api.order_of({"cut": "none"})
    order = api.order_of({"prompt": "a", "image_left": "l.png", "size": 2, "negative": "b"})
    assert order.imagining is not None and order.imagining.pictures[0].side == "left" and order.placing.size == 2
    assert order.imagining.negative_prompt == "b" and order.method == "fast"
    order = api.order_of({"views": 12, "elevations": [0, 30], "mesh": True})
    assert order.capture.count == 12 and order.capture.elevations == (0, 30) and order.output == "both"


@pytest.mark.parametrize(
    ("words", "method", "model", "refine"),
    [
        ({}, "fast", "grm", 0),
        ({"method": "balanced"}, "balanced", "grm", 100),
        ({"method": "best", "steps": 20}, "best", "fit", 0),
        ({"method": "fast", "model": "grm", "weights": ""}, "fast", "grm", 0),
        ({"model": "fit", "steps": 20}, "", "fit", 0),
        ({"model": "lgm", "refine": 9}, "", "lgm", 9),
        ({"weights": "grm_u"}, "", "grm", 0),
        ({"refine": 9}, "", "grm", 9),
    ],
)
def test_a_model_wins_over_the_method_that_nobody_named(words: Any, method: str, model: str, refine: int) -> None:
    order = api.order_of(words)
    assert (order.method, order.model, order.refine) == (method, model, refine)
    assert order.weights == words.get("weights", "") and order.steps == words.get("steps", 0)


def test_a_capture_has_no_method(factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it takes as many views as it is told, where it is told."""
    taken: list[Any] = []
    monkeypatch.setattr(api, "capture", lambda context, shots, tell: taken.append(shots))
    api.capture_views(views=24)
    assert taken[0].count == 24 and taken[0].elevations == ()


def test_the_whole_path_with_the_real_backend(registered: Path) -> None:
    """A blue ball that stands apart, through capture, fit and mesh, and back to where it was."""
    python = os.environ.get(preferences.PYTHON_VARIABLE, "")
    if not Path(python).is_file():
        pytest.skip("GAUSSMITH_PYTHON names no environment for the backend")
    bpy.ops.mesh.primitive_uv_sphere_add(radius=0.5, location=(3, -2, 1))
    material = bpy.data.materials.new("Blue")
    if material.node_tree is None:  # before 5.0 a new material has none
        material.use_nodes = True
    tree: Any = material.node_tree
    surface = next(node for node in tree.nodes if node.type == "BSDF_PRINCIPLED")
    surface.inputs["Base Color"].default_value = (0.05, 0.2, 0.8, 1)
    bpy.context.object.data.materials.append(material)
    made = api.generate(
        bpy.context,
        backend_python=python,
        method="best",
        views=8,
        resolution=64,
        quality="preview",
        steps=150,
        mesh=True,
        faces=1000,
    )
    assert made.splats is not None and made.mesh is not None
    for item in made.report["objects"]:
        np.testing.assert_allclose(item["bbox_min"], (2.5, -2.5, 0.5), atol=0.06)
        np.testing.assert_allclose(item["bbox_max"], (3.5, -1.5, 1.5), atol=0.06)
    assert made.report["psnr"] > 15 and made.report["made_by"] == "Best: 150 steps of fit, 8 views"
