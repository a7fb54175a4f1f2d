"""LGM against the published network's numbers; its cameras by laws, by hand and against the published functions."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from backend.cameras import BadInput, Cameras, Views, best_spread, look_at, orbit, rays
from backend.gaussians import Gaussians, transform
from backend.models import lgm
from backend.models.lgm import LGM, PRESETS, LGMConfig, config_from, decode, memory_needed, network_input, reconstruct
from backend.models.lgm_cameras import Lens, aim, meeting_point, pin, pluecker, set_up, standard_cameras
from tests.golden_lgm import run

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "lgm"
FLIP = torch.tensor([1.0, -1.0, -1.0, 1.0])  # OpenGL camera axes to OpenCV's and back
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared golden vectors are not beside the checkout")

SMALL = LGMConfig(
    input_size=32,
    down_channels=(32, 64),
    down_attention=(False, True),
    up_channels=(64,),
    up_attention=(True,),
    splat_size=16,
)
LENS = SMALL.lens


def network(config: LGMConfig = SMALL) -> LGM:
    """A seeded network whose Gaussians differ a lot from each other."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LGM(config)
    with torch.no_grad():
        model.conv.weight.mul_(8)
    return model


def sky(cameras: Cameras) -> Views:
    """Opaque pictures of a coloured sky: the same direction has the same colour from everywhere."""
    return Views(torch.cat([sky_colour(rays(cameras)[1]), torch.ones(*cameras_shape(cameras), 1)], -1), cameras)


def sky_colour(directions: Tensor) -> Tensor:
    return 0.5 + 0.4 * torch.sin(directions @ torch.tensor([[3.0, 1, 2], [-1, 4, 1], [2, -2, 3]]))


def cameras_shape(cameras: Cameras) -> tuple[int, int, int]:
    return len(cameras), cameras.height, cameras.width


def oblong(count: int = 4, *, zoom: float = 1.0, elevations: tuple[float, ...] = (20, -10, 35, 5)) -> Cameras:
    """Uneven cameras round (1, 2, 3) with oblong pictures and pixels, shifted lenses and aims a little off."""
    target = torch.tensor([1.0, 2.0, 3.0])
    around, above = torch.arange(count) * 6.1 / count, torch.tensor(elevations[:count]).deg2rad()
    outward = torch.stack([above.cos() * around.sin(), -above.cos() * around.cos(), above.sin()], -1)
    c2w = look_at(target + 4 * (1 + 0.1 * outward[:, :1]) * outward, target + 0.1 * outward.roll(1, 0))
    K = torch.tensor([[70.0 * zoom, 0, 36], [0, 60.0 * zoom, 20], [0, 0, 1]])
    return Cameras(c2w, K.repeat(count, 1, 1), torch.zeros(count, dtype=torch.bool), 66, 44)


def similarity() -> Tensor:
    """[4,4] a turn about a skew axis, a scale of 2.5 and a shift."""
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.7, 0.4], [0.7, 0, -1.1], [-0.4, 1.1, 0]]))
    matrix = torch.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 2.5 * turn, torch.tensor([3.0, -7.0, 2.0])
    return matrix


def moved(cameras: Cameras, matrix: Tensor) -> Cameras:
    c2w = matrix @ cameras.c2w
    c2w[:, :3, :3] /= torch.linalg.det(matrix[:3, :3]) ** (1 / 3)
    return replace(cameras, c2w=c2w)


def assert_same(found: Gaussians, expected: Gaussians, tolerance: float) -> None:
    size = float(expected.means.abs().max())
    torch.testing.assert_close(found.means, expected.means, atol=tolerance * size, rtol=0)
    torch.testing.assert_close(found.covariances, expected.covariances, atol=tolerance * size**2, rtol=0)
    torch.testing.assert_close(found.opacities, expected.opacities, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.sh, expected.sh, atol=tolerance, rtol=0)


# ---- the published network


@needs_golden
@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("model*")), ids=lambda folder: folder.name)
def test_parity_with_the_published_network(folder: Path) -> None:
    found = run(folder)
    for file in sorted(folder.glob("[ot]*.safetensors")):  # output and trace
        for name, expected in load_file(file).items():
            assert found[name].dtype == expected.dtype
            worst = float((found[name] - expected).abs().max())
            atol, rtol = (1e-9, 0) if name.endswith("_f64") else (2e-4, 1e-3)
            torch.testing.assert_close(
                found[name], expected, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
            )
            print(f"{folder.name} {name}: {worst:.1e}")  # noqa: T201 (for pytest -s)


@needs_golden
@pytest.mark.parametrize("name", ["big", "big_legacy", "small", "tiny"])
def test_full_size_keys_and_shapes(name: str) -> None:
    manifest = json.loads((GOLDEN / "manifest" / f"lgm_{name.removesuffix('_legacy')}.json").read_text())
    with torch.device("meta"):
        model = LGM(PRESETS[name])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == manifest["shapes"]
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]


@needs_golden
def test_the_whole_way_with_the_published_cameras() -> None:
    """LGM's own pictures, as views in another world, give the published Gaussians, in that world."""
    config = config_from(json.loads((GOLDEN / "model/config.json").read_text()))
    model = LGM(config)
    model.load_state_dict(load_file(GOLDEN / "model/weights.safetensors"))
    images = load_file(GOLDEN / "model/input.safetensors")["images"][0].permute(0, 2, 3, 1)
    views = Views(torch.cat([images, torch.ones_like(images[..., :1])], -1), moved(config.cameras, similarity()))
    expected = load_file(GOLDEN / "model/output.safetensors")["gaussians"][0]
    position, opacity, scale, rotation, rgb = expected.split([3, 1, 3, 4, 3], -1)
    published = Gaussians(position, rotation, scale, opacity[:, 0], lgm.rgb_to_sh(rgb)[:, None])
    assert_same(reconstruct(model, views), transform(published, similarity()), 1e-3)


def test_keys_that_are_dropped() -> None:
    keys = ("lpips_loss.net.slice1.0.weight", "unet.conv_in.weight", "conv.bias")
    assert [any(re.fullmatch(pattern, key) for pattern in lgm.IGNORED) for key in keys] == [True, False, False]


# ---- the configuration

LAYOUT: dict[str, Any] = {
    "input_size": 32,
    "down_channels": [32, 64],
    "down_attention": [False, True],
    "up_channels": [64],
    "up_attention": [True],
    "splat_size": 16,
}


def test_every_value_of_a_configuration_is_honoured() -> None:
    told = LAYOUT | {
        "mid_attention": False,
        "layers_per_block": 1,
        "mid_layers": 2,
        "attention_heads": 8,
        "norm_groups": 16,
        "norm_eps": 1e-3,
        "skip_scale": 0.5,
        "num_input_views": 2,
        "fovy": 60,
        "cam_radius": 2.0,
        "azimuths": [0, 30],
        "elevation": 7,
        "legacy_rotation": True,
        "in_channels": 9,
        "out_channels": 14,
        "seed": 5,
        "weights_stored_as": "float16",
        "compute_dtype": "float32",
    }
    config = config_from(told)
    assert config_from(LAYOUT) == SMALL
    names = {block.split(".weight")[0] for block in LGM(config).state_dict() if block.endswith("conv1.weight")}
    assert names == {
        *("unet.down_blocks.0.nets.0.conv1", "unet.down_blocks.1.nets.0.conv1"),
        *(f"unet.mid_block.nets.{layer}.conv1" for layer in range(3)),
        *(f"unet.up_blocks.0.nets.{layer}.conv1" for layer in range(2)),
    }
    x = torch.rand(1, 2, 9, 32, 32)
    changes = {"attention_heads": 16, "norm_groups": 32, "norm_eps": 1e-5, "skip_scale": 0.6, "mid_attention": True}
    base = network(config)(x)
    for key, value in changes.items():
        other = network(replace(config, **{key: value}))(x)
        assert (other - base).abs().max() > 1e-4, key
    assert len(config.cameras) == 2 and config.lens == Lens(32, math.radians(60), 2.0)
    assert config.legacy_rotation and not SMALL.legacy_rotation


def test_the_published_tiny_has_a_flag_too_many() -> None:
    assert config_from(LAYOUT | {"up_attention": [True, False]}) == SMALL


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"input_size": None}, "input_size"),
        ({"input_size": 33, "splat_size": 16}, "input_size"),
        ({"input_size": "32"}, "input_size"),
        ({"input_size": True}, "input_size"),
        ({"splat_size": 32}, "splat_size"),
        ({"down_channels": 64}, "down_channels"),
        ({"down_channels": [48, 64]}, "down_channels"),
        ({"down_channels": [32.5, 64]}, "down_channels"),
        ({"down_attention": [True]}, "down_attention"),
        ({"down_attention": [0, 1]}, "down_attention"),
        ({"up_channels": [32]}, "up_channels"),
        ({"up_channels": [64, 32, 32]}, "up_channels"),
        ({"up_channels": []}, "up_channels"),
        ({"up_attention": []}, "up_attention"),
        ({"mid_attention": "yes"}, "mid_attention"),
        ({"attention_heads": 6}, "attention_heads"),
        ({"attention_heads": 0}, "attention_heads"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"num_input_views": 3}, "azimuths"),
        ({"fovy": 180}, "fovy"),
        ({"cam_radius": -1}, "cam_radius"),
        ({"in_channels": 6}, "in_channels"),
        ({"out_channels": 15}, "out_channels"),
    ],
)
def test_configurations_that_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=f"^{named}: LGM expects .*, found "):
        config_from(LAYOUT | change)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(BadInput, match="splat_size"):
        config_from({key: value for key, value in LAYOUT.items() if key != "splat_size"})


# ---- numbers


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_other_types_of_number(dtype: torch.dtype, tolerance: float) -> None:
    views = sky(oblong())
    expected, found = reconstruct(network(), views), reconstruct(network().to(dtype), views)
    assert found.means.dtype == torch.float32
    error = (found.means - expected.means).square().mean() / (expected.means - expected.means.mean(0)).square().mean()
    assert error.sqrt() < tolerance
    x = network_input(torch.rand(4, 3, 32, 32), SMALL.cameras)[None]
    with torch.no_grad():
        raw = network().to(dtype)(x)
    assert raw.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert len(raw.unique()) > 0.9 * raw.numel(), "half precision must not reach the positions"


def test_gradients() -> None:
    config = replace(SMALL, norm_groups=2, attention_heads=2)
    parts = [
        (lgm.ResBlock(4, 6, config), ()),
        (lgm.ResBlock(4, 4, config), ()),
        (lgm.CrossViewAttention(4, config), (2,)),
    ]
    for part, more in parts:
        part.double()
        x = torch.rand(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, part=part, more=more: part(x, *more), x)
    model = network()
    gaussians = decode(model(torch.rand(1, 4, 9, 32, 32))[0])
    values = (gaussians.means, gaussians.covariances, gaussians.opacities, gaussians.sh)
    torch.stack([value.square().sum() for value in values]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_objects_of_a_batch_do_not_see_each_other() -> None:
    model, x = network(), torch.rand(2, 4, 9, 32, 32)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(x[:1]), model(x[1:])])
        one_view = model(x[:, :1])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert (one_view - together[:, :1]).abs().max() > 1e-2, "the views of one object must"


def test_legacy_rotations_become_what_the_old_rasteriser_drew() -> None:
    raw = 2 * torch.randn(3, 14, 4, 4, generator=torch.Generator().manual_seed(1))
    found, plain = decode(raw, legacy_rotation=True), decode(raw)
    rows = raw.permute(0, 2, 3, 1).reshape(-1, 14)
    w, x, y, z = (rows[:, 7:11] / rows[:, 7:11].square().sum(0).sqrt()).double().unbind(-1)
    drawn = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    axes = torch.stack(drawn, -2) * plain.scales[:, None].double()
    torch.testing.assert_close(found.covariances, (axes @ axes.transpose(1, 2)).float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.quats.norm(dim=-1), torch.ones(48))
    assert (found.covariances - plain.covariances).abs().max() > 1e-3
    torch.testing.assert_close(found.means, plain.means)


class Peak(TorchDispatchMode):
    """The most bytes that the results of operations held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = WeakIdKeyDictionary(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage] = storage.nbytes()
        self.most = max(self.most, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("name", ["big", "small", "tiny"])
def test_memory_is_what_a_run_without_numbers_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lgm.F, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))  # fused
    config, peak = PRESETS[name], Peak()
    with torch.device("meta"), torch.no_grad():
        model, x = LGM(config), torch.empty(1, 4, 9, 256, 256)
        with peak:
            model(x)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    estimate = memory_needed(config, 4, 256, 256, 4)
    assert 0.95 < estimate / (weights + peak.most) < 1.35
    assert memory_needed(config, 4, 256, 256, 2) < 0.52 * estimate + 4 * 4 * 256 * 256 * 16


# ---- cameras


@needs_golden
@pytest.mark.parametrize(
    ("tag", "size", "fov", "radius", "elevation"),
    [("e0", 8, 49.1, 1.5, 0), ("em20", 16, 49.1, 1.5, -20), ("e30_wide", 8, 60, 2.2, 30)],
)
def test_rays_are_the_published_ones(tag: str, size: int, fov: float, radius: float, elevation: float) -> None:
    golden = load_file(GOLDEN / "rays/rays.safetensors")
    lens = Lens(size, math.radians(fov), radius)
    cameras = standard_cameras(lens, azimuths=(0, 90, 180, 270), elevation=elevation)
    torch.testing.assert_close(cameras.c2w * FLIP, golden[f"{tag}.cam2world"], atol=1e-6, rtol=0)
    torch.testing.assert_close(pluecker(cameras), golden[f"{tag}.plucker"], atol=1e-6, rtol=0)


@needs_golden
def test_the_network_input_is_the_published_one() -> None:
    config = config_from(json.loads((GOLDEN / "model/config.json").read_text()))
    golden = load_file(GOLDEN / "model/input.safetensors")
    found = network_input(golden["images"][0], config.cameras)
    torch.testing.assert_close(found, golden["input"][0], atol=2e-6, rtol=0)


@needs_golden
def test_cameras_are_the_published_ones() -> None:
    golden = load_file(GOLDEN / "cameras/cameras.safetensors")
    poses = [key for key in golden if key.startswith("orbit_opengl.")]
    assert len(poses) == 4
    for key in poses:
        elevation, azimuth, radius = (float(part[1:]) for part in key.split(".", 1)[1].split("_"))
        cameras = standard_cameras(Lens(8, 1.0, radius), azimuths=(azimuth,), elevation=elevation)
        torch.testing.assert_close(cameras.c2w[0] * FLIP, golden[key], atol=1e-6, rtol=0)


@needs_golden
def test_the_first_view_is_pinned_as_in_the_published_training() -> None:
    golden = load_file(GOLDEN / "cameras/cameras.safetensors")
    before, after = golden["dataset.opengl"], golden["dataset.normalised_first_view"]
    to_lgm = pin((before[0] * FLIP), distance=1.5, radius=1.5)
    torch.testing.assert_close((to_lgm @ before.double()).float(), after, atol=2e-6, rtol=0)


def test_the_cameras_by_hand() -> None:
    """Front view of a Blender scene: from -Y, X to the right, Z up; the second view stands on +X."""
    target = torch.tensor([10.0, 20, 30])
    cameras = orbit(4, target=target, radius=3.0, elevation=0.0, fov=math.radians(60), size=40)
    ready = set_up(sky(cameras), LENS, count=4)
    places = torch.tensor([[0, 0, 1.5], [1.5, 0, 0], [0, 0, -1.5], [-1.5, 0, 0]])
    torch.testing.assert_close(ready.cameras.centres, places, atol=1e-5, rtol=0)
    torch.testing.assert_close(ready.cameras.c2w[0, :3, :3], torch.diag(FLIP[:3]), atol=1e-6, rtol=0)
    assert float(ready.cameras.Ks[0, 0, 0]) == pytest.approx(16 / math.tan(math.radians(49.1 / 2)))
    ends = torch.tensor([[0.0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]).double() @ ready.to_world.T
    expected = torch.tensor([[10.0, 20, 30], [12, 20, 30], [10, 20, 32], [10, 18, 30]]).double()
    torch.testing.assert_close(ends[:, :3], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("zoom", "tolerance"), [(0.45, 0.02), (0.7, 0.01), (1.1, 0.01), (2.5, 0.02)])
def test_pictures_show_what_the_new_cameras_see(zoom: float, tolerance: float) -> None:
    """The same sky, wherever the new picture lies inside the old one, and white where it does not."""
    cameras = oblong(zoom=zoom)
    ready = set_up(sky(cameras), LENS, count=4)
    aimed = moved(ready.cameras, ready.to_world.float())
    assert (aimed.centres - cameras.centres).abs().max() < 1e-5
    seen = sky(aimed).images[..., :3].permute(0, 3, 1, 2)
    looking = rays(aimed)[1] @ cameras.c2w[:, None, :3, :3]
    place = looking[..., :2] / looking[..., 2:] * cameras.Ks[0, [0, 1], [0, 1]] + cameras.Ks[0, :2, 2]
    edge = max(1.0, 2.5 * zoom)  # of pixels that touch what is outside
    far = torch.maximum(-place, place - torch.tensor([66.0, 44.0])).amax(-1)[:, None].expand_as(seen)
    inside, outside = far < -edge, far > edge
    assert inside.float().mean() > 0.05 and (zoom < 1 or outside.any())
    torch.testing.assert_close(ready.rgb[inside], seen[inside], atol=tolerance, rtol=0)
    assert (ready.rgb[outside] == 1).all()


def test_large_pictures_are_averaged() -> None:
    cameras = orbit(4, target=torch.zeros(3), radius=2, elevation=0, fov=LENS.fov, size=32 * 8)
    stripes = (torch.arange(256) % 4 == 0).float()[None, None, :, None].expand(4, 256, 256, 4).clone()
    stripes[..., 3] = 1
    ready = set_up(Views(stripes, cameras), LENS, count=4)
    torch.testing.assert_close(ready.rgb[..., 4:-4], torch.full((4, 3, 32, 24), 0.25), atol=0.03, rtol=0)


@pytest.mark.parametrize("size", [32, 128])
def test_transparent_is_white(size: int) -> None:
    cameras = orbit(4, target=torch.zeros(3), radius=2, elevation=0, fov=LENS.fov, size=size)
    images = torch.zeros(4, size, size, 4)
    images[:, size // 4 : -size // 4, size // 4 : -size // 4] = torch.tensor([1.0, 0.5, 0.0, 0.5])
    rgb = set_up(Views(images, cameras), LENS, count=4).rgb
    torch.testing.assert_close(rgb[0, :, 16, 16], torch.tensor([1, 0.75, 0.5]), atol=1e-5, rtol=0)
    assert rgb[0, :, 2, 2].tolist() == [1, 1, 1]


def test_shifted_lenses_look_where_their_pictures_middles_are() -> None:
    target = torch.tensor([1.0, -2, 0.5])
    cameras = orbit(5, target=target, radius=2, elevation=0.3, fov=0.9, size=32)
    middle = torch.tensor([40.0, 10.0])
    ahead = torch.tensor([[(16 - 40.0) / cameras.Ks[0, 0, 0], (16 - 10.0) / cameras.Ks[0, 1, 1], 1.0]])
    beside = look_at(torch.zeros(1, 3), ahead[0], up=(0, -1, 0))[0, :3, :3]  # camera axes with the middle ray ahead
    c2w = cameras.c2w.clone()
    c2w[:, :3, :3] = c2w[:, :3, :3] @ beside.T
    Ks = cameras.Ks.clone()
    Ks[:, :2, 2] = middle
    shifted = replace(cameras, c2w=c2w, Ks=Ks)
    torch.testing.assert_close(meeting_point(shifted).float(), target, atol=1e-5, rtol=0)


def test_the_best_spread_views() -> None:
    target = torch.zeros(3)

    def chosen(count: int) -> list[int]:
        cameras = orbit(count, target=target, radius=2, elevation=0.3, fov=1.0, size=8)
        return best_spread(cameras, target.double(), 4)

    assert chosen(4) == [0, 1, 2, 3] and chosen(8) == [0, 2, 4, 6] and chosen(40) == [0, 10, 20, 30]
    six = chosen(6)
    assert 3 in six and max(b - a for a, b in itertools.pairwise([*six, 6])) == 2, "no two gaps side by side"
    ring = orbit(5, target=target, radius=2, elevation=0.0, fov=1.0, size=8)
    above = orbit(6, target=target, radius=2, elevation=1.3, fov=1.0, size=8)
    both = replace(
        ring, c2w=torch.cat([ring.c2w, above.c2w]), Ks=ring.Ks[:1].repeat(11, 1, 1), orthographic=torch.zeros(11).bool()
    )
    assert max(best_spread(both, target.double(), 4)) < 5


def test_the_result_does_not_depend_on_which_views_are_left_out() -> None:
    cameras = orbit(8, target=torch.ones(3), radius=3, elevation=0.2, fov=0.9, size=40)
    views = sky(cameras)
    few = Views(views.images[::2], cameras[::2])
    assert_same(reconstruct(network(), views), reconstruct(network(), few), 1e-4)


# ---- the way back to the world


def test_the_result_moves_with_the_world() -> None:
    cameras, model = oblong(), network()
    views = sky(cameras)
    found = reconstruct(model, replace(views, cameras=moved(cameras, similarity())))
    assert_same(found, transform(reconstruct(model, views), similarity()), 1e-3)


def test_swapped_and_mirrored_views_make_a_difference() -> None:
    cameras, model = oblong(), network()
    views = sky(cameras)
    expected = reconstruct(model, views)
    others = [replace(views, images=views.images[[0, 3, 2, 1]]), replace(views, images=views.images.flip(2))]
    mirrored = cameras.c2w[[0, 3, 2, 1]]
    others.append(replace(views, cameras=replace(cameras, c2w=mirrored)))
    for other in others:
        with pytest.raises(AssertionError):
            assert_same(reconstruct(model, other), expected, 1e-2)


class OnTheRays(LGM):
    """Not a network: puts a Gaussian of the pixel's colour where the pixel's ray comes nearest to the origin."""

    def forward(self, inputs: Tensor) -> Tensor:
        moment, direction = inputs[:, :, 3:6], inputs[:, :, 6:9]
        mean, std = (torch.tensor(values)[:, None, None] for values in (lgm.IMAGE_MEAN, lgm.IMAGE_STD))
        rgb = inputs[:, :, :3] * std + mean
        colour = torch.atanh((2 * rgb - 1).clamp(-0.999, 0.999))
        one = torch.ones_like(rgb)
        return torch.cat([torch.linalg.cross(direction, moment, dim=2), one, one, one[:, :, :2], colour], dim=2)


def test_gaussians_lie_where_the_views_show_them() -> None:
    """Through LGM's cameras and back, each Gaussian appears in its own view where its colour is."""
    cameras = oblong(zoom=0.5)
    gaussians = reconstruct(OnTheRays(SMALL), sky(cameras))
    means, colours = gaussians.means.reshape(4, -1, 3), gaussians.colours.reshape(4, -1, 3)
    directions = torch.nn.functional.normalize(means - cameras.centres[:, None], dim=-1)
    looking = directions @ cameras.c2w[:, :3, :3]
    place = looking[..., :2] / looking[..., 2:] * cameras.Ks[0, [0, 1], [0, 1]] + cameras.Ks[0, :2, 2]
    shown = ((place > 1) & (place < torch.tensor([65.0, 43.0]))).all(-1)
    assert shown.float().mean() > 0.5
    assert (colours - sky_colour(directions))[shown].abs().max() < 0.02
    middle = torch.tensor([1.0, 2, 3])
    assert (means - middle).norm(dim=-1).max() < 3, "round the object"
    swapped = sky_colour(directions[[0, 3, 2, 1]])
    assert (colours - swapped)[shown].abs().max() > 0.3


# ---- views that LGM cannot take


def bad_views() -> dict[str, tuple[Views, str]]:
    cameras = orbit(4, target=torch.zeros(3), radius=2, elevation=0.2, fov=0.9, size=32)
    views = sky(cameras)
    flat = replace(cameras, orthographic=torch.tensor([False, True, False, False]))
    parallel = cameras.c2w[:1].repeat(4, 1, 1)
    parallel[:, 0, 3] += torch.arange(4)
    away = cameras.c2w.clone()
    away[3, :3, :3] = away[3, :3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1]))
    aside = cameras.c2w.clone()
    aside[2, :3, :3] = torch.linalg.matrix_exp(torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])) @ aside[2, :3, :3]
    far = cameras.c2w.clone()
    far[1, :3, 3] *= 3
    masks = torch.zeros_like(views.images)
    masks[:, 12:20, 12:20] = 1
    nothing, wide = masks.clone(), torch.ones_like(masks)
    nothing[2] = 0
    wide[:, :1] = 0
    near = replace(
        cameras,
        Ks=cameras.Ks * torch.tensor([0.3, 0.3, 1])[:, None] + torch.tensor([[0, 0, 11.2], [0, 0, 11.2], [0, 0, 0]]),
    )
    return {
        "few": (Views(views.images[:3], cameras[:3]), "at least 4 views.*found 3"),
        "orthographic": (replace(views, cameras=flat), "orthographic one .view 1"),
        "parallel": (replace(views, cameras=replace(cameras, c2w=parallel)), "parallel"),
        "away": (replace(views, cameras=replace(cameras, c2w=away)), "view 3 looks elsewhere"),
        "aside": (replace(views, cameras=replace(cameras, c2w=aside)), "view 2 looks elsewhere"),
        "far": (replace(views, cameras=replace(cameras, c2w=far)), "view 1 3 times"),
        "nothing": (replace(views, images=nothing), "nothing in view 2"),
        "cut": (Views(wide, near), "view 0 shows .*% of the object outside"),
    }


@pytest.mark.parametrize("name", list(bad_views()))
def test_views_that_cannot_be_adapted(name: str) -> None:
    views, said = bad_views()[name]
    with pytest.raises(BadInput, match=said):
        reconstruct(network(), views)


def test_weights_that_give_no_numbers() -> None:
    model = network()
    with torch.no_grad():
        model.unet.conv_in.weight[0] = float("nan")
    with pytest.raises(BadInput, match=r"^weights: .*finite"):
        reconstruct(model, sky(oblong()))


def test_aiming_turns_no_farther_than_it_must() -> None:
    cameras = oblong()
    target = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    aimed = aim(cameras, target, LENS)
    towards = torch.nn.functional.normalize(target - cameras.centres, dim=-1)
    torch.testing.assert_close(aimed.c2w[:, :3, 2].double(), towards, atol=1e-6, rtol=0)
    turn = aimed.c2w[:, :3, :3] @ cameras.c2w[:, :3, :3].transpose(1, 2)
    angle = ((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    between = (cameras.c2w[:, :3, 2] * towards).sum(1).clamp(-1, 1).acos()
    torch.testing.assert_close(angle.double(), between.double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.linalg.det(aimed.c2w[:, :3, :3]), torch.ones(4))


def test_training_in_half_precision_keeps_the_positions_exact() -> None:
    """Under autocast the last layers still tell positions more finely than bfloat16 could."""
    model = LGM(SMALL).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = model(torch.randn(1, 4, 9, SMALL.input_size, SMALL.input_size))
    assert raw.dtype == torch.float32
    assert not torch.equal(raw, raw.bfloat16().float())
