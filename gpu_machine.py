"""Trains on a machine with an NVIDIA GPU that is there for minutes only.

    make gpu MINUTES=25 OUT=out/gpu             tests, bench, training, scores; goes on where an earlier call stopped
    python gpu_machine.py pack FILE.tar.xz      what such a machine needs, as one archive to unpack there
    python gpu_machine.py join MANIFEST FILE    puts together what came back in parts
    python gpu_machine.py split FILE FOLDER     the parts of any other file, such as a run's last checkpoint

The GPU is not kept waiting: while gsplat compiles, the first part of the training runs already. All is done by the
Python that runs this, which needs PyTorch with CUDA; other packages that it lacks are taken from a folder of wheels.

The folder of results gets test.log, bench.json, train.log, report.html, scores.json and shards/, the parts of the best
network so far in float16, renewed while it trains. What is large or can be made again lies in the folder of work.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from backend import packing, shards
from backend.bad_input import BadInput
from backend.exit_status import BAD_INPUT, BROKEN, SUCCESS, complain
from backend.gpu_run import ROOT, Plan, carry_out, say

CONFIG = ROOT / "backend/starter/train_gpu.json"
PLACES = {  # where each folder is looked for: as unpacked from an archive, and as a checkout has it
    "assets": ("assets", "../shared/assets"),
    "bench": ("bench", "../shared/bench/open"),
    "wheels": ("wheels",),
}
NEEDED = ("accelerate", "numba", "numpy", "pillow", "safetensors", "scipy")  # without these nothing trains
WANTED = (  # for rasterising on the GPU, the tests, the bench and the scores
    *("fast-simplification", "gsplat", "jaxtyping", "ninja", "psutil", "pytest", "rich", "scikit-image"),
    *("trimesh", "wadler-lindig", "xatlas"),
)
SCORE_SHARE, SCORE_SECONDS = 0.2, 240.0  # of the time, and at most, for the scores at the end


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as of the backend's commands."""
    given = parser().parse_args(arguments)
    try:
        return given.does(given)
    except BadInput as error:
        return complain(str(error), BAD_INPUT)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror or error}", BROKEN)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="gpu_machine.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add = _command(commands, "run", _run, "test, measure, train and judge").add_argument
    add("--minutes", type=float, default=25.0, help="for everything (%(default)s)")
    add("--whole", type=float, default=0.0, metavar="MINUTES", help="of training that a run of several calls takes")
    add("--out", type=Path, default=ROOT / "out/gpu", help="gets the results")
    add("--work", type=Path, default=ROOT / "out/gpu_work", help="is kept from call to call")
    add("--config", type=Path, default=CONFIG, help="what to train, unless a run is there")
    for name in PLACES:
        add(f"--{name}", type=Path, help=f"instead of {' or '.join(PLACES[name])}")
    add = _command(commands, "pack", _pack, "make the archive that travels").add_argument
    add("file", type=Path, metavar="FILE.tar.xz")
    for name in PLACES:
        add(f"--{name}", type=Path, help=f"instead of {' or '.join(PLACES[name])}")
    add = _command(commands, "join", lambda given: _join(given.manifest, given.file), "put parts together").add_argument
    add("manifest", type=Path, metavar="MANIFEST.json")
    add("file", type=Path, metavar="FILE")
    add = _command(commands, "split", lambda given: _split(given.file, given.folder), "cut into parts").add_argument
    add("file", type=Path, metavar="FILE")
    add("folder", type=Path, metavar="FOLDER")
    return top


def _command(commands: Any, name: str, does: Callable[[argparse.Namespace], int], says: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=says)
    command.set_defaults(does=does)
    return command


def _join(manifest: Path, file: Path) -> int:
    shards.join(manifest, file)
    return SUCCESS


def _split(file: Path, folder: Path) -> int:
    shards.split(file, folder)
    return SUCCESS


def _pack(given: argparse.Namespace) -> int:
    found = {name: _folder(name, getattr(given, name)) for name in PLACES}
    sizes = packing.pack(ROOT, {name: folder for name, folder in found.items() if folder}, given.file)
    told = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sizes.items())
    say(f"{given.file}: {given.file.stat().st_size / 2**20:.1f} MiB, of (MiB before they are compressed) {told}")
    return SUCCESS


def _folder(name: str, given: Path | None) -> Path | None:
    """The folder that is given, which must be there, or the first that is where it may be."""
    if given is not None and not given.is_dir():
        raise BadInput(f"--{name}: expected a folder, found none at {given}")
    return given or next((ROOT / place for place in PLACES[name] if (ROOT / place).is_dir()), None)


# ---- the run


def _run(given: argparse.Namespace) -> int:
    began = time.monotonic()
    if problem := cuda_problem():
        return complain(problem, BAD_INPUT)
    _open_many_files()
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    environment = _environment(given.work / "packages")
    install(_folder("wheels", given.wheels), given.work / "packages", given.out / "test.log")
    bench, seconds = _folder("bench", given.bench), 60 * given.minutes
    for_scores = min(SCORE_SECONDS, SCORE_SHARE * seconds) if bench else 0.05 * seconds
    plan = Plan(
        out=given.out.resolve(),
        work=given.work.resolve(),
        config=given.config.resolve(),
        bench=bench and bench.resolve(),
        assets=_folder("assets", given.assets),
        scores=began + seconds - for_scores,
        end=began + seconds,
        whole=given.whole,
        environment=environment,
    )
    with _stoppable():
        return carry_out(plan)


# ---- the machine


def cuda_problem() -> str:
    """Why nothing can be trained by this Python, as a sentence; empty where it can."""
    try:
        import torch
    except ImportError:
        return f"gpu: expected a Python with PyTorch, found none in {sys.executable}; name another: make gpu PYTHON=..."
    if torch.cuda.is_available():
        return ""
    return f"gpu: expected an NVIDIA GPU that PyTorch can use, found none with PyTorch {torch.__version__}"


def install(wheels: Path | None, packages: Path, log: Path) -> None:
    """Puts packages that are missing into a folder, from wheels. Raises BadInput where one that is needed stays so."""
    lacking = _missing((*NEEDED, *WANTED), packages)
    files = [] if wheels is None else sorted(wheels.glob("*.whl"))
    ready = [name for name in lacking if any(_name(file.name.split("-")[0]) == _name(name) for file in files)]
    words = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--find-links", str(wheels)]
    for name in ready:  # one by one: a wheel for another Python must not keep the others out
        done = subprocess.run([*words, "--target", str(packages), name], capture_output=True, text=True, check=False)
        _append(log, done.stdout + done.stderr)
    lacking = _missing((*NEEDED, *WANTED), packages)
    _append(log, f"packages that are missing: {', '.join(lacking) or 'none'}\n")
    if needed := [name for name in lacking if name in NEEDED]:
        raise BadInput(f"gpu: expected the packages {', '.join(needed)}, found them neither here nor in wheels/")


def _missing(names: Sequence[str], packages: Path) -> list[str]:
    """Of packages, those that neither this Python has nor the folder."""
    places = [str(packages), *sys.path]
    there = {_name(found.metadata["Name"] or "") for found in metadata.distributions(path=places)}
    return [name for name in names if _name(name) not in there]


def _name(package: str) -> str:
    """As packages are compared by name."""
    return package.lower().replace("_", "-").replace(".", "-")


def _environment(packages: Path) -> dict[str, str]:
    """This process's, with those packages; compilers use all cores, for this machine's GPU alone."""
    import torch

    before = os.environ.get("PYTHONPATH")
    told = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages.resolve()), *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "passive",
        "MAX_JOBS": str(os.cpu_count() or 1),
    }
    if torch.cuda.is_available():
        told["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    return {**os.environ, **told}


def _open_many_files() -> None:
    """Each tensor on its way from a worker is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
