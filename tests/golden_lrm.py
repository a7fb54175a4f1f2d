"""OpenLRM and TripoSR on a folder of golden data: config.json, weights.safetensors, input.safetensors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from backend.cameras import Cameras, look_at, rays
from backend.checkpoint_files import load_into
from backend.models import lrm, triposr
from backend.ray_marching import march_importance, march_uniform
from backend.triplane import Triplane

GRID = 16
OPENGL_TO_OPENCV = torch.tensor([1.0, -1.0, -1.0, 1.0])


def load_openlrm(folder: Path) -> lrm.Lrm:
    model = lrm.Lrm(lrm.config_from(json.loads((folder / "config.json").read_text())))
    load_into(model, load_file(folder / "weights.safetensors"), lrm.IGNORED)
    return model.eval()


@torch.no_grad()
def run_openlrm(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's output.safetensors, and `tokens` for both layouts."""
    model, given = load_openlrm(folder), load_file(folder / "input.safetensors")
    config = json.loads((folder / "config.json").read_text())
    image, camera = given["image"], given["source_camera"]
    output = {"camera_embedding": model.camera_embedder(camera), "image_feats": model.encoder(image)}
    start = model.start_tokens(len(image))
    output["tokens"] = model.transformer(start, output["image_feats"], output["camera_embedding"])
    output["planes"] = model(image, camera)
    fields = [model.field(planes) for planes in output["planes"]]
    points = [field.raw(part) for field, part in zip(fields, given["points"], strict=True)]
    raw = torch.stack(points)
    output["points_sigma_raw"] = raw[..., :1]
    output["points_sigma"] = lrm.READING.density(raw[..., :1])
    output["points_rgb"] = lrm.READING.colour(raw[..., 1:])
    output["grid16_sigma"] = torch.stack([field.density_grid(GRID) for field in fields])[..., None]
    return output | _rendered(fields, given, config["render"]["region_size"], model.config.samples)


def _rendered(fields: list[Triplane], given: dict[str, Tensor], region: int, samples: int) -> dict[str, Tensor]:
    batch, views = given["render_cameras"].shape[:2]
    rays_o, rays_d = _render_rays(given, region)  # [B*M,region*region,3]
    background = given.get("render_bg_colors", torch.ones(batch, views, 1)).reshape(-1, 1).expand(-1, region**2)
    jitter = given["jitter_coarse"][..., 0].unflatten(0, (batch, views))
    u = given["u_fine"].reshape(batch, views, region**2, -1)
    results = [
        march_importance(
            field,
            rays_o.unflatten(0, (batch, views))[index].flatten(0, 1),
            rays_d.unflatten(0, (batch, views))[index].flatten(0, 1),
            samples=samples,
            background=background.reshape(batch, -1)[index],
            jitter=jitter[index].flatten(0, 1),
            u=u[index].flatten(0, 1),
        )
        for index, field in enumerate(fields)
    ]
    pictures = (batch, views, region, region, -1)
    return {
        "ray_origins": rays_o,
        "ray_directions": rays_d,
        "images_rgb": torch.stack([result.rgb for result in results]).reshape(pictures).permute(0, 1, 4, 2, 3),
        "images_depth": torch.stack([result.depth for result in results]).reshape(pictures).permute(0, 1, 4, 2, 3),
        "images_weight": torch.stack([result.alpha for result in results]).reshape(pictures).permute(0, 1, 4, 2, 3),
    }


def _render_rays(given: dict[str, Tensor], region: int) -> tuple[Tensor, Tensor]:
    """[B*M,region*region,3] origins and directions of a region of each picture."""
    cameras = given["render_cameras"].flatten(0, 1)  # [B*M,25]
    sizes = given.get("render_resolutions", torch.full((len(cameras), 1), float(region))).reshape(-1)
    anchors = given.get("render_anchors", torch.zeros(len(cameras), 2)).reshape(-1, 2)
    Ks = cameras[:, 16:].unflatten(1, (3, 3)).clone()
    Ks[:, :2] *= sizes[:, None, None]
    Ks[:, :2, 2] -= anchors.flip(1)  # row, column -> x, y
    c2w = cameras[:, :16].unflatten(1, (4, 4)) * OPENGL_TO_OPENCV
    rays_o, rays_d = rays(Cameras(c2w, Ks, torch.zeros(len(cameras), dtype=torch.bool), region, region))
    return rays_o.flatten(1, 2), rays_d.flatten(1, 2)


def load_triposr(folder: Path) -> triposr.TripoSr:
    model = triposr.TripoSr(triposr.config_from(json.loads((folder / "config.json").read_text())))
    load_into(model, load_file(folder / "weights.safetensors"), triposr.IGNORED)
    return model.eval()


@torch.no_grad()
def run_triposr(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's output.safetensors."""
    model, given = load_triposr(folder), load_file(folder / "input.safetensors")
    image = triposr.prepared(given["image_hwc"], model.config.image_size)
    image_tokens = model.image_tokenizer(image)
    tokens = model.backbone(model.start_tokens(1), image_tokens)
    planes = model(image)
    field = model.field(planes[0])
    raw = field.raw(given["points"])
    output = {
        "cond_image": image.permute(0, 2, 3, 1),
        "image_tokens": image_tokens,
        "tokens": tokens,
        "planes_lowres": model.low_planes(tokens),
        "planes": planes,
        "points_density_raw": raw[:, :1],
        "points_features_raw": raw[:, 1:],
        "points_density": model.reading.density(raw[:, :1]),
        "points_color": model.reading.colour(raw[:, 1:]),
        "grid16_density": field.density_grid(GRID),
    }
    rays_o, rays_d = _orbit_rays(**json.loads((folder / "config.json").read_text())["render_call"])
    pictures = march_uniform(field, rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), samples=model.config.samples)
    output |= {"rays_o": rays_o, "rays_d": rays_d, "images": pictures.rgb.reshape(rays_o.shape)}
    if "extra_rays_o" in given:
        extra = march_uniform(field, given["extra_rays_o"], given["extra_rays_d"], samples=model.config.samples)
        output["extra_ray_colors"] = extra.rgb
    return output


def _orbit_rays(
    *, n_views: int, elevation_deg: float, camera_distance: float, fovy_deg: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """[V,H,W,3] of cameras on a level circle that starts on +X and goes towards +Y."""
    azimuths = torch.arange(n_views) * (2 * math.pi / n_views)
    elevation = torch.full((n_views,), math.radians(elevation_deg))
    level = elevation.cos()
    directions = torch.stack([level * azimuths.cos(), level * azimuths.sin(), elevation.sin()], dim=-1)
    focal = 0.5 * height / math.tan(math.radians(fovy_deg) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    c2w = look_at(camera_distance * directions, torch.zeros(3))
    return rays(Cameras(c2w, K.repeat(n_views, 1, 1), torch.zeros(n_views, dtype=torch.bool), width, height))
