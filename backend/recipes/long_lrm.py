"""Long-LRM (Ziwen et al. 2024): mean squares and a perceptual term over rendered views, fewer and fainter Gaussians,
and depths in the right order.

The paper takes the depths from another network, of whose scale nothing is known. Here they are the data's own, and
compared in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.bad_input import BadInput
from backend.gaussians import Gaussians, transform
from backend.models.long_lrm import LongLRM, PixelGaussians, Pruning
from backend.models.long_lrm_cameras import normalise, over_white
from backend.models.long_lrm_config import PRESETS, LongLRMConfig, config_from
from backend.recipes import Batch
from backend.recipes.targets import picture_terms

__all__ = ["MODEL", "PRESETS", "WEIGHTS", "config_data", "config_from", "loss", "predict"]

MODEL = LongLRM
WEIGHTS = {"rgb": 1.0, "alpha": 0.0, "perceptual": 0.5, "opacity": 0.1, "depth": 0.01}
NEAREST = 0.01  # units of the normalised world: what is nearer counts as this far


def config_data(config: LongLRMConfig) -> dict[str, Any]:
    """See `backend.recipes.Recipe`."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    data = {"scene_scale": values.pop("scene_scale")}
    inner = {"transformer": ("head_dim",), "mamba2": ("d_state",), "gaussians": GAUSSIANS}
    parts = {part: {name: values.pop(name) for name in names} for part, names in inner.items()}
    return {"model": values | parts, "data": data}


GAUSSIANS = (
    *("sh_degree", "scale_bias", "scale_max", "opacity_bias", "align_to_pixel", "max_dist"),
    *("prune_ratio", "random_ratio"),
)


def loss(
    model: LongLRM, batch: Batch, share: float, rng: torch.Generator, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """See `backend.recipes.Recipe`. Wants perspective views, and a network that puts Gaussians on its pixels' rays."""
    del share
    raw, to_world = _looked_at(model, batch)
    splats, opacities = [], []
    for item, matrix in enumerate(to_world):
        pruning = Pruning(model.config.prune_ratio, model.config.random_ratio, 0.0, _seed(rng))
        own = raw.activated(item, pruning.choose(raw.opacity_logits[item].detach()))
        splats.append(transform(own, matrix))
        opacities.append(own.opacities.mean())
    terms = picture_terms(splats, batch, weights, rng)
    terms["opacity"] = weights["opacity"] * torch.stack(opacities).mean()
    if weights["depth"]:
        terms["depth"] = weights["depth"] * depth_order(_depths(raw, batch, to_world), batch.depth[:, : batch.inputs])
    return terms


def predict(model: LongLRM, batch: Batch) -> list[Gaussians]:
    """See `backend.recipes.Recipe`; as pruned as `long_lrm.reconstruct` does."""
    raw, to_world = _looked_at(model, batch)
    pruning = Pruning(model.config.prune_ratio, model.config.random_ratio)
    chosen = [pruning.choose(logits) for logits in raw.opacity_logits]
    return [transform(raw.activated(item, chosen[item]), matrix) for item, matrix in enumerate(to_world)]


def depth_order(got: Tensor, want: Tensor) -> Tensor:
    """[] how far depths [...,H,W] are from those wanted, whatever scale and shift either's disparity has (MiDaS, Ranftl
    et al. 2020, equation 5). Where those wanted are 0 nothing is known; views that know nothing cost nothing.
    """
    total = got.sum() * 0
    pairs = list(zip(got.flatten(0, -3), want.flatten(0, -3), strict=True))
    for one, known in pairs:
        seen = known > 0
        if bool(seen.any()):
            total = total + F.smooth_l1_loss(_levelled(one[seen]), _levelled(known[seen]))
    return total / len(pairs)


def _levelled(depth: Tensor) -> Tensor:
    """[P] disparities less their median, in mean distances from it."""
    disparity = 1 / depth.clamp_min(NEAREST)
    apart = disparity - disparity.median()
    return apart / (apart.abs().mean() + 1e-6)


def _looked_at(model: LongLRM, batch: Batch) -> tuple[PixelGaussians, list[Tensor]]:
    """What the network says in the normalised world of each object's inputs, and from there to the batch's [4,4]."""
    count, multiple, size = batch.inputs, model.config.multiple, tuple(batch.images.shape[2:4])
    if bool(batch.orthographic[:, :count].any()):
        raise BadInput("orthographic: Long-LRM takes perspective views, found an orthographic one")
    if size[0] % multiple or size[1] % multiple:
        raise BadInput(f"size: Long-LRM takes pictures whose sides are multiples of {multiple}, found {size}")
    placed = [normalise(c2w[:count], model.config.scene_scale) for c2w in batch.c2w]
    images = torch.stack([over_white(views[:count]) for views in batch.images])
    Ks = batch.Ks[:, :count]
    intrinsics = torch.cat([Ks[..., [0, 1], [0, 1]], Ks[..., :2, 2]], dim=-1)
    raw = model(images, torch.stack([c2w for c2w, _ in placed]), intrinsics)
    return raw, [to_world for _, to_world in placed]


def _depths(raw: PixelGaussians, batch: Batch, to_world: list[Tensor]) -> Tensor:
    """[B,I,H,W] how far each pixel's own Gaussian is along the pixel's camera's axis, in the normalised worlds."""
    c2w = torch.stack([torch.linalg.inv(matrix) for matrix in to_world]).to(raw.means)[:, None]
    c2w = c2w @ batch.c2w[:, : batch.inputs]
    forward = F.normalize(c2w[..., :3, 2], dim=-1)
    means = raw.means.unflatten(1, (batch.inputs, -1))  # [B,I,HW,3]
    along = ((means - c2w[..., None, :3, 3]) * forward[:, :, None]).sum(-1)
    return along.unflatten(2, batch.images.shape[2:4])


def _seed(rng: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=rng))
