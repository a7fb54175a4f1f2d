"""Instant3D from folders in its published layout with tiny random weights, and the arithmetic of its sampling."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from backend import multiview
from backend.bad_input import BadInput
from backend.monitor import JobCancelled, Silent
from backend.multiview import Budget
from backend.multiview import instant3d as subject
from backend.multiview.grids import to_views
from tests import tiny_diffusion
from tests.sampling import Watcher, held, picture, shrink, wish
from tests.sdxl_layout import LAYERS, publish

NAME = "instant3d"
CPU = Budget(torch.device("cpu"))
SCALING = 0.13025
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    # diffusers declares tuples of one
    down: Any = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    up: Any = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    sizes: Any = (8, 8, 16)
    depths: Any = (1, 1, 2)
    return UNet2DConditionModel(
        down_block_types=down,
        up_block_types=up,
        block_out_channels=sizes,
        layers_per_block=LAYERS,
        norm_num_groups=4,
        cross_attention_dim=64,
        transformer_layers_per_block=depths,
        attention_head_dim=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32 + 6 * 4,
        sample_size=128,
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: the denoiser in one file, the other parts as SDXL's repository has them."""
    folder = tmp_path_factory.mktemp("instant3d")
    unet = tiny_unet()
    unet.save_config(folder / "unet")
    publish(folder / "instant3d.pth", unet.state_dict())
    tiny_diffusion.vae(scaling=SCALING).save_pretrained(folder / "vae")
    tiny_diffusion.text_encoder(seed=1).save_pretrained(folder / "text_encoder")
    tiny_diffusion.text_encoder(seed=2, projected=True).save_pretrained(folder / "text_encoder_2")
    tiny_diffusion.tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    tiny_diffusion.tokenizer(folder / "tokenizer_2")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> subject.Instant3D:
    """The model with views of 64 pixels."""
    shrink(monkeypatch, NAME)
    return subject.load(NAME, folder, CPU)


CHAIR = wish(prompt="a red chair", guidance=5.0)


@pytest.mark.usefixtures("loopback_only")
def test_a_published_folder_gives_four_views(folder: Path) -> None:
    watcher = Watcher()
    views = multiview.load(NAME, folder, CPU).sample(CHAIR, watcher)
    assert views.shape == (4, 512, 512, 3) and views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1 and views.std() > 0.01
    assert watcher.steps == [("views", 1, 2), ("views", 2, 2)]
    assert watcher.previews[0].shape == (2 * 64, 2 * 64, 4)


@pytest.mark.usefixtures("loopback_only")
def test_the_denoiser_may_lie_in_the_layout_of_diffusers(
    folder: Path, small: subject.Instant3D, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "instant3d.pth").unlink()
    tiny_unet().save_pretrained(tmp_path / "copy" / "unet")
    other = subject.load(NAME, tmp_path / "copy", CPU)
    assert torch.equal(*(model.sample(CHAIR, Silent()) for model in (small, other)))


def test_a_seed_says_it_all(small: subject.Instant3D) -> None:
    first, again, other = (small.sample(replace(CHAIR, seed=seed), Silent()) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


@pytest.mark.parametrize("change", [{"prompt": "a blue cup"}, {"negative_prompt": "wood"}, {"guidance": 1.0}])
def test_the_words_count(small: subject.Instant3D, change: dict[str, Any]) -> None:
    one, other = (small.sample(asked, Silent()) for asked in (CHAIR, replace(CHAIR, **change)))
    assert (one - other).abs().max() > 1e-5


def test_a_cancelled_job_ends_between_steps(small: subject.Instant3D) -> None:
    watcher = Watcher(cancel_at=2)
    with pytest.raises(JobCancelled):
        small.sample(replace(CHAIR, steps=5), watcher)
    assert watcher.steps == [("views", 1, 5), ("views", 2, 5)]


def test_a_small_budget_changes_nothing_but_memory(folder: Path, small: subject.Instant3D) -> None:
    frugal = subject.load(NAME, folder, replace(CPU, offload=True, slicing=True))
    one, other = (model.sample(CHAIR, Silent()) for model in (small, frugal))
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_close(folder: Path, small: subject.Instant3D, dtype: torch.dtype) -> None:
    coarse = subject.load(NAME, folder, replace(CPU, dtype=dtype))
    one, other = (model.sample(CHAIR, Silent()) for model in (small, coarse))
    assert 0 < (one - other).abs().mean() < 0.05


def test_views_that_are_kept_stay(small: subject.Instant3D, monkeypatch: pytest.MonkeyPatch) -> None:
    made = decoded_by(small, monkeypatch)
    keep = held(NAME, redo=1)
    small.sample(replace(CHAIR, held=keep), Silent())
    views, known = to_views(made[0], 2), to_views(small._known(keep), 2)
    same = [torch.allclose(view, other, atol=1e-5) for view, other in zip(views, known, strict=True)]
    assert same == [True, False, True, True]


def test_views_that_are_kept_are_there_from_the_start(small: subject.Instant3D) -> None:
    model, fake = with_fake(small, 0.0, 0.0)
    keep = held(NAME, redo=1)
    model.sample(replace(CHAIR, seed=5, steps=1, held=keep), Silent())
    chance = torch.Generator().manual_seed(5)
    torch.randn(1, 4, 16, 16, generator=chance)  # of the code of the blobs
    noise, sigma = torch.randn(1, 4, 16, 16, generator=chance), sigma_at(999)
    expected = (small._known(keep) + sigma * noise) / (sigma**2 + 1) ** 0.5
    found = to_views(fake.asked[0]["latents"][:1], 2)
    assert torch.allclose(found[0], to_views(expected, 2)[0], atol=1e-4)
    assert not torch.allclose(found[1], to_views(expected, 2)[1], atol=1e-4)


def decoded_by(model: subject.Instant3D, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Gets the latents that the model decodes."""
    made: list[Tensor] = []
    decoded = model._decoded
    monkeypatch.setattr(model, "_decoded", lambda latents: made.append(latents) or decoded(latents))
    return made


# ---- folders that are not right


@pytest.mark.parametrize(
    "missing",
    ["unet/config.json", "vae/config.json", "text_encoder_2/model.safetensors", "tokenizer_2/merges.txt"],
)
@pytest.mark.usefixtures("loopback_only")
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, missing: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    file = (tmp_path / "copy").joinpath(*missing.split("/"))
    file.unlink()
    with pytest.raises(BadInput, match=re.escape(str(file.parent))):
        subject.load(NAME, tmp_path / "copy", CPU)


@pytest.mark.parametrize("written", ["{", "[]", '{"down_block_types": ["NoBlock"]}'])
def test_a_foreign_configuration_is_refused(folder: Path, tmp_path: Path, written: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "unet" / "config.json").write_text(written)
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path / 'copy' / 'unet'}: expected a UNet2DConditionModel")):
        subject.load(NAME, tmp_path / "copy", CPU)


@pytest.mark.usefixtures("loopback_only")
def test_without_any_denoiser_the_folder_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "instant3d.pth").unlink()
    with pytest.raises(BadInput, match="unet: expected one of"):
        subject.load(NAME, tmp_path / "copy", CPU)


def lacking(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != "mid_block.resnets.0.conv1.weight"}


def misshapen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"conv_in.weight": torch.zeros(8, 9, 3, 3)}


def empty(state: dict[str, Tensor]) -> dict[str, Tensor]:
    del state
    return {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lacking, "1 tensor missing .mid_block.resnets.0.conv1.weight"),
        (misshapen, "wrong shape"),
        (empty, "expected tensors named .*, found none"),
    ],
)
def test_a_foreign_checkpoint_is_refused(folder: Path, tmp_path: Path, change: Any, found: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    publish(tmp_path / "copy" / "instant3d.pth", change(dict(tiny_unet().state_dict())))
    with pytest.raises(BadInput, match=f"instant3d.pth: .*{found}"):
        subject.load(NAME, tmp_path / "copy", CPU)


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_a_checkpoint_that_would_run_something_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    torch.save({"model.diffusion_model.trap": Trap()}, tmp_path / "copy" / "instant3d.pth")
    with pytest.raises(BadInput, match="nothing of it was run"):
        subject.load(NAME, tmp_path / "copy", CPU)
    assert "run" not in capsys.readouterr().out


def test_half_a_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "instant3d.pth"
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(BadInput, match=re.escape(f"{file}")):
        subject.load(NAME, tmp_path / "copy", CPU)


# ---- the arithmetic


def slow_blobs(side: int) -> Tensor:
    """Pixel by pixel: a blob in a picture twice as large, of which each pixel of a view is the mean of four."""
    large, deviation = 2 * side, 0.1 * 2 * side
    view = torch.zeros(side, side)
    for row in range(large):
        for column in range(large):
            squared = (row - large // 2) ** 2 + (column - large // 2) ** 2
            view[row // 2, column // 2] += (1 - math.exp(-squared / (2 * deviation**2))) / 4
    above = torch.cat([view, view], 1)
    return (2 * torch.cat([above, above], 0) - 1).expand(1, 3, -1, -1)


def test_blobs_lie_in_the_middle_of_each_view() -> None:
    found = subject.blobs(16)
    assert torch.allclose(found, slow_blobs(16), atol=1e-6)
    large = subject.blobs(512)[0, 0]
    assert large.shape == (1024, 1024)
    assert large[0, 0] > 0.999 and large[256, 256] < -0.999 and large[768, 256] < -0.999
    one_deviation = 256 + round(0.1 * 512)
    assert abs(large[256, one_deviation] - (1 - 2 * math.exp(-0.5))) < 0.02


def test_a_large_picture_is_decoded_in_parts_where_memory_is_small(folder: Path) -> None:
    sizes: list[int] = []
    for slicing in (False, True):
        vae: Any = subject.load(NAME, folder, replace(CPU, slicing=slicing)).parts.vae
        vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[-1]))
        with torch.no_grad():
            vae.decode(torch.zeros(1, 4, 128, 128))
    assert sizes[0] == 128 and max(sizes[1:]) == 64


def test_times_are_even_and_begin_at_the_last() -> None:
    times = subject.times_of(30)
    assert len(times) == 30 and times[0] == 999 and times[-1] == 33
    assert {before - after for before, after in itertools.pairwise(times)} == {33, 34}
    assert subject.times_of(1) == [999]


class FakeUnet(nn.Module):
    """Says `first` of the first picture of a batch and `second` of the second, and remembers what it was asked."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.said = torch.tensor([first, second])
        self.asked: list[dict[str, Any]] = []

    def forward(
        self, latents: Tensor, time: Tensor, tokens: Tensor, added_cond_kwargs: dict[str, Tensor]
    ) -> SimpleNamespace:
        self.asked.append({"latents": latents, "time": time.item(), "tokens": tokens, **added_cond_kwargs})
        return SimpleNamespace(sample=self.said[-len(latents) :, None, None, None].expand_as(latents))


def with_fake(model: subject.Instant3D, first: float, second: float) -> tuple[subject.Instant3D, FakeUnet]:
    fake = FakeUnet(first, second)
    unet: Any = fake
    return subject.Instant3D(model.rig, replace(model.parts, unet=unet), model.budget), fake


def sigma_at(time: int) -> float:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)[time]
    return float(((1 - kept) / kept).sqrt())


def test_one_step_by_hand(small: subject.Instant3D, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fake = with_fake(small, 0.2, 0.5)
    made = decoded_by(model, monkeypatch)
    model.sample(replace(CHAIR, steps=1, guidance=3.0, seed=11), Silent())

    sigma = sigma_at(999)
    chance = torch.Generator().manual_seed(11)
    vae: Any = small.parts.vae
    with torch.no_grad():
        code = vae.encode(slow_blobs(64)).latent_dist.sample(chance) * SCALING
    start = code + sigma * torch.randn(1, 4, 16, 16, generator=chance)
    (asked,) = fake.asked
    assert asked["time"] == 999
    assert torch.allclose(asked["latents"], (start / (sigma**2 + 1) ** 0.5).expand(2, -1, -1, -1), atol=1e-4)
    assert torch.allclose(made[0], start - sigma * (0.2 + 3.0 * (0.5 - 0.2)), atol=1e-3)


def test_prompts_are_read_by_both_encoders(small: subject.Instant3D) -> None:
    model, fake = with_fake(small, 0.0, 0.0)
    model.sample(CHAIR, Silent())
    asked = fake.asked[0]
    assert asked["time_ids"].tolist() == [[128, 128, 0, 0, 128, 128]] * 2
    nothing, told = asked["tokens"]
    assert not nothing.any() and not asked["text_embeds"][0].any()
    for number, tower in enumerate(small.parts.towers):
        ids = tower.tokenizer("a red chair", padding="max_length", max_length=77)["input_ids"]
        encoder: Any = tower.encoder
        with torch.no_grad():
            read = encoder(torch.tensor([ids]), output_hidden_states=True)
        assert torch.allclose(told[:, number * 32 : (number + 1) * 32], read.hidden_states[2][0], atol=1e-5)
    assert torch.allclose(asked["text_embeds"][1], read.text_embeds[0], atol=1e-5)


def test_a_picture_is_not_looked_at(small: subject.Instant3D) -> None:
    one, other = (small.sample(asked, Silent()) for asked in (CHAIR, replace(CHAIR, picture=picture())))
    assert torch.equal(one, other)
