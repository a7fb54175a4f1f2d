"""Starts, watches and stops `python -m backend serve`. Never waits for it, needs no port and no thread. No bpy.

Two Blenders never meet: each start has its own process, random token, system-picked port and folder for the answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

SOURCE = Path(__file__).resolve().parents[1]  # the folder that holds both packages
SERVE = ("-m", "backend", "serve")
STOP_SECONDS = 2.0
LOG_DAYS = 14
LOG_TAIL_BYTES = 8_000


def log_file(folder: Path) -> Path:
    """Where this process's backend writes its log: a name of its own in `folder`. Removes logs of two weeks ago."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("backend-*.log"):
        with contextlib.suppress(OSError):  # another Blender may have removed it, or holds it open
            if time.time() - old.stat().st_mtime > LOG_DAYS * 86_400:
                old.unlink()
    return folder / f"backend-{os.getpid()}.log"


def clean_environment(environment: Mapping[str, str], cache: Path) -> dict[str, str]:
    """The environment for the backend: nothing of Blender's Python or of a virtual environment around it.

    cache    a writable folder for compiled code, since the extension's own folder is replaced on update
    """
    foreign = ("PYTHON", "BLENDER_", "VIRTUAL_ENV", "CONDA_", "__PYVENV_")
    kept = {name: value for name, value in environment.items() if not name.upper().startswith(foreign)}
    return kept | {
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
        "NUMBA_CACHE_DIR": str(cache / "numba"),
        "OMP_WAIT_POLICY": "passive",  # threads that wait for work must not take the cores from Blender
    }


def start_backend(
    python: Path,
    *,
    log: Path,
    cache: Path,
    command: Sequence[str] = SERVE,
    variables: Mapping[str, str] | None = None,
) -> BackendProcess:
    """Starts the backend with an environment's Python and returns at once.

    log        the file its output is added to
    command    the arguments of `python`
    variables  of its environment, beside this process's

    Raises OSError when the Python cannot be started or the log cannot be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="gaussmith-"))  # only this user may look inside
    try:
        with log.open("ab") as output:
            output.write(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')} {python}\n".encode())
            output.flush()
            environment = clean_environment(os.environ, cache) | dict(variables or {})
            return BackendProcess(_spawn(python, command, folder, output, environment), folder, log)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _spawn(
    python: Path, command: Sequence[str], folder: Path, log: BinaryIO, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(python), *command, "--endpoint-file", str(folder / "endpoint.json")],
        cwd=SOURCE,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        start_new_session=sys.platform != "win32",  # Ctrl-C in Blender's terminal is Blender's to handle
    )


class BackendProcess:
    """A backend that was started. It leaves when `stop` is called or when this process ends, however that happens."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
        self.token = secrets.token_urlsafe(32)
        self.log = log
        self._process = process
        self._folder = folder
        assert process.stdin is not None
        self._stdin = process.stdin
        with contextlib.suppress(OSError):  # it may have ended already: exit_code() tells
            self._stdin.write(self.token.encode() + b"\n")
            self._stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def endpoint(self) -> str | None:
        """The address it listens on, None as long as it has not told."""
        try:
            return json.loads((self._folder / "endpoint.json").read_text())["endpoint"]
        except FileNotFoundError:
            return None

    def exit_code(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def log_tail(self) -> str:
        """The last lines of its log."""
        return tail(self.log)

    def stop(self) -> None:
        """Ends it, within about two seconds at the worst."""
        with contextlib.suppress(OSError):
            self._stdin.close()  # its sign to leave
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a text file, empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_TAIL_BYTES, 0))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
