"""GRM's hull: by hand, by the law that no surface lies outside the hull, and the kernel against its slow twin."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor

from backend.cameras import Cameras, look_at
from backend.models.grm_cameras import HALF_EXTENT, Poses, poses, ray_lines
from backend.models.grm_hull import FINER, HALVINGS, STEPS, Hull, cut_by_torch, hull_of
from tests import shapes
from tests.splat_scenes import cameras_around

STEP = 2 * HALF_EXTENT / STEPS
FINEST = STEP / 2**HALVINGS  # to which an end is found
NEAR_END = HALF_EXTENT + 0.5 * STEP - 0.5 * FINEST  # before the origin, where a ray is that nothing stops


def poses_of(*objects: Cameras) -> Poses:
    """One object each; as many views everywhere."""
    c2w, Ks, kinds = (
        torch.stack([getattr(cameras, name) for cameras in objects]) for name in ("c2w", "Ks", "orthographic")
    )
    return poses(c2w, Ks, kinds, objects[0].width)


def twin(alpha: Tensor, given: Poses) -> Hull:
    """The hull by torch alone."""
    hull = hull_of(alpha, given)
    entry, leave = cut_by_torch(alpha, *ray_lines(given, alpha.shape[-1], "centres"), given, hull.origin)
    return Hull(entry, (leave - entry).clamp_min(0), hull.origin)


def along_axes(side: int, focal: float, distance: float = 3.0, *, orthographic: bool = True) -> Cameras:
    """Three cameras on -Z, -X and -Y that look along +Z, +X and +Y, with their pictures' axes along the world's."""
    axes = (
        [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.0, 0, -1], [0, 1, 0], [1, 0, 0]],
        [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
    c2w = torch.eye(4).repeat(3, 1, 1)
    for view, (right, down, forward) in enumerate(axes):
        c2w[view, :3, :3] = torch.tensor([right, down, forward]).T
        c2w[view, :3, 3] = -distance * torch.tensor(forward)
    K = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
    return Cameras(c2w, K.repeat(3, 1, 1), torch.full((3,), orthographic), side, side)


def offsets(side: int, focal: float) -> Tensor:
    """[side] of the pixels' centres from the middle, at depth 1."""
    return (torch.arange(side) + 0.5 - side / 2) / focal


# ---- by hand


def test_a_ball_from_three_sides() -> None:
    """Its hull is what three cylinders share: before the pixel at (x, y) it reaches as far as the lower of two does."""
    side, focal, radius = 96, 36.0, 0.8
    place = offsets(side, focal)
    distance = (place[:, None] ** 2 + place**2).sqrt()
    disc = ((radius - distance) * focal + 0.5).clamp(0, 1)  # covered share of a pixel, nearly
    hull = hull_of(disc.expand(1, 3, side, side), poses_of(along_axes(side, focal)))
    height = (radius**2 - torch.maximum(place[:, None].abs(), place.abs()) ** 2).clamp_min(0).sqrt()
    inside = distance < radius - 0.1  # where the cylinders are not steep
    assert int(inside.sum()) > 1000
    torch.testing.assert_close(hull.origin, torch.full((1, 3), 3.0))
    for view in range(3):
        torch.testing.assert_close(hull.entry[0, view][inside], 3 - height[inside], rtol=0, atol=0.01)
        torch.testing.assert_close(hull.room[0, view][inside], 2 * height[inside], rtol=0, atol=0.02)
    torch.testing.assert_close(
        (hull.entry - hull.origin[..., None, None])[0, 0][inside], -height[inside], rtol=0, atol=0.01
    )


def test_a_square_from_two_sides() -> None:
    """Two pinhole cameras, 3 away, whose masks reach to slopes of 1/4: of the ray with slope a in the first, the second
    allows the depths z with |z - 3| below (a z + 3) / 4.
    """
    side, focal = 96, 48.0
    square = (offsets(side, focal).abs() < 0.25).float()
    mask = (square[:, None] * square).expand(1, 2, side, side)
    hull = hull_of(mask, poses_of(along_axes(side, focal, orthographic=False)[[0, 1]]))
    middle, seen = side // 2, square > 0
    slope = offsets(side, focal)[seen]
    entry, leave = 3 * 0.75 / (1 + 0.25 * slope), 3 * 1.25 / (1 - 0.25 * slope)
    torch.testing.assert_close(hull.entry[0, 0, middle][seen], entry, rtol=0, atol=0.005)
    torch.testing.assert_close(hull.room[0, 0, middle][seen], leave - entry, rtol=0, atol=0.01)


def test_pixels_that_show_nothing_have_no_room() -> None:
    alpha = torch.ones(1, 3, 16, 16)
    alpha[:, :, 3:5] = 0
    hull = hull_of(alpha, poses_of(along_axes(16, 6.0)))
    assert bool((hull.entry[:, :, 3:5] == 3).all()) and float(hull.room[:, :, 3:5].abs().max()) == 0
    assert float((hull.entry[:, :, 5:] - 3).abs().min()) > 0.01


@pytest.mark.parametrize("orthographic", [False, True])
def test_one_view_alone(orthographic: bool) -> None:
    """Nothing says how far it is: from the near end to the far one."""
    cameras = along_axes(8, 8.0, orthographic=orthographic)[[1]]
    hull = hull_of(torch.rand(1, 1, 8, 8).clamp_min(0.01), poses_of(cameras))
    torch.testing.assert_close(hull.entry, torch.full((1, 1, 8, 8), 3 - NEAR_END), rtol=0, atol=1e-4)
    torch.testing.assert_close(hull.room, torch.full((1, 1, 8, 8), 2 * NEAR_END), rtol=0, atol=1e-4)


def test_a_mask_cut_by_the_frame_rules_nothing_out_beyond_it() -> None:
    """The second camera, which looks along +X, sees what lies at z from -1/2 to 1/2; its mask ends at 0 and goes on
    beyond the frame's other side, which is the first's near one.
    """
    side, focal = 32, 32.0
    for upper in (False, True):
        alpha = torch.ones(1, 2, side, side)
        half = slice(0, 16) if upper else slice(16, 32)  # z grows to the left there
        alpha[0, 1, :, half] = 0
        hull = hull_of(alpha, poses_of(along_axes(side, focal)[[0, 1]]))
        near, far = (3 - NEAR_END, 3.0) if upper else (3.0, 3 + NEAR_END)
        torch.testing.assert_close(hull.entry[0, 0], torch.full((side, side), near), rtol=0, atol=FINEST)
        torch.testing.assert_close((hull.entry + hull.room)[0, 0], torch.full((side, side), far), rtol=0, atol=FINEST)


def test_nothing_is_ruled_out_behind_a_camera() -> None:
    """The second looks the same way from the middle on, and sees nothing on its right."""
    cameras = along_axes(32, 32.0)[[0, 0]]
    cameras.c2w[1, 2, 3] = 0.2
    cameras = replace(cameras, orthographic=torch.tensor([True, False]))
    alpha = torch.ones(1, 2, 32, 32)
    alpha[0, 1, :, 16:] = 0
    hull = hull_of(alpha, poses_of(cameras))
    torch.testing.assert_close(hull.entry[0, 0], torch.full((32, 32), 3 - NEAR_END), rtol=0, atol=FINEST)
    leave = torch.where(torch.arange(32) < 16, 3 + NEAR_END, 3.2).expand(32, 32)
    torch.testing.assert_close((hull.entry + hull.room)[0, 0], leave, rtol=0, atol=FINEST)


def test_a_view_that_shows_nothing_rules_nothing_out() -> None:
    alpha = some_masks(1, 3, 24)
    alpha[:, 1] = 0
    cameras = cameras_around(3, 24, 24)
    hull = hull_of(alpha, poses_of(cameras))
    without = hull_of(alpha[:, [0, 2]], poses_of(cameras[[0, 2]]))
    torch.testing.assert_close(hull.entry[:, [0, 2]], without.entry)
    torch.testing.assert_close(hull.room[:, [0, 2]], without.room)
    assert float(hull.room[:, 1].max()) == 0 and torch.equal(hull.entry[0, 1], hull.origin[0, 1].expand(24, 24))


def test_thin_things_are_found() -> None:
    """A rod of a pixel's width, which lies between the coarse samples, and a faint one that nowhere is half there."""
    side, focal = 64, 24.0
    for strength, tolerance in ((1.0, 0.5 * STEP), (0.4, STEP / FINER)):
        alpha = torch.ones(1, 3, side, side)
        column = side // 2 + 5  # of the camera that looks along +X, whose pictures' right is -Z
        alpha[0, 1] = 0
        alpha[0, 1, :, column] = strength
        hull = hull_of(alpha, poses_of(along_axes(side, focal)))
        z = -offsets(side, focal)[column]
        assert float((hull.entry[0, 0] + 0.5 * hull.room[0, 0] - 3 - z).abs().max()) < tolerance
        assert float(hull.room[0, 0].max()) < 1.1 / focal


# ---- the law


SOLIDS = {
    "box": trimesh.creation.box((1.1, 0.7, 0.9)),
    "torus": trimesh.creation.torus(0.62, 0.22),
}


@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("name", SOLIDS)
def test_surfaces_lie_in_the_hull(name: str, orthographic: bool) -> None:
    """Between entry and last leave, where masks hold at least all of the object; how far in, tells what is hollow."""
    cameras = shapes.orbit(5, (10.0, 40.0), radius=2.7, size=64, orthographic=orthographic)
    views = shapes.capture(SOLIDS[name], cameras)
    assert views.depth is not None
    seen = views.depth > 0
    exact = views.images[None, ..., 3]
    wide = F.max_pool2d(exact[0], 3, 1, 1)[None]
    hull = hull_of(wide, poses_of(cameras))
    before, behind = (hull.entry[0] - views.depth)[seen], (views.depth - hull.entry[0] - hull.room[0])[seen]
    assert float(before.max()) < FINEST and float(behind.max()) < FINEST
    pixel = float(2.7 / cameras.Ks[0, 0, 0]) if not orthographic else float(1 / cameras.Ks[0, 0, 0])
    hull = hull_of(exact, poses_of(cameras))
    inward = (views.depth - hull.entry[0])[seen]
    assert float((inward > -pixel).float().mean()) > 0.98, "exact masks cut off no more than a pixel"
    if name == "box":
        assert float(inward.median()) < 1.5 * pixel, "most of its sides are on the hull"
    assert float(before.max()) > -0.1, "and somewhere it touches"


# ---- the kernel and its twin


def some_masks(count: int, views: int, side: int) -> Tensor:
    """[B,V,R,R] soft blobs of any shape, with steps of 1/4 as from 2 x 2 samples a pixel."""
    noise = torch.rand(count * views, 1, 5, 5, generator=torch.Generator().manual_seed(5))
    noise[:, :, 1:4, 1:4] += 0.6
    smooth = F.interpolate(noise, (side, side), mode="bicubic", align_corners=True)
    return ((smooth - 0.7) * 8).clamp(0, 1).mul(4).round().div(4).view(count, views, side, side)


def mixed(cameras: Cameras) -> Cameras:
    """Every second one orthographic, a little larger than its picture."""
    kinds = torch.arange(len(cameras)) % 2 == 1
    Ks = cameras.Ks.clone()
    Ks[kinds, :2, :2] *= 0.4
    return replace(cameras, Ks=Ks, orthographic=kinds)


SETS = {
    "pinhole": cameras_around(4, 40, 40),
    "orthographic": cameras_around(4, 40, 40, orthographic=True),
    "mixed": mixed(cameras_around(5, 40, 40)),
    "inside": replace(cameras_around(3, 40, 40), c2w=torch.eye(4).repeat(3, 1, 1)),
}


@pytest.mark.parametrize("name", SETS)
def test_kernel_and_twin_agree(name: str) -> None:
    """On several objects whose cameras differ: off-centre principal points, unequal focal lengths, quarter alphas."""
    cameras = SETS[name]
    c2w = cameras.c2w.clone()
    c2w[1:, :3, 3] *= torch.linspace(0.7, 1.4, len(cameras) - 1)[:, None]
    Ks = cameras.Ks.clone()
    Ks[:, :2, 2] += torch.tensor([[3.0, -5.0]])
    given = poses_of(cameras, replace(cameras, c2w=c2w), replace(cameras, Ks=Ks))
    agree(some_masks(3, len(cameras), 40), given)


@pytest.mark.parametrize("hard", [False, True])
def test_kernel_and_twin_agree_on_noise(hard: bool) -> None:
    """The hull is crumbs then, of which the coarse steps find some."""
    alpha = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    cameras = cameras_around(3, 24, 24)
    agree((alpha > 0.3).float() if hard else alpha, poses_of(cameras, mixed(cameras)))


def test_kernel_and_twin_agree_where_all_is_alike() -> None:
    """Opposite orthographic cameras see each other's masks edge to edge, for whole rays exactly half inside."""
    side = 32
    around = look_at(3.0 * torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]]), torch.zeros(3))
    K = torch.tensor([[12.0, 0, 16], [0, 12.0, 16], [0, 0, 1]])
    cameras = Cameras(around, K.repeat(4, 1, 1), torch.tensor([True, False, True, False]), side, side)
    cameras.Ks[1::2, :2, :2] *= 3
    alpha = torch.zeros(1, 4, side, side)
    alpha[:, :, 8:24, 8:24] = 1
    for share, shift in itertools.product((0.25, 0.5, 0.75), (0.0, 0.3)):
        cameras.Ks[2, 0, 2] = 16 + shift
        for edge in (8, 23):
            alpha[:, :, edge, 8:24] = alpha[:, :, 8:24, edge] = share
        got, want = hull_of(alpha, poses_of(cameras)), twin(alpha, poses_of(cameras))
        torch.testing.assert_close(got.entry, want.entry, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.room, want.room, rtol=0, atol=1e-5)


def agree(alpha: Tensor, given: Poses) -> None:
    """All but a few pixels in a thousand, which rounding decides."""
    got, want = hull_of(alpha, given), twin(alpha, given)
    assert 0.1 < float((want.room > 0).float().mean()), "there is something to compare"
    for field in ("entry", "room"):
        difference = (getattr(got, field) - getattr(want, field)).abs()
        assert float((difference > 1e-4).float().mean()) < 0.002


def test_objects_do_not_meet() -> None:
    cameras = cameras_around(4, 24, 24)
    given, alpha = poses_of(cameras, mixed(cameras)), some_masks(2, 4, 24)
    together = hull_of(alpha, given)
    for item, own in enumerate((cameras, mixed(cameras))):
        alone = hull_of(alpha[[item]], poses_of(own))
        assert torch.equal(together.entry[[item]], alone.entry) and torch.equal(together.room[[item]], alone.room)


def test_types() -> None:
    """Cameras in float64 keep it, and masks in half precision take nothing from the depths."""
    given = poses_of(cameras_around(3, 16, 16))
    double = Poses(given.c2w.double(), given.intrinsics.double(), given.orthographic)
    alpha = some_masks(1, 3, 16)
    want = hull_of(alpha, given).entry
    assert hull_of(alpha.double(), double).entry.dtype == torch.float64
    half = hull_of(alpha.bfloat16(), given).entry
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, want)
