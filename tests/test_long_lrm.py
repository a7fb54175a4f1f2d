"""Long-LRM: golden values, published names, configurations, cameras, pruning, and where its Gaussians land."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views, look_at, orbit, rays
from backend.gaussians import Gaussians, transform
from backend.models.long_lrm import (
    IGNORED,
    PRESETS,
    SIDE_MULTIPLE,
    LongLRM,
    PixelGaussians,
    Pruning,
    config_from,
    memory_needed,
    reconstruct,
)
from backend.models.long_lrm_cameras import (
    average_pose,
    cover,
    crop,
    k_means_views,
    normalise,
    resize,
    set_up,
    size_for,
    well_spread,
)
from backend.models.long_lrm_config import LongLRMConfig
from tests.golden_long_lrm import run
from tests.peak_memory import PeakMemory

TINY = LongLRMConfig(
    num_layers=4,
    block_type="mt",
    dim=(32, 64),
    merge_layers=(2,),
    patch_size=4,
    head_dim=16,
    d_state=8,
    sh_degree=2,
    scale_bias=-2.3,
)
PUBLISHED = PRESETS["dl3dv_i540_32input_8target"]


def tiny(config: LongLRMConfig = TINY, dtype: torch.dtype = torch.float32) -> LongLRM:
    """A network whose result depends on all of its input: a fresh one's head says next to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LongLRM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    return model.to(dtype)


def some_views(count: int = 3, width: int = 24, height: int = 16, seed: int = 0) -> Views:
    """Pictures without any symmetry, from cameras without any."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 3, generator=generator, dtype=torch.float64) + torch.tensor([4.0, 1, 2])
    c2w = look_at(centres, torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))
    K = torch.tensor([[1.1 * width, 0, 0.45 * width], [0, 1.2 * width, 0.55 * height], [0, 0, 1]])
    cameras = Cameras(c2w, K.repeat(count, 1, 1).double(), torch.zeros(count, dtype=torch.bool), width, height)
    images = torch.rand(count, height, width, 4, generator=generator)
    images[..., 3] = 1
    return Views(images, cameras)


def inputs(views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """As the network's forward wants them, in a batch of one."""
    K = views.cameras.Ks
    intrinsics = torch.cat([K[:, [0, 1], [0, 1]], K[:, :2, 2]], -1)
    return views.images[..., :3].permute(0, 3, 1, 2)[None], views.cameras.c2w[None], intrinsics[None]


# ---- golden values

ABSOLUTE = {  # the tolerances of the golden folder's README
    "raw_pixels": 1.5e-4,
    "decoder_raw": 1.5e-4,
    "gaussians.xyz": 1e-5 * 500,
    "gaussians": 1.5e-4,
    "block": 5e-4,
    "tokens_in": 5e-4,
    "tokenizer_in": 1e-5,
    "activated": 5e-5,
    "gaussian_usage": 1 / 4608,
}


@pytest.mark.parametrize("folder", ["model", "model_variant"])
def test_golden_values(shared_folder: Path, folder: str) -> None:
    path = shared_folder / "golden" / "long_lrm" / folder
    found, expected = run(path), load_file(path / "output.safetensors")
    assert set(expected) <= set(found)
    for name, value in expected.items():
        if name.startswith("prune"):
            continue  # see test_golden_pruning
        atol = next(atol for start, atol in ABSOLUTE.items() if name.startswith(start))
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_golden_pruning(shared_folder: Path) -> None:
    path = shared_folder / "golden" / "long_lrm" / "model"
    found, expected = run(path), load_file(path / "output.safetensors")
    logits = expected["gaussians.opacity"][0, :, 0]
    for share in (0.5, 0.6):
        index = expected[f"prune_{share}.index"]
        assert torch.equal(Pruning(share, min_opacity=0).choose(logits), index[0])
        torch.testing.assert_close(expected["gaussians.xyz"][:, index[0]], expected[f"prune_{share}.xyz"])
        name = f"prune_{share}.count_with_random_0.1"
        assert len(Pruning(share, 0.1, min_opacity=0).choose(logits)) == expected[name]
        assert torch.equal(found[name], expected[name])
        # Float noise may swap neighbours in opacity, whose values are then the same within the noise.
        ours = expected["gaussians.opacity"][0, found[f"prune_{share}.index"][0], 0]
        torch.testing.assert_close(ours, logits[index[0]], atol=1.5e-4, rtol=0)


# ---- names and shapes


def mamba_shapes(width: int, state: int) -> dict[str, tuple[int, ...]]:
    inner, heads = 2 * width, 2 * width // 64
    shapes: dict[str, tuple[int, ...]] = {
        "norm.weight": (width,),
        "mamba.in_proj.weight": (2 * inner + 2 * state + heads, width),
        "mamba.out_proj.weight": (width, inner),
    }
    for scan in ("mamba.mamba_scans.0", "mamba.mamba_scans.1"):
        shapes |= {f"{scan}.{name}": (heads,) for name in ("dt_bias", "A_log", "D")}
        shapes[f"{scan}.conv1d.weight"] = (inner + 2 * state, 1, 4)
        shapes[f"{scan}.conv1d.bias"] = (inner + 2 * state,)
        shapes[f"{scan}.norm.weight"] = (inner,)
    return shapes


def transformer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "norm1.weight": (width,),
        "norm2.weight": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc2.weight": (width, 4 * width),
    }


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The published checkpoint's, written down from its description."""
    shapes: dict[str, tuple[int, ...]] = {
        "global_token_init": (1, 2, 256),
        "tokenizer.weight": (256, 576),
        "input_layernorm.weight": (256,),
        "processor.resize_blocks.0.weight": (1024, 256),
        "processor.resize_blocks.0.bias": (1024,),
        "processor.merge_blocks.0.weight": (1024, 1, 2, 2),
        "processor.merge_blocks.0.bias": (1024,),
        "tokenDecoder.0.weight": (1024,),
        "tokenDecoder.1.weight": (15104, 1024),
    }
    for index in range(24):
        width = 256 if index < 8 else 1024
        block = transformer_shapes(width) if index in (7, 15, 23) else mamba_shapes(width, 256)
        shapes |= {f"processor.blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def test_the_full_size_network_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        model = LongLRM(PUBLISHED)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == published_shapes()
    assert shapes["processor.blocks.0.mamba.in_proj.weight"] == (1544, 256)
    assert shapes["processor.blocks.22.mamba.in_proj.weight"] == (4640, 1024)
    assert len(shapes) == 342 and sum(math.prod(shape) for shape in shapes.values()) == 141_918_160
    assert not [name for name in shapes if any(re.fullmatch(pattern, name) for pattern in IGNORED)]
    for name in ("perceptual_loss.mean", "perceptual_loss.blocks.0.0.0.weight", "depth_anything.pretrained.cls_token"):
        assert any(re.fullmatch(pattern, name) for pattern in IGNORED)


def test_the_full_size_network_gives_a_gaussian_a_pixel() -> None:
    with torch.device("meta"):
        model = LongLRM(PUBLISHED)
        with torch.no_grad():
            pixels = model(torch.empty(1, 2, 3, 64, 96), torch.empty(1, 2, 4, 4), torch.empty(1, 2, 4))
    assert pixels.means.shape == (1, 2 * 64 * 96, 3) and pixels.sh.shape == (1, 2 * 64 * 96, 16, 3)


def test_the_full_size_network_needs_little_for_32_pictures_of_256_pixels() -> None:
    assert memory_needed(PUBLISHED, 32, 256, 256, 4) < 3 * 2**30
    assert memory_needed(PUBLISHED, 32, 544, 960, 4) < 12 * 2**30
    assert PUBLISHED.multiple == SIDE_MULTIPLE


# ---- configurations


def document(**changes: Any) -> dict[str, Any]:
    """A config.json as the published code writes it."""
    model: dict[str, Any] = {
        "num_layers": 3,
        "patch_size": 4,
        "dim": 32,
        "block_type": "tm",
        "transformer": {"head_dim": 16},
        "mamba2": {"d_state": 8},
        "num_global_tokens": 0,
        "gaussians": {"sh_degree": 1, "scale_bias": -2.3, "far_plane": 1e6},
    }
    return {"model": model | changes, "seed": 1}


@pytest.mark.parametrize(
    ("changes", "views", "blocks"),
    [
        ({}, (16, 24), "tmt"),
        ({"block_type": "mamba2", "num_global_tokens": 3}, (12, 20), "mmm"),
        ({"block_type": "transformer", "dim": [64]}, (8, 8), "ttt"),
        ({"block_type": "ttttmmm", "patch_size": 2}, (6, 4), "ttt"),
        ({"dim": [32, 32, 96], "merge_layers": [0, 2], "num_layers": 4, "num_global_tokens": 1}, (16, 32), "tmtm"),
        ({"gaussians": {"sh_degree": 0, "align_to_pixel": False}}, (8, 12), "tmt"),
        ({"gaussians": {"sh_degree": 4, "max_dist": 20}}, (8, 12), "tmt"),
    ],
)
def test_any_sizes_a_config_names(changes: dict[str, Any], views: tuple[int, int], blocks: str) -> None:
    config = config_from(document(**changes))
    assert "".join(kind for kind, _ in config.blocks) == blocks
    height, width = views
    assert height % config.multiple == 0 and width % config.multiple == 0
    model = tiny(config)
    pixels = model(*inputs(some_views(2, width, height)))
    assert pixels.means.shape == (1, 2 * height * width, 3)
    assert pixels.sh.shape[2] == (config.sh_degree + 1) ** 2
    torch.stack([(getattr(pixels, name) ** 2).sum() for name in vars(pixels)]).sum().backward()
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None and grad.isfinite().all() and grad.any(), name


def test_the_published_config_is_the_preset() -> None:
    gaussians = {"sh_degree": 3, "near_plane": 0.01, "far_plane": 1e6, "scale_bias": -6.9, "scale_max": -1.2}
    gaussians |= {"opacity_bias": -2.0, "align_to_pixel": True, "max_dist": 500.0}
    gaussians |= {"prune_ratio": 0.6, "random_ratio": 0.1}
    model = {"num_layers": 24, "patch_size": 8, "dim": [256, 1024], "block_type": "mmmmmmmt", "merge_layers": [8]}
    model |= {"transformer": {"head_dim": 64}, "mamba2": {"d_state": 256}, "num_global_tokens": 2}
    assert config_from({"model": model | {"gaussians": gaussians}}) == PUBLISHED
    assert "".join(kind for kind, _ in PUBLISHED.blocks) == 3 * "mmmmmmmt"
    assert [width for _, width in PUBLISHED.blocks] == 8 * [256] + 16 * [1024]
    assert PUBLISHED.scene_scale == 1.35
    assert config_from({"model": model, "data": {"scene_scale": 1.0}}).scene_scale == 1.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_heads": 8}, "model.num_heads: .* does not know"),
        ({"mamba2": {"d_state": 8, "headdim": 32}}, "model.mamba2.headdim: .* does not know"),
        ({"gaussians": {"render": "2dgs"}}, "model.gaussians.render: .* '?2dgs"),
        ({"gaussians": 3}, "model.gaussians: .* a section"),
        ({"block_type": "mx"}, "block_type: .* letters m and t, found mx"),
        ({"block_type": ""}, "block_type"),
        ({"num_layers": 2.5}, "model.num_layers: .* type int, found 2.5"),
        ({"num_layers": True}, "model.num_layers: .* type int"),
        ({"num_layers": 0}, "num_layers: .* positive"),
        ({"dim": [32, 64]}, "dim: .* 1 widths"),
        ({"dim": [32, 48], "merge_layers": [1]}, "dim: .* multiple"),
        ({"dim": 24}, "dim: .* whole heads of 16"),
        ({"dim": 48}, "whole heads of 64"),
        ({"dim": "wide"}, "model.dim: .* whole numbers"),
        ({"dim": [32, 64], "merge_layers": [3]}, "merge_layers: .* 3 blocks"),
        ({"dim": [32, 32, 64], "merge_layers": [2, 1]}, "merge_layers: .* ascending"),
        ({"gaussians": {"sh_degree": -1}}, "sh_degree: .* at least 0"),
        ({"gaussians": {"prune_ratio": 1.0}}, "prune_ratio: .* share"),
    ],
)
def test_what_a_config_says_is_known_or_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        config_from(document(**changes))


def test_a_config_without_a_model_is_refused() -> None:
    with pytest.raises(BadInput, match=r"model\.num_layers"):
        config_from({})
    with pytest.raises(BadInput, match=r"training: .* does not know"):
        config_from(document() | {"training": {}})


# ---- types of numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    images, c2w, intrinsics = inputs(some_views())
    with torch.no_grad():
        expected = tiny()(images, c2w, intrinsics)
        model = tiny(dtype=dtype)
        found = model(images, c2w, intrinsics)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name in vars(found):
        assert getattr(found, name).dtype == wide, "the head is float32 at least"
    error = (found.opacity_logits - expected.opacity_logits).abs().max() / expected.opacity_logits.std()
    assert error < (1e-4 if dtype == torch.float64 else 0.1)
    # However coarse the distances, a Gaussian lies on its pixel's ray.
    rays_o, rays_d = model.rays(c2w, intrinsics, images.shape[-2:])
    offsets = found.means - rays_o.flatten(1, 3)
    directions = torch.nn.functional.normalize(offsets, dim=-1)
    torch.testing.assert_close(directions, rays_d.flatten(1, 3).to(directions), atol=1e-5, rtol=0)


def test_autocast_leaves_rays_and_head_alone() -> None:
    images, c2w, intrinsics = (part.float() for part in inputs(some_views()))
    model = tiny()
    with torch.no_grad():
        expected = model.rays(c2w, intrinsics, images.shape[-2:])
        with torch.autocast("cpu", torch.bfloat16):
            found = model.rays(c2w, intrinsics, images.shape[-2:])
            pixels = model(images, c2w, intrinsics)
    assert torch.equal(found[1], expected[1])
    assert pixels.means.dtype == pixels.opacity_logits.dtype == torch.float32


# ---- cameras and pictures as published


def golden_scene(shared_folder: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    folder = shared_folder / "golden" / "long_lrm" / "data_prep"
    scene = json.loads((folder / "scene" / "opencv_cameras.json").read_text())
    return scene["frames"], json.loads((folder / "config.json").read_text()), folder


def scene_cameras(frames: Any, indices: list[int]) -> Cameras:
    w2c = torch.tensor([frames[i]["w2c"] for i in indices], dtype=torch.float64)
    Ks = torch.zeros(len(indices), 3, 3)
    for K, i in zip(Ks, indices, strict=True):
        frame = frames[i]
        K[[0, 1, 0, 1, 2], [0, 1, 2, 2, 2]] = torch.tensor([frame["fx"], frame["fy"], frame["cx"], frame["cy"], 1.0])
    flat = torch.zeros(len(indices), dtype=torch.bool)
    return Cameras(torch.linalg.inv(w2c), Ks, flat, frames[0]["w"], frames[0]["h"])


@pytest.mark.parametrize("case", ["square_uniform", "wide_kmeans", "wide_scaled", "zoom_crop"])
def test_golden_cameras(shared_folder: Path, case: str) -> None:
    frames, configs, folder = golden_scene(shared_folder)
    expected = load_file(folder / f"{case}.safetensors")
    cameras = scene_cameras(frames, expected["input_frame_idx"].tolist())
    factor = configs[case]["data"].get("scene_scale", 1.0)
    c2w, to_world = normalise(cameras.c2w, factor)
    torch.testing.assert_close(c2w.float(), expected["input_c2ws"], atol=1e-4, rtol=0)
    inverse = torch.linalg.inv(average_pose(cameras.c2w))
    torch.testing.assert_close(inverse.float(), expected["pos_avg_inv"], atol=1e-4, rtol=0)
    assert float(1 / torch.linalg.det(to_world[:3, :3]) ** (1 / 3)) == pytest.approx(float(expected["scene_scale"]))
    assert float(c2w[:, :3, 3].abs().max()) == pytest.approx(1 / factor)


def test_golden_choice_of_views(shared_folder: Path) -> None:
    frames, configs, folder = golden_scene(shared_folder)
    expected = load_file(folder / "wide_kmeans.safetensors")
    targets = expected["test_frame_idx"].tolist()
    candidates = [i for i in range(len(frames)) if i not in targets]
    count = configs["wide_kmeans"]["data"]["num_input_frames"]
    chosen = k_means_views(scene_cameras(frames, candidates).c2w, count)
    assert [candidates[i] for i in chosen] == expected["input_frame_idx"].tolist()


@pytest.mark.parametrize(("case", "square"), [("square_uniform", True), ("wide_kmeans", False)])
def test_golden_pictures(shared_folder: Path, case: str, square: bool) -> None:
    frames, _, folder = golden_scene(shared_folder)
    expected = load_file(folder / f"{case}.safetensors")
    indices = expected["input_frame_idx"].tolist()
    pictures = np.stack([np.asarray(Image.open(folder / "scene" / frames[i]["file_path"])) for i in indices])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    height, width = (32, 64) if square else (48, 64)
    images, cameras = resize(images, scene_cameras(frames, indices), height, width)
    if square:
        images, cameras = crop(images, cameras, 32, 32)
    error = (images - expected["input_images"]).abs()
    assert error.max() < 1.5 / 255 and error.mean() < 0.3 / 255
    _, _, intrinsics = inputs(Views(torch.zeros(len(indices), cameras.height, cameras.width, 4), cameras))
    torch.testing.assert_close(intrinsics[0], expected["input_intr"], atol=1e-3, rtol=0)


def test_golden_cameras_of_a_real_scene(shared_folder: Path) -> None:
    """Its cameras are known only after normalisation: put back into the world, they must come out the same."""
    expected = load_file(shared_folder / "golden" / "long_lrm" / "mydesk_cameras" / "expected.safetensors")
    c2w = expected["input_c2ws"].double()
    c2w[:, :3, 3] /= expected["scene_scale"].double()
    world = torch.linalg.inv(expected["pos_avg_inv"].double()) @ c2w
    found, to_world = normalise(world, 1.0)
    torch.testing.assert_close(found.float(), expected["input_c2ws"], atol=1e-4, rtol=0)
    assert float(torch.linalg.det(to_world[:3, :3]) ** (-1 / 3)) == pytest.approx(float(expected["scene_scale"]), 1e-4)
    K = torch.tensor([[1658.43, 0, 958.09], [0, 1660.65, 540.96], [0, 0, 1]])[None]
    cameras = Cameras(torch.eye(4)[None], K, torch.zeros(1, dtype=torch.bool), 1920, 1080)
    height, width = size_for(1080, 1920, multiple=16, longest_side=960)
    assert (height, width) == (544, 960)
    Ks = cameras.resized(width, height).Ks[0]
    expected_Ks = expected["input_intr"][0]
    torch.testing.assert_close(Ks[[0, 1, 0, 1], [0, 1, 2, 2]], expected_Ks, atol=5e-3, rtol=0)


# ---- cameras and pictures by law


@pytest.mark.parametrize("elevation", [0.0, 0.4, -0.7])
def test_cameras_in_a_ring_have_a_frame(elevation: float) -> None:
    ring = orbit(8, target=torch.tensor([1.0, 2, 3]), radius=2, elevation=elevation, fov=0.9, size=16)
    c2w, to_world = normalise(ring.c2w, 1.35)
    torch.testing.assert_close(c2w[:, :3, :3].mT @ c2w[:, :3, :3], torch.eye(3).expand(8, 3, 3), atol=1e-5, rtol=0)
    assert float(torch.linalg.det(to_world)) > 0
    assert float(c2w[:, :3, 3].abs().max()) == pytest.approx(1 / 1.35)
    torch.testing.assert_close(average_pose(ring.c2w)[:3, 3], ring.centres.double().mean(0))


def test_one_camera_keeps_the_unit_of_the_world() -> None:
    camera = orbit(1, target=torch.tensor([1.0, 2, 3]), radius=2, elevation=0.3, fov=0.9, size=16)
    c2w, to_world = normalise(camera.c2w, 1.35)
    torch.testing.assert_close(c2w[0], torch.eye(4), atol=1e-6, rtol=0)
    expected = camera.c2w[0].double()
    expected[:3, :3] *= 1.35
    torch.testing.assert_close(to_world, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ring", [False, True])
def test_normalised_cameras_do_not_depend_on_the_world(ring: bool) -> None:
    cameras = some_views(5).cameras
    if ring:
        cameras = orbit(6, target=torch.tensor([1.0, 2, 3]), radius=2, elevation=0.4, fov=0.9, size=16)
    matrix = similarity()
    c2w, to_world = normalise(cameras.c2w.double(), 1.35)
    moved_c2w, moved_to_world = normalise(moved(cameras, matrix).c2w, 1.35)
    torch.testing.assert_close(moved_c2w, c2w, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved_to_world, matrix @ to_world, atol=1e-5, rtol=0)
    # A point in front of a camera is in front of it in both worlds.
    homogeneous = torch.tensor([0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    scale = torch.linalg.det(to_world[:3, :3]) ** (1 / 3)
    there = to_world @ (c2w[2] @ homogeneous)
    inside = torch.linalg.inv(cameras.c2w[2].double()) @ there
    torch.testing.assert_close(inside[:3], homogeneous[:3] * scale, atol=1e-6, rtol=0)


def test_views_are_chosen_apart_whatever_the_unit() -> None:
    near = orbit(4, target=torch.zeros(3), radius=3, elevation=0.3, fov=0.9, size=8).c2w.double()
    generator = torch.Generator().manual_seed(0)
    crowd = near.repeat_interleave(5, 0)
    crowd[:, :3, 3] += 0.05 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    assert [i // 5 for i in well_spread(crowd, 4)] == [0, 1, 2, 3], "one of each place"
    scattered = torch.eye(4, dtype=torch.float64).repeat(30, 1, 1)
    scattered[:, :3, :3] = torch.from_numpy(Rotation.random(30, rng=np.random.default_rng(0)).as_matrix())
    scattered[:, :3, 3] = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    choices = set()
    for scale in (0.001, 1.0, 1000.0):  # of positions, which compete with directions
        scaled = scattered.clone()
        scaled[:, :3, 3] *= scale
        choices.add(tuple(well_spread(scaled, 6)))
        assert k_means_views(scaled, 6) != k_means_views(scattered, 6) or scale == 1
    assert len(choices) == 1
    assert well_spread(crowd, 20) == list(range(20))
    assert len(well_spread(near[[0, 0, 0, 1, 1]], 4)) == 2, "a view is not taken twice, nor one like it"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((540, 960), (544, 960)),
        ((1080, 1920), (544, 960)),
        ((256, 256), (256, 256)),
        ((250, 250), (256, 256)),
        ((37, 90), (32, 96)),
        ((4, 40), (16, 160)),
        ((3000, 2000), (960, 640)),
    ],
)
def test_sizes_of_whole_patches(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert size_for(*size, multiple=16, longest_side=960) == expected


def test_a_point_stays_on_its_pixel_and_pictures_are_not_stretched() -> None:
    """A picture whose colours are its pixels' ray directions still says so after resizing and cropping."""
    views = some_views(2, width=90, height=37)
    _, directions = rays(replace(views.cameras, c2w=torch.eye(4).repeat(2, 1, 1), Ks=views.cameras.Ks.float()))
    images, cameras = cover((0.5 + directions / 2).permute(0, 3, 1, 2), views.cameras, 32, 96)
    images, cameras = crop(images, cameras, 32, 96)
    assert (cameras.height, cameras.width) == (32, 96) and images.shape == (2, 3, 32, 96)
    _, directions = rays(replace(cameras, c2w=torch.eye(4).repeat(2, 1, 1), Ks=cameras.Ks.float()))
    inner = (slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(images.permute(0, 2, 3, 1)[inner], (0.5 + directions / 2)[inner], atol=1e-3, rtol=0)
    stretch = cameras.Ks[0, 0, 0] / cameras.Ks[0, 1, 1] / (views.cameras.Ks[0, 0, 0] / views.cameras.Ks[0, 1, 1])
    assert abs(float(stretch) - 1) < 0.02, "but for whole pixels"


# ---- pruning


def test_pruning_by_share_lot_and_opacity() -> None:
    logits = torch.linspace(-9, 3, 1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    ranks = logits.argsort(descending=True)
    assert torch.equal(Pruning(0.75, min_opacity=0).choose(logits), ranks[:250])
    assert len(Pruning(min_opacity=0).choose(logits)) == 1000
    kept = Pruning(min_opacity=0.5).choose(logits)
    assert len(kept) == int((logits >= 0).sum()) and (logits[kept] >= 0).all()
    lot = Pruning(0.6, 0.1, min_opacity=0).choose(logits)
    assert torch.equal(lot[:360], ranks[:360]) and len(lot.unique()) == 400
    drawn = (logits[lot[360:]] < logits[ranks[700]]).float().mean()
    assert 0.2 < drawn < 0.8, "from all of the rest"
    assert torch.equal(lot, Pruning(0.6, 0.1, min_opacity=0).choose(logits))
    assert not torch.equal(lot, Pruning(0.6, 0.1, min_opacity=0, seed=1).choose(logits))


# ---- where the Gaussians land


def similarity(scale: float = 1.7) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = scale * torch.from_numpy(Rotation.random(rng=np.random.default_rng(4)).as_matrix())
    matrix[:3, 3] = torch.tensor([0.3, -1.2, 2.0])
    return matrix


def moved(cameras: Cameras, matrix: Tensor) -> Cameras:
    c2w = matrix @ cameras.c2w.double()
    c2w[:, :3, :3] /= torch.linalg.det(matrix[:3, :3]) ** (1 / 3)
    return replace(cameras, c2w=c2w)


def difference(a: Gaussians, b: Gaussians) -> float:
    """Largest of all fields, relative to their size; quaternions up to their sign, which nothing depends on."""
    worst = 0.0
    for name in ("means", "scales", "opacities", "sh", "covariances"):
        x, y = getattr(a, name), getattr(b, name)
        worst = max(worst, float((x - y).abs().max() / y.abs().max()))
    return worst


EVERYTHING = Pruning(min_opacity=0)


def test_gaussians_lie_on_the_rays_at_the_distance_the_head_says() -> None:
    """With a head that says 0 everywhere all is known by hand: half of the greatest distance, the biases alone."""
    views = some_views(3, width=24, height=16)
    model = tiny(replace(TINY, max_dist=10.0))
    torch.nn.init.zeros_(model.tokenDecoder[1].weight)  # type: ignore[arg-type]
    found = reconstruct(model, views, pruning=EVERYTHING)
    reach = 1.35 * float((torch.linalg.inv(average_pose(views.cameras.c2w)) @ views.cameras.c2w)[:, :3, 3].abs().max())
    rays_o, rays_d = rays(replace(views.cameras, c2w=views.cameras.c2w.float(), Ks=views.cameras.Ks.float()))
    expected = (rays_o + 5 * reach * rays_d).flatten(0, 2)
    torch.testing.assert_close(found.means, expected.float(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.scales, torch.full_like(found.scales, math.exp(-2.3) * reach))
    torch.testing.assert_close(found.opacities, torch.full_like(found.opacities, 1 / (1 + math.exp(2))))
    assert not found.sh.any()


def test_gaussians_move_with_the_world() -> None:
    views, matrix = some_views(4, width=37, height=18), similarity()
    model = tiny(dtype=torch.float64)
    found = reconstruct(model, replace(views, cameras=moved(views.cameras, matrix)), pruning=EVERYTHING)
    expected = transform(reconstruct(model, views, pruning=EVERYTHING), matrix)
    assert len(found) == len(expected) == 4 * 40 * 16
    assert found.means.dtype == found.sh.dtype == torch.float32
    assert difference(found, expected) < 1e-5
    away = reconstruct(model, views, pruning=EVERYTHING)
    assert difference(replace(found, means=away.means), expected) > 0.1


def test_swapped_or_mirrored_views_give_another_scene() -> None:
    views, model = some_views(), tiny(dtype=torch.float64)
    found = reconstruct(model, views, pruning=EVERYTHING)
    assert difference(reconstruct(model, views, pruning=EVERYTHING), found) == 0
    swapped = replace(views, images=views.images[[1, 0, 2]])
    mirrored = replace(views, images=views.images.flip(2))
    turned = replace(views, cameras=replace(views.cameras, c2w=views.cameras.c2w * torch.tensor([1.0, -1, -1, 1])))
    for other in (swapped, mirrored, turned):
        assert difference(reconstruct(model, other, pruning=EVERYTHING), found) > 0.01


def test_reconstruct_is_the_network_pruned() -> None:
    """Views are decoded one at a time and opacities before all else; together they give what forward does."""
    views = some_views(4)
    model = tiny(replace(TINY, prune_ratio=0.6, random_ratio=0.1), torch.float64)
    c2w, to_world = normalise(views.cameras.c2w, 1.35)
    ready = replace(views, cameras=replace(views.cameras, c2w=c2w))
    with torch.no_grad():
        pixels: PixelGaussians = model(*inputs(ready))
    chosen = Pruning(0.6, 0.1).choose(pixels.opacity_logits[0]).sort().values
    expected = transform(pixels.activated(0, chosen), to_world)
    found = reconstruct(model, views)
    assert len(found) == int(4 * 384 * 0.36) + int(4 * 384 * 0.04)
    assert difference(found, expected) < 1e-5


def test_more_views_than_wanted_and_large_pictures_are_reduced() -> None:
    views, model = some_views(9, width=64, height=48), tiny()
    found = reconstruct(model, views, pruning=EVERYTHING, most_views=4, longest_side=32)
    chosen = well_spread(views.cameras.c2w, 4)
    assert len(found) == len(chosen) * 32 * 24
    alone = Views(views.images[chosen], views.cameras[chosen])
    assert difference(found, reconstruct(model, alone, pruning=EVERYTHING, longest_side=32)) < 1e-6


def test_see_through_pixels_are_white() -> None:
    views = some_views()
    holes = torch.rand(views.images.shape[:3], generator=torch.Generator().manual_seed(0)) < 0.3
    clear, white = views.images.clone(), views.images.clone()
    clear[holes] = torch.tensor([0.2, 0.4, 0.6, 0.0])
    white[holes] = 1.0
    options = {"multiple": 8, "scene_scale": 1.35, "most_views": 9, "longest_side": 99}
    torch.testing.assert_close(
        set_up(replace(views, images=clear), **options).images, set_up(replace(views, images=white), **options).images
    )


def test_what_cannot_be_adapted_is_refused() -> None:
    views = some_views()
    flat = torch.tensor([False, True, False])
    with pytest.raises(BadInput, match=r"orthographic: .* view 1"):
        reconstruct(tiny(), replace(views, cameras=replace(views.cameras, orthographic=flat)))
    with pytest.raises(BadInput, match="at least 1, found 0"):
        reconstruct(tiny(), views, most_views=0)
    with pytest.raises(BadInput, match="sh_degree: expected at most 3, found 4"):
        reconstruct(tiny(replace(TINY, sh_degree=4)), views)


def test_one_view_will_do() -> None:
    found = reconstruct(tiny(), some_views(1), pruning=EVERYTHING)
    assert len(found) == 16 * 24 and bool(found.finite.all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("views", "side"), [(2, 64), (6, 64), (3, 128)])
def test_memory_is_foretold(views: int, side: int, dtype: torch.dtype) -> None:
    config = replace(TINY, dim=(64, 256), d_state=32, sh_degree=3, prune_ratio=0.6)
    model, given = tiny(config, dtype), some_views(views, side, side)
    given = replace(given, cameras=replace(given.cameras, c2w=given.cameras.c2w.float(), Ks=given.cameras.Ks.float()))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with PeakMemory() as memory:
        reconstruct(model, given)
    foretold = memory_needed(config, views, side, side, dtype.itemsize)
    assert 0.9 < foretold / (memory.peak + weights) < 1.5, (foretold, memory.peak, weights)
