"""From the numbers that GRM's heads say to Gaussians: what is added, what keeps them in their ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.gaussians import Gaussians, merge, multiply_quats, quats_of, rgb_to_sh
from backend.models.grm_cameras import Poses, depth_of_origin, unproject
from backend.models.grm_config import GRMConfig
from backend.models.grm_guide import FAINTEST, Guide, without_white

HEADS = {"depth": 1, "feature": 3, "opacity": 1, "scaling": 3, "rotation": 4}  # numbers a Gaussian; feature is colour
OPACITY_OFFSET = -2.0  # Gaussians start about 0.12 opaque
# Where a guided network starts from:
REACH = 0.3  # network units that a raw depth of 1 moves a Gaussian along its ray
INSIDE_HULL = 0.01  # how far behind the hull's entry and before its last leave it lies: it reaches so far itself
FAINT = -3.2  # opacity before the sigmoid, 0.04, above which Gaussians of opaque pixels stay
DOUBT = -6.3  # added to the opacity, before the sigmoid, of pixels whose depth is not known: the backdrop shows through
SIZE_START = -1.9  # sigmoid of it in the range of scales: 0.6 pixels
CLEAREST = 0.98  # colours from 1 - this to this, and alphas up to this, have a logit


@dataclass(frozen=True)
class RawGaussians:
    """What the network returns: N = V*R*R Gaussians in the order view, row, column. Not activated, but for `means`.

    depth     [B,V,R,R] along the view axes, the cameras' distance added
    means     [B,N,3] points at these depths, in the world of the cameras
    feature   [B,N,3] colour before the sigmoid
    opacity   [B,N,1] before the sigmoid
    scaling   [B,N,3] before `scales_of`
    rotation  [B,N,4] wxyz of any length
    unit      [B,N,1] or [1,1,1], length that the scales count in: guided, what a pixel measures at that depth
    backdrop  of each object, where it has one: Gaussians that belong to no pixel
    """

    depth: Tensor
    means: Tensor
    feature: Tensor
    opacity: Tensor
    scaling: Tensor
    rotation: Tensor
    unit: Tensor
    backdrop: tuple[Gaussians | None, ...] = ()


def published(raw: dict[str, Tensor], cameras: Poses, config: GRMConfig) -> RawGaussians:
    """The heads' numbers by name, [B,V,R,R,numbers], as the paper reads them: depths from the origin's on."""
    depth = raw["depth"][..., 0] + depth_of_origin(cameras, config.pixel_grid)[:, :, None, None]  # [B,V,R,R]
    return RawGaussians(
        depth=depth,
        means=unproject(depth, cameras, config.pixel_grid).flatten(1, 3),
        feature=raw["feature"].flatten(1, 3),
        opacity=raw["opacity"].flatten(1, 3) + OPACITY_OFFSET,
        scaling=bounded_scaling(raw["scaling"].flatten(1, 3), config),
        rotation=raw["rotation"].flatten(1, 3),
        unit=depth.new_ones(1, 1, 1),
    )


def guided(raw: dict[str, Tensor], guide: Guide, images: Tensor, cameras: Poses, config: GRMConfig) -> RawGaussians:
    """The same numbers as changes: of the guide's surface, the pixel's colour and alpha, and the view's own axes.

    A Gaussian lies inside the hull, if only just, or where its depth is known.
    """
    hull = guide.hull
    depth = guide.surface + REACH * raw["depth"][..., 0]  # [B,V,R,R]
    depth = torch.maximum(depth, hull.entry + INSIDE_HULL)
    depth = torch.minimum(depth, torch.maximum(hull.entry + INSIDE_HULL, hull.entry + hull.room - INSIDE_HULL))
    depth = torch.where(guide.known, guide.surface, depth)
    colour, alpha = without_white(images).split([3, 1], dim=-1)  # [B,V,R,R,...]
    width = torch.where(cameras.orthographic[..., None, None], 1.0, depth.detach())  # along the ray that pixels widen
    unit = width / (cameras.intrinsics[..., None, None, 0] * images.shape[-1])  # [B,V,R,R]
    solid, clearer = math.log(CLEAREST / (1 - CLEAREST)), alpha.clamp(FAINTEST, CLEAREST).logit()
    said = raw["opacity"] + solid + torch.where(guide.known, 0.0, DOUBT)[..., None]
    opacity = _AtLeast.apply(said, FAINT) + clearer - solid  # type: ignore[operator]
    upright = torch.tensor([1.0, 0, 0, 0], device=depth.device)
    turns = quats_of(cameras.c2w[..., :3, :3])[:, :, None, None]
    return RawGaussians(
        depth=depth,
        means=unproject(depth, cameras, config.pixel_grid).flatten(1, 3),
        feature=(raw["feature"] + colour.clamp(1 - CLEAREST, CLEAREST).logit()).flatten(1, 3),
        opacity=opacity.flatten(1, 3),
        scaling=raw["scaling"].flatten(1, 3) + SIZE_START,
        rotation=multiply_quats(turns, raw["rotation"] + upright).flatten(1, 3),
        unit=unit.flatten(1)[..., None],
    )


class _AtLeast(torch.autograd.Function):
    """max(x, least), where what is below hears all that would raise it: else it would never be seen again."""

    @staticmethod
    def forward(ctx, x: Tensor, least: float) -> Tensor:
        ctx.save_for_backward(x < least)
        return x.clamp_min(least)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        (grad,) = grads
        return torch.where(below & (grad > 0), 0.0, grad), None


# ---- activations


def bounded_scaling(scaling: Tensor, config: GRMConfig) -> Tensor:
    """The network's own part of the scale activation, [...,3] -> [...,3]."""
    match config.scaling_activation_type:
        case "exp":
            return (scaling + config.scale_offset).clamp(max=config.scale_max)
        case "softplus":
            return scaling.clamp(max=config.scale_max)
        case "sigmoid":
            return scaling


def scales_of(scaling: Tensor, config: GRMConfig) -> Tensor:
    """Linear scales [...,3] in the network's world; the sigmoid keeps them in a range (paper eq. 9)."""
    match config.render_scaling:
        case "exp":
            return scaling.exp()
        case "softplus":
            return config.scale_multi_act * F.softplus(scaling)
        case "sigmoid":
            low, high = config.scale_min_act, config.scale_max_act
            return low + (high - low) * scaling.sigmoid()


def activate(raw: RawGaussians, config: GRMConfig) -> list[Gaussians]:
    """The Gaussians of each object of the batch, in the world of its cameras; those of the pixels come first."""
    quats = F.normalize(raw.rotation, dim=-1)
    scales, opacities = raw.unit * scales_of(raw.scaling, config), raw.opacity[..., 0].sigmoid()
    sh = rgb_to_sh(raw.feature.sigmoid())[:, :, None]  # one colour for all directions (paper 3.1)
    made = [Gaussians(*parts) for parts in zip(raw.means, quats, scales, opacities, sh, strict=True)]
    backdrop = raw.backdrop or (None,) * len(made)
    return [one if more is None else merge([one, more]) for one, more in zip(made, backdrop, strict=True)]
