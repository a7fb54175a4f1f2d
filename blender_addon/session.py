"""The backend as Blender sees it: a child process, a socket, a table of jobs, and a state. No bpy, no threads.

Blender's timer calls `pump()`; `blender -b`, where timers do not fire, calls `wait()`.

    STOPPED --start/submit--> STARTING --Welcome--> READY <--jobs--> RUNNING
                                 |                    |                 |
                                 +------ the process ended, or said no -+--> FAILED --start/submit--> STARTING
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from . import protocol
from .client import Client

log = logging.getLogger(__name__)

START_SECONDS = 180.0  # a first start reads gigabytes of libraries, with a virus scanner looking on
CANCEL_SECONDS = 3.0  # the backend answers within one; a backend that does not is ended
BUSY_INTERVAL, READY_INTERVAL, IDLE_INTERVAL = 0.05, 0.5, 1.0  # seconds between two calls of pump

SessionFailureKind: TypeAlias = Literal[protocol.FailureKind, "not_started", "backend_died", "refused"]
JobState: TypeAlias = Literal["starting", "queued", "running", "done", "failed", "cancelled"]
Request: TypeAlias = protocol.Reconstruct | protocol.Imagine | protocol.CutOut

# What a person is told, {message} being the backend's own sentence. The one place for it.
SENTENCES: dict[SessionFailureKind, str] = {
    "bad_request": "{message}",
    "nothing_seen": "{message} Aim the cameras so that each of them sees the whole object.",
    "missing_weights": "{message} Download the model's weights in the preferences.",
    "out_of_memory": "The device ran out of memory. Use fewer or smaller views, fewer splats or another device.",
    "disk_full": "The disk is full. Free some space, then generate again.",
    "worker_died": "{message} Generate again; if it happens again, use fewer or smaller views.",
    "internal": "Something went wrong inside the backend. Copy the details and report them.",
    "not_started": "The backend could not start. {message}",
    "backend_died": "The backend ended unexpectedly. Generate again: it starts afresh.",
    "refused": "The backend and the extension do not go together. {message}",
}


class SessionState(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RUNNING = "running"
    FAILED = "failed"


@dataclass(frozen=True)
class Failure:
    """Why something did not work: `sentence` for the person, `detail` (traceback, log lines) for *Copy details*."""

    kind: SessionFailureKind
    sentence: str
    detail: str = ""


def failure(kind: SessionFailureKind, message: str = "", detail: str = "") -> Failure:
    """The Failure of a kind, with the backend's own words where the kind's sentence has a place for them."""
    ending = "" if message.endswith((".", "!", "?")) or not message else "."
    sentence = SENTENCES[kind].format(message=message[:1].upper() + message[1:] + ending).strip()
    return Failure(kind, sentence, "\n".join(part for part in (message, detail) if part))


@dataclass
class Job:
    """One request, from *Generate* to its result. Read by panels, changed by Session alone."""

    id: str
    label: str
    state: JobState = "starting"
    position: int = 0  # in the backend's queue; 0: runs next
    stage: str = ""
    step: int = 0
    total: int = 0
    fraction: float = 0.0  # 0..1 of the whole job; never goes back
    seconds_left: float | None = None  # None: not known yet
    preview: np.ndarray | None = None  # [H,W,4] uint8, sRGB, straight alpha
    imagined: list[protocol.Imagined] = field(default_factory=list)  # candidates, in the order they came
    splats: protocol.Splats | None = None
    mesh: protocol.TexturedMesh | None = None
    report: dict[str, Any] | None = None
    failure: Failure | None = None
    request: Request | None = field(default=None, repr=False)  # dropped once it is sent
    running_since: float = 0.0
    cancelled_at: float | None = None

    @property
    def active(self) -> bool:
        return self.state in ("starting", "queued", "running")


class Backend(Protocol):
    """A started backend process, as `backend_process.BackendProcess` is."""

    token: str

    def endpoint(self) -> str | None: ...
    def exit_code(self) -> int | None: ...
    def log_tail(self) -> str: ...
    def stop(self) -> None: ...


def new_job_id() -> str:
    return uuid.uuid4().hex


class Session:
    """Owns the backend process, the connection to it and the jobs. Public attributes are for reading.

    state     what the backend is doing
    failure   why the state is FAILED, else None
    welcome   device and models of the running backend, None before it has answered
    """

    def __init__(self, launch: Callable[[], Backend], on_finished: Callable[[Job], None]) -> None:
        """`launch` starts a backend and returns at once (OSError: it cannot be started); `on_finished` is called from
        `pump` with each job that is done, failed or cancelled."""
        self.state = SessionState.STOPPED
        self.failure: Failure | None = None
        self.welcome: protocol.Welcome | None = None
        self._launch = launch
        self._on_finished = on_finished
        self._backend: Backend | None = None
        self._client: Client | None = None
        self._started_at = 0.0
        self._jobs: dict[str, Job] = {}
        self._unreported: list[Job] = []

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Jobs that are not finished, in the order they were submitted."""
        return tuple(job for job in self._jobs.values() if job.active)

    # ---- what a person does

    def start(self) -> None:
        """Starts the backend unless one is starting or running. A failure to do so shows in `state` and `failure`."""
        if self._backend is not None:
            return
        self.failure, self.welcome = None, None
        self.state, self._started_at = SessionState.STARTING, time.monotonic()
        try:
            self._backend = self._launch()
        except OSError as error:
            self._fail(failure("not_started", str(error)))

    def submit(self, request: Request, label: str = "") -> Job:
        """Hands in a job, starting the backend if it is not there. `request.job_id` comes from `new_job_id()`."""
        self._jobs = {job.id: job for job in self._jobs.values() if job.active}
        job = self._jobs[request.job_id] = Job(request.job_id, label, request=request)
        self.start()
        if self.welcome is not None:
            self._send(job)
        return job

    def cancel(self, job_id: str) -> None:
        """Asks for a job's end; within a second it is `cancelled`. Ids of finished or unknown jobs are ignored."""
        job = self._jobs.get(job_id)
        if job is None or not job.active or job.cancelled_at is not None:
            return
        if job.state == "starting" or self._client is None:
            self._finish(job, "cancelled")
        else:
            job.cancelled_at = time.monotonic()
            self._client.send(protocol.Cancel(job_id))

    def finish(self, job_id: str) -> None:
        """Asks a running job to stop optimising and hand over its best result so far."""
        job = self._jobs.get(job_id)
        if job is not None and job.state == "running" and self._client is not None:
            self._client.send(protocol.Finish(job_id))

    def close(self) -> None:
        """Ends the backend; unfinished jobs are cancelled and not reported."""
        for job in self.jobs:
            job.state = "cancelled"
        self._drop_backend()
        self._jobs, self._unreported = {}, []
        self.state, self.failure = SessionState.STOPPED, None

    # ---- what a timer or a script does

    def pump(self) -> float:
        """Takes in what has arrived, in a few milliseconds; returns the seconds until it should be called again."""
        try:  # whatever goes wrong, Blender's timer must live on
            self._take_in()
        except protocol.ProtocolError as error:
            self._fail(failure("refused", str(error)))
        except Exception as error:
            log.exception("the session failed")
            self._fail(failure("internal", repr(error)))
        try:
            while self._unreported:
                self._on_finished(self._unreported.pop(0))
        except Exception:
            log.exception("a finished job could not be taken in")
        if self.state in (SessionState.STARTING, SessionState.RUNNING) or self._unreported:
            return BUSY_INTERVAL
        return READY_INTERVAL if self.state == SessionState.READY else IDLE_INTERVAL

    def wait(self, job_id: str, timeout: float | None = None, on_progress: Callable[[Job], None] | None = None) -> Job:
        """Pumps until the job is finished and reported; for `blender -b`. `on_progress` is called at each change.

        Raises KeyError for a job of another session and TimeoutError, cancelling the job, after `timeout` seconds.
        """
        job = self._jobs[job_id]
        deadline = None if timeout is None else time.monotonic() + timeout
        seen: tuple[object, ...] = ()
        while job.active or job in self._unreported:
            if deadline is not None and time.monotonic() > deadline:
                self.cancel(job_id)
                raise TimeoutError(f"the job did not finish within {timeout:g} seconds")
            pause = self.pump()
            shown = (job.state, job.stage, job.step)
            if on_progress is not None and shown != seen:
                on_progress(job)
            seen = shown
            if job.active:
                self._pause(pause)
        return job

    # ---- inside

    def _pause(self, seconds: float) -> None:
        if self._client is None or not self._client.wait(seconds):
            time.sleep(0 if self._client else seconds)

    def _take_in(self) -> None:
        backend = self._backend
        if backend is None:
            return
        ended = backend.exit_code()  # asked before reading, so that the last words of a dying backend are read
        self._connect(backend)
        if self._client is not None:
            for message in self._client.poll(1.0 if ended is not None else 0.005):
                self._apply(message)
        if self._backend is backend and ended is not None:
            self._lost(ended)
        elif self.state == SessionState.STARTING and time.monotonic() - self._started_at > START_SECONDS:
            self._fail(
                failure("not_started", f"It did not answer within {START_SECONDS:g} seconds.", backend.log_tail())
            )
        elif any(job.cancelled_at and time.monotonic() - job.cancelled_at > CANCEL_SECONDS for job in self.jobs):
            self._fail(failure("backend_died", "it did not answer a cancel", backend.log_tail()))

    def _connect(self, backend: Backend) -> None:
        if self._client is None and (endpoint := backend.endpoint()) is not None:
            self._client = Client(endpoint)
            self._client.send(protocol.Hello(protocol.VERSION, backend.token))

    def _send(self, job: Job) -> None:
        assert self._client is not None and job.request is not None
        try:
            self._client.send(job.request)
        except protocol.ProtocolError as error:
            self._finish(job, "failed", failure("bad_request", str(error)))
            return
        job.state, job.request = "queued", None
        self.state = SessionState.RUNNING

    def _apply(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Welcome):
            self._welcomed(message)
            return
        if isinstance(message, protocol.Refused) and not message.job_id:
            self._fail(failure("refused", message.message))
            return
        job = self._jobs.get(getattr(message, "job_id", ""))
        if job is not None and job.active:
            self._apply_to_job(job, message)

    def _apply_to_job(self, job: Job, message: protocol.Message) -> None:
        match message:
            case protocol.Queued():
                job.position = message.position
            case protocol.Progress():
                self._progress(job, message)
            case protocol.Preview():
                job.preview = message.image
            case protocol.Imagined():
                job.imagined.append(message)
            case protocol.Splats():
                job.splats = message
            case protocol.TexturedMesh():
                job.mesh = message
            case protocol.Done():
                job.report, job.fraction = message.report, 1.0
                self._finish(job, "done")
            case protocol.Cancelled():
                self._finish(job, "cancelled")
            case protocol.Failed():
                self._finish(job, "failed", failure(message.kind, message.message, message.detail))
            case protocol.Refused():
                self._finish(job, "failed", failure("bad_request", message.message))

    def _welcomed(self, welcome: protocol.Welcome) -> None:
        self.welcome, self.state = welcome, SessionState.READY
        for job in self.jobs:
            self._send(job)

    def _progress(self, job: Job, message: protocol.Progress) -> None:
        now = time.monotonic()
        if job.state != "running":
            job.state, job.running_since = "running", now
        job.stage, job.step, job.total = message.stage, message.step, message.total
        job.fraction = max(job.fraction, min(message.fraction, 1.0))
        elapsed = now - job.running_since
        if job.fraction > 0.02 and elapsed > 1:
            job.seconds_left = elapsed * (1 - job.fraction) / job.fraction

    def _finish(self, job: Job, state: JobState, reason: Failure | None = None) -> None:
        job.state, job.failure, job.request, job.seconds_left = state, reason, None, None
        self._unreported.append(job)
        if not self.jobs and self.state == SessionState.RUNNING:
            self.state = SessionState.READY

    def _lost(self, code: int) -> None:
        """The process has ended by itself."""
        assert self._backend is not None
        kind = "not_started" if self.welcome is None else "backend_died"
        self._fail(failure(kind, f"Its process ended with exit status {code}.", self._backend.log_tail()))

    def _fail(self, reason: Failure) -> None:
        """Gives the backend up, and with it every unfinished job; the next submit starts another."""
        self._drop_backend()
        self.state, self.failure = SessionState.FAILED, reason
        for job in self.jobs:
            if job.cancelled_at is not None:
                self._finish(job, "cancelled")
            else:
                self._finish(job, "failed", reason)

    def _drop_backend(self) -> None:
        client, self._client = self._client, None
        backend, self._backend = self._backend, None
        self.welcome = None
        if client is not None:
            client.close()
        if backend is not None:
            backend.stop()
