"""MVDream and ImageDream from folders in their published layout with tiny random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backend import multiview
from backend.bad_input import BadInput
from backend.compositing import over
from backend.monitor import JobCancelled, Silent
from backend.multiview import Budget
from backend.multiview import mvdream as subject
from backend.multiview.mvdream_unet import Context, MultiViewUNet
from tests.sampling import Watcher, held, picture, shrink, wish
from tests.tiny_mvdream import SCHEDULER, write_folder

CPU = Budget(torch.device("cpu"))
NAMES = ("mvdream", "imagedream")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: write_folder(root / name, sees=name == "imagedream") for name in NAMES}


@pytest.fixture
def samplers(published: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., subject.MVDream]:
    """Loads a model whose views have 64 pixels."""

    def load(name: str, budget: Budget = CPU) -> subject.MVDream:
        shrink(monkeypatch, name)
        return subject.load(name, published[name], budget)

    return load


def shown(name: str) -> Tensor | None:
    return picture() if name == "imagedream" else None


class Listener:
    """Remembers what a sampler's denoiser is given."""

    def __init__(self, sampler: subject.MVDream) -> None:
        self.x: list[Tensor] = []
        self.cameras: list[Tensor] = []
        self.contexts: list[Context] = []
        sampler._parts.unet.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: tuple[Tensor, Tensor, Tensor, Context]) -> None:
        x, _, camera, context = arguments
        self.x.append(x)
        self.cameras.append(camera)
        self.contexts.append(context)


# ---- the schedule


def test_the_schedule_is_the_published_one(published: dict[str, Path], shared_folder: Path) -> None:
    golden = load_file(shared_folder / "golden/lgm/ddim/ddim.safetensors")
    told = subject.load("mvdream", published["mvdream"], CPU)._parts.scheduler
    torch.testing.assert_close(told.alphas_cumprod, golden["alphas_cumprod"], atol=1e-6, rtol=0)
    for steps in (5, 30, 50):
        assert subject.scheduler_for(told, steps).timesteps.tolist() == golden[f"timesteps.{steps}"].tolist()
    scheduler = subject.scheduler_for(told, 5)
    latents = golden["run5.latents.0"]
    for step, timestep in enumerate(scheduler.timesteps):
        noise = subject.guided([golden[f"run5.eps_uncond.{step}"], golden[f"run5.eps_cond.{step}"]], 5.0)
        latents = scheduler.step(noise, int(timestep), latents, return_dict=False)[0]
        torch.testing.assert_close(latents, golden[f"run5.latents.{step + 1}"], atol=1e-4, rtol=0)


def test_thirty_steps() -> None:
    scheduler = subject.scheduler_for(subject.DDIMScheduler.from_config(SCHEDULER), 30)  # type: ignore[arg-type]
    assert scheduler.timesteps[[0, 1, -2, -1]].tolist() == [958, 925, 34, 1]


def test_more_steps_than_there_are(samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers("mvdream")
    with pytest.raises(BadInput, match="steps: expected at most 999, found 1000"):
        sampler.sample(wish(prompt="a chair", steps=1000), Silent())


def test_guidance_goes_past_the_prompt() -> None:
    without, with_it = torch.tensor([1.0]), torch.tensor([3.0])
    assert subject.guided([without, with_it], 5.0).tolist() == [11.0]
    assert subject.guided([with_it], 5.0).tolist() == [3.0]


# ---- cameras and order


def test_camera_vectors_by_hand() -> None:
    """At the front of the model's world, -Y; then from +X, +Y and -X: right, up, backwards and place by columns."""
    at_minus_y = [1, 0, 0, 0, 0, 0, -1, -1, 0, 1, 0, 0, 0, 0, 0, 1]
    at_plus_x = [0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    at_plus_y = [-1, 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1]
    at_minus_x = [0, 0, -1, -1, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    wanted = torch.tensor([at_minus_y, at_plus_x, at_plus_y, at_minus_x, [0] * 16]).float()
    torch.testing.assert_close(subject.camera_vectors(4, pictures=1), wanted, atol=1e-6, rtol=0)


def test_camera_vectors_are_the_published_ones(shared_folder: Path) -> None:
    golden = load_file(shared_folder / "golden/lgm/cameras/cameras.safetensors")
    torch.testing.assert_close(subject.camera_vectors(4), golden["text_4.elev0"], atol=1e-6, rtol=0)
    torch.testing.assert_close(subject.camera_vectors(4, pictures=1), golden["image_4plus1.elev0"], atol=1e-6, rtol=0)


class Painter(nn.Module):
    """A denoiser that sees in every noise the same latent: where the frame's camera is, in two channels."""

    def __init__(self, like: MultiViewUNet, scheduler: subject.DDIMScheduler) -> None:
        super().__init__()
        self.config, self.kept = like.config, scheduler.alphas_cumprod

    def forward(self, x: Tensor, timesteps: Tensor, camera: Tensor, context: Context) -> Tensor:
        kept = self.kept[timesteps][:, None, None, None]
        return (x - kept.sqrt() * painted(camera, x.shape[-1])) / (1 - kept).sqrt()


def painted(camera: Tensor, side: int) -> Tensor:
    places = camera.view(-1, 4, 4)[:, :2, 3]
    return torch.cat([places, places.flip(1)], dim=1)[:, :, None, None].expand(-1, -1, side, side)


def test_views_begin_at_the_front_and_go_round_counterclockwise(samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers("mvdream")
    parts = sampler._parts
    painter: Any = Painter(parts.unet, parts.scheduler)
    sampler._parts = replace(parts, unet=painter)
    views = sampler.sample(wish(prompt="a chair", steps=4, guidance=1.0), Silent())
    # its front is seen from azimuth 90 of the model's world, which is +X; from +X one goes on to +Y
    places = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    camera = torch.zeros(4, 4, 4)
    camera[:, :2, 3] = places
    vae: Any = parts.vae
    with torch.no_grad():
        decoded = vae.decode(painted(camera.flatten(1), 8) / vae.config.scaling_factor).sample
    wanted = (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    # the last step leaves a little noise: set_alpha_to_one is off
    error = (views[:, None] - wanted[None]).abs().mean((2, 3, 4))
    assert error.argmin(1).tolist() == [0, 1, 2, 3]


# ---- the whole way


@pytest.mark.usefixtures("loopback_only")
@pytest.mark.parametrize("name", NAMES)
def test_makes_views_offline(name: str, published: dict[str, Path]) -> None:
    sampler = multiview.load(name, published[name], CPU)
    watcher = Watcher()
    views = sampler.sample(wish(prompt="a red chair", steps=4, shown=shown(name)), watcher)
    assert views.shape == (4, 256, 256, 3) and views.dtype == torch.float32 and views.device.type == "cpu"
    assert 0 <= float(views.min()) and float(views.max()) <= 1 and float(views.std()) > 0
    assert watcher.steps == [("views", step, 4) for step in (1, 2, 3, 4)]
    assert [preview.shape for preview in watcher.previews] == [(64, 64, 4)]


@pytest.mark.parametrize("name", NAMES)
def test_what_views_depend_on(name: str, samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers(name)
    asked = wish(prompt="a red chair", shown=shown(name))
    first = sampler.sample(asked, Silent())
    assert torch.equal(first, sampler.sample(asked, Silent()))
    others = [replace(asked, seed=4), replace(asked, prompt="cup"), replace(asked, negative_prompt="grey")]
    others += [replace(asked, guidance=5.0), replace(asked, steps=3)]
    if name == "imagedream":
        others.append(replace(asked, picture=picture().flip(1)))
    for other in others:
        assert not torch.allclose(first, sampler.sample(other, Silent()), atol=1e-4), other


@pytest.mark.parametrize(("name", "rows"), [("mvdream", 4), ("imagedream", 5)])
def test_without_guidance_one_half_is_enough(name: str, rows: int, samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers(name)
    listener = Listener(sampler)
    asked = wish(prompt="a red chair", guidance=1.0, shown=shown(name))
    views = sampler.sample(asked, Silent())
    assert [len(x) for x in listener.x] == [rows, rows]
    for other in (replace(asked, negative_prompt="grey"), replace(asked, guidance=0.5)):
        assert torch.equal(views, sampler.sample(other, Silent()))
    # just above 1 the other half counts for next to nothing
    assert torch.allclose(views, sampler.sample(replace(asked, guidance=1.0001), Silent()), atol=1e-2)


def test_what_the_two_halves_are_told_of_a_picture(samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers("imagedream")
    listener = Listener(sampler)
    sampler.sample(wish(prompt="a red chair", shown=picture()), Silent())
    assert len(listener.x) == 2
    for x, camera, context in zip(listener.x, listener.cameras, listener.contexts, strict=True):
        without, with_it = x.chunk(2)
        assert torch.equal(without[:4], with_it[:4])
        assert not without[4].any() and with_it[4].any()
        assert torch.equal(with_it[4], listener.x[0][9])  # at each step the same, without noise
        assert torch.equal(camera, subject.camera_vectors(4, pictures=1).repeat(2, 1))
        assert context.frames == 5 and context.image is not None
        with torch.no_grad():
            unseen = sampler._parts.unet.image_embed(torch.zeros(1, 50, 48))
        assert torch.allclose(context.image[:5], unseen.expand(5, -1, -1), atol=1e-5)
        assert torch.equal(context.image[5], context.image[9])
        assert not torch.allclose(context.image[5], unseen[0], atol=1e-3)
        assert torch.equal(context.text[0], context.text[4]) and not torch.equal(context.text[4], context.text[5])


def test_the_image_encoder_s_last_layer_is_not_asked(samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers("imagedream")
    asked = wish(shown=picture())
    before = sampler.sample(asked, Silent())
    seeing = sampler._parts.seeing
    assert seeing is not None
    layers: Any = seeing.encoder.encoder.layers
    with torch.no_grad():
        layers[-1].mlp.fc2.bias += 1
    assert torch.equal(before, sampler.sample(asked, Silent()))
    with torch.no_grad():
        layers[-2].mlp.fc2.bias += torch.linspace(-1, 1, 48)
    assert not torch.equal(before, sampler.sample(asked, Silent()))


def test_a_picture_lies_on_white(samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers("imagedream")
    clear = picture()
    white = torch.cat([over(clear, 1.0), torch.ones_like(clear[..., 3:])], dim=-1)
    black = torch.cat([over(clear, 0.0), torch.ones_like(clear[..., 3:])], dim=-1)
    of_clear, of_white, of_black = (sampler.sample(wish(shown=given), Silent()) for given in (clear, white, black))
    assert torch.equal(of_clear, of_white) and not torch.allclose(of_clear, of_black, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("redo", [0, 3])
def test_held_views_stay_and_the_other_changes(name: str, redo: int, samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers(name)
    given = held(name, redo)
    asked = replace(wish(prompt="a red chair", steps=4, shown=shown(name)), held=given)
    views = sampler.sample(asked, Silent())
    kept = [view for view in range(4) if view != redo]
    assert torch.equal(views[kept], over(given.images, 1.0)[kept])
    assert not torch.allclose(views[redo], over(given.images, 1.0)[redo], atol=1e-2)
    again = sampler.sample(replace(asked, seed=8), Silent())
    assert torch.equal(again[kept], views[kept]) and not torch.allclose(again[redo], views[redo], atol=1e-4)
    free = sampler.sample(replace(asked, held=None), Silent())
    assert not torch.allclose(free[redo], views[redo], atol=1e-5)  # it looks at those that are held


def test_held_views_are_as_noisy_as_the_rest(samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers("mvdream")
    listener = Listener(sampler)
    given = held("mvdream", 2)  # frame 3
    sampler.sample(replace(wish(prompt="a red chair", steps=30, guidance=1.0), held=given), Silent())
    vae: Any = sampler._parts.vae
    with torch.no_grad():
        pixels = 2 * over(given.images, 1.0).movedim(-1, 1) - 1
        clean = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    last = listener.x[-1]  # at timestep 1 next to no noise
    for view, frame in enumerate([1, 2, 3, 0]):
        error = float((last[frame] - clean[view]).abs().mean())
        assert (error < 0.1) == (view != 2), (view, error)
    first = listener.x[0]
    assert 0.9 < float(first.std()) < 1.1


def test_cancelling_between_steps(samplers: Callable[..., subject.MVDream]) -> None:
    sampler = samplers("mvdream")
    listener = Listener(sampler)
    with pytest.raises(JobCancelled):
        sampler.sample(wish(prompt="a red chair", steps=5), Watcher(cancel_at=2))
    assert len(listener.x) == 2


@pytest.mark.parametrize("name", NAMES)
def test_in_parts_it_makes_the_same_views(name: str, samplers: Callable[..., subject.MVDream]) -> None:
    asked = wish(prompt="a red chair", shown=shown(name))
    whole = samplers(name).sample(asked, Silent())
    sparing = samplers(name, replace(CPU, slicing=True, offload=True))
    listener = Listener(sparing)
    assert torch.allclose(whole, sparing.sample(asked, Silent()), atol=1e-4)
    assert {len(x) for x in listener.x} == {5 if name == "imagedream" else 4} and len(listener.x) == 4


def test_in_bfloat16(samplers: Callable[..., subject.MVDream]) -> None:
    asked = wish(prompt="a red chair", shown=picture())
    whole = samplers("imagedream").sample(asked, Silent())
    rough = samplers("imagedream", replace(CPU, dtype=torch.bfloat16)).sample(asked, Silent())
    assert rough.dtype == torch.float32
    assert 0 < float((whole - rough).abs().mean()) < 0.1
