"""Where a network's object stands in the world: windows, cameras and the rules for what one view cannot tell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views, look_at, rays
from backend.framing import Canonical, Drawn, Framed, frame_object, object_window, placement
from backend.hull import project

CANONICAL = Canonical((0.0, -2.0, 0.0), 0.75)


def disc_view(
    c2w: Tensor,
    *,
    middle: tuple[float, float] = (50.0, 40.0),
    radius: float = 16.0,
    focal: float = 120.0,
    stretch: float = 1.0,
    flat: bool = False,
    depth: float = 0.0,
) -> Views:
    """A 100x80 picture (width x height) of a disc, red left and green right, from one camera [4,4]."""
    v, u = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    alpha = ((u - middle[0]) ** 2 + ((v - middle[1]) / stretch) ** 2 < radius**2).float()
    left = (u < middle[0]).float()
    image = torch.stack([left, 1 - left, 0 * left, alpha], dim=-1)
    K = torch.tensor([[focal, 0, 50], [0, focal * stretch, 40], [0, 0, 1]])
    cameras = Cameras(c2w[None], K[None], torch.tensor([flat]), 100, 80)
    return Views(image[None], cameras, None if not depth else (alpha * depth)[None])


def camera_at(position: tuple[float, float, float], target: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    return look_at(torch.tensor([position]), torch.tensor(target))[0]


def two(first: Views, second: Views) -> Views:
    cameras = Cameras(
        torch.cat([first.cameras.c2w, second.cameras.c2w]),
        torch.cat([first.cameras.Ks, second.cameras.Ks]),
        torch.cat([first.cameras.orthographic, second.cameras.orthographic]),
        100,
        80,
    )
    return Views(torch.cat([first.images, second.images]), cameras)


def ball(radius: float, middle: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    """Points all over a ball's surface."""
    directions = F.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    return radius * directions + torch.tensor(middle)


def placed(views: Views, points: Tensor | None = None, target: Tensor | None = None, share: float = 0.8) -> Tensor:
    """With an object that fills the network's picture as the mask fills the framed one."""
    framed, points = frame_object(views, share=share), ball(0.9) if points is None else points
    local = points.double() @ CANONICAL.c2w[:3, :3]
    facing = local[local[:, 2] < 0, 2].median()  # a ball's front, about
    made = Drawn(points, framed.area or 0.5, float(facing))
    return placement(views, framed, CANONICAL, made, target=target)


def moved(points: Tensor, matrix: Tensor) -> Tensor:
    return points @ matrix[:3, :3].T.to(points) + matrix[:3, 3].to(points)


# ---- the window and the picture


def test_a_window_is_centred_and_leaves_a_margin() -> None:
    alpha = torch.zeros(80, 100)
    alpha[20:41, 30:71] = 1.0  # 40 columns and 20 rows between first and last
    middle, side = object_window(alpha, share=0.8)
    assert side == 50
    assert middle == (50.0, 30.0)


def test_odd_pixels_go_right_and_down() -> None:
    alpha = torch.zeros(80, 100)
    alpha[20:40, 30:71] = 1.0  # 19 rows to fill up to 40: 10 above, 11 below
    middle, side = object_window(alpha, share=0.79)
    assert side == 50
    assert middle == (30 - 5 + 25, 20 - 10 - 5 + 25)


def test_a_picture_without_a_mask_is_taken_whole() -> None:
    assert object_window(torch.ones(80, 100), share=0.8) == ((50.0, 40.0), 100)


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(BadInput, match="see-through"):
        frame_object(disc_view(torch.eye(4), radius=0.0), share=0.8)


def test_a_picture_in_the_middle_is_cut_out_as_it_is() -> None:
    views = disc_view(camera_at((0.0, -3.0, 0.0)))
    framed = frame_object(views, share=0.8)
    side = framed.image.shape[0]
    left, top = round(50 - side / 2), round(40 - side / 2)
    image = views.images[0]
    expected = F.pad(image.permute(2, 0, 1), (10, 10, 10, 10)).permute(1, 2, 0)
    expected = expected[top + 10 : top + 10 + side, left + 10 : left + 10 + side]
    expected = torch.cat([expected[..., :3] * expected[..., 3:], expected[..., 3:]], dim=-1)
    # The window's middle is half a pixel from the picture's, so the camera turns by a hair.
    assert (framed.image - expected).abs().mean() < 2e-3


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("middle", [(50.0, 40.0), (20.0, 60.0)])
def test_the_framing_camera_sees_along_the_same_rays(flat: bool, middle: tuple[float, float]) -> None:
    """World points have the same colours through the view's camera and through the framing camera."""
    views = disc_view(camera_at((1.0, -3.0, 0.7), (0.2, 0.1, 0)), middle=middle, flat=flat)
    v, u = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    ramps = torch.stack([u / 100, v / 80, 0 * u, views.images[0, ..., 3]], dim=-1)
    framed = frame_object(replace(views, images=ramps[None]), share=0.8)
    square = camera_of(framed)
    rays_o, rays_d = (part[0] for part in rays(square))
    pixels, _ = project(rays_o + rays_d, views.cameras, 0)
    expected = pixels / torch.tensor([100.0, 80.0])
    inner = -F.max_pool2d(-framed.image[None, None, ..., 3], 5, 1, 2)[0, 0] > 0.999
    assert inner.float().mean() > 0.3
    torch.testing.assert_close(framed.image[inner][:, :2], expected[inner], atol=1.5e-3, rtol=0)


def camera_of(framed: Framed) -> Cameras:
    side = framed.image.shape[0]
    K = torch.tensor([[framed.focal * side, 0, side / 2], [0, framed.focal * side, side / 2], [0, 0, 1.0]])
    return Cameras(framed.c2w[None].float(), K[None], torch.tensor([framed.flat]), side, side)


def extent(picture: Tensor) -> tuple[float, float, float]:
    """Of the mask of a square picture: its middle (x, y) and the longer side of its rectangle, in picture sides."""
    rows, columns = (picture[..., 3] > 0.5).nonzero(as_tuple=True)
    side = picture.shape[0]
    longer = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
    return float((columns.float().mean() + 0.5) / side), float((rows.float().mean() + 0.5) / side), longer / side


@pytest.mark.parametrize("middle", [(50.0, 40.0), (82.0, 20.0)])
def test_the_object_fills_its_share_off_the_axis_too(middle: tuple[float, float]) -> None:
    x, y, longer = extent(frame_object(disc_view(torch.eye(4), middle=middle, focal=60.0), share=0.8).image)
    assert longer == pytest.approx(0.8, abs=0.05)
    # Turned to, a disc is no disc any more and lies a little aside.
    assert x == pytest.approx(0.5, abs=0.05) and y == pytest.approx(0.5, abs=0.05)


def test_pixels_that_are_not_square_are_no_matter() -> None:
    plain = frame_object(disc_view(torch.eye(4), radius=14.0), share=0.8)
    tall = frame_object(disc_view(torch.eye(4), radius=14.0, stretch=1.5), share=0.8)
    assert abs(plain.image.shape[0] - tall.image.shape[0]) <= 1
    for found, expected in zip(extent(tall.image), extent(plain.image), strict=True):
        assert found == pytest.approx(expected, abs=0.04)


# ---- placement


def test_the_canonical_camera_looks_at_the_front() -> None:
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, -2], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(CANONICAL.c2w, expected)


def test_the_same_opening_angle_gives_the_same_picture() -> None:
    """With a focal length of 0.75 window widths every ray is the canonical one, and the similarity is exact."""
    c2w = camera_at((2.0, -3.0, 1.5), (0.5, 0.0, 0.0))
    side = frame_object(disc_view(c2w), share=0.8).image.shape[0]
    views = disc_view(c2w, focal=0.75 * side)
    points = ball(0.6, (0.1, -0.2, 0.15))
    matrix = placed(views, points, torch.tensor([0.5, 0.0, 0.0]))
    canonical = Cameras(
        CANONICAL.c2w[None].float(),
        torch.tensor([[0.75, 0, 0.5], [0, 0.75, 0.5], [0, 0, 1]])[None],
        torch.tensor([False]),
        1,
        1,
    )
    expected, depth = project(points, canonical, 0)
    pixels, distance = project(moved(points, matrix), views.cameras, 0)
    torch.testing.assert_close((pixels - torch.tensor([50.0, 40.0])) / side, expected - 0.5, atol=0.015, rtol=0)
    centre = torch.tensor([0.5, 0.0, 0.0])
    away = float((centre - c2w[:3, 3]).norm())
    torch.testing.assert_close(distance / away, depth / 2, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("focal", [40.0, 120.0, 900.0])
def test_the_object_is_as_large_in_the_view_as_to_the_network(flat: bool, focal: float) -> None:
    """A ball that fills 0.8 of the network's picture fills the disc of the mask, whatever the lens."""
    views = disc_view(camera_at((0.0, -3.0, 0.0)), focal=focal / 3 if flat else focal, flat=flat)
    sine = math.sin(math.atan(0.4 / 0.75))
    matrix = placed(views, ball(2 * sine))
    pixels, _ = project(moved(ball(2 * sine), matrix), views.cameras, 0)
    reach = (pixels - torch.tensor([50.0, 40.0])).abs().max()
    assert float(reach) == pytest.approx(16.0, abs=1.1)


def test_right_is_right_and_up_is_up() -> None:
    c2w = camera_at((1.5, -2.0, 1.0))
    matrix = placed(disc_view(c2w))
    right, down, ahead = c2w[:3, 0].double(), c2w[:3, 1].double(), c2w[:3, 2].double()
    axes = matrix[:3, :3] / matrix[:3, 0].norm()
    for axis, expected in ((0, right), (1, ahead), (2, -down)):  # the network's x, y and z
        assert float(axes[:, axis] @ expected) > 0.999
    assert float(torch.linalg.det(axes)) == pytest.approx(1)


def test_off_the_axis_the_object_turns_with_the_ray() -> None:
    """Seen in a corner of the picture, its front still looks at the camera."""
    c2w = camera_at((0.0, -3.0, 0.0))
    views = disc_view(c2w, middle=(85.0, 20.0), radius=10.0, focal=60.0)
    matrix = placed(views, target=torch.tensor([1.5, 0.0, 1.0]))
    front = -matrix[:3, 1] / matrix[:3, 1].norm()
    middle = matrix[:3, 3]
    towards = c2w[:3, 3].double() - middle
    assert float(front @ (towards / towards.norm())) > 0.999
    pixel, _ = project(middle.float(), views.cameras, 0)
    torch.testing.assert_close(pixel, torch.tensor([85.0, 20.0]), atol=1.0, rtol=0)


# ---- how far away


def test_a_target_says_how_far() -> None:
    views = disc_view(camera_at((0.0, -3.0, 0.0)))
    for y in (-1.0, 0.0, 5.0):
        middle = placed(views, target=torch.tensor([0.4, y, -0.3]))[:3, 3]
        assert float(middle[1]) == pytest.approx(y, abs=0.02)
        assert abs(float(middle[0])) < 0.1, "on the axis, not in the target itself"


def test_scale_grows_with_the_distance() -> None:
    views = disc_view(camera_at((0.0, -3.0, 0.0)))
    near, far = (placed(views, target=torch.tensor([0.0, y, 0.0])) for y in (-1.0, 3.0))
    assert float(far[:3, 0].norm() / near[:3, 0].norm()) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("target", [[0.0, -5.0, 0.0], [math.nan, 0, 0], [0.0, 0.0]])
def test_a_bad_target_is_refused(target: list[float]) -> None:
    with pytest.raises(BadInput, match="target"):
        placed(disc_view(camera_at((0.0, -3.0, 0.0))), target=torch.tensor(target))


def test_without_a_target_it_is_where_the_origin_is() -> None:
    middle = placed(disc_view(camera_at((2.0, -3.0, 1.0))))[:3, 3]
    assert float(middle.norm()) < 0.05
    # Behind or beside the camera the origin says how far away things are, and no more.
    away = placed(disc_view(camera_at((0.0, 4.0, 0.0), (0.0, 9.0, 0.0))))[:3, 3]
    assert float(away[1]) == pytest.approx(8, rel=1e-3)
    alone = placed(disc_view(torch.eye(4)))
    assert float(alone[:3, 0].norm()) == pytest.approx(1), "a camera in the origin: the network's own size"


def test_two_views_meet_at_the_object() -> None:
    """Neither camera aims at it; the masks do."""
    middle = torch.tensor([5.0, 4.0, 1.0])
    cameras = [camera_at((5.0, 1.0, 1.5), (4.7, 4, 1.2)), camera_at((8.0, 3.0, 1.0), (5, 4.4, 0.8))]
    views = []
    for c2w in cameras:
        probe = disc_view(c2w)
        pixel, _ = project(middle, probe.cameras, 0)
        views.append(disc_view(c2w, middle=(float(pixel[0]), float(pixel[1]))))
    matrix = placed(two(*views))
    torch.testing.assert_close(matrix[:3, 3].float(), middle, atol=0.03, rtol=0)
    swapped = placed(two(*views[::-1]))
    torch.testing.assert_close(swapped[:3, 3].float(), middle, atol=0.03, rtol=0)
    assert (swapped[:3, :3] - matrix[:3, :3]).abs().max() > 0.2, "the first view says which side is the front"
    hidden = replace(views[1], images=0 * views[1].images)
    assert float((placed(two(views[0], hidden))[:3, 3].float() - middle).norm()) > 0.3


@pytest.mark.parametrize("middle", [(50.0, 40.0), (85.0, 20.0)])
@pytest.mark.parametrize("flat", [False, True])
def test_a_depth_map_says_how_far(flat: bool, middle: tuple[float, float]) -> None:
    """What is in front has the depth of the map, measured along the view's own axis."""
    c2w = camera_at((5.0, 2.0, 0.0), (5.0, 9.0, 0.0))
    views = disc_view(c2w, middle=middle, radius=8.0, focal=60.0, flat=flat, depth=3.0)
    points = ball(0.3)
    matrix = placed(views, points)
    away = (moved(points, matrix) - c2w[:3, 3]) @ frame_object(views, share=0.8).c2w[:3, 2].float()
    front = moved(points, matrix)[away < away.mean()]
    assert float((front - c2w[:3, 3])[:, 1].median()) == pytest.approx(3.0, abs=0.06)


def test_a_similarity_of_the_world_moves_the_object_along() -> None:
    c2w, target = camera_at((0.7, -3.0, 1.1), (0.3, 0.2, 0)), torch.tensor([0.3, 0.2, 0.0])
    here = placed(disc_view(c2w, middle=(60.0, 35.0)), target=target)
    turn = camera_at((1.0, 2.0, 3.0)).double()[:3, :3]
    scale, shift = 2.5, torch.tensor([10.0, -20.0, 5.0], dtype=torch.float64)
    there = c2w.double().clone()
    there[:3, :3], there[:3, 3] = turn @ there[:3, :3], scale * (turn @ there[:3, 3]) + shift
    moved_target = (scale * (turn @ target.double()) + shift).float()
    matrix = placed(disc_view(there.float(), middle=(60.0, 35.0)), target=moved_target)
    expected = torch.eye(4, dtype=torch.float64)
    expected[:3, :3], expected[:3, 3] = scale * turn, shift
    torch.testing.assert_close(matrix, expected @ here, atol=2e-4, rtol=0)
