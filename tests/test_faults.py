"""What goes wrong with the product's own backend: each fault is told, nothing hangs, and the next job works."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from blender_addon import protocol
from blender_addon.backend_process import BackendProcess, start_backend
from blender_addon.families import FAMILIES
from blender_addon.session import Job, Session, SessionState, new_job_id
from tests.balls import ball_views

DEADLINE = 150.0  # on a machine that does other things too, with everything still to be compiled


# The product's server and worker, with compiled code shared with the other tests instead of compiled for this one.
SERVE = ("-c", "import os; del os.environ['NUMBA_CACHE_DIR']; from backend.__main__ import main; main()", "serve")


class Studio:
    """A session with the real backend and small jobs for it."""

    def __init__(self, folder: Path) -> None:
        self.backend: BackendProcess | None = None
        self._folder = folder
        self.session = Session(self._launch, lambda job: None)

    def _launch(self) -> BackendProcess:
        folder = self._folder
        self.backend = start_backend(Path(sys.executable), log=folder / "log", cache=folder / "cache", command=SERVE)
        return self.backend

    def run(self, request: protocol.Reconstruct) -> Job:
        return self.session.wait(self.session.submit(request).id, DEADLINE)

    def running(self, request: protocol.Reconstruct) -> Job:
        """The job once it optimises."""
        job = self.session.submit(request)
        self.pump_until(lambda: job.stage == "fit" or not job.active)
        assert job.active, job.failure
        return job

    def pump_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.session.state
            time.sleep(min(self.session.pump(), 0.02))

    def worker(self) -> psutil.Process:
        assert self.backend is not None
        return psutil.Process(self.backend.pid).children()[0]


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[Studio]:
    made = Studio(tmp_path_factory.mktemp("studio"))
    yield made
    made.session.close()


def ball_request(**fields: object) -> protocol.Reconstruct:
    views = ball_views()
    assert views.depth is not None
    request = protocol.Reconstruct(
        new_job_id(),
        (views.images * 255).round().byte().numpy(),
        views.cameras.c2w.numpy(),
        views.cameras.Ks.numpy(),
        views.cameras.orthographic.numpy(),
        views.depth.numpy(),
        steps=5,
        max_splats=500,
        device="cpu",
    )
    return replace(request, **fields)  # pyright: ignore[reportArgumentType]


def test_it_works(studio):
    job = studio.run(ball_request(mesh=True, faces=100, texture_size=32))
    assert job.state == "done", job.failure
    assert job.splats is not None and len(job.splats.means) > 50 and job.mesh is not None and len(job.mesh.faces) > 10
    assert job.report is not None and job.report["psnr"] > 10
    assert studio.session.welcome is not None and studio.session.welcome.models == tuple(FAMILIES)
    assert studio.session.welcome.device in ("cpu", "cuda") and studio.session.welcome.memory_bytes > 2**28


def fails(studio: Studio, request: protocol.Reconstruct, kind: str, words: str) -> None:
    """The job fails as it should, and one like it without the fault works."""
    job = studio.run(request)
    assert job.state == "failed" and job.failure is not None and job.failure.kind == kind, job.failure
    assert words in job.failure.sentence and "Traceback" not in job.failure.sentence
    assert studio.run(ball_request()).state == "done"


def spoilt(values: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    copy = values.copy()
    copy[index] = value
    return copy


def test_numbers_that_are_not_finite(studio):
    good = ball_request()
    assert good.depth is not None
    fails(studio, replace(good, depth=spoilt(good.depth, (1, 2, 3), np.nan)), "bad_request", "finite depths")
    good = ball_request()
    fails(
        studio,
        replace(good, c2w=spoilt(good.c2w, (1, 0, 3), np.inf)),
        "bad_request",
        "C2w: expected finite numbers; view 1",
    )


def test_options_that_make_no_sense(studio):
    fails(studio, ball_request(model="lgm", weights="no_such"), "bad_request", "no_such")


def test_cameras_that_do_not_see_the_object(studio):
    good = ball_request()
    away = good.c2w.copy()
    away[:, :3, [0, 2]] *= -1
    fails(studio, replace(good, c2w=away, depth=None), "nothing_seen", "Aim the cameras")
    fails(studio, ball_request(images=np.zeros_like(good.images), depth=None), "nothing_seen", "Aim the cameras")


def test_views_of_one_pixel(studio):
    request = ball_request(images=np.full((4, 1, 1, 4), 255, np.uint8), depth=None)
    Ks = request.Ks.copy()
    Ks[:, :2] /= 32
    job = studio.run(replace(request, Ks=Ks))
    assert job.state == "done" or (job.failure is not None and job.failure.kind in ("bad_request", "nothing_seen")), (
        job.failure
    )
    assert studio.run(ball_request()).state == "done"


def test_views_of_8192_pixels(studio):
    """A strip as wide as a picture may be; one pixel more is refused."""
    good = ball_request()
    wide = np.repeat(good.images[:2], 256, axis=2)
    assert good.depth is not None and wide.shape == (2, 32, 8192, 4)
    Ks = good.Ks[:2].copy()
    Ks[:, 0] *= 256
    cut = {"c2w": good.c2w[:2], "Ks": Ks, "orthographic": good.orthographic[:2], "depth": None}
    job = studio.run(replace(good, images=wide, **cut))
    assert job.state == "done", job.failure
    wider = np.concatenate([wide, wide[:, :, :1]], axis=2)
    fails(studio, replace(ball_request(), images=wider, **cut), "bad_request", "found 8193x32")


def test_more_pixels_than_it_is_made_for(studio):
    """64 views of 4096 by 4096 would be 4 GiB: the message itself is refused, and never sent."""
    good = ball_request()
    huge = np.broadcast_to(np.zeros((1, 1, 1, 4), np.uint8), (64, 4096, 4096, 4))
    cameras = {name: np.repeat(getattr(good, name)[:1], 64, axis=0) for name in ("c2w", "Ks", "orthographic")}
    fails(studio, replace(good, images=huge, depth=None, **cameras), "bad_request", "bytes in all")


def test_the_worker_is_killed(studio):
    job = studio.running(ball_request(steps=100_000))
    studio.worker().kill()
    studio.pump_until(lambda: not job.active)
    assert job.state == "failed" and job.failure is not None and job.failure.kind == "worker_died"
    assert studio.run(ball_request()).state == "done"


def test_a_job_is_cancelled_within_a_second(studio):
    job = studio.running(ball_request(steps=100_000))
    start = time.monotonic()
    studio.session.cancel(job.id)
    studio.pump_until(lambda: not job.active)
    assert job.state == "cancelled" and time.monotonic() - start < 1.0
    assert studio.run(ball_request()).state == "done"


def test_a_job_is_finished_early(studio):
    job = studio.running(ball_request(steps=100_000))
    studio.session.finish(job.id)
    studio.pump_until(lambda: not job.active)
    assert job.state == "done" and job.report is not None and job.report["stopped_early"] and job.splats is not None


def test_the_backend_is_killed(studio):
    job = studio.running(ball_request(steps=100_000))
    assert studio.backend is not None
    family = [psutil.Process(studio.backend.pid), studio.worker()]
    family[0].kill()
    studio.pump_until(lambda: not job.active)
    assert (
        job.failure is not None and job.failure.kind == "backend_died" and studio.session.state is SessionState.FAILED
    )
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left, "the worker must not outlive the server"
    assert studio.run(ball_request()).state == "done"
