"""The process that runs jobs, one at a time. It may die of any of them: the server starts another.

Its first line of standard input says where the server listens; it leaves when standard input closes.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from backend.monitor import JobCancelled, Monitor
from blender_addon import protocol
from blender_addon.client import Client

if TYPE_CHECKING:
    from backend.samplers import Samplers

log = logging.getLogger(__name__)

Job: TypeAlias = protocol.Reconstruct | protocol.Imagine | protocol.CutOut
Run: TypeAlias = Callable[[Job, Monitor], Iterable[protocol.Message]]

PROGRESS_SECONDS = 0.05  # between two messages about the same stage
PREVIEW_SECONDS = 0.5

# Exception classes by name, so that telling a failure imports nothing. The nearest class in the inheritance counts.
KINDS: dict[str, protocol.FailureKind] = {
    "builtins.Exception": "internal",
    "builtins.MemoryError": "out_of_memory",
    "torch.OutOfMemoryError": "out_of_memory",
    "backend.bad_input.BadInput": "bad_request",
    "backend.weights.WeightsMissing": "missing_weights",
    "backend.hub.TransferError": "missing_weights",
    "backend.safe_pickle.Malformed": "bad_request",
    "backend.safe_pickle.Refused": "bad_request",
    "backend.hull.NothingSeen": "nothing_seen",
    "blender_addon.ply.PlyError": "bad_request",
    "blender_addon.protocol.ProtocolError": "internal",  # a result that does not fit its own declaration
}
# Rough shares of a job's time by stage, in the order they come, for one bar that never runs backwards.
FIT_SHARES = {"depth": 15.0, "shape": 20.0, "fit": 60.0}
NETWORK_SHARES = {"load": 10.0, "network": 50.0}
REFINE_SHARES = {"fit": 240.0}
MESH_SHARES = {"Mesh": 10.0, "Texture": 15.0}
IMAGINE_SHARES = {"picture": 5.0, "load": 20.0, "views": 75.0}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "out of memory")


def kind_of(error: BaseException) -> protocol.FailureKind:
    """The kind of failure an exception is; the one place where this is decided."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "disk_full"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS):
        return "out_of_memory"  # how torch's CPU allocator and CUDA libraries say it
    for ancestor in type(error).__mro__:
        name = f"{ancestor.__module__}.{ancestor.__qualname__}"
        if name in KINDS:
            return KINDS[name]
    return "internal"


def failure_of(job_id: str, error: Exception) -> protocol.Failed:
    detail = "".join(traceback.format_exception(error))
    return protocol.Failed(job_id, kind_of(error), str(error) or type(error).__name__, detail[-100_000:])


class JobMonitor:
    """Carries a job's progress to its client, and the client's wish to cancel or finish to the job."""

    def __init__(self, client: Client, job_id: str, shares: Mapping[str, float]) -> None:
        self._client = client
        self._job_id = job_id
        self._shares = dict(shares)
        self._seen: set[str] = set()
        self._fraction = 0.0
        self._finish = False
        self._stage = ""
        self._told_at = 0.0
        self._pictured_at = 0.0

    def progress(self, stage: str, step: int, total: int) -> None:
        self._listen()
        self._advance(stage, step / max(total, 1))
        now = time.monotonic()
        if stage != self._stage or step >= total or now - self._told_at > PROGRESS_SECONDS:
            self._stage, self._told_at = stage, now
            self._client.send(protocol.Progress(self._job_id, stage, step, total, self._fraction))

    def preview(self, image: np.ndarray) -> None:
        now = time.monotonic()
        if now - self._pictured_at > PREVIEW_SECONDS:
            self._pictured_at = now
            self._client.send(protocol.Preview(self._job_id, image))

    def finish_early(self) -> bool:
        self._listen()
        return self._finish

    def _advance(self, stage: str, done: float) -> None:
        """Moves the whole job's fraction; a stage without a share leaves it where it is."""
        if stage not in self._shares:
            return
        names = list(self._shares)
        skipped = set(names[: names.index(stage)]) - self._seen  # such as the search for a start that was given
        self._shares = {name: share for name, share in self._shares.items() if name not in skipped}
        self._seen.add(stage)
        names, shares = list(self._shares), list(self._shares.values())
        begin = sum(shares[: names.index(stage)])
        fraction = (begin + self._shares[stage] * min(done, 1.0)) / sum(shares)
        self._fraction = max(self._fraction, fraction)

    def _listen(self) -> None:
        for message in self._client.poll():
            match message:
                case protocol.Cancel(job_id=self._job_id):
                    raise JobCancelled
                case protocol.Finish(job_id=self._job_id):
                    self._finish = True
                case _:
                    log.warning("ignored while a job runs: %s", type(message).__name__)


def shares_of(request: Job) -> dict[str, float]:
    """The stages that a job will have, with their shares."""
    if not isinstance(request, protocol.Reconstruct):
        return IMAGINE_SHARES
    shares = FIT_SHARES if request.model == "fit" else NETWORK_SHARES | (REFINE_SHARES if request.refine else {})
    return shares | MESH_SHARES if request.mesh else shares


def run_job(client: Client, request: Job, run: Run) -> None:
    """Runs one job; whatever becomes of it, the client hears exactly one of Done, Failed and Cancelled."""
    try:
        for message in run(request, JobMonitor(client, request.job_id, shares_of(request))):
            client.send(message)
    except JobCancelled:
        client.send(protocol.Cancelled(request.job_id))
    except Exception as error:  # the place where all failures of jobs end
        log.exception("job %s failed", request.job_id)
        client.send(failure_of(request.job_id, error))
    _free_memory()


def _free_memory() -> None:
    """Hands the device's memory back, so that Blender can render between two jobs."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def work(run: Run, describe: Callable[[], protocol.Welcome]) -> None:
    """The worker's life: connect, say what this machine is, run jobs until told to leave."""
    address = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_server, daemon=True).start()
    client = Client(address["endpoint"])
    client.send(protocol.Hello(protocol.VERSION, address["token"]))
    client.send(describe())
    while True:
        client.wait(60)
        match client.receive():  # one at a time: what comes behind a job is for the job's own monitor to hear
            case None:
                continue
            case protocol.Reconstruct() | protocol.Imagine() | protocol.CutOut() as request:
                run_job(client, request, run)
            case protocol.Shutdown():
                return
            case message:  # a Cancel that crossed the job's end
                log.info("ignored: %s", type(message).__name__)


def _leave_with_server() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


# ---- the real work; torch is imported here, not before


def describe_device() -> protocol.Welcome:
    """What jobs run on when they ask for `auto`."""
    import torch

    from backend.pipelines import MODELS
    from backend.weights import front_ends_here

    can = (MODELS, front_ends_here())
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return protocol.Welcome(protocol.VERSION, "cuda", properties.name, properties.total_memory, *can)
    return protocol.Welcome(protocol.VERSION, "cpu", f"{os.cpu_count()} processor cores", memory_bytes(), *can)


def memory_bytes() -> int:
    """This machine's main memory, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


class Desk:
    """Answers the jobs, and holds between them the diffusion model that was used last."""

    def __init__(self) -> None:
        self._samplers: Samplers | None = None

    def __call__(self, job: Job, monitor: Monitor) -> Iterable[protocol.Message]:
        match job:
            case protocol.Reconstruct():
                if self._samplers is not None:
                    self._samplers.make_room()
                return reconstruct(job, monitor)
            case protocol.Imagine():
                return imagine(job, monitor, self._holder())
            case protocol.CutOut():
                return cut_out(job)

    def _holder(self) -> Samplers:
        from backend.samplers import Samplers

        self._samplers = self._samplers or Samplers()
        return self._samplers


def reconstruct(request: protocol.Reconstruct, monitor: Monitor) -> Iterator[protocol.Message]:
    """The messages that are the answer to a Reconstruct."""
    from backend import pipelines, ply

    views, options = pipelines.read_request(request)
    result = pipelines.reconstruct(views, options, monitor)
    splats = ply.to_arrays(result.gaussians)
    yield protocol.Splats(request.job_id, *splats)
    if result.mesh is not None:
        mesh = result.mesh
        yield protocol.TexturedMesh(request.job_id, mesh.vertices, mesh.faces, mesh.uvs, mesh.texture)
    yield protocol.Done(request.job_id, result.report)


def imagine(request: protocol.Imagine, monitor: Monitor, samplers: Samplers) -> Iterator[protocol.Message]:
    """The messages that are the answer to an Imagine: each candidate as soon as it is there."""
    from backend import imagine

    reports = []
    for candidate in imagine.imagine(imagine.read_request(request), monitor, samplers):
        cameras = candidate.views.cameras
        yield protocol.Imagined(
            request.job_id,
            images=(candidate.views.images * 255).round().byte().numpy(),
            c2w=cameras.c2w.numpy(),
            Ks=cameras.Ks.numpy(),
            orthographic=cameras.orthographic.numpy(),
            candidate=candidate.number,
            seed=candidate.seed,
        )
        reports.append(candidate.report)
    yield protocol.Done(request.job_id, imagine.summary(reports))


def cut_out(request: protocol.CutOut) -> Iterator[protocol.Message]:
    """The messages that are the answer to a CutOut."""
    from backend import imagine

    yield protocol.Preview(
        request.job_id, imagine.cut_preview(request.picture.tobytes(), request.picture_name, request.cut)
    )
    yield protocol.Done(request.job_id, {})
