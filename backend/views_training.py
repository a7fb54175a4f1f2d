"""Trains the starter's generator: objects are made once, then the denoiser is trained, then the decoder of details.

The folder of a run holds

    objects/                 what is learned from, a hundred objects a file
    latents_*, words_*       what the denoiser sees of them
    autoencoder/, denoiser/  each part's log.jsonl, checkpoints and best.safetensors

{"family": "views", "data": {"assets": "assets", "objects": 8000}, "denoiser": {"minutes": 60, "batch": 40}} is a whole
configuration. `train --export` writes both parts in one file, as `backend/starter` has it.

A run goes on after a kill: whole files of objects are kept, and each part goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from backend import training_report as report
from backend import training_state as state
from backend.bad_input import BadInput
from backend.monitor import Monitor
from backend.multiview.starter import described
from backend.multiview.starter_network import Autoencoder, Denoiser, StarterConfig, StarterViews, shifted
from backend.multiview.words import Words
from backend.rendering import cuda_problem
from backend.train_config import read_as
from backend.views_objects import Objects, Wanted, make_objects, planes, read_objects
from blender_addon.atomic_file import replacing

log = logging.getLogger(__name__)

FAMILY = "views"  # in a configuration
EVERY = 4  # validations and checkpoints a part of so many minutes
PICTURES_SHARE = 0.15  # of what components and decoder are learned from: a picture in the place of all the views
LATENT_NOISE = 0.5  # most that is added where the decoder learns: what is denoised is never exact
JUDGED_NOISE = 0.1
GIVEN = (0.5, 0.2, 0.2)  # shares of objects of which a prompt, a picture, or both are given; else nothing
COMPONENTS_OF = 1000  # objects whose squares' principal components are the code
JUDGED_VIEWS = 48  # objects
JUDGED, EXAM_BATCH = 192, 32  # held-out objects, and how many at once


@dataclass(frozen=True)
class Part:
    """How long and how fast one of the two is trained.

    minutes  of training; or
    steps    of the optimiser. One of the two is 0
    batch    views, or objects, a step
    rate     the largest learning rate: a line up to it over the share `warm_up`, then half a cosine down to 0
    """

    minutes: float = 0.0
    steps: int = 0
    batch: int = 32
    rate: float = 1e-3
    warm_up: float = 0.02
    weight_decay: float = 0.01
    average: float = 0.999

    def __post_init__(self) -> None:
        if (self.minutes > 0) == (self.steps > 0):
            raise BadInput(f"config: minutes: expected a number above 0, or else steps above 0, found {self.minutes}")

    def share(self, progress: state.Progress) -> float:
        """How far it is, 0..1."""
        return progress.step / self.steps if self.steps else progress.seconds / (60 * self.minutes)


@dataclass(frozen=True)
class ViewsConfig:
    """One run. `seed` is of all chance but that of the objects, which have their own."""

    network: StarterConfig = field(default_factory=StarterConfig)
    data: Wanted = field(default_factory=Wanted)
    seed: int = 1
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    autoencoder: Part = Part(10.0, batch=12, average=0.99)
    denoiser: Part = Part(60.0)


def config_from(data: Mapping[str, Any], *, minutes: float = 0.0) -> ViewsConfig:
    """The run that plain values describe; `minutes` above 0 take the place of the denoiser's. Raises BadInput."""
    config = read_as(ViewsConfig, {name: value for name, value in data.items() if name != "family"})
    return replace(config, denoiser=replace(config.denoiser, minutes=minutes, steps=0)) if minutes else config


# ---- a part of a run


@dataclass
class Trainer:
    """One network, what it minimises at a step, and what scores its averaged weights, more being better."""

    name: str
    part: Part
    model: nn.Module
    loss: Callable[[int], Tensor]
    score: Callable[[], float]
    told: dict[str, Any]

    def train(self, out: Path, monitor: Monitor) -> None:
        """Trains to its end, or until the monitor wants to stop; leaves the best averaged weights in the network."""
        out.mkdir(parents=True, exist_ok=True)
        optimizer = state.AveragingAdamW(self.model, weight_decay=self.part.weight_decay, average=self.part.average)
        found = state.load_latest(out / "checkpoints")
        progress = state.Progress(self.told, {})
        if found is not None:
            progress, tensors = found
            progress = replace(progress, config=self.told)
            state.restore(self.model, optimizer, tensors)
        began, before, validated = time.monotonic(), progress.seconds, progress.seconds
        spoken = began
        while (share := self.part.share(progress)) < 1 and not monitor.finish_early():
            loss = self._step(optimizer, progress.step, share)
            progress = replace(
                progress, step=progress.step + 1, samples=progress.samples + self.part.batch,
                seconds=before + time.monotonic() - began,
            )  # fmt: skip
            if time.monotonic() - spoken > 20:
                spoken = time.monotonic()
                report.append(out / "log.jsonl", {"step": progress.step, "seconds": progress.seconds, "loss": loss})
                log.info("%s: step %d, %.1f %%: loss %.4g", self.name, progress.step, 100 * share, loss)
            if progress.seconds - validated > 60 * EVERY:
                validated = progress.seconds
                progress = self._validate(out, progress, optimizer)
        progress = self._validate(out, progress, optimizer)
        self.model.load_state_dict(_best(out))

    def _step(self, optimizer: state.AveragingAdamW, step: int, share: float) -> float:
        warm, part = self.part.warm_up, self.part
        rate = part.rate * (share / warm if share < warm else 0.5 * (1 + np.cos(np.pi * (share - warm) / (1 - warm))))
        loss = self.loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = max(float(rate), 1e-6)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def _validate(self, out: Path, progress: state.Progress, optimizer: state.AveragingAdamW) -> state.Progress:
        tensors = state.gathered(self.model, optimizer)
        now, averaged = {k: v.clone() for k, v in self.model.state_dict().items()}, state.averages(tensors)
        self.model.load_state_dict(averaged)
        with torch.no_grad():
            score = self.score()
        better = score > progress.best
        progress = replace(progress, scores=(*progress.scores, (progress.step, score)))
        if better:
            state.write_weights(out / state.BEST, self.name, progress, averaged)
        self.model.load_state_dict(now)
        report.append(out / "log.jsonl", {"step": progress.step, "seconds": progress.seconds, "score": score})
        log.info("%s: step %d: score %.4g", self.name, progress.step, score)
        state.save(out / "checkpoints", progress, tensors)
        return progress


def _best(out: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(out / state.BEST)


# ---- the autoencoder


def picture_loss(got: Tensor, want: Tensor) -> Tensor:
    """[] how far pictures [B,4,S,S] are from what they should be: their values, and the steps between neighbours."""
    off = F.l1_loss(got, want)
    for _ in range(2):
        off = off + sum((got.diff(dim=axis) - want.diff(dim=axis)).abs().mean() for axis in (-1, -2))
        got, want = F.avg_pool2d(got, 2), F.avg_pool2d(want, 2)
    return off


def autoencoder_trainer(config: ViewsConfig, model: Autoencoder, learned: Objects, judged: Objects) -> Trainer:
    """Trains the decoder of details; the components stay as they are."""
    device, views = model.scale.device, config.network.views
    exam = planes(judged.images[:JUDGED_VIEWS, :views]).to(device)

    def loss(step: int) -> Tensor:
        chance = np.random.default_rng((config.seed, step, 3))
        chosen = chance.integers(len(learned.images), size=config.autoencoder.batch)
        shown = _shown(learned.images[chosen], views, chance).to(device)
        latents = model.encode(shown)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step)).to(device)
        strength = torch.from_numpy(LATENT_NOISE * chance.random((len(latents), 1, 1, 1)) ** 2).to(noise)
        with _precision(config, device):
            got = model.decode(latents + strength * noise)
        return picture_loss(got.float().flatten(0, 1), shown.flatten(0, 1))

    def score() -> float:
        latents = model.encode(exam)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
        got = model.decode(latents + JUDGED_NOISE * noise).clamp(0, 1)
        return -10 * (got - exam).square().mean((1, 2, 3, 4)).clamp_min(1e-10).log10().mean().item()

    return Trainer("autoencoder", config.autoencoder, model, loss, score, _plain(config))


def _shown(images: np.ndarray, views: int, chance: np.random.Generator) -> Tensor:
    """[B,V,4,S,S] views of objects [B,V+P,S,S,4], or of some a picture as if it were all the views; half of them all
    in a mirror.
    """
    all_of = planes(images)
    all_of = all_of if chance.random() < 0.5 else _mirrored(all_of)
    shown = all_of[:, :views].clone()
    alone = torch.from_numpy(chance.random(len(images)) < PICTURES_SHARE)
    shown[alone] = all_of[alone, views : views + 1].expand(-1, views, -1, -1, -1)
    return shown


def learn_components(config: ViewsConfig, model: Autoencoder, learned: Objects) -> None:
    """Those of evenly spread objects."""
    chosen = learned.images[:: max(1, len(learned.images) // COMPONENTS_OF)]
    model.learn_components(_shown(chosen, config.network.views, np.random.default_rng((config.seed, 4))))


@torch.no_grad()
def encoded(model: Autoencoder, objects: Objects, views: int) -> Tensor:
    """[2,N,1+P,C,s,s] float16: latents of the views, and of each picture, and of the objects in a mirror."""
    rows = []
    for first in range(0, len(objects.images), 16):
        images = planes(objects.images[first : first + 16])
        both = torch.cat([images, _mirrored(images)])
        pictures = both[:, views:, None].expand(-1, -1, views, -1, -1, -1)
        sets = torch.cat([both[:, None, :views], pictures], dim=1)
        rows.append(model.encode(sets.flatten(0, 1)).half().unflatten(0, (2, len(images), -1)))
    return torch.cat(rows, dim=1)


def _mirrored(images: Tensor) -> Tensor:
    """Left and right change places: in each picture, and the view from the left with that from the right."""
    order = [0, 3, 2, 1, *range(4, images.shape[1])]
    return images.flip(-1)[:, order]


# ---- the denoiser


@dataclass(frozen=True)
class Encoded:
    """latents as `encoded` gives them; words [N,P,W,384] float16."""

    latents: Tensor
    words: Tensor


def encoded_objects(config: ViewsConfig, model: Autoencoder, objects: Objects, out: Path, name: str) -> Encoded:
    """What the denoiser sees of objects; kept in a file of the run, for it takes minutes."""
    count, views = len(objects.images), config.network.views
    latents = _kept(out / f"latents_{name}.safetensors", count, lambda: encoded(model, objects, views))
    said = [prompt for prompts in objects.prompts for prompt in prompts]
    words = _kept(out / f"words_{name}.safetensors", len(said), lambda: Words()(said, config.network.words).half())
    return Encoded(latents, words.unflatten(0, (len(objects.prompts), -1)))


def _kept(path: Path, count: int, make: Callable[[], Tensor]) -> Tensor:
    """A tensor of so many objects from its file, which is written if it is not there or of fewer."""
    if path.is_file():
        tensor, told = _read(path)
        if told == count:
            return tensor
    tensor = make()
    with replacing(path) as file:
        file.write(safetensors.torch.save({"all": tensor}, {"count": str(count)}))
    return tensor


def _read(path: Path) -> tuple[Tensor, int]:
    with safetensors.safe_open(path, "pt") as file:
        return file.get_tensor("all"), int(file.metadata()["count"])


@dataclass(frozen=True)
class Lesson:
    """B objects as the denoiser is taught them.

    latents   [B,C,s,s] of the views
    noise     as latents
    times     [B] 0..1, how far from the latents to the noise
    words     [B,W,text]
    pictures  [B,C,s,s]
    shown     [B] bool, whether the picture is given
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    words: Tensor
    pictures: Tensor
    shown: Tensor


def denoiser_trainer(config: ViewsConfig, model: Denoiser, learned: Encoded, judged: Encoded) -> Trainer:
    exam = _exam(judged, config)

    def loss(step: int) -> Tensor:
        return flow_loss(model, _lesson(learned, config, step), config)

    def score() -> float:
        return -torch.stack([flow_loss(model, part, config) for part in exam]).mean().item()

    return Trainer("denoiser", config.denoiser, model, loss, score, _plain(config))


def _lesson(learned: Encoded, config: ViewsConfig, step: int) -> Lesson:
    """That of a step: chance says which objects, which of their prompts and pictures, and which of both are given."""
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    count = config.denoiser.batch
    chosen = torch.randint(learned.latents.shape[1], (count,), generator=rng)
    latents = learned.latents[torch.randint(2, (count,), generator=rng), chosen].float()
    words = learned.words[chosen, torch.randint(learned.words.shape[1], (count,), generator=rng)].float()
    picture = torch.randint(1, latents.shape[1], (count,), generator=rng)
    case = torch.bucketize(torch.rand(count, generator=rng), torch.tensor(GIVEN).cumsum(0))
    return Lesson(
        latents=latents[:, 0],
        noise=torch.randn(latents[:, 0].shape, generator=rng),
        times=shifted(torch.rand(count, generator=rng)),
        words=words * ((case == 0) | (case == 2))[:, None, None],
        pictures=latents[torch.arange(count), picture],
        shown=(case == 1) | (case == 2),
    )


def _exam(judged: Encoded, config: ViewsConfig) -> list[Lesson]:
    """Held-out objects at evenly spread times, half of them by their prompts and half by their pictures."""
    rng, parts = torch.Generator().manual_seed(config.seed), []
    for first in range(0, min(JUDGED, judged.latents.shape[1]), EXAM_BATCH):
        latents = judged.latents[0, first : first + EXAM_BATCH].float()
        shown = torch.arange(len(latents)) % 2 == 0
        parts.append(
            Lesson(
                latents=latents[:, 0],
                noise=torch.randn(latents[:, 0].shape, generator=rng),
                times=(torch.arange(len(latents)) + 0.5) / len(latents),
                words=judged.words[first : first + EXAM_BATCH, 0].float() * ~shown[:, None, None],
                pictures=latents[:, 1],
                shown=shown,
            )
        )
    return parts


def flow_loss(model: Denoiser, lesson: Lesson, config: ViewsConfig) -> Tensor:
    """[] mean squared error of the velocity noise - latents, at the point that is `times` of the way to the noise."""
    device = next(model.parameters()).device
    on = {name: value.to(device) for name, value in vars(lesson).items()}
    latents, noise, times = on["latents"], on["noise"], on["times"]
    with _precision(config, device), _attention(device):
        at = torch.lerp(latents, noise, times[:, None, None, None])
        velocity = model(at, times, on["words"], on["pictures"], on["shown"])
    return F.mse_loss(velocity.float(), noise - latents)


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """Plain products on a CPU: for so few tokens its flash attention is slower, above all backwards."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _precision(config: ViewsConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _plain(config: ViewsConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=str))


# ---- all of it


def train_views(config: ViewsConfig, out: Path, monitor: Monitor, *, device: str = "auto") -> None:
    """Trains both parts, to the end or until the monitor wants to stop.

    device  "cpu", "cuda" or "auto": CUDA where there is some

    Raises BadInput for a device that is not there, or a folder with another run.
    """
    if device == "cuda" and (problem := cuda_problem()):
        raise BadInput(f"device: expected cuda, found none: {problem}")
    make_objects(config.data, out / "objects", monitor)
    with replacing(out / "config.json") as file:
        file.write(json.dumps({"family": FAMILY} | _plain(config), indent=1).encode())
    learned, judged = (read_objects(config.data, out / "objects", held_out=part) for part in (False, True))
    torch.manual_seed(config.seed)
    network = StarterViews(config.network)
    learn_components(config, network.autoencoder, learned)
    parts = [
        encoded_objects(config, network.autoencoder, part, out, name)
        for part, name in ((learned, "train"), (judged, "held"))
    ]
    network.to("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    denoiser_trainer(config, network.denoiser, *parts).train(out / "denoiser", monitor)
    if monitor.finish_early():
        return
    autoencoder_trainer(config, network.autoencoder, learned, judged).train(out / "autoencoder", monitor)


def is_run(folder: Path) -> bool:
    """Whether a folder is one of a run of these."""
    return (folder / "denoiser").is_dir()


def export(run: Path, out: Path) -> None:
    """Writes a run's best autoencoder and denoiser in one file, in float16. Raises BadInput where one is missing."""
    tensors: dict[str, Tensor] = {}
    for name in ("autoencoder", "denoiser"):
        path = run / name / state.BEST
        if not path.is_file():
            raise BadInput(f"{run}: expected a run whose {name} was judged at least once, found no {path.name} of it")
        tensors |= {f"{name}.{key}": value for key, value in safetensors.torch.load_file(path).items()}
    told = json.loads((run / "config.json").read_text(encoding="utf-8"))
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    with replacing(out) as file:
        file.write(safetensors.torch.save(halved, described(config_from(told).network)))
