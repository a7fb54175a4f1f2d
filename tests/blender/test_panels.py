"""Every panel draws in every state, into a layout that notes what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import (  # noqa: E402
    imagining_panels,
    operators,
    panels,
    preferences,
    properties,
    protocol,
    registration,
    result,
    sentence,
    studio,
)
from blender_addon.families import FAMILIES  # noqa: E402
from blender_addon.generation import Problem  # noqa: E402
from blender_addon.imagining import Imagining  # noqa: E402
from blender_addon.order import Order  # noqa: E402
from blender_addon.preview import contact_sheet  # noqa: E402

ICONS = frozenset(bpy.types.UILayout.bl_rna.functions["label"].parameters["icon"].enum_items.keys())


class Layout:
    """Stands in for UILayout: nested ones share one list of what was drawn; names are checked as Blender would."""

    def __init__(self, drawn: list[str]) -> None:
        self.drawn = drawn

    def _nested(self, **_: Any) -> Layout:
        return Layout(self.drawn)

    row = column = box = split = _nested

    def label(self, *, text: str = "", icon: str = "NONE", translate: bool = True) -> None:
        assert icon in ICONS, icon
        self.drawn.append(text)

    def prop(self, owner: Any, name: str, *, text: str | None = None, expand: bool = False, icon: str = "NONE") -> None:
        assert name in owner.bl_rna.properties, name
        assert icon in ICONS, icon
        self.drawn.append(name)

    def operator(self, name: str, *, text: str | None = None, icon: str = "NONE", emboss: bool = True) -> Any:
        module, _, operator = name.partition(".")
        getattr(getattr(bpy.ops, module), operator).get_rna_type()  # KeyError for an operator there is not
        assert icon in ICONS, icon
        self.drawn.append(name)
        return SimpleNamespace()

    def progress(self, *, factor: float, text: str) -> None:
        assert 0 <= factor <= 1
        self.drawn.append(text)

    def template_icon(self, *, icon_value: int, scale: float) -> None:
        self.drawn.append(f"icon {icon_value}")


@pytest.fixture
def running(factory: Any) -> Iterator[studio.Studio]:
    registration.register()
    yield studio.current()
    registration.unregister()


def drawn(panel: Any) -> list[str]:
    found: list[str] = []
    if not hasattr(panel, "poll") or panel.poll(bpy.context):
        panel.draw(SimpleNamespace(layout=Layout(found)), bpy.context)
    return found


PANELS = tuple(cls for cls in registration.CLASSES if issubclass(cls, bpy.types.Panel))


@pytest.mark.parametrize("source", [item[0] for item in properties.SOURCES])
@pytest.mark.parametrize("output", [item[0] for item in properties.OUTPUTS])
def test_every_panel_draws(running: studio.Studio, source: str, output: str) -> None:
    chosen = bpy.context.scene.gaussmith
    chosen.source, chosen.output, chosen.use_elevations = source, output, True
    shown = {panel.__name__: drawn(panel) for panel in PANELS}
    assert "gaussmith.generate" in shown["GAUSSMITH_PT_main"]
    assert ("transforms" in shown["GAUSSMITH_PT_main"]) == (source == "FILES")
    assert ("texture_size" in shown["GAUSSMITH_PT_reconstruction"]) == (output != "SPLATS")
    assert ("elevation_low" in shown["GAUSSMITH_PT_capture"]) == (source in ("ORBIT", "VIEWPORT"))
    imagines = source in ("PROMPT", "PICTURE")
    assert ("prompt" in shown["GAUSSMITH_PT_main"]) == (source == "PROMPT")
    assert ("picture_front" in shown["GAUSSMITH_PT_main"]) == (source == "PICTURE")
    assert ("picture_back" in shown["GAUSSMITH_PT_sides"]) == (source == "PICTURE")
    assert ("gaussmith.vary" in shown["GAUSSMITH_PT_main"]) == imagines
    assert ("quality" in shown["GAUSSMITH_PT_main"]) != imagines
    assert ("facing" in shown["GAUSSMITH_PT_placement"]) == imagines
    assert ("guidance" in shown["GAUSSMITH_PT_imagining"]) == imagines
    assert sum("seed" in names for names in shown.values()) == 1


SHOWN = {  # by method and model: what the panels show beside what they always do
    ("FAST", ""): {"INFO: 8"},
    ("BALANCED", ""): {"INFO: 8"},
    ("BEST", ""): {"steps"},
    ("MODEL", "fit"): {"model", "steps"},
    ("MODEL", "lgm"): {"model", "weights", "precision", "refine", "INFO: 4"},
}


@pytest.mark.parametrize(("method", "model"), SHOWN)
def test_each_method_shows_what_it_leaves_open(
    running: studio.Studio, monkeypatch: pytest.MonkeyPatch, method: str, model: str
) -> None:
    monkeypatch.setattr(studio, "offered_models", lambda: tuple(FAMILIES))
    chosen = bpy.context.scene.gaussmith
    assert chosen.method == "FAST", "what a new scene begins with"
    chosen.method = method
    if model:
        chosen.model = model
    shown = {name for panel in PANELS for name in drawn(panel)}
    assert {"method", "quality", "max_splats"} <= shown
    found = shown & {"model", "steps", "weights", "precision", "refine"}
    found |= {f"INFO: {line[-1]}" for line in shown if line.startswith("The network takes at most")}
    assert found == SHOWN[method, model]


@pytest.mark.parametrize("method", properties.METHOD_ITEMS, ids=lambda item: item[0])
def test_the_order_of_each_method(
    running: studio.Studio, monkeypatch: pytest.MonkeyPatch, method: tuple[str, str, str, int]
) -> None:
    """Settings that a method does not show do not count, whatever they are."""
    monkeypatch.setattr(studio, "offered_models", lambda: tuple(FAMILIES))
    chosen = bpy.context.scene.gaussmith
    chosen.method, chosen.model, chosen.weights = method[0], "lgm", "mine"
    chosen.refine, chosen.use_steps, chosen.steps, chosen.precision = 7, True, 50, "BFLOAT16"
    order = properties.order(chosen, "cpu")
    got = (order.method, order.model, order.weights, order.refine, order.steps, order.precision)
    assert (
        got
        == {
            "FAST": ("fast", "grm", "", 0, 0, "auto"),
            "BALANCED": ("balanced", "grm", "", 100, 0, "auto"),
            "BEST": ("best", "fit", "", 0, 50, "auto"),
            "MODEL": ("", "lgm", "mine", 7, 0, "bfloat16"),
        }[method[0]]
    )


def test_the_notes_on_a_front_end(running: studio.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = bpy.context.scene.gaussmith
    chosen.source = "PROMPT"
    assert "Starter model: simple objects. The" in drawn(panels.GAUSSMITH_PT_main)
    chosen.imagining.prompt_front_end = "mvdream"
    assert imagining_panels.NO_WEIGHTS not in " ".join(drawn(panels.GAUSSMITH_PT_main)), "nobody has said so yet"
    running.session.welcome = protocol.Welcome(protocol.VERSION, "cpu", "", 0, ("fit",), ("starter",))
    monkeypatch.setattr(operators, "backend_missing", lambda: "")
    shown = drawn(panels.GAUSSMITH_PT_main)
    assert imagining_panels.NO_WEIGHTS in " ".join(shown) and "gaussmith.open_preferences" in shown
    running.shelf.items = (SimpleNamespace(name="mvdream", family="views", state="fetched"),)  # type: ignore[assignment]
    assert imagining_panels.NO_WEIGHTS not in " ".join(drawn(panels.GAUSSMITH_PT_main)), "it came meanwhile"


def test_candidates_with_their_buttons(running: studio.Studio) -> None:
    images = np.zeros((3, 4, 4, 4), np.uint8)
    eye = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    made = [protocol.Imagined("job", images, eye, eye[:, :3, :3], np.zeros(3, bool), seed=seed) for seed in (5, 6)]
    order = Order(imagining=Imagining(prompt="a", candidates=2))
    running.candidates.take(order, made, None)
    assert "gaussmith.use_candidate" not in drawn(panels.GAUSSMITH_PT_main), "they are of another source"
    bpy.context.scene.gaussmith.source = "PROMPT"
    shown = drawn(panels.GAUSSMITH_PT_main)
    assert shown.count("gaussmith.use_candidate") == 2 and shown.count("gaussmith.more_candidates") == 1
    assert shown.count("gaussmith.redo_view") == shown.count("gaussmith.replace_view") == 2 * 3
    assert "Candidate 2   Seed 6" in shown
    running.candidates.replace_view(running.candidates.items[1], 0, images[0])
    assert "Candidate 2   Seed 6, changed" in drawn(panels.GAUSSMITH_PT_main)


def test_a_picture_with_its_thumbnail(running: studio.Studio, tmp_path: Path) -> None:
    chosen = bpy.context.scene.gaussmith
    path = tmp_path / "a.png"
    chosen.source, chosen.imagining.picture_front = "PICTURE", str(path)
    drawn(panels.GAUSSMITH_PT_main)
    assert running.thumbnails.fetch(), "drawing wishes for the thumbnail and touches no file"
    drawn(panels.GAUSSMITH_PT_main)
    assert not running.thumbnails.fetch()
    chosen.imagining.picture_right = str(path)
    assert "no front end makes any." in " ".join(drawn(imagining_panels.GAUSSMITH_PT_sides))


def test_a_contact_sheet() -> None:
    views = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 40, 20, 4), np.uint8)
    sheet = contact_sheet(views, 60)  # three columns of 20 pixels would fit, but two rows of 40 do not
    assert sheet.shape == (40, 30, 4)
    assert [int(sheet[y, x, 0]) for y in (10, 30) for x in (5, 15, 25)] == [0, 1, 2, 3, 4, 0]
    assert not sheet[21:, 21:].any()


def test_the_result_says_what_made_it(running: studio.Studio) -> None:
    item = bpy.context.object
    item[result.RECIPE] = json.dumps({"psnr": 30.25, "made_by": "Balanced: starter network, 100 steps of fit, 8 views"})
    shown = drawn(panels.GAUSSMITH_PT_result)
    assert "Balanced: starter network, 100 steps" in shown and "of fit, 8 views" in shown and "Match: 30.2 dB" in shown
    assert "gaussmith.generate_again" not in shown
    item[result.RECIPE] = json.dumps({"imagined_by": "Starter: a red chair (seed 3)", "imagining": {}})
    shown = drawn(panels.GAUSSMITH_PT_result)
    assert "Starter: a red chair (seed 3)" in shown and "gaussmith.generate_again" in shown
    item[result.RECIPE] = json.dumps({"psnr": None})  # of a file that is older than this line
    assert "gaussmith.select_result" in drawn(panels.GAUSSMITH_PT_result)


def test_a_run_shows_stage_bar_time_and_cancel(running: studio.Studio) -> None:
    running.generation = SimpleNamespace(  # type: ignore[assignment]
        active=True,
        phase="RECONSTRUCTING",
        label="Fit",
        count="",
        fraction=0.25,
        seconds_left=75.2,
        cancel=lambda: None,
    )
    shown = drawn(panels.GAUSSMITH_PT_main)
    assert "25 %   Time Left 1:15" in shown and "Fit " in shown
    assert "gaussmith.cancel" in shown and "gaussmith.finish_early" in shown and "gaussmith.generate" not in shown


def test_a_problem_wraps_and_offers_its_details(running: studio.Studio) -> None:
    text = "The device ran out of memory. Use fewer or smaller views, fewer splats or another device."
    running.problem = Problem(text)
    shown = drawn(panels.GAUSSMITH_PT_main)
    assert "gaussmith.copy_details" in shown and "gaussmith.open_log" in shown
    lines = [line for line in shown if line and line in text]
    assert " ".join(lines) == text and max(map(len, lines)) <= sentence.SIDEBAR


def test_without_a_backend_the_panel_leads_to_setting_it_up(
    running: studio.Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, "/nowhere")
    shown = drawn(panels.GAUSSMITH_PT_main)
    assert "gaussmith.open_preferences" in shown
    assert any("does not exist" in line for line in shown)


def test_the_preferences_draw(running: studio.Studio) -> None:
    settings = SimpleNamespace(bl_rna=preferences.GaussmithPreferences.bl_rna)
    found: list[str] = []
    panels.draw_preferences(Layout(found), settings)  # type: ignore[arg-type]
    assert {"gaussmith.set_up_backend", "existing_python", "gaussmith.check_environment"} <= set(found)
    assert any("GB" in line for line in found), "size and free space are shown"
    running.setup = SimpleNamespace(stage="Installing", fraction=0.5, cancel=lambda: None)  # type: ignore[assignment]
    found.clear()
    panels.draw_preferences(Layout(found), settings)  # type: ignore[arg-type]
    assert "gaussmith.cancel_setup" in found and "Installing" in found


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "0:00"), (59.6, "1:00"), (3725, "62:05")])
def test_time_left(seconds: float, shown: str) -> None:
    assert panels.clock(seconds) == shown
