"""Our Long-LRM, Mamba-2 layer and two-direction block on the inputs of a golden folder, under the golden names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backend.cameras import BadInput
from backend.checkpoint_files import load_into
from backend.mamba import Mamba2, Mamba2Config, MambaBlock
from backend.models.long_lrm import IGNORED, LongLRM, PixelGaussians, Pruning, config_from

PRUNED = (0.5, 0.6)  # shares that the golden folders leave out
PUBLISHED_LOT = 0.1
MIXER_FIELDS = {
    "d_model": "dim",
    "d_state": "state",
    "headdim": "head_dim",
    "ngroups": "groups",
    "expand": "expand",
    "d_conv": "kernel",
}
NO_EFFECT = ("seed", "chunk_size", "lengths")  # on the result


def run(folder: Path) -> dict[str, Tensor]:
    """The whole network; every tensor of output.safetensors, and those that other folders have."""
    model = LongLRM(config_from(json.loads((folder / "config.json").read_text())))
    load_into(model, load_file(folder / "weights.safetensors"), IGNORED)
    seen = watch(model)
    inputs = load_file(folder / "input.safetensors")
    images = inputs["input_images"]
    with torch.no_grad():
        pixels = model(images, inputs["input_c2ws"], inputs["input_intr"])
        views, _, height, width = images.shape[1:]
        seen["raw_pixels"] = model.pixels(seen["decoder_raw"], (views, height, width))
    return seen | gaussians(pixels) | pruned(pixels)


def watch(model: LongLRM) -> dict[str, Tensor]:
    """A mapping that fills with intermediate values when the model runs."""
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, name: str, *, given: bool = False) -> None:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = arguments[0] if given else output

        module.register_forward_hook(hook)

    keep(model.tokenizer, "tokenizer_in", given=True)
    keep(model.input_layernorm, "tokens_in")
    keep(model.tokenDecoder, "decoder_raw")
    for index, block in enumerate(model.processor.blocks):
        keep(block, f"block_{index:02d}")
    return seen


def gaussians(pixels: PixelGaussians) -> dict[str, Tensor]:
    items = [pixels.activated(item) for item in range(len(pixels.means))]
    opacities = torch.stack([item.opacities for item in items])
    return {
        "gaussians.xyz": pixels.means,
        "gaussians.feature": pixels.sh,
        "gaussians.scale": pixels.log_scales,
        "gaussians.rotation": pixels.quats,
        "gaussians.opacity": pixels.opacity_logits[..., None],
        "activated.scale": torch.stack([item.scales for item in items]),
        "activated.rotation": torch.stack([item.quats for item in items]),
        "activated.opacity": opacities[..., None],
        "gaussian_usage": (opacities > 0.001).float().mean()[None],
    }


def pruned(pixels: PixelGaussians) -> dict[str, Tensor]:
    """Neighbours in opacity may stand in another order than in the golden file."""
    found = {}
    for share in PRUNED:
        chosen = torch.stack([Pruning(share, min_opacity=0).choose(logits) for logits in pixels.opacity_logits])
        drawn = Pruning(share, PUBLISHED_LOT, min_opacity=0).choose(pixels.opacity_logits[0])
        found[f"prune_{share}.index"] = chosen
        found[f"prune_{share}.xyz"] = torch.stack([xyz[i] for xyz, i in zip(pixels.means, chosen, strict=True)])
        found[f"prune_{share}.count_with_random_0.1"] = torch.tensor([len(drawn)])
    return found


def run_mamba2(folder: Path) -> dict[str, Tensor]:
    """The public Mamba-2 layer, y_L for every u_L."""
    layer = Mamba2(mixer_config(folder))
    load_into(layer, load_file(folder / "weights.safetensors"), IGNORED)
    inputs = load_file(folder / "input.safetensors")
    with torch.no_grad():
        return {name.replace("u_", "y_"): layer(u) for name, u in inputs.items()}


def run_bimamba2(folder: Path) -> dict[str, Tensor]:
    """One residual block, y_L for every x_L, and its branch alone, mixer_L."""
    block = MambaBlock(mixer_config(folder))
    load_into(block, load_file(folder / "weights.safetensors"), IGNORED)
    inputs = load_file(folder / "input.safetensors")
    found = {}
    with torch.no_grad():
        for name, x in inputs.items():
            found[name.replace("x_", "y_")] = block(x)
            found[name.replace("x_", "mixer_")] = block.mamba(block.norm(x))
    return found


def mixer_config(folder: Path) -> Mamba2Config:
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    for key, value in config.items():
        if key not in MIXER_FIELDS and key not in NO_EFFECT:
            raise BadInput(f"{key}: the Mamba-2 layer does not know this field, whose value is {value}")
    return Mamba2Config(**{ours: config[theirs] for theirs, ours in MIXER_FIELDS.items() if theirs in config})
