"""One DEALER socket that speaks the protocol without ever waiting, so Blender's window stays alive. No bpy."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import zmq

from . import protocol

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Client:
    """A connection to one backend.

    Sending copies the message's arrays once and returns; receiving hands out arrays that live in the socket's own
    memory, so a message of hundreds of megabytes costs no more than a small one. Neither starts a Python thread.
    """

    def __init__(self, endpoint: str) -> None:
        """Connects to `tcp://127.0.0.1:PORT`. Raises ValueError for any address that is not this machine's own."""
        if urlsplit(endpoint).hostname not in LOOPBACK:
            raise ValueError(f"the backend's address must be on this machine, found {endpoint!r}")
        self._socket: zmq.Socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)  # events wait here while Blender is busy; the backend is our own child
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_FRAME_BYTES)  # a larger frame closes the connection
        self._socket.connect(endpoint)

    def send(self, message: protocol.Message) -> None:
        """Queues a message. Raises protocol.ProtocolError when it does not fit its own declaration."""
        frames = protocol.encode(message)
        # copy=True: sending without a copy would make pyzmq start a thread of its own inside Blender
        self._socket.send_multipart(frames, flags=zmq.NOBLOCK, copy=True)

    def poll(self, budget: float = 0.005) -> list[protocol.Message]:
        """The messages that have arrived, as many as `budget` seconds allow, without waiting for any.

        Raises protocol.ProtocolError for one that cannot be read.
        """
        deadline = time.perf_counter() + budget
        messages: list[protocol.Message] = []
        while time.perf_counter() < deadline and (message := self.receive()) is not None:
            messages.append(message)
        return messages

    def receive(self) -> protocol.Message | None:
        """The next message, None when none has arrived. Raises protocol.ProtocolError as `poll`."""
        if not self._socket.poll(0):
            return None
        frames = self._socket.recv_multipart(flags=zmq.NOBLOCK, copy=False)
        return protocol.decode([frame.buffer for frame in frames])

    def wait(self, seconds: float) -> bool:
        """Whether a message is there, after at most `seconds`."""
        return bool(self._socket.poll(round(seconds * 1000)))

    def flush(self, seconds: float) -> None:
        """Closes the connection, giving what was queued at most `seconds` to leave."""
        self._socket.close(linger=round(seconds * 1000))

    def close(self) -> None:
        """Closes the connection; what was not sent yet is dropped."""
        self._socket.close(linger=0)
