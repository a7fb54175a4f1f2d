"""How our own GRM is trained: what the surface terms ask for, where predictions lie, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor, nn

from backend.bad_input import BadInput
from backend.cameras import Cameras, Views, look_at, orbit
from backend.compositing import over
from backend.data import Sample
from backend.gaussians import Gaussians, multiply_quats, quats_of
from backend.metrics import psnr
from backend.models import grm, grm_backdrop, grm_guide
from backend.models.grm import GRM, GRMConfig
from backend.models.grm_cameras import Poses, poses, unproject
from backend.models.grm_gaussians import RawGaussians
from backend.models.grm_guide import Guide
from backend.recipes import Batch
from backend.recipes import grm as recipe
from backend.rendering import render
from tests import shapes
from tests.grm_networks import OWN
from tests.splat_scenes import cameras_around
from tests.training_runs import batch_of, rng

CONFIG = replace(OWN, layers=1, width=64, window_size=None, decoder_ratio=1)
SURFACE = {"depth": 1.0, "shape": 1.0, "rgb": 0.0, "alpha": 0.0, "perceptual": 0.0}


def network(config: GRMConfig = CONFIG, seed: int = 0) -> GRM:
    torch.manual_seed(seed)
    return GRM(config)


# ---- tiles


def some_normals(cameras: Cameras, seed: int = 0, *, steep: float = 0.8) -> Tensor:
    """[V,H,W,3] float64 unit normals that face the cameras, the steeper the more they may turn away."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(cameras), cameras.height, cameras.width, 3)
    away = F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
    return F.normalize(steep * away - cameras.c2w[:, None, None, :3, 2].double(), dim=-1)


@pytest.mark.parametrize("orthographic", [False, True])
def test_tiles_cover_a_pixel_of_their_plane(orthographic: bool) -> None:
    """The way from a pixel to the next, by rays that meet the plane a thousandth of a pixel to either side."""
    cameras = cameras_around(3, 12, 12, orthographic=orthographic)
    normals = some_normals(cameras)
    got = recipe.tile_covariances(normals, cameras)
    assert got.dtype == torch.float64
    focal = cameras.Ks[0, 0, 0].double()
    depth = 2.5
    want = 0.1**2 * normals[..., :, None] * normals[..., None, :]
    for axis in (0, 1):
        ends = [plane_points(cameras, normals, depth, axis, sign * 1e-3) for sign in (1, -1)]
        step = (ends[0] - ends[1]) / 2e-3 / (1.0 / focal if orthographic else depth / focal)
        want = want + (0.6 * step)[..., :, None] * (0.6 * step)[..., None, :]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def plane_points(cameras: Cameras, normals: Tensor, depth: float, axis: int, shift: float) -> Tensor:
    """[V,H,W,3] float64: where rays, `shift` pixels beside the pixels' along an axis, meet the planes with these
    normals through the pixels' own points at a depth.
    """
    moved = cameras.Ks.double()
    middle = points_at(cameras, moved, torch.full(normals.shape[:3], depth, dtype=torch.float64))
    moved = moved.clone()
    moved[:, axis, 2] -= shift
    start, end = (points_at(cameras, moved, torch.full_like(normals[..., 0], z)) for z in (0.0, 1.0))
    along = end - start
    reach = ((middle - start) * normals).sum(-1) / (along * normals).sum(-1)
    return start + reach[..., None] * along


def points_at(cameras: Cameras, Ks: Tensor, depth: Tensor) -> Tensor:
    given = poses(cameras.c2w[None].double(), Ks[None], cameras.orthographic[None], cameras.width)
    return unproject(depth[None], given, "centres")[0]


def test_tiles_by_hand() -> None:
    """Facing the camera, a disc; turned by 60 degrees, twice as long; seen from its edge, bounded."""
    K = torch.tensor([[8.0, 0, 0.5], [0, 8.0, 0.5], [0, 0, 1]])
    camera = Cameras(torch.eye(4)[None], K[None], torch.tensor([False]), 1, 1)
    disc = recipe.tile_covariances(torch.tensor([0.0, 0, -1]).view(1, 1, 1, 3), camera)[0, 0, 0]
    torch.testing.assert_close(disc, torch.diag(torch.tensor([0.36, 0.36, 0.01])))
    turned = torch.tensor([math.sin(math.pi / 3), 0, -0.5])
    found = recipe.tile_covariances(turned.view(1, 1, 1, 3), camera)[0, 0, 0]
    torch.testing.assert_close(torch.linalg.eigvalsh(found), torch.tensor([0.01, 0.36, 0.36 * 4]), rtol=1e-4, atol=1e-4)
    edge = recipe.tile_covariances(torch.tensor([1.0, 0, 0]).view(1, 1, 1, 3), camera)[0, 0, 0]
    assert float(torch.linalg.eigvalsh(edge).max()) < 0.36 * (1 + recipe.STEEPEST**2) + 0.02


# ---- the surface terms


def exact(batch: Batch) -> tuple[RawGaussians, list[Gaussians], Tensor, Tensor, Tensor, list[Cameras]]:
    """What `surface_terms` takes, for Gaussians that are the tiles themselves on the true surface."""
    count, side = batch.inputs, batch.images.shape[2]
    cameras = [batch.cameras(item)[:count] for item in range(len(batch))]
    depth, normals = batch.depth[:, :count], batch.normals[:, :count]
    images = 2 * batch.images[:, :count].permute(0, 1, 4, 2, 3) - 1
    unit = (depth / batch.Ks[:, :count, 0, 0, None, None]).clamp_min(1e-3).flatten(1)[..., None]
    raw = RawGaussians(depth, *(torch.zeros(0) for _ in range(5)), unit=unit)
    gaussians = []
    for item in range(len(batch)):
        sizes, axes = torch.linalg.eigh(recipe.tile_covariances(normals[item], cameras[item]).flatten(0, 2).double())
        axes[..., 0] *= torch.linalg.det(axes)[:, None]  # no mirror
        rest = (torch.zeros(count * side**2, 3), torch.ones(count * side**2), torch.zeros(count * side**2, 1, 3))
        scales = (sizes.clamp_min(1e-9).sqrt() * unit[item]).float()
        gaussians.append(Gaussians(rest[0], quats_of(axes).float(), scales, *rest[1:]))
    return raw, gaussians, images, depth, normals, cameras


def test_tiles_on_the_surface_cost_nothing_and_others_do() -> None:
    raw, gaussians, images, depth, normals, cameras = exact(batch_of(4, size=24))

    def costs_of(raw: RawGaussians, gaussians: list[Gaussians]) -> list[float]:
        return [float(x) for x in recipe.surface_terms(raw, gaussians, images, depth, normals, cameras)]

    assert costs_of(raw, gaussians) == pytest.approx([0, 0], abs=1e-6)
    near = [costs_of(replace(raw, depth=raw.depth + off), gaussians)[0] for off in (0.01, -0.2)]
    assert near == pytest.approx([0.5 * 0.01**2 / 0.03, 0.2 - 0.5 * 0.03], rel=1e-3)
    for change in ("scales", "quats"):
        little, more = (costs_of(raw, [changed(one, change, much) for one in gaussians])[1] for much in (0.1, 0.3))
        assert more > 2 * little > 2e-3, change


def changed(gaussians: Gaussians, name: str, much: float) -> Gaussians:
    if name == "scales":
        return replace(gaussians, scales=(1 + much) * gaussians.scales)
    turn = torch.tensor([1.0, 2 * much, -much, 0.5 * much])
    return replace(gaussians, quats=multiply_quats(turn.expand(len(gaussians), 4), gaussians.quats))


def test_terms_are_means_over_the_objects() -> None:
    """Of one whose surface is hardly seen as much as of the other; what is not known does not count."""
    raw, gaussians, images, depth, normals, cameras = exact(batch_of(4, size=24))
    off = replace(raw, depth=raw.depth + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1))
    each = 0.5 * (0.1 + 0.3) - 0.5 * 0.03
    few = depth * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    few[1, 0, 11, 11:13] = depth[1, 0, 11, 11:13]
    assert float(recipe.surface_terms(off, gaussians, images, depth, normals, cameras)[0]) == pytest.approx(
        each, rel=1e-4
    )
    assert float(recipe.surface_terms(off, gaussians, images, few, normals, cameras)[0]) == pytest.approx(
        each, rel=1e-4
    )


def test_what_is_not_known_costs_nothing() -> None:
    raw, gaussians, images, depth, normals, cameras = exact(batch_of(4, size=24))
    off, wide = replace(raw, depth=raw.depth + 1), [changed(one, "scales", 1.0) for one in gaussians]
    for value in recipe.surface_terms(off, wide, images, 0 * depth, normals, cameras):
        assert float(value) == 0
    clear = images.clone()
    clear[:, :, 3] = -0.5
    assert [float(x) for x in recipe.surface_terms(off, wide, clear, depth, normals, cameras)] == [0, 0]
    far, unlike = (float(x) for x in recipe.surface_terms(off, wide, images, depth, 0 * normals, cameras))
    assert far > 0.9 and unlike == 0


@pytest.mark.parametrize("orthographic", [False, True])
def test_a_surface_is_where_the_network_is_told_it_is(orthographic: bool) -> None:
    """The placed depth and normals, taken back to the batch's world, are points and normals of the ball."""
    batch = batch_of(4, size=48)
    if orthographic:
        batch = replace(
            batch, orthographic=torch.ones_like(batch.orthographic)
        )  # then they are no ball's, but the same
        batch.Ks[..., :2, :2] *= 0.4
    placed = recipe._place(CONFIG, batch)
    assert placed.images.shape == (2, 4, 4, 32, 32)
    for item in range(2):
        matrix = placed.outward[item].float()
        cameras = placed.cameras[item]
        given = poses(cameras.c2w[None], cameras.Ks[None], cameras.orthographic[None], 32)
        here = unproject(placed.depth[[item]], given, "centres")[0] @ matrix[:3, :3].T + matrix[:3, 3]
        whole = poses(batch.c2w[[item], :4], batch.Ks[[item], :4], batch.orthographic[[item], :4], 48)
        there = unproject(batch.depth[[item], :4], whole, "centres")[0]
        known, all_points = placed.depth[item] > 0, there[batch.depth[item, :4] > 0]
        gap = torch.cdist(here[known], all_points).amin(1)
        assert int(known.sum()) > 1000 and float(gap.mean()) < 0.02 and float(gap.max()) < 0.12
        normals = placed.normals[item][known] @ matrix[:3, :3].T / torch.linalg.det(matrix[:3, :3]) ** (1 / 3)
        torch.testing.assert_close(normals.norm(dim=-1), torch.ones(len(normals)), rtol=1e-4, atol=1e-4)
        if not orthographic:
            assert float((normals - F.normalize(here[known], dim=-1)).norm(dim=-1).mean()) < 0.06


# ---- the whole


def test_terms_and_weights() -> None:
    model, batch = network(), batch_of(4)
    assert set(recipe.loss(model, batch, 0.0, rng(), recipe.WEIGHTS)) == {"rgb", "alpha", "perceptual"}
    assert set(recipe.loss(model, batch, 0.0, rng(), SURFACE)) == {"depth", "shape"}
    every = dict.fromkeys(recipe.WEIGHTS, 1.0)
    with torch.no_grad():
        once = recipe.loss(model, batch, 0.0, rng(), every)
        torch.manual_seed(99)
        twice = recipe.loss(model, batch, 0.0, rng(), {name: 2.0 for name in every})
    assert set(once) == set(recipe.WEIGHTS)
    for name, value in once.items():
        assert value.shape == () and float(value) > 0
        assert float(twice[name]) == pytest.approx(2 * float(value), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "silent"),
    [(SURFACE, {"feature", "opacity", "backdrop"}), (dict(recipe.WEIGHTS), set())],
    ids=["surface", "pictures"],
)
def test_gradients_reach_every_weight(weights: dict[str, float], silent: set[str]) -> None:
    """The surface says nothing about colours and opacities, nor about what belongs to no pixel."""
    model = network()
    terms = recipe.loss(model, batch_of(4), 0.0, rng(), weights)
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in model.named_parameters():
        head = name.removeprefix("visual_encoder.").removeprefix("out_layer_").split(".")[0]
        moved = parameter.grad is not None and float(parameter.grad.abs().max()) > 0
        assert moved == (head not in silent), name


@pytest.mark.parametrize("inputs", [1, 3])
def test_predictions_move_with_the_world(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn and shrink the world about the origin, and the predictions turn and shrink with it; those of pixels, for
    which of a grid's voxels can just be seen hangs on rounding.
    """
    monkeypatch.setattr(grm_guide, "fitted", lambda *_: None)
    model, batch = network(), batch_of(inputs, size=32)
    turn = look_at(torch.tensor([[0.3, -0.4, 0.2]]), torch.zeros(3))[0, :3, :3]
    c2w = batch.c2w.clone()
    c2w[..., :3, :] = 0.5 * turn @ c2w[..., :3, :]
    c2w[..., :3, :3] *= 2
    with torch.no_grad():
        here, there = recipe.predict(model, batch), recipe.predict(model, replace(batch, c2w=c2w))
    assert len(here) == 2
    for one, other in zip(here, there, strict=True):
        assert len(one) == len(other) > 300 and one.means.dtype == torch.float32
        gap = (other.means - 0.5 * one.means @ turn.T).norm(dim=1)
        assert float(gap.median()) < 1e-4 and float(gap.max()) < 0.02  # a step of the search for the hull
        torch.testing.assert_close(other.scales, 0.5 * one.scales, atol=1e-3, rtol=1e-2)


def test_published_networks_are_refused() -> None:
    with pytest.raises(BadInput, match="network: expected a guided GRM"):
        recipe.loss(network(replace(CONFIG, guided=False)), batch_of(4), 0.0, rng(), recipe.WEIGHTS)


def test_configurations_come_back_from_their_file_form() -> None:
    for config in (CONFIG, recipe.PRESETS["starter"]):
        assert recipe.config_from(recipe.config_data(config)) == config


@pytest.fixture
def _guided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures have the same guide at each step."""
    kept: dict[bool, Guide] = {}

    def guide_of(images: Tensor, Ks: Tensor, cameras: Poses, depth: Tensor | None = None) -> Guide:
        told = depth is not None and bool(depth.any())
        if told not in kept:
            kept[told] = grm_guide.guide_of(images, Ks, cameras, depth)
        return kept[told]

    monkeypatch.setattr(grm, "guide_of", guide_of)


@pytest.mark.usefixtures("_guided_once")
def test_the_surface_is_learnt_without_a_rasteriser() -> None:
    model, batch = network(), batch_of(4, objects=1, size=32)
    costs = learn(model, batch, SURFACE, steps=40)
    assert costs[-1] < 0.4 * costs[0]


@pytest.mark.usefixtures("_guided_once")
def test_it_overfits_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """To 35 dB over white, on the views it is given: a ring with a post in its middle, which no hull shows."""
    monkeypatch.setattr(grm_backdrop, "LATTICE", 24)  # three voxels to four pixels
    solids = [trimesh.creation.torus(0.62, 0.25), trimesh.creation.box((0.3, 0.5, 1.4))]
    batch = Batch.stack([soft_capture(solids[0] + solids[1], size=32)], inputs=4)
    model = network(replace(CONFIG, decoder_ratio=0))
    before = seen_quality(model, batch)
    learn(model, batch, dict(recipe.WEIGHTS), steps=500)
    assert before < 25 and seen_quality(model, batch) > 35


def learn(model: GRM, batch: Batch, weights: dict[str, float], steps: int) -> list[float]:
    """The loss at each step of Adam, whose rate falls from 3e-3 as a cosine."""
    optimizer, chance, costs = torch.optim.Adam(model.parameters(), lr=3e-3), rng(), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-4)
    for step in range(steps):
        total = torch.stack(list(recipe.loss(model, batch, step / steps, chance, weights).values())).sum()
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        costs.append(total.item())
    return costs


@torch.no_grad()
def seen_quality(model: GRM, batch: Batch) -> float:
    """PSNR of the inputs over white."""
    (splats,) = recipe.predict(model, batch)
    seen = render(splats, batch.cameras(0)[: batch.inputs], torch.ones(3)).rgb
    return float(psnr(seen, over(batch.images[0, : batch.inputs], 1.0)))


def soft_capture(mesh: trimesh.Trimesh, size: int, samples: int = 4) -> Sample:
    """Four views from around, of so many samples squared a pixel; without normals."""
    fine = orbit(4, target=torch.zeros(3), radius=2.7, elevation=0.5, fov=0.87, size=size * samples)
    views = shapes.capture(mesh, fine)
    assert views.depth is not None
    alpha = views.images[..., 3:]
    ink = torch.cat([views.images[..., :3] * alpha, alpha], dim=-1).permute(0, 3, 1, 2)
    rgb, alpha = F.avg_pool2d(ink, samples).permute(0, 2, 3, 1).split([3, 1], dim=-1)
    images = torch.cat([rgb / alpha.clamp_min(1e-6), alpha], dim=-1)
    depth = views.depth[:, samples // 2 :: samples, samples // 2 :: samples]
    return Sample(Views(images, fine.resized(size, size), depth), torch.zeros(4, size, size, 3), "ring", "")
