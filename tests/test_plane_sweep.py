"""Depth of textured planes, whose true depth is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.monitor import JobCancelled
from backend.plane_sweep import SweepConfig, neighbours_of, sweep
from tests.walls import cameras_before_a_wall, wall_views

SMALL = SweepConfig(longest_side=96, planes=48)


def silent(step: int, total: int) -> None:
    assert 0 <= step <= total


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_depth_of_a_slanted_textured_wall(unit):
    views, truth = wall_views(cameras_before_a_wall(unit), unit)
    depth, agreed = sweep(views, SMALL, silent)
    assert depth.shape == truth.shape
    assert float(agreed.float().mean()) > 0.6
    error = ((depth - truth) / truth).abs()[agreed]
    assert float(error.median()) < 0.01
    assert float(torch.quantile(error, 0.95)) < 0.05


def test_orthographic_cameras_are_swept_too():
    views, truth = wall_views(cameras_before_a_wall(1.0, parallel=True), 1.0)
    depth, agreed = sweep(views, SMALL, silent)
    assert float(agreed.float().mean()) > 0.5
    assert float(((depth - truth) / truth).abs()[agreed].median()) < 0.03


def test_pictures_that_have_nothing_in_common_hardly_agree():
    views, _ = wall_views(cameras_before_a_wall(1.0), 1.0)
    noise = torch.rand(views.images.shape, generator=torch.Generator().manual_seed(0))
    noise[..., 3] = 1
    _, agreed = sweep(replace(views, images=noise), SMALL, silent)
    truly, _ = wall_views(cameras_before_a_wall(1.0), 1.0)
    assert float(agreed.float().mean()) < 0.2 < float(sweep(truly, SMALL, silent)[1].float().mean())


def test_a_single_view_has_no_depth():
    views, _ = wall_views(cameras_before_a_wall(1.0)[[0]], 1.0)
    depth, agreed = sweep(views, SMALL, silent)
    assert not bool(agreed.any()) and float(depth.abs().sum()) == 0


def test_neighbours_are_near_and_turned_the_same_way():
    cameras = cameras_before_a_wall(1.0)
    c2w = cameras.c2w.clone()
    c2w[5, :3, :3] = c2w[5, :3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))  # looks the other way
    partners = neighbours_of(replace(cameras, c2w=c2w), 2)
    assert all(len(others) == 2 and view not in others for view, others in enumerate(partners))
    assert all(5 not in others for others in partners[:5])


def test_cameras_in_one_place_do_not_end_in_an_error():
    views, _ = wall_views(cameras_before_a_wall(1.0)[[0, 0, 0]], 1.0)
    depth, _ = sweep(views, SMALL, silent)
    assert np.isfinite(depth.numpy()).all()


def test_cancelling_leaves_the_sweep():
    views, _ = wall_views(cameras_before_a_wall(1.0), 1.0)

    def cancel(step: int, total: int) -> None:
        if step >= 2:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        sweep(views, SMALL, cancel)


def test_planes_cover_the_wall_evenly_in_inverse_depth():
    views, truth = wall_views(cameras_before_a_wall(1.0), 1.0)
    depth, agreed = sweep(views, SMALL, silent)
    assert math.isclose(float(depth[agreed].median()), float(truth.median()), rel_tol=0.1)
