"""The numba rasteriser against the slow one, against published formulas, and at the edges of its domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numba
import pytest
import torch
from safetensors.torch import load_file

from backend import binning
from backend.binning import bin_splats, sort_by_depth
from backend.cameras import Cameras
from backend.gaussians import Gaussians
from backend.projection import Scene, lenses
from backend.rasterise_cpu import prepare, rasterise, rasterise_median_depth
from backend.rasterise_reference import project_reference, rasterise_reference
from tests.splat_scenes import cameras_around, in_float64, random_gaussians, with_gradients

FIELDS = ("means", "quats", "scales", "opacities", "sh")
CHANNELS = {"colour": slice(0, 3), "depth": slice(3, 4), "alpha": slice(4, 5), "all": slice(0, 5)}


def random_weights(shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("bases", [1, 4, 9, 16])
def test_pictures_agree_with_the_reference(bases: int, orthographic: bool) -> None:
    gaussians = random_gaussians(300, bases=bases)
    cameras = cameras_around(2, 45, 37, orthographic=orthographic)
    image = rasterise(gaussians, cameras)
    expected = rasterise_reference(in_float64(gaussians), cameras)
    assert expected[..., 4].max() > 0.99, "the scene must reach the stop of transmittance"
    torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradients_agree_with_the_reference(channels: str, orthographic: bool) -> None:
    cameras = cameras_around(2, 33, 40, orthographic=orthographic)
    # Quaternions of any length: the rasteriser normalises, and its gradient must know.
    gaussians = replace(random_gaussians(250, bases=9), quats=1.3 * random_gaussians(250).quats)
    ours, our_leaves = with_gradients(gaussians)
    slow, slow_leaves = with_gradients(gaussians, torch.float64)
    image, expected = rasterise(ours, cameras), rasterise_reference(slow, cameras)
    part = CHANNELS[channels]
    weights = random_weights(image[..., part].shape)
    (image[..., part] * weights).sum().backward()
    (expected[..., part] * weights).sum().backward()
    for name, leaf, reference in zip(FIELDS, our_leaves, slow_leaves, strict=True):
        assert leaf.grad is not None
        if reference.grad is None or not reference.grad.any():
            assert not leaf.grad.any(), name
            continue
        error = (leaf.grad - reference.grad).abs().max() / reference.grad.abs().max()
        assert error < 1e-4, f"{name}: {float(error)}"


@pytest.mark.parametrize("orthographic", [False, True])
def test_the_reference_agrees_with_finite_differences(orthographic: bool) -> None:
    cameras = cameras_around(1, 9, 8, orthographic=orthographic)
    gaussians = random_gaussians(6, bases=4)
    # Away from the clamp, the cut and the clamped colours, where the picture has a kink or a step.
    gaussians = replace(gaussians, opacities=0.3 + 0.1 * gaussians.opacities, scales=0.3 + gaussians.scales)
    gaussians = replace(gaussians, sh=0.1 * gaussians.sh)
    _, leaves = with_gradients(gaussians, torch.float64)
    weights = random_weights(torch.Size((1, 8, 9, 5))).double()

    def loss(*fields: torch.Tensor) -> torch.Tensor:
        return (rasterise_reference(Gaussians(*fields), cameras) * weights).sum()

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-5, rtol=1e-4)


def published_scene(folder: Path) -> tuple[dict[str, torch.Tensor], Gaussians, Cameras]:
    """The golden values, and their Gaussians and cameras as ours."""
    golden = load_file(folder / "golden/lgm/render_math/render.safetensors")
    rows = golden["gaussians"]
    position, opacity, scale, quat, colour = rows.split([3, 1, 3, 4, 3], dim=1)
    gaussians = Gaussians(position, quat, scale, opacity[:, 0], ((colour - 0.5) / 0.28209479177387814)[:, None])
    c2w = golden["cam2world_opengl"] * torch.tensor([1.0, -1.0, -1.0, 1.0])
    focal = 24 / torch.tan(torch.deg2rad(torch.tensor(49.1 / 2))).item()
    K = torch.tensor([[focal, 0, 24], [0, focal, 24], [0, 0, 1]])
    return golden, gaussians, Cameras(c2w, K.expand(4, 3, 3), torch.zeros(4, dtype=torch.bool), 48, 48)


def test_published_projection(shared_folder: Path) -> None:
    golden, gaussians, cameras = published_scene(shared_folder)
    scene = Scene(*(getattr(gaussians, name).contiguous().numpy() for name in FIELDS))
    for view, lens in enumerate(lenses(cameras)):
        plane = prepare(scene, lens, workers=2)
        means2d, covariances, z = project_reference(gaussians, cameras[[view]])
        torch.testing.assert_close(means2d - 0.5, golden["pixel_xy"][view], atol=1e-3, rtol=0)
        torch.testing.assert_close(covariances, golden["cov2d_lowpassed"][view], atol=1e-3, rtol=1e-4)
        seen = torch.from_numpy(plane.depths).isfinite()
        splats = torch.from_numpy(plane.splats)[seen]
        assert seen.sum() > 20
        torch.testing.assert_close(splats[:, :2] - 0.5, golden["pixel_xy"][view][seen], atol=1e-3, rtol=0)
        torch.testing.assert_close(splats[:, 9], golden["view_z"][view][seen], atol=1e-5, rtol=0)
        torch.testing.assert_close(z, golden["view_z"][view], atol=1e-5, rtol=0)


def on_the_brink(gaussians: Gaussians, camera: Cameras) -> torch.Tensor:
    """[H,W] bool: pixels with an alpha so near 1/255 that rounding decides whether it counts."""
    means2d, covariances, _ = project_reference(in_float64(gaussians), camera)
    y, x = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    offsets = torch.stack([x, y], -1)[:, :, None] + 0.5 - means2d
    squares = torch.einsum("yxni,nij,yxnj->yxn", offsets, torch.linalg.inv(covariances), offsets)
    return ((255 * gaussians.opacities * torch.exp(-0.5 * squares) - 1).abs() < 1e-4).any(-1)


def test_published_pictures(shared_folder: Path) -> None:
    golden, gaussians, cameras = published_scene(shared_folder)
    image = rasterise(gaussians, cameras)
    white = (image[..., :3] + 1 - image[..., 4:]).permute(0, 3, 1, 2)
    decided = ~torch.stack([on_the_brink(gaussians, cameras[[view]]) for view in range(4)])
    assert decided.float().mean() > 0.999
    # Ours drops no contribution above 1/255 at a tile's edge, which the published tile test does (up to 0.019).
    exact = golden["image_white_bg_no_tile_cull"]
    assert (white - exact).abs().amax(1)[decided].max() < 1e-4
    assert (white - golden["image_white_bg"]).abs().max() < 0.02
    # All channels come from one blend, so where the tile test changed no colour, alpha and depth agree as well.
    untouched = decided & (golden["image_white_bg"] == exact).all(1)
    assert untouched.float().mean() > 0.5
    assert (image[..., 4] - golden["alpha"])[untouched].abs().max() < 1e-4
    assert (image[..., 3] - golden["depth"])[untouched].abs().max() < 1e-4


def test_the_order_of_gaussians_does_not_matter() -> None:
    gaussians, cameras = random_gaussians(400, bases=4), cameras_around(1, 50, 50)
    shuffled = gaussians[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(rasterise(shuffled, cameras), rasterise(gaussians, cameras), atol=0, rtol=0)


def test_results_are_the_same_every_time_and_for_every_number_of_threads() -> None:
    gaussians, cameras = random_gaussians(500, bases=4), cameras_around(2, 70, 50)
    weights = random_weights(torch.Size((2, 50, 70, 5)))
    results = []
    threads = numba.get_num_threads()
    for count in (threads, threads, 1):
        numba.set_num_threads(count)
        copy, leaves = with_gradients(gaussians)
        image = rasterise(copy, cameras)
        (image * weights).sum().backward()
        results.append([image.detach(), *(leaf.grad for leaf in leaves)])
    numba.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (17, 1), (1, 33), (31, 19)])
def test_odd_sizes(width: int, height: int) -> None:
    gaussians, cameras = random_gaussians(60), cameras_around(1, 32, 32)
    cropped = replace(cameras, width=width, height=height)
    image = rasterise(gaussians, cropped)
    # float32 on the float64 reference: a picture this small is a crop of a larger one, except for the held Jacobian.
    torch.testing.assert_close(image.double(), rasterise_reference(in_float64(gaussians), cropped), atol=1e-5, rtol=0)


def test_an_8192_pixel_picture() -> None:
    gaussians = random_gaussians(20)
    cameras = cameras_around(1, 64, 64)
    wide = replace(cameras.resized(8192, 64), Ks=cameras.Ks + torch.tensor([[0, 0, 4000.0], [0, 0, 0], [0, 0, 0]]))
    image = rasterise(gaussians, wide)
    assert image.isfinite().all() and image[..., 4].max() > 0.5
    assert not image[:, :, :3000].any()


def test_no_gaussians_and_no_cameras() -> None:
    gaussians, cameras = random_gaussians(8), cameras_around(2, 20, 10)
    none, leaves = with_gradients(gaussians[:0])
    image = rasterise(none, cameras)
    assert image.shape == (2, 10, 20, 5) and not image.any()
    image.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.shape == leaf.shape for leaf in leaves)
    assert rasterise(gaussians, cameras[[]]).shape == (0, 10, 20, 5)


def test_gaussians_off_the_picture_or_behind_it_leave_no_trace() -> None:
    gaussians, cameras = random_gaussians(50), cameras_around(1, 30, 30)
    position, forward = cameras.centres[0], cameras.c2w[0, :3, 2]
    behind = replace(gaussians, means=gaussians.means * 0.1 + position - 2 * forward)
    aside = replace(gaussians, means=gaussians.means * 0.1 + 50 * cameras.c2w[0, :3, 0])
    for hidden in (behind, aside):
        copy, leaves = with_gradients(hidden)
        image = rasterise(copy, cameras)
        assert not image.any()
        image.sum().backward()
        assert not any(leaf.grad.any() for leaf in leaves if leaf.grad is not None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", FIELDS)
def test_values_that_are_not_finite_are_left_out(field: str, value: float) -> None:
    gaussians, cameras = random_gaussians(120, bases=4), cameras_around(1, 40, 40)
    bad = torch.arange(0, 120, 9)
    good = torch.ones(120, dtype=torch.bool)
    good[bad] = False
    tensor = getattr(gaussians, field).clone()
    tensor[bad] = value
    spoilt, leaves = with_gradients(replace(gaussians, **{field: tensor}))
    image = rasterise(spoilt, cameras)
    torch.testing.assert_close(image, rasterise(gaussians[good], cameras), atol=0, rtol=0)
    image.square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_extreme_but_finite_values_do_not_break_anything() -> None:
    gaussians, cameras = random_gaussians(64), cameras_around(1, 40, 40)
    for field, value in [
        ("means", 1e30),
        ("scales", 1e30),
        ("scales", 1e-30),
        ("scales", 0.0),
        ("quats", 0.0),
        ("sh", 1e30),
    ]:
        tensor = getattr(gaussians, field).clone()
        tensor[::5] = value
        copy, leaves = with_gradients(replace(gaussians, **{field: tensor}))
        image = rasterise(copy, cameras)
        assert image.isfinite().all(), field
        image[..., 4].sum().backward()
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves), field


def test_one_gaussian_over_the_whole_picture() -> None:
    cameras = cameras_around(1, 40, 40)
    one = Gaussians(
        torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 100.0), torch.ones(1), torch.ones(1, 1, 3)
    )
    assert (rasterise(one, cameras)[..., 4] - 0.99).abs().max() < 1e-3


def test_tile_pairs_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binning, "MAX_TILE_PAIRS", 10)
    with pytest.raises(MemoryError, match="the limit is 10"):
        rasterise(random_gaussians(50), cameras_around(1, 64, 64))


def test_tiles_hold_exactly_the_splats_that_touch_them() -> None:
    """Every pixel with alpha of at least 1/255 is in a tile that lists the splat; few lists hold one in vain."""
    width, height = 150, 97
    gaussians, cameras = random_gaussians(200, seed=3), cameras_around(1, width, height)
    scene = Scene(*(getattr(gaussians, name).numpy() for name in FIELDS))
    plane = prepare(scene, lenses(cameras)[0], workers=2)
    means2d, covariances, _ = project_reference(in_float64(gaussians), cameras)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    columns, tiles = -(-width // 16), -(-width // 16) * -(-height // 16)
    listed = torch.zeros(tiles, len(gaussians), dtype=torch.bool)
    for tile in range(tiles):
        members = plane.bins.members[plane.bins.starts[tile] : plane.bins.starts[tile + 1]]
        assert (members[1:] > members[:-1]).all(), "nearest first"
        listed[tile, torch.from_numpy(plane.order[members])] = True
    offsets = torch.stack([x, y], -1).reshape(-1, 1, 2) + 0.5 - means2d
    squares = torch.einsum("pni,nij,pnj->pn", offsets, torch.linalg.inv(covariances), offsets)
    seen = gaussians.opacities * torch.exp(-0.5 * squares) >= 1 / 255
    tile_of_pixel = (y // 16 * columns + x // 16).flatten()
    needed = torch.zeros(tiles, len(gaussians), dtype=torch.bool)
    needed.index_put_((tile_of_pixel[seen.nonzero()[:, 0]], seen.nonzero()[:, 1]), torch.tensor(True))
    assert not (needed & ~listed).any()
    assert listed.sum() < 1.1 * needed.sum()


def test_the_tile_lists_do_not_depend_on_the_number_of_workers() -> None:
    gaussians, cameras = random_gaussians(300), cameras_around(1, 100, 60)
    scene = Scene(*(getattr(gaussians, name).numpy() for name in FIELDS))
    plane = prepare(scene, lenses(cameras)[0], workers=1)
    for workers in (2, 5):
        sorted_splats, order = sort_by_depth(plane.splats, plane.depths, workers)
        bins = bin_splats(sorted_splats, 100, 60, workers=workers)
        assert (order == plane.order).all()
        assert all((a == b).all() for a, b in zip(bins, plane.bins, strict=True))


def test_median_depth_is_the_depth_of_the_surface_that_takes_half_of_the_light() -> None:
    gaussians, cameras = random_gaussians(400), cameras_around(2, 40, 30)
    depth = rasterise_median_depth(gaussians, cameras)
    alpha = rasterise_reference(gaussians, cameras)[..., 4]
    assert ((depth > 0) == (alpha >= 0.5)).float().mean() > 0.999
    # By its definition: the splats up to this depth take half of the light, those before it do not.
    for view in range(2):
        camera = cameras[[view]]
        z = project_reference(gaussians, camera)[2]
        assert (depth[view] > 0).sum() > 200
        for row, column in depth[view].nonzero()[::60].tolist():
            at = depth[view, row, column]
            upto = rasterise_reference(gaussians[z <= at + 1e-5], camera)[0, row, column, 4]
            before = rasterise_reference(gaussians[z < at - 1e-5], camera)[0, row, column, 4]
            assert before < 0.5 <= upto
