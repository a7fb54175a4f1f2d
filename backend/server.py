"""The socket loop: who may talk, which job runs next, and what becomes of a worker that dies. Knows no torch.

    Blender (DEALER) ----> ROUTER `clients` | queue of jobs | ROUTER `workers` <---- worker (DEALER), a child process

Array frames pass through as they came: this process never copies them.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import zmq

from blender_addon import protocol
from blender_addon.atomic_file import replacing

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "backend", "worker")
TICK_MS = 50  # the longest the loop sleeps
CANCEL_SECONDS = 0.7  # what a job gets to stop by itself; then its process is ended, and with it all memory it held
START_SECONDS = 150.0
LAST_WORDS_MS = 200  # what a dead worker's last messages may take to arrive
QUEUE_LIMIT = 32
BURST = 64  # messages taken from one side before the other gets its turn
Frames: TypeAlias = list[zmq.Frame]
Outgoing: TypeAlias = Sequence[zmq.Frame] | Sequence[bytes | memoryview]


@dataclass
class QueuedJob:
    client: bytes
    job_id: str
    frames: Frames
    cancelled_at: float | None = None


@dataclass
class WorkerProcess:
    """The child that runs jobs. `identity` is empty until it has connected, `job` None while it has nothing to do."""

    process: subprocess.Popen[bytes]
    token: str
    started_at: float
    identity: bytes = b""
    ready: bool = False
    job: QueuedJob | None = None
    idle_since: float = 0.0


class Server:
    """Jobs of any number of clients, run one at a time by a worker process that is started again when it dies.

    idle_seconds  after which a worker without work is ended, so that its memory and its graphics memory are free
    """

    def __init__(self, token: str, *, worker: Sequence[str] = WORKER, idle_seconds: float = 300.0) -> None:
        """Listens on loopback only, on a port the system picks."""
        context = zmq.Context.instance()
        self._token = token
        self._worker_command = tuple(worker)
        self._idle_seconds = idle_seconds
        self._clients, self.endpoint = _bind(context, protocol.ARRAY_LIMITS["Reconstruct"])
        self._workers, self._worker_endpoint = _bind(context, protocol.MAX_FRAME_BYTES)
        self._poller = zmq.Poller()
        self._poller.register(self._clients, zmq.POLLIN)
        self._poller.register(self._workers, zmq.POLLIN)
        self._known: set[bytes] = set()  # clients that gave the token
        self._greeting: list[bytes] = []  # clients that wait for Welcome
        self._queue: deque[QueuedJob] = deque()
        self._worker: WorkerProcess | None = None
        self._welcome: protocol.Welcome | None = None
        self._leaving = False

    def run(self, stop: threading.Event) -> None:
        """Serves until `stop` is set or a client asks for the end."""
        self._start_worker()  # its Welcome is the answer to every Hello
        try:
            while not stop.is_set() and not self._leaving:
                self.turn()
        finally:
            self._end_worker()
            self._clients.close(linger=200)
            self._workers.close(linger=0)

    def turn(self) -> None:
        """One round: what has arrived, then what time has brought."""
        for socket, _ in self._poller.poll(TICK_MS):
            if socket is self._clients:
                self._hear_clients()
            else:
                self._hear_worker()
        self._watch_worker()
        self._hand_out()

    # ---- clients

    def _hear_clients(self) -> None:
        for _ in range(BURST):
            if not self._clients.poll(0):
                return
            client, *frames = self._clients.recv_multipart(copy=False)
            try:
                message = protocol.decode([frame.buffer for frame in frames])
            except protocol.ProtocolError as error:
                self._tell(client.bytes, protocol.Refused(str(error), job_id=error.job_id))
                continue
            self._hear_client(client.bytes, message, frames)

    def _hear_client(self, client: bytes, message: protocol.Message, frames: Frames) -> None:
        if isinstance(message, protocol.Hello):
            self._greet(client, message)
            return
        if client not in self._known:
            self._tell(client, protocol.Refused("say Hello with the token first"))
            return
        match message:
            case protocol.Reconstruct() | protocol.Imagine() | protocol.CutOut():
                self._enqueue(QueuedJob(client, message.job_id, frames))
            case protocol.Cancel():
                self._cancel(client, message.job_id)
            case protocol.Finish():
                if self._runs(client, message.job_id):
                    self._tell_worker(frames)
            case protocol.Shutdown():
                self._leaving = True
            case _:
                self._tell(client, protocol.Refused(f"{type(message).__name__} is the backend's to send"))

    def _greet(self, client: bytes, hello: protocol.Hello) -> None:
        if not _same(hello.token, self._token):
            self._tell(client, protocol.Refused("the token is wrong: this backend was started by another program"))
            return
        self._known.add(client)
        if self._welcome is not None:
            self._tell(client, self._welcome)
            return
        self._greeting.append(client)
        if self._worker is None:
            self._start_worker()

    def _enqueue(self, job: QueuedJob) -> None:
        jobs = [*self._queue, *([self._worker.job] if self._worker and self._worker.job else [])]
        if any((job.client, job.job_id) == (other.client, other.job_id) for other in jobs):
            self._tell(job.client, protocol.Refused(f"the job {job.job_id!r} is here already"))
        elif len(self._queue) >= QUEUE_LIMIT:
            self._tell(job.client, protocol.Refused(f"{QUEUE_LIMIT} jobs wait already", job_id=job.job_id))
        else:
            self._queue.append(job)
            self._tell(job.client, protocol.Queued(job.job_id, len(self._queue) - 1))

    def _cancel(self, client: bytes, job_id: str) -> None:
        for job in self._queue:
            if (job.client, job.job_id) == (client, job_id):
                self._queue.remove(job)
                self._tell(client, protocol.Cancelled(job_id))
                self._tell_positions()
                return
        if self._worker and self._worker.job and self._runs(client, job_id) and not self._worker.job.cancelled_at:
            self._worker.job.cancelled_at = time.monotonic()
            self._tell_worker(protocol.encode(protocol.Cancel(job_id)))

    def _runs(self, client: bytes, job_id: str) -> bool:
        job = self._worker.job if self._worker else None
        return job is not None and (job.client, job.job_id) == (client, job_id)

    def _tell(self, client: bytes, message: protocol.Message) -> None:
        self._pass_on(client, protocol.encode(message))

    def _pass_on(self, client: bytes, frames: Outgoing) -> None:
        """Sends frames to a client; one that has gone loses its jobs."""
        try:
            self._clients.send_multipart([client, *frames], flags=zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            log.info("a client has gone: %s", error)
            self._forget(client)

    def _forget(self, client: bytes) -> None:
        self._known.discard(client)
        self._queue = deque(job for job in self._queue if job.client != client)
        if self._worker and self._worker.job and self._worker.job.client == client:
            self._end_worker()

    # ---- the worker

    def _start_worker(self) -> None:
        token = secrets.token_urlsafe(32)
        try:
            process = subprocess.Popen(
                self._worker_command,
                stdin=subprocess.PIPE,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            log.error("the worker cannot be started: %s", error)
            self._give_up_start(f"its worker process cannot be started: {error}")
            return
        assert process.stdin is not None
        self._worker = WorkerProcess(process, token, time.monotonic())
        try:
            process.stdin.write(json.dumps({"endpoint": self._worker_endpoint, "token": token}).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            log.warning("the worker ended before it could be told its address")  # _watch_worker deals with it

    def _end_worker(self) -> None:
        """Ends the worker's process at once; what it held is free when this returns."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.process.kill()
            worker.process.wait()
            assert worker.process.stdin is not None
            worker.process.stdin.close()

    def _tell_worker(self, frames: Outgoing) -> None:
        assert self._worker is not None
        try:
            self._workers.send_multipart([self._worker.identity, *frames], flags=zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            log.warning("the worker cannot be reached: %s", error)  # _watch_worker sees its end

    def _hear_worker(self) -> None:
        for _ in range(BURST):
            if not self._workers.poll(0):
                return
            identity, *frames = self._workers.recv_multipart(copy=False)
            if self._worker is None:
                continue
            try:
                message = protocol.decode([frame.buffer for frame in frames])
            except protocol.ProtocolError as error:
                log.error("the worker sent what cannot be read: %s", error)
                continue
            if isinstance(message, protocol.Hello) and _same(message.token, self._worker.token):
                self._worker.identity = identity.bytes
            elif self._worker.identity == identity.bytes:
                self._hear_job(message, frames)

    def _hear_job(self, message: protocol.Message, frames: Frames) -> None:
        assert self._worker is not None
        job = self._worker.job
        if isinstance(message, protocol.Welcome):
            self._worker_is_ready(message)
        elif job is not None and getattr(message, "job_id", None) == job.job_id:
            if isinstance(message, protocol.Done | protocol.Failed | protocol.Cancelled):
                self._worker.job, self._worker.idle_since = None, time.monotonic()
            self._pass_on(job.client, frames)

    def _worker_is_ready(self, welcome: protocol.Welcome) -> None:
        assert self._worker is not None
        self._welcome = welcome
        self._worker.ready, self._worker.idle_since = True, time.monotonic()
        greeting, self._greeting = self._greeting, []
        for client in greeting:
            self._tell(client, welcome)

    def _watch_worker(self) -> None:
        worker = self._worker
        if worker is None:
            return
        now, job = time.monotonic(), worker.job
        if worker.process.poll() is not None:
            self._worker_died()
        elif not worker.ready and now - worker.started_at > START_SECONDS:
            self._end_worker()
            self._give_up_start(f"its worker process did not start within {START_SECONDS:g} seconds")
        elif job is not None and job.cancelled_at is not None and now - job.cancelled_at > CANCEL_SECONDS:
            self._end_worker()
            self._tell(job.client, protocol.Cancelled(job.job_id))
        elif worker.ready and job is None and not self._queue and now - worker.idle_since > self._idle_seconds:
            log.info("no work for %g seconds: the worker is ended", self._idle_seconds)
            self._end_worker()

    def _worker_died(self) -> None:
        worker = self._worker
        assert worker is not None
        if self._workers.poll(LAST_WORDS_MS):
            self._hear_worker()
        code = worker.process.returncode
        self._end_worker()
        log.error("the worker ended with exit status %s", code)
        if not worker.ready:
            self._give_up_start(f"its worker process ended while starting, with exit status {code}")
        elif worker.job is not None:
            self._tell(worker.job.client, _obituary(worker.job, code))

    def _give_up_start(self, sentence: str) -> None:
        """A worker did not come up: whoever waits for it is told, and the next request tries again."""
        greeting, self._greeting = self._greeting, []
        for client in greeting:
            self._known.discard(client)
            self._tell(client, protocol.Refused(sentence))
        if self._queue:
            job = self._queue.popleft()
            self._tell(job.client, protocol.Failed(job.job_id, "worker_died", sentence))

    def _hand_out(self) -> None:
        if not self._queue:
            return
        if self._worker is None:
            self._start_worker()
        elif self._worker.ready and self._worker.job is None:
            job = self._worker.job = self._queue.popleft()
            self._tell_worker(job.frames)
            job.frames = []  # the socket holds them as long as it needs them
            self._tell(job.client, protocol.Progress(job.job_id, "preparing", 0, 1))
            self._tell_positions()

    def _tell_positions(self) -> None:
        for position, job in enumerate(list(self._queue)):
            self._tell(job.client, protocol.Queued(job.job_id, position))


def _obituary(job: QueuedJob, code: int) -> protocol.Failed:
    """What to say of a job whose process is gone. SIGKILL from nobody here is how Linux ends what takes its memory."""
    cause = (
        "the system ended the process that did the work, most likely because memory ran out"
        if code == -9
        else f"the process that did the work ended with exit status {code}"
    )
    return protocol.Failed(job.job_id, "worker_died", cause)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogatepass"), token.encode())


def _bind(context: zmq.Context, frame_limit: int) -> tuple[zmq.Socket, str]:
    """A ROUTER on loopback, on a port the system picks; a peer that sends a larger frame is disconnected unread."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # so that sending to a client that has gone is an error
    socket.setsockopt(zmq.SNDHWM, 0)  # a client that renders for minutes reads its events afterwards
    socket.setsockopt(zmq.MAXMSGSIZE, frame_limit)
    socket.bind("tcp://127.0.0.1:*")
    return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


# ---- the process


def serve(endpoint_file: Path, *, worker: Sequence[str] = WORKER, idle_seconds: float = 300.0) -> None:
    """Serves until standard input, whose first line is the token, closes, or until the parent is gone.

    endpoint_file  gets {"endpoint": "tcp://127.0.0.1:PORT", "pid": ...}. Raises OSError when it cannot be written
    """
    parent = os.getppid()
    token = sys.stdin.buffer.readline().strip().decode()
    stop = threading.Event()
    threading.Thread(target=_watch_parent, args=(parent, stop), daemon=True).start()
    threading.Thread(target=_watch_stdin, args=(stop,), daemon=True).start()
    server = Server(token, worker=worker, idle_seconds=idle_seconds)
    with replacing(endpoint_file) as file:
        file.write(json.dumps({"endpoint": server.endpoint, "pid": os.getpid()}).encode())
    server.run(stop)


def _watch_stdin(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _leave(stop)


def _watch_parent(parent: int, stop: threading.Event) -> None:
    """For a parent that died while another process kept its end of the pipe open. Windows knows no such change."""
    while os.getppid() == parent:
        time.sleep(1)
    _leave(stop)


def _leave(stop: threading.Event) -> None:
    stop.set()
    time.sleep(2)
    os._exit(1)  # the loop hangs, and nobody is left to see it
