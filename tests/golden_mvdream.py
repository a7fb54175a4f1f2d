"""Our denoiser of MVDream and ImageDream on a folder of golden values: config.json, weights and input."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backend.checkpoint_files import load_into
from backend.multiview.mvdream_config import UNetConfig, config_from
from backend.multiview.mvdream_unet import Context, MultiViewUNet

NOT_THE_NETWORK = ("num_frames", "elevation", "seed", "weights_stored_as", "compute_dtype")


def run(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's output.safetensors and trace.safetensors, under its name there."""
    data = json.loads((folder / "config.json").read_text())
    config = config_from({key: value for key, value in data.items() if key not in NOT_THE_NETWORK})
    weights, inputs = load_file(folder / "weights.safetensors"), load_file(folder / "input.safetensors")
    frames, dtype = data.get("num_frames", 4), getattr(torch, data.get("compute_dtype", "float32"))
    found = outputs(config, weights, inputs, frames, dtype)
    return found | {"output_f64": outputs(config, weights, inputs, frames, torch.float64)["output"]}


@torch.no_grad()
def outputs(
    config: UNetConfig, weights: dict[str, Tensor], inputs: dict[str, Tensor], frames: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The same values computed with one type of number."""
    unet = MultiViewUNet(config)
    load_into(unet, weights)
    unet = unet.to(dtype)
    given = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    found: dict[str, Tensor] = {}
    for name, module in unet.named_children():
        if name in ("time_embed", "camera_embed", "middle_block", "image_embed"):
            keep(found, f"trace.{name}", module)
    x = given["x"].clone()
    image = unet.image_embed(given["ip"]) if config.ip_dim else None
    if "ip_img" in given:
        x.unflatten(0, (-1, frames))[:, -1] = given["ip_img"]
    found["output"] = unet(x, inputs["timesteps"], given["camera"], Context(given["context"], image, frames))
    return found


def keep(found: dict[str, Tensor], name: str, module: nn.Module) -> None:
    """Has a module's output kept under a name."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        found[name] = output

    module.register_forward_hook(hook)
