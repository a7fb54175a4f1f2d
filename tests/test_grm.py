"""GRM against its published implementation (golden data), against slow twins of its fast parts, and against the laws of
its configuration. Its cameras have tests of their own.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backend.cameras import BadInput, Views, orbit
from backend.models import grm_layers
from backend.models.grm import (
    GRM,
    PRESETS,
    GRMConfig,
    chosen_views,
    config_from,
    memory_needed,
    reconstruct,
    takes,
    view_counts,
)
from backend.models.grm_config import config_data, known_part
from backend.models.grm_gaussians import HEADS, RawGaussians, scales_of
from backend.models.grm_layers import Attention, Block, Mlp, Upscale
from tests import golden_grm
from tests.grm_networks import OWN, RELEASED, batch, network, some_views, standing_views

FOLDERS = (".", "half_res_exp", "no_upsampler")
TOLERANCES = (  # absolute, by the beginning of the name, first match; the golden data's own
    ("network_image", 3e-6),
    ("plucker", 3e-6),
    ("raster.", 3e-6),
    ("tokens_in", 1.2e-5),
    ("encoder_tokens", 1.2e-5),
    ("encoder_block", 3e-5),
    ("upsampler_out", 5e-5),
    ("up_", 1e-4),
    ("latent.depth", 1e-5),
    ("latent.xyz", 1e-5),
    ("render.means3D", 1e-5),
    ("head.", 4e-5),
    ("latent.", 4e-5),
    ("render.colors", 6e-6),
    ("render.opacities", 6e-6),
    ("render.rotations", 1e-4),
)
# ---- parity


@pytest.mark.parametrize("name", FOLDERS)
def test_published_values(name: str, shared_folder: Path) -> None:
    folder = shared_folder / "golden" / "grm" / name
    got, want = golden_grm.run(folder), load_file(folder / "output.safetensors")
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].shape == value.shape, key
        if key == "render.scales":
            exponential = json.loads((folder / "config.json").read_text())["visual"].get("scale_max")
            torch.testing.assert_close(got[key], value, rtol=3e-5, atol=0 if exponential else 2e-7, msg=key)
            continue
        worst, tolerance = float((got[key] - value).abs().max()), next(t for k, t in TOLERANCES if key.startswith(k))
        assert worst <= tolerance, f"{key}: worst difference {worst:.1e}, tolerance {tolerance:.1e}"


def block_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    vectors = ("attn.out_proj.bias", "layernorm1.weight", "layernorm1.bias", "layernorm2.weight", "layernorm2.bias")
    return {
        f"{prefix}.attn.in_proj_weight": (3 * width, width),
        f"{prefix}.attn.in_proj_bias": (3 * width,),
        f"{prefix}.attn.out_proj.weight": (width, width),
        f"{prefix}.mlp.c_fc.weight": (4 * width, width),
        f"{prefix}.mlp.c_fc.bias": (4 * width,),
        f"{prefix}.mlp.c_proj.weight": (width, 4 * width),
        f"{prefix}.mlp.c_proj.bias": (width,),
        **{f"{prefix}.{name}": (width,) for name in vectors},
    }


def published_shapes(grid: int, patch: int, widths: tuple[int, ...], ratio: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published checkpoint of 24 layers and width 768, written down once more."""
    encoder, upsampler = "visual_encoder.transformer_encoder", "visual_encoder.gaussian_upsampler"
    shapes: dict[str, tuple[int, ...]] = {
        f"{encoder}.conv.weight": (768, 9, patch, patch),
        f"{encoder}.positional_embedding": (1, grid * grid, 768),
        **{f"{encoder}.layernorm{n}.{kind}": (768,) for n in (1, 2) for kind in ("weight", "bias")},
    }
    for layer in range(24):
        shapes |= block_shapes(f"{encoder}.transformer.resblocks.{layer}", 768)
    for level, (old, width) in enumerate(itertools.pairwise((768, *widths))):
        shapes[f"{upsampler}.upsampler_{level}.residual_fc.weight"] = (4 * width, old)
        shapes[f"{upsampler}.upsampler_{level}.residual_fc.bias"] = (4 * width,)
        for block in (0, 1):
            shapes |= block_shapes(f"{upsampler}.attention_{level}.resblocks.{block}", width)
    if widths:
        shapes |= {f"{upsampler}.layernorm2.{kind}": (widths[-1],) for kind in ("weight", "bias")}
    for name, numbers in (("depth", 1), ("feature", 3), ("opacity", 1), ("scaling", 3), ("rotation", 4)):
        shapes[f"visual_encoder.out_layer_{name}.weight"] = (numbers * ratio**2, (768, *widths)[-1], 1, 1)
    return shapes


@pytest.mark.parametrize(
    ("levels", "half", "ratio", "numbers"),
    [
        (4, False, 1, 178_850_304),
        (4, True, 2, 178_262_784),
        (3, False, 2, 178_736_000),
        (3, True, 4, 178_155_392),
        (2, False, 4, 178_620_672),
        (1, False, 8, 177_693_696),
        (0, False, 16, 175_027_200),
    ],
)
def test_published_keys_and_shapes(levels: int, half: bool, ratio: int, numbers: int) -> None:
    config = replace(PRESETS["grm_u"], decoder_ratio=levels, half_res_input=half)
    with torch.device("meta"):
        got = {name: tuple(value.shape) for name, value in GRM(config).state_dict().items()}
    assert got == published_shapes(16 if half else 32, 16, (384, 192, 64, 64)[:levels], ratio)
    assert sum(map(math.prod, got.values())) == numbers


def test_presets() -> None:
    assert set(PRESETS) == {"grm_u", "grm_r", "grm_zero123plus", "starter"}
    with torch.device("meta"):
        small = sum(parameter.numel() for parameter in GRM(PRESETS["starter"]).parameters())
    assert 2 * small < 30 * 2**20, "what ships is at most 30 MiB in halves"
    assert view_counts(PRESETS["starter"]) == tuple(range(1, 17))
    assert view_counts(PRESETS["grm_u"]) == (1, 4, 9, 16)
    smallest = torch.tensor([-100.0]), torch.tensor([100.0])
    low, high = (float(scales_of(raw, PRESETS["starter"])) for raw in smallest)
    assert (low, high) == pytest.approx((0.1, 4.0))  # pixels


# ---- configuration


def published_config(**changes: Any) -> dict[str, Any]:
    visual = {"input_res": 32, "patch_size": 8, "layers": 1, "width": 64, "decoder_ratio": 1, "window_size": 64}
    render = {"scaling_activation_type": "sigmoid", "scale_min_act": 0.005, "scale_max_act": 0.02, "sh_degree": 0}
    data: dict[str, Any] = {"visual": visual, "render": render}
    for name, value in changes.items():
        section, field = name.split("__")
        data[section][field] = value
    return data


GUIDED = {"visual__guided": True, "visual__in_channels": 4, "visual__pixel_grid": "centres"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"visual__input_res": 36}, "input_res"),
        ({"visual__input_res": "32"}, "input_res"),
        ({"visual__width": 100}, "width"),
        ({"visual__width": True}, "width"),
        ({"visual__layers": 0}, "layers"),
        ({"visual__window_size": 63}, "window_size"),
        ({"visual__bwindow_size": 7}, "bwindow_size"),
        ({"visual__decoder_ratio": 4}, "decoder_ratio"),
        ({"visual__decoder_ratio": -1}, "decoder_ratio"),
        ({"visual__scaling_activation_type": "relu"}, "scaling_activation_type"),
        ({"visual__half_res_input": 1}, "half_res_input"),
        ({"visual__depth_std": math.nan}, "depth_std"),
        ({"visual__rope": True}, r"visual\.rope"),
        ({"render__sh_degree": 1}, r"render\.sh_degree"),
        ({"render__background": 0}, r"render\.background"),
        ({"render__scaling_activation_type": "tanh"}, "render_scaling"),
        ({"render__scale_min_act": None}, "scale_min_act"),
        ({"visual__guided": 1}, "guided"),
        ({"visual__guided": True}, "in_channels"),
        ({"visual__guided": True, "visual__in_channels": 4}, "pixel_grid"),
        (GUIDED | {"visual__half_res_input": True}, "half_res_input"),
        (GUIDED | {"visual__bwindow_size": 16}, "bwindow_size"),
        ({"visual__scale_reference": 512}, r"visual\.scale_reference"),
    ],
)
def test_config_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    config_from(published_config())  # which is fine
    with pytest.raises(BadInput, match=named):
        config_from(published_config(**change))


def test_config_says_what_is_missing() -> None:
    data = published_config()
    del data["visual"]["width"]
    with pytest.raises(BadInput, match=r"visual\.width"):
        config_from(data)
    with pytest.raises(BadInput, match=r"visual\.input_res"):
        config_from({})
    with pytest.raises(BadInput, match="visual"):
        config_from({"visual": [1]})
    data = published_config()
    del data["render"]["scale_max_act"]
    with pytest.raises(BadInput, match=r"render\.scale_max_act"):
        config_from(data)


def test_config_round_trip() -> None:
    for config in (*PRESETS.values(), RELEASED, OWN, replace(OWN, guided=False, bwindow_size=16, checkpointing=True)):
        assert config_from(json.loads(json.dumps(config_data(config)))) == config


def test_unknown_names_are_told_apart() -> None:
    data = published_config(visual__name="vit", render__shading=1) | {"loss": {}}
    known, unknown = known_part(data)
    assert set(unknown) == {"visual.name", "render.shading", "loss"}
    assert config_from(known) == config_from(published_config())


def test_published_scale_defaults(caplog: pytest.LogCaptureFixture) -> None:
    """Without a least scale the renderer's constants are 1, 1 and 0.1, whatever else it says."""
    data = published_config()
    data["render"] = {"scale_max_act": 7.0}
    with caplog.at_level(logging.WARNING):
        config = config_from(data)
    assert (config.scale_min_act, config.scale_max_act, config.scale_multi_act) == (1.0, 1.0, 0.1)
    assert config.render_scaling == "exp"
    assert "'sigmoid'" in caplog.text
    assert "'exp'" in caplog.text


def test_scale_activations() -> None:
    raw = torch.tensor([-2.0, 0.0, 3.0])
    kinds: dict[str, Tensor] = {
        "exp": raw.exp(),
        "softplus": 0.1 * (1 + raw.exp()).log(),
        "sigmoid": 0.005 + 0.015 / (1 + (-raw).exp()),
    }
    for kind, want in kinds.items():
        config = config_from(published_config(render__scaling_activation_type=kind))
        torch.testing.assert_close(scales_of(raw, config), want)


# ---- fast parts and their slow twins


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("length", "window"), [(32, 8), (8, 8), (24, 12), (8, 32), (24, None)])
def test_windows(shifted: bool, length: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Window w of a shifted block holds the tokens (wW - W/2 + r) mod L; how many run at once changes nothing."""
    torch.manual_seed(0)
    block = Block(64, window=window, shifted=shifted, qk_norm=False, checkpointing=False)
    x = torch.randn(2, length, 64)
    size = min(window or length, length)
    shift = (window or 0) // 2 if shifted else 0
    want = torch.empty_like(x)
    for start in range(0, length, size):
        index = (torch.arange(start, start + size) - (shift if size < length else 0)) % length
        part = x[:, index]
        part = part + block.attn(block.layernorm1(part))
        want[:, index] = part + block.mlp(block.layernorm2(part))
    torch.testing.assert_close(block(x), want)
    monkeypatch.setitem(grm_layers.CHUNK_NUMBERS, "cpu", 1)  # one window at a time
    torch.testing.assert_close(block(x), want)


def test_attention_by_hand() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(128, qk_norm=False), nn.MultiheadAttention(128, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 128)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_normalised_queries_and_keys() -> None:
    """Their size no longer matters, but their direction does."""
    torch.manual_seed(0)
    attention, x = Attention(128, qk_norm=True), torch.randn(2, 5, 128)
    with torch.no_grad():
        attention.in_proj_weight.mul_(20)  # far above the norm's epsilon
        before = attention(x)
        attention.in_proj_weight[:256] *= 3
        torch.testing.assert_close(attention(x), before, rtol=1e-3, atol=1e-4)
        attention.in_proj_weight[:128] *= -1
        assert float((attention(x) - before).abs().max()) > 0.1


def test_mlp_by_hand() -> None:
    torch.manual_seed(0)
    mlp, x = Mlp(64), torch.randn(3, 7, 64)
    hidden = mlp.c_fc(x)
    torch.testing.assert_close(mlp(x), mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views", [1, 4, 9])
def test_joint_grid(views: int) -> None:
    """All tokens on one square through torch's own pixel shuffle."""
    torch.manual_seed(0)
    up, x = Upscale(64, 128, layout="joint"), torch.randn(2, views * 16, 64)
    square = up.residual_fc(x).transpose(1, 2).unflatten(2, (4 * int(views**0.5), -1))
    want = F.pixel_shuffle(square, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(up(x, views), want)


def test_joint_grid_swaps_rows_of_each_view() -> None:
    """For four views the published order is the views' own with the two middle ones of every four rows exchanged."""
    torch.manual_seed(0)
    joint, own, x = Upscale(64, 64, layout="joint"), Upscale(64, 64, layout="views"), torch.randn(1, 4 * 36, 64)
    own.load_state_dict(joint.state_dict())
    rows = own(x, 4).view(4, 12, 12, 64)
    order = [row + {1: 1, 2: -1}.get(row % 4, 0) for row in range(12)]
    torch.testing.assert_close(joint(x, 4).view(4, 12, 12, 64), rows[:, order])


@pytest.mark.parametrize("views", [1, 3])
def test_grid_of_each_view(views: int) -> None:
    torch.manual_seed(0)
    up, x = Upscale(64, 64, layout="views"), torch.randn(2, views * 9, 64)
    for view in range(views):
        own = up.residual_fc(x[:, 9 * view : 9 * view + 9]).transpose(1, 2).view(2, 256, 3, 3)
        want = F.pixel_shuffle(own, 2).flatten(2).transpose(1, 2)
        torch.testing.assert_close(up(x, views)[:, 36 * view : 36 * view + 36], want)


def test_heads_are_pixel_shuffles() -> None:
    model = network(replace(RELEASED, decoder_ratio=1))  # 4 x 4 pixels a token
    tokens = torch.randn(2, 3 * 64, 64)
    for name, maps in model.head_maps(tokens, 3).items():
        picture = tokens.view(6, 8, 8, 64).permute(0, 3, 1, 2)
        want = F.pixel_shuffle(F.conv2d(picture, model.head_weight(name)), 4).permute(0, 2, 3, 1)
        assert want.shape[-1] == HEADS[name]
        torch.testing.assert_close(model.pixels(maps, want.shape[1]), want.unflatten(0, (2, 3)), rtol=1e-4, atol=1e-5)


# ---- the whole


@pytest.mark.parametrize("config", [RELEASED, OWN], ids=["released", "own"])
def test_batch_items_do_not_meet(config: GRMConfig) -> None:
    model = network(config)
    given = batch(config, 4, size=2)
    together = model(*given)
    for item in (0, 1):
        alone = model(*(x[item : item + 1] for x in given))
        for field in fields(alone):
            if field.name == "backdrop":
                continue
            got = getattr(together, field.name)
            got = got[item] if len(got) == 2 else got[0]  # one unit for all
            torch.testing.assert_close(got, getattr(alone, field.name)[0], rtol=1e-4, atol=1e-5)
        if config.guided:
            got, want = together.backdrop[item], alone.backdrop[0]
            assert got is not None and want is not None and len(want) > 100
            torch.testing.assert_close(got.means, want.means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", [1, 2, 3, 5, 16])
def test_own_takes_any_number_of_views(views: int) -> None:
    raw = network(OWN)(*batch(OWN, views))
    assert raw.means.shape == (1, views * 32 * 32, 3)
    assert bool(raw.means.isfinite().all())


@pytest.mark.parametrize("views", [2, 3])
def test_wrong_number_of_views(views: int) -> None:
    with pytest.raises(BadInput, match=rf"1, 4, 9, 16 views .* found {views}"):
        reconstruct(network(RELEASED), some_views(views))
    with pytest.raises(BadInput, match=f"found {views}"):
        network(RELEASED)(*batch(RELEASED, views))


def test_of_many_views_those_around_the_object_are_used() -> None:
    """Every third of twelve; the first always."""
    around = orbit(12, target=torch.zeros(3), radius=2.7, elevation=0.35, fov=0.87, size=16)
    views = Views(torch.rand(12, 16, 16, 4), around, names=tuple(map(str, range(12))))
    assert chosen_views(views, RELEASED).names == ("0", "3", "6", "9")
    assert len(chosen_views(views, OWN)) == 8 and chosen_views(views[list(range(8))], OWN).names == views.names[:8]
    assert chosen_views(views, replace(OWN, guided=False, in_channels=3)) is views


def test_windows_limit_the_views() -> None:
    """No whole windows: 3 views of 4 x 4 tokens are 192 after one step."""
    config = replace(OWN, window_size=128, decoder_ratio=1)
    assert [views for views in range(1, 7) if takes(config, views)] == [1, 2, 4, 6]
    with pytest.raises(BadInput, match="found 3"):
        network(config)(*batch(config, 3))


def test_wrong_picture() -> None:
    images, c2w, Ks = batch(RELEASED, 4)
    with pytest.raises(BadInput, match="images: expected"):
        network(RELEASED)(images[..., :16], c2w, Ks)
    with pytest.raises(BadInput, match="in_channels"):
        reconstruct(network(replace(RELEASED, in_channels=5)), some_views(4))


def test_own_sees_alpha() -> None:
    """Two sets of pictures that are the same over white."""
    views = some_views(2)
    rgb, alpha = views.images[..., :3], views.images[..., 3:].clamp_min(0.1)
    opaque = replace(views, images=torch.cat([1 - alpha * (1 - rgb), torch.ones_like(alpha)], dim=-1))
    clear = replace(views, images=torch.cat([rgb, alpha], dim=-1))
    for one in (opaque, clear):
        one.images[:, 0] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for channels, guide in ((4, True), (4, False), (3, False)):
        model = network(replace(OWN, in_channels=channels, guided=guide))
        first, second = (reconstruct(model, one).sh for one in (opaque, clear))
        assert (first.shape != second.shape or not torch.allclose(first, second, atol=1e-4)) == (channels == 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [RELEASED, OWN], ids=["released", "own"])
@pytest.mark.usefixtures("no_grid")
def test_precisions(dtype: torch.dtype, config: GRMConfig) -> None:
    """Depths stay float32 inside, so that the means lose less than a pixel's 0.08 even in half precision."""
    views = standing_views() if config.guided else some_views(4)
    want = reconstruct(network(config), views)
    got = reconstruct(network(config).to(dtype), views)
    tolerance = 1e-4 if dtype == torch.float64 else 0.03
    for field in fields(want):
        value = getattr(got, field.name)
        assert value.dtype == torch.float32
        assert float((value - getattr(want, field.name)).abs().mean()) < tolerance, field.name
    model = network(config).to(dtype)
    images, c2w, Ks = batch(config, 4)
    raw = model(images, c2w, Ks)
    assert raw.means.dtype == raw.depth.dtype == torch.promote_types(dtype, torch.float32)


def numbers_of(raw: RawGaussians) -> list[Tensor]:
    """All that the heads and the backdrop's layers say."""
    (backdrop,) = raw.backdrop
    assert backdrop is not None
    return [getattr(raw, name) for name in HEADS] + list(vars(backdrop).values())


def test_gradients_reach_all_weights() -> None:
    """With checkpointing too, and then the same ones."""
    gradients = []
    for checkpointing in (False, True):
        model = network(replace(OWN, checkpointing=checkpointing))
        raw = model(*batch(OWN, 2))
        sum(values.square().mean() for values in numbers_of(raw)).backward()  # type: ignore[union-attr]
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7)


# ---- memory


class PeakMemory(TorchDispatchMode):
    """Most bytes that tensors made inside hold at once."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages = {parameter.untyped_storage()._cdata for parameter in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)):
            if storage._cdata not in self.storages:
                self.storages.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return result

    def _free(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.live -= size


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"decoder_ratio": 3}, torch.float32),
        ({"decoder_ratio": 3}, torch.bfloat16),
        ({"window_size": None, "decoder_ratio": 1}, torch.float32),
        ({"patch_size": 4, "decoder_ratio": 0}, torch.float32),
        ({"patch_size": 16, "width": 64, "decoder_ratio": 0}, torch.bfloat16),
        (vars(OWN), torch.float32),
        (vars(OWN) | {"patch_size": 16, "width": 64, "decoder_ratio": 0}, torch.bfloat16),
    ],
    ids=["upsampler", "upsampler in halves", "no windows", "encoder", "pictures", "guided", "guided pictures"],
)
def test_memory_estimate(changes: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grm_layers.CHUNK_NUMBERS, "cpu", 2**15)
    config = replace(RELEASED, **changes | {"layers": 1})
    model, views = network(config).to(dtype), some_views(4)
    with PeakMemory(model.parameters()) as memory:
        reconstruct(model, views)
    size = torch.empty(0, dtype=dtype).element_size()
    weights = size * sum(parameter.numel() for parameter in model.parameters())
    estimate = memory_needed(config, 4, 32, 32, size) - weights
    assert 1 < estimate / memory.peak < 2, (estimate, memory.peak)


def test_upsampler_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the streams of tokens, only what runs at once."""
    monkeypatch.setitem(grm_layers.CHUNK_NUMBERS, "cpu", 2**15)
    block = Block(64, window=64, shifted=True, qk_norm=False, checkpointing=False)
    x = torch.randn(1, 32 * 64, 64)
    with torch.no_grad(), PeakMemory(block.parameters()) as memory:
        block(x)
    assert memory.peak < 3.5 * x.nbytes  # rolled, parts, joined; all at once would be 12


def test_swapped_and_mirrored_views_differ() -> None:
    """The network's own view order and hand: a wrong camera cannot pass unnoticed."""
    model, views = network(RELEASED), some_views(4)
    order = [1, 0, 2, 3]
    want = reconstruct(model, views).means
    swapped = reconstruct(model, replace(views, images=views.images[order])).means
    mirrored = reconstruct(model, replace(views, images=views.images.flip(2))).means
    for other in (swapped, mirrored):
        assert float((other - want).abs().max()) > 1e-3


def test_one_gaussian_a_pixel() -> None:
    """The colour, opacity and scale ranges, unit rotations, and the order view, row, column."""
    views = some_views(4)
    gaussians = reconstruct(network(RELEASED), views)
    assert len(gaussians) == 4 * 32 * 32
    assert bool(((gaussians.colours > 0) & (gaussians.colours < 1)).all())
    assert bool(((gaussians.opacities > 0) & (gaussians.opacities < 1)).all())
    torch.testing.assert_close(gaussians.quats.norm(dim=1), torch.ones(len(gaussians)))
    ranges = gaussians.scales.min() / gaussians.scales.max()
    assert 0.25 < float(ranges) < 1  # 0.005 to 0.02
