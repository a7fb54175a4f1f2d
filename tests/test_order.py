"""What one press of Generate asks for: the methods, what contradicts them, and what the result says of its making."""

from __future__ import annotations

import pytest

from blender_addon.families import DEFAULT_METHOD, FAMILIES, METHODS
from blender_addon.order import Order
from blender_addon.views import CaptureError, CaptureSettings


def ordered(method: str, **changes) -> Order:
    return Order(method=method, **{**METHODS[method].settings, **changes})  # type: ignore[arg-type]


def test_the_methods() -> None:
    assert {name: (method.model, method.refine) for name, method in METHODS.items()} == {
        "fast": ("grm", 0),
        "balanced": ("grm", 100),
        "best": ("fit", 0),
    }
    assert DEFAULT_METHOD == "fast"
    assert [method.number for method in METHODS.values()] == [0, 1, 2], "what files of Blender hold must stay"
    assert [family.number for family in FAMILIES.values()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("fast", {"model": "fit"}, "The method fast comes with model 'grm', found 'fit': name either"),
        ("fast", {"refine": 7}, "comes with refine 0, found 7"),
        ("balanced", {"refine": 7}, "comes with refine 100, found 7"),
        ("balanced", {"weights": "grm_u"}, "comes with weights '', found 'grm_u'"),
        ("best", {"model": "lgm"}, "comes with model 'fit', found 'lgm'"),
        ("fast", {"steps": 9}, "Steps are for the fit, found 9 for GRM"),
    ],
)
def test_what_contradicts_a_method(method: str, changes: dict[str, object], words: str) -> None:
    assert ordered(method).method == method
    with pytest.raises(CaptureError, match=words):
        ordered(method, **changes)


def test_a_method_there_is_not() -> None:
    with pytest.raises(CaptureError, match="one of fast, balanced, best, found 'slow'"):
        Order(method="slow")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "report", "views", "said"),
    [
        (ordered("fast"), {"weights": "starter", "steps": 0}, 8, "Fast: starter network, 8 views"),
        (
            ordered("balanced"),
            {"weights": "starter", "steps": 100},
            8,
            "Balanced: starter network, 100 steps of fit, 8 views",
        ),
        (ordered("best"), {"weights": "", "steps": 640}, 24, "Best: 640 steps of fit, 24 views"),
        (Order(model="lrm"), {"weights": "/some/where/mine.ckpt"}, 1, "LRM: mine.ckpt network, 1 view"),
        (Order(), {"steps": 5}, 4, "Fit (per scene): 5 steps of fit, 4 views"),
        (ordered("fast"), {}, 4, "Fast: network, 4 views"),
    ],
)
def test_what_the_result_says(order: Order, report: dict[str, object], views: int, said: str) -> None:
    assert order.made_by(views, report) == said
    recipe = order.recipe({"names": ["view"] * views}, report, {})
    assert recipe["made_by"] == said and recipe["method"] == order.method and recipe["model"] == order.model


def test_the_starter_gets_the_views_it_looks_at() -> None:
    capture = CaptureSettings(count=24)
    assert ordered("fast", capture=capture).shots.count == ordered("balanced", capture=capture).shots.count == 8
    assert ordered("fast", capture=capture).shots.elevations
    assert ordered("best", capture=capture).shots == capture
    assert ordered("fast", capture=CaptureSettings(count=5)).shots.count == 5
    assert ordered("fast", capture=CaptureSettings(source="cameras", count=24)).shots.count == 24
