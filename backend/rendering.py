"""render(): the one way from Gaussians to pictures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backend.cameras import Cameras
from backend.gaussians import Gaussians


@dataclass(frozen=True)
class Rendering:
    """V pictures.

    rgb    [V,H,W,3] sRGB, premultiplied by alpha unless a background was given, then composited over it
    alpha  [V,H,W]   0..1
    depth  [V,H,W]   sum of weight times camera z, not divided by alpha
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


def render(gaussians: Gaussians, cameras: Cameras, background: Tensor | None = None) -> Rendering:
    """Differentiable pictures of the Gaussians from every camera, over `background` [3] or [V,3] if given."""
    raise NotImplementedError
