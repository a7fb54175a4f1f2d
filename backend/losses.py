"""What fitting minimises: the pictures' error, and the terms that keep few views from bending the splats to them."""

from __future__ import annotations

from torch import Tensor

from backend.metrics import ssim

SSIM_EVERY = 2  # windows of 11 pixels overlap so much that every second one says the same at a quarter of the time


def photometric(got: Tensor, want: Tensor, ssim_share: float) -> Tensor:
    """[] (1-s) L1 + s (1 - SSIM) of pictures [H,W,3] with range 0..1 (Kerbl et al. 2023, equation 7)."""
    difference = (got - want).abs().mean()
    if ssim_share == 0:
        return difference
    return (1 - ssim_share) * difference + ssim_share * (1 - ssim(got, want, every=SSIM_EVERY))


def coverage(got: Tensor, want: Tensor) -> Tensor:
    """[] mean difference of two alpha maps [H,W] with range 0..1."""
    return (got - want).abs().mean()


def oversize(scales: Tensor, largest: float) -> Tensor:
    """[] how far, on average, the longest axis of the splats, `scales` [N,3], exceeds `largest`, in units of it."""
    return (scales.amax(1) / largest - 1).clamp_min(0).mean()


def needles(scales: Tensor, ratio: float) -> Tensor:
    """[] how far, on average, the longest axis of `scales` [N,3] exceeds `ratio` times the middle one.

    Flat discs cost nothing; needles, which look right from the views they were fitted to and stick out of the surface
    from any other, do (the idea of PhysGaussian's anisotropy regulariser, Xie et al. 2024, section 3.5).
    """
    ordered = scales.sort(dim=1).values
    return (ordered[:, 2] / ordered[:, 1].clamp_min(1e-12) - ratio).clamp_min(0).mean()


def perceptual(got: Tensor, want: Tensor) -> Tensor:
    """[] how unlike two sets of pictures [V,H,W,3], range 0..1, look: their structure, and their edges.

    1 - SSIM, and the mean difference of the steps between neighbouring pixels. It stands where the papers have the
    features of a network that was trained to recognise things, whose weights are not ours to give.
    """
    steps = [(got.diff(dim=axis) - want.diff(dim=axis)).abs().mean() for axis in (-3, -2)]
    return 1 - ssim(got, want, every=SSIM_EVERY) + sum(steps)
