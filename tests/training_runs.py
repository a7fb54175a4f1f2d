"""Runs that take seconds: balls of all sizes and colours to learn, the smallest LGM to learn them, and processes of
their own for runs that are killed or shared.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from backend.cameras import Cameras, Views, look_at, rays
from backend.data import DataConfig
from backend.recipes import Batch
from backend.sample import Sample

DISTANCE, HALF_FOV = 2.0, 0.43
LGM: dict[str, Any] = {
    "input_size": 16,
    "down_channels": [8, 16],
    "down_attention": [False, False],
    "mid_attention": True,
    "up_channels": [16],
    "up_attention": [False],
    "layers_per_block": 1,
    "splat_size": 8,
    "attention_heads": 2,
    "norm_groups": 4,
    "fovy": 49.1,
}
RUN: dict[str, Any] = {
    "family": "lgm",
    "network": LGM,
    "data": {"seed": 3},
    "stages": [
        {"until": 0.5, "size": 8, "views": [4, 5], "weights": {"perceptual": 0}},
        {"size": 16, "views": [5, 5], "weights": {"perceptual": 0}},
    ],
    "batch": 2,
    "micro_batch": 1,
    "rate": 4e-3,
    "validations": 2,
    "validation_objects": 1,
    "average": 0.9,
}


def ball_sample(config: DataConfig, index: int, device: torch.device | str = "cpu") -> Sample:
    """A ball about the origin whose colour is a tint and its normal; first the inputs, evenly around it, then between
    them.
    """
    rng = torch.Generator().manual_seed(config.seed * 7919 + 2 * index + config.held_out)
    number = torch.arange(config.views)
    between = 0.5 * (number >= config.inputs)
    azimuth = 2 * math.pi * (torch.rand((), generator=rng) + (number + between) / config.inputs)
    outward = torch.stack([azimuth.sin(), -azimuth.cos(), 0.3 + 0 * azimuth], dim=-1)
    focal, middle = 0.5 * config.size / math.tan(HALF_FOV), config.size / 2
    K = torch.tensor([[focal, 0, middle], [0, focal, middle], [0, 0, 1]]).repeat(config.views, 1, 1)
    c2w = look_at(DISTANCE * torch.nn.functional.normalize(outward, dim=-1), torch.zeros(3))
    flat = torch.zeros(config.views, dtype=torch.bool)
    cameras = Cameras(c2w, K, flat, config.size, config.size)
    radius, tint = 0.3 + 0.3 * torch.rand((), generator=rng), torch.rand(3, generator=rng)
    return _photographed(cameras, radius, tint, device)


def _photographed(cameras: Cameras, radius: torch.Tensor, tint: torch.Tensor, device: torch.device | str) -> Sample:
    rays_o, rays_d = rays(cameras)
    along = (rays_o * rays_d).sum(-1)
    inside = along**2 - (rays_o**2).sum(-1) + radius**2
    hit = (inside > 0)[..., None]
    points = rays_o + (-along - inside.clamp(min=0).sqrt())[..., None] * rays_d
    normals = torch.where(hit, points / radius, 0.0)
    colour = torch.where(hit, (0.25 + 0.25 * normals + 0.5 * tint).clamp(0, 1), 0.0)
    ahead = ((points - rays_o) * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    views = Views(torch.cat([colour, hit.float()], dim=-1), cameras, torch.where(hit[..., 0], ahead, 0.0))
    return Sample(views.to(device), normals.to(device), "ball", "a ball")


def ball_scene(config: DataConfig, index: int) -> tuple[DataConfig, int]:
    """In place of `backend.data.draw`."""
    return config, index


def ball_take(scenes: Sequence[tuple[DataConfig, int]], device: torch.device | str = "cpu") -> list[Sample]:
    """In place of `backend.data.take`."""
    return [ball_sample(*scene, device) for scene in scenes]


def batch_of(inputs: int, *, objects: int = 2, views: int = 5, size: int = 16, seed: int = 0) -> Batch:
    """Balls."""
    config = DataConfig(seed=seed, size=size, views=views, inputs=max(inputs, 4))
    return Batch.stack([ball_sample(config, index) for index in range(objects)], inputs)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- in processes of their own


def start(config: Mapping[str, Any], out: Path, *, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """A process that trains on balls until it has finished or is killed."""
    context = multiprocessing.get_context("forkserver")  # started once, with everything imported already
    context.set_forkserver_preload(["backend.train", "tests.training_runs"])
    process = context.Process(target=_train, args=(dict(config), out, dict(environment or {})))
    process.start()
    return process


def _train(config: dict[str, Any], out: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from backend import train, train_config, training_data

    torch.set_num_threads(1)
    training_data.draw, training_data.take = ball_scene, ball_take  # type: ignore[assignment]
    train.train(train_config.config_from(config), out, device="cpu")
