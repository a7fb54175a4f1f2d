"""Pictures of a radiance field by numerical quadrature along rays (Max 1995), by the two rules that published networks
were trained with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.triplane import CHUNK, Triplane

OUTSIDE = -1e30  # raw density where there is nothing


@dataclass(frozen=True)
class Marched:
    """N rays.

    rgb    [N,3] sRGB over the background
    alpha  [N]   0..1
    depth  [N]   mean distance along the ray, in the field's space
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


# ---- OpenLRM: stratified samples, then more where they found something


def march_importance(
    field: Triplane,
    rays_o: Tensor,
    rays_d: Tensor,
    *,
    samples: int,
    background: Tensor | float = 1.0,
    jitter: Tensor | None = None,
    u: Tensor | None = None,
) -> Marched:
    """Half of the samples at jittered equal distances, half drawn by what those weigh (Mildenhall 2020, 5.2).

    rays_o, rays_d  [N,3] origins and unit directions in the field's space
    samples         of a ray, at least 6
    background      grey, a number or [N]
    jitter          [N,samples/2] 0..1, place of a coarse sample in its piece; None: its middle
    u               [N,samples/2] 0..1, quantiles of the fine samples; None: evenly spread
    """
    half = samples // 2
    even = (torch.arange(half).to(rays_o) + 0.5) / half
    jitter = torch.full_like(even, 0.5).expand(len(rays_o), half) if jitter is None else jitter
    u = even.expand(len(rays_o), half) if u is None else u
    near, far = _span_of_cube(rays_o, rays_d, field.reading.radius)
    piece = max(1, CHUNK // half)
    columns = [tensor.split(piece) for tensor in (rays_o, rays_d, near, far, jitter, u)]
    parts = [_march_piece(field, *part) for part in zip(*columns, strict=True)]
    rgb, alpha, depth, first, last = (torch.cat(column) for column in zip(*parts, strict=True))
    rgb = rgb + ((1 - alpha) * background)[:, None]
    return Marched(rgb, alpha, depth.nan_to_num(nan=torch.inf).clamp(first.min(), last.max()))


def _span_of_cube(rays_o: Tensor, rays_d: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Nearest and farthest distance [N] within the cube; rays that miss it get ones of the same order, outside."""
    inverse = 1 / torch.where(rays_d.abs() < 1e-9, 1e-9, rays_d)
    one, other = (-radius - rays_o) * inverse, (radius - rays_o) * inverse
    near, far = torch.minimum(one, other).amax(1), torch.maximum(one, other).amin(1)
    hit = near <= far
    if not bool(hit.any()):
        return torch.full_like(near, -1.0), torch.full_like(far, -2.0)
    return torch.where(hit, near, near[hit].min()), torch.where(hit, far, near[hit].max())


def _march_piece(
    field: Triplane, rays_o: Tensor, rays_d: Tensor, near: Tensor, far: Tensor, jitter: Tensor, u: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Colour [n,3] without background, alpha, mean depth, least and greatest depth of a sample [n]."""
    half = jitter.shape[1]
    step = (far - near)[:, None] / (half - 1)
    depths = near[:, None] + (torch.arange(half).to(near) + jitter) * step  # [n,half]
    raw, colours = _evaluate(field, rays_o, rays_d, depths)
    weights, _, _ = _weigh(field, raw, colours, depths)
    fine = _draw(depths, weights.detach(), u)
    fine_raw, fine_colours = _evaluate(field, rays_o, rays_d, fine)
    depths, order = torch.cat([depths, fine], dim=1).sort(dim=1)
    raw = torch.cat([raw, fine_raw], dim=1).gather(1, order)
    colours = torch.cat([colours, fine_colours], dim=1).gather(1, order[..., None].expand(-1, -1, 3))
    weights, colours, middles = _weigh(field, raw, colours, depths)
    alpha = weights.sum(1)
    return (weights[..., None] * colours).sum(1), alpha, (weights * middles).sum(1) / alpha, depths[:, 0], depths[:, -1]


def _evaluate(field: Triplane, rays_o: Tensor, rays_d: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Raw density [n,s] and colour [n,s,3] of samples; nothing outside the cube."""
    points = rays_o[:, None] + depths[..., None] * rays_d[:, None]
    raw = field.raw(points)
    inside = (points.abs() <= field.reading.radius).all(-1)
    colours = field.reading.colour(raw[..., 1:])
    return torch.where(inside, raw[..., 0], OUTSIDE), torch.where(inside[..., None], colours, 0.0)


def _weigh(field: Triplane, raw: Tensor, colours: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, colours and depths of the intervals between neighbouring samples [n,s-1], whose ends are averaged."""
    density = field.reading.density((raw[:, :-1] + raw[:, 1:]) / 2)
    weights = _weights(1 - torch.exp(-density * depths.diff(dim=1)))
    return weights, (colours[:, :-1] + colours[:, 1:]) / 2, (depths[:, :-1] + depths[:, 1:]) / 2


def _weights(alphas: Tensor) -> Tensor:
    """[n,s] what each interval adds: its alpha times the light that passes those before."""
    passing = torch.cumprod(1 - alphas + 1e-10, dim=1)
    return alphas * torch.cat([torch.ones_like(passing[:, :1]), passing[:, :-1]], dim=1)


def _draw(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """[n,s] depths at the quantiles `u` of the coarse weights [n,s-1], which are widened and lifted first.

    The knots are the middles of the intervals. As in the published code the first one bears the quantile 0 and the
    last one is never reached.
    """
    widened = F.avg_pool1d(F.max_pool1d(weights[:, None], 2, 1, padding=1), 2, 1)[:, 0] + 0.01
    shares = widened[:, 1:-1] + 1e-5
    quantiles = F.pad((shares / shares.sum(1, keepdim=True)).cumsum(1), (1, 0))  # [n,s-2]
    knots = (depths[:, :-1] + depths[:, 1:]) / 2
    above = torch.searchsorted(quantiles, u.contiguous(), right=True)
    below = (above - 1).clamp_min(0)
    above = above.clamp_max(quantiles.shape[1] - 1)
    start, end = quantiles.gather(1, below), quantiles.gather(1, above)
    width = torch.where(end - start < 1e-5, 1.0, end - start)
    first, last = knots.gather(1, below), knots.gather(1, above)
    return first + (u - start) / width * (last - first)


# ---- TripoSR: samples in the middles of equal pieces


def march_uniform(
    field: Triplane, rays_o: Tensor, rays_d: Tensor, *, samples: int, background: Tensor | float = 1.0
) -> Marched:
    """Equal pieces whose density counts the same whatever their length: a whole ray through the cube has length 1.

    rays_o, rays_d  [N,3] origins and unit directions in the field's space
    samples         of a ray
    background      grey, a number or [N]
    """
    near, far = _span_ahead(rays_o, rays_d, field.reading.radius)
    along = (torch.arange(samples).to(rays_o) + 0.5) / samples
    depths = near[:, None] + along * (far - near)[:, None]  # [N,samples]
    piece = max(1, CHUNK // samples)
    columns = [tensor.split(piece) for tensor in (rays_o, rays_d, depths)]
    results = []
    for origins, directions, part in zip(*columns, strict=True):
        density, colours = field.query(origins[:, None] + part[..., None] * directions[:, None])
        weights = _weights(1 - torch.exp(-density / samples))
        results.append(((weights[..., None] * colours).sum(1), weights.sum(1), (weights * part).sum(1)))
    rgb, alpha, depth = (torch.cat(column) for column in zip(*results, strict=True))
    hit = far - near > 0.01
    rgb, alpha = torch.where(hit[:, None], rgb, 0.0), torch.where(hit, alpha, 0.0)
    return Marched(rgb + ((1 - alpha) * background)[:, None], alpha, depth / alpha.clamp_min(1e-10))


def _span_ahead(rays_o: Tensor, rays_d: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Nearest and farthest distance [N] within the cube less a thousandth, in front of the origin."""
    inverse = 1 / torch.where(rays_d.abs() < 1e-6, 1e-6, rays_d)
    inner = 0.999 * radius
    one, other = (-inner - rays_o) * inverse, (inner - rays_o) * inverse
    return torch.minimum(one, other).amax(1).clamp_min(0), torch.maximum(one, other).amin(1).clamp_min(0)
