"""Fitting a small scene whose pictures are rendered from known Gaussians."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.cameras import Cameras, Views, orbit, rays
from backend.compositing import over
from backend.fit import FitConfig, NothingSeen, default_steps, fit, mean_psnr, reduce_views
from backend.gaussians import SH_C0, Gaussians
from backend.initialise import Surfels, facing, splats_on
from backend.monitor import JobCancelled, Silent
from backend.rendering import render
from backend.starts import Wishes, choose_start
from tests.walls import cameras_before_a_wall, wall_views

QUICK = FitConfig(steps=100, max_splats=3000)


def painted_ball(unit: float = 1.0) -> Gaussians:
    """A ball of radius 0.7 units with smooth stripes, beside the origin."""
    steps = torch.arange(4000) + 0.5
    height = 1 - 2 * steps / len(steps)
    angle = math.pi * (1 + 5**0.5) * steps
    level = (1 - height**2).sqrt()
    normals = torch.stack([level * angle.cos(), level * angle.sin(), height], dim=1)
    colours = 0.5 + 0.4 * torch.sin(normals * torch.tensor([4.0, 3.0, 5.0]))
    sizes = torch.full((len(steps),), 0.05 * unit)
    middle = torch.tensor([0.3, -0.2, 0.1]) * unit
    return splats_on(Surfels(0.7 * unit * normals + middle, colours, normals, sizes, torch.ones_like(sizes)), 0.95, 0)


def ring(count: int, unit: float = 1.0, *, elevation: float = 0.35, azimuth: float = 0.0, size: int = 64) -> Cameras:
    middle = torch.tensor([0.3, -0.2, 0.1]) * unit
    return orbit(count, target=middle, radius=2.7 * unit, elevation=elevation, fov=0.8, size=size, azimuth=azimuth)


def captured(cameras: Cameras, unit: float = 1.0, *, depth: bool = False) -> Views:
    with torch.no_grad():
        seen = render(painted_ball(unit), cameras)
    alpha = seen.alpha[..., None]
    images = torch.cat([seen.rgb / alpha.clamp_min(1e-6), alpha], dim=-1).clamp(0, 1)
    surface = torch.where(seen.alpha > 0.5, seen.depth / seen.alpha.clamp_min(1e-6), 0.0)
    return Views(images, cameras, surface if depth else None)


def held_out(unit: float = 1.0) -> Views:
    return captured(ring(5, unit, elevation=0.15, azimuth=0.4), unit)


def without_alpha(views: Views) -> Views:
    """The same pictures over white, opaque."""
    images = views.images.clone()
    images[..., :3] = images[..., :3] * images[..., 3:] + 1 - images[..., 3:]
    images[..., 3] = 1
    return replace(views, images=images)


class Watcher(Silent):
    """Counts steps of fitting; asks to finish, or cancels, after some."""

    def __init__(self, *, finish_after: int = 10**9, cancel_after: int = 10**9) -> None:
        self.finish_after, self.cancel_after = finish_after, cancel_after
        self.fitted = 0
        self.stages: list[str] = []
        self.previews: list[np.ndarray] = []

    def progress(self, stage: str, step: int, total: int) -> None:
        assert 0 <= step <= total
        if stage not in self.stages:
            self.stages.append(stage)
        self.fitted += stage == "fit"
        if self.fitted >= self.cancel_after:
            raise JobCancelled

    def preview(self, image: np.ndarray) -> None:
        self.previews.append(image)

    def finish_early(self) -> bool:
        return self.fitted >= self.finish_after


def test_few_masks_give_a_ball_that_looks_right_from_places_not_used():
    result = fit(captured(ring(6)), replace(QUICK, steps=150))
    assert result.start == "hull"
    assert result.psnr > 30
    assert mean_psnr(result.gaussians, held_out()) > 27
    distance = torch.linalg.vector_norm(result.gaussians.means - torch.tensor([0.3, -0.2, 0.1]), dim=1)
    assert float(distance.median()) == pytest.approx(0.7, abs=0.06)


def test_depth_is_used_before_masks_and_is_better():
    result = fit(captured(ring(6), depth=True), replace(QUICK, steps=150))
    assert result.start == "depth"
    assert mean_psnr(result.gaussians, held_out()) > 26


@pytest.mark.parametrize("unit", [0.01, 100.0])
def test_the_unit_of_the_scene_does_not_matter(unit):
    here = fit(captured(ring(4)), QUICK)
    there = fit(captured(ring(4, unit), unit), QUICK)
    assert there.psnr == pytest.approx(here.psnr, abs=0.7)
    assert mean_psnr(there.gaussians, held_out(unit)) == pytest.approx(mean_psnr(here.gaussians, held_out()), abs=0.7)
    assert float(there.gaussians.scales.median() / here.gaussians.scales.median()) == pytest.approx(unit, rel=0.15)


def test_orthographic_views_are_fitted():
    def flat(cameras: Cameras) -> Cameras:
        Ks = cameras.Ks.clone()
        Ks[:, 0, 0] = Ks[:, 1, 1] = 30.0
        return replace(cameras, Ks=Ks, orthographic=torch.ones_like(cameras.orthographic))

    result = fit(captured(flat(ring(6))), QUICK)
    assert result.psnr > 26
    assert mean_psnr(result.gaussians, captured(flat(ring(5, elevation=0.15, azimuth=0.4)))) > 22


def test_photographs_start_from_a_plane_sweep():
    views, truth = wall_views(cameras_before_a_wall(1.0), 1.0)
    watcher = Watcher()
    result = fit(views, replace(QUICK, max_splats=0), monitor=watcher)
    assert result.start == "plane_sweep" and watcher.stages == ["depth", "fit"]
    assert result.psnr > 26
    depth = render(result.gaussians, views.cameras).depth
    assert float(((depth - truth) / truth).abs().median()) < 0.03


def test_a_panorama_has_no_parallax_and_starts_from_random_points():
    cameras = ring(6)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] = 0
    cameras = replace(cameras, c2w=c2w)
    colours = 0.5 + 0.3 * torch.sin(2 * rays(cameras)[1] + torch.tensor([0.0, 1.0, 2.0]))
    views = Views(torch.cat([colours, torch.ones_like(colours[..., :1])], dim=-1), cameras)
    before, after = fit(views, replace(QUICK, steps=1)), fit(views, replace(QUICK, steps=200))
    assert before.start == after.start == "random"
    assert after.psnr > before.psnr + 3


def test_gaussians_that_are_given_come_before_anything_else():
    truth = painted_ball()
    dull = replace(truth, sh=torch.zeros_like(truth.sh))
    views = captured(ring(6), depth=True)
    result = fit(views, replace(QUICK, max_splats=0), initial=dull)
    assert result.start == "gaussians"
    assert result.psnr > mean_psnr(dull, views) + 5


def test_given_gaussians_stay_as_they_are_where_no_view_looks():
    """Without depth, pictures of them from all around take part; with it, the surface is known."""
    truth, views = painted_ball(), captured(ring(2), depth=True)
    start = choose_start(replace(views, depth=None), truth, Wishes(0, 0, 0), Silent())
    (around,) = start.dreamed
    assert len(around) == 26 and around.cameras.width == 64
    with torch.no_grad():
        seen = render(truth, around.cameras[[7]], torch.ones(3)).rgb[0]
    torch.testing.assert_close(over(around.images[7], 1.0), seen.clamp(0, 1), rtol=0, atol=2e-3)
    assert choose_start(views, truth, Wishes(0, 0, 0), Silent()).dreamed == ()
    assert choose_start(without_alpha(replace(views, depth=None)), truth, Wishes(0, 0, 0), Silent()).dreamed == ()


def test_the_same_seed_gives_the_same_gaussians():
    views = captured(ring(4))
    first, second, other = (fit(views, replace(QUICK, steps=20, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first.gaussians.means, second.gaussians.means)
    assert torch.equal(first.gaussians.sh, second.gaussians.sh)
    assert not torch.equal(first.gaussians.sh[:50], other.gaussians.sh[:50])


def test_finishing_early_hands_over_the_best_so_far():
    views = captured(ring(4), depth=True)
    watcher = Watcher(finish_after=45)
    result = fit(views, replace(QUICK, steps=5000), monitor=watcher)
    assert result.stopped_early and 45 <= result.steps <= 46
    start = fit(views, replace(QUICK, steps=5000), monitor=Watcher(finish_after=0))
    assert start.steps == 0 and start.stopped_early
    assert result.psnr > start.psnr


def test_finishing_while_the_shape_is_still_sought_gives_gaussians():
    class AtOnce(Silent):
        def finish_early(self) -> bool:
            return True

    result = fit(captured(ring(4)), QUICK, monitor=AtOnce())
    assert result.stopped_early and len(result.gaussians) > 50 and math.isfinite(result.psnr)


def test_cancelling_leaves_the_fit():
    with pytest.raises(JobCancelled):
        fit(captured(ring(4), depth=True), QUICK, monitor=Watcher(cancel_after=5))


def test_progress_names_its_stages_and_reaches_the_end():
    watcher = Watcher()
    fit(captured(ring(4)), QUICK, monitor=watcher)
    assert watcher.stages == ["shape", "fit"]
    assert watcher.fitted == QUICK.steps


def test_transparent_views_and_unrelated_masks_are_nothing_seen():
    views = captured(ring(4))
    with pytest.raises(NothingSeen, match="transparent"):
        fit(replace(views, images=views.images * torch.tensor([1.0, 1.0, 1.0, 0.0])), QUICK)
    apart = views.cameras.c2w.clone()
    apart[:, :3, 3] += 50 * torch.arange(4)[:, None] * torch.tensor([0.0, 0.0, 1.0])
    with pytest.raises(NothingSeen, match="common"):
        fit(replace(views, cameras=replace(views.cameras, c2w=apart)), QUICK)


@pytest.mark.parametrize("field", ["images", "depth", "c2w", "Ks"])
def test_what_is_not_finite_is_named(field):
    views = captured(ring(3), depth=True)
    spoiled = getattr(views if field in ("images", "depth") else views.cameras, field).clone()
    spoiled.view(-1)[7] = math.nan
    if field in ("images", "depth"):
        views = replace(views, **{field: spoiled})
    else:
        views = replace(views, cameras=replace(views.cameras, **{field: spoiled}))
    with pytest.raises(ValueError, match="finite"):
        fit(views, QUICK)


@pytest.mark.parametrize("depth", [False, True])
def test_pictures_of_one_pixel_do_not_end_in_a_crash(depth):
    cameras = ring(4, size=64).resized(1, 1)
    images = torch.full((4, 1, 1, 4), 0.6)
    images[..., 3] = 1
    views = Views(images, cameras, torch.full((4, 1, 1), 2.7) if depth else None)
    result = fit(views, replace(QUICK, steps=3))
    assert math.isfinite(result.psnr)


def test_one_view_is_enough_to_begin():
    result = fit(captured(ring(1)), QUICK)
    assert result.start == "hull" and result.psnr > 24


def test_huge_pictures_are_reduced_and_say_so():
    cameras = ring(1, size=64).resized(8192, 512)
    images = captured(ring(1, size=64)).images.repeat_interleave(8, dim=1).repeat_interleave(128, dim=2)
    result = fit(Views(images, cameras), replace(QUICK, steps=2, longest_side=128))
    assert result.size == (128, 8) and math.isfinite(result.psnr)


def test_reducing_averages_premultiplied_colours():
    images = torch.zeros(1, 2, 2, 4)
    images[0, 0, 0] = torch.tensor([1.0, 0.5, 0.0, 1.0])  # one opaque pixel in four; the others are clear
    views = Views(images, ring(1).resized(2, 2), torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]))
    small = reduce_views(views, 1)
    assert small.images[0, 0, 0].tolist() == pytest.approx([1.0, 0.5, 0.0, 0.25])
    assert small.cameras.width == 1 and float(small.cameras.Ks[0, 0, 0]) == pytest.approx(
        float(views.cameras.Ks[0, 0, 0]) / 2
    )


def test_facing_turns_z_to_the_normal():
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    normals = torch.cat([normals, torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])])
    w, x, y, z = facing(normals).unbind(1)
    third = torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=1)
    assert torch.allclose(third, normals, atol=1e-5)


def test_colours_of_surfels_are_those_of_the_splats():
    colours = torch.tensor([[0.1, 0.5, 0.9]])
    splats = splats_on(Surfels(torch.zeros(1, 3), colours, torch.zeros(1, 3), torch.ones(1), torch.ones(1)), 0.5, 1)
    assert torch.allclose(0.5 + SH_C0 * splats.sh[:, 0], colours) and splats.sh_degree == 1


def test_more_views_get_more_steps_up_to_a_limit():
    steps = [default_steps(kind, views) for kind in ("depth", "plane_sweep") for views in (1, 20, 1000)]
    assert steps[0] < steps[1] <= steps[2] and steps[3] < steps[4] <= steps[5]


@pytest.mark.parametrize("budget", [500, 4000])
def test_few_splats_still_cover_the_object(budget: int) -> None:
    """From masks alone, with less than a splat a voxel of the finest grid: larger splats, no holes."""
    views = captured(ring(6))
    found = fit(views, replace(QUICK, max_splats=budget, steps=20))
    assert found.start == "hull" and len(found.gaussians) <= budget
    with torch.no_grad():
        alpha = render(found.gaussians, held_out().cameras).alpha
    inside = held_out().images[..., 3] > 0.99
    assert float((alpha[inside] > 0.7).float().mean()) > 0.97


def test_pixels_that_are_not_square() -> None:
    """Masks with sixteen times as many columns say the same as square ones."""
    views = captured(ring(6, size=48))
    Ks = views.cameras.Ks.clone()
    Ks[:, 0] *= 16
    wide = Views(views.images.repeat_interleave(16, dim=2), replace(views.cameras, Ks=Ks, width=768))
    found = fit(wide, replace(QUICK, steps=20))
    assert found.start == "hull"
    with torch.no_grad():
        alpha = render(found.gaussians, held_out().cameras).alpha
    mask = held_out().images[..., 3] > 0.5
    overlap = (mask & (alpha > 0.5)).sum() / (mask | (alpha > 0.5)).sum()
    assert float(overlap) > 0.9
