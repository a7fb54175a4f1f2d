"""From a prompt or pictures to views: what `Imagine` and `CutOut` do, readable from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend import matting, picture_files, pipelines, weights
from backend.bad_input import BadInput
from backend.cameras import Views, rig_cameras
from backend.monitor import Monitor
from backend.multiview import Held, Wish
from backend.samplers import Loaded, Samplers
from blender_addon import protocol
from blender_addon.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, SIDES, FrontEnd, Rig, Side, problem

WORDS, LETTERS = 300, 3000  # of a prompt, at most
LIMITS = {  # lowest and highest value of an option
    "candidates": (1, 16),
    "steps": (0, 1000),
    "guidance": (0.0, 100.0),
    "seed": (0, 2**63 - 1),
}
SEEDS = 2**63
# Cameras of pictures that show an object's sides, and the share of their side that its largest picture fills.
SIDE_PIXELS, SIDE_RADIUS, SIDE_FOV, SIDE_FILL = 512, 2.7, 50.0, 0.7
PREVIEW_SIDE = 512


@dataclass(frozen=True)
class Given:
    """A picture that was given: the bytes of its file, its name for sentences, and what side of the object it shows."""

    data: bytes
    name: str
    side: Side = "front"


@dataclass(frozen=True)
class ImagineOptions:
    """What views are wanted; fields as in protocol.Imagine. Raises BadInput naming the field.

    held  views to keep, where one is made anew
    """

    prompt: str = ""
    negative_prompt: str = ""
    pictures: tuple[Given, ...] = ()
    front_end: str = DEFAULT_FRONT_END
    weights: str = ""
    cut: protocol.Cut = "auto"
    candidates: int = 1
    steps: int = 0
    guidance: float = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    held: Held | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            _check_text(name, getattr(self, name))
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise BadInput(f"{name}: expected a number from {low} to {high}, found {value}")
        _check_sides([given.side for given in self.pictures])
        if self.front_end not in FRONT_ENDS:
            raise BadInput(f"front_end: expected one of {', '.join(FRONT_ENDS)}, found {self.front_end!r}")
        if not self.prompt.strip() and not self.pictures:
            raise BadInput("prompt: expected a prompt or a picture, found neither")
        if not self.shows_sides:
            unfit = problem(self.front_end, prompt=bool(self.prompt.strip()), picture=bool(self.pictures))
            if unfit:
                raise BadInput(f"front_end: {unfit}")
        if self.held is not None:
            self._check_held(self.held)

    @property
    def shows_sides(self) -> bool:
        """Whether the pictures are the views, so that no model makes any."""
        return len(self.pictures) > 1 or any(given.side != "front" for given in self.pictures)

    def _check_held(self, held: Held) -> None:
        if self.shows_sides:
            raise BadInput("redo: expected no view to make anew of pictures that are the views, found one")
        if self.candidates != 1:
            raise BadInput(f"candidates: expected 1 where one view is made anew, found {self.candidates}")
        rig = FRONT_ENDS[self.front_end].rig
        expected = (len(rig.angles), rig.side, rig.side, 4)
        if tuple(held.images.shape) != expected:
            raise BadInput(
                f"views: expected those of {self.front_end}, of shape {expected}, found {tuple(held.images.shape)}"
            )
        if not 0 <= held.redo < len(rig.angles):
            raise BadInput(f"redo: expected the number of a view, 0 to {len(rig.angles) - 1}, found {held.redo}")


@dataclass(frozen=True)
class Candidate:
    """One set of views, cut out, with the exact cameras; a report that JSON can hold."""

    number: int
    seed: int
    views: Views
    report: dict[str, Any]


def imagine(options: ImagineOptions, monitor: Monitor, samplers: Samplers) -> Iterator[Candidate]:
    """The candidates, one after the other; of pictures that are views already, only one.

    samplers  holds the model before and after

    Raises BadInput for pictures that show nothing or cannot be read, WeightsMissing, MemoryError, JobCancelled.
    """
    if options.shows_sides:
        yield _sides(options, monitor)
        return
    front_end = FRONT_ENDS[options.front_end]
    device = pipelines.choose_device(options.device, options.front_end)
    folder = weights.front_end_folder(options.front_end, options.weights)
    picture = _prepared(options, front_end, monitor) if options.pictures else None
    monitor.progress("load", 0, 1)
    loaded = samplers.get(options.front_end, folder, device)
    monitor.progress("load", 1, 1)
    for number in range(options.candidates):
        yield _candidate(options, number, picture, loaded, _Share(monitor, number, options.candidates))


def cut_preview(data: bytes, name: str, cut: protocol.Cut) -> np.ndarray:
    """[H,W,4] uint8, at most PREVIEW_SIDE a side: what will be taken of a picture. Raises BadInput."""
    shown = matting.cut_out(picture_files.read_picture(data, name), cut, name)
    image = Image.fromarray((shown * 255).round().byte().numpy())
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return np.asarray(image)


def summary(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of a whole job, from those of its candidates."""
    seconds = round(sum(report["seconds"] for report in candidates), 3)
    return {**candidates[0], "seeds": [report["seed"] for report in candidates], "seconds": seconds}


# ---- the boundary


def read_request(request: protocol.Imagine) -> ImagineOptions:
    """The options of a message. Raises BadInput naming the field."""
    names = ImagineOptions.__dataclass_fields__.keys() - {"pictures", "held"}
    plain = {name: getattr(request, name) for name in names}  # the same names on the wire
    return ImagineOptions(**plain, pictures=_read_pictures(request), held=_read_held(request))


def _read_pictures(request: protocol.Imagine) -> tuple[Given, ...]:
    lengths = request.picture_bytes.tolist()
    count = len(lengths)
    if any(length < 1 for length in lengths) or sum(lengths) != request.pictures.size:
        raise BadInput(
            f"picture_bytes: expected the pictures' {request.pictures.size} bytes in all, found {lengths[:10]}"
        )
    for name in ("picture_names", "sides"):
        if len(getattr(request, name)) not in (0, count):
            raise BadInput(f"{name}: expected one for each of {count} pictures, found {len(getattr(request, name))}")
    titles = request.picture_names or tuple(f"picture {number}" for number in range(count))
    sides = request.sides or ("front",) * count
    _check_sides(sides)
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    data = [request.pictures[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]
    return tuple(Given(*one) for one in zip(data, titles, cast(Sequence[Side], sides), strict=True))


def _read_held(request: protocol.Imagine) -> Held | None:
    if (request.views is None) != (request.redo < 0):
        raise BadInput(
            f"redo: expected the number of a view together with views, found {request.redo} "
            f"{'without' if request.views is None else 'with'} views"
        )
    if request.views is None:
        return None
    return Held(torch.tensor(request.views).float().div_(255), request.redo)


def _check_text(name: str, text: str) -> None:
    words = len(text.split())
    if words > WORDS:
        raise BadInput(f"{name}: expected at most {WORDS} words, found {words}")
    if len(text) > LETTERS:
        raise BadInput(f"{name}: expected at most {LETTERS} letters, found {len(text)}")


def _check_sides(sides: Sequence[str]) -> None:
    for side in sides:
        if side not in SIDES:
            raise BadInput(f"sides: expected {', '.join(SIDES)}, found {side!r}")
        if sides.count(side) > 1:
            raise BadInput(f"sides: expected each side once, found {side} {sides.count(side)} times")


# ---- the steps


class _Share:
    """A monitor for one of several candidates: to the one behind it, the views of all are one stage."""

    def __init__(self, monitor: Monitor, number: int, count: int) -> None:
        self._monitor, self._number, self._count = monitor, number, count

    def progress(self, stage: str, step: int, total: int) -> None:
        self._monitor.progress(stage, self._number * total + step, self._count * total)

    def preview(self, image: np.ndarray) -> None:
        self._monitor.preview(image)

    def finish_early(self) -> bool:
        return self._monitor.finish_early()


def _prepared(options: ImagineOptions, front_end: FrontEnd, monitor: Monitor) -> Tensor:
    """[S,S,4]: the only picture as the front end wants it."""
    monitor.progress("picture", 0, 1)
    cut = _cut(options.pictures[0], options.cut)
    prepared = matting.recentred(cut, front_end.rig.side, front_end.fill)
    monitor.progress("picture", 1, 1)
    return prepared


def _cut(given: Given, cut: protocol.Cut) -> Tensor:
    return matting.cut_out(picture_files.read_picture(given.data, given.name), cut, given.name)


def _candidate(
    options: ImagineOptions, number: int, picture: Tensor | None, loaded: Loaded, monitor: Monitor
) -> Candidate:
    front_end = FRONT_ENDS[options.front_end]
    wish = Wish(
        options.prompt,
        options.negative_prompt,
        picture,
        options.steps or front_end.steps,
        options.guidance or front_end.guidance,
        (options.seed + number) % SEEDS,
        options.held,
    )
    start = time.perf_counter()
    images = _without_background(loaded.sampler.sample(wish, monitor), front_end.rig, options.held)
    views = Views(images, rig_cameras(front_end.rig), names=view_names(len(images)))
    report = _report(options, wish.seed) | {
        "front_end": options.front_end,
        "steps": wish.steps,
        "guidance": wish.guidance,
        "weights": options.weights or weights.entry_of_front_end(options.front_end).name,
        "device": str(loaded.budget.device),
        "device_name": pipelines.device_name(loaded.budget.device),
        "precision": str(loaded.budget.dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Candidate(number, wish.seed, views, report)


def _without_background(made: Tensor, rig: Rig, held: Held | None) -> Tensor:
    """[V,S,S,4] of the views as they were made; what is held stays as it was, to the last bit."""
    expected = (len(rig.angles), rig.side, rig.side)
    assert tuple(made.shape[:3]) == expected, f"expected views of shape {expected}, found {tuple(made.shape)}"
    new = made if held is None else made[[held.redo]]
    cut = new if rig.background is None else matting.cut_views(new[..., :3], rig.background)
    if held is None:
        return cut
    images = held.images.clone()
    images[held.redo] = cut[0]
    return images


def _sides(options: ImagineOptions, monitor: Monitor) -> Candidate:
    """Pictures of an object's sides as views of it."""
    start, cuts = time.perf_counter(), []
    for number, given in enumerate(options.pictures):
        monitor.progress("picture", number, len(options.pictures))
        cuts.append(_cut(given, options.cut))
    images = matting.recentre_all(cuts, SIDE_PIXELS, SIDE_FILL)
    monitor.progress("picture", len(cuts), len(cuts))
    angles = tuple((0.0, SIDES[given.side]) for given in options.pictures)
    cameras = rig_cameras(Rig(angles, SIDE_PIXELS, SIDE_RADIUS, SIDE_FOV))
    report = _report(options, options.seed) | {
        "front_end": "",
        "weights": "",
        "sides": [given.side for given in options.pictures],
        "seconds": round(time.perf_counter() - start, 3),
    }
    views = Views(torch.stack(list(images)), cameras, names=view_names(len(cuts)))
    return Candidate(0, options.seed, views, report)


def _report(options: ImagineOptions, seed: int) -> dict[str, Any]:
    """What every report of views tells."""
    return {
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "pictures": [given.name for given in options.pictures],
        "cut": options.cut,
        "seed": seed,
    }


def view_names(count: int) -> tuple[str, ...]:
    """File names of views."""
    return tuple(f"view_{number}.png" for number in range(count))
