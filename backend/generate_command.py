"""`python -m backend generate`: from a prompt or pictures to splats and a mesh; or a whole list of such, one by one.

A result is made in a folder beside its place and moved there when it is whole.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from backend import pipelines, weights
from backend.bad_input import BadInput
from backend.cameras import Views
from backend.command_line import (
    EXPECTED,
    Shots,
    explain,
    on_terminal,
    read_shots,
    reconstruct_options,
    write_json,
    write_result,
)
from backend.exit_status import BAD_INPUT, BROKEN, INTERRUPTED, SUCCESS, complain
from backend.imagine import Given, ImagineOptions, imagine
from backend.samplers import Samplers
from backend.transforms import write_transforms
from blender_addon.front_ends import FRONT_ENDS, SIDES, Side

COLUMNS = ("prompt", "image", "seed", "size", "name", "front_end")  # of a CSV
MODELS_OF_SIDES = ("grm", "fit")  # what takes pictures of an object's sides, the best first
NAME_LETTERS = 40  # of a result's folder


@dataclass(frozen=True)
class Order:
    """One result that is wanted.

    candidate    number of the views that splats are made of
    reconstruct  None: the views are all
    shots        cameras to render the result with
    line         what a list says of it, for its report; None: it is of no list
    """

    imagine: ImagineOptions
    candidate: int
    reconstruct: pipelines.ReconstructOptions | None
    shots: Shots | None = None
    line: dict[str, str] | None = None


def generate(given: argparse.Namespace, samplers: Samplers | None = None) -> int:
    """Runs the command with its parsed options; returns the exit status. `samplers` holds the model."""
    samplers = samplers or Samplers()
    try:
        if given.batch is not None:
            return _batch(given, samplers)
        unmade = _make(order_of(given), given.out, samplers)
        return complain(unmade, BROKEN) if unmade else SUCCESS
    except EXPECTED as error:
        return complain(*explain(error, given.out))


def order_of(given: argparse.Namespace, line: dict[str, str] | None = None) -> Order:
    """What the options want. Raises BadInput, before any file is written."""
    wanted = ImagineOptions(
        prompt=given.prompt,
        negative_prompt=given.negative,
        pictures=tuple(_read_given(text) for text in given.image),
        front_end=given.front_end,
        weights=given.front_end_weights,
        cut=given.cut,
        candidates=given.candidates,
        steps=given.sampling_steps,
        guidance=given.guidance,
        device=given.device,
        seed=given.seed,
    )
    if not 0 <= given.candidate < given.candidates:
        raise BadInput(f"--candidate: expected a number from 0 to {given.candidates - 1}, found {given.candidate}")
    if given.views_only:
        return Order(wanted, given.candidate, None, line=line)
    model = _model_for(wanted, given.model)
    if model != "fit":
        weights.resolve(given.weights, cast(weights.Family, model))
    options = reconstruct_options(argparse.Namespace(**{**vars(given), "model": model}))
    shots = None if given.cameras is None else read_shots(given.cameras)
    return Order(wanted, given.candidate, options, shots, line)


def _model_for(wanted: ImagineOptions, model: str) -> str:
    """The family that makes splats of the views; the front end's best where none is named."""
    title = "the pictures" if wanted.shows_sides else FRONT_ENDS[wanted.front_end].title
    models = MODELS_OF_SIDES if wanted.shows_sides else FRONT_ENDS[wanted.front_end].models
    if not model:
        return next(model for model in models if weights.is_here(model))
    if model not in models:
        raise BadInput(f"--model: expected {' or '.join(models)} for the views of {title}, found {model!r}")
    return model


def _read_given(text: str) -> Given:
    """A picture of an `--image`: FILE or SIDE=FILE."""
    side, equals, name = text.partition("=")
    if not equals or side not in SIDES:
        side, name = "front", text
    path = Path(name).expanduser()
    try:
        return Given(path.read_bytes(), str(path), cast(Side, side))
    except OSError as error:
        raise BadInput(f"--image {path}: expected a picture, found: {error.strerror}") from error


# ---- one result


def _make(order: Order, out: Path, samplers: Samplers) -> str:
    """Makes one result and puts it into `out`; returns why a part of it could not be made, or nothing.

    Raises as `imagine` and `reconstruct` do.
    """
    with _made_beside(out) as folder, on_terminal() as monitor:
        candidates = list(imagine(order.imagine, monitor, samplers))
        chosen = candidates[min(order.candidate, len(candidates) - 1)]
        save_views(chosen.views, folder / "views")
        for candidate in candidates if len(candidates) > 1 else ():
            save_views(candidate.views, folder / "candidates" / str(candidate.number))
        told = {"imagined": chosen.report} | ({} if order.line is None else {"line": order.line})
        if order.reconstruct is None:
            write_json(told, folder / "report.json")
            return ""
        samplers.make_room()
        result = pipelines.reconstruct(chosen.views, order.reconstruct, monitor)
        result.report.update(told)
        write_result(result, order.shots, folder, monitor)
    return "; ".join(result.report["problems"]) if order.reconstruct.mesh and result.mesh is None else ""


def save_views(views: Views, folder: Path) -> None:
    """Writes views as PNGs with straight alpha, and their cameras as transforms.json."""
    folder.mkdir(parents=True)
    for image, name in zip(views.images, views.names, strict=True):
        pixels: np.ndarray = (image * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / name)
    write_transforms(views.cameras, views.names, folder / "transforms.json")


@contextmanager
def _made_beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, whose contents go there when the block ends well; else nothing stays."""
    beside = out.absolute().parent / f".{out.absolute().name}.part"
    try:
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(20, "a file of that name")
        shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
        beside.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--out {out}: expected a folder that can be made, found: {error.strerror}") from error
    try:
        yield beside
        _move(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _move(made: Path, out: Path) -> None:
    """Puts what was made into its place, in the place of an older result; the report last."""
    if not out.exists():
        made.rename(out)
        return
    (out / "report.json").unlink(missing_ok=True)
    for item in sorted(made.iterdir(), key=lambda item: item.name == "report.json"):
        if (out / item.name).is_dir():
            shutil.rmtree(out / item.name)
        item.replace(out / item.name)


# ---- many


@dataclass(frozen=True)
class Line:
    """One line of a list, as it is written there; "" where it says nothing."""

    prompt: str = ""
    image: str = ""
    seed: str = ""
    size: str = ""
    name: str = ""
    front_end: str = ""


def _batch(given: argparse.Namespace, samplers: Samplers) -> int:
    """Makes a result of each line, but for those that are there; writes after each how far it is."""
    if given.prompt or given.image:
        raise BadInput("--batch: expected no --prompt and no --image beside it, found one")
    lines = read_lines(given.batch)
    told = [
        {"folder": folder_name(number + 1, line), "state": "waiting", "sentence": "", "line": asdict(line)}
        for number, line in enumerate(lines)
    ]
    statuses = []
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {given.out}: expected a folder that can be made, found: {error.strerror}") from error
    for line, state in zip(lines, told, strict=True):
        status, sentence = _one_of_many(given, line, given.out / state["folder"], samplers)
        state["state"], state["sentence"] = "done" if status == SUCCESS else "failed", sentence
        if status == INTERRUPTED:
            state["state"] = "waiting"
        write_json(told, given.out / "batch.json")
        sys.stderr.write(f"{state['folder']}: {sentence or 'done'}\n")
        statuses.append(status)
        if status == INTERRUPTED:
            return complain("interrupted; the results that are done stay, and the same command goes on", INTERRUPTED)
    return max(set(statuses) - {SUCCESS, BAD_INPUT}, default=BAD_INPUT if BAD_INPUT in statuses else SUCCESS)


def _one_of_many(given: argparse.Namespace, line: Line, out: Path, samplers: Samplers) -> tuple[int, str]:
    """Exit status and sentence for one line; a result of the very same line is left as it is."""
    if _told_by(out / "report.json") == asdict(line):
        return SUCCESS, ""
    try:
        unmade = _make(order_of(_with_line(given, line), asdict(line)), out, samplers)
    except EXPECTED as error:
        sentence, status = explain(error, out)
        return status, sentence
    return (BROKEN, unmade) if unmade else (SUCCESS, "")


def _told_by(report: Path) -> Any:
    """The line that a result says it was made of, None where there is none."""
    try:
        return json.loads(report.read_text(encoding="utf-8")).get("line")
    except (OSError, ValueError, AttributeError):
        return None


def _with_line(given: argparse.Namespace, line: Line) -> argparse.Namespace:
    """The options with what a line says in their place. Raises BadInput."""
    if line.front_end and line.front_end not in FRONT_ENDS:
        raise BadInput(f"front_end: expected one of {', '.join(FRONT_ENDS)}, found {line.front_end!r}")
    own = {
        "prompt": line.prompt,
        "image": [str(given.batch.parent / line.image)] if line.image else [],
        "seed": _number("seed", line.seed, int, given.seed),
        "size": _number("size", line.size, float, given.size),
        "front_end": line.front_end or given.front_end,
    }
    return argparse.Namespace(**{**vars(given), **own})


def _number(name: str, text: str, kind: type[int] | type[float], default: float) -> float:
    try:
        return kind(text) if text else default
    except ValueError as error:
        raise BadInput(f"{name}: expected a number, found {text!r}") from error


def read_lines(path: Path) -> list[Line]:
    """The lines of a list: a CSV's rows, or any other text's lines that are not empty. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"--batch {path}: expected a text or CSV file, found: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"--batch {path}: expected text in UTF-8, found other bytes") from error
    lines = _rows(path, text) if path.suffix.lower() == ".csv" else _prompts(text)
    if not lines:
        raise BadInput(f"--batch {path}: expected at least one line, found none")
    return lines


def _prompts(text: str) -> list[Line]:
    return [Line(prompt=line.strip()) for line in text.splitlines() if line.strip()]


def _rows(path: Path, text: str) -> list[Line]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        found = [name.strip().lower() for name in rows.fieldnames or ()]
        if not {"prompt", "image"} & set(found) or set(found) - set(COLUMNS) or len(set(found)) < len(found):
            raise BadInput(
                f"--batch {path}: expected columns out of {', '.join(COLUMNS)}, with prompt or image, found {found}"
            )
        rows.fieldnames = found
        return [Line(**_cells(row)) for row in rows]
    except csv.Error as error:
        raise BadInput(f"--batch {path}: expected a CSV, found what cannot be read as one: {error}") from error


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A row's cells; a row may be shorter than the head, and what is beyond the head counts for nothing."""
    return {name: (row.get(name) or "").strip() for name in COLUMNS}


def folder_name(number: int, line: Line) -> str:
    """Such as 0001-a-red-chair; of letters and digits alone, whatever the line says."""
    words: Sequence[str] = re.findall(r"[a-z0-9]+", (line.name or line.prompt or Path(line.image).stem).lower())
    return f"{number:04d}-{'-'.join(words)[:NAME_LETTERS].strip('-') or 'object'}"
