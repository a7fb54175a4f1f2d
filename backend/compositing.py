"""Pictures [...,4] of red, green, blue and alpha, 0..1, whose colours are straight, or premultiplied by alpha."""

from __future__ import annotations

import torch
from torch import Tensor


def over(images: Tensor, background: Tensor | float) -> Tensor:
    """[...,4] straight alpha, composited in sRGB over a background (a number or [3]) -> [...,3]."""
    alpha = images[..., 3:]
    return images[..., :3] * alpha + background * (1 - alpha)


def premultiplied(images: Tensor) -> Tensor:
    """[...,4] of straight alpha [...,4]."""
    return torch.cat([images[..., :3] * images[..., 3:], images[..., 3:]], dim=-1)


def straight(images: Tensor, faintest: float = 1e-6) -> Tensor:
    """[...,4] of premultiplied [...,4]; below the alpha `faintest` colours are darker than they should be, not wild."""
    alpha = images[..., 3:]
    return torch.cat([(images[..., :3] / alpha.clamp_min(faintest)).clamp(0, 1), alpha], dim=-1)
