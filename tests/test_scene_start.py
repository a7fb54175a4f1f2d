"""Starting Gaussians of photographs without alpha."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from backend.cameras import Cameras, Views, look_at
from backend.gaussians import Gaussians
from backend.metrics import psnr
from backend.monitor import Silent
from backend.rendering import render
from backend.scene_start import Samples, scene_gaussians, thinned
from tests.textured_planes import AHEAD, BOX, WALL, Rectangle, photographs, row_of_cameras

COUNT = 6000
CAMERAS = row_of_cameras(6, 0.35, AHEAD)
HELD_OUT = [2]


class Unwatched(Silent):
    """A monitor of work that needs no stereo."""

    def progress(self, stage: str, step: int, total: int) -> None:
        raise AssertionError(f"no {stage} was to be looked for")


def start(views: Views, *, seed: int = 0, count: int = COUNT) -> Gaussians:
    return scene_gaussians(views, count=count, seed=seed, monitor=Silent())


def without_held_out(views: Views) -> Views:
    rest = [v for v in range(len(views)) if v not in HELD_OUT]
    return replace(views, images=views.images[rest], cameras=views.cameras[rest])


@functools.cache
def wall_and_box() -> Gaussians:
    return start(without_held_out(photographs(CAMERAS, [WALL, BOX])))


def off_the_wall(points: Tensor) -> Tensor:
    """Distance of points from the plane of WALL, x = 8 (z - 5) - 4."""
    normal = torch.tensor([1.0, 0.0, -8.0]) / math.sqrt(65)
    return ((points - torch.tensor(WALL.corner)) @ normal).abs()


def test_it_looks_like_a_view_it_was_not_given() -> None:
    views = photographs(CAMERAS, [WALL, BOX])
    seen = render(wall_and_box(), CAMERAS[HELD_OUT], torch.full((3,), 0.5)).rgb
    assert float(psnr(seen, views.images[HELD_OUT][..., :3])) > 20
    blank = torch.full_like(seen, 1.0) * views.images[..., :3].mean((0, 1, 2))
    assert float(psnr(blank, views.images[HELD_OUT][..., :3])) < 15


def test_it_lies_on_the_surfaces_and_across_them() -> None:
    gaussians = wall_and_box()
    assert COUNT // 2 < len(gaussians) <= COUNT
    assert gaussians.sh_degree == 0
    on_box = (gaussians.means[:, 2] - 3).abs() < 0.1
    on_wall = off_the_wall(gaussians.means) < 0.2
    assert float((on_box | on_wall).float().mean()) > 0.85
    flat = gaussians.scales[:, 2] < 0.5 * gaussians.scales[:, 0]
    _, x, y, _ = gaussians.quats[on_box & flat].unbind(1)
    along_z = (1 - 2 * (x * x + y * y)).abs()  # third column of the rotation: the thin direction
    assert len(along_z) > 100 and float(along_z.median()) > 0.9


def test_splats_cover_a_surface_without_drowning_it() -> None:
    views = without_held_out(photographs(CAMERAS, [WALL]))
    gaussians = start(views)
    alpha = render(gaussians, views.cameras[[2]]).alpha
    assert float(alpha.quantile(0.05)) > 0.8
    assert float(gaussians.scales.max()) < 0.6


def test_a_seed_gives_the_same_gaussians() -> None:
    again = start(without_held_out(photographs(CAMERAS, [WALL, BOX])))
    assert all(torch.equal(a, b) for a, b in zip(vars(again).values(), vars(wall_and_box()).values(), strict=True))


def test_exact_depth_is_taken_as_it_is() -> None:
    views = photographs(CAMERAS, [WALL, BOX], exact=True)
    gaussians = scene_gaussians(views, count=COUNT, seed=0, monitor=Unwatched())
    on_box = (gaussians.means[:, 2] - 3).abs() < 1e-3
    on_wall = off_the_wall(gaussians.means) < 1e-2
    assert float((on_box | on_wall).float().mean()) > 0.999


def test_background_of_exact_depth_lies_beyond_everything() -> None:
    views = photographs(CAMERAS, [BOX], exact=True)
    gaussians = scene_gaussians(views, count=COUNT, seed=0, monitor=Unwatched())
    on_box = (gaussians.means[:, 2] - 3).abs() < 1e-2
    assert 0.1 < float(on_box.float().mean()) < 0.95
    assert float(gaussians.means[~on_box][:, 2].min()) > 4
    seen = render(gaussians, CAMERAS[HELD_OUT], torch.zeros(3)).rgb[0]
    assert float((seen[2:8, 2:8] - 0.5).abs().mean()) < 0.1  # the sky in a corner


def test_orthographic_depth() -> None:
    centres = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    c2w = look_at(centres, torch.tensor([0.0, 0.0, 4.0]), up=(0.0, -1.0, 0.0))
    K = torch.tensor([[24.0, 0, 48], [0, 24.0, 32], [0, 0, 1]]).repeat(3, 1, 1)
    cameras = Cameras(c2w, K, torch.ones(3, dtype=torch.bool), 96, 64)
    wall = Rectangle((-9.0, -9.0, 4.0), (18.0, 0.0, 0.0), (0.0, 18.0, 0.0), seed=3)
    views = photographs(cameras, [wall], exact=True)
    gaussians = scene_gaussians(views, count=COUNT, seed=0, monitor=Unwatched())
    assert float((gaussians.means[:, 2] - 4).abs().max()) < 1e-3
    seen = render(gaussians, cameras[[1]], torch.full((3,), 0.5)).rgb
    assert float(psnr(seen, views.images[[1]][..., :3])) > 20


@pytest.mark.parametrize("case", ["textureless", "one view", "no parallax"])
def test_random_points_where_stereo_finds_nothing(case: str) -> None:
    views = {
        "textureless": photographs(row_of_cameras(3, 0.35, AHEAD, width=48, height=32), [replace(WALL, contrast=0.0)]),
        "one view": photographs(CAMERAS[:1], [WALL]),
        "no parallax": photographs(row_of_cameras(3, 0.0, AHEAD), [WALL]),
    }[case]
    first, again, other = start(views, count=500), start(views, count=500), start(views, count=500, seed=1)
    assert len(first) == 500
    assert bool(torch.isfinite(first.means).all())
    assert torch.equal(first.means, again.means) and not torch.equal(first.means, other.means)
    alpha = render(first, views.cameras[[0]]).alpha
    assert float(alpha.mean()) > 0.05


def test_thinning_averages_what_shares_a_cell() -> None:
    points = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [10.0, 0, 0]])
    colours, normals = torch.eye(3), torch.tensor([[0.0, 0, 1]]).repeat(3, 1)
    thin = thinned(Samples(points, colours, normals, torch.ones(3), torch.ones(3)), 2)
    assert sorted(thin.points[:, 0].tolist()) == pytest.approx([0.05, 10.0])
    assert thin.colours[thin.points[:, 0] < 1][0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert torch.allclose(thin.normals, normals[:2])


def test_thinning_keeps_to_its_limit() -> None:
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((5000,), 0.001)
    whole = Samples(points, points, torch.zeros(5000, 3), sizes, torch.ones(5000))
    for limit in (1, 10, 1000):
        assert 0.3 * limit <= len(thinned(whole, limit)) <= limit
    assert thinned(whole, 5000) is whole
