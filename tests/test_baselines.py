"""The nearest view by hand, and the hull of a ball against the ball."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from backend import baselines
from backend.baselines import hull, nearest_axes, nearest_view
from backend.cameras import BadInput, orbit
from backend.evaluate import Guess
from backend.hull import NothingSeen
from tests.balls import RADIUS, ball_cameras, ball_views


def turned(degrees: float, elevation: float = 0.3, count: int = 1, size: int = 32):
    """Cameras on the ring of the balls' ones, the first at an azimuth."""
    return orbit(
        count,
        target=torch.zeros(3),
        radius=2.0,
        elevation=elevation,
        fov=math.radians(40),
        size=size,
        azimuth=math.radians(degrees),
    )


@pytest.mark.parametrize(("degrees", "view"), [(10, 0), (80, 1), (170, 2), (-100, 3), (44, 0), (46, 1)])
def test_the_nearest_view_is_the_picture_as_it_is(degrees, view):
    views = ball_views()
    shown = nearest_view(views, turned(degrees, elevation=0.1))
    assert shown.images.dtype == np.uint8 and shown.mesh is None
    assert np.array_equal(shown.images, (views.images[[view]] * 255).round().to(torch.uint8).numpy())


def test_nearest_axes_are_those_of_every_pair():
    """Also for cameras that stand elsewhere but look the same way."""
    among, cameras = turned(0, count=7), turned(11, elevation=-0.4, count=9)
    moved = replace(cameras, c2w=cameras.c2w.clone())
    moved.c2w[:, :3, 3] += torch.tensor([5.0, 1.0, -3.0])
    slow = []
    for camera in cameras.c2w:
        angles = [math.acos(min(1.0, float(camera[:3, 2] @ other[:3, 2]))) for other in among.c2w]
        slow.append(angles.index(min(angles)))
    assert nearest_axes(among, cameras).tolist() == slow == nearest_axes(among, moved).tolist()


def test_nearest_needs_pictures_of_the_same_size():
    with pytest.raises(BadInput, match="expected input views of 24x24 pixels, as the test views have, found 32x32"):
        nearest_view(ball_views(), ball_cameras(size=24))


@pytest.fixture(scope="module")
def shown() -> Guess:
    """The hull of a ball from eight sides, seen from between two of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HULL_SIDE", 64), ("HULL_FACES", 3000), ("TEXTURE_SIZE", 256)):
            patch.setattr(baselines, name, value)
        return hull(ball_views(8, 64), turned(22.5, size=64))


def test_the_hull_of_a_ball_holds_the_ball(shown):
    """It is a little larger, as a hull is, most of all below, and its faces look outwards."""
    shape = trimesh.Trimesh(shown.mesh.vertices, shown.mesh.faces)
    ball = 4 / 3 * math.pi * RADIUS**3
    assert ball < shape.volume < 1.25 * ball
    farthest = np.linalg.norm(shown.mesh.vertices, axis=1)
    assert farthest.min() > 0.97 * RADIUS and np.median(farthest) < 1.1 * RADIUS


def test_the_hull_looks_like_the_ball_from_between(shown):
    assert shown.seconds > 0 and shown.images.shape == (1, 64, 64, 4)
    image, truth = shown.images[0].astype(float) / 255, ball_views(16, 64).images[1].numpy()
    assert float(np.abs(image[..., 3] - truth[..., 3]).mean()) < 0.06
    assert not ((image[..., 3] < 0.1) & (truth[..., 3] > 0.9)).any(), "nothing of the ball is missing"
    both = (image[..., 3] > 0.9) & (truth[..., 3] > 0.9)
    assert both.sum() > 1000 and float(np.abs(image - truth)[both].mean()) < 0.02


def test_the_hull_of_views_that_say_nothing():
    views = ball_views()
    opaque = replace(views, images=torch.ones_like(views.images))
    with pytest.raises(NothingSeen, match="no masks"):
        hull(opaque, views.cameras)
    with pytest.raises(NothingSeen):
        hull(replace(views, images=torch.zeros_like(views.images)), views.cameras)
