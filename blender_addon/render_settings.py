"""How a capture renders: settings of the temporary scene, which is a copy, so nothing needs to be put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy

from .camera_matrix import Frame
from .views import CaptureError, CaptureSettings

_CYCLES_SAMPLES = {"preview": 16, "standard": 64, "final": 256}
_EEVEE_SAMPLES = {"preview": 8, "standard": 32, "final": 64}
_WORKBENCH_SAMPLES = {"preview": "5", "standard": "8", "final": "32"}
EEVEE = ("BLENDER_EEVEE", "BLENDER_EEVEE_NEXT")

_RENDER = {
    "film_transparent": True,
    "use_border": False,
    "use_crop_to_border": False,
    "use_compositing": False,  # nor do its file output nodes run
    "use_sequencer": False,
    "use_multiview": False,
    "use_motion_blur": False,
    "use_freestyle": False,
    "use_stamp": False,
    "use_overwrite": True,
    "use_placeholder": False,
    "use_file_extension": False,
    "use_single_layer": False,
    "use_lock_interface": False,
    "resolution_percentage": 100,
}
_CYCLES = {
    "use_adaptive_sampling": False,
    "time_limit": 0.0,
    "seed": 0,
    "use_animated_seed": False,
    "samples": 64,
    "use_denoising": True,
    "denoising_use_gpu": False,
}


def frame_of(scene: bpy.types.Scene, settings: CaptureSettings) -> Frame:
    """The pictures' size: a square, or for scene cameras the render's proportions with `resolution` as the longest
    side."""
    render = scene.render
    if settings.source not in ("cameras", "animation"):
        return Frame(settings.resolution, settings.resolution)
    scale = settings.resolution / max(render.resolution_x, render.resolution_y)
    width, height = (max(4, round(side * scale)) for side in (render.resolution_x, render.resolution_y))
    return Frame(width, height, render.pixel_aspect_x, render.pixel_aspect_y)


def configure(scene: bpy.types.Scene, settings: CaptureSettings, frame: Frame) -> None:
    """Make `scene`, which has one view layer, render single RGBA pictures of scene-linear colour, with depth if
    wanted."""
    render = scene.render
    if render.engine not in (*EEVEE, "CYCLES", "BLENDER_WORKBENCH"):
        raise CaptureError(f"The render engine {render.engine} cannot be captured: choose Cycles, Eevee or Workbench.")
    _assign(render, _RENDER)
    render.resolution_x, render.resolution_y = frame.width, frame.height
    render.pixel_aspect_x, render.pixel_aspect_y = frame.pixel_aspect_x, frame.pixel_aspect_y
    _write_linear_exr(render.image_settings)
    _configure_layer(scene.view_layers[0], depth=settings.depth)
    if render.engine == "CYCLES":
        _configure_cycles(scene, settings)
    elif render.engine in EEVEE:
        scene.eevee.taa_render_samples = _EEVEE_SAMPLES[settings.quality]
    else:
        scene.display.render_aa = _WORKBENCH_SAMPLES[settings.quality]


def set_output(scene: bpy.types.Scene, path: Path) -> None:
    scene.render.filepath = str(path)


def _assign(owner: Any, values: dict[str, object]) -> None:
    for name, value in values.items():
        if hasattr(owner, name):  # a few came or went between Blender 4.2 and 5.2
            setattr(owner, name, value)


def _write_linear_exr(image: Any) -> None:
    """Half floats hold more than the eight bits we keep; Blender writes the depth in whole floats all the same."""
    if hasattr(image, "media_type"):  # Blender 5.0 and later
        image.media_type = "MULTI_LAYER_IMAGE"
    image.file_format = "OPEN_EXR_MULTILAYER"
    image.color_mode = "RGBA"
    image.color_depth = "16"
    image.exr_codec = "NONE"
    image.color_management = "FOLLOW_SCENE"


def _configure_layer(layer: bpy.types.ViewLayer, *, depth: bool) -> None:
    layer.use = True
    layer.samples = 0
    for name in layer.bl_rna.properties.keys():
        if name.startswith("use_pass_"):
            setattr(layer, name, name == "use_pass_combined" or (depth and name == "use_pass_z"))
    while layer.aovs:
        layer.aovs.remove(layer.aovs[0])
    cycles = getattr(layer, "cycles", None)
    if cycles is not None:
        _assign(cycles, {"denoising_store_passes": False, "pass_debug_sample_count": False, "use_denoising": True})


def _configure_cycles(scene: bpy.types.Scene, settings: CaptureSettings) -> None:
    cycles = scene.cycles
    _assign(cycles, _CYCLES)
    cycles.samples = _CYCLES_SAMPLES[settings.quality]
    # The views share one scene: build its acceleration structures once. With windows each render job is a thread of
    # its own, and Blender 4.3 crashed when Cycles kept the graphics context that it had made in another one.
    scene.render.use_persistent_data = bpy.app.background
    try:
        cycles.denoiser = "OPENIMAGEDENOISE"
    except TypeError:  # a build or a processor without it
        cycles.use_denoising = False
