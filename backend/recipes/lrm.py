"""LRM (Hong et al. 2024), as OpenLRM trains it: mean squares and a perceptual term over patches of marched pictures of
the field, and smooth planes.

The first view is the only input. Its camera counts as the canonical one at its own distance, and all other cameras
stand around it as they do in the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backend import losses
from backend.bad_input import BadInput
from backend.cameras import Cameras, rays
from backend.compositing import over, premultiplied
from backend.gaussians import Gaussians
from backend.hull import NothingSeen
from backend.image_encoder import DinoConfig, Dinov2Config
from backend.models.lrm import PRESETS, Lrm, LrmConfig, config_from, prepared
from backend.ray_marching import march_importance
from backend.recipes import Batch
from backend.triplane import Triplane

__all__ = ["MODEL", "PRESETS", "WEIGHTS", "config_data", "config_from", "loss", "predict"]

MODEL = Lrm
WEIGHTS = {"rgb": 1.0, "perceptual": 1.0, "smooth": 5e-4}
PATCH = 64  # pixels of a side of what is compared of each view
GREYS = (0.0, 0.5, 1.0)  # backgrounds of what is compared
LEAST_DISTANCE = 1e-3  # scene units, of the first camera from the object's middle
FLIP = (1.0, -1.0, -1.0, 1.0)  # OpenCV camera axes to OpenGL's, which the network is told


def loss(
    model: Lrm, batch: Batch, share: float, rng: torch.Generator, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """See `backend.recipes.Recipe`. Wants one input, and perspective views."""
    del share
    planes, to_field = _looked_at(model, batch)
    rows = []
    for item, matrix in enumerate(to_field):
        c2w = matrix @ batch.c2w[item]
        cameras = replace(batch.cameras(item), c2w=c2w)
        want, part = patches(batch.images[item], cameras, min(PATCH, *batch.images.shape[2:4]), rng)
        grey = torch.tensor(GREYS)[torch.randint(len(GREYS), (len(want),), generator=rng)].to(want)
        got = marched(model.field(planes[item]), part, grey, model.config.samples, rng)
        want = over(want, grey[:, None, None, None])
        look = losses.perceptual(got, want) if weights["perceptual"] else torch.zeros(()).to(want)
        rows.append(torch.stack([F.mse_loss(got, want), look]))
    rgb, look = torch.stack(rows).mean(0).unbind()
    smooth = weights["smooth"] * variation(planes)
    return {"rgb": weights["rgb"] * rgb, "perceptual": weights["perceptual"] * look, "smooth": smooth}


@torch.no_grad()
def predict(model: Lrm, batch: Batch) -> list[Gaussians]:
    """See `backend.recipes.Recipe`: splats on the field's surface, none where it has no surface yet."""
    planes, to_field = _looked_at(model, batch)
    fields = [model.field(one) for one in planes]
    worlds = [torch.linalg.inv(matrix.double().cpu()) for matrix in to_field]
    pairs = zip(fields, worlds, strict=True)
    return [_splats(replace(field, world=world), 4 * model.config.plane_side) for field, world in pairs]


def _splats(field: Triplane, resolution: int) -> Gaussians:
    try:
        return field.splats(resolution)
    except NothingSeen:
        sizes = ((0, 3), (0, 4), (0, 3), (0,), (0, 1, 3))
        return Gaussians(*(torch.zeros(size, device=field.planes.device) for size in sizes))


def patches(images: Tensor, cameras: Cameras, side: int, rng: torch.Generator) -> tuple[Tensor, Cameras]:
    """A square [V,side,side,4] of each picture [V,H,W,4], at a random place of it, and the cameras that see only that.

    All pictures are first reduced to one random size, at which the square is from a little to all of them.
    """
    size = int(torch.randint(side, min(images.shape[1:3]) + 1, (), generator=rng))
    small = F.interpolate(_premultiplied(images), (size, size), mode="area").permute(0, 2, 3, 1)
    corners = torch.randint(size - side + 1, (len(images), 2), generator=rng)  # row and column
    cut = [view[row : row + side, column : column + side] for view, (row, column) in zip(small, corners, strict=True)]
    premultiplied = torch.stack(cut)
    rgb = premultiplied[..., :3] / premultiplied[..., 3:].clamp_min(1e-6)
    cameras = cameras.resized(size, size)
    Ks = cameras.Ks.clone()
    Ks[:, :2, 2] -= corners.flip(1).to(Ks)
    return torch.cat([rgb, premultiplied[..., 3:]], -1), replace(cameras, Ks=Ks, width=side, height=side)


def _premultiplied(images: Tensor) -> Tensor:
    """[V,4,H,W] of straight alpha [V,H,W,4]."""
    return premultiplied(images).permute(0, 3, 1, 2)


def marched(field: Triplane, cameras: Cameras, grey: Tensor, samples: int, rng: torch.Generator) -> Tensor:
    """[V,H,W,3] pictures of the field over grey backgrounds [V], by samples at random places."""
    rays_o, rays_d = (vectors.flatten(0, 2) for vectors in rays(cameras))
    pixels = cameras.height * cameras.width
    jitter, u = (torch.rand(len(rays_o), samples // 2, generator=rng).to(rays_o) for _ in range(2))
    background = grey.repeat_interleave(pixels)
    seen = march_importance(field, rays_o, rays_d, samples=samples, background=background, jitter=jitter, u=u)
    return seen.rgb.unflatten(0, (len(cameras), cameras.height, cameras.width))


def variation(planes: Tensor) -> Tensor:
    """[] mean squared difference of neighbouring texels of planes [B,3,T,H,W], along rows and columns."""
    return planes.diff(dim=-1).square().mean() + planes.diff(dim=-2).square().mean()


def _looked_at(model: Lrm, batch: Batch) -> tuple[Tensor, Tensor]:
    """Planes [B,3,T,2L,2L] float32 of each object's first view, and the motions [B,4,4] from its world to the field's
    space.
    """
    if batch.inputs != 1 or bool(batch.orthographic.any()):
        raise BadInput(f"inputs: LRM takes one input and perspective views alone, found {batch.inputs} inputs")
    images = torch.stack([view[0] for view in batch.images])
    shown = premultiplied(images)
    pictures = torch.cat([prepared(image, model.config.image_size) for image in shown])
    canonical = torch.stack([canonical_pose(float(c2w[0, :3, 3].norm())) for c2w in batch.c2w]).to(batch.c2w)
    told = camera_vectors(canonical, batch.Ks[:, 0], batch.images.shape[3], batch.images.shape[2])
    planes = model(pictures, told)
    return planes.float(), canonical @ torch.linalg.inv(batch.c2w[:, 0])


def canonical_pose(distance: float) -> Tensor:
    """[4,4] camera to world, OpenCV axes, of a camera in (0, -distance, 0) that looks along +Y, with +Z up."""
    return torch.tensor(
        [[1.0, 0, 0, 0], [0, 0, 1, -max(distance, LEAST_DISTANCE)], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float32
    )


def camera_vectors(c2w: Tensor, Ks: Tensor, width: int, height: int) -> Tensor:
    """[B,16] what the network is told of cameras [B,4,4], OpenCV axes, with intrinsics [B,3,3]; see `source_camera`."""
    rows = (c2w * torch.tensor(FLIP).to(c2w))[:, :3].flatten(1)
    size = torch.tensor([width, height]).to(Ks)
    return torch.cat([rows, Ks[:, [0, 1], [0, 1]] / size, Ks[:, :2, 2] / size], dim=1)


# ---- a configuration's file form


def config_data(config: LrmConfig) -> dict[str, Any]:
    """See `backend.recipes.Recipe`."""
    return {
        "family": "openlrm",
        "layout_version": config.layout,
        "image_size": config.image_size,
        "model": {
            "camera_embed_dim": config.camera_width,
            "rendering_samples_per_ray": config.samples,
            "transformer_dim": config.width,
            "transformer_layers": config.layers,
            "transformer_heads": config.heads,
            "triplane_low_res": config.plane_side,
            "triplane_high_res": 2 * config.plane_side,
            "triplane_dim": config.plane_channels,
            "encoder_feat_dim": config.encoder.width,
        },
        "encoder": _encoder_data(config.encoder),
        "transformer": {"layer_norm_eps": config.eps, "mlp_ratio": config.mlp_ratio},
        "decoder": {"num_linear_layers": config.decoder_layers, "hidden_dim": config.decoder_width},
        "render": {},
    }


def _encoder_data(encoder: DinoConfig | Dinov2Config) -> dict[str, Any]:
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(encoder).items()}
    if isinstance(encoder, DinoConfig):
        kind, names = "dino", DINO_NAMES
    else:
        kind, names = "dinov2", DINOV2_NAMES
        values["hidden"] = encoder.hidden / encoder.width  # a ratio there
    return {"type": kind, **{name: values[field] for field, name in (SHARED_NAMES | names).items()}}


SHARED_NAMES = {  # what a file calls the fields of an encoder's configuration
    "patch": "patch_size",
    "native_side": "native_image_size",
    "eps": "layer_norm_eps",
    "offset": "interpolate_offset",
    "antialias": "interpolate_antialias",
    "qkv_bias": "qkv_bias",
}
DINO_NAMES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "mean": "image_mean",
    "std": "image_std",
    "pooler": "has_unused_pooler",
}
DINOV2_NAMES = {
    "width": "embed_dim",
    "layers": "depth",
    "heads": "num_heads",
    "hidden": "mlp_ratio",
    "registers": "num_register_tokens",
    "layer_scale": "layer_scale",
}
