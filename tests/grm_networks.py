"""Small GRM networks with random weights, and pictures for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from backend.cameras import Views
from backend.models.grm import GRM, GRMConfig
from tests.splat_scenes import cameras_around

RELEASED = GRMConfig(
    input_res=32,
    patch_size=8,
    layers=2,
    width=128,
    window_size=64,
    decoder_ratio=2,
    num_input_views=4,
    render_scaling="sigmoid",
    scale_min_act=0.005,
    scale_max_act=0.02,
)
OWN = replace(
    RELEASED,
    in_channels=4,
    scale_min_act=0.1,
    scale_max_act=4.0,
    pixel_grid="centres",
    shuffle="views",
    qk_norm=True,
    placement="object",
    guided=True,
)


def network(config: GRMConfig, seed: int = 0) -> GRM:
    """Random weights, biases and gains, so that nothing is hidden by a zero or a one."""
    torch.manual_seed(seed)
    model = GRM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def some_views(count: int, side: int = 32, *, orthographic: bool = False, seed: int = 1) -> Views:
    images = torch.rand(count, side, side, 4, generator=torch.Generator().manual_seed(seed))
    return Views(images, cameras_around(count, side, side, orthographic=orthographic))


def standing_views(count: int = 4, *, orthographic: bool = False) -> Views:
    """Pictures of 40 x 40 pixels in whose middle 28 x 28 opaque ones of any colour stand; cut to 32 x 32 for a guided
    network, they stay as they are.
    """
    views = some_views(count, side=40, orthographic=orthographic)
    alpha = torch.zeros(count, 40, 40)
    alpha[:, 6:34, 6:34] = 1
    return replace(views, images=torch.cat([views.images[..., :3], alpha[..., None]], dim=-1))


def batch(config: GRMConfig, views: int, size: int = 1, seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """images, c2w, Ks"""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, views, config.in_channels, config.input_res, config.input_res)
    cameras = cameras_around(size * views, config.input_res, config.input_res)
    images = 2 * torch.rand(shape, generator=generator) - 1
    return images, cameras.c2w.unflatten(0, (size, views)), cameras.Ks.unflatten(0, (size, views))
