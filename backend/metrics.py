"""How close two pictures are, PSNR and SSIM, differentiable and batched; masks; and how close two surfaces are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

SSIM_SIGMA = 1.5  # Wang et al. 2004, section III-B: an 11 x 11 window with this deviation
SSIM_RADIUS = 5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 for pictures whose range L is 1
SOLID = 0.5  # alpha above this is object


def psnr(got: Tensor, want: Tensor) -> Tensor:
    """[] decibels of two arrays of the same shape with range 0..1; at most 100 dB, for equal arrays."""
    return -10 * torch.log10((got - want).square().mean().clamp_min(1e-10))


def ssim(got: Tensor, want: Tensor, *, every: int = 1) -> Tensor:
    """[] mean structural similarity of pictures [V,H,W,C] or [H,W,C] with range 0..1, at every n-th window either way.

    Wang et al. 2004, equation 13, over the pixels whose whole window lies inside the picture. A picture smaller than
    the window is compared as one window.
    """
    return ssim_map(got, want, every).mean()


def ssim_map(got: Tensor, want: Tensor, every: int = 1) -> Tensor:
    """Structural similarity [V,C,H',W'] at every n-th window of pictures [V,H,W,C] or [H,W,C] with range 0..1."""
    height, width, channels = got.shape[-3:]
    x, y = (t.reshape(-1, height, width, channels).permute(0, 3, 1, 2) for t in (got, want))
    moments = window_means(torch.cat([x, y, x * x, y * y, x * y]), every)
    mean_x, mean_y, xx, yy, xy = moments.chunk(5)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    return luminance * (2 * cov + SSIM_C2) / (var_x + var_y + SSIM_C2)


def window_means(planes: Tensor, every: int) -> Tensor:
    """Gaussian-weighted means of [N,C,H,W] over each n-th of the H-10 by W-10 windows, at least one either way.

    Two products with banded matrices: on a CPU that is several times faster than a convolution of single channels.
    """
    height, width = planes.shape[-2:]
    return _windows(height, planes, every) @ (planes @ _windows(width, planes, every).T)


def _windows(size: int, like: Tensor, every: int) -> Tensor:
    """[windows, size] one row of normalised Gaussian weights a window; one whole window when the picture is small."""
    taps = min(2 * SSIM_RADIUS + 1, size)
    positions = torch.arange(size, dtype=like.dtype, device=like.device)
    first = positions[: size - taps + 1 : every, None]
    offsets = positions[None] - first - (taps - 1) / 2
    weights = torch.where(offsets.abs() <= taps / 2, torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2), 0)
    return weights / weights.sum(1, keepdim=True)


# ---- masks


def object_box(alpha: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the smallest rectangle with all pixels of alpha [H,W] above one half; all where none is."""
    rows, columns = torch.nonzero(alpha > SOLID, as_tuple=True)
    if len(rows) == 0:
        return slice(0, alpha.shape[0]), slice(0, alpha.shape[1])
    return slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)


def alpha_iou(got: Tensor, want: Tensor) -> Tensor:
    """[] intersection over union of the pixels of two alpha maps [H,W] above one half; 0 where neither has any."""
    a, b = got > SOLID, want > SOLID
    return (a & b).sum() / (a | b).sum().clamp_min(1)


# ---- surfaces


@dataclass(frozen=True)
class Closeness:
    """How close two surfaces are.

    chamfer  mean distance from a point of either to the nearest of the other, averaged over both ways, scene units
    f1       harmonic mean of the shares of either's points that have one of the other within the limit, 0..1
    """

    chamfer: float
    f1: float


def closeness(got: np.ndarray, want: np.ndarray, *, limit: float) -> Closeness:
    """Of points on two surfaces, [P,3] and [Q,3], at least one each; `limit` in scene units."""
    there, back = KDTree(want).query(got)[0], KDTree(got).query(want)[0]
    precision, recall = float((there < limit).mean()), float((back < limit).mean())
    chamfer = 0.5 * (float(there.mean()) + float(back.mean()))
    return Closeness(chamfer, 2 * precision * recall / max(precision + recall, 1e-9))
