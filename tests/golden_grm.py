"""Our GRM on a folder of golden data: every tensor of the folder's output.safetensors, under the same names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backend.checkpoint_files import load_into
from backend.gaussians import Gaussians
from backend.models.grm import GRM, IGNORED, config_from
from backend.models.grm_cameras import plucker, poses
from backend.models.grm_gaussians import activate


def run(folder: Path) -> dict[str, Tensor]:
    """The tensors' meaning is told in the README of the golden data."""
    config = config_from(json.loads((folder / "config.json").read_text()))
    model = GRM(config)
    load_into(model, load_file(folder / "weights.safetensors"), IGNORED)
    given = load_file(folder / "input.safetensors")
    Ks = pixel_matrices(given["fxfycxcy"], config.input_res)
    out = record(model, given["images"].shape[1])
    with torch.no_grad():
        raw = model(given["images"], given["c2ws"], Ks)
    out["plucker"] = plucker(poses(given["c2ws"], Ks, None, config.input_res), config.network_res, config.pixel_grid)
    out |= {f"latent.{name}": getattr(raw, name) for name in ("depth", "feature", "opacity", "scaling", "rotation")}
    out["latent.xyz"] = raw.means
    out |= rendered(activate(raw, config))
    out |= raster_cameras(given["c2ws"], given["fxfycxcy"])
    return {name: value.contiguous() for name, value in out.items()}


def pixel_matrices(fxfycxcy: Tensor, side: int) -> Tensor:
    """Ks [B,V,3,3] in pixels for intrinsics [B,V,4] as shares of the picture's side."""
    fx, fy, cx, cy = (fxfycxcy * side).unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def record(model: GRM, views: int) -> dict[str, Tensor]:
    """A dictionary that the model's next forward fills with its intermediate tensors."""
    out: dict[str, Tensor] = {}
    encoder, upsampler = (model.visual_encoder[name] for name in ("transformer_encoder", "gaussian_upsampler"))

    def keep(module: nn.Module, name: str, shape: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        module.register_forward_hook(lambda _module, _given, result: out.update({name: shape(result)}))

    def by_view(x: Tensor) -> Tensor:
        return x.reshape(-1, views, model.config.grid**2, x.shape[-1])

    encoder.register_forward_pre_hook(lambda _module, given: out.update(network_image=given[0]))
    keep(encoder.get_submodule("layernorm1"), "tokens_in", by_view)
    for i, block in enumerate(encoder.get_submodule("transformer.resblocks").children()):
        keep(block, f"encoder_block_{i:02d}")
    keep(encoder, "encoder_tokens", by_view)
    for level in range(model.config.decoder_ratio):
        keep(upsampler.get_submodule(f"upsampler_{level}"), f"up_{level}_shuffled")
        for j, block in enumerate(upsampler.get_submodule(f"attention_{level}.resblocks").children()):
            keep(block, f"up_{level}_block_{j}")
    if model.config.decoder_ratio:
        keep(upsampler, "upsampler_out")

    def keep_heads(_module: nn.Module, _given: object, tokens: Tensor) -> None:
        maps = model.head_maps(tokens, views)
        out.update({f"head.{name}": x.permute(0, 1, 4, 2, 3) for name, x in maps.items()})

    upsampler.register_forward_hook(keep_heads)
    return out


def rendered(objects: list[Gaussians]) -> dict[str, Tensor]:
    """What the published rasteriser receives."""
    return {
        "render.means3D": torch.stack([gaussians.means for gaussians in objects]),
        "render.colors": torch.stack([gaussians.colours for gaussians in objects]),
        "render.opacities": torch.stack([gaussians.opacities for gaussians in objects])[..., None],
        "render.scales": torch.stack([gaussians.scales for gaussians in objects]),
        "render.rotations": torch.stack([gaussians.quats for gaussians in objects]),
    }


def raster_cameras(c2w: Tensor, fxfycxcy: Tensor, near: float = 0.01, far: float = 100.0) -> dict[str, Tensor]:
    """The published rasteriser's matrices, for row vectors. Our own renderer needs none of these."""
    fx, fy, cx, cy = fxfycxcy.unbind(-1)
    projection = torch.zeros_like(c2w)
    projection[..., 0, 0], projection[..., 1, 1] = 2 * fx, 2 * fy
    projection[..., 0, 2], projection[..., 1, 2] = 2 * cx - 1, 2 * cy - 1
    projection[..., 2, 2], projection[..., 2, 3] = far / (far - near), -far * near / (far - near)
    projection[..., 3, 2] = 1
    view = torch.linalg.inv(c2w)
    return {
        "raster.viewmatrix": view.transpose(-1, -2),
        "raster.projmatrix": (projection @ view).transpose(-1, -2),
        "raster.campos": c2w[..., :3, 3],
        "raster.tanfov": 0.5 / fxfycxcy[..., :2],
    }
