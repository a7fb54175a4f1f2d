"""The recipes: each learns balls, its geometry is where the views' is, its distortions do what the papers say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.bad_input import BadInput
from backend.cameras import look_at, rays
from backend.data import DataConfig
from backend.gaussians import Gaussians
from backend.models import lrm as lrm_network
from backend.recipes import RECIPES, Batch, Recipe, recipe_of
from backend.recipes import lgm as lgm_recipe
from backend.recipes import long_lrm as long_lrm_recipe
from backend.recipes import lrm as lrm_recipe
from tests.ellipsoids import MIDDLE, SEMI_AXES, KnownLrm
from tests.train_tiny import LONG_LRM, OPENLRM
from tests.training_runs import LGM, ball_sample, batch_of, rng

INPUTS = {"lgm": 4, "long_lrm": 4, "lrm": 1}
NETWORKS: dict[str, Mapping[str, Any]] = {"lgm": LGM, "long_lrm": LONG_LRM, "lrm": OPENLRM}
STEPS = {"lgm": (40, 1e-2), "long_lrm": (60, 5e-3), "lrm": (40, 4e-3)}


def made(name: str) -> tuple[Recipe, nn.Module]:
    torch.manual_seed(0)
    recipe = recipe_of(name)
    return recipe, recipe.MODEL(recipe.config_from(NETWORKS[name]))


# ---- all of them


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recipe_learns(name: str) -> None:
    recipe, model = made(name)
    steps, rate = STEPS[name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    batch, totals = batch_of(INPUTS[name], objects=1), []
    for step in range(steps):
        terms = recipe.loss(model, batch, step / steps, rng(step), recipe.WEIGHTS)
        assert set(terms) <= set(recipe.WEIGHTS) and all(term.shape == () for term in terms.values())
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        totals.append(total.item())
    assert sum(totals[-8:]) < 0.75 * sum(totals[:8])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_terms_are_means_over_objects(name: str) -> None:
    """So that it does not matter how a step's objects are divided into micro-batches."""
    recipe, model = made(name)
    batch = batch_of(INPUTS[name])
    twice = replace(batch, **{key: torch.cat([value] * 2) for key, value in vars(batch).items() if key != "inputs"})
    fixed = recipe.WEIGHTS
    with torch.no_grad():
        one = recipe.loss(model, batch, 0.5, rng(), fixed)
        two = recipe.loss(model, twice, 0.5, rng(), fixed)
    for term in one:
        assert float(two[term]) == pytest.approx(float(one[term]), rel=0.35, abs=1e-6), term


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_scale_their_terms_and_chance_has_one_source(name: str) -> None:
    recipe, model = made(name)
    batch = batch_of(INPUTS[name])
    with torch.no_grad():
        once = recipe.loss(model, batch, 0.5, rng(), recipe.WEIGHTS)
        torch.manual_seed(99)
        twice = recipe.loss(model, batch, 0.5, rng(), {key: 2 * value for key, value in recipe.WEIGHTS.items()})
    assert once.keys() == twice.keys() and any(float(value) > 0 for value in once.values())
    for term in once:
        assert float(twice[term]) == pytest.approx(2 * float(once[term]), rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_are_gaussians_in_the_batch_world(name: str) -> None:
    """Turn and shrink the world about the origin, and the predictions turn and shrink with it."""
    recipe, model = made(name)
    batch = batch_of(INPUTS[name])
    turn = look_at(torch.tensor([[0.3, -0.4, 0.2]]), torch.zeros(3))[0, :3, :3]
    c2w = batch.c2w.clone()
    c2w[..., :3, :] = 0.5 * turn @ c2w[..., :3, :]
    c2w[..., :3, :3] *= 2
    with torch.no_grad():
        here = recipe.predict(model, batch)
        there = recipe.predict(model, replace(batch, c2w=c2w))
    assert len(here) == len(batch) and all(one.means.dtype == torch.float32 for one in here)
    if name == "lrm":  # sizes count there: the network is told how far its camera stands
        return
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.means, 0.5 * one.means @ turn.T, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(other.scales, 0.5 * one.scales, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("file", [lgm_recipe, long_lrm_recipe])
def test_what_is_learnt_is_what_is_predicted(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same world; but for distorted inputs and what is drawn by lot."""
    compared: list[Gaussians] = []
    monkeypatch.setattr(lgm_recipe, "OFTEN", 0.0)
    monkeypatch.setattr(file, "picture_terms", lambda splats, *rest: compared.extend(splats) or {})
    recipe, model = made("lgm" if file is lgm_recipe else "long_lrm")
    batch = batch_of(4)
    with torch.no_grad():
        recipe.loss(model, batch, 0.0, rng(), recipe.WEIGHTS)
        for one, other in zip(compared, recipe.predict(model, batch), strict=True):
            assert all(
                torch.equal(part, its) for part, its in zip(vars(one).values(), vars(other).values(), strict=True)
            )


@pytest.mark.parametrize("name", NETWORKS)
def test_views_that_a_network_cannot_take_are_refused(name: str) -> None:
    recipe, model = made(name)
    batch = batch_of(INPUTS[name])
    flat = replace(batch, orthographic=torch.ones_like(batch.orthographic))
    with pytest.raises(BadInput, match="perspective"):
        recipe.loss(model, flat, 0.0, rng(), recipe.WEIGHTS)
    if name != "long_lrm":
        with pytest.raises(BadInput, match="found 2 inputs"):
            recipe.loss(model, replace(batch, inputs=2), 0.0, rng(), recipe.WEIGHTS)
    else:
        with pytest.raises(BadInput, match="sides are multiples of 4, found"):
            recipe.loss(model, batch_of(4, size=18), 0.0, rng(), recipe.WEIGHTS)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "grm"])
def test_configurations_come_back_from_their_file_form(name: str) -> None:
    recipe = recipe_of(name)
    for label, preset in [*recipe.PRESETS.items(), *((name, recipe.config_from(NETWORKS[name])),)]:
        assert recipe.config_from(recipe.config_data(preset)) == preset, label


def test_unknown_families_are_refused() -> None:
    with pytest.raises(BadInput, match="family: expected one of grm, lgm, long_lrm, lrm, found 'triposr'"):
        recipe_of("triposr")


# ---- batches


def test_batches_say_what_does_not_fit() -> None:
    batch = batch_of(4)
    assert len(batch) == 2 and len(batch.cameras(1)) == 5 and batch.to("cpu").inputs == 4
    assert torch.equal(batch.cameras(1).c2w, batch.c2w[1])
    with pytest.raises(ValueError, match=r"batch: depth must have shape \(2, 5, 16, 16\)"):
        replace(batch, depth=batch.depth[:, :, 1:])
    with pytest.raises(ValueError, match="inputs must be from 1 to 5 views, found 6"):
        replace(batch, inputs=6)


def test_samples_without_depth_have_none_anywhere() -> None:
    sample = ball_sample(DataConfig(size=8, views=4), 0)
    blind = replace(sample, views=replace(sample.views, depth=None))
    both = Batch.stack([sample, blind], 4)
    assert float(both.depth[0].max()) > 0 and float(both.depth[1].abs().max()) == 0


# ---- LGM


def test_distortion_stretches_all_but_the_first() -> None:
    ramp = torch.linspace(0, 1, 64).expand(3, 3, 64, 64)
    bent = lgm_recipe.distorted(ramp, rng(3))
    assert torch.equal(bent[0], ramp[0])
    for view in (1, 2):
        row = bent[view, 0, 32]
        assert float((row - ramp[view, 0, 32]).abs().max()) > 0.01
        assert float((row - ramp[view, 0, 32]).abs().max()) < 0.5 / 7, "a line moves by a quarter of their distance"
        assert bool((row.diff() >= 0).all()), "nothing is folded"
        assert float(row[0]) == pytest.approx(0, abs=0.02) and float(row[-1]) == pytest.approx(1, abs=0.02)
    assert not torch.equal(bent[1], bent[2])


def test_jitter_turns_cameras_about_the_origin() -> None:
    cameras = batch_of(4, objects=1).cameras(0)[:4]
    moved = lgm_recipe.jittered(cameras, rng(5))
    assert torch.equal(moved.c2w[0], cameras.c2w[0])
    torch.testing.assert_close(moved.centres.norm(dim=1), cameras.centres.norm(dim=1))
    identity = torch.eye(3).expand(4, 3, 3)
    torch.testing.assert_close(moved.c2w[:, :3, :3] @ moved.c2w[:, :3, :3].mT, identity, atol=1e-5, rtol=0)
    inward = (moved.c2w[:, :3, 2] * torch.nn.functional.normalize(-moved.centres, dim=1)).sum(1)
    torch.testing.assert_close(inward, torch.ones(4), atol=1e-5, rtol=0)  # they still look at it
    turned = torch.rad2deg((moved.c2w[:, :3, 2] * cameras.c2w[:, :3, 2]).sum(1).clamp(max=1).acos())
    assert bool((turned[1:] > 0.1).all()) and float(turned.max()) < math.hypot(18, 9) + 0.1


def test_a_rotation_by_hand() -> None:
    quarter = lgm_recipe._turns(torch.tensor([[0.0, 0, 1]]), torch.tensor([math.pi / 2]))
    torch.testing.assert_close(quarter[0] @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_what_lgm_is_compared_with_is_never_distorted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []
    monkeypatch.setattr(lgm_recipe, "OFTEN", 1.1)
    monkeypatch.setattr(lgm_recipe, "picture_terms", lambda splats, batch, *rest: seen.append(batch) or {})
    recipe, model = made("lgm")
    batch = batch_of(4)
    recipe.loss(model, batch, 0.0, rng(), recipe.WEIGHTS)
    assert torch.equal(seen[0].images, batch.images) and torch.equal(seen[0].c2w, batch.c2w)


def test_large_pictures_are_averaged_for_lgm() -> None:
    """A ball's picture through LGM's lens is much the same from 16 as from 64 pixels."""
    _, model = made("lgm")
    config = model.config  # type: ignore[union-attr]
    small, large = (lgm_recipe._placed(config, batch_of(4, objects=1, size=size))[0] for size in (16, 64))  # type: ignore[arg-type]
    assert small.shape == large.shape == (1, 4, 3, 16, 16)
    assert float((small - large).abs().mean()) < 0.04
    assert float((large - 1).abs().max()) > 0.2, "there is something in it"


# ---- Long-LRM


def test_the_order_of_depths_counts_and_their_scale_does_not() -> None:
    depth = 1 + torch.rand(2, 3, 8, 8, generator=rng())
    assert float(long_lrm_recipe.depth_order(depth, depth)) == 0
    assert float(long_lrm_recipe.depth_order(3 * depth, depth)) < 1e-9
    assert float(long_lrm_recipe.depth_order(1 / (0.2 + 0.5 / depth), depth)) < 1e-9, "disparities shifted and scaled"
    other = 1 + torch.rand(2, 3, 8, 8, generator=rng(1))
    assert float(long_lrm_recipe.depth_order(other, depth)) > 0.1
    unknown = depth * (torch.arange(8) < 4)
    noise = torch.where(unknown > 0, depth, 1 + 5 * torch.rand(2, 3, 8, 8, generator=rng(2)))
    assert float(long_lrm_recipe.depth_order(noise, unknown)) < 1e-9, "where nothing is known anything goes"
    assert float(long_lrm_recipe.depth_order(other, torch.zeros_like(depth))) == 0


def test_depths_that_a_network_gets_right_cost_nothing() -> None:
    """Long-LRM's Gaussians put at the data's own depths."""
    recipe, model = made("long_lrm")
    batch = batch_of(4)
    with torch.no_grad():
        raw, to_world = long_lrm_recipe._looked_at(model, batch)  # type: ignore[arg-type]
        places = torch.stack([ball_points(batch, item, matrix) for item, matrix in enumerate(to_world)])
        found = long_lrm_recipe._depths(replace(raw, means=places), batch, to_world)
    scale = torch.stack([torch.linalg.det(matrix[:3, :3]) ** (1 / 3) for matrix in to_world]).float()
    wanted = batch.depth[:, :4] / scale[:, None, None, None]
    torch.testing.assert_close(found[wanted > 0], wanted[wanted > 0], atol=1e-4, rtol=1e-4)
    assert float(long_lrm_recipe.depth_order(found, batch.depth[:, :4])) < 1e-6
    assert recipe.WEIGHTS["depth"] == 0.01


def ball_points(batch: Batch, item: int, to_world: Tensor) -> Tensor:
    """[V*H*W,3] what each input's pixels show, in the normalised world."""
    rays_o, rays_d = rays(batch.cameras(item)[: batch.inputs])
    forward = batch.c2w[item, : batch.inputs, None, None, :3, 2]
    points = rays_o + (batch.depth[item, : batch.inputs] / (rays_d * forward).sum(-1))[..., None] * rays_d
    inward = torch.linalg.inv(to_world).float()
    return points.flatten(0, 2) @ inward[:3, :3].T + inward[:3, 3]


def test_fainter_gaussians_cost_less() -> None:
    recipe, model = made("long_lrm")
    batch = batch_of(4, objects=1)
    only = dict.fromkeys(recipe.WEIGHTS, 0.0) | {"opacity": 1.0}
    with torch.no_grad():
        before = float(recipe.loss(model, batch, 0.0, rng(), only)["opacity"])
        model.config = replace(model.config, opacity_bias=-4.0)  # type: ignore[union-attr, arg-type]
        after = float(recipe.loss(model, batch, 0.0, rng(), only)["opacity"])
    assert before == pytest.approx(0.12, abs=0.05) and after < 0.3 * before


# ---- LRM


def test_the_first_camera_is_the_canonical_one() -> None:
    batch = batch_of(1)
    told: list[Tensor] = []

    class Listening(lrm_network.Lrm):
        def forward(self, image: Tensor, camera: Tensor) -> Tensor:
            told.append(camera)
            return super().forward(image, camera)

    model = Listening(recipe_of("lrm").config_from(OPENLRM))
    _, to_field = lrm_recipe._looked_at(model, batch)
    distance = float(batch.c2w[0, 0, :3, 3].norm())
    expected = lrm_network.source_camera(distance)
    torch.testing.assert_close(told[0][0, :12], expected[:12])
    torch.testing.assert_close(told[0][0, 12:14], batch.Ks[0, 0, [0, 1], [0, 1]] / 16)
    placed = to_field[0] @ batch.c2w[0, 0]
    torch.testing.assert_close(placed[:3, 3], torch.tensor([0, -distance, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(to_field[0, :3, 3], torch.zeros(3), atol=1e-5, rtol=0)  # the object's middle stays


def test_patches_are_cut_from_the_picture() -> None:
    """What the cut cameras see is what is in the patch: the direction of each pixel, painted in its colour."""
    batch = batch_of(1, objects=1, views=3, size=48)
    cameras = batch.cameras(0)
    _, rays_d = rays(cameras)
    painted = torch.cat([0.5 + 0.5 * rays_d, torch.ones_like(rays_d[..., :1])], -1)
    for seed in range(4):
        cut, part = lrm_recipe.patches(painted, cameras, 16, rng(seed))
        assert cut.shape == (3, 16, 16, 4) and (part.height, part.width) == (16, 16)
        _, seen = rays(part)
        assert float((cut[..., :3] - (0.5 + 0.5 * seen)).abs().max()) < 0.02


def test_an_ellipsoid_is_predicted_where_its_camera_stands() -> None:
    model = KnownLrm()
    batch = batch_of(1, objects=1)
    (splats,) = lrm_recipe.predict(model, batch)
    to_field = lrm_recipe.canonical_pose(2.0) @ torch.linalg.inv(batch.c2w[0, 0])
    places = splats.means @ to_field[:3, :3].T + to_field[:3, 3]
    radii = ((places - torch.tensor(MIDDLE)) / torch.tensor(SEMI_AXES)).norm(dim=1)
    torch.testing.assert_close(radii, torch.ones_like(radii), atol=0.06, rtol=0)


def test_a_field_without_a_surface_has_no_splats() -> None:
    model = KnownLrm()
    with torch.no_grad():
        model.get_buffer("known").zero_()
    (splats,) = lrm_recipe.predict(model, batch_of(1, objects=1))
    assert len(splats) == 0


def test_smooth_planes_cost_nothing() -> None:
    assert float(lrm_recipe.variation(torch.ones(2, 3, 4, 8, 8))) == 0
    ramp = torch.arange(8.0).expand(2, 3, 4, 8, 8)
    assert float(lrm_recipe.variation(ramp)) == 1.0 and float(lrm_recipe.variation(ramp.mT)) == 1.0


def test_the_decoder_learns_too() -> None:
    """The field must use the network's own decoder, not a copy of it, whatever the planes' precision."""
    recipe, model = made("lrm")
    with torch.autocast("cpu", torch.bfloat16):
        planes, _ = lrm_recipe._looked_at(model, batch_of(1))  # type: ignore[arg-type]
    assert planes.dtype == torch.float32
    terms = recipe.loss(model, batch_of(1), 0.0, rng(), recipe.WEIGHTS)
    torch.stack(list(terms.values())).sum().backward()
    assert all(weight.grad is not None for weight in model.get_submodule("synthesizer").parameters())
