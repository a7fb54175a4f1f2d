"""A backend whose jobs do what a test says: real sockets and real processes, but no torch.

`python -m tests.fakes serve --endpoint-file FILE` is the product's server with this file's worker in the product's
place; a job's `weights` is the name of one of ACTS.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from backend.monitor import Monitor
from backend.server import serve
from backend.worker import Job, work
from blender_addon import protocol
from blender_addon.backend_process import BackendProcess, start_backend

Act: TypeAlias = Callable[[protocol.Reconstruct, Monitor], Iterator[protocol.Message]]

ROOT = Path(__file__).resolve().parents[1]
SERVE = ("-m", "tests.fakes", "serve")
DEADLINE = 20.0  # seconds; nothing a test waits for may take longer


def launch(folder: Path, arguments: Sequence[str] = ()) -> BackendProcess:
    """Starts the fake backend as the product starts its own; log and caches in `folder`."""
    command = (*SERVE, *arguments)
    return start_backend(Path(sys.executable), log=folder / "backend.log", cache=folder / "cache", command=command)


def request(job_id: str, act: str = "works", **fields: object) -> protocol.Reconstruct:
    """A small valid job."""
    return protocol.Reconstruct(
        job_id,
        images=np.full((2, 4, 6, 4), 200, np.uint8),
        c2w=np.tile(np.eye(4, dtype=np.float32), (2, 1, 1)),
        Ks=np.tile(np.array([[5, 0, 3], [0, 5, 2], [0, 0, 1]], np.float32), (2, 1, 1)),
        orthographic=np.zeros(2, bool),
        weights=act,
        **fields,  # pyright: ignore[reportArgumentType]
    )


def splats(job_id: str, count: int, degree: int = 0) -> protocol.Splats:
    values = np.random.default_rng(0).random((count, 3), np.float32)
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    sh = np.zeros((count, (degree + 1) ** 2, 3), np.float32)
    return protocol.Splats(job_id, values, quats, values, values[:, 0].copy(), sh)


def works(job: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
    """Three steps, a preview, some splats and a mesh if wanted."""
    for step in range(3):
        monitor.progress("Fit", step, 3)
    monitor.preview(np.zeros((2, 3, 4), np.uint8))
    yield splats(job.job_id, 10)
    if job.mesh:
        triangle = np.array([[0, 1, 2]], np.int32)
        corners = np.zeros((3, 3), np.float32)
        yield protocol.TexturedMesh(
            job.job_id, corners, triangle, np.zeros((3, 2), np.float32), np.zeros((4, 4, 4), np.uint8)
        )
    yield protocol.Done(job.job_id, {"psnr": 30.0, "pid": os.getpid()})


def huge(job: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
    """A million splats of degree `steps`."""
    result = splats(job.job_id, 1_000_000, job.steps)
    monitor.progress("Fit", 1, 1)
    yield result
    yield protocol.Done(job.job_id, {})


def patient(job: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
    """Works until it is cancelled or told to finish."""
    step = 0
    while not monitor.finish_early():
        monitor.progress("Fit", step, 1_000_000)
        step += 1
        time.sleep(0.01)
    yield splats(job.job_id, 1)
    yield protocol.Done(job.job_id, {"stopped_early": True})


def deaf(job: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
    """Computes for a minute without ever looking up."""
    monitor.progress("Fit", 1, 100)
    time.sleep(60)
    yield protocol.Done(job.job_id, {})


def killed(job: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
    """As when the system is out of memory: no word, just gone."""
    monitor.progress("Fit", 1, 100)
    time.sleep(0.1)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    yield protocol.Done(job.job_id, {})


def crashed(job: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
    del job, monitor
    os._exit(7)
    yield


def _raises(error: Exception) -> Act:
    def act(job: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
        del job, monitor
        raise error
        yield

    return act


ACTS: dict[str, Act] = {
    "works": works,
    "huge": huge,
    "patient": patient,
    "deaf": deaf,
    "killed": killed,
    "crashed": crashed,
    "out_of_memory": _raises(MemoryError()),
    "disk_full": _raises(OSError(errno.ENOSPC, "No space left on device")),
    "internal": _raises(KeyError("a bug")),
}


def imagines(job: protocol.Imagine, monitor: Monitor) -> Iterator[protocol.Message]:
    """A step and two grey views for each candidate."""
    for candidate in range(job.candidates):
        monitor.progress("views", candidate, job.candidates)
        cameras = request(job.job_id)
        yield protocol.Imagined(
            job.job_id, cameras.images, cameras.c2w, cameras.Ks, cameras.orthographic, candidate, job.seed + candidate
        )
    yield protocol.Done(job.job_id, {"front_end": job.front_end})


def run(job: Job, monitor: Monitor) -> Iterable[protocol.Message]:
    match job:
        case protocol.Reconstruct():
            return ACTS[job.weights](job, monitor)
        case protocol.Imagine():
            return ACTS[job.weights](request(job.job_id), monitor) if job.weights in ACTS else imagines(job, monitor)
        case protocol.CutOut():
            shown = protocol.Preview(job.job_id, np.zeros((2, 3, 4), np.uint8))
            return [shown, protocol.Done(job.job_id, {})]


def describe() -> protocol.Welcome:
    return protocol.Welcome(protocol.VERSION, "cpu", "fake", 1, ("fit",), ("starter",))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("serve", "worker", "stillborn"))
    parser.add_argument("--endpoint-file", type=Path)
    parser.add_argument("--idle-seconds", type=float, default=300.0)
    parser.add_argument("--worker", default="worker")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s: %(message)s")
    match given.role:
        case "serve":
            worker = (sys.executable, "-m", "tests.fakes", given.worker)
            serve(given.endpoint_file, worker=worker, idle_seconds=given.idle_seconds)
        case "worker":
            work(run, describe)
        case "stillborn":
            sys.exit(3)


if __name__ == "__main__":
    main()
