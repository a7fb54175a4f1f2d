"""The configuration of MVDream's and ImageDream's denoiser, read from a published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.bad_input import BadInput
from backend.config_sections import Section

GROUPS = 32  # of every group norm
IMAGE_WIDTH = 1280  # of CLIP ViT-H/14, which the published weights read

# What the published class can do and no published weights do; how it was trained; who wrote the file.
ONLY = {
    "camera_dim": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "dropout": 0,
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "num_heads": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "n_embed": None,
    "num_attention_blocks": None,
    "adm_in_channels": None,
}
SILENT = ("image_size", "use_checkpoint", "ip_mode", "with_ip", "_class_name", "_diffusers_version", "_name_or_path")


@dataclass(frozen=True)
class UNetConfig:
    """Names are those of the published config.json.

    model_channels         channels at full size
    channel_mult           channels at each size, in model_channels
    num_res_blocks         at each size
    attention_resolutions  at which sizes there are transformers: 1 is the full size, 2 the half
    num_head_channels      width of an attention head
    transformer_depth      blocks of a transformer
    context_dim            width of a text token
    camera_dim             numbers of a camera
    ip_dim                 tokens that a picture becomes; 0 for MVDream
    ip_weight              of the picture's share of the cross-attention
    image_width            of an image encoder's token; not in the config.json
    """

    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_head_channels: int
    transformer_depth: int
    context_dim: int
    in_channels: int = 4
    out_channels: int = 4
    camera_dim: int = 16
    ip_dim: int = 0
    ip_weight: float = 1.0
    image_width: int = IMAGE_WIDTH


def config_from(data: Mapping[str, Any], image_width: int = IMAGE_WIDTH) -> UNetConfig:
    """The configuration that a published config.json tells. Raises BadInput naming the key that is wrong."""
    section = Section(data)
    for key, only in ONLY.items():
        section.expect(key, only)
    section.ignore(*SILENT, "channel_mult", "attention_resolutions")
    config = UNetConfig(
        model_channels=section.whole("model_channels"),
        channel_mult=_wholes(data, "channel_mult"),
        num_res_blocks=section.whole("num_res_blocks"),
        attention_resolutions=_wholes(data, "attention_resolutions"),
        num_head_channels=section.whole("num_head_channels"),
        transformer_depth=section.whole("transformer_depth", default=1),
        context_dim=section.whole("context_dim"),
        in_channels=section.whole("in_channels"),
        out_channels=section.whole("out_channels"),
        ip_dim=section.whole("ip_dim", least=0, default=0),
        ip_weight=section.number("ip_weight", default=1.0),
        image_width=image_width,
    )
    section.close()
    for divisor in (GROUPS, config.num_head_channels):
        if config.model_channels % divisor:
            raise BadInput(f"config: model_channels: expected a multiple of {divisor}, found {config.model_channels}")
    return config


def _wholes(data: Mapping[str, Any], key: str) -> tuple[int, ...]:
    found = data.get(key)
    if not isinstance(found, list | tuple) or not found or not all(type(item) is int and item > 0 for item in found):
        raise BadInput(f"config: {key}: expected a list of whole numbers above 0, found {found!r}")
    return tuple(found)
