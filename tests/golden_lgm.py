"""Our LGM on a folder of golden values: config.json, weights.safetensors and input.safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backend.checkpoint_files import load_into
from backend.gaussians import sh_to_rgb
from backend.models.lgm import IGNORED, LGM, LGMConfig, config_from, decode, legacy_rotations


def run(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's output.safetensors and trace.safetensors, under its name there."""
    data = json.loads((folder / "config.json").read_text())
    weights, inputs = load_file(folder / "weights.safetensors"), load_file(folder / "input.safetensors")["input"]
    config = config_from(data)
    found = outputs(config, weights, inputs, getattr(torch, data.get("compute_dtype", "float32")))
    double = outputs(config, weights, inputs, torch.float64)
    return found | {f"{name}_f64": tensor for name, tensor in double.items()}


@torch.no_grad()
def outputs(config: LGMConfig, weights: dict[str, Tensor], inputs: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same values computed with one type of number."""
    model = LGM(config)
    load_into(model, weights, IGNORED)
    model = model.to(dtype)
    found: dict[str, Tensor] = {}
    parts: dict[str, nn.Module] = {"unet_raw": model.unet}
    for name, module in model.unet.named_modules():
        if re.fullmatch(r"mid_block|(down|up)_blocks\.\d+", name):
            parts[f"trace.{name}"] = module
    for name, module in parts.items():
        module.register_forward_hook(_keeper(found, name))
    raw = model(inputs.to(dtype))
    found["head_raw"] = raw.flatten(0, 1)
    found["gaussians"] = torch.stack([rows(sample) for sample in raw])
    rotation = raw[:, :, 7:11].permute(0, 1, 3, 4, 2).flatten(1, 3)  # [B,N,4]
    found["rotation_legacy"] = torch.stack([legacy_rotations(sample) for sample in rotation])
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _keeper(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    """A forward hook that keeps a block's picture; a block of the way down also gives what waits for the way up."""

    def keep(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, list[Tensor]]) -> None:
        found[name] = output[0] if isinstance(output, tuple) else output

    return keep


def rows(raw: Tensor) -> Tensor:
    """[N,14] position, opacity, scale, rotation wxyz, RGB, as the published code orders them."""
    gaussians = decode(raw)
    columns = (gaussians.means, gaussians.opacities[:, None], gaussians.scales, gaussians.quats)
    return torch.cat([*columns, sh_to_rgb(gaussians.sh[:, 0])], dim=-1)
