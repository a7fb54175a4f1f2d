"""SDXL's denoiser in the layout in which it was first published, of one with three blocks each way."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

LAYERS = 1  # of each block

# How SDXL's first layout names what diffusers names otherwise: patterns, tried in this order.
INNER = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def published_name(name: str, with_attention: tuple[bool, ...] = (True, True, False)) -> str:
    """Of a tensor of the denoiser. `with_attention`: of the blocks on the way up."""
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        way, block, kind, layer, rest = found.groups()
        place = int(block) * (LAYERS + 1) + int(layer)
        where = f"input_blocks.{1 + place}" if way == "down" else f"output_blocks.{place}"
        name = f"{where}.{0 if kind == 'resnets' else 1}.{rest}"
    elif found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        name = f"input_blocks.{(int(found[1]) + 1) * (LAYERS + 1)}.0.op.{found[2]}"
    elif found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):
        block = int(found[1])
        name = f"output_blocks.{block * (LAYERS + 1) + LAYERS}.{2 if with_attention[block] else 1}.conv.{found[2]}"
    for ours, theirs in OUTER.items():
        if name.startswith(ours + "."):
            name = theirs + name.removeprefix(ours)
    if "transformer_blocks" not in name:
        for pattern, theirs in INNER:
            name = re.sub(pattern, theirs, name)
    return name


def publish(path: Path, state: dict[str, Tensor]) -> None:
    """A file as published: the tensors of the whole model."""
    tensors = {f"model.diffusion_model.{published_name(name)}": tensor for name, tensor in state.items()}
    others = {"denoiser.sigmas": torch.ones(1000), "first_stage_model.encoder.conv_in.weight": torch.ones(8, 3, 3, 3)}
    torch.save(tensors | others, path)
