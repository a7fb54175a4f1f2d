"""`python -m backend evaluate`: the quality table of a data set, one group of rows for each way of reconstruction."""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import rich.table
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from backend import baselines, lpips, pipelines, weights
from backend.bad_input import BadInput
from backend.cameras import Cameras, Views
from backend.command_line import TerminalMonitor
from backend.evaluate import (
    FAILED,
    Entry,
    Failure,
    Guess,
    Reconstructor,
    Scores,
    Table,
    evaluate,
    find_objects,
    read_entries,
    read_entry,
)
from backend.exit_status import BAD_INPUT, BROKEN, INTERRUPTED, SUCCESS, complain
from backend.monitor import JobCancelled, Monitor
from backend.rendering import render, straight_rgba
from blender_addon.atomic_file import replacing
from blender_addon.families import FAMILIES, NETWORKS

BASELINES: dict[str, Reconstructor] = {"nearest": baselines.nearest_view, "hull": baselines.hull}
BASELINE_METHODS = ("nearest", "hull", "fit@10s", "fit@60s")  # what --baselines stands for
DEFAULT_METHOD = "fit"
GRAMMAR = re.compile(r"(?P<name>[a-z_]+)(\+(?P<refine>\d{1,7}))?(@(?P<seconds>\d{1,6}(\.\d{1,3})?)s)?")
DECIMALS = {"psnr": 2, "boxpsnr": 2, "mesh_psnr": 2, "mesh_boxpsnr": 2, "chamfer": 2, "seconds": 2}  # others: 3
PLAIN_WIDTH = 160  # columns of a table that goes into a file


@dataclass(frozen=True)
class Method:
    """A way of reconstruction: NAME, NAME+STEPS, NAME@SECONDSs or NAME+STEPS@SECONDSs.

    name     a model, or one of BASELINES
    refine   steps of fit that start from the model's result
    seconds  after which fit, or its refinement, stops with its best so far; infinite: never
    """

    name: str
    refine: int = 0
    seconds: float = math.inf

    def __str__(self) -> str:
        steps = f"+{self.refine}" if self.refine else ""
        return self.name + steps + (f"@{self.seconds:g}s" if math.isfinite(self.seconds) else "")


@dataclass(frozen=True)
class Deadline:
    """A monitor that ends a fit early, at the time `end` of time.perf_counter."""

    inner: Monitor
    end: float

    def progress(self, stage: str, step: int, total: int) -> None:
        self.inner.progress(stage, step, total)

    def preview(self, image: np.ndarray) -> None:
        self.inner.preview(image)

    def finish_early(self) -> bool:
        return time.perf_counter() >= self.end or self.inner.finish_early()


def read_method(text: str) -> Method:
    """A method as `--model` has it. Raises BadInput."""
    names = (*BASELINES, *FAMILIES)
    match = GRAMMAR.fullmatch(text)
    if match is None or match["name"] not in names:
        raise BadInput(
            f"--model: expected NAME, NAME+STEPS or NAME@SECONDSs (fit@10s), NAME being {' or '.join(names)}, "
            f"found {text!r}"
        )
    method = Method(match["name"], int(match["refine"] or 0), float(match["seconds"] or math.inf))
    if method.name in BASELINES and method != Method(method.name):
        raise BadInput(f"--model: {method.name!r} takes neither steps nor seconds, found {text!r}")
    if math.isfinite(method.seconds) and method.name in NETWORKS and not method.refine:
        raise BadInput(f"--model: only fit and a refinement can stop after some seconds, found {text!r}")
    return method


def methods_of(given: argparse.Namespace) -> list[Method]:
    """The methods of the options, each once; `--refine` counts for the networks that name no steps. Raises BadInput."""
    texts = [*(BASELINE_METHODS if given.baselines else ()), *given.model]
    methods = [read_method(text) for text in texts or [DEFAULT_METHOD]]
    refined = [
        replace(method, refine=given.refine) if method.name in NETWORKS and not method.refine else method
        for method in methods
    ]
    if given.weights and not any(method.name in NETWORKS for method in refined):
        raise BadInput(f"--weights: expected a network among the models, found {', '.join(map(str, refined))}")
    return list(dict.fromkeys(refined))


def reconstructor_of(method: Method, given: argparse.Namespace, monitor: Monitor) -> Reconstructor:
    """What the method makes of views. Raises BadInput where its options, weights or device cannot be."""
    if method.name in BASELINES:
        return BASELINES[method.name] if given.mesh else _without_mesh(BASELINES[method.name])
    options = pipelines.ReconstructOptions(
        model=method.name,
        weights=given.weights if method.name in NETWORKS else "",
        refine=method.refine,
        mesh=given.mesh,
        device=cast(Literal["auto", "cpu", "cuda"], given.device),
        seed=given.seed,
    )
    pipelines.choose_device(options.device, options.model)
    if method.name in NETWORKS:
        weights.resolve(options.weights, cast(weights.Family, method.name))

    def reconstruct(views: Views, cameras: Cameras) -> Guess:
        deadline = Deadline(monitor, time.perf_counter() + method.seconds)
        made = pipelines.reconstruct(views, options, deadline)
        with torch.no_grad():
            images = straight_rgba(render(made.gaussians, cameras))
        problem = "; ".join(made.report["problems"]) if options.mesh and made.mesh is None else ""
        return Guess(images, made.report["seconds"]["splats"], made.mesh, problem)

    return reconstruct


def _without_mesh(reconstructor: Reconstructor) -> Reconstructor:
    return lambda views, cameras: replace(reconstructor(views, cameras), mesh=None)


def command(given: argparse.Namespace) -> int:
    """Runs the command with its parsed options; returns the exit status, 1 where a method failed at an object."""
    try:
        return _run(given)
    except BadInput as error:
        return complain(str(error), BAD_INPUT)
    except (JobCancelled, KeyboardInterrupt):
        return complain("interrupted", INTERRUPTED)
    except OSError as error:
        return complain(f"{error.filename or given.json}: {error.strerror or error}", BROKEN)


def _run(given: argparse.Namespace) -> int:
    methods, folders = methods_of(given), _folders(given)
    distance = lpips.find_lpips(given.lpips)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tables: list[Table] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        monitor = TerminalMonitor(progress)
        before = signal.signal(signal.SIGINT, monitor.interrupt)
        try:
            ready = {method: reconstructor_of(method, given, monitor) for method in methods}
            for method, reconstructor in ready.items():
                _warm_up(method, given, folders[0], monitor)
                entries = _told(folders, str(method), monitor)
                tables.append(evaluate(entries, reconstructor, method=str(method), lpips=distance))
                if given.json is not None:
                    _write(tables, given, absent=distance is None)
        finally:
            signal.signal(signal.SIGINT, before)
    print_tables(tables, given.dataset.resolve().name, lpips_absent=distance is None)
    return _tell_failures(tables, len(folders))


def _folders(given: argparse.Namespace) -> list[Path]:
    if given.objects is not None and given.objects < 1:
        raise BadInput(f"--objects: expected at least 1, found {given.objects}")
    return find_objects(given.dataset)[: given.objects]


def _warm_up(method: Method, given: argparse.Namespace, folder: Path, monitor: Monitor) -> None:
    """Compiles and loads what the method needs, so that the first object's time tells no more than the others'."""
    hurried = Method(method.name, method.refine, 0.0)
    options = argparse.Namespace(**{**vars(given), "mesh": False})
    with suppress(*FAILED):  # which is told when it is measured
        entry = read_entry(folder)
        reconstructor_of(hurried, options, monitor)(entry.inputs, entry.tests.cameras)


def _told(folders: Sequence[Path], method: str, monitor: Monitor) -> Iterator[Entry | Failure]:
    """The objects, and the progress of the method over them."""
    for done, entry in enumerate(read_entries(folders)):
        monitor.progress(method, done, len(folders))
        yield entry
    monitor.progress(method, len(folders), len(folders))


def _tell_failures(tables: Sequence[Table], objects: int) -> int:
    for table in tables:
        if table.failures:
            sys.stderr.write(f"error: {table.method} failed at {len(table.failures)} of {objects} objects:\n")
        for failure in table.failures:
            sys.stderr.write(f"  {failure.name}: {failure.reason}\n")
    return BROKEN if any(table.failures for table in tables) else SUCCESS


# ---- what is shown and written


def print_tables(tables: Sequence[Table], title: str, *, lpips_absent: bool) -> None:
    """Writes one table to the standard output: for each method a row for each object, and their mean."""
    columns = _columns(tables)
    shown = rich.table.Table(title=title)
    for heading in ("method", "object", *columns):
        shown.add_column(heading.replace("_", " "), justify="left" if heading in ("method", "object") else "right")
    for table in tables:
        for name, scores in table.scores.items():
            shown.add_row(table.method, name, *_cells(scores, columns))
        for failure in table.failures:
            if failure.name not in table.scores:
                shown.add_row(table.method, failure.name, *("failed" for _ in columns))
        mean = table.mean()
        if mean is not None:
            shown.add_row(table.method, "mean", *_cells(mean, columns), style="bold")
        shown.add_section()
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    console.print(shown)
    if lpips_absent:
        console.print(f"lpips: not measured, its weights are not at {lpips.default_folder()}", soft_wrap=True)


def _columns(tables: Sequence[Table]) -> list[str]:
    """The scores that any object has; lpips always, so that its absence is seen."""
    means = [mean for table in tables if (mean := table.mean()) is not None]
    names = [field.name for field in fields(Scores)]
    return [name for name in names if name == "lpips" or any(getattr(mean, name) is not None for mean in means)]


def _cells(scores: Scores, columns: Sequence[str]) -> list[str]:
    return [_cell(name, getattr(scores, name)) for name in columns]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "absent" if name == "lpips" else "-"
    return f"{value:.{DECIMALS.get(name, 3)}f}"


def _write(tables: Sequence[Table], given: argparse.Namespace, *, absent: bool) -> None:
    device = pipelines.choose_device(given.device, "fit")
    report = {
        "dataset": str(given.dataset),
        "weights": given.weights,
        "seed": given.seed,
        "device_name": pipelines.device_name(device),
        "versions": pipelines.versions(),
        "lpips": "absent" if absent else "measured",
        "methods": [_as_json(table) for table in tables],
    }
    with replacing(given.json) as file:
        file.write(json.dumps(report, indent=1, allow_nan=False).encode())


def _as_json(table: Table) -> dict[str, Any]:
    mean = table.mean()
    return {
        "method": table.method,
        "mean": None if mean is None else asdict(mean),
        "objects": {name: asdict(scores) for name, scores in table.scores.items()},
        "failures": {failure.name: failure.reason for failure in table.failures},
    }
