"""What makes views of a prompt or a picture: the front ends, each with the cameras whose views it makes, and with the
reconstructors that these views suit. Standard library alone: the panel and the backend both read this table.

The object stands at the origin, its front towards -Y, +Z up. A camera at azimuth 0 sees the front; azimuth grows
counterclockwise seen from above, so that azimuth 90 looks from +X.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Takes: TypeAlias = Literal["prompt", "picture"]
Side: TypeAlias = Literal["front", "right", "back", "left"]

SIDES: dict[Side, float] = {"front": 0.0, "right": 90.0, "back": 180.0, "left": 270.0}  # azimuth, degrees


@dataclass(frozen=True)
class Rig:
    """Cameras that look at the origin.

    angles      elevation and azimuth of each view, degrees, in the order of the views
    side        pixels of a picture's side
    radius      distance from the origin, scene units
    fov         opening angle across the picture, degrees; 0 for orthographic cameras
    width       scene units across an orthographic picture; 0 for perspective ones
    background  grey behind the object in the views as they are made, 0..1; None where they have alpha
    """

    angles: tuple[tuple[float, float], ...]
    side: int
    radius: float
    fov: float = 0.0
    width: float = 0.0
    background: float | None = None


@dataclass(frozen=True)
class FrontEnd:
    """One way from a prompt or a picture to views.

    name        what commands and messages call it
    title, tip  what the panel shows
    number      what a .blend stores; never given to another
    takes       what it can be given; where both, one of them is enough
    rig         cameras of its views
    models      families that its views suit, the best first
    steps       of sampling, where the user names none
    guidance    where the user names none
    fill        share of the picture's side that the object of a given picture should have
    input_grey  grey that a given picture's object is put on, 0..1; None: it keeps its alpha
    """

    name: str
    title: str
    tip: str
    number: int
    takes: tuple[Takes, ...]
    rig: Rig
    models: tuple[str, ...]
    steps: int
    guidance: float
    fill: float = 0.8
    input_grey: float | None = 1.0


AROUND = (0.0, 90.0, 180.0, 270.0)
ZERO123PLUS_AZIMUTHS = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
MV_ADAPTER_AZIMUTHS = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
MV_ADAPTER = {
    "models": ("fit", "grm"),
    "steps": 50,
    "fill": 0.9,
    "input_grey": 0.5,
}


def _zero123plus(low: float, high: float, fov: float) -> Rig:
    """Six views, alternately from above and from below."""
    angles = tuple((high if number % 2 == 0 else low, azimuth) for number, azimuth in enumerate(ZERO123PLUS_AZIMUTHS))
    return Rig(angles, side=320, radius=4.0, fov=fov, background=0.5)


def _mv_adapter(side: int) -> Rig:
    return Rig(tuple((0.0, azimuth) for azimuth in MV_ADAPTER_AZIMUTHS), side, radius=2.0, width=1.1, background=0.5)


FRONT_ENDS = {
    front_end.name: front_end
    for front_end in (
        FrontEnd(
            *("starter", "Starter", "Simple objects only; ships with Gaussmith and takes seconds", 0),
            takes=("prompt", "picture"),
            rig=Rig(tuple((20.0, azimuth) for azimuth in AROUND), side=128, radius=2.7, fov=50.0),
            models=("grm", "fit"),
            steps=24,
            guidance=4.0,
            fill=0.7,
            input_grey=None,
        ),
        FrontEnd(
            *("mvadapter-sdxl", "MV-Adapter (SDXL)", "Six views of 768 pixels; for cards of 12 GB and more", 1),
            takes=("prompt",),
            rig=_mv_adapter(768),
            guidance=7.0,
            **MV_ADAPTER,
        ),
        FrontEnd(
            *(
                "mvadapter-sdxl-image",
                "MV-Adapter Picture (SDXL)",
                "Six views of 768 pixels of what a picture shows",
                2,
            ),
            takes=("picture",),
            rig=_mv_adapter(768),
            guidance=3.0,
            **MV_ADAPTER,
        ),
        FrontEnd(
            *("mvadapter-sd21", "MV-Adapter (SD 2.1)", "Six views of 512 pixels; for cards of 6 to 10 GB", 3),
            takes=("prompt",),
            rig=_mv_adapter(512),
            guidance=7.0,
            **MV_ADAPTER,
        ),
        FrontEnd(
            *(
                "mvadapter-sd21-image",
                "MV-Adapter Picture (SD 2.1)",
                "Six views of 512 pixels of what a picture shows",
                4,
            ),
            takes=("picture",),
            rig=_mv_adapter(512),
            guidance=3.0,
            **MV_ADAPTER,
        ),
        FrontEnd(
            *("zero123plus-1.2", "Zero123++ 1.2", "Six views of 320 pixels of what a picture shows; 5 GB", 5),
            takes=("picture",),
            rig=_zero123plus(-10.0, 20.0, 30.0),
            models=("grm", "fit"),
            steps=36,
            guidance=4.0,
            fill=0.9,
            input_grey=0.5,
        ),
        FrontEnd(
            *("zero123plus-1.1", "Zero123++ 1.1", "The version before; its lens is that of the picture", 6),
            takes=("picture",),
            rig=_zero123plus(-20.0, 30.0, 50.0),
            models=("grm", "fit"),
            steps=36,
            guidance=4.0,
            fill=0.8,
            input_grey=0.5,
        ),
        FrontEnd(
            *("mvdream", "MVDream", "Four views of 256 pixels of a prompt", 7),
            takes=("prompt",),
            rig=Rig(tuple((0.0, azimuth) for azimuth in AROUND), side=256, radius=1.5, fov=49.1, background=1.0),
            models=("lgm", "grm", "fit"),
            steps=30,
            guidance=7.5,
        ),
        FrontEnd(
            *("imagedream", "ImageDream", "Four views of 256 pixels of what a picture shows", 8),
            takes=("picture",),
            rig=Rig(tuple((0.0, azimuth) for azimuth in AROUND), side=256, radius=1.5, fov=49.1, background=1.0),
            models=("lgm", "grm", "fit"),
            steps=30,
            guidance=5.0,
        ),
        FrontEnd(
            *("instant3d", "Instant3D", "Four views of 512 pixels of a prompt, by a re-trained SDXL", 9),
            takes=("prompt",),
            rig=Rig(tuple((20.0, azimuth) for azimuth in AROUND), side=512, radius=2.7, fov=50.0, background=1.0),
            models=("grm", "fit"),
            steps=30,
            guidance=5.0,
        ),
    )
}
DEFAULT_FRONT_END = "starter"


def problem(name: str, *, prompt: bool, picture: bool) -> str:
    """Why a front end cannot work from what is given, as a sentence; empty where it can."""
    front_end = FRONT_ENDS[name]
    if not prompt and not picture:
        return "Type a prompt or choose a picture first."
    if picture and "picture" not in front_end.takes:
        return f"{front_end.title} makes views of a prompt alone; remove the picture or choose another front end."
    if not picture and "prompt" not in front_end.takes:
        return f"{front_end.title} needs a picture; choose one, or another front end."
    return ""
