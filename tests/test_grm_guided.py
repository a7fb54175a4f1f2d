"""The guided setting of GRM: what it starts from, what it may change, and what it does with depth that is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.cameras import BadInput, Views
from backend.gaussians import rotation_matrices
from backend.hull import project
from backend.models.grm import GRM, Encoder, GRMConfig, patches_of, reconstruct
from backend.models.grm_cameras import poses
from backend.models.grm_gaussians import DOUBT, FAINT, HEADS, INSIDE_HULL, guided
from backend.models.grm_guide import guide_of
from backend.models.grm_layers import Attention, Block
from tests.grm_networks import OWN, batch, network, standing_views

pytestmark = pytest.mark.usefixtures("no_grid")


def silent(config: GRMConfig = OWN) -> GRM:
    """A network whose heads say 0, so that what it starts from is its answer."""
    model = network(config)
    with torch.no_grad():
        for name in HEADS:
            model.head_weight(name).zero_()
    return model


def doubted(alpha: float, number: float = 0.0) -> float:
    """Opacity of a pixel whose depth is not known, where the head says a number."""
    solid = math.log(0.98 / 0.02)
    said = max(FAINT, number + solid + DOUBT) - solid
    return 1 / (1 + math.exp(-said) * (1 - alpha) / alpha)


def test_doubted_pixels_are_never_lost() -> None:
    """Whatever the network says they stay faint, for what cannot be seen cannot be learnt from; if they are opaque."""
    images, c2w, Ks = batch(OWN, 3)
    images[:, :, 3] = 1
    images[:, :, 3, :8] = -1
    cameras = poses(c2w, Ks, None, 32)
    guide = guide_of(images, Ks, cameras)
    for number in (-60.0, -4.0, 0.0, 5.0):
        opacity = guided(said(number), guide, images, cameras, OWN).opacity.sigmoid().view(3, 32, 32)
        torch.testing.assert_close(opacity[:, 8:], torch.full((3, 24, 32), doubted(0.98, number)))
        assert float(opacity[:, :8].max()) < 0.002
    assert doubted(0.98, -60.0) == pytest.approx(0.039, abs=1e-3) and doubted(0.98, 7.0) > 0.95


def test_faint_pixels_hear_what_would_raise_them_alone() -> None:
    images, c2w, Ks = batch(OWN, 3)
    images[:, :, 3] = 1
    cameras = poses(c2w, Ks, None, 32)
    guide = guide_of(images, Ks, cameras)
    for number, way, heard in ((-60.0, 1, False), (-60.0, -1, True), (0.0, 1, True), (0.0, -1, True)):
        raw = said(number)
        raw["opacity"].requires_grad_()
        (way * guided(raw, guide, images, cameras, OWN).opacity.sum()).backward()
        want = torch.full((1, 3, 32, 32, 1), float(way * heard))
        torch.testing.assert_close(raw["opacity"].grad, want)


@pytest.mark.parametrize("orthographic", [False, True])
def test_it_starts_from_the_pixels(orthographic: bool) -> None:
    """Colour and opacity as seen, turned as the camera, 0.6 pixels large where it lies; what is not seen is dropped."""
    views = standing_views(orthographic=orthographic)
    gaussians, seen = reconstruct(silent(), views), views.images[..., 3] > 0
    assert len(gaussians) == int(seen.sum()) == 4 * 28 * 28
    torch.testing.assert_close(gaussians.colours, views.images[..., :3][seen].clamp(0.02, 0.98), rtol=0, atol=1e-4)
    torch.testing.assert_close(gaussians.opacities, torch.full((len(gaussians),), doubted(0.98)))
    depth = torch.where(seen, 3.0, 0.0)
    told = reconstruct(silent(), replace(views, depth=depth))
    torch.testing.assert_close(told.opacities, torch.full((len(gaussians),), 0.98), rtol=0, atol=1e-4)
    size = 0.1 + 3.9 / (1 + math.exp(1.9))
    assert size == pytest.approx(0.6, abs=0.01)
    for view in range(4):
        own, camera = gaussians[view * 784 : view * 784 + 784], views.cameras[[view]]
        turns = camera.c2w[:, :3, :3].expand(784, 3, 3)
        torch.testing.assert_close(rotation_matrices(own.quats), turns, rtol=0, atol=1e-4)
        pixel = (1.0 if orthographic else project(own.means, camera, 0)[1]) / camera.Ks[0, 0, 0]
        torch.testing.assert_close(own.scales, (size * pixel).expand(784)[:, None].expand(784, 3), rtol=1e-3, atol=0)


def test_colours_are_not_mixed_with_white() -> None:
    """A see-through pixel's own colour, not what it looks like in front of white."""
    views = standing_views()
    views.images[..., 3] *= 0.92
    seen = views.images[..., 3] > 0
    gaussians = reconstruct(silent(), replace(views, depth=torch.where(seen, 3.0, 0.0)))
    torch.testing.assert_close(gaussians.colours, views.images[..., :3][seen].clamp(0.02, 0.98), rtol=0, atol=1e-4)
    torch.testing.assert_close(gaussians.opacities, torch.full((len(gaussians),), 0.92), rtol=0, atol=1e-4)


def test_said_turns_count_from_the_cameras_axes() -> None:
    """A third of a turn about the view's (1,1,1): its right becomes its down, that its forward."""
    images, c2w, Ks = batch(OWN, 2)
    cameras = poses(c2w, Ks, None, 32)
    raw = {name: torch.zeros(1, 2, 32, 32, count) for name, count in HEADS.items()}
    raw["rotation"][..., 1:] = 1.0  # and the 1 that is there already
    found = guided(raw, guide_of(images, Ks, cameras), images, cameras, OWN)
    turns = rotation_matrices(found.rotation[0]).view(2, 1024, 3, 3)
    want = c2w[0, :, None, :3, [1, 2, 0]].expand(2, 1024, 3, 3)
    torch.testing.assert_close(turns, want, rtol=0, atol=1e-5)


def said(number: float, side: int = 32) -> dict[str, Tensor]:
    """Heads that say one number everywhere."""
    return {name: torch.full((1, 3, side, side, count), number) for name, count in HEADS.items()}


def test_depths_stay_inside_the_hull() -> None:
    """From a little behind the entry to a little before the last leave, whatever the network says, or at the first
    where there is hardly room; it starts at the guide's surface, and more is farther.
    """
    images, c2w, Ks = batch(OWN, 3)
    cameras = poses(c2w, Ks, None, 32)
    guide = guide_of(images, Ks, cameras)
    numbers = (-60.0, -3.0, 0.0, 2.0, 4.0, 60.0)
    depths = [guided(said(number), guide, images, cameras, OWN).depth for number in numbers]
    first = guide.hull.entry + INSIDE_HULL
    last = torch.maximum(first, guide.hull.entry + guide.hull.room - INSIDE_HULL)
    torch.testing.assert_close(depths[0], first)
    torch.testing.assert_close(depths[-1], last)
    assert bool((last > first).any()) and bool((last == first).any())
    torch.testing.assert_close(depths[2], torch.minimum(torch.maximum(guide.surface, first), last))
    assert bool((torch.stack(depths).diff(dim=0) >= 0).all()) and bool((depths[4] > depths[2] + 0.01).any())


def test_known_depths_are_kept() -> None:
    images, c2w, Ks = batch(OWN, 3)
    images[:, :, 3] = 1
    images[:, :, 3, :6] = 0.7  # alpha 0.85: the rim
    cameras = poses(c2w, Ks, None, 32)
    depth = torch.zeros(1, 3, 32, 32)
    depth[..., 6:, 10:20] = 1.7  # far from any hull
    given = depth.clone()
    given[..., :6, 10:20] = 1.7
    guide = guide_of(images, Ks, cameras, given)
    free = guide_of(images, Ks, cameras)
    got, want = (guided(said(2.0), one, images, cameras, OWN).depth for one in (guide, free))
    assert torch.equal(got[depth > 0], depth[depth > 0])
    assert torch.equal(got[depth == 0], want[depth == 0])


@pytest.mark.parametrize("orthographic", [False, True])
def test_a_captured_depth_is_where_the_gaussians_are(orthographic: bool) -> None:
    """In the views' own units, however the object is framed and scaled."""
    views = standing_views(orthographic=orthographic)
    seen = views.images[..., 3] > 0
    generator = torch.Generator().manual_seed(5)
    depth = torch.where(seen, 3.0 + torch.rand(seen.shape, generator=generator), 0.0)
    model = network(OWN)
    gaussians = reconstruct(model, replace(views, depth=depth))
    assert len(gaussians) == int(seen.sum())
    for view in range(4):
        own = gaussians.means[view * 784 : view * 784 + 784]
        torch.testing.assert_close(project(own, views.cameras, view)[1], depth[view][seen[view]], rtol=0, atol=1e-4)


# ---- smaller pictures


def test_a_coarser_patch_is_that_of_the_picture_with_every_pixel_four_times() -> None:
    conv = nn.Conv2d(7, 5, 8, 8, bias=False)
    generator = torch.Generator().manual_seed(0)
    picture, rays = (torch.randn(2, 3, channels, 16, 16, generator=generator) for channels in (1, 6))
    large = [F.interpolate(x.flatten(0, 1), scale_factor=2).unflatten(0, (2, 3)) for x in (picture, rays)]
    got, want = patches_of(picture, rays, conv, 4), patches_of(large[0], large[1], conv, 4)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(want, F.conv2d(torch.cat(large, 2).flatten(0, 1), conv.weight, stride=8))


def test_coarser_heads_say_the_mean() -> None:
    config = replace(OWN, decoder_ratio=1)  # 4 x 4 pixels a token
    model, tokens = network(config), torch.randn(2, 3 * 64, 64)
    fine, coarse = model.head_maps(tokens, 3), model.head_maps(tokens, 3, 2)
    for name in HEADS:
        pixels = model.pixels(fine[name], 32).flatten(0, 1).movedim(-1, 1)
        want = F.avg_pool2d(pixels, 2).movedim(1, -1).unflatten(0, (2, 3))
        torch.testing.assert_close(model.pixels(coarse[name], 16), want, rtol=1e-4, atol=1e-5)


def test_sides() -> None:
    assert OWN.sides == (32, 16) and replace(OWN, decoder_ratio=1).sides == (32, 16, 8)
    assert replace(OWN, guided=False, in_channels=3).sides == (32,)
    images, c2w, Ks = batch(OWN, 2)
    small = F.avg_pool2d(images.flatten(0, 1), 2).unflatten(0, (1, 2))
    Ks[..., :2, :] /= 2
    raw = network(OWN)(small, c2w, Ks)
    assert raw.depth.shape == (1, 2, 16, 16) and raw.means.shape == (1, 512, 3)
    with pytest.raises(BadInput, match="side 32 or 16"):
        network(OWN)(small[..., :8, :8], c2w, Ks)


def test_tokens_left_out_are_as_if_masked() -> None:
    """A slow twin: attention over all tokens, with minus infinity where a key shows nothing."""
    encoder = network(OWN).visual_encoder["transformer_encoder"]
    assert isinstance(encoder, Encoder)
    generator = torch.Generator().manual_seed(3)
    picture, rays = (torch.randn(2, 3, channels, 32, 32, generator=generator) for channels in (16, 6))
    seen = torch.rand(2, 48, generator=generator) < torch.tensor([[0.2], [0.7]])
    got = encoder(picture, rays, seen)
    patches = F.conv2d(torch.cat([picture, rays], dim=2).flatten(0, 1), encoder.conv.weight, stride=8)
    tokens = encoder.layernorm1(patches.flatten(2).mT + encoder.positional_embedding).reshape(2, 48, 128)
    mixed = tokens
    for block in encoder.transformer.resblocks:
        assert isinstance(block, Block)
        mixed = mixed + masked(block.attn, block.layernorm1(mixed), seen)
        mixed = mixed + block.mlp(block.layernorm2(mixed))
    want = encoder.layernorm2(torch.where(seen[..., None], mixed, tokens))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert float((encoder(picture, rays) - want).detach().abs().max()) > 0.01, "the mask matters"


def masked(attention: Attention, x: Tensor, seen: Tensor) -> Tensor:
    """x [B,L,C], seen [B,L] -> [B,L,C]"""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
    scores = attention.q_norm(q) @ attention.k_norm(k).mT / 8 + torch.where(seen, 0.0, -math.inf)[:, None, None]
    return attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_patches_that_show_anything_are_seen() -> None:
    images = torch.full((1, 2, 4, 32, 32), -1.0)
    images[0, 1, 3, 9, 30] = -0.999  # the faintest of row 1, column 3 of the second view's 4 x 4 patches
    assert network(OWN).seen(images).nonzero().tolist() == [[0, 16 + 4 + 3]]


def test_opaque_pictures_are_refused() -> None:
    """Without a mask there is no hull, and without a hull nothing to start from."""
    views = standing_views()
    views.images[..., 3] = 1
    with pytest.raises(BadInput, match=r"images: expected pictures that are clear around .* use the fit"):
        reconstruct(silent(), views)


def test_where_nothing_is_seen_nothing_is_there() -> None:
    views = standing_views()
    model = silent()
    views.images[2, ..., 3] = 0  # says that there is nothing at all
    some = reconstruct(model, views)
    assert len(some) == 3 * 784 and bool(some.finite.all())
    views.images[..., 3] = 0
    assert len(reconstruct(model, views)) == 0


def test_one_view_with_depth() -> None:
    """The depth says where the object is, and a single mask rules nothing out: it starts there, not at the near end."""
    views = standing_views(1)
    with pytest.raises(BadInput, match=r"views: .* depth"):
        reconstruct(silent(), views)
    depth = torch.where(views.images[..., 3] > 0, 3.5, 0.0)
    means = reconstruct(silent(), replace(views, depth=depth)).means
    middle = unproject_pixel(views, 20.0, 20.0, 3.5)
    assert float((project(means, views.cameras, 0)[1] - 3.5).abs().max()) < 1e-4
    torch.testing.assert_close(reconstruct(silent(), views, target=middle).means, means, rtol=0, atol=1e-4)


def unproject_pixel(views: Views, u: float, v: float, z: float) -> Tensor:
    """[3] the world's point at depth z under a pixel position of the first view."""
    K, c2w = views.cameras.Ks[0], views.cameras.c2w[0]
    local = torch.tensor([(u - float(K[0, 2])) / float(K[0, 0]) * z, (v - float(K[1, 2])) / float(K[1, 1]) * z, z])
    return c2w[:3, :3] @ local + c2w[:3, 3]
