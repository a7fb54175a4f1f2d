"""The client never waits, never copies what it receives, and talks to this machine alone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import zmq

from blender_addon import protocol
from blender_addon.client import Client
from tests.fakes import ROOT, request


@pytest.fixture
def router():
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 5000)
    socket.bind("tcp://127.0.0.1:*")
    yield socket
    socket.close()


@pytest.fixture
def client(router):
    made = Client(router.getsockopt_string(zmq.LAST_ENDPOINT))
    yield made
    made.close()


def greet(client: Client, router: zmq.Socket) -> bytes:
    client.send(protocol.Hello(1, "token"))
    identity, *frames = router.recv_multipart()
    assert protocol.decode(frames) == protocol.Hello(1, "token")
    return identity


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:5555", "tcp://0.0.0.0:1", "tcp://example.org:80", "nonsense"])
def test_only_this_machine(endpoint):
    with pytest.raises(ValueError, match="must be on this machine"):
        Client(endpoint)


def test_messages_go_both_ways(client, router):
    identity = greet(client, router)
    for step in range(3):
        router.send_multipart([identity, *protocol.encode(protocol.Progress("job", "Fit", step, 3))])
    assert client.wait(5)
    time.sleep(0.05)
    assert [message.step for message in client.poll()] == [0, 1, 2]


def test_polling_does_not_wait(client):
    start = time.perf_counter()
    assert client.poll() == []
    assert time.perf_counter() - start < 0.02


def test_polling_keeps_to_its_budget(client, router):
    identity = greet(client, router)
    for step in range(20_000):
        router.send_multipart([identity, *protocol.encode(protocol.Progress("job", "Fit", step, 20_000))])
    assert client.wait(5)
    time.sleep(0.2)
    first = client.poll(budget=0.002)
    assert 0 < len(first) < 20_000


def test_unreadable_messages_are_an_error(client, router):
    identity = greet(client, router)
    router.send_multipart([identity, b"{}"])
    assert client.wait(5)
    with pytest.raises(protocol.ProtocolError, match="no object with a version"):
        client.poll()


def test_a_connection_without_a_listener_is_only_silent():
    client = Client("tcp://127.0.0.1:9")
    client.send(request("job"))
    assert not client.wait(0.05) and client.poll() == []
    client.close()


def test_no_python_thread_is_started():
    """Threads of Python are what makes Blender crash; sending large arrays must not start one either."""
    script = """
import threading, numpy as np
from blender_addon import protocol
from blender_addon.client import Client
client = Client("tcp://127.0.0.1:9")
client.send(protocol.Preview("job", np.zeros((1000, 1000, 4), np.uint8)))
client.poll()
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
client.close()
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=30)
