"""`python -m backend reconstruct`: files in, files out, one sentence and an exit status for what went wrong."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from backend import pipelines, ply, texturing
from backend.cameras import BadInput, Cameras
from backend.exit_status import BAD_INPUT, BROKEN, INTERRUPTED, SUCCESS, complain
from backend.hull import NothingSeen
from backend.monitor import JobCancelled, Monitor
from backend.rendering import Rendering, render, straight_rgba
from backend.transforms import read_cameras, read_views
from backend.worker import kind_of
from blender_addon.atomic_file import replacing


@dataclass(frozen=True)
class Shots:
    """Cameras to render and the file name of each picture."""

    cameras: Cameras
    names: tuple[str, ...]


class TerminalMonitor:
    """Shows progress on standard error; the first Ctrl-C cancels the job, a second one ends the program."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._interrupted = False

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self._interrupted = True
        signal.signal(signum, signal.default_int_handler)

    def progress(self, stage: str, step: int, total: int) -> None:
        if self._interrupted:
            raise JobCancelled
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage)
        self._progress.update(self._tasks[stage], completed=step, total=total)

    def preview(self, image: np.ndarray) -> None:
        del image

    def finish_early(self) -> bool:
        return False


def reconstruct(given: argparse.Namespace) -> int:
    """Runs the command with its parsed options; returns the exit status."""
    try:
        return _reconstruct(given)
    except EXPECTED as error:
        return complain(*explain(error, given.out))


def _reconstruct(given: argparse.Namespace) -> int:
    options = reconstruct_options(given)
    shots = None if given.cameras is None else read_shots(given.cameras)
    views = read_views(given.views)
    make_folder(given.out)
    with on_terminal() as monitor:
        result = pipelines.reconstruct(views, options, monitor)
        write_result(result, shots, given.out, monitor)
    if options.mesh and result.mesh is None:
        return complain("; ".join(result.report["problems"]), BROKEN)
    return SUCCESS


# ---- what commands share

# What may go wrong without a fault of this program.
EXPECTED = (BadInput, NothingSeen, JobCancelled, KeyboardInterrupt, OSError, MemoryError, RuntimeError)


def explain(error: BaseException, out: Path) -> tuple[str, int]:
    """The sentence and the exit status for one of EXPECTED; raises a RuntimeError again that tells of a fault here.

    out  names the place of a failure to write that names none
    """
    match error:
        case BadInput() | NothingSeen():
            return str(error), BAD_INPUT
        case JobCancelled() | KeyboardInterrupt():
            return "interrupted; nothing was written", INTERRUPTED
        case OSError():
            return f"{error.filename or out}: {error.strerror or error}", BROKEN
        case _ if kind_of(error) == "out_of_memory":
            return str(error) or "memory: there is too little of it for these views", BAD_INPUT
    raise error


@contextmanager
def on_terminal() -> Iterator[TerminalMonitor]:
    """Meanwhile progress is shown, and Ctrl-C is heard by the monitor."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        monitor = TerminalMonitor(progress)
        before = signal.signal(signal.SIGINT, monitor.interrupt)
        try:
            yield monitor
        finally:
            signal.signal(signal.SIGINT, before)


def reconstruct_options(given: argparse.Namespace) -> pipelines.ReconstructOptions:
    """The options of a command that reconstructs. Raises BadInput."""
    return pipelines.ReconstructOptions(
        **{name: getattr(given, name) for name in pipelines.ReconstructOptions.__dataclass_fields__}
    )


def make_folder(path: Path) -> None:
    """Raises BadInput where that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {path}: expected a folder that can be made, found: {error.strerror}") from error


def read_shots(path: Path) -> Shots:
    """The cameras of a transforms.json. Raises BadInput."""
    cameras, names = read_cameras(path)
    pictures = tuple(str(Path(name).with_suffix(".png")) for name in names)
    every = [*pictures, *(f"mesh_{name}" for name in pictures)]
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise BadInput(f"{path}: expected frames with different file names, found {twice[0]} more than once")
    return Shots(cameras, pictures)


def write_result(result: pipelines.Reconstruction, shots: Shots | None, out: Path, monitor: Monitor) -> None:
    """The report comes last: where it is, all the rest is."""
    ply.save(result.gaussians, out / "splats.ply")
    if result.mesh is not None:
        texturing.save_glb(result.mesh, out / "mesh.glb")
    if shots is not None:
        for view, name in enumerate(shots.names):
            monitor.progress("Pictures", view, len(shots.names))
            camera = shots.cameras[[view]]
            with torch.no_grad():
                save_picture(render(result.gaussians, camera), out / name)
            if result.mesh is not None:
                save_picture(texturing.render_textured(result.mesh, camera), out / f"mesh_{name}")
        monitor.progress("Pictures", len(shots.names), len(shots.names))
    write_json(result.report, out / "report.json")


def write_json(value: Any, path: Path) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode())


def save_picture(rendering: Rendering, path: Path) -> None:
    """Writes the only picture of a rendering without background as a PNG with straight alpha."""
    with replacing(path) as file:
        Image.fromarray(straight_rgba(rendering)[0]).save(file, format="png")
