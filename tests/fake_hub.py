"""A model hub on loopback: it speaks as much of the hub's protocol as fetching a file needs."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c" * 40
PIECE = 1_000_000  # bytes


@dataclass
class FakeHub:
    """What the hub holds and how it behaves; a test may change both while it runs.

    files      contents by `owner/name/file`
    large      files that are told with a SHA-256; the others have git's SHA-1
    breaks     how many bytes an answer has before the connection is lost; None: all
    pause      seconds between two pieces of an answer
    refuses    status and error code that every request is answered with
    lies       bytes that are sent in the place of a file's own
    requests   what was asked for: method, file, Range header, Authorization header
    """

    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    breaks: int | None = None
    pause: float = 0.0
    refuses: tuple[int, str] | None = None
    lies: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    address: str = ""

    def put(self, repository: str, file: str, content: bytes, *, large: bool = True) -> None:
        name = f"{repository}/{file}"
        self.files[name] = content
        (self.large.add if large else self.large.discard)(name)

    def digest(self, name: str) -> str:
        content = self.files[name]
        if name in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        repository, _, rest = unquote(self.path).lstrip("/").partition("/resolve/")
        name = f"{repository}/{rest.partition('/')[2]}"
        asked, login = self.headers.get("Range", ""), self.headers.get("Authorization", "")
        self.hub.requests.append((self.command, name, asked, login))
        if self.hub.refuses is not None:
            self._refuse(*self.hub.refuses)
        elif name not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(name, asked, send=send)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, name: str, asked: str, *, send: bool) -> None:
        whole = self.hub.lies.get(name, self.hub.files[name])
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        content = whole[begin:]
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag" if name in self.hub.large else "ETag", f'"{self.hub.digest(name)}"')
        self.send_header("X-Linked-Size", str(len(whole)))
        self.send_header("Content-Length", str(len(content)))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        if send:
            self._write(content[: self.hub.breaks])
            self.close_connection = self.hub.breaks is not None

    def _write(self, content: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # a client that has left
            for start in range(0, len(content), PIECE):
                self.wfile.write(content[start : start + PIECE])
                time.sleep(self.hub.pause)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextlib.contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Runs the hub until the block ends; `hub.address` is its endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
