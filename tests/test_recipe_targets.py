"""What networks that give Gaussians are compared with, and that deferred rendering is rendering."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from backend import losses
from backend.cameras import rays
from backend.gaussians import Gaussians, rgb_to_sh
from backend.recipes import Batch, targets
from backend.rendering import render
from tests.splat_scenes import cameras_around, random_gaussians, with_gradients
from tests.training_runs import batch_of, rng


def ball_of_splats(batch: Batch, item: int) -> Gaussians:
    """Small opaque splats wherever the batch's views see the ball: what a perfect network would say."""
    means, colours = [], []
    for view in range(batch.images.shape[1]):
        cameras = batch.cameras(item)[[view]]
        rays_o, rays_d = rays(cameras)
        along = batch.depth[item, view] / (rays_d[0] * cameras.c2w[0, :3, 2]).sum(-1)
        seen = batch.depth[item, view] > 0
        means.append((rays_o[0] + along[..., None] * rays_d[0])[seen])
        colours.append(batch.images[item, view, seen][:, :3])
    places = torch.cat(means)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(len(places), 4)
    sh = rgb_to_sh(torch.cat(colours))[:, None]
    return Gaussians(places, quats, torch.full((len(places), 3), 0.01), torch.full((len(places),), 0.98), sh)


def test_the_right_gaussians_cost_little() -> None:
    batch = batch_of(4, size=32)
    right = [ball_of_splats(batch, item) for item in range(2)]
    swapped = right[::-1]
    weights = {"rgb": 1.0, "alpha": 1.0, "perceptual": 1.0}
    good, bad = (targets.picture_terms(splats, batch, weights, rng()) for splats in (right, swapped))
    assert float(good["rgb"]) < 0.01 and float(good["alpha"]) < 0.1
    for name in weights:
        assert float(bad[name]) > 1.3 * float(good[name]), name
    assert targets.picture_terms(right, batch, dict.fromkeys(weights, 0.0), rng()) == {}


def test_backgrounds_show_through_what_is_not_there() -> None:
    """A white splat where nothing is would be free over white."""
    batch = batch_of(4, objects=1)
    nothing = replace(batch, images=torch.zeros_like(batch.images))
    white = Gaussians(
        *(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.3)),
        *(torch.tensor([0.9]), rgb_to_sh(torch.ones(1, 3))[:, None]),
    )
    terms = targets.picture_terms([white], nothing, {"rgb": 1.0, "alpha": 0.0, "perceptual": 0.0}, rng())
    assert float(terms["rgb"]) > 0.02


def test_deferred_rendering_is_rendering() -> None:
    splats, background = random_gaussians(120, bases=4), torch.rand(3, 3, generator=rng())
    cameras = cameras_around(3, 40, 28)
    weights = torch.rand(3, 28, 40, 5, generator=rng(1))

    def run(make: Any) -> tuple[Any, list[Tensor | None]]:
        given, leaves = with_gradients(splats)
        seen = make(given, cameras, background)
        mixed = torch.cat([seen.rgb, seen.alpha[..., None], seen.depth[..., None]], -1)
        ((mixed * weights).sum() + seen.rgb.square().sum()).backward()
        return seen, [leaf.grad for leaf in leaves]

    seen, grads = run(render)
    deferred, its = run(targets.render_deferred)
    for name in ("rgb", "alpha", "depth"):
        assert torch.equal(getattr(seen, name), getattr(deferred, name))
    for one, other in zip(grads, its, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_many_splats_are_rendered_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(targets, "DEFER_FROM", 300)
    monkeypatch.setattr(targets, "render_deferred", lambda splats, cameras, background: calls.append(len(splats)))
    targets.rendered(random_gaussians(99), cameras_around(3, 8, 8), torch.ones(3))
    targets.rendered(random_gaussians(100), cameras_around(3, 8, 8), torch.ones(3))
    assert calls == [100]


def test_the_perceptual_term_is_that_of_the_losses() -> None:
    batch = batch_of(4, objects=1, size=32)
    splats = ball_of_splats(batch, 0)
    terms = targets.picture_terms([splats], batch, {"rgb": 0.0, "alpha": 0.0, "perceptual": 1.0}, rng(7))
    background = torch.rand(5, 3, generator=rng(7))
    got = render(splats, batch.cameras(0), background).rgb
    alpha = batch.images[0, ..., 3:]
    want = batch.images[0, ..., :3] * alpha + background[:, None, None] * (1 - alpha)
    assert float(terms["perceptual"]) == pytest.approx(float(losses.perceptual(got, want)), rel=1e-5)
