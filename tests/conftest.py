"""Fixtures for several test files."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import backend as backend  # before any test imports a library that its settings are for


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `shared` beside the checkout, with golden values and benchmark data."""
    folder = Path(__file__).resolve().parents[1] / "../shared"
    if not folder.is_dir():
        pytest.skip("the folder 'shared' is not beside the checkout")
    return folder


@pytest.fixture
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may leave this machine; an attempt fails where it is made, and the test with it."""
    attempts: list[object] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            attempts.append(address)
            raise OSError(f"the test tried to reach {address}")
        connect(self, address)

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if host is not None and not _is_loopback(host):
            attempts.append(host)
            raise OSError(f"the test tried to find {host}")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    assert not attempts, f"the network was asked for {attempts}"


def _is_loopback(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name == "localhost" or name == "::1" or name.startswith("127.")


@pytest.fixture
def no_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guided network without a coarse grid: what the pixels say, alone."""
    from backend.models import grm_guide

    monkeypatch.setattr(grm_guide, "fitted", lambda *_: None)
