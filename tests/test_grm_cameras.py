"""GRM's cameras: rays and points against the project's own and by hand, placing and framing by their laws."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views, look_at, orbit, rays
from backend.gaussians import rotation_matrices, transform
from backend.hull import project
from backend.models.grm import GRM, reconstruct
from backend.models.grm_cameras import (
    CAMERA_DISTANCE,
    FIELD_OF_VIEW,
    HALF_EXTENT,
    PixelGrid,
    Placement,
    Window,
    cut_out,
    depth_of_origin,
    frame,
    object_window,
    place,
    plucker,
    poses,
    unproject,
)
from backend.models.grm_gaussians import DOUBT
from backend.projection import ALPHA_MIN
from tests.grm_networks import OWN, RELEASED, network, some_views, standing_views
from tests.splat_scenes import cameras_around

# ---- rays and points


@pytest.mark.parametrize("orthographic", [False, True])
def test_rays_through_pixel_centres(orthographic: bool) -> None:
    """The project's own rays; a moment belongs to a line, wherever on it the origin is."""
    cameras = cameras_around(3, 16, 16, orthographic=orthographic)
    origins, directions = rays(cameras)
    got = plucker(poses(cameras.c2w[None], cameras.Ks[None], cameras.orthographic[None], 16), 16, "centres")[0]
    want = torch.cat([torch.linalg.cross(origins + 5 * directions, directions), directions], dim=-1)
    torch.testing.assert_close(got.permute(0, 2, 3, 1), want, rtol=1e-5, atol=1e-5)


def test_published_rays_by_hand() -> None:
    """A camera at (1,2,3) with the world's axes: pixel positions 0, 1/2, 1, plus 1/2, minus the principal point."""
    c2w = torch.eye(4)
    c2w[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    K = torch.tensor([[6.0, 0.0, 1.5], [0.0, 3.0, 1.2], [0.0, 0.0, 1.0]])  # of a picture of 3 x 3 pixels
    channels = plucker(poses(c2w[None, None], K[None, None], None, 3), 3, "corners")[0, 0]
    direction = torch.tensor([(1 + 0.5 - 0.5) / 2, (0.5 + 0.5 - 0.4) / 1, 1.0])  # of row 1, column 2
    direction = direction / direction.norm()
    torch.testing.assert_close(channels[3:, 1, 2], direction)
    torch.testing.assert_close(channels[:3, 1, 2], torch.linalg.cross(c2w[:3, 3], direction))


@pytest.mark.parametrize(("grid", "first", "step"), [("centres", 0.5, 1.0), ("corners", 0.0, 16 / 15)])
@pytest.mark.parametrize("orthographic", [False, True])
def test_points_project_onto_their_pixels(grid: PixelGrid, first: float, step: float, orthographic: bool) -> None:
    cameras = cameras_around(2, 16, 16, orthographic=orthographic)
    depth = 2 + torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    given = poses(cameras.c2w[None], cameras.Ks[None], cameras.orthographic[None], 16)
    points = unproject(depth, given, grid)[0]
    position = first + step * torch.arange(16)
    want = torch.stack(torch.meshgrid(position, position, indexing="xy"), dim=-1)
    for view in range(2):
        pixels, z = project(points[view], cameras, view)
        torch.testing.assert_close(pixels, want, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(z, depth[0, view])


def test_depth_of_origin() -> None:
    """Published: the distance, even when the camera looks past the origin; ours: along the axis."""
    c2w = look_at(torch.tensor([[3.0, 0.0, 4.0]]), torch.tensor([3.0, 0.0, 0.0]))[None]
    given = poses(c2w, torch.eye(3)[None, None], None, 1)
    assert float(depth_of_origin(given, "corners")) == pytest.approx(5)
    assert float(depth_of_origin(given, "centres")) == pytest.approx(4)


def test_geometry_survives_autocast() -> None:
    cameras = cameras_around(2, 16, 16)
    given = poses(cameras.c2w[None], cameras.Ks[None], None, 16)
    depth = torch.full((1, 2, 16, 16), 2.5)
    with torch.autocast("cpu", torch.bfloat16):
        got = unproject(depth, given, "corners"), plucker(given, 16, "corners")
    torch.testing.assert_close(got[0], unproject(depth, given, "corners"), rtol=0, atol=0)
    torch.testing.assert_close(got[1], plucker(given, 16, "corners"), rtol=0, atol=0)


# ---- placing


def similarity(seed: int) -> Tensor:
    """[4,4] float64: some rotation, a scale of 7.3 and a shift."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = 7.3 * torch.from_numpy(Rotation.from_rotvec([seed, 1.0, -0.4]).as_matrix())
    matrix[:3, 3] = torch.tensor([30.0, -4.0, 11.0])
    return matrix


def moved(views: Views, matrix: Tensor) -> Views:
    """The same pictures from cameras that a similarity [4,4] takes along."""
    scale = float(torch.linalg.det(matrix[:3, :3])) ** (1 / 3)
    c2w = views.cameras.c2w.double()
    placed = c2w.clone()
    placed[:, :3, :3] = matrix[:3, :3] / scale @ c2w[:, :3, :3]
    placed[:, :3, 3] = c2w[:, :3, 3] @ matrix[:3, :3].T + matrix[:3, 3]
    Ks = views.cameras.Ks.clone()
    Ks[views.cameras.orthographic, :2, :2] /= scale  # pixels a unit
    return replace(views, cameras=replace(views.cameras, c2w=placed.float(), Ks=Ks))


def published_cameras(elevations: tuple[float, ...], azimuths: tuple[float, ...], size: int = 32) -> Cameras:
    """Degrees; distance 2.7 and a field of view of 50 degrees, as the published programs place them."""
    e, a = (torch.tensor(x).deg2rad() for x in (elevations, azimuths))
    eyes = 2.7 * torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], dim=-1)
    focal = 0.5 * size / math.tan(math.radians(25))
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    kinds = torch.zeros(len(eyes), dtype=torch.bool)
    return Cameras(look_at(eyes, torch.zeros(3)), K.repeat(len(eyes), 1, 1), kinds, size, size)


SETS = {
    "grm_u": ((20.0, 20.0, 20.0, 20.0), (225.0, 315.0, 45.0, 135.0)),
    "grm_zero123plus": ((30.0, 30.0, 30.0, -20.0), (255.0, 375.0, 495.0, 555.0)),
    "grm_r": ((20.0, 20.0, 20.0, -10.0), (255.0, 375.0, 495.0, 555.0)),
}


def blank(cameras: Cameras, alpha: float = 1.0) -> Views:
    return Views(torch.full((len(cameras), cameras.height, cameras.width, 4), alpha), cameras)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_published_cameras_stay_or_come_back(name: str, elsewhere: bool) -> None:
    """The checkpoints' own cameras reach the network as they are, wherever in the world they stand."""
    cameras = published_cameras(*SETS[name])
    views = moved(blank(cameras), similarity(3)) if elsewhere else blank(cameras)
    placement = place(views, rule="distance", azimuth=math.radians(SETS[name][1][0]), target=None)
    torch.testing.assert_close(placement.inward(views.cameras).c2w, cameras.c2w, rtol=0, atol=2e-4)
    pictures, Ks = frame(views, 32, field_of_view=FIELD_OF_VIEW)
    torch.testing.assert_close(Ks, cameras.Ks)
    torch.testing.assert_close(pictures, views.images.permute(0, 3, 1, 2))


def test_outward_undoes_inward() -> None:
    views = moved(some_views(4), similarity(5))
    placement = place(views, rule="object", azimuth=1.0, target=None)
    inside = Views(views.images, placement.inward(views.cameras))
    torch.testing.assert_close(moved(inside, placement.outward).cameras.c2w, views.cameras.c2w, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("size", "fov"), [(64, 0.4), (200, 1.4)])
def test_scale_rules(size: int, fov: float) -> None:
    target = torch.tensor([5.0, -1.0, 2.0])
    views = blank(orbit(5, target=target, radius=9.0, elevation=0.4, fov=fov, size=size))
    near = place(views, rule="distance", azimuth=0.0, target=None)
    torch.testing.assert_close(near.target.float(), target, rtol=0, atol=1e-4)
    assert near.scale == pytest.approx(CAMERA_DISTANCE / 9)
    assert place(views, rule="object", azimuth=0.0, target=None).scale == pytest.approx(
        HALF_EXTENT / (9 * math.tan(fov / 2)), rel=1e-5
    )
    first = CAMERA_DISTANCE * torch.tensor([math.cos(0.4), 0, math.sin(0.4)])
    torch.testing.assert_close(near.inward(views.cameras).centres[0], first, rtol=0, atol=1e-4)


def test_orthographic_scale() -> None:
    """Half a picture's side becomes 1.26, wherever along its axis the camera stands."""
    cameras = cameras_around(4, 40, 40, orthographic=True)
    views = blank(cameras)
    scale = 20 / (0.5 * (cameras.Ks[0, 0, 0] + cameras.Ks[0, 1, 1]))
    assert place(views, rule="object", azimuth=0.0, target=None).scale == pytest.approx(HALF_EXTENT / float(scale))


def test_opposite_views_meet_between_the_cameras() -> None:
    target = torch.tensor([5.0, -1.0, 2.0])
    views = blank(orbit(2, target=target, radius=4.0, elevation=0.0, fov=0.8, size=8))
    torch.testing.assert_close(
        place(views, rule="distance", azimuth=0.0, target=None).target.float(), target, rtol=0, atol=1e-4
    )


def test_one_view_needs_to_know_where() -> None:
    views = blank(orbit(1, target=torch.tensor([0.0, 0.0, 1.0]), radius=4.0, elevation=0.2, fov=0.8, size=8))
    with pytest.raises(BadInput, match=r"views: .* depth"):
        place(views, rule="object", azimuth=0.0, target=None)
    depth = torch.zeros(1, 8, 8)
    depth[0, 2:5, 3] = torch.tensor([3.0, 4.0, 6.0])
    by_depth = place(replace(views, depth=depth), rule="object", azimuth=0.0, target=None)
    told = place(views, rule="object", azimuth=0.0, target=torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(by_depth.target, told.target, rtol=0, atol=1e-5)
    with pytest.raises(BadInput, match="target"):
        place(views, rule="object", azimuth=0.0, target=views.cameras.centres[0] - views.cameras.c2w[0, :3, 2])


def test_parallel_views_need_to_know_where() -> None:
    cameras = orbit(1, target=torch.zeros(3), radius=4.0, elevation=0.2, fov=0.8, size=8)[[0, 0, 0]]
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] += torch.arange(3)[:, None] * c2w[:, :3, 0]
    with pytest.raises(BadInput, match="views"):
        place(blank(replace(cameras, c2w=c2w)), rule="object", azimuth=0.0, target=None)


@pytest.mark.parametrize(("count", "tilt"), [(1, 0.3), (2, 0.0)])
def test_up_of_few_views(count: int, tilt: float) -> None:
    """Two opposite pictures have their horizontal axes on one line; what is upwards in both then decides. One picture
    alone gives its own.
    """
    views = blank(orbit(count, target=torch.zeros(3), radius=4.0, elevation=0.3, fov=0.8, size=8))
    turn = place(views, rule="distance", azimuth=0.0, target=torch.zeros(3)).turn
    assert float(turn[2, 2]) == pytest.approx(math.cos(tilt), abs=1e-4)


def test_picture_on_its_side() -> None:
    """A first camera turned a quarter about its axis still gets a rotation, with the others' up."""
    views = blank(orbit(5, target=torch.zeros(3), radius=4.0, elevation=0.3, fov=0.8, size=8))
    c2w = views.cameras.c2w.clone()
    c2w[0, :3, :2] = torch.stack([c2w[0, :3, 1], -c2w[0, :3, 0]], dim=-1)
    turned = replace(views, cameras=replace(views.cameras, c2w=c2w))
    turn = place(turned, rule="distance", azimuth=0.5, target=None).turn
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(turn)) == pytest.approx(1)
    assert float(turn[2, 2]) > 0.9


# ---- framing


def hand_views(width: int, height: int, focal: float, middle: tuple[float, float]) -> Views:
    """One picture, see-through but for a red pixel at row 2, column 3 and half of a black one at row 4, column 1."""
    images = torch.zeros(1, height, width, 4)
    images[0, 2, 3] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    images[0, 4, 1, 3] = 0.5
    K = torch.tensor([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1]])
    return Views(images, Cameras(torch.eye(4)[None], K[None], torch.tensor([False]), width, height))


def test_narrow_picture_is_padded() -> None:
    """10 x 8 pixels at a focal length of 10 pixels and 90 degrees: a square of 20, its middle where (5, 4) was."""
    pictures, Ks = frame(hand_views(10, 8, 10.0, (5.0, 4.0)), 20, field_of_view=math.pi / 2)
    want = torch.ones(4, 20, 20)
    want[3] = 0
    want[:, 2 + 6, 3 + 5] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    want[:, 4 + 6, 1 + 5] = 0.5
    torch.testing.assert_close(pictures[0], want)
    torch.testing.assert_close(Ks[0], torch.tensor([[10.0, 0, 10], [0, 10, 10], [0, 0, 1]]))


def test_wide_picture_loses_only_its_empty_rim() -> None:
    """At a focal length of 2 pixels 90 degrees are 4 pixels, but the pixel in column 1 is 4 from the middle."""
    pictures, Ks = frame(hand_views(10, 8, 2.0, (5.0, 4.0)), 8, field_of_view=math.pi / 2)
    torch.testing.assert_close(pictures[0, :, 4, 0], torch.full((4,), 0.5))
    torch.testing.assert_close(pictures[0, :, 2, 2], torch.tensor([1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(Ks[0], torch.tensor([[2.0, 0, 4], [0, 2, 4], [0, 0, 1]]))
    opaque = replace(hand_views(10, 8, 2.0, (5.0, 4.0)), images=torch.rand(1, 8, 10, 4).clamp_min(0.1))
    assert float(frame(opaque, 10, field_of_view=math.pi / 2)[1][0, 0, 2]) == 5  # nothing is cut


def test_resizing_keeps_mean_and_place() -> None:
    """Half the size: 2 x 2 pixels become one, and intrinsics halve."""
    views = hand_views(8, 8, 8.0, (4.0, 4.0))
    views.images[0, 2:4, 2:4] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    pictures, Ks = frame(views, 4, field_of_view=2 * math.atan(0.5))  # 8 pixels
    torch.testing.assert_close(Ks[0], torch.tensor([[4.0, 0, 2], [0, 4, 2], [0, 0, 1]]))
    peak = pictures[0, 3].flatten().argmax()
    assert divmod(int(peak), 4) == (1, 1)
    assert float(pictures[0, 0, 1, 1]) < 0.5 < float(pictures[0, 1, 1, 1])  # green, not red: no colour from nowhere
    assert float(pictures[0, 3].mean()) == pytest.approx(4.5 / 64, abs=0.01)


# ---- cutting out


@pytest.mark.parametrize(
    ("columns", "rows", "want"),
    [
        ((40, 60), (30, 40), Window(39, 24, 22)),  # 20 wide, 1 left free on each side, and square
        ((1, 21), (60, 80), Window(0, 58, 22)),  # moved into the picture
        ((0, 20), (60, 80), Window(0, 58, 22)),
        ((99, 119), (0, 10), Window(98, 0, 22)),
        ((10, 110), (0, 80), Window(5, -15, 110)),  # higher than the picture: beyond it on both sides
        ((50, 51), (7, 8), Window(49, 6, 3)),  # a single pixel
        ((0, 120), (0, 80), Window(-6, -26, 132)),
    ],
)
def test_window_around_an_object(columns: tuple[int, int], rows: tuple[int, int], want: Window) -> None:
    """In a picture of 120 x 80 pixels; how faint it is does not matter."""
    alpha = torch.zeros(80, 120)
    alpha[slice(*rows), slice(*columns)] = 0.01
    assert object_window(alpha) == want


def test_window_around_nothing_is_the_whole_picture() -> None:
    assert object_window(torch.zeros(80, 120)) == Window(0, -20, 120)


@pytest.mark.parametrize("orthographic", [False, True])
def test_cut_pictures_and_cameras_belong_together(orthographic: bool) -> None:
    """Pictures whose colours say where in the world their pixels are, before and after; and so does the depth."""
    cameras = cameras_around(3, 90, 70, orthographic=orthographic)
    alpha = torch.zeros(3, 70, 90)
    for view, (top, left) in enumerate(((10, 20), (0, 60), (38, 5))):
        alpha[view, top : top + 32, left : left + 25] = 1
    depth = 3 + 0.01 * torch.arange(90.0).expand(3, 70, 90) * alpha
    images = torch.cat([0.5 + 0.15 * seen_points(cameras, depth), alpha[..., None]], dim=-1)
    pictures, cut, cut_depth = cut_out(Views(images, cameras, depth * alpha), 24)
    assert cut_depth is not None and cut_depth.shape == (3, 24, 24) and pictures.shape == (3, 4, 24, 24)
    solid = pictures[:, 3] > 0.999
    assert float(solid.float().mean()) > 0.4
    got = (pictures[:, :3].permute(0, 2, 3, 1) - 0.5) / 0.15
    assert float((got - seen_points(cut, cut_depth))[solid].abs().max()) < 0.06  # pixels of 0.05, of the nearest depth
    assert float((got - seen_points(cut, cut_depth))[solid].mean(0).abs().max()) < 0.006
    assert bool((cut_depth[pictures[:, 3] == 0] == 0).all())
    assert set(cut_depth.flatten().tolist()) <= set((depth * alpha).flatten().tolist()), "no depth between two others"


def seen_points(cameras: Cameras, depth: Tensor) -> Tensor:
    """[V,H,W,3] world."""
    origins, directions = rays(cameras)
    return (
        origins + depth[..., None] / (directions * cameras.c2w[:, None, None, :3, 2]).sum(-1, keepdim=True) * directions
    )


def test_cut_pictures_without_depth() -> None:
    assert cut_out(some_views(2), 16)[2] is None


def test_cut_pictures_fill_the_networks_world() -> None:
    """An object looked past is still brought to the origin, and there no picture shows more than 1.26 to each side."""
    target = torch.tensor([4.0, -2.0, 1.0])
    aside = torch.tensor([0.3, 0.2, -0.1])
    cameras = orbit(5, target=target, radius=3.0, elevation=0.4, fov=0.9, size=96)
    alpha = torch.zeros(5, 96, 96)
    for view in range(5):
        (u, v), _ = project(target + aside, cameras, view)
        left, top = round(float(u)) - 12 - view, round(float(v)) - 12 - view
        alpha[view, top : top + 24 + 2 * view, left : left + 24 + 2 * view] = 1
    views = Views(alpha[..., None].expand(5, 96, 96, 4), cameras)
    pictures, cut, _ = cut_out(views, 32)
    placement = place(Views(pictures.permute(0, 2, 3, 1), cut), rule="object", azimuth=0.0, target=None)
    torch.testing.assert_close(placement.target.float(), target + aside, rtol=0, atol=0.02)
    inward = placement.inward(cut)
    depths = torch.stack([project(torch.zeros(3), inward, view)[1] for view in range(5)])
    half_sides = 16 * depths / inward.Ks[:, 0, 0]
    assert float(half_sides.max()) == pytest.approx(HALF_EXTENT, rel=1e-4)
    assert float(half_sides.min()) < 0.9 * HALF_EXTENT


def test_depth_counts_along_the_ray_through_the_cut_pictures_middle() -> None:
    """A single view of something at the picture's rim."""
    views = standing_views(1)
    images = views.images.roll((-6, 5), (1, 2))
    depth = torch.where(images[..., 3] > 0, 3.5, 0.0)
    pictures, cut, cut_depth = cut_out(replace(views, images=images, depth=depth), 32)
    around = Views(pictures.permute(0, 2, 3, 1), cut, cut_depth)
    target = place(around, rule="object", azimuth=0.0, target=None).target.float()
    pixel, z = project(target, views.cameras, 0)
    torch.testing.assert_close(pixel, torch.tensor([24.0, 16.0]), rtol=0, atol=1e-2)  # windows stay in the picture
    assert float(z) == pytest.approx(3.5, abs=1e-3)


# ---- reconstructions in the world


def scene(model: GRM, *, orthographic: bool = False) -> Views:
    """Nothing in it hangs on rounding: for a guided network, which drops what it does not see, masks are 0 or 1."""
    if model.config.guided:
        return standing_views(orthographic=orthographic)
    views = some_views(4, side=40, orthographic=orthographic)
    views.images[..., 3] = 1
    return views


def steady(model: GRM) -> GRM:
    """It does not change opacities, so that what it drops is what is not seen."""
    with torch.no_grad():
        model.head_weight("opacity").zero_()
    return model


@pytest.mark.usefixtures("no_grid")
@pytest.mark.parametrize("orthographic", [False, True])
def test_gaussians_stand_on_their_pixels_rays(orthographic: bool) -> None:
    """Ours: every Gaussian projects onto the middle of its pixel in the camera that was given."""
    model = steady(network(OWN))
    views = moved(scene(model, orthographic=orthographic), similarity(8))
    means = reconstruct(model, views).means.view(4, 28, 28, 3)
    middles = torch.arange(28) + 6.5
    want = torch.stack(torch.meshgrid(middles, middles, indexing="xy"), dim=-1)
    for view in range(4):
        pixels, depth = project(means[view], views.cameras, view)
        torch.testing.assert_close(pixels, want, rtol=0, atol=0.02)
        assert bool((depth > 0).all())


@pytest.mark.usefixtures("no_grid")
def test_gaussians_stand_on_the_rays_of_resized_pixels() -> None:
    """66 x 66 pixels are cut to 32 x 32, of which the object has all but about one and a half at each side."""
    model = steady(network(OWN))
    views = some_views(2, side=100)
    views.images[..., 3] = 0
    views.images[:, 30:90, 20:80, 3] = 1
    means, alpha = reconstruct(model, views).means, cut_out(views, 32)[0][:, 3]
    kept = (alpha.clamp(1e-3, 0.98).logit() + DOUBT).sigmoid() >= ALPHA_MIN
    middles = (torch.arange(32) + 0.5) * 66 / 32
    want = torch.stack(torch.meshgrid(17 + middles, 27 + middles, indexing="xy"), dim=-1)
    for view, own in enumerate(means.split(kept.flatten(1).sum(1).tolist())):
        assert 28**2 <= len(own) < 32**2
        torch.testing.assert_close(project(own, views.cameras, view)[0], want[kept[view]], rtol=0, atol=0.02)


def test_published_gaussians_stand_on_the_corners_grid() -> None:
    """By the published half-pixel slip: column j of 32 stands at 32 j / 31."""
    model = network(RELEASED)
    views = blank(published_cameras(*SETS["grm_u"]))
    means = reconstruct(model, views).means.view(4, 32, 32, 3)
    places = torch.arange(32) * 32 / 31
    want = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1)
    for view in range(4):
        torch.testing.assert_close(project(means[view], views.cameras, view)[0], want, rtol=0, atol=0.01)


@pytest.mark.usefixtures("no_grid")
@pytest.mark.parametrize("kind", ["released", "own", "own orthographic"])
def test_result_moves_with_the_world(kind: str) -> None:
    """A similarity of the cameras is the same similarity of the Gaussians: means, scales and rotations."""
    model = network(RELEASED) if kind == "released" else steady(network(OWN))
    views, matrix = scene(model, orthographic=kind.endswith("orthographic")), similarity(4)
    want = transform(reconstruct(model, views), matrix)
    got = reconstruct(model, moved(views, matrix))
    torch.testing.assert_close(got.means, want.means, rtol=0, atol=7.3 * 5e-4)
    torch.testing.assert_close(got.scales, want.scales, rtol=2e-3, atol=0)
    torch.testing.assert_close(rotation_matrices(got.quats), rotation_matrices(want.quats), rtol=0, atol=5e-3)
    torch.testing.assert_close(got.opacities, want.opacities, rtol=0, atol=1e-3)
    torch.testing.assert_close(got.sh, want.sh, rtol=0, atol=5e-3)
    still = reconstruct(model, views)
    for field in fields(still)[:3]:  # the test would notice a world that did not move
        assert float((getattr(still, field.name) - getattr(want, field.name)).abs().max()) > 0.01


def test_sizes_in_the_world() -> None:
    """Scales are 0.005 to 0.02 of the network's units; the world here is 4/2.7 times as large."""
    views = blank(orbit(4, target=torch.tensor([9.0, 0.0, 0.0]), radius=4.0, elevation=0.3, fov=0.87, size=32))
    scales = reconstruct(network(RELEASED), views).scales * 2.7 / 4
    assert bool(((scales > 0.005 - 1e-6) & (scales < 0.02 + 1e-6)).all())


def test_released_refuses_orthographic_views() -> None:
    model = network(RELEASED)
    with pytest.raises(BadInput, match=r"views: .* orthographic"):
        reconstruct(model, scene(model, orthographic=True))


@pytest.mark.usefixtures("no_grid")
def test_target_moves_the_origin() -> None:
    """The network's world is centred where it is told to be."""
    views = scene(network(OWN))
    chosen = torch.tensor([0.1, -0.2, 0.3])
    placement = place(views, rule="object", azimuth=0.0, target=chosen)
    assert isinstance(placement, Placement)
    origin = placement.outward[:3, 3].float()
    torch.testing.assert_close(origin, chosen)
    model = steady(network(OWN))
    assert float((reconstruct(model, views, target=chosen).means - reconstruct(model, views).means).abs().max()) > 0.01
