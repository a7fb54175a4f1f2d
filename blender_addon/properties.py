"""What the panel lets a user choose. It is saved with the Scene, so nothing here is secret and nothing runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from bpy.props import (
    BoolProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from . import imagining_properties
from .families import DEFAULT_METHOD, FAMILIES, METHODS
from .front_ends import FRONT_ENDS
from .imagining import Imagining
from .imagining_properties import GaussmithImagining
from .order import LARGEST_FACES, SMALLEST_FACES, TEXTURE_SIZES, Order
from .views import CaptureSettings

SOURCES = (
    ("ORBIT", "Orbit Selection", "New cameras around the selected objects", "CON_FOLLOWTRACK", 0),
    ("CAMERAS", "Scene Cameras", "The cameras of the scene", "OUTLINER_OB_CAMERA", 1),
    ("ANIMATION", "Animated Camera", "The active camera over a range of frames", "CAMERA_DATA", 2),
    ("VIEWPORT", "Viewport", "What this 3D viewport shows, and an orbit that starts there", "VIEW3D", 3),
    ("FILES", "Image Files", "Pictures and cameras named by a transforms.json", "FILE_IMAGE", 4),
    ("PROMPT", "Prompt", "Views that a front end makes of a few words", "SYNTAX_OFF", 5),
    (
        "PICTURE",
        "Picture",
        "Views that a front end makes of a picture, or pictures of its sides",
        "IMAGE_DATA",
        6,
    ),
)
RENDERED = ("ORBIT", "CAMERAS", "ANIMATION", "VIEWPORT")  # the sources whose pictures Blender renders
OWN_CHOICE = ("MODEL", "Choose Model", "A model with settings of your own", 9)  # beside the methods
METHOD_ITEMS = (*((item.name.upper(), item.title, item.tip, item.number) for item in METHODS.values()), OWN_CHOICE)
QUALITIES = (
    ("PREVIEW", "Preview", "Small, with few samples, to see whether the views are right; a fit to them is short"),
    ("STANDARD", "Standard", "Of medium size, with enough samples for a good result"),
    ("FINAL", "Final", "Large, with the scene's own samples; a fit to them is long"),
)
PRECISIONS = (
    ("AUTO", "Automatic", "The most exact that fits into the memory"),
    ("FLOAT32", "Full", "32 bits: exact, and the most memory"),
    ("BFLOAT16", "Half (bfloat16)", "Half the memory; faster where the hardware has it"),
    ("FLOAT16", "Half (float16)", "Half the memory; for graphics cards without bfloat16"),
)
OUTPUTS = (
    ("SPLATS", "Splats", "Gaussian splats: the look of the pictures from all sides"),
    ("MESH", "Mesh", "A closed mesh with a UV map and a baked texture"),
    ("BOTH", "Both", "Splats and mesh as two faces of one result"),
)
# Share of the default number of optimisation steps; 1 asks the backend for its default
FIT_STEPS = {"PREVIEW": 120, "STANDARD": 0, "FINAL": 2000}
RESOLUTIONS = {"PREVIEW": 256, "STANDARD": 512, "FINAL": 768}


def model_items(chosen: Any, _context: bpy.types.Context | None) -> list[tuple[str, str, str, int]]:
    """The families this backend offers, `fit` before any has answered; of these, the ones that the views suit."""
    from .studio import offered_models

    fitting = tuple(FAMILIES)
    if chosen.source in imagining_properties.SOURCES:
        field = imagining_properties.FRONT_END_FIELDS[chosen.source]
        fitting = FRONT_ENDS[getattr(chosen.imagining, field)].models
    offered = (FAMILIES[name] for name in offered_models() if name in fitting)
    return [(family.name, family.title, family.tip, family.number) for family in offered]


class GaussmithSettings(bpy.types.PropertyGroup):
    """Hung on Scene as `gaussmith`."""

    imagining: PointerProperty(  # type: ignore[valid-type]
        name="Views", description="How views are made of a prompt or a picture", type=GaussmithImagining
    )
    source: EnumProperty(name="Source", description="Where the views come from", items=SOURCES)  # type: ignore[valid-type]
    transforms: StringProperty(  # type: ignore[valid-type]
        name="Cameras File",
        description="A transforms.json beside its pictures, as NeRF tools write it",
        subtype="FILE_PATH",
    )
    method: EnumProperty(  # type: ignore[valid-type]
        name="Method",
        description="How the views become splats, from the quickest to the most exact",
        items=METHOD_ITEMS,
        default=DEFAULT_METHOD.upper(),
    )
    model: EnumProperty(name="Model", description="What turns the views into splats", items=model_items)  # type: ignore[valid-type]
    quality: EnumProperty(  # type: ignore[valid-type]
        name="Pictures",
        description="How much care and time to spend on the pictures",
        items=QUALITIES,
        default="STANDARD",
    )
    output: EnumProperty(name="Output", description="What joins the scene", items=OUTPUTS)  # type: ignore[valid-type]

    count: IntProperty(  # type: ignore[valid-type]
        name="Views", description="How many pictures to take", default=24, min=4, max=64
    )
    use_elevations: BoolProperty(  # type: ignore[valid-type]
        name="Choose Elevations",
        description="Set the heights of the orbit's cameras instead of leaving them to the count",
    )
    elevation_low: FloatProperty(  # type: ignore[valid-type]
        name="Lowest", description="Elevation of the lowest cameras in degrees", default=-10, min=-90, max=90
    )
    elevation_high: FloatProperty(  # type: ignore[valid-type]
        name="Highest", description="Elevation of the highest cameras in degrees", default=50, min=-90, max=90
    )
    rings: IntProperty(
        name="Rings", description="How many elevations the cameras take in turn", default=3, min=1, max=8
    )  # type: ignore[valid-type]
    distance: FloatProperty(  # type: ignore[valid-type]
        name="Distance",
        description="How far the cameras stand; at 1 the object's bounding sphere just fits the picture",
        default=1.1,
        min=0.01,
        max=100,
        soft_max=4,
    )
    lens: FloatProperty(  # type: ignore[valid-type]
        name="Lens", description="Focal length of the orbit's cameras in millimetres", default=50, min=1, max=5000
    )
    use_resolution: BoolProperty(  # type: ignore[valid-type]
        name="Choose Resolution", description="Set the size of the pictures instead of leaving it to their care"
    )
    resolution: IntProperty(  # type: ignore[valid-type]
        name="Resolution", description="Pixels of the pictures' longest side", default=512, min=4, max=8192
    )
    depth: BoolProperty(  # type: ignore[valid-type]
        name="Depth", description="Also take the distance of the surface: a better start for the fit", default=True
    )
    cameras: EnumProperty(  # type: ignore[valid-type]
        name="Cameras",
        description="Which of the scene's cameras to use",
        items=(("ALL", "All", "Every camera of the scene"), ("SELECTED", "Selected", "The selected cameras")),
    )
    selected_only: BoolProperty(  # type: ignore[valid-type]
        name="Selected Only", description="Capture the selected objects and their children alone", default=True
    )
    others: EnumProperty(  # type: ignore[valid-type]
        name="Others",
        description="What becomes of the rest of the scene",
        items=(
            ("HIDDEN", "Hidden", "The rest is not there: no shadow, no reflection of it"),
            ("HOLDOUT", "Holdout", "The rest is cut out of the picture but still casts light and shadow"),
        ),
    )
    frame_start: IntProperty(name="First Frame", description="First frame of the animation to use", default=1)  # type: ignore[valid-type]
    frame_end: IntProperty(name="Last Frame", description="Last frame of the animation to use", default=24)  # type: ignore[valid-type]
    frame_step: IntProperty(name="Frame Step", description="Frames from one view to the next", default=1, min=1)  # type: ignore[valid-type]

    use_steps: BoolProperty(  # type: ignore[valid-type]
        name="Choose Steps", description="Set the length of the fit instead of leaving it to the pictures"
    )
    steps: IntProperty(  # type: ignore[valid-type]
        name="Steps", description="Optimisation steps of the fit", default=600, min=1, max=1_000_000, soft_max=10_000
    )
    weights: StringProperty(  # type: ignore[valid-type]
        name="Weights",
        description="A checkpoint's file, or its name in the preferences; empty: the model's usual one",
        subtype="FILE_PATH",
    )
    precision: EnumProperty(  # type: ignore[valid-type]
        name="Precision", description="Of the numbers that a network computes with", items=PRECISIONS
    )
    max_splats: IntProperty(  # type: ignore[valid-type]
        name="Splat Limit", description="At most so many splats; 0 leaves it to the model", min=0, max=100_000_000
    )
    refine: IntProperty(  # type: ignore[valid-type]
        name="Refine", description="Steps of fit after a network's pass", min=0, max=1_000_000, soft_max=1000
    )
    faces: IntProperty(  # type: ignore[valid-type]
        name="Faces", description="Target face count of the mesh", default=20_000, min=SMALLEST_FACES, max=LARGEST_FACES
    )
    texture_size: EnumProperty(  # type: ignore[valid-type]
        name="Texture",
        description="Pixels of the baked texture's side",
        items=tuple((str(size), f"{size} px", "") for size in TEXTURE_SIZES),
        default="1024",
    )
    seed: IntProperty(name="Seed", description="The same seed and views give the same result", min=0)  # type: ignore[valid-type]

    last_result: StringProperty(name="Last Result", description="Name of the newest result's empty")  # type: ignore[valid-type]


def capture_settings(chosen: GaussmithSettings) -> CaptureSettings:
    """Raises CaptureError for values that make no sense together."""
    elevations: tuple[float, ...] = ()
    if chosen.use_elevations:
        elevations = tuple(np.linspace(chosen.elevation_low, chosen.elevation_high, chosen.rings).tolist())
    return CaptureSettings(
        source=chosen.source.lower() if chosen.source in RENDERED else "orbit",  # type: ignore[arg-type]
        count=chosen.count,
        elevations=elevations,
        distance=chosen.distance,
        lens=chosen.lens,
        resolution=chosen.resolution if chosen.use_resolution else RESOLUTIONS[chosen.quality],
        depth=chosen.depth,
        quality=chosen.quality.lower(),  # type: ignore[arg-type]
        cameras=chosen.cameras.lower(),  # type: ignore[arg-type]
        selected_only=chosen.selected_only,
        others=chosen.others.lower(),  # type: ignore[arg-type]
        frames=(chosen.frame_start, chosen.frame_end, chosen.frame_step),
    )


def weights_of(chosen: GaussmithSettings) -> str:
    """A name as it is, a path as one that the backend understands."""
    return bpy.path.abspath(chosen.weights) if chosen.weights.startswith("//") else chosen.weights


def model_of(chosen: GaussmithSettings) -> str:
    """The family that the panel's method or model means."""
    method = METHODS.get(chosen.method.lower())
    return method.model if method is not None else chosen.model or "fit"


def way_of(chosen: GaussmithSettings) -> dict[str, Any]:
    """The fields of an Order that say how the splats are made."""
    method, model = METHODS.get(chosen.method.lower()), model_of(chosen)
    way = {"method": method.name, **method.settings} if method is not None else {"model": model}
    if model == "fit":
        usual = FIT_STEPS[chosen.quality] if chosen.source not in imagining_properties.SOURCES else 0
        return way | {"steps": chosen.steps if chosen.use_steps else usual}
    own = {"weights": weights_of(chosen), "precision": chosen.precision.lower(), "refine": chosen.refine}
    return way if method is not None else way | own


def order(chosen: GaussmithSettings, device: str, *, imagining: Imagining | None = None) -> Order:
    """What the panel's values ask for, read once when Generate is pressed. Raises CaptureError.

    imagining  what chosen views were made of, in place of what the panel says now
    """
    if imagining is None and chosen.source in imagining_properties.SOURCES:
        imagining = imagining_properties.imagining_of(chosen.imagining, chosen.source)
    transforms = Path(bpy.path.abspath(chosen.transforms)) if chosen.source == "FILES" else None
    return Order(
        capture=capture_settings(chosen),
        transforms=transforms,
        imagining=imagining,
        placing=imagining_properties.placing_of(chosen.imagining),
        **way_of(chosen),
        max_splats=chosen.max_splats,
        output=chosen.output.lower(),  # type: ignore[arg-type]
        faces=chosen.faces,
        texture_size=int(chosen.texture_size),
        device=device,  # type: ignore[arg-type]
        seed=chosen.seed,
    )


def order_with_views(chosen: GaussmithSettings, device: str, imagining: Imagining, seed: int) -> Order:
    """What the panel's values ask for of views that have been chosen already. Raises CaptureError."""
    return replace(order(chosen, device, imagining=imagining), seed=seed)


def fill(chosen: GaussmithSettings, source: str, recipe: dict[str, Any]) -> None:
    """Sets the panel to a result's way from views to splats. Raises KeyError for a recipe that lacks it."""
    settings = recipe["settings"]
    chosen.source, chosen.seed = source, recipe["seed"]
    chosen.method = recipe["method"].upper() or OWN_CHOICE[0]
    if not recipe["method"] and recipe["model"] in [item[0] for item in model_items(chosen, None)]:
        chosen.model = recipe["model"]
    chosen.use_steps = settings["steps"] > 0
    chosen.steps = settings["steps"] or chosen.steps
    chosen.output, chosen.texture_size = settings["output"].upper(), str(settings["texture_size"])
    chosen.precision = settings["precision"].upper()
    for name in ("weights", "refine", "max_splats", "faces"):
        setattr(chosen, name, settings[name])
