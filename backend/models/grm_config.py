"""What GRM networks there are: sizes, choices and the published checkpoints' settings."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

from backend.cameras import BadInput
from backend.models.grm_cameras import PixelGrid
from backend.models.grm_layers import HEAD_SIZE

log = logging.getLogger(__name__)

ScaleActivation = Literal["sigmoid", "exp", "softplus"]


@dataclass(frozen=True)
class GRMConfig:
    """Sizes and choices of a network. The names are those of the published parameter sets. Raises BadInput.

    input_res                  side of the pictures and of the maps of Gaussians, pixels
    patch_size                 side of a patch, pixels of what the network sees
    layers, width              blocks of the encoder and numbers a token, a multiple of 64
    in_channels                of a picture: 3 are RGB over white, 4 RGB and alpha
    window_size                tokens that see each other in the upsampler; None: all
    bwindow_size               the same in the encoder
    decoder_ratio              steps of the upsampler, each doubling the side; the heads' pixel shuffle does the rest
    half_res_input             the network sees the pictures at half their resolution
    num_input_views            views the checkpoint was trained with; others work as far as `view_counts` says
    checkpointing              recompute blocks in the backward pass instead of keeping them
    depth_std                  spread of the depth head's first weights
    scaling_activation_type    what the network does to a raw scale: "exp" adds scale_offset and keeps it below
                               scale_max, "softplus" keeps it below scale_max, "sigmoid" leaves it
    render_scaling             what turns that into a scale, see `scales_of`, with the constants scale_min_act,
                               scale_max_act and scale_multi_act
    Published configurations know none of the following; the defaults are *released*.
    pixel_grid                 "corners": see `plucker`; *own* "centres": pixel centres at +0.5
    shuffle                    the upsampler's grid, see `Upscale`; *own* "views"
    qk_norm                    normalise queries and keys; *own* True
    placement                  how `reconstruct` frames the pictures and sets the scale of the world, see `place`; *own*
                               "object"
    guided                     the network sees what geometry tells and says only what to change, see `grm_guide.py`;
                               scales then count in pixels. *Own* True
    first_azimuth              degrees, where it turns the first camera; the published sets differ
    """

    input_res: int
    patch_size: int
    layers: int
    width: int
    in_channels: int = 3
    window_size: int | None = None
    bwindow_size: int | None = None
    decoder_ratio: int = 0
    half_res_input: bool = False
    num_input_views: int = 1
    checkpointing: bool = False
    depth_std: float = 0.015
    scaling_activation_type: ScaleActivation = "sigmoid"
    scale_offset: float = 0.0
    scale_max: float = 0.0
    render_scaling: ScaleActivation = "exp"
    scale_min_act: float = 1.0
    scale_max_act: float = 1.0
    scale_multi_act: float = 0.1
    pixel_grid: PixelGrid = "corners"
    shuffle: Literal["joint", "views"] = "joint"
    qk_norm: bool = False
    placement: Literal["distance", "object"] = "distance"
    guided: bool = False
    first_azimuth: float = 225.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(field.name, str(field.type), getattr(self, field.name))
        for name in ("input_res", "patch_size", "layers", "width", "in_channels", "num_input_views"):
            _expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _expect(self.width % HEAD_SIZE == 0, "width", f"a multiple of {HEAD_SIZE}", self.width)
        _expect(self.depth_std >= 0, "depth_std", "at least 0", self.depth_std)
        for name in ("window_size", "bwindow_size"):
            window = getattr(self, name)
            _expect(window is None or (window >= 2 and window % 2 == 0), name, "an even number or null", window)
        if self.guided:
            _expect(self.in_channels == 4, "in_channels", "4 (RGB and alpha) where guided", self.in_channels)
            _expect(self.pixel_grid == "centres", "pixel_grid", "'centres' where guided", self.pixel_grid)
            _expect(not self.half_res_input, "half_res_input", "false where guided", self.half_res_input)
            _expect(self.bwindow_size is None, "bwindow_size", "null where guided", self.bwindow_size)
        step, ratio = self.patch_size * (2 if self.half_res_input else 1), self.decoder_ratio
        _expect(self.input_res % step == 0, "input_res", f"a multiple of {step}, a patch's side", self.input_res)
        _expect(0 <= ratio <= 8, "decoder_ratio", "from 0 to 8", ratio)
        _expect(step % 2**ratio == 0, "decoder_ratio", f"2^decoder_ratio to divide {step}, a patch's side", ratio)

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels of a side of pictures that the network takes, the most first; a pixel is left of the least token."""
        halvings = int(math.log2(math.gcd(self.shuffle_left, 2**8))) if self.guided else 0
        return tuple(self.input_res // 2**k for k in range(halvings + 1))

    @property
    def network_res(self) -> int:
        """Side of what the network sees, pixels."""
        return self.input_res // 2 if self.half_res_input else self.input_res

    @property
    def grid(self) -> int:
        """Tokens a side of each view in the encoder."""
        return self.network_res // self.patch_size

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers a token after each step of the upsampler: half, in whole heads."""
        widths, width = [], self.width
        for _ in range(self.decoder_ratio):
            width = max(width // 2, HEAD_SIZE) // HEAD_SIZE * HEAD_SIZE
            widths.append(width)
        return tuple(widths)

    @property
    def shuffle_left(self) -> int:
        """Gaussians a side that the heads make of each last token."""
        return self.input_res // (self.grid * 2**self.decoder_ratio)


CHOICES = {
    "scaling_activation_type": ("sigmoid", "exp", "softplus"),
    "render_scaling": ("sigmoid", "exp", "softplus"),
    "pixel_grid": ("corners", "centres"),
    "shuffle": ("joint", "views"),
    "placement": ("distance", "object"),
}
KINDS = {"int": (int,), "int | None": (int, type(None)), "float": (int, float), "bool": (bool,)}


def _check_kind(name: str, kind: str, value: object) -> None:
    """Raises BadInput unless the value is one of the field's choices or of its type, and finite."""
    if name in CHOICES:
        _expect(value in CHOICES[name], name, " or ".join(CHOICES[name]), value)
    else:
        good = isinstance(value, KINDS[kind]) and isinstance(value, bool) == (kind == "bool")
        good = good and (not isinstance(value, float) or math.isfinite(value))
        _expect(good, name, f"a value of type {kind}", value)


def _expect(good: bool, name: str, expected: str, found: object) -> None:
    if not good:
        raise BadInput(f"config: {name}: expected {expected}, found {found!r}")


# The checkpoints' own configurations travel inside their files; these are for files without one. The paper and the
# released programs give all sizes except input_res and the views' azimuth of `grm_r` and `grm_zero123plus`: 512 and
# 225 + 30 degrees follow from the programs that feed them.
PRESETS: dict[str, GRMConfig] = {
    name: GRMConfig(
        input_res=512,
        patch_size=16,
        layers=24,
        width=768,
        window_size=4096,
        decoder_ratio=4,
        num_input_views=4,
        render_scaling="sigmoid",
        scale_min_act=0.005,
        scale_max_act=0.02,
        first_azimuth=azimuth,
    )
    for name, azimuth in {"grm_u": 225.0, "grm_r": 255.0, "grm_zero123plus": 255.0}.items()
} | {
    "starter": GRMConfig(  # what this project trains and ships
        input_res=256,
        patch_size=16,
        layers=4,
        width=256,
        in_channels=4,
        window_size=256,
        decoder_ratio=1,
        num_input_views=4,
        render_scaling="sigmoid",
        scale_min_act=0.1,
        scale_max_act=4.0,
        pixel_grid="centres",
        shuffle="views",
        qk_norm=True,
        placement="object",
        guided=True,
    ),
}

# ---- a configuration's file form

RENDER_NAMES = {  # the renderer's names for fields of GRMConfig
    "scaling_activation_type": "render_scaling",
    "scale_min_act": "scale_min_act",
    "scale_max_act": "scale_max_act",
    "scale_multi_act": "scale_multi_act",
}
TRAINING_RENDERER = ("render_type", "img_height", "img_width", "patch_size")  # size and tiles of the pictures of the
# training loss, which are not part of the network
ABOUT_THE_RUN = ("seed", "batch", "views")  # of golden data


def config_from(data: Mapping[str, Any]) -> GRMConfig:
    """The configuration of `{"visual": {...}, "render": {...}}`, the published parameter sets of network and renderer.

    Absent names mean the published defaults. Raises BadInput naming a field that is unknown, missing or makes no sense;
    `known_part` takes what the published code would not read out of a checkpoint's configuration.
    """
    known, unknown = known_part(data)
    if unknown:
        raise BadInput(f"config: expected only names this network knows, found {', '.join(unknown)}")
    values, render = dict(known["visual"]), known["render"]
    for field in fields(GRMConfig):
        if field.default is MISSING and field.name not in values:
            raise BadInput(f"config: visual.{field.name}: expected a number, found nothing")
    _expect(render.get("sh_degree", 0) == 0, "render.sh_degree", "0", render.get("sh_degree"))
    config = GRMConfig(**values, **_render_values(render))
    if config.scaling_activation_type != config.render_scaling:
        kinds = (config.scaling_activation_type, config.render_scaling)
        log.warning("scaling_activation_type: network %r and renderer %r differ; both are followed", *kinds)
    return config


def _render_values(render: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of GRMConfig. Without a least scale the published renderer takes its own constants for all three."""
    values = {field: render[name] for name, field in RENDER_NAMES.items() if name in render}
    if "scale_min_act" not in render:
        return {name: value for name, value in values.items() if name == "render_scaling"}
    if values.get("render_scaling") == "sigmoid":
        _expect("scale_max_act" in render, "render.scale_max_act", "a number beside scale_min_act", None)
    return values


def known_part(data: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """What `config_from` reads of a configuration, and the names of everything else in it, such as "visual.name"."""
    names = {
        "visual": {field.name for field in fields(GRMConfig)} - set(RENDER_NAMES.values()),
        "render": {*RENDER_NAMES, *TRAINING_RENDERER, "sh_degree"},
    }
    known, unknown = {}, [name for name in data if name not in (*names, *ABOUT_THE_RUN)]
    for section, allowed in names.items():
        given = data.get(section, {})
        if not isinstance(given, Mapping):
            raise BadInput(f"config: {section}: expected names and values, found {given!r}")
        known[section] = {name: value for name, value in given.items() if name in allowed}
        unknown += [f"{section}.{name}" for name in given if name not in allowed]
    return known, tuple(unknown)


def config_data(config: GRMConfig) -> dict[str, dict[str, Any]]:
    """What `config_from` reads back as the same configuration; JSON can hold it."""
    visual = asdict(config)
    return {"render": {name: visual.pop(field) for name, field in RENDER_NAMES.items()}, "visual": visual}
