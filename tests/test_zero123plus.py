"""Zero123++ from folders in its published layout with tiny random weights, and the arithmetic of its sampling."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend import multiview
from backend.bad_input import BadInput
from backend.monitor import JobCancelled, Silent
from backend.multiview import Budget
from backend.multiview import zero123plus as subject
from backend.multiview.grids import to_grid, to_views
from tests import tiny_diffusion
from tests.sampling import Watcher, held, picture, shrink, wish

NAME = "zero123plus-1.2"
CPU = Budget(torch.device("cpu"))
SCHEDULER = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "_diffusers_version": "0.20.2",
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "linspace",
    "trained_betas": None,
}
PARTS = {
    "feature_extractor_clip": ["transformers", "CLIPImageProcessor"],
    "feature_extractor_vae": ["transformers", "CLIPImageProcessor"],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "vision_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    # diffusers declares tuples of one
    down: Any = ("DownBlock2D", "CrossAttnDownBlock2D")
    up: Any = ("CrossAttnUpBlock2D", "UpBlock2D")
    sizes: Any = (8, 16)
    return UNet2DConditionModel(
        down_block_types=down,
        up_block_types=up,
        block_out_channels=sizes,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=4,
        use_linear_projection=True,
        sample_size=96,
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: the text encoder's tensors have a prefix that today's library does not write."""
    folder = tmp_path_factory.mktemp("zero123plus")
    tiny_unet().save_pretrained(folder / "unet")
    tiny_diffusion.vae().save_pretrained(folder / "vae")
    tiny_diffusion.text_encoder().save_pretrained(folder / "text_encoder")
    tensors = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(tensors).items()}
    save_file(state, tensors, {"format": "pt"})
    tiny_diffusion.image_encoder().save_pretrained(folder / "vision_encoder")
    tiny_diffusion.tokenizer(folder / "tokenizer")
    tiny_diffusion.image_processor(folder / "feature_extractor_clip")
    tiny_diffusion.image_processor(folder / "feature_extractor_vae")
    processor = folder / "feature_extractor_vae" / "preprocessor_config.json"
    own = {"image_mean": [0.5] * 3, "image_std": [0.8] * 3, "do_center_crop": False, "size": {"shortest_edge": 64}}
    processor.write_text(json.dumps(json.loads(processor.read_text()) | own))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = {"_class_name": ["pipeline", "Zero123PlusPipeline"], "_diffusers_version": "0.20.2", **PARTS}
    index["ramping_coefficients"] = [number / 76 for number in range(77)]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> subject.Zero123Plus:
    """The model with views of 64 pixels."""
    shrink(monkeypatch, NAME)
    return subject.load(NAME, folder, CPU)


@pytest.mark.usefixtures("loopback_only")
def test_a_published_folder_gives_six_views(folder: Path) -> None:
    watcher = Watcher()
    views = multiview.load(NAME, folder, CPU).sample(wish(shown=picture()), watcher)
    assert views.shape == (6, 320, 320, 3) and views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1 and views.std() > 0.01
    assert watcher.steps == [("views", 1, 2), ("views", 2, 2)]
    assert watcher.previews[0].shape == (2 * 40, 3 * 40, 4)


def test_the_version_before_has_other_cameras_alone(
    folder: Path, small: subject.Zero123Plus, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, "zero123plus-1.1")
    before = multiview.load("zero123plus-1.1", folder, CPU)
    assert torch.equal(*(model.sample(wish(shown=picture()), Silent()) for model in (small, before)))


def test_a_seed_says_it_all(small: subject.Zero123Plus) -> None:
    first, again, other = (small.sample(wish(shown=picture(), seed=seed), Silent()) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


def test_the_picture_counts(small: subject.Zero123Plus) -> None:
    mirrored = picture().flip(1)
    one, other = (small.sample(wish(shown=shown), Silent()) for shown in (picture(), mirrored))
    assert (one - other).abs().max() > 1e-3


def test_no_picture_is_refused(small: subject.Zero123Plus) -> None:
    with pytest.raises(BadInput, match="picture: expected one"):
        small.sample(wish(prompt="a red chair"), Silent())


def test_a_cancelled_job_ends_between_steps(small: subject.Zero123Plus) -> None:
    watcher = Watcher(cancel_at=2)
    with pytest.raises(JobCancelled):
        small.sample(wish(shown=picture(), steps=5), watcher)
    assert watcher.steps == [("views", 1, 5), ("views", 2, 5)]


def test_a_small_budget_changes_nothing_but_memory(folder: Path, small: subject.Zero123Plus) -> None:
    frugal = subject.load(NAME, folder, replace(CPU, offload=True, slicing=True))
    one, other = (model.sample(wish(shown=picture()), Silent()) for model in (small, frugal))
    assert torch.allclose(one, other, atol=1e-4)


def test_half_precision_comes_close(folder: Path, small: subject.Zero123Plus) -> None:
    coarse = subject.load(NAME, folder, replace(CPU, dtype=torch.bfloat16))
    one, other = (model.sample(wish(shown=picture()), Silent()) for model in (small, coarse))
    assert 0 < (one - other).abs().mean() < 0.05


def test_views_that_are_kept_stay(small: subject.Zero123Plus, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    decoded = small._decoded
    monkeypatch.setattr(small, "_decoded", lambda latents: made.append(latents) or decoded(latents))
    keep = held(NAME, redo=4)
    small.sample(replace(wish(shown=picture()), held=keep), Silent())
    views, known = to_views(made[0], 2), to_views(small._known(keep), 2)
    same = [torch.allclose(view, other, atol=1e-5) for view, other in zip(views, known, strict=True)]
    assert same == [True, True, True, True, False, True]


# ---- folders that are not right


def broken(folder: Path, into: Path, *parts: str) -> Path:
    """A file in a copy of the folder."""
    shutil.copytree(folder, into / "copy")
    return (into / "copy").joinpath(*parts)


@pytest.mark.parametrize(
    "missing",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "vision_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
        "feature_extractor_vae/preprocessor_config.json",
        "model_index.json",
    ],
)
@pytest.mark.usefixtures("loopback_only")
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, missing: str) -> None:
    file = broken(folder, tmp_path, *missing.split("/"))
    file.unlink()
    with pytest.raises(BadInput) as caught:
        subject.load(NAME, tmp_path / "copy", CPU)
    assert (str(file) if file.suffix == ".json" else str(file.parent)) in str(caught.value)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_missing_tensor_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    file = broken(folder, tmp_path, *f"{part}.safetensors".split("/"))
    state = load_file(file)
    lost = next(name for name in sorted(state) if "weight" in name)
    save_file({name: tensor for name, tensor in state.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(BadInput, match=f"1 missing, as {lost.removeprefix('text_model.')}"):
        subject.load(NAME, tmp_path / "copy", CPU)


@pytest.mark.parametrize("part", ["vae/diffusion_pytorch_model", "vision_encoder/model"])
def test_half_a_file_is_refused(folder: Path, tmp_path: Path, part: str) -> None:
    file = broken(folder, tmp_path, *f"{part}.safetensors".split("/"))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BadInput, match=str(file.parent)):
        subject.load(NAME, tmp_path / "copy", CPU)


@pytest.mark.parametrize("ramp", [[0.5] * 10, "none", [[1.0]], [math.nan] * 77])
def test_a_foreign_ramp_is_refused(folder: Path, tmp_path: Path, ramp: object) -> None:
    file = broken(folder, tmp_path, "model_index.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ramping_coefficients": ramp}))
    with pytest.raises(BadInput, match="ramping_coefficients"):
        subject.load(NAME, tmp_path / "copy", CPU).sample(wish(shown=picture()), Silent())


# ---- the arithmetic


def test_scalings_have_inverses() -> None:
    values = torch.linspace(-3, 3, 50)
    assert torch.allclose(subject.unscale_latents(subject.scale_latents(values)), values, atol=1e-6)
    assert torch.allclose(subject.unscale_image(subject.scale_image(values)), values, atol=1e-6)
    assert torch.allclose(subject.scale_latents(torch.tensor(1.22)), torch.tensor(0.75))
    assert torch.allclose(subject.scale_image(torch.tensor(0.8)), torch.tensor(0.5))


def test_views_lie_row_by_row() -> None:
    grid = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3], [4, 4, 5, 5], [4, 4, 5, 6]]).float()
    views = to_views(grid[None, None], 2)
    assert views.shape == (6, 1, 2, 2)
    assert views[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert views[5, 0].tolist() == [[5, 5], [5, 6]]
    assert torch.equal(to_grid(views, 2), grid[None, None])


class FakeUnet(nn.Module):
    """Says `first` of the first picture of a batch and `second` of the second, and remembers what it was asked."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.said = torch.tensor([first, second])
        self.asked: list[dict[str, Any]] = []

    def forward(
        self, latents: Tensor, time: Tensor, tokens: Tensor, cross_attention_kwargs: dict[str, dict[str, Tensor]]
    ) -> SimpleNamespace:
        way = next(iter(cross_attention_kwargs))
        self.asked.append({"latents": latents, "time": time.item(), "tokens": tokens, "way": way})
        said = self.said[-len(latents) :, None, None, None]
        return SimpleNamespace(sample=said.expand_as(latents))


def sigma_at(time: int) -> float:
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)[time]
    return float(((1 - kept) / kept).sqrt())


def with_fake(model: subject.Zero123Plus, first: float, second: float) -> tuple[subject.Zero123Plus, FakeUnet]:
    fake = FakeUnet(first, second)
    unet: Any = fake
    return subject.Zero123Plus(model.front_end, replace(model.parts, unet=unet), model.budget), fake


def test_one_step_by_hand(small: subject.Zero123Plus, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fake = with_fake(small, 0.2, 0.5)
    made: list[Tensor] = []
    decoded = model._decoded
    monkeypatch.setattr(model, "_decoded", lambda latents: made.append(latents) or decoded(latents))
    model.sample(wish(shown=picture(), steps=1, guidance=3.0, seed=11), Silent())

    sigma = sigma_at(999)
    chance = torch.Generator().manual_seed(11)
    torch.randn(2, 4, 8, 8, generator=chance)  # of the codes of the picture and the grey one
    start = torch.randn(1, 4, 24, 16, generator=chance) * sigma
    wrote, read = fake.asked
    assert (wrote["way"], read["way"], wrote["time"], read["time"]) == ("write", "read", 999, 999)
    assert torch.allclose(read["latents"], (start / (sigma**2 + 1) ** 0.5).expand(2, -1, -1, -1), atol=1e-5)
    said = 0.2 + 3.0 * (0.5 - 0.2)
    clean = start / (sigma**2 + 1) - said * sigma / (sigma**2 + 1) ** 0.5  # Salimans and Ho 2022, v-prediction
    assert torch.allclose(made[0], clean, atol=1e-4)


def test_the_reference_is_as_noisy_as_the_views(small: subject.Zero123Plus) -> None:
    model, fake = with_fake(small, 0.0, 0.0)
    model.sample(wish(shown=picture(), steps=2, seed=5), Silent())
    chance = torch.Generator().manual_seed(5)
    grey, shown = small._latents(small_image(), chance)[::-1]
    torch.randn(1, 4, 24, 16, generator=chance)
    sigma = sigma_at(999)
    noisy = torch.cat([grey, shown]) + sigma * torch.randn(2, 4, 8, 8, generator=chance)
    assert torch.allclose(fake.asked[0]["latents"], noisy / (sigma**2 + 1) ** 0.5, atol=1e-5)
    assert [asked["time"] for asked in fake.asked] == [999, 999, 499, 499]


def test_views_that_are_kept_are_there_from_the_start(small: subject.Zero123Plus) -> None:
    model, fake = with_fake(small, 0.0, 0.0)
    keep = held(NAME, redo=4)
    model.sample(replace(wish(shown=picture(), steps=1, seed=5), held=keep), Silent())
    chance = torch.Generator().manual_seed(5)
    torch.randn(2, 4, 8, 8, generator=chance)  # of the codes of the picture and the grey one
    noise, sigma = torch.randn(1, 4, 24, 16, generator=chance), sigma_at(999)
    expected = to_views((small._known(keep) + sigma * noise) / (sigma**2 + 1) ** 0.5, 2)
    found = to_views(fake.asked[1]["latents"][:1], 2)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert not torch.allclose(found[4], expected[4], atol=1e-5)


def small_image() -> Image.Image:
    """The tests' picture on grey."""
    colours, alpha = picture()[..., :3], picture()[..., 3:]
    return Image.fromarray(((colours * alpha + 0.5 * (1 - alpha)) * 255).round().byte().numpy())


def test_the_picture_is_added_to_an_empty_prompt(small: subject.Zero123Plus) -> None:
    model, fake = with_fake(small, 0.0, 0.0)
    model.sample(wish(shown=picture(), steps=1), Silent())
    empty, told = fake.asked[0]["tokens"]
    parts = small.parts
    pixels = parts.for_clip(images=small_image(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embedding = parts.vision_encoder(pixels).image_embeds[0]
        ids = torch.tensor([[188] + [189] + [0] * 75])  # start, end, and the tokenizer's padding
        assert torch.allclose(empty, parts.text_encoder(ids)[0], atol=1e-5)
    assert torch.allclose(told[0], empty[0], atol=1e-6)  # the ramp starts at 0
    assert torch.allclose(told[76] - empty[76], embedding, atol=1e-5)  # and ends at 1
    assert torch.allclose(told[38] - empty[38], embedding / 2, atol=1e-5)


def test_without_guidance_nothing_grey_is_asked(small: subject.Zero123Plus) -> None:
    model, fake = with_fake(small, 0.0, 0.3)
    model.sample(wish(shown=picture(), guidance=1.0), Silent())
    assert {len(asked["latents"]) for asked in fake.asked} == {1}


def test_every_self_attention_layer_writes(small: subject.Zero123Plus) -> None:
    unet, seen = small.parts.unet, {}
    latents, tokens = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        small._unet(latents, torch.tensor(500), tokens, write=seen)
    assert set(seen) == {name for name in unet.attn_processors if ".attn1." in name}
    assert len(seen) == 4
