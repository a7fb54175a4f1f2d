"""The Python environment the backend runs in: made by *Set Up Backend*, or one that exists and is checked. No bpy.

The environment lies outside the extension's folder, which is replaced on update. Downloads are the caller's to allow.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from . import install_packages, protocol
from .backend_process import SOURCE, clean_environment
from .child import Child

Accelerator: TypeAlias = Literal["auto", "cpu", "cuda", "apple"]

REQUIREMENTS = SOURCE / "backend" / "requirements"
PYTHONS = ((3, 13), (3, 12), (3, 11))  # for which every locked package has a wheel
CHECKED = (
    "torch",
    "numpy",
    "numba",
    "pyzmq",
    "scipy",
    "scikit-image",
    "pillow",
    "trimesh",
    "xatlas",
    "fast-simplification",
    "safetensors",
    "huggingface-hub",
    "pyyaml",
    "psutil",
)
CHECK_SECONDS = 60
GIB = 2**30

# Requirements file by system and accelerator, with what it takes: GiB to download, GiB on the disk.
KITS: dict[tuple[str, str], tuple[str, float, float]] = {
    ("linux", "cpu"): ("linux-cpu.txt", 3.2, 8.4),  # as from the default index; with torch's CPU index 0.6 and 2.0
    ("linux", "cuda"): ("linux-cuda.txt", 3.2, 8.4),
    ("windows", "cpu"): ("windows-cpu.txt", 0.6, 2.4),
    ("windows", "cuda"): ("windows-cuda.txt", 3.0, 7.4),
    ("darwin", "apple"): ("macos.txt", 0.5, 2.0),
}

# Told to the environment's Python; it prints one line of JSON. Run where both packages lie, as the backend will be.
CHECK = """
import importlib.metadata, json, sys
versions = {}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = ""
try:
    from blender_addon.protocol import VERSION
except ImportError:
    VERSION = 0
sys.stdout.write(json.dumps({"python": list(sys.version_info[:2]), "versions": versions, "protocol": VERSION}))
"""


class SetupError(Exception):
    """Why a setup cannot begin, in one plain sentence with what to do."""


@dataclass(frozen=True)
class EnvironmentReport:
    """What an environment's Python has. `problem` is empty when the backend can run with it."""

    python: str
    versions: dict[str, str]
    protocol: int
    problem: str

    @property
    def usable(self) -> bool:
        return not self.problem


def python_of(folder: Path) -> Path:
    """Where the Python of an environment in `folder` is, or would be."""
    return install_packages.python_of(folder)


def choose_accelerator(wanted: Accelerator = "auto") -> str:
    """The accelerator that `auto` means on this machine."""
    if wanted != "auto":
        return wanted
    if sys.platform == "darwin":
        return "apple"
    return "cuda" if has_nvidia_driver() else "cpu"


def has_nvidia_driver() -> bool:
    """Whether the system has NVIDIA's driver, without starting anything."""
    if sys.platform == "win32":
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").is_file()
    return Path("/proc/driver/nvidia/version").exists()


def describe_needs(wanted: Accelerator) -> str:
    """What a setup takes, as a sentence; or why there is none for this system."""
    try:
        _, download, disk = _kit(wanted)
    except SetupError as error:
        return str(error)
    return f"Downloads about {download:g} GB of packages; they take {disk:g} GB on the disk"


def is_complete(folder: Path, wanted: Accelerator = "auto") -> bool:
    """Whether the environment in `folder` has everything that the requirements of this version name."""
    marker = install_packages.read_marker(folder)
    requirements = REQUIREMENTS / _kit(wanted)[0]
    return marker is not None and marker.get("requirements") == install_packages.fingerprint(requirements)


def find_python() -> Path:
    """A Python to make the environment with: the one that runs this if it will do, else one of the system's.

    Raises SetupError when there is none.
    """
    if sys.version_info[:2] in PYTHONS and sys.executable:
        return Path(sys.executable)
    for major, minor in PYTHONS:
        if found := shutil.which(f"python{major}.{minor}"):
            return Path(found)
    known = ", ".join(f"{major}.{minor}" for major, minor in reversed(PYTHONS))
    raise SetupError(f"No Python is found that the backend can use. Install one of Python {known}, then set up again.")


def begin_setup(
    folder: Path,
    *,
    online: bool,
    accelerator: Accelerator = "auto",
    extra_index: str = "",
    python: Path | None = None,
    cache: Path | None = None,
) -> Child:
    """Starts making or completing the environment in `folder`, in a child process; returns at once.

    online       whether downloads are allowed
    extra_index  address of a second package index, such as torch's own for CUDA on Windows; empty: pip's default alone
    python       the Python to make it with; None: see `find_python`
    cache        the folder for compiled code that the backend will be started with; None: what is compiled is not kept

    Raises SetupError when it cannot begin: not allowed online, no Python, not enough space.
    """
    if not online:
        raise SetupError(
            "Setting up the backend downloads its packages. Allow online access in Blender's preferences first."
        )
    requirements, _, disk = _kit(accelerator)
    if install_packages.read_marker(folder) is None:
        _check_space(folder, disk)
    driver = [
        str(python or find_python()),
        "-I",
        install_packages.__file__,
        str(folder),
        str(REQUIREMENTS / requirements),
    ]
    if extra_index:
        driver += ["--extra-index", extra_index]
    cancelled = "The setup was cancelled; the next one goes on where it was."
    try:
        return Child(driver, cancelled=cancelled, ended=install_packages.FAILURES["failed"], cache=cache)
    except OSError as error:
        raise SetupError(f"The Python {driver[0]} cannot be started: {error.strerror}.") from error


def _kit(wanted: Accelerator) -> tuple[str, float, float]:
    system, accelerator = platform.system().lower(), choose_accelerator(wanted)
    if (system, accelerator) not in KITS:
        raise SetupError(f"There are no packages for {accelerator} on {platform.system()}. Choose another accelerator.")
    return KITS[system, accelerator]


def _check_space(folder: Path, gigabytes: float) -> None:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < gigabytes * GIB:
        raise SetupError(
            f"The environment needs about {gigabytes:g} GB in {folder}, and {free / GIB:.1f} GB are free. "
            "Free some space or choose another folder."
        )


def check_environment(python: Path) -> EnvironmentReport:
    """What the environment of a Python has and lacks; starts it, which takes about half a second."""
    with tempfile.TemporaryDirectory(prefix="gaussmith-check-") as cache:
        try:
            done = subprocess.run(
                [str(python), "-c", CHECK, *CHECKED],
                cwd=SOURCE,
                env=clean_environment(os.environ, Path(cache)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CHECK_SECONDS,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            told = json.loads(done.stdout)
        except OSError as error:
            return EnvironmentReport("", {}, 0, f"{python} cannot be started: {error.strerror}.")
        except subprocess.TimeoutExpired:
            return EnvironmentReport("", {}, 0, f"{python} did not answer within {CHECK_SECONDS} seconds.")
        except ValueError:
            return EnvironmentReport("", {}, 0, f"{python} is not a Python that can run the backend.")
    version = ".".join(map(str, told["python"]))
    return EnvironmentReport(version, told["versions"], told["protocol"], _problem(python, told))


def _problem(python: Path, told: dict[str, Any]) -> str:
    missing = [name for name, version in told["versions"].items() if not version]
    if tuple(told["python"]) < min(PYTHONS):
        return f"{python} is Python {told['python'][0]}.{told['python'][1]}; the backend needs 3.11 or later."
    if missing:
        return f"{python} lacks {', '.join(missing)}. Install them there, or press Set Up Backend."
    if told["protocol"] != protocol.VERSION:
        return f"{python} finds another copy of this program (protocol {told['protocol']}, not {protocol.VERSION})."
    return ""
