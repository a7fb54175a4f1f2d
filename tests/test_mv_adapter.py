"""MV-Adapter: its layers, its cameras, its noise, and whole runs from folders of tiny models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from backend.bad_input import BadInput
from backend.cameras import rig_cameras
from backend.compositing import over
from backend.monitor import JobCancelled, Silent
from backend.multiview import Budget, Held, Wish, load, mv_adapter
from backend.multiview.mv_adapter_attention import ViewAttention, attach
from backend.multiview.mv_adapter_base import read_base, read_scheduler, start
from backend.multiview.mv_adapter_condition import camera_maps, shifted_betas
from blender_addon.front_ends import FRONT_ENDS
from tests.mv_adapter_folders import (
    DENOISERS,
    FULL,
    SIDE,
    TINY,
    attention_places,
    damage,
    published_shapes,
    write_adapter,
    write_base,
)

CPU = Budget(torch.device("cpu"))
WISH = Wish("a red chair", "", None, steps=2, guidance=3.0, seed=7)


class Watching(Silent):
    """Remembers what it was told; cancels at a step."""

    def __init__(self, cancel_at: int = -1) -> None:
        self.cancel_at = cancel_at
        self.steps: list[tuple[str, int, int]] = []
        self.previews: list[np.ndarray] = []

    def progress(self, stage: str, step: int, total: int) -> None:
        self.steps.append((stage, step, total))
        if step == self.cancel_at:
            raise JobCancelled

    def preview(self, image: np.ndarray) -> None:
        self.previews.append(image)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A folder with SDXL and both of its adapters, one with SD 2.1 and its."""
    folders = {xl: tmp_path_factory.mktemp("sdxl" if xl else "sd21") for xl in (True, False)}
    for xl, folder in folders.items():
        write_base(folder, xl=xl)
    for adapter in mv_adapter.ADAPTERS.values():
        write_adapter(folders[adapter.xl] / adapter.file, xl=adapter.xl, pictured=adapter.pictured)
    return folders


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of few pixels."""
    for name in mv_adapter.ADAPTERS:
        front_end = FRONT_ENDS[name]
        monkeypatch.setitem(FRONT_ENDS, name, replace(front_end, rig=replace(front_end.rig, side=SIDE)))


def picture(colour: tuple[float, float, float] = (0.9, 0.2, 0.1)) -> Tensor:
    image = torch.zeros(80, 80, 4)
    image[10:70, 20:60] = torch.tensor([*colour, 1.0])
    return image


def wish_for(name: str) -> Wish:
    return replace(WISH, picture=picture(), prompt="") if mv_adapter.ADAPTERS[name].pictured else WISH


def sampler_of(published: dict[bool, Path], name: str, budget: Budget = CPU) -> mv_adapter.MvAdapter:
    return mv_adapter.load(name, published[mv_adapter.ADAPTERS[name].xl], budget)


@pytest.mark.parametrize("name", mv_adapter.ADAPTERS)
def test_makes_views_offline(published: dict[bool, Path], loopback_only: None, name: str) -> None:
    sampler = load(name, published[mv_adapter.ADAPTERS[name].xl], CPU)
    wish, monitor = wish_for(name), Watching()
    views = sampler.sample(wish, monitor)
    assert views.shape == (6, SIDE, SIDE, 3) and views.dtype == torch.float32
    assert 0 <= views.min() and views.max() <= 1 and views.std() > 0.01
    assert torch.equal(views, sampler.sample(wish, Silent()))
    total = monitor.steps[-1][2]
    assert monitor.steps == [("views", step, total) for step in range(total + 1)]
    assert monitor.previews and monitor.previews[0].shape == (2 * SIDE // 8, 3 * SIDE // 8, 4)
    changed = {"seed": 8, "guidance": 1.0, "prompt": "something else", "negative_prompt": "blue"}
    if wish.picture is not None:
        changed["picture"] = picture((0.1, 0.2, 0.9))
    for field, value in changed.items():
        assert not torch.equal(views, sampler.sample(replace(wish, **{field: value}), Silent())), field


def test_the_denoiser_is_told_what_the_published_pipeline_tells_it(published: dict[bool, Path]) -> None:
    sampler = sampler_of(published, "mvadapter-sdxl-image")
    calls: list[tuple[Any, dict[str, Any]]] = []
    sampler.base.unet.register_forward_pre_hook(lambda _, given, named: calls.append((given, named)), with_kwargs=True)
    sampler.sample(wish_for("mvadapter-sdxl-image"), Silent())
    (latents, time, _), of_picture = calls[0]
    assert latents.shape == (1, 4, SIDE // 8, SIDE // 8) and time == 0
    assert "down_intrablock_additional_residuals" not in of_picture
    (latents, _, states), of_views = calls[1]
    added, reference = of_views["added_cond_kwargs"], of_views["cross_attention_kwargs"]["reference"]
    assert latents.shape[0] == states.shape[0] == 12
    assert torch.equal(latents[:6], latents[6:])
    assert added["time_ids"].tolist() == [[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 12
    assert torch.equal(states[6], states[11]) and not torch.equal(states[5], states[6])
    assert torch.equal(added["text_embeds"][6:], of_picture["added_cond_kwargs"]["text_embeds"].expand(6, -1))
    for seen in reference.values():
        assert (seen[0] == 0).all() and (seen[1] != 0).any()


def test_without_guidance_the_negative_prompt_counts_for_nothing(published: dict[bool, Path]) -> None:
    sampler = sampler_of(published, "mvadapter-sd21-image")
    wish = replace(wish_for("mvadapter-sd21-image"), guidance=1.0)
    assert torch.equal(sampler.sample(wish, Silent()), sampler.sample(replace(wish, negative_prompt="b"), Silent()))


@pytest.mark.parametrize("xl", [True, False])
def test_an_adapter_of_zeros_leaves_the_base_as_it_is(published: dict[bool, Path], tmp_path: Path, xl: bool) -> None:
    """With guidance, prompts, sizes, sampler and VAE as diffusers' own pipeline has them."""
    name = "mvadapter-sdxl" if xl else "mvadapter-sd21"
    for part in published[xl].iterdir():
        if part.is_dir():
            (tmp_path / part.name).symlink_to(part)
    write_adapter(tmp_path / mv_adapter.ADAPTERS[name].file, xl=xl, pictured=False, scale=0.0)
    wish = replace(WISH, negative_prompt="grey")
    views = mv_adapter.load(name, tmp_path, CPU).sample(wish, Silent())

    base = read_base(published[xl], xl=xl, dtype=torch.float32)
    parts: dict[str, Any] = {"vae": base.vae, "unet": base.unet, "scheduler": base.scheduler}
    parts |= {"tokenizer": base.towers[0].tokenizer, "text_encoder": base.towers[0].encoder}
    if xl:
        parts |= {"tokenizer_2": base.towers[1].tokenizer, "text_encoder_2": base.towers[1].encoder}
        pipeline: Any = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        none: Any = None
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=none, feature_extractor=none, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        [wish.prompt] * 6,
        negative_prompt=[wish.negative_prompt] * 6,
        height=SIDE,
        width=SIDE,
        num_inference_steps=wish.steps,
        guidance_scale=wish.guidance,
        latents=torch.randn(6, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(wish.seed)),
        output_type="pt",
    ).images
    assert torch.allclose(views, made.movedim(1, -1), atol=1e-4)


@pytest.mark.parametrize("name", ["mvadapter-sdxl", "mvadapter-sd21-image"])
def test_makes_one_view_anew(published: dict[bool, Path], name: str) -> None:
    sampler = sampler_of(published, name)
    wish = wish_for(name)
    images = torch.rand(6, SIDE, SIDE, 4, generator=torch.Generator().manual_seed(1))
    views = sampler.sample(replace(wish, held=Held(images, 2)), Silent())
    kept = over(images, 0.5)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(views[others], kept[others])
    assert not torch.allclose(views[2], kept[2], atol=0.01)
    assert not torch.equal(views[2], sampler.sample(wish, Silent())[2])  # it is made beside those that are kept
    again = images.clone()
    again[2] = 0
    assert torch.equal(views, sampler.sample(replace(wish, held=Held(again, 2)), Silent()))


def test_stops_when_cancelled(published: dict[bool, Path]) -> None:
    sampler = sampler_of(published, "mvadapter-sd21")
    monitor = Watching(cancel_at=1)
    with pytest.raises(JobCancelled):
        sampler.sample(WISH, monitor)
    assert [step for _, step, _ in monitor.steps] == [0, 1]
    assert sampler.sample(WISH, Silent()).isfinite().all()


@pytest.mark.parametrize("name", ["mvadapter-sdxl-image", "mvadapter-sd21"])
def test_a_small_budget_changes_nothing(published: dict[bool, Path], name: str) -> None:
    wish = wish_for(name)
    views = sampler_of(published, name).sample(wish, Silent())
    frugal = sampler_of(published, name, replace(CPU, offload=True, slicing=True))
    assert torch.allclose(views, frugal.sample(wish, Silent()), atol=1e-4)


def test_half_precision_is_near(published: dict[bool, Path]) -> None:
    wish = wish_for("mvadapter-sd21-image")
    views = sampler_of(published, "mvadapter-sd21-image").sample(wish, Silent())
    short = sampler_of(published, "mvadapter-sd21-image", replace(CPU, dtype=torch.bfloat16))
    assert next(short.base.unet.parameters()).dtype == torch.bfloat16
    assert (views - short.sample(wish, Silent())).abs().mean() < 0.02


def test_needs_a_picture(published: dict[bool, Path]) -> None:
    with pytest.raises(BadInput, match="picture: expected one"):
        sampler_of(published, "mvadapter-sd21-image").sample(WISH, Silent())


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("no adapter", "mvadapter_t2mv_sd21.safetensors: expected the adapter's published file, found none"),
        ("half an adapter", "expected a whole safetensors file"),
        ("other adapter", "expected no tensor .*to_k_ref.weight, found one"),
        ("lacking", "expected a tensor adapter.conv_in.bias, found none"),
        ("shape", r"expected adapter.conv_in.bias to be of shape \(8,\), found \(9,\)"),
        ("no scheduler", "scheduler_config.json: expected JSON"),
        ("foreign scheduler", "expected _class_name one of .* found 'HeunDiscreteScheduler'"),
        ("no unet", "unet"),
        ("foreign towers", "unet: expected one for texts of 16 numbers, found one for 32"),
        ("half a vae", "vae"),
        ("no tokenizer", "vocab.json"),
    ],
)
def test_refuses_broken_folders(published: dict[bool, Path], tmp_path: Path, broken: str, sentence: str) -> None:
    name, file = "mvadapter-sd21", mv_adapter.ADAPTERS["mvadapter-sd21"].file
    for part in published[False].rglob("*"):
        if part.is_file():
            copy = tmp_path / part.relative_to(published[False])
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(part.read_bytes())
    damage(tmp_path, file, broken)
    with pytest.raises(BadInput, match=sentence) as caught:
        mv_adapter.load(name, tmp_path, CPU)
    assert str(tmp_path) in str(caught.value)


def slow_attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """[N,C] of queries [N,C], keys and values [M,C]: head by head, query by query."""
    mixed = torch.zeros_like(queries)
    width = queries.shape[1] // heads
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        for number, query in enumerate(queries):
            weights = (keys[:, own] @ query[own] / math.sqrt(width)).softmax(0)
            mixed[number, own] = weights @ values[:, own]
    return mixed


def slow_views(layer: ViewAttention, hidden: Tensor, batch: int, heads: int) -> Tensor:
    """Of each pixel, over the same row of all views."""
    side = math.isqrt(hidden.shape[1])
    mixed = torch.zeros_like(hidden)
    for first in range(0, batch * layer.views, layer.views):
        for row in range(side):
            own = slice(row * side, (row + 1) * side)
            around = torch.cat([hidden[first + view, own] for view in range(layer.views)])
            for view in range(layer.views):
                mine = layer.to_q_mv(hidden[first + view, own])
                mixed[first + view, own] = slow_attention(mine, layer.to_k_mv(around), layer.to_v_mv(around), heads)
    return layer.to_out_mv[0](mixed)


@pytest.mark.parametrize("slicing", [True, False])
@pytest.mark.parametrize("pictured", [True, False])
def test_attention_is_that_of_explicit_loops(pictured: bool, slicing: bool) -> None:
    torch.manual_seed(0)
    batch, views, side, width, heads = 2, 3, 3, 8, 2
    attn: Any = Attention(query_dim=width, heads=heads, dim_head=width // heads)
    layer = ViewAttention(width, "here", views=views, pictured=pictured, slicing=slicing)
    hidden, seen = torch.randn(batch * views, side**2, width), torch.randn(batch, 5, width)
    with torch.no_grad():
        got = layer(attn, hidden, reference={"here": seen} if pictured else None)
        own = [slow_attention(attn.to_q(each), attn.to_k(each), attn.to_v(each), heads) for each in hidden]
        want = attn.to_out[0](torch.stack(own)) + slow_views(layer, hidden, batch, heads)
        if pictured:
            for number in range(len(hidden)):
                there = seen[number // views]
                found = slow_attention(
                    layer.to_q_ref(hidden[number]), layer.to_k_ref(there), layer.to_v_ref(there), heads
                )
                want[number] += layer.to_out_ref[0](found)
    assert torch.allclose(got, want, atol=1e-5)


def test_a_picture_is_seen_as_without_the_adapter() -> None:
    torch.manual_seed(0)
    plain = UNet2DConditionModel(sample_size=8, **DENOISERS[False], **TINY[False]).eval()
    latents, states = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        want = plain(latents, 0, states).sample
        attach(plain, views=6, pictured=True, slicing=False)
        got = plain(latents, 0, states, cross_attention_kwargs={"write": seen}).sample
    assert torch.allclose(got, want, atol=1e-5)
    assert set(seen) == {place for place, _ in attention_places(xl=False, widths=(8, 16, 32, 32), depths=(1,) * 4)}
    assert seen["down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor"].shape == (1, 16, 16)


def test_camera_maps_are_those_worked_out_by_hand() -> None:
    rig = replace(FRONT_ENDS["mvadapter-sdxl"].rig, side=4)
    maps = camera_maps(rig_cameras(rig))
    assert maps.shape == (6, 6, 4, 4)
    assert torch.allclose(maps, maps[:, :, :1, :1].expand_as(maps))  # parallel rays
    half = math.sqrt(0.5) / 2
    want = [  # direction and place: (x+1)/2, the front being on -Y and azimuth 90 on +X
        [0.5, 1, 0.5, 0.5, 0, 0.5],
        [0.5 - half, 0.5 + half, 0.5, 0.5 + half, 0.5 - half, 0.5],
        [0, 0.5, 0.5, 1, 0.5, 0.5],
        [0.5, 0, 0.5, 0.5, 1, 0.5],
        [1, 0.5, 0.5, 0, 0.5, 0.5],
        [0.5 + half, 0.5 + half, 0.5, 0.5 - half, 0.5 - half, 0.5],
    ]
    assert torch.allclose(maps[:, :, 0, 0], torch.tensor(want), atol=1e-6)


def test_orthographic_cameras_are_as_wide_as_the_rig_says() -> None:
    cameras = rig_cameras(FRONT_ENDS["mvadapter-sd21"].rig)
    assert cameras.orthographic.all()
    right = cameras.c2w[2, :3, 0]  # of the view from +X
    assert torch.allclose(right, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    corner = cameras.Ks[0] @ torch.tensor([0.55, -0.55, 1.0])
    assert torch.allclose(corner, torch.tensor([SIDE, 0.0, 1.0]), atol=1e-4)


def test_noise_grows_as_published() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    shifted = np.cumprod(1 - shifted_betas(torch.from_numpy(kept), 8.0).numpy())
    for step in (0, 1, 300, 999):
        before, after = (each[step] / (1 - each[step]) for each in (kept, shifted))
        weight = step / 999
        want = math.exp((1 - weight) * math.log(before) + weight * math.log(before / 8))
        assert after == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("xl", [True, False])
def test_the_sampler_is_the_bases_with_more_noise(published: dict[bool, Path], xl: bool) -> None:
    scheduler: Any = read_scheduler(published[xl] / "scheduler" / "scheduler_config.json")
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    last = np.prod(1 - betas)
    assert type(scheduler).__name__ == ("EulerDiscreteScheduler" if xl else "PNDMScheduler")
    assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(last / 8 / (1 - last + last / 8), rel=1e-3)
    assert int(start(scheduler, 50).timesteps[0]) == 981  # "leading", from 1 on


@pytest.mark.parametrize("name", mv_adapter.ADAPTERS)
def test_full_size_weights_are_the_published_ones(name: str) -> None:
    adapter = mv_adapter.ADAPTERS[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**DENOISERS[adapter.xl], **FULL[adapter.xl])
        attach(unet, views=6, pictured=adapter.pictured, slicing=False)
        encoder = mv_adapter.make_camera_encoder(unet, xl=adapter.xl)
    found = {key: tuple(weight.shape) for key, weight in mv_adapter.adapter_weights(unet, encoder).items()}
    sizes = FULL[adapter.xl]
    depths = sizes.get("transformer_layers_per_block", (1,) * 4)
    pictured = adapter.pictured
    assert found == published_shapes(
        xl=adapter.xl, pictured=pictured, widths=sizes["block_out_channels"], depths=depths
    )
    stored = {  # gigabytes of the published files, of float32
        "mvadapter-sdxl": 1.96,
        "mvadapter-sdxl-image": 3.6,
        "mvadapter-sd21": 0.5,
        "mvadapter-sd21-image": 0.7,
    }
    assert 4e-9 * sum(map(math.prod, found.values())) == pytest.approx(stored[name], rel=0.02)
