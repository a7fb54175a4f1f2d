"""What networks that give Gaussians are compared with: all views of a batch, rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from backend import losses
from backend.cameras import Cameras
from backend.compositing import over
from backend.gaussians import Gaussians
from backend.recipes import Batch
from backend.rendering import Rendering, render

PICTURE_TERMS = ("rgb", "alpha", "perceptual")
DEFER_FROM = 2**22  # Gaussians times views, from which a rendering is made again for its gradient, to save its memory


def picture_terms(
    gaussians: Sequence[Gaussians], batch: Batch, weights: Mapping[str, float], rng: torch.Generator
) -> dict[str, Tensor]:
    """Weighted terms `rgb`, `alpha` (mean squares) and `perceptual`; nothing is rendered where all weights are 0.

    gaussians  of each object, in the batch's world
    Every view has a background of its own, drawn at random: only what is opaque in front of any colour is opaque.
    """
    if not any(weights[name] for name in PICTURE_TERMS):
        return {}
    rows = []
    for item, splats in enumerate(gaussians):
        background = torch.rand(batch.images.shape[1], 3, generator=rng).to(batch.images)
        seen = rendered(splats, batch.cameras(item), background)
        want, alpha = over(batch.images[item], background[:, None, None]), batch.images[item, ..., 3]
        look = losses.perceptual(seen.rgb, want) if weights["perceptual"] else torch.zeros(()).to(want)
        rows.append(torch.stack([F.mse_loss(seen.rgb, want), F.mse_loss(seen.alpha, alpha), look]))
    means = torch.stack(rows).mean(0).unbind()
    return {name: weights[name] * mean for name, mean in zip(PICTURE_TERMS, means, strict=True)}


def rendered(gaussians: Gaussians, cameras: Cameras, background: Tensor) -> Rendering:
    """As `backend.rendering.render`, and what is kept for the gradient does not grow with large scenes' views."""
    make = render_deferred if len(gaussians) * len(cameras) >= DEFER_FROM else render
    return make(gaussians, cameras, background)


def render_deferred(gaussians: Gaussians, cameras: Cameras, background: Tensor) -> Rendering:
    """The same pictures and gradients as `backend.rendering.render`, in the memory of one view.

    The pictures are made without a graph; when their gradient comes, each view is rendered again with one (ARF, Zhang
    et al. 2022, section 4.2). A view is never cut into tiles: at a picture's edges splats are held, and a tile's edges
    would be others.
    """
    parts = [getattr(gaussians, field.name) for field in fields(gaussians)]
    # torch leaves the type of apply() open
    rgb, alpha, depth = _Deferred.apply(cameras, background, *parts)  # type: ignore[misc]
    return Rendering(rgb, alpha, depth)


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cameras: Cameras, background: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.cameras, ctx.background = cameras, background.expand(len(cameras), 3)
        ctx.save_for_backward(*parts)
        seen = render(Gaussians(*parts).detach(), cameras, background)
        return seen.rgb, seen.alpha, seen.depth

    @staticmethod
    def backward(ctx, *picture_grads: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [part.detach().requires_grad_() for part in ctx.saved_tensors]
        for view in range(len(ctx.cameras)):
            with torch.enable_grad():
                seen = render(Gaussians(*leaves), ctx.cameras[[view]], ctx.background[[view]])
            own = [grad[[view]] for grad in picture_grads]
            torch.autograd.backward([seen.rgb, seen.alpha, seen.depth], own)
        return None, None, *(leaf.grad for leaf in leaves)
