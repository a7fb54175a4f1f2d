"""What scripts and the command line may ask for, as words, and how an order is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from .families import DEFAULT_METHOD, METHODS, MethodName, Precision
from .front_ends import Side
from .imagining import Imagining, Picture, Place, Placing
from .order import Order, Output
from .protocol import Cut
from .views import CaptureError, CaptureSettings


class CaptureWords(TypedDict, total=False):
    """What to capture. Left out: the default of CaptureSettings."""

    source: Literal["orbit", "cameras", "animation", "viewport", "views"]  # views: the pictures of `transforms`
    views: int
    elevations: Sequence[float]
    distance: float
    lens: float
    resolution: int
    quality: Literal["preview", "standard", "final"]
    depth: bool
    cameras: Literal["all", "selected"]
    selected_only: bool
    others: Literal["holdout", "hidden"]
    frames: tuple[int, int, int]
    transforms: Path | str


class ImaginingWords(TypedDict, total=False):
    """A prompt or pictures instead of a capture. Left out: the defaults of Imagining and Placing.

    Several pictures show several sides of one object, and are its views. `candidate`, from 1, is the one of
    `candidates` that becomes the result.
    """

    prompt: str
    image: Path | str  # the front
    image_right: Path | str
    image_back: Path | str
    image_left: Path | str
    front_end: str
    negative: str
    candidates: int
    candidate: int
    guidance: float
    sampling_steps: int
    cut: Cut
    size: float
    facing: float
    place: Place


class Words(CaptureWords, ImaginingWords, total=False):
    """What to make of it. Left out: the default of Order. `mesh=True` is short for output="both".

    A method stands for a model, its default weights and a refinement. Without one of these four words it is "fast".
    """

    method: MethodName
    model: str
    weights: str
    precision: Precision
    steps: int
    refine: int
    max_splats: int
    output: Output
    mesh: bool
    faces: int
    texture_size: int
    device: Literal["auto", "cpu", "cuda"]
    seed: int
    name: str


RENAMED = {"views": "count"}  # CaptureSettings' name for the word
OF_METHOD = frozenset({"model", "weights", "refine"})  # the words that a method stands for
OF_CAPTURE = frozenset(CaptureSettings.__dataclass_fields__) | frozenset(RENAMED)
IMAGES: dict[str, Side] = {"image": "front", "image_right": "right", "image_back": "back", "image_left": "left"}
OF_IMAGINING = {  # Imagining's name for the word
    **{"prompt": "prompt", "negative": "negative_prompt", "front_end": "front_end", "candidates": "candidates"},
    **{"guidance": "guidance", "sampling_steps": "sampling_steps", "cut": "cut"},
}
OF_PLACING = ("size", "facing", "place")


def order_of(words: Words) -> Order:
    """The words as an Order. Raises CaptureError for values out of range or words that do not go together."""
    given: dict[str, Any] = dict(words)
    method = given.get("method", "" if OF_METHOD & given.keys() else DEFAULT_METHOD)
    meant = METHODS.get(method or DEFAULT_METHOD)
    return order_as_named({**(meant.settings if meant is not None else {}), "method": method, **given})


def order_as_named(given: dict[str, Any]) -> Order:
    """The words as they are, without a method that nobody has named."""
    imagining, placing = _imagining(given), _placing(given)
    transforms = given.pop("transforms", None)
    if given.get("source") == "views":
        del given["source"]
        if transforms is None:
            raise CaptureError("The source 'views' needs a transforms.json: name it with transforms.")
    elif transforms is not None and "source" in given:
        raise CaptureError(f"A transforms.json brings its own views: leave out the source, found {given['source']!r}.")
    if imagining is not None and (transforms is not None or "source" in given):
        raise CaptureError("A prompt or a picture is what views are made of: leave out the source and the transforms.")
    if given.pop("mesh", False):
        given.setdefault("output", "both")
    if "elevations" in given:
        given["elevations"] = tuple(given["elevations"])
    taken = {RENAMED.get(name, name): given.pop(name) for name in list(given) if name in OF_CAPTURE}
    return Order(
        capture=CaptureSettings(**taken),
        transforms=Path(transforms) if transforms is not None else None,
        imagining=imagining,
        placing=placing,
        **given,
    )


def _imagining(given: dict[str, Any]) -> Imagining | None:
    """Takes its words out of the given ones; None without a prompt and a picture."""
    if not given.keys() & {"prompt", *IMAGES}:
        alone = [name for name in (*OF_IMAGINING, *OF_PLACING, "candidate") if name in given]
        if alone:
            raise CaptureError(f"The word {alone[0]!r} is for a prompt or a picture: name one of them.")
        return None
    pictures = tuple(Picture(Path(given.pop(name)), side) for name, side in IMAGES.items() if name in given)
    words = {field: given.pop(name) for name, field in OF_IMAGINING.items() if name in given}
    _check_candidate(given.pop("candidate", 1), words.get("candidates", 1))
    return Imagining(pictures=pictures, **words)


def _check_candidate(candidate: int, candidates: int) -> None:
    if not 1 <= candidate <= candidates:
        raise CaptureError(f"The candidate must lie between 1 and {candidates}, found {candidate}.")


def _placing(given: dict[str, Any]) -> Placing:
    return Placing(**{name: given.pop(name) for name in OF_PLACING if name in given})
