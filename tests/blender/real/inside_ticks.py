"""Runs inside an open Blender: has a million splats sent by fake_backend.py and writes how long our timer took.

blender ... -P inside_ticks.py -- OUT BACKEND_PYTHON        writes OUT/ticks.json and quits
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import bpy
import numpy as np

OUT, PYTHON = (Path(name) for name in sys.argv[sys.argv.index("--") + 1 :][:2])
PACKAGE = next(name for name in bpy.context.preferences.addons.keys() if name.endswith(".gaussmith"))
studio, session, backend_process, views = (
    importlib.import_module(f"{PACKAGE}.blender_addon.{name}")
    for name in ("studio", "session", "backend_process", "views")
)
HEARTBEAT = 0.01  # seconds
GIVE_UP = 240.0


class Heart:
    """A timer of its own: the longest gap between two beats is how long the window stood still, for whatever reason."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.began = self.last
        self.gaps: dict[str, float] = {}

    def beat(self) -> float | None:
        now, run = time.perf_counter(), studio.current().generation
        phase = run.phase if run is not None else ""
        self.gaps[phase] = max(self.gaps.get(phase, 0.0), now - self.last)
        self.last = now
        if phase in ("DONE", "FAILED", "CANCELLED") or now - self.began > GIVE_UP:
            finish(self, phase)
            return None
        return HEARTBEAT


def begin() -> None:
    pictures = views.CapturedViews(
        images=np.zeros((4, 8, 8, 4), np.uint8),
        c2w=np.tile(np.eye(4, dtype=np.float32), (4, 1, 1)),
        Ks=np.tile(np.array([[8, 0, 4], [0, 8, 4], [0, 0, 1]], np.float32), (4, 1, 1)),
        orthographic=np.zeros(4, bool),
        names=("a", "b", "c", "d"),
    )
    chosen = bpy.context.scene.gaussmith
    chosen.source, chosen.transforms = "FILES", str(pictures.save(OUT / "views"))
    running = studio.current()
    running.session.close()
    command = (str(Path(__file__).with_name("fake_backend.py")),)
    running.session = session.Session(
        lambda: backend_process.start_backend(PYTHON, log=OUT / "fake.log", cache=OUT / "cache", command=command),
        lambda _job: None,
    )
    for area in bpy.context.window_manager.windows[0].screen.areas:
        if area.type == "VIEW_3D":
            area.spaces[0].show_region_ui = True
    bpy.ops.gaussmith.generate()
    bpy.app.timers.register(Heart().beat, first_interval=HEARTBEAT)


def finish(heart: Heart, phase: str) -> None:
    running = studio.current()
    empty = bpy.data.objects.get(bpy.context.scene.gaussmith.last_result)
    count = len(empty.children[0].data.attributes["position"].data) if empty is not None else 0
    figures = vars(running.figures) | {"phase": phase, "splats": count, "standstill": heart.gaps}
    figures["problem"] = running.problem.sentence + running.problem.detail if running.problem else ""
    (OUT / "ticks.json").write_text(json.dumps(figures, indent=1))
    bpy.ops.wm.quit_blender()


bpy.context.preferences.view.show_splash = False
bpy.app.timers.register(begin, first_interval=3)
