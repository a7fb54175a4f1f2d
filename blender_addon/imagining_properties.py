"""What the panel lets a user choose when views are made of a prompt or pictures. Saved with the Scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpy
from bpy.props import EnumProperty, FloatProperty, IntProperty, StringProperty

from .front_ends import FRONT_ENDS, SIDES, Side, Takes
from .imagining import MOST_CANDIDATES, Imagining, Picture, Placing
from .views import CaptureError

SOURCES = ("PROMPT", "PICTURE")  # of the panel's sources, those that this is about
FRONT_END_FIELDS = {"PROMPT": "prompt_front_end", "PICTURE": "picture_front_end"}  # each has front ends of its own
# What a .blend stores of each name never changes.
CUTS = (
    (
        "AUTO",
        "Automatic",
        "By the picture's transparency, else the network if it is here, else its plain background",
        0,
    ),
    ("ALPHA", "Transparency", "By the picture's own transparency", 1),
    ("NETWORK", "Network", "By a network, which is downloaded in the preferences", 2),
    ("PLAIN", "Plain Background", "Whatever differs from the colour of the picture's edge", 3),
    ("NONE", "Whole Picture", "Nothing is cut away", 4),
)
PLACES = (
    ("CURSOR", "3D Cursor", "Standing on the 3D cursor", "PIVOT_CURSOR", 0),
    ("SELECTION", "Selection", "Standing on top of the selected objects", "RESTRICT_SELECT_OFF", 1),
    ("ORIGIN", "World Origin", "Standing on the world's origin", "EMPTY_AXIS", 2),
)
RELATIVE = {"PATH_SUPPORTS_BLEND_RELATIVE"} if bpy.app.version >= (4, 5, 0) else set[str]()  # unknown before
EXAMPLES = ("a red wooden chair", "a blue sofa", "a green hut", "a white mug", "an orange fish")  # while none was used
FIELDS: dict[Side, str] = {side: f"picture_{side}" for side in SIDES}  # the property of each side's picture


def _front_ends(takes: Takes) -> tuple[tuple[str, str, str, int], ...]:
    fitting = (item for item in FRONT_ENDS.values() if takes in item.takes)
    return tuple((item.name, item.title, item.tip, item.number) for item in fitting)


def prompts_of_before(_chosen: Any, _context: bpy.types.Context | None, _typed: str) -> Sequence[str]:
    from .studio import current

    return current().history.prompts or EXAMPLES


def _picture(side: str, what: str) -> Any:
    return StringProperty(
        name=side, description=f"A picture of {what}", subtype="FILE_PATH", options={"ANIMATABLE", *RELATIVE}
    )


class GaussmithImagining(bpy.types.PropertyGroup):
    """In GaussmithSettings as `imagining`."""

    prompt: StringProperty(  # type: ignore[valid-type]
        name="Prompt",
        description="What to make, in a few words. The last prompts are offered while you type",
        search=prompts_of_before,
        search_options={"SUGGESTION"},
    )
    negative_prompt: StringProperty(  # type: ignore[valid-type]
        name="Negative", description="What the views shall not show, in a few words"
    )
    prompt_front_end: EnumProperty(  # type: ignore[valid-type]
        name="Front End", description="What makes views of the prompt", items=_front_ends("prompt")
    )
    picture_front_end: EnumProperty(  # type: ignore[valid-type]
        name="Front End", description="What makes views of the picture", items=_front_ends("picture")
    )
    picture_front: _picture("Front", "the object, from the front; it is all that is needed")  # type: ignore[valid-type]
    picture_right: _picture("Right", "the object's right-hand side, as seen from +X")  # type: ignore[valid-type]
    picture_back: _picture("Back", "the object from behind")  # type: ignore[valid-type]
    picture_left: _picture("Left", "the object's other side, as seen from -X")  # type: ignore[valid-type]
    cut: EnumProperty(  # type: ignore[valid-type]
        name="Cut Out", description="How the object is told from the picture's background", items=CUTS
    )
    candidates: IntProperty(  # type: ignore[valid-type]
        name="Candidates",
        description="How many sets of views to make and choose from; with one, the result follows at once",
        default=1,
        min=1,
        max=MOST_CANDIDATES,
    )
    sampling_steps: IntProperty(  # type: ignore[valid-type]
        name="Sampling Steps",
        description="More take longer and may show more detail; 0 leaves it to the front end",
        min=0,
        max=1000,
        soft_max=100,
    )
    guidance: FloatProperty(  # type: ignore[valid-type]
        name="Guidance",
        description="How closely the views keep to the prompt or the picture; 0 leaves it to the front end",
        min=0,
        max=100,
        soft_max=15,
    )
    size: FloatProperty(  # type: ignore[valid-type]
        name="Size (m)", description="Longest side of the result in metres", default=1, min=1e-4, max=1e5, precision=3
    )
    facing: FloatProperty(  # type: ignore[valid-type]
        name="Facing",
        description="Turn about Z, counterclockwise seen from above; at 0 the front looks towards -Y",
        subtype="ANGLE",
        min=-10 * math.tau,
        max=10 * math.tau,
    )
    place: EnumProperty(name="Place", description="What the result stands on", items=PLACES)  # type: ignore[valid-type]


def given(chosen: GaussmithImagining, source: str) -> tuple[Picture, ...]:
    """The pictures that are named in the panel; none for a prompt."""
    if source != "PICTURE":
        return ()
    paths = {side: getattr(chosen, name) for side, name in FIELDS.items()}
    return tuple(Picture(Path(bpy.path.abspath(paths[side])), side) for side in SIDES if paths[side])


def imagining_of(chosen: GaussmithImagining, source: str) -> Imagining:
    """What the panel's values ask for, with a source of SOURCES. Raises CaptureError."""
    pictures = given(chosen, source)
    sides = any(picture.side != "front" for picture in pictures)
    return Imagining(
        prompt=chosen.prompt if source == "PROMPT" else "",
        negative_prompt=chosen.negative_prompt,
        pictures=pictures,
        front_end=getattr(chosen, FRONT_END_FIELDS[source]),
        cut=chosen.cut.lower(),  # type: ignore[arg-type]
        candidates=1 if sides else chosen.candidates,
        sampling_steps=chosen.sampling_steps,
        guidance=chosen.guidance,
    )


def placing_of(chosen: GaussmithImagining) -> Placing:
    return Placing(chosen.size, math.degrees(chosen.facing), chosen.place.lower())  # type: ignore[arg-type]


def fill(chosen: GaussmithImagining, wanted: Imagining, placing: Placing) -> None:
    """Sets the panel as it was for a result."""
    chosen.prompt, chosen.negative_prompt, chosen.cut = wanted.prompt, wanted.negative_prompt, wanted.cut.upper()
    setattr(chosen, FRONT_END_FIELDS[wanted.source.upper()], wanted.front_end)
    chosen.candidates = 1
    chosen.sampling_steps, chosen.guidance = wanted.sampling_steps, wanted.guidance
    paths = {picture.side: str(picture.path) for picture in wanted.pictures}
    for side, name in FIELDS.items():
        setattr(chosen, name, paths.get(side, ""))
    chosen.size, chosen.facing, chosen.place = placing.size, math.radians(placing.facing), placing.place.upper()


def missing(chosen: GaussmithImagining, source: str) -> str:
    """Why the panel's values are not enough, as a sentence; empty where they are. Looks at no file."""
    try:
        imagining_of(chosen, source)
    except CaptureError as error:
        return str(error)
    return ""
