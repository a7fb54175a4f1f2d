"""The starter's generator: its network, its sampler, its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from backend.bad_input import BadInput
from backend.monitor import JobCancelled, Silent
from backend.multiview import Budget, Held, Wish, load
from backend.multiview.starter import FILE, StarterSampler, described, read_network, shown
from backend.multiview.starter_network import Autoencoder, StarterConfig, StarterViews, config_from, shifted

TINY = StarterConfig(
    side=32,
    square=8,
    channels=4,
    fold=4,
    features=8,
    decoder=(1, 1),
    patch=2,
    width=16,
    layers=2,
    heads=2,
    words=6,
    text=8,
)
CPU = Budget(torch.device("cpu"))


class FakeWords:
    """Each letter is a token."""

    def __call__(self, prompts: list[str], most: int) -> Tensor:
        states = torch.zeros(len(prompts), most, TINY.text)
        for row, text in enumerate(prompts):
            for place, letter in enumerate(text[:most]):
                states[row, place] = torch.randn(TINY.text, generator=torch.Generator().manual_seed(ord(letter)))
        return states


def network(seed: int = 0) -> StarterViews:
    torch.manual_seed(seed)
    made = StarterViews(TINY)
    made.autoencoder.learn_components(torch.rand(8, 4, 4, 32, 32))
    for weight in (made.denoiser.latents_out.weight, made.denoiser.latents_out.bias):
        torch.nn.init.normal_(weight, std=0.5)  # at first it tells no velocity at all
    return made.eval()


@pytest.fixture(scope="module")
def sampler() -> StarterSampler:
    return StarterSampler(network(), cast(Any, FakeWords()), CPU)


def wish(**changes: Any) -> Wish:
    given = {"prompt": "chair", "negative_prompt": "", "picture": None, "steps": 3, "guidance": 2.0, "seed": 1}
    return Wish(**given | changes)


def sampled(sampler: StarterSampler, **changes: Any) -> Tensor:
    return sampler.sample(wish(**changes), Silent())


def test_views_are_pictures_with_alpha(sampler: StarterSampler):
    views = sampled(sampler)
    assert views.shape == (4, 32, 32, 4) and views.dtype == torch.float32
    assert views.isfinite().all() and views.min() >= 0 and views.max() <= 1


def test_a_seed_makes_the_views_and_another_seed_others(sampler: StarterSampler):
    assert torch.equal(sampled(sampler), sampled(sampler))
    assert not torch.equal(sampled(sampler), sampled(sampler, seed=2))


CHANGES: list[dict[str, Any]] = [
    {"prompt": "cup"},
    {"negative_prompt": "ugly"},
    {"guidance": 4.0},
    {"picture": torch.full((32, 32, 4), 0.7)},
]


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_is_wished_counts(sampler: StarterSampler, change: dict[str, Any]):
    assert not torch.equal(sampled(sampler), sampled(sampler, **change))


def test_guidance_of_one_is_the_wish_alone(sampler: StarterSampler):
    plain, nothing = sampled(sampler, guidance=1.0), sampled(sampler, guidance=1.0, negative_prompt="ugly")
    torch.testing.assert_close(plain, nothing, atol=1e-4, rtol=0)


def test_held_views_stay_and_lead_the_one_that_is_made_anew(sampler: StarterSampler):
    before = sampled(sampler)
    after = sampled(sampler, seed=9, held=Held(before, redo=2))
    assert not torch.equal(after[2], sampled(sampler, seed=9)[2])
    assert not torch.equal(after[2], before[2])
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])
    other = before.clone()
    other[2] = torch.rand(other[2].shape)
    assert torch.equal(sampled(sampler, seed=9, held=Held(other, redo=2)), after), "what is redone is not looked at"


def test_tells_its_steps_shows_previews_and_stops_when_cancelled(sampler: StarterSampler):
    class Watching(Silent):
        def __init__(self, stop: int) -> None:
            self.stop, self.told, self.shown = stop, [], []

        def progress(self, stage: str, step: int, total: int) -> None:
            self.told.append((stage, step, total))
            if step == self.stop:
                raise JobCancelled

        def preview(self, image: np.ndarray) -> None:
            self.shown.append(image)

    watching = Watching(stop=99)
    sampler.sample(wish(steps=8), watching)
    assert watching.told == [("views", step, 8) for step in range(9)]
    assert len(watching.shown) == 2 and watching.shown[0].shape == (64, 64, 4)
    stopping = Watching(stop=4)
    with pytest.raises(JobCancelled):
        sampler.sample(wish(steps=8), stopping)
    assert len(stopping.told) == 5


def test_steps_walk_from_noise_to_what_the_velocity_points_at(sampler: StarterSampler):
    """With the exact velocity of a single target, (x_t - target) / t, any number of steps ends at the target."""
    target = torch.randn(1, TINY.channels, TINY.latent_side, TINY.latent_side)

    def exact(latents: Tensor, times: Tensor, *_: Tensor) -> Tensor:
        return (latents - target) / times[:, None, None, None]

    oracle = SimpleNamespace(denoiser=exact, autoencoder=sampler.network.autoencoder, config=TINY)
    walker = StarterSampler.__new__(StarterSampler)
    walker.network, walker.words, walker.device = cast(Any, oracle), cast(Any, FakeWords()), CPU.device
    for steps in (1, 5):
        torch.testing.assert_close(sampled(walker, steps=steps), shown(walker._decoded(target)), atol=1e-4, rtol=0)


# ---- the network


def test_patches_and_back():
    denoiser = network().denoiser
    latents = torch.randn(2, TINY.channels, TINY.latent_side, TINY.latent_side)
    patches = denoiser._patches(latents)
    assert patches.shape == (2, TINY.tokens, 4 * TINY.channels)
    assert torch.equal(patches[1, 0].view(TINY.channels, 2, 2), latents[1, :, :2, :2])
    assert torch.equal(denoiser._latents(patches), latents)


def test_latents_hear_of_one_another_of_the_words_and_of_the_picture():
    denoiser = network().denoiser
    latents, times = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    words, picture = torch.randn(1, 6, 8), torch.randn(1, 4, 4, 4)
    given, absent = torch.tensor([True]), torch.tensor([False])
    plain = denoiser(latents, times, words, picture, given)
    other = latents.clone()
    other[:, :, 2:, 2:] += 1
    assert (denoiser(other, times, words, picture, given)[..., :2, :2] - plain[..., :2, :2]).abs().max() > 1e-4
    assert (denoiser(latents, times, words + 1, picture, given) - plain).abs().max() > 1e-4
    assert (denoiser(latents, times, words, picture + 1, given) - plain).abs().max() > 1e-4
    torch.testing.assert_close(
        denoiser(latents, times, words, picture, absent), denoiser(latents, times, words, picture + 1, absent)
    )


def test_every_weight_of_the_denoiser_learns():
    denoiser, given = network().denoiser, torch.tensor([True, False])
    out = denoiser(torch.randn(2, 4, 4, 4), torch.rand(2), torch.randn(2, 6, 8), torch.randn(2, 4, 4, 4), given)
    out.square().mean().backward()
    assert not [name for name, weight in denoiser.named_parameters() if weight.grad is None or not weight.grad.any()]


def test_components_are_the_best_that_is_linear():
    """With as many as the squares have dimensions nothing is lost; with fewer, just what the others hold."""
    views = torch.rand(90, 4, 4, 32, 32)
    views[..., 8:20, 4:24] *= torch.tensor([0.8, 0.2, 0.1, 1.0])[:, None, None]
    whole = Autoencoder(replace(TINY, channels=1024))
    whole.learn_components(views)
    torch.testing.assert_close(whole.decode(whole.encode(views)), views, atol=1e-3, rtol=0)
    some = Autoencoder(TINY)
    some.learn_components(views)
    latents, off = some.encode(views), (some.decode(some.encode(views)) - views).square().flatten(1).sum(1).mean()
    left = (whole.encode(views) * whole.scale[:, None, None])[:, 4:].square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(off, left, atol=1e-2, rtol=1e-3)
    assert latents.square().mean() == pytest.approx(1, rel=0.05)
    ratios = latents.var((0, 2, 3)) / some.scale.square()
    torch.testing.assert_close(ratios, ratios.mean().expand(4), atol=0, rtol=0.01)


def test_a_latent_is_of_all_views():
    coder = network().autoencoder
    views = torch.rand(2, 4, 4, 32, 32)
    for view in range(4):
        other = views.clone()
        other[:, view] += 0.5
        assert (coder.encode(other) - coder.encode(views)).abs().max() > 1e-3


def test_times_come_nearer_to_noise():
    torch.testing.assert_close(shifted(torch.tensor([0.0, 0.25, 0.5, 1.0])), torch.tensor([0.0, 0.4, 2 / 3, 1.0]))


# ---- the file


def test_a_file_gives_the_same_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = network()
    safetensors.torch.save_file(made.state_dict(), tmp_path / FILE, described(TINY))
    monkeypatch.setattr("backend.multiview.starter.Words", FakeWords)
    views = load("starter", tmp_path, CPU).sample(wish(), Silent())
    assert torch.equal(views, sampled(StarterSampler(made, cast(Any, FakeWords()), CPU)))


def test_bad_files_are_refused_in_a_sentence(tmp_path: Path):
    path = tmp_path / FILE
    with pytest.raises(BadInput, match="found no such file"):
        read_network(path)
    path.write_bytes(b"not tensors at all")
    with pytest.raises(BadInput, match="expected the starter's generator"):
        read_network(path)
    state = network().state_dict()
    safetensors.torch.save_file(state, path, {"config": '{"width": 16, "colour": 3}'})
    with pytest.raises(BadInput, match="colour"):
        read_network(path)
    safetensors.torch.save_file(state, path, {"config": '{"width": 1000000}'})
    with pytest.raises(BadInput, match="4096"):
        read_network(path)
    safetensors.torch.save_file(state, path, described(replace(TINY, layers=3)))
    with pytest.raises(BadInput, match=r"blocks\.2"):
        read_network(path)


def test_a_configuration_comes_back_as_it_was():
    assert config_from({**TINY.__dict__, "decoder": [1, 1]}) == TINY
