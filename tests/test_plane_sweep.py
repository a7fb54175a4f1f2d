"""Plane-sweep stereo against pictures whose depth is known exactly."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backend import sweep_kernels as kernels
from backend.cameras import Cameras, Views, look_at
from backend.monitor import JobCancelled, Silent
from backend.plane_sweep import pair_worths, rays_in, rig_of, sweep_depth
from tests.textured_planes import AHEAD, BOX, WALL, Rectangle, photographs, row_of_cameras, true_depth

SIDE = 96


def found(views: Views) -> tuple[Tensor, Tensor]:
    return sweep_depth(views, planes=48, side=SIDE, monitor=Silent())


@functools.cache
def wall_and_box() -> tuple[Tensor, Tensor, Tensor]:
    """Found depth, confidence and true depth of a box before a slanted wall."""
    cameras = row_of_cameras(5, 0.35, AHEAD)
    return *found(photographs(cameras, [WALL, BOX])), true_depth(cameras, [WALL, BOX])


def relative_error(depth: Tensor, truth: Tensor) -> Tensor:
    return (depth - truth).abs() / truth.clamp_min(1e-9)


def test_depth_of_a_slanted_wall() -> None:
    cameras = row_of_cameras(5, 0.35, AHEAD)
    depth, confidence = found(photographs(cameras, [WALL]))
    sure = confidence > 0
    assert depth.shape == confidence.shape == (5, 64, 96)
    assert float(sure.float().mean()) > 0.85
    error = relative_error(depth, true_depth(cameras, [WALL]))[sure]
    assert float(error.median()) < 0.005
    assert float((error < 0.03).float().mean()) > 0.98


def test_a_box_before_a_wall_keeps_both_depths() -> None:
    depth, confidence, truth = wall_and_box()
    sure = confidence > 0
    error = relative_error(depth, truth)
    for surface in (truth < 3.5, truth > 4.0):
        assert float(sure[surface].float().mean()) > 0.75
        assert float((error[surface & sure] < 0.05).float().mean()) > 0.93


def test_wrong_depths_are_less_trusted() -> None:
    depth, confidence, truth = wall_and_box()
    wrong = relative_error(depth, truth) > 0.05
    assert float(confidence[~wrong].mean()) > 3 * float(confidence[wrong].mean())
    assert bool(((confidence >= 0) & (confidence <= 1)).all())


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_depth_scales_with_the_scene(scale: float) -> None:
    cameras = row_of_cameras(5, 0.35, AHEAD)
    views = photographs(cameras, [WALL, BOX])
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] *= scale
    depth, confidence, _ = wall_and_box()
    scaled, trust = found(replace(views, cameras=replace(cameras, c2w=c2w)))
    same = ((scaled / scale - depth).abs() < 1e-3 * depth) & ((trust > 0) == (confidence > 0))
    assert float(same.float().mean()) > 0.99


def test_the_same_views_give_the_same_depth() -> None:
    depth, confidence, _ = wall_and_box()
    again, trust = found(photographs(row_of_cameras(5, 0.35, AHEAD), [WALL, BOX]))
    assert torch.equal(depth, again) and torch.equal(confidence, trust)


def test_orthographic_views() -> None:
    angles = torch.tensor([-0.3, -0.15, 0.0, 0.15, 0.3])
    centres = torch.stack([4 * angles.sin(), torch.zeros(5), 4 - 4 * angles.cos()], dim=1)
    c2w = look_at(centres, torch.tensor([0.0, 0.0, 4.0]), up=(0.0, -1.0, 0.0))
    K = torch.tensor([[24.0, 0, 48], [0, 24.0, 32], [0, 0, 1]]).repeat(5, 1, 1)
    cameras = Cameras(c2w, K, torch.ones(5, dtype=torch.bool), 96, 64)
    wall = Rectangle((-4.0, -3.0, 3.7), (8.0, 0.0, 1.0), (0.0, 6.0, 0.0), seed=3)
    depth, confidence = found(photographs(cameras, [wall]))
    sure = confidence > 0
    assert float(sure.float().mean()) > 0.7
    assert float((relative_error(depth, true_depth(cameras, [wall]))[sure] < 0.03).float().mean()) > 0.95


def test_a_change_of_exposure_does_not_matter() -> None:
    cameras = row_of_cameras(5, 0.35, AHEAD)
    views = photographs(cameras, [WALL])
    images = views.images.clone()
    images[..., :3] *= torch.linspace(0.8, 1.0, 5)[:, None, None, None]
    depth, confidence = found(replace(views, images=images))
    good = (confidence > 0) & (relative_error(depth, true_depth(cameras, [WALL])) < 0.03)
    assert float(good.float().mean()) > 0.7


def test_flat_pictures_show_no_depth() -> None:
    views = photographs(row_of_cameras(4, 0.35, AHEAD), [replace(WALL, contrast=0.0)])
    assert float((found(views)[1] > 0).float().mean()) < 0.01


def test_views_without_parallax_show_no_depth() -> None:
    turned = row_of_cameras(3, 0.0, AHEAD)
    for views in (photographs(turned, [WALL]), photographs(turned[:1], [WALL])):
        depth, confidence = found(views)
        assert depth.shape == (len(views), 64, 96)
        assert not bool(confidence.any())
        assert bool(torch.isfinite(depth).all())


def test_it_can_be_cancelled() -> None:
    class Impatient(Silent):
        def progress(self, stage: str, step: int, total: int) -> None:
            assert (stage, total) == ("depth", 12)
            if step == 2:
                raise JobCancelled

    with pytest.raises(JobCancelled):
        sweep_depth(photographs(row_of_cameras(4, 0.35, AHEAD), [WALL]), planes=16, side=48, monitor=Impatient())


# ---- the parts


def side_by_side() -> Cameras:
    """Two cameras with f = 40 px half a unit apart along X: a point at depth 5 shifts by 40 * 0.5 / 5 = 4 pixels."""
    c2w = torch.eye(4).repeat(2, 1, 1)
    c2w[1, 0, 3] = 0.5
    K = torch.tensor([[40.0, 0, 24], [0, 40.0, 16], [0, 0, 1]]).repeat(2, 1, 1)
    return Cameras(c2w, K, torch.zeros(2, dtype=torch.bool), 48, 32)


def test_a_plane_at_depth_5_shifts_by_4_pixels() -> None:
    grey = np.random.default_rng(0).random((32, 48), np.float32)
    other = np.roll(grey, -4, axis=1)
    rig = rig_of(side_by_side())
    ahead, shift = rays_in(rig, 0, np.array([1]))
    depths = np.array([4.0, 5.0, 20 / 3], np.float32)  # shifts of 5, 4 and 3 pixels
    cost = np.empty((3, 32, 48), np.float32)
    kernels.match(grey, other[None], ahead, shift, rig.lenses[1:].astype(np.float32), depths, 2, cost)
    inner = cost[:, 4:-4, 8:-8]
    assert inner[1].max() < 0.005
    assert inner[[0, 2]].mean() > 0.4
    assert (cost[:, :, 0] == 0.5).all()  # the other camera does not see the left edge


def test_half_of_the_neighbours_are_enough() -> None:
    costs = np.array([0.9, 0.1, 0.3, 0.5], np.float32)[:, None, None]
    out = np.empty((1, 1), np.float32)
    kernels._best_half(costs, out)
    assert out[0, 0] == pytest.approx(0.2)
    kernels._best_half(costs[:3], out)
    assert out[0, 0] == pytest.approx(0.2)


def test_the_winner_is_the_vertex_of_a_parabola() -> None:
    planes = np.arange(9, dtype=np.float32)
    total = ((planes - 4.3) ** 2).astype(np.float32)[None, None]
    assert kernels.winners(total, 10.0, 2.0, 0.05)[0, 0] == pytest.approx(10 + 2 * 4.3, abs=1e-4)
    assert np.isnan(kernels.winners(np.ones((1, 1, 9), np.float32), 10.0, 2.0, 0.05)[0, 0])


def test_regularising_carries_a_depth_over_a_flat_place() -> None:
    cost = np.full((8, 5, 5), 0.5, np.float32)
    cost[6] = 0.1
    cost[:, 2, 2] = 0.5  # nothing to match
    cost[1, 2, 2] = 0.48  # but a little noise
    total = kernels.regularise(cost, np.zeros((5, 5), np.float32), np.float32(0.03), np.float32(0.2))
    assert (total.argmin(2) == 6).all()


def test_confirmation_needs_the_same_point() -> None:
    rig = rig_of(side_by_side())
    there_and_back = np.stack([rig.viewmats[1] @ rig.c2w[0], rig.viewmats[0] @ rig.c2w[1]])
    depth, votes = np.full((32, 48), 5, np.float32), np.zeros((32, 48), np.float32)
    kernels.confirm(depth, depth, there_and_back, rig.lenses, 0.03, 1.0, votes)
    assert (votes[:, 4:] == 1).all() and (votes[:, :4] == 0).all()
    votes[:] = 0
    kernels.confirm(depth, 1.1 * depth, there_and_back, rig.lenses, 0.03, 1.0, votes)
    kernels.confirm(depth, 0 * depth, there_and_back, rig.lenses, 0.03, 1.0, votes)
    assert (votes == 0).all()


def test_pairs_need_overlap_and_parallax() -> None:
    cameras = row_of_cameras(3, 0.5, AHEAD)
    c2w = cameras.c2w.clone()
    c2w[2, :3, :3] = c2w[2, :3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))  # looks the other way
    same_place = torch.cat([c2w, c2w[:1]])
    rig = rig_of(Cameras(same_place, cameras.Ks[[0, 1, 2, 0]], torch.zeros(4, dtype=torch.bool), 96, 64))
    worth = pair_worths(rig, np.full(4, 3.0), np.full(4, 8.0))
    assert worth[0, 1] > 0.2
    assert worth[0, 2] == worth[2, 0] == worth[0, 0] == 0
    assert worth[0, 3] < 1e-3
