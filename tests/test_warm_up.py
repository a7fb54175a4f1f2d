"""The warm-up runs every kind of job, so that nothing is left to compile for the first real one."""

from __future__ import annotations

import pytest
import torch

from backend import grid_kernels, pipelines, warm_up
from backend.models import grm_hull
from backend.monitor import Silent
from backend.starts import Wishes, choose_start
from tests.balls import ball_views

STARTER_KERNELS = (
    grm_hull._cut,
    grid_kernels.occupancy_of,
    grid_kernels.push,
    grid_kernels.descend,
    grid_kernels.look,
)


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
    assert [one.report["start"] for one in done[:2]] == ["depth", "hull"] and len(done) == 4
    assert all(one.mesh is not None for one in done[:2])
    assert done[3].report["start"] == "network" and done[3].report["weights"] == "starter"
    compiled = [set(kernel.signatures) for kernel in STARTER_KERNELS]
    assert all(compiled)
    real(ball_views(4), pipelines.ReconstructOptions(model="grm", device="cpu"), Silent())
    assert [set(kernel.signatures) for kernel in STARTER_KERNELS] == compiled, "a first job would have to wait"
