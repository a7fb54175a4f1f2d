"""Folders of MV-Adapter with tiny random weights, and what the published files of the full size hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tests import tiny_diffusion

SIDE = 64  # pixels of the tiny models' views
SCHEDULE = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
# As published, but for the widths, the depths and the number of heads.
DENOISERS: dict[bool, dict[str, Any]] = {  # of SDXL, of SD 2.1
    True: {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "use_linear_projection": True,
    },
    False: {
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "use_linear_projection": True,
    },
}
TINY: dict[bool, dict[str, Any]] = {
    True: {
        "block_out_channels": (8, 16, 32),
        "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "norm_num_groups": 4,
    },
    False: {
        "block_out_channels": (8, 16, 32, 32),
        "attention_head_dim": (1, 2, 4, 4),
        "cross_attention_dim": 32,
        "norm_num_groups": 4,
    },
}
FULL: dict[bool, dict[str, Any]] = {
    True: {
        "block_out_channels": (320, 640, 1280),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    False: {
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
    },
}


def attention_places(*, xl: bool, widths: tuple[int, ...], depths: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Published names of the layers of self-attention, and their widths."""
    if xl:
        low, high = (widths[1], depths[1]), (widths[2], depths[2])
        blocks = [("down_blocks.1", 2, low), ("down_blocks.2", 2, high), ("mid_block", 1, high)]
        blocks += [("up_blocks.0", 3, high), ("up_blocks.1", 3, low)]
    else:
        blocks = [(f"down_blocks.{number}", 2, (widths[number], 1)) for number in range(3)]
        blocks += [("mid_block", 1, (widths[3], 1))]
        blocks += [(f"up_blocks.{3 - number}", 3, (widths[number], 1)) for number in range(3)]
    for block, count, (width, depth) in blocks:
        for attention in range(count):
            for layer in range(depth):
                yield f"{block}.attentions.{attention}.transformer_blocks.{layer}.attn1.processor", width


def published_shapes(*, xl: bool, pictured: bool, widths: tuple[int, ...], depths: tuple[int, ...]) -> dict[str, Any]:
    """What the adapter's file holds."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, width in attention_places(xl=xl, widths=widths, depths=depths):
        for kind in ("mv", "ref") if pictured else ("mv",):
            shapes |= {f"{place}.to_{part}_{kind}.weight": (width, width) for part in "qkv"}
            shapes |= {f"{place}.to_out_{kind}.0.weight": (width, width), f"{place}.to_out_{kind}.0.bias": (width,)}
    encoder = (*widths, widths[-1]) if xl else widths
    shapes |= _convolution("adapter.conv_in", encoder[0], 6 * (256 if xl else 64), 3)
    for number, width in enumerate(encoder):
        before = encoder[max(number - 1, 0)]
        if before != width:
            shapes |= _convolution(f"adapter.body.{number}.in_conv", width, before, 1)
        for block in range(2):
            shapes |= _convolution(f"adapter.body.{number}.resnets.{block}.block1", width, width, 3)
            shapes |= _convolution(f"adapter.body.{number}.resnets.{block}.block2", width, width, 1)
    return shapes


def _convolution(name: str, outward: int, inward: int, side: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outward, inward, side, side), f"{name}.bias": (outward,)}


def write_adapter(path: Path, *, xl: bool, pictured: bool, scale: float = 0.3) -> None:
    chance = torch.Generator().manual_seed(5)
    depths = TINY[xl].get("transformer_layers_per_block", (1,) * 4)
    shapes = published_shapes(xl=xl, pictured=pictured, widths=TINY[xl]["block_out_channels"], depths=depths)
    weights = {name: scale * torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    save_file(weights, path)


def write_base(folder: Path, *, xl: bool) -> None:
    tiny_diffusion.tokenizer(folder / "tokenizer", pad="<|endoftext|>" if xl else "!")
    tiny_diffusion.text_encoder().save_pretrained(folder / "text_encoder")
    tiny_diffusion.vae(scaling=0.13025 if xl else 0.18215).save_pretrained(folder / "vae")
    if xl:
        tiny_diffusion.tokenizer(folder / "tokenizer_2")
        tiny_diffusion.text_encoder(projected=True, seed=1).save_pretrained(folder / "text_encoder_2")
    torch.manual_seed(2)
    UNet2DConditionModel(sample_size=SIDE // 8, **DENOISERS[xl], **TINY[xl]).save_pretrained(folder / "unet")
    own = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "use_karras_sigmas": False}
    (folder / "scheduler").mkdir()
    told = {**SCHEDULE, **(own if xl else {"_class_name": "PNDMScheduler"})}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))


def damage(folder: Path, file: str, broken: str) -> None:
    adapter, scheduler = folder / file, folder / "scheduler" / "scheduler_config.json"
    unet, vae = (folder / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
    bias = "adapter.conv_in.bias"
    match broken:
        case "no adapter":
            adapter.unlink()
        case "half an adapter" | "half a vae":
            path = adapter if broken == "half an adapter" else vae
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "other adapter":
            write_adapter(adapter, xl=False, pictured=True)
        case "lacking" | "shape":
            weights = load_file(adapter)
            del weights[bias]
            save_file(weights | ({bias: torch.zeros(9)} if broken == "shape" else {}), adapter)
        case "no scheduler":
            scheduler.unlink()
        case "foreign scheduler":
            scheduler.write_text(json.dumps({**SCHEDULE, "_class_name": "HeunDiscreteScheduler"}))
        case "foreign towers":
            tiny_diffusion.text_encoder(width=16).save_pretrained(folder / "text_encoder")
        case "no unet":
            unet.unlink()
        case "no tokenizer":
            (folder / "tokenizer" / "vocab.json").unlink()
