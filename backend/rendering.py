"""render(): the one way from Gaussians to pictures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backend.cameras import Cameras
from backend.gaussians import Gaussians
from backend.rasterise_cpu import rasterise


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


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor | None = None,
    *,
    screen_offsets: Tensor | None = None,
) -> Rendering:
    """Differentiable pictures of the Gaussians from every camera, over `background` [3] or [V,3] if given.

    screen_offsets  None or [V,N,2] pixels, added to the projected centres: zeros that require a gradient receive, after
                    backward(), the gradient by the centres in the picture plane (the statistic that densification uses).
    """
    device = gaussians.means.device
    offsets = None if screen_offsets is None else screen_offsets.cpu()
    image = rasterise(gaussians.to("cpu"), cameras.to("cpu"), offsets).to(device)
    rgb, depth, alpha = image[..., :3], image[..., 3], image[..., 4]
    if background is not None:
        colour = background.to(device).expand(len(cameras), 3)[:, None, None]
        rgb = rgb + (1 - alpha[..., None]) * colour
    return Rendering(rgb=rgb, alpha=alpha, depth=depth)
