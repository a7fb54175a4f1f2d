"""The server over real sockets with real child processes: who is heard, in which order, and what survives."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from blender_addon import protocol
from blender_addon.backend_process import BackendProcess
from blender_addon.client import Client
from tests import fakes


class Peer:
    """A client that remembers what it heard."""

    def __init__(self, backend: BackendProcess, token: str | None = None) -> None:
        endpoint = wait_for(backend.endpoint)
        self.client = Client(endpoint)
        self.heard: list[protocol.Message] = []
        self.client.send(protocol.Hello(protocol.VERSION, backend.token if token is None else token))

    def until(self, condition: Callable[[protocol.Message], bool], seconds: float = fakes.DEADLINE) -> protocol.Message:
        """Listens until a message is as wanted, among those already heard too."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in self.heard:
                if condition(message):
                    return message
            if self.client.wait(0.1):
                self.heard += self.client.poll()
        raise AssertionError(f"not heard within {seconds} s, only {[type(message).__name__ for message in self.heard]}")

    def until_type(self, message: type, job_id: str | None = None) -> protocol.Message:
        return self.until(lambda one: isinstance(one, message) and job_id in (None, getattr(one, "job_id", None)))

    def ended(self, job_id: str) -> protocol.Message:
        def ends(one: protocol.Message) -> bool:
            return isinstance(one, protocol.Done | protocol.Failed | protocol.Cancelled) and one.job_id == job_id

        return self.until(ends)

    def of_job(self, job_id: str) -> list[str]:
        return [type(message).__name__ for message in self.heard if getattr(message, "job_id", None) == job_id]


def wait_for(what: Callable[[], str | None], seconds: float = fakes.DEADLINE) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := what()) is not None:
            return found
        time.sleep(0.02)
    raise AssertionError("nothing came")


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> Iterator[BackendProcess]:
    started = fakes.launch(tmp_path_factory.mktemp("backend"))
    yield started
    started.stop()


@pytest.fixture
def peer(backend) -> Iterator[Peer]:
    made = Peer(backend)
    made.until_type(protocol.Welcome)
    yield made
    made.client.close()


def test_it_listens_on_loopback_alone(backend):
    assert wait_for(backend.endpoint).startswith("tcp://127.0.0.1:")


def test_the_events_of_a_job_in_order(peer):
    peer.client.send(fakes.request("a", mesh=True))
    done = peer.ended("a")
    assert isinstance(done, protocol.Done) and done.report["psnr"] == 30.0
    names = peer.of_job("a")
    assert names[0] == "Queued" and names[-3:] == ["Splats", "TexturedMesh", "Done"]
    assert set(names[1:-3]) == {"Progress", "Preview"}


def test_jobs_run_one_after_the_other_and_know_their_place(peer):
    peer.client.send(fakes.request("a", "patient"))
    peer.until_type(protocol.Progress, "a")
    for name in "bc":
        peer.client.send(fakes.request(name, "patient"))
    assert peer.until_type(protocol.Queued, "c") == protocol.Queued("c", 1)
    for name in "abc":
        peer.until(
            lambda one, name=name: isinstance(one, protocol.Progress) and one.stage == "Fit" and one.job_id == name
        )
        assert "Progress" not in peer.of_job("c") or name == "c"
        peer.client.send(protocol.Finish(name))
        assert isinstance(peer.ended(name), protocol.Done)


def test_a_finish_right_behind_its_job_is_not_lost(peer):
    for index in range(5):
        peer.client.send(fakes.request(f"f{index}", "patient"))
        peer.until_type(protocol.Progress, f"f{index}")  # "preparing": the worker may not have read the job yet
        peer.client.send(protocol.Finish(f"f{index}"))
        assert isinstance(peer.ended(f"f{index}"), protocol.Done)


def test_a_queued_job_is_cancelled_where_it_stands(peer):
    peer.client.send(fakes.request("runs", "patient"))
    peer.client.send(fakes.request("waits"))
    peer.until_type(protocol.Queued, "waits")
    peer.client.send(protocol.Cancel("waits"))
    assert isinstance(peer.ended("waits"), protocol.Cancelled)
    peer.client.send(protocol.Cancel("runs"))
    assert isinstance(peer.ended("runs"), protocol.Cancelled)
    assert "Progress" not in peer.of_job("waits")


@pytest.mark.parametrize("act", ["patient", "deaf"])
def test_a_cancel_frees_the_device_within_a_second(peer, act):
    """`deaf` never looks up: its process is ended."""
    peer.client.send(fakes.request(act, act))
    peer.until(lambda one: isinstance(one, protocol.Progress) and one.stage == "Fit")
    start = time.monotonic()
    peer.client.send(protocol.Cancel(act))
    assert isinstance(peer.ended(act), protocol.Cancelled)
    assert time.monotonic() - start < 1.0
    peer.client.send(fakes.request("next"))
    assert isinstance(peer.ended("next"), protocol.Done)


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        ("killed", "worker_died"),
        ("crashed", "worker_died"),
        ("out_of_memory", "out_of_memory"),
        ("disk_full", "disk_full"),
        ("internal", "internal"),
    ],
)
def test_a_job_that_dies_is_told_and_the_next_one_runs(peer, act, kind):
    peer.client.send(fakes.request("dies", act))
    failed = peer.ended("dies")
    assert isinstance(failed, protocol.Failed) and failed.kind == kind and failed.message
    peer.client.send(fakes.request("lives"))
    assert isinstance(peer.ended("lives"), protocol.Done)


def test_two_clients_do_not_hear_each_other(backend, peer):
    other = Peer(backend)
    other.until_type(protocol.Welcome)
    peer.client.send(fakes.request("same id", "patient"))
    peer.until_type(protocol.Progress, "same id")
    other.client.send(protocol.Cancel("same id"))  # not its job
    other.client.send(fakes.request("same id"))
    assert other.until_type(protocol.Queued) == protocol.Queued("same id", 0)
    peer.client.send(protocol.Finish("same id"))
    assert isinstance(peer.ended("same id"), protocol.Done)
    assert isinstance(other.ended("same id"), protocol.Done)
    other.client.close()


def test_a_client_that_leaves_takes_its_jobs_along(backend, peer):
    leaver = Peer(backend)
    leaver.until_type(protocol.Welcome)
    leaver.client.send(fakes.request("left", "patient"))
    leaver.until_type(protocol.Progress, "left")
    leaver.client.close()
    peer.client.send(fakes.request("stays"))
    assert isinstance(peer.ended("stays"), protocol.Done)


def test_a_wrong_token_is_refused(backend, peer):
    stranger = Peer(backend, token="\ud800guess")
    refused = stranger.until_type(protocol.Refused)
    assert isinstance(refused, protocol.Refused) and "token is wrong" in refused.message
    stranger.client.send(fakes.request("no"))
    stranger.until(lambda one: isinstance(one, protocol.Refused) and "Hello" in one.message)
    stranger.client.close()
    peer.client.send(fakes.request("yes"))
    assert isinstance(peer.ended("yes"), protocol.Done)


def raw_socket(backend: BackendProcess) -> zmq.Socket:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.connect(wait_for(backend.endpoint))
    return socket


def test_another_version_hears_both_versions(backend):
    socket = raw_socket(backend)
    header = bytes(protocol.encode(protocol.Hello(1, backend.token))[0])
    socket.send(header.replace(b'"version": %d, "fields"' % protocol.VERSION, b'"version": 99, "fields"'))
    refused = protocol.decode(socket.recv_multipart())
    assert isinstance(refused, protocol.Refused) and refused.version == protocol.VERSION
    assert "version 99" in refused.message and f"version {protocol.VERSION}" in refused.message
    socket.close()


def test_two_hundred_random_and_mutated_messages(backend, peer):
    """None ends the process, each is answered or ignored, and the job after them runs."""
    socket, chance = raw_socket(backend), random.Random(11)
    socket.send_multipart(protocol.encode(protocol.Hello(1, backend.token)))
    assert isinstance(protocol.decode(socket.recv_multipart()), protocol.Welcome)
    for index in range(200):
        if index % 2:
            frames = [chance.randbytes(chance.randint(0, 300)) for _ in range(chance.randint(1, 6))]
        else:
            frames = [bytearray(frame) for frame in protocol.encode(fakes.request(f"m{index}"))]
            frame = chance.choice(frames)
            del frame[chance.randrange(len(frame)) :]
        socket.send_multipart(frames)
    refused = 0
    while refused < 200:
        refused += isinstance(protocol.decode(socket.recv_multipart()), protocol.Refused)
    socket.close()
    assert backend.exit_code() is None
    peer.client.send(fakes.request("after"))
    assert isinstance(peer.ended("after"), protocol.Done)


def test_a_job_that_cannot_be_read_is_refused_by_its_id(backend):
    socket = raw_socket(backend)
    socket.send_multipart(protocol.encode(fakes.request("short"))[:-1])
    refused = protocol.decode(socket.recv_multipart())
    assert isinstance(refused, protocol.Refused) and refused.job_id == "short"
    socket.close()


def test_the_same_job_twice_and_foreign_words(peer):
    peer.client.send(fakes.request("twice", "patient"))
    peer.client.send(fakes.request("twice"))
    peer.until(lambda one: isinstance(one, protocol.Refused) and "here already" in one.message)
    peer.client.send(protocol.Done("twice", {}))
    peer.until(lambda one: isinstance(one, protocol.Refused) and "the backend's to send" in one.message)
    peer.client.send(protocol.Cancel("twice"))
    assert isinstance(peer.ended("twice"), protocol.Cancelled)


def test_a_full_queue_says_so(peer):
    peer.client.send(fakes.request("first", "patient"))
    peer.until_type(protocol.Progress, "first")
    for index in range(33):
        peer.client.send(fakes.request(f"q{index}"))
    refused = peer.until_type(protocol.Refused, "q32")
    assert isinstance(refused, protocol.Refused) and "32 jobs wait already" in refused.message
    for index in range(32):
        peer.client.send(protocol.Cancel(f"q{index}"))
    peer.client.send(protocol.Cancel("first"))
    peer.ended("first")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
def test_an_idle_worker_is_unloaded_and_comes_back(tmp_path):
    backend = fakes.launch(tmp_path, ["--idle-seconds", "0.3"])
    try:
        peer = Peer(backend)
        pids = []
        for name in "ab":
            peer.client.send(fakes.request(name))
            done = peer.ended(name)
            assert isinstance(done, protocol.Done)
            pids.append(done.report["pid"])
            deadline = time.monotonic() + 5
            while alive(pids[-1]) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not alive(pids[-1])
        assert pids[0] != pids[1] and os.getpid() not in pids
        peer.client.close()
    finally:
        backend.stop()


def test_a_worker_that_never_comes_up(tmp_path):
    backend = fakes.launch(tmp_path, ["--worker", "stillborn"])
    try:
        peer = Peer(backend)
        refused = peer.until_type(protocol.Refused)
        assert isinstance(refused, protocol.Refused) and "exit status 3" in refused.message
        peer.client.close()
    finally:
        backend.stop()


def test_shutdown_ends_it(tmp_path):
    backend = fakes.launch(tmp_path)
    peer = Peer(backend)
    peer.until_type(protocol.Welcome)
    peer.client.send(protocol.Shutdown())
    assert wait_for(lambda: None if backend.exit_code() is None else "ended") == "ended"
    assert backend.exit_code() == 0
    peer.client.close()
    backend.stop()


def test_the_other_jobs_are_jobs_too(peer):
    """They are queued, run, tell how far they are and end, as a reconstruction does; their death is told too."""
    nothing, none = np.zeros(0, np.uint8), np.zeros(0, np.int64)
    peer.client.send(protocol.Imagine("views", nothing, none, prompt="a chair", candidates=2, seed=4))
    peer.client.send(protocol.CutOut("cut", nothing))
    assert isinstance(peer.ended("views"), protocol.Done) and isinstance(peer.ended("cut"), protocol.Done)
    assert set(peer.of_job("views")) == {"Queued", "Progress", "Imagined", "Done"}
    seeds = [one.seed for one in peer.heard if isinstance(one, protocol.Imagined)]
    assert seeds == [4, 5] and "Preview" in peer.of_job("cut")
    peer.client.send(protocol.Imagine("patient", nothing, none, prompt="x", weights="patient"))
    peer.until_type(protocol.Progress, "patient")
    peer.client.send(protocol.Cancel("patient"))
    assert isinstance(peer.ended("patient"), protocol.Cancelled)
    peer.client.send(protocol.Imagine("dies", nothing, none, prompt="x", weights="crashed"))
    dead = peer.ended("dies")
    assert isinstance(dead, protocol.Failed) and dead.kind == "worker_died" and "exit status 7" in dead.message
