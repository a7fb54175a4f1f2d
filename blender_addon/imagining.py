"""What views are to be made of, a prompt or pictures, and where their result is to stand: plain values, no bpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from . import front_ends, protocol
from .families import FAMILIES
from .front_ends import DEFAULT_FRONT_END, FRONT_ENDS, SIDES, FrontEnd, Side
from .protocol import Cut
from .views import CapturedViews, CaptureError

Place: TypeAlias = Literal["cursor", "selection", "origin"]

CUTS: tuple[Cut, ...] = get_args(Cut)
PLACES: tuple[Place, ...] = get_args(Place)
MOST_CANDIDATES = 8


@dataclass(frozen=True)
class Placing:
    """Where a result stands that no camera has seen.

    size    longest side, metres
    facing  degrees about Z, counterclockwise seen from above; at 0 its front looks towards -Y
    place   what it stands on: the 3D cursor, the top of the selected objects' box, or the world's origin
    """

    size: float = 1.0
    facing: float = 0.0
    place: Place = "cursor"

    def __post_init__(self) -> None:
        if not 1e-4 <= self.size <= 1e5:
            raise CaptureError(f"The size must lie between 0.0001 and 100000 metres, found {self.size:g}.")
        if not -3600 <= self.facing <= 3600:
            raise CaptureError(f"The facing must lie between -3600 and 3600 degrees, found {self.facing:g}.")
        if self.place not in PLACES:
            raise CaptureError(f"The place must be one of {', '.join(PLACES)}, found {self.place!r}.")


@dataclass(frozen=True)
class Picture:
    path: Path
    side: Side = "front"  # of the object that it shows


@dataclass(frozen=True)
class Imagining:
    """What views are made of.

    prompt           what the object is; empty where pictures show it
    negative_prompt  what it is not
    pictures         one of the front, of which views are made; or several, each of another side: they are the views
    front_end        the one of FRONT_ENDS that makes them
    cut              how an object is told from a picture's background
    candidates       how many sets of views to choose from
    sampling_steps   0: the front end's own
    guidance         0: the front end's own
    changed          numbers of the views that were made anew or replaced since; for the recipe alone
    """

    prompt: str = ""
    negative_prompt: str = ""
    pictures: tuple[Picture, ...] = ()
    front_end: str = DEFAULT_FRONT_END
    cut: Cut = "auto"
    candidates: int = 1
    sampling_steps: int = 0
    guidance: float = 0.0
    changed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.front_end not in FRONT_ENDS:
            raise CaptureError(f"The front end must be one of {', '.join(FRONT_ENDS)}, found {self.front_end!r}.")
        if self.cut not in CUTS:
            raise CaptureError(f"The cut must be one of {', '.join(CUTS)}, found {self.cut!r}.")
        reason = front_ends.problem(self.maker.name, prompt=bool(self.prompt.strip()), picture=bool(self.pictures))
        if reason:
            raise CaptureError(reason)
        self._check_ranges()
        self._check_sides()

    def _check_ranges(self) -> None:
        limits = {
            "number of candidates": (self.candidates, 1, MOST_CANDIDATES),
            "number of sampling steps": (self.sampling_steps, 0, 1000),
            "guidance": (self.guidance, 0, 100),
        }
        for label, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise CaptureError(f"The {label} must lie between {low} and {high}, found {value:g}.")

    def _check_sides(self) -> None:
        sides = [picture.side for picture in self.pictures]
        wrong = [side for side in sides if side not in SIDES]
        if wrong:
            raise CaptureError(f"A picture's side must be one of {', '.join(SIDES)}, found {wrong[0]!r}.")
        twice = [side for side in SIDES if sides.count(side) > 1]
        if twice:
            raise CaptureError(f"Each picture must show another side, found two of the {twice[0]}.")
        if self.shows_sides and self.candidates > 1:
            raise CaptureError(
                f"Pictures of an object's sides are the views: there is one candidate, found {self.candidates}."
            )

    @property
    def source(self) -> str:
        return "picture" if self.pictures else "prompt"

    @property
    def shows_sides(self) -> bool:
        """Whether the pictures are the views, so that none are made."""
        return any(picture.side != "front" for picture in self.pictures)

    @property
    def maker(self) -> FrontEnd:
        """The front end at work; pictures of sides need none, and suit what the default's views suit."""
        return FRONT_ENDS[DEFAULT_FRONT_END if self.shows_sides else self.front_end]

    @property
    def title(self) -> str:
        """What its result is called."""
        return " ".join(self.prompt.split()) or self.pictures[0].path.stem or "Gaussmith"

    @property
    def subject(self) -> str:
        """What a person would call it."""
        return " ".join(self.prompt.split()) or ", ".join(picture.path.name for picture in self.pictures)

    def check_model(self, model: str) -> None:
        """Raises CaptureError for a family that such views do not suit."""
        if model not in self.maker.models:
            fitting = " or ".join(FAMILIES[name].title for name in self.maker.models)
            raise CaptureError(
                f"{FAMILIES[model].title} does not suit the views of {self.maker.title}: choose {fitting}."
            )

    def made_by(self, seed: int) -> str:
        """Such as "Starter: a red wooden chair (seed 3)"."""
        changed = f", {len(self.changed)} changed" if self.changed else ""
        return f"{self.maker.title}: {self.subject} (seed {seed}{changed})" if not self.shows_sides else self.subject

    def recipe(self) -> dict[str, Any]:
        """JSON values, from which `of_recipe` makes it again."""
        pictures = [{"path": str(picture.path), "side": picture.side} for picture in self.pictures]
        return {**asdict(self), "pictures": pictures, "changed": list(self.changed)}


def of_recipe(stored: dict[str, Any]) -> Imagining:
    """What a recipe remembers. Raises CaptureError for one that holds something else."""
    try:
        pictures = tuple(Picture(Path(item["path"]), item["side"]) for item in stored.get("pictures", ()))
        known = {name: stored[name] for name in Imagining.__dataclass_fields__ if name in stored}
        return Imagining(**known | {"pictures": pictures, "changed": ()})
    except (KeyError, TypeError) as error:
        raise CaptureError("The result does not say what it was made of.") from error


@dataclass(frozen=True)
class Again:
    """A further wish for views to choose from.

    candidate  number of the one that is altered; -1: a further one is made
    images     [V,H,W,4] uint8 of its views, all of which but one are kept; None where all are made
    redo       number of the view that is made anew
    """

    candidate: int = -1
    images: np.ndarray | None = None
    redo: int = -1


def request(
    wanted: Imagining, files: Sequence[bytes], *, device: Any, seed: int, again: Again | None = None
) -> protocol.Imagine:
    """The message for the backend; the session gives it its job id.

    files  the bytes of each picture's file
    """
    again = again or Again()
    return protocol.Imagine(
        job_id="",
        pictures=np.frombuffer(b"".join(files), np.uint8),
        picture_bytes=np.array([len(file) for file in files], np.int64),
        views=again.images,
        redo=again.redo,
        picture_names=tuple(picture.path.name for picture in wanted.pictures),
        sides=tuple(picture.side for picture in wanted.pictures),
        prompt=wanted.prompt.strip(),
        negative_prompt=wanted.negative_prompt.strip(),
        front_end=wanted.maker.name,
        cut=wanted.cut,
        candidates=wanted.candidates,
        steps=wanted.sampling_steps,
        guidance=wanted.guidance,
        device=device,
        seed=seed,
    )


def views_of(imagined: protocol.Imagined) -> CapturedViews:
    """A candidate's views, as a capture would give them."""
    names = tuple(f"view_{number:03d}" for number in range(len(imagined.images)))
    return CapturedViews(imagined.images, imagined.c2w, imagined.Ks, imagined.orthographic, names=names)


def with_view(imagined: protocol.Imagined, number: int, image: np.ndarray) -> protocol.Imagined:
    """A candidate with one of its views replaced by an image [H,W,4] uint8."""
    images = imagined.images.copy()
    images[number] = image
    return replace(imagined, images=images)
