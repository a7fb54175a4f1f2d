"""Every panel draws in every state, into a layout that notes what it is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import panels, preferences, properties, registration, result, sentence, studio  # noqa: E402
from blender_addon.families import FAMILIES  # noqa: E402
from blender_addon.generation import Problem  # noqa: E402

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


def test_the_result_says_what_made_it(running: studio.Studio) -> None:
    item = bpy.context.object
    item[result.RECIPE] = json.dumps({"psnr": 30.25, "made_by": "Balanced: starter network, 100 steps of fit, 8 views"})
    shown = drawn(panels.GAUSSMITH_PT_result)
    assert "Balanced: starter network, 100 steps" in shown and "of fit, 8 views" in shown and "Match: 30.2 dB" in shown
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
