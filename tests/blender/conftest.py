"""Tests in a `bpy` wheel or in a real Blender's Python: one factory scene each, and the scenes of the shared folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

bpy = pytest.importorskip("bpy")

SCENES = Path(__file__).resolve().parents[2] / "../shared/bench/scenes"


@pytest.fixture
def factory() -> Any:
    """The context of a fresh factory scene: the default cube (selected), a light and a camera; Cycles."""
    bpy.ops.wm.read_factory_settings(use_empty=False)
    bpy.context.scene.render.engine = "CYCLES"
    return bpy.context


@pytest.fixture
def open_scene() -> Callable[[str], Any]:
    """Opens one of the shared folder's scenes by the start of its name and returns the context; Cycles."""

    def opened(start: str) -> Any:
        found = sorted(SCENES.glob(f"{start}*.blend"))
        if not found:
            pytest.skip("the shared folder with bench/scenes is not beside the checkout")
        bpy.ops.wm.open_mainfile(filepath=str(found[0]))
        bpy.context.scene.render.engine = "CYCLES"
        return bpy.context

    return opened


@pytest.fixture
def expected() -> dict[str, Any]:
    """What the shared folder says of its scenes, by the name of the file without its ending."""
    if not (SCENES / "expected.json").is_file():
        pytest.skip("the shared folder with bench/scenes is not beside the checkout")
    return json.loads((SCENES / "expected.json").read_text())
