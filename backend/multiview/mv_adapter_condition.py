"""What tells MV-Adapter its cameras, and how much noise there is at each of its steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from backend.cameras import Cameras, rays

SNR_SHIFT = 8.0  # as published: six views tell more about one another than one picture's pixels do


def camera_maps(cameras: Cameras) -> Tensor:
    """[V,6,H,W], 0..1: each pixel's direction and its camera's place on the unit sphere, from -1..1.

    The published maps are not moments of rays, although they are called Plücker maps. Their world is ours: Z up, a
    camera at azimuth 0 on -Y, one at azimuth 90 on +X.
    """
    _, rays_d = rays(cameras)
    places = normalize(cameras.centres, dim=-1)[:, None, None].expand_as(rays_d)
    return ((torch.cat([rays_d, places], dim=-1) + 1) / 2).clamp(0, 1).permute(0, 3, 1, 2).contiguous()


def shifted_betas(alphas_cumprod: Tensor, shift: float) -> Tensor:
    """[T] float64: noise added at each step, of a schedule with less signal than one that keeps `alphas_cumprod` [T].

    The ratio of signal to noise is divided by shift**(t/(T-1)): by nothing at the first step, by `shift` at the last,
    and evenly in its logarithm between.
    """
    kept = alphas_cumprod.double()
    later = torch.linspace(0, 1, len(kept), dtype=torch.float64)
    ratio = kept / (1 - kept) * shift**-later
    kept = ratio / (1 + ratio)
    return 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
