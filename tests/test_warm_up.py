"""The warm-up runs every kind of job, so that nothing is left to compile for the first real one."""

from __future__ import annotations

import pytest
import torch

from backend import pipelines, warm_up
from backend.monitor import Silent
from backend.starts import Wishes, choose_start


def test_its_views_are_of_three_kinds() -> None:
    ball = warm_up._ball()
    opaque = warm_up._opaque(ball)
    assert ball.has_alpha and ball.depth is not None and not opaque.has_alpha
    seen = ball.depth[ball.depth > 0]
    assert 1.5 - 1e-3 < float(seen.min()) and float(seen.max()) < 2.0  # the ball is 1.5 before the cameras
    start = choose_start(opaque, None, Wishes(400, 0, 0), Silent())
    assert start.kind in ("plane_sweep", "random") and torch.isfinite(start.gaussians.means).all()


def test_it_runs_every_kind_of_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start once, with a mesh; what is small enough to be quick still meshes."""
    done = []
    real = pipelines.reconstruct

    def watched(*arguments):
        done.append(real(*arguments))
        return done[-1]

    monkeypatch.setattr(pipelines, "reconstruct", watched)
    warm_up.warm_up()
    assert [one.report["start"] for one in done[:2]] == ["depth", "hull"] and len(done) == 3
    assert all(one.mesh is not None for one in done[:2])
