"""Makes the backend's environment. A program of its own, standard library only, run by a plain Python:

    python -I install_packages.py ENVIRONMENT REQUIREMENTS [--extra-index ADDRESS]

It tells what it does as lines of JSON on standard output (stage and fraction, at the end done or a failure) and leaves,
ending what it started, when its standard input closes. What an interrupted run has done is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import venv
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]  # holds the backend
WARM_UP = ("-m", "backend", "warm-up")
MARKER = "gaussmith-environment.json"  # says that the folder is ours, and what was completely installed into it
IMPORTS = (
    "import torch, numba, zmq, numpy, scipy, skimage, PIL, trimesh, xatlas, fast_simplification, rich, safetensors, "
    "huggingface_hub, yaml, psutil"
)
OFFLINE_SIGNS = (
    "NewConnectionError", "NameResolutionError", "getaddrinfo failed", "Name or service not known",
    "Temporary failure in name resolution", "Network is unreachable", "ConnectTimeoutError", "ReadTimeoutError",
    "ProxyError", "No route to host", "ConnectionResetError", "IncompleteRead", "SSLError",
)  # fmt: skip
FULL_SIGNS = ("No space left on device", "not enough space on the disk", "Errno 28")
FAILURES = {
    "offline": "The packages could not be downloaded: there is no connection to the package index. Check the network "
    "and set up again; what is downloaded already is kept.",
    "disk_full": "The disk is full. Free some space and set up again; what is downloaded already is kept.",
    "no_package": "The package index has no matching package for this system and this Python.",
    "no_venv": "This Python cannot make environments. Install its venv package (on Debian and Ubuntu: python3-venv), "
    "or choose another Python.",
    "not_ours": "This folder exists, is not empty and was not made by Gaussmith. Choose another folder.",
    "failed": "The packages could not be installed.",
}


class InstallError(Exception):
    """A failure of a kind in FAILURES; its text is what the failing program said."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail)
        self.kind = kind


def python_of(environment: Path) -> Path:
    """The Python of an environment, where there is one."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint(requirements: Path) -> str:
    """SHA-256 of a requirements file and of the files it includes."""
    digest = hashlib.sha256()
    for line in _lines(requirements):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def read_marker(environment: Path) -> dict[str, str] | None:
    """What was installed there, None when the folder is not ours."""
    try:
        marker = json.loads((environment / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


class Installer:
    """Makes or completes one environment, running one other program at a time."""

    def __init__(
        self,
        environment: Path,
        requirements: Path,
        extra_index: str = "",
        imports: str = IMPORTS,
        warm_up: tuple[str, ...] = (),
    ) -> None:
        """`imports` is the statement that must work in the finished environment; `warm_up` are arguments of its Python
        that have the first job's compiling done at once.
        """
        self._environment = environment
        self._requirements = requirements
        self._extra_index = extra_index
        self._imports = imports
        self._warm_up = warm_up
        self._python = python_of(environment)
        self._child: subprocess.Popen[str] | None = None

    def install(self) -> None:
        """Does what is left to do. Raises InstallError, OSError."""
        version = ".".join(map(str, sys.version_info[:2]))
        goal = {"requirements": fingerprint(self._requirements), "python": version}
        if read_marker(self._environment) == goal and _runs(self._python):
            return
        self._make_environment(version)
        self._install_packages()
        tell("Checking", 0.85)
        self._run([str(self._python), "-I", "-c", self._imports], lambda line: None)
        self._write_marker(goal)
        if self._warm_up:
            tell("Compiling for this processor", 0.9)
            with contextlib.suppress(InstallError):  # the first job compiles then, and says what is wrong
                self._run([str(self._python), *self._warm_up], lambda line: None)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def _make_environment(self, version: str) -> None:
        marker = read_marker(self._environment)
        if marker is None and self._environment.exists() and any(self._environment.iterdir()):
            raise InstallError("not_ours", str(self._environment))
        if marker is not None and (marker.get("python") != version or not _runs(self._python)):
            shutil.rmtree(self._environment)  # of another Python, or broken by an interruption
        self._environment.mkdir(parents=True, exist_ok=True)
        self._write_marker({"requirements": "", "python": version})
        tell("Creating the environment", 0.0)  # from here on a cancelled setup can be gone on with
        if _runs(self._python):
            return
        try:
            venv.create(self._environment, with_pip=True, symlinks=os.name != "nt")
        except subprocess.CalledProcessError as error:
            raise InstallError("no_venv", str(error.output or error)) from error

    def _install_packages(self) -> None:
        command = [str(self._python), "-I", "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--no-deps", "-r", str(self._requirements)]
        if self._extra_index:
            command += ["--extra-index-url", self._extra_index]
        self._run(command, PipReader(sum("==" in line for line in _lines(self._requirements))).read)

    def _run(self, command: list[str], read: Callable[[str], None]) -> None:
        """Runs a program to its end, giving each line it prints to `read`. Raises InstallError."""
        said: deque[str] = deque(maxlen=60)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=SOURCE,
        ) as self._child:
            assert self._child.stdout is not None
            for line in self._child.stdout:
                said.append(line)
                read(line)
        if self._child.returncode != 0:
            raise InstallError(kind_of("".join(said)), "".join(said))

    def _write_marker(self, marker: dict[str, str]) -> None:
        (self._environment / MARKER).write_text(json.dumps(marker), encoding="utf-8")


def _runs(python: Path) -> bool:
    """Whether an environment's Python starts and has pip."""
    with contextlib.suppress(OSError):
        return subprocess.run([str(python), "-I", "-m", "pip", "--version"], capture_output=True).returncode == 0
    return False


class PipReader:
    """Turns what pip prints into stages and fractions."""

    def __init__(self, packages: int) -> None:
        self._packages = max(packages, 1)
        self._seen = 0

    def read(self, line: str) -> None:
        collecting = re.match(r"\s*(?:Collecting|Requirement already satisfied:) ([\w.-]+)", line)
        downloading = re.match(r"\s*(?:Downloading|Using cached) (\S+?)-\d\S* \((.+)\)", line)
        if collecting:
            self._seen += 1
            tell(f"Finding {collecting[1]}", self._fraction())
        elif downloading:
            tell(f"Downloading {downloading[1].rsplit('/', 1)[-1]} ({downloading[2]})", self._fraction())
        elif line.startswith("Installing collected packages"):
            tell("Installing", 0.8)

    def _fraction(self) -> float:
        return 0.05 + 0.75 * min(self._seen / self._packages, 1.0)


def kind_of(text: str) -> str:
    if any(sign in text for sign in FULL_SIGNS):
        return "disk_full"
    if any(sign in text for sign in OFFLINE_SIGNS):
        return "offline"
    return "no_package" if "No matching distribution" in text else "failed"


def _lines(requirements: Path) -> Iterable[str]:
    """The lines that say something, of the file and of those it includes."""
    for line in requirements.read_text(encoding="utf-8").splitlines():
        said = line.split("#")[0].strip()
        if said.startswith("-r "):
            yield from _lines(requirements.parent / said[3:].strip())
        elif said:
            yield said


def tell(stage: str, fraction: float) -> None:
    _say({"stage": stage, "fraction": round(fraction, 3)})


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _leave_with_parent(installer: Installer) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    installer.kill()
    os._exit(3)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("environment", type=Path)
    parser.add_argument("requirements", type=Path)
    parser.add_argument("--extra-index", default="")
    given = parser.parse_args()
    installer = Installer(given.environment, given.requirements, given.extra_index, warm_up=WARM_UP)
    threading.Thread(target=_leave_with_parent, args=(installer,), daemon=True).start()
    try:
        installer.install()
    except (InstallError, OSError) as error:
        kind = (
            error.kind if isinstance(error, InstallError) else "disk_full" if error.errno == errno.ENOSPC else "failed"
        )
        _say({"failure": kind, "sentence": FAILURES[kind], "detail": str(error)})
        return 1
    _say({"done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
