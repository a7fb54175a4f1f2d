"""Trains a network: one configuration, any number of processes, any number of interruptions.

    samples -> micro-batches -> recipe's loss -> gradient -> AdamW with a moving average -> checkpoints, log, report

The folder of a run holds

    config.json            what was asked for
    log.jsonl              a line for each step and validation
    report.html            curves and held-out views, renewed at each validation
    checkpoints/           the last two states; from the newest that is whole a run goes on
    best.safetensors       the moving average that scored best so far, ready for `reconstruct --weights`

Several processes, started by `torchrun` or `accelerate launch`, share each step's batch, on one machine or many that
see the same folder; how they keep together (DDP, FSDP) is accelerate's.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from torch import Tensor, nn

from backend import training_report as report
from backend import training_state as state
from backend.bad_input import BadInput
from backend.checkpoint_files import Family, load_into, read_checkpoint
from backend.compositing import over
from backend.metrics import psnr
from backend.monitor import Monitor, Silent
from backend.recipes import Batch, Recipe, recipe_of
from backend.rendering import cuda_problem, render
from backend.train_config import TrainConfig, config_data, config_from, difference
from backend.training_data import Request, batches, held_out, requests
from blender_addon.atomic_file import replacing

log = logging.getLogger(__name__)

WINDOW = 50  # gradients whose median says what is usual
LEAST_KNOWN = 10  # gradients before anything is unusual
SPOKEN_EVERY = 20.0  # seconds between two lines on the terminal


class Diverged(RuntimeError):
    """Training that cannot go on; the text says where it stopped and what may help."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    device: str = "auto",
    monitor: Monitor = Silent(),  # noqa: B008 (stateless)
) -> state.Progress:
    """Trains to the end, or until `monitor.finish_early()`; goes on where the folder `out` holds a part of this run.

    device  "cpu", "cuda" or "auto": CUDA where there is some
    Raises BadInput for a folder with another run, or a batch that the processes cannot share; Diverged.
    """
    run = _Run(config, out, device)
    progress = run.train(monitor)
    run.accelerator.wait_for_everyone()  # the first process may still be writing
    run.accelerator.end_training()
    return progress


class Objective(nn.Module):
    """A network and its recipe as one module, all of whose weights are used within its forward pass."""

    def __init__(self, model: nn.Module, recipe: Recipe, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.recipe, self.config = model, recipe, config

    def forward(self, batch: Batch, share: float, request: Request) -> dict[str, Tensor]:
        """The recipe's terms for a micro-batch, whose chance comes from its number."""
        rng = torch.Generator().manual_seed(self.config.seed * 1_000_003 + request.number)
        weights = {**self.recipe.WEIGHTS, **self.config.stages[request.stage].weights}
        return self.recipe.loss(self.model, batch, share, rng, weights)


class Guard:
    """Tells by the length of a gradient whether a step should be taken."""

    def __init__(self, outlier: float, norms: tuple[float, ...] = (), skipped: int = 0) -> None:
        self.outlier, self.norms, self.skipped = outlier, list(norms), skipped

    def accepts(self, norm: float) -> bool:
        """Whether it is finite and no more than `outlier` times the median of the last ones."""
        good = math.isfinite(norm)
        if good:
            usual = statistics.median(self.norms) if len(self.norms) >= LEAST_KNOWN else norm
            good = norm <= self.outlier * usual
            self.norms = [*self.norms, norm][-WINDOW:]  # a lasting change of length soon is the usual
        self.skipped = 0 if good else self.skipped + 1
        return good


class _Run:
    """One process's part in a run."""

    def __init__(self, config: TrainConfig, out: Path, device: str) -> None:
        self.began = time.monotonic()
        self.config, self.out, self.log_file = config, out, out / "log.jsonl"
        self.accelerator = _accelerator(device)
        self._check_shares()
        self.recipe = recipe_of(config.family)
        torch.manual_seed(config.seed)
        self.model = network(self.recipe, config)
        optimizer = state.AveragingAdamW(self.model, weight_decay=config.weight_decay, average=config.average)
        if config.precision == "bfloat16":
            self.model.forward = torch.autocast(self.accelerator.device.type, torch.bfloat16)(self.model.forward)
        objective = Objective(self.model, self.recipe, config)
        self.objective, prepared = self.accelerator.prepare(objective, optimizer)
        self.optimizer = prepared.optimizer
        self.progress = self._found()
        self.guard = Guard(config.outlier, self.progress.norms, self.progress.skipped)
        self.seconds_before, self.saved_at, self.share = self.progress.seconds, self.began, 0.0
        self.judge: Judge | None = None

    def _check_shares(self) -> None:
        parts, ranks = self.config.batch // self.config.micro_batch, self.accelerator.num_processes
        if parts % ranks:
            raise BadInput(f"batch: expected micro-batches that {ranks} processes share evenly, found {parts} a step")

    def _found(self) -> state.Progress:
        """Where the run stands, with its state put back; for a new one, its folder is made."""
        told = config_data(self.config)
        found = state.load_latest(self.out / "checkpoints")
        if found is None:
            start_from(self.model, self.config)
            progress = state.Progress(told, self.recipe.config_data(_config_of(self.model)))
        else:
            progress, tensors = found
            before = config_data(config_from(progress.config))  # with what was not known when it began
            if changed := difference(before, told):
                raise BadInput(
                    f"{self.out}: expected no run or this one, found one with another configuration: {changed}"
                )
            state.restore(self.model, self.optimizer, tensors)
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            with replacing(self.out / "config.json") as file:
                file.write(json.dumps(told, indent=1).encode())
            report.cut(self.log_file, progress.step)
            self._note("start", progress, processes=self.accelerator.num_processes)
        return progress

    # ---- the loop

    def train(self, monitor: Monitor) -> state.Progress:
        """See `train`."""
        config, ranks = self.config, self.accelerator.num_processes
        seconds, stop, _ = self._agreed(monitor)
        self.share = self._share_at(self.progress.step, seconds)
        share_at = (lambda _: self.share) if config.minutes else self._share_at
        wanted = requests(config, self.progress.step, share_at, rank=self.accelerator.process_index, ranks=ranks)
        made = batches(config, wanted, self.accelerator.device)
        spoken = self.began
        while self.share < 1 and not stop:
            line = self._step(made)
            if self.guard.skipped >= config.patience:
                raise Diverged(self._why_stopped())
            before = self.share
            seconds, stop, save = self._agreed(monitor)
            self.share = self._share_at(self.progress.step, seconds)
            if int(self.share * config.validations) > int(before * config.validations):
                self._validate()
                save = True
            if save or stop or self.share >= 1:
                self._save()
            if time.monotonic() - spoken >= SPOKEN_EVERY:
                spoken = time.monotonic()
                log.info("step %d, %.1f %%: loss %.4g", line["step"], 100 * self.share, line["loss"])
        return self.progress

    def _share_at(self, step: int, seconds: float = 0.0) -> float:
        """How far the run is."""
        if self.config.minutes:
            return min(1.0, seconds / (60 * self.config.minutes))
        return min(1.0, step / self.config.steps)

    def _agreed(self, monitor: Monitor) -> tuple[float, bool, bool]:
        """Seconds of training, whether to stop and whether to save, as the first process sees it."""
        now = time.monotonic()
        save = now - self.saved_at >= self.config.checkpoint_seconds
        own = [self.seconds_before + now - self.began, float(monitor.finish_early()), float(save)]
        told = broadcast(torch.tensor(own, dtype=torch.float64, device=self.accelerator.device))
        seconds, stop, save = cast(Tensor, told).tolist()
        return seconds, bool(stop), bool(save)

    def _step(self, made: Iterator[tuple[Request, Batch]]) -> dict[str, Any]:
        """One step of the optimiser, and its line in the log."""
        rate = rate_at(self.share, self.config)
        terms = self._gradient(made)
        length = cast(Tensor, self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.clip))
        norm = float(state.whole(length))
        taken = self.guard.accepts(norm)
        if taken:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            samples=self.progress.samples + self.config.batch,
            seconds=self.seconds_before + time.monotonic() - self.began,
            norms=tuple(self.guard.norms),
            skipped=self.guard.skipped,
        )
        line = {"share": self.share, "rate": rate, "norm": norm, "loss": sum(terms.values()), **terms}
        return self._note("step" if taken else "skip", self.progress, **line)

    def _gradient(self, made: Iterator[tuple[Request, Batch]]) -> dict[str, float]:
        """Leaves the mean gradient of all processes' micro-batches in the weights; the loss's terms."""
        accelerator = self.accelerator
        parts = self.config.batch // self.config.micro_batch // accelerator.num_processes
        values, names = torch.zeros(()), ()
        for part in range(parts):
            request, batch = next(made)
            with nullcontext() if part == parts - 1 else accelerator.no_sync(self.objective):
                terms = self.objective(batch.to(accelerator.device), self.share, request)
                stacked = torch.stack(list(terms.values())) / parts
                accelerator.backward(stacked.sum())
            values, names = values.to(stacked.device) + stacked.detach(), tuple(terms)
        means = cast(Tensor, accelerator.reduce(values, "mean"))
        return dict(zip(names, means.tolist(), strict=True))

    # ---- what is kept and told

    def _save(self) -> None:
        tensors = state.gathered(self.model, self.optimizer)
        if self.accelerator.is_main_process:
            state.save(self.out / "checkpoints", self.progress, tensors)
        self.saved_at = time.monotonic()

    def _validate(self) -> None:
        """Judges the moving average, keeps it if it is the best so far, and renews the report."""
        averaged = state.averages(state.gathered(self.model, self.optimizer))
        if not self.accelerator.is_main_process:
            return
        if self.judge is None:
            self.judge = Judge(self.recipe, self.config, _config_of(self.model), self.accelerator.device)
        score, pictures = self.judge.score(averaged)
        better = score > self.progress.best
        self.progress = replace(self.progress, scores=(*self.progress.scores, (self.progress.step, score)))
        if better:
            state.write_weights(self.out / state.BEST, self.config.family, self.progress, averaged)
        self._note("validation", self.progress, psnr=score)
        title = f"{self.config.family}: {self.out.resolve().name}"
        lines = report.read(self.log_file)
        report.write(self.out / "report.html", title, lines, pictures, config_data(self.config))
        log.info("step %d, %.1f %%: %.2f dB", self.progress.step, 100 * self.share, score)

    def _note(self, kind: str, progress: state.Progress, **told: Any) -> dict[str, Any]:
        """A line for the log, which the first process writes."""
        line = {"kind": kind, "step": progress.step, "seconds": round(progress.seconds, 3), **told}
        if self.accelerator.is_main_process:
            report.append(self.log_file, line)
        return line

    def _why_stopped(self) -> str:
        return (
            f"training stopped at step {self.progress.step}: the gradient was not finite, or much longer than usual, "
            f"{self.guard.skipped} times in a row; lower the rate, or the weight of the term that grew in "
            f"{self.log_file}, and begin anew from the last good checkpoint"
        )


class Judge:
    """Held-out objects, and a second network for the averaged weights."""

    def __init__(self, recipe: Recipe, config: TrainConfig, network_config: Any, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.model = recipe.MODEL(network_config).to(device).eval()
        self.batches = held_out(config, device)

    @torch.no_grad()
    def score(self, weights: Mapping[str, Tensor]) -> tuple[float, list[report.Picture]]:
        """Mean PSNR [dB], over white, of the views that are not given to the network; all where all are."""
        self.model.load_state_dict(dict(weights))
        scores, pictures = [], []
        for number, batch in enumerate(self.batches):
            batch = batch.to(self.device)
            (gaussians,) = self.recipe.predict(self.model, batch)
            count = batch.images.shape[1]
            targets = list(range(batch.inputs, count)) or list(range(count))
            got = render(gaussians, batch.cameras(0)[targets], torch.ones(3)).rgb.clamp(0, 1)
            want = over(batch.images[0, targets], 1.0)
            scores += [float(psnr(one, other)) for one, other in zip(got, want, strict=True)]
            label = f"object {number}, {scores[-len(targets)]:.2f} dB"
            pictures.append(report.Picture(label, _eight_bit(want[0]), _eight_bit(got[0])))
        return statistics.fmean(scores), pictures


def _eight_bit(image: Tensor) -> np.ndarray:
    return (image * 255).round().byte().cpu().numpy()


# ---- what a configuration says


def _accelerator(device: str) -> Accelerator:
    """The processes and the device of this one. Raises BadInput where there is no such device."""
    if device == "cuda" and (problem := cuda_problem()):
        raise BadInput(f"device: expected cuda, found none: {problem}")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    # Stages may leave parts of a network without a gradient.
    return Accelerator(cpu=on_cpu, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def network(recipe: Recipe, config: TrainConfig) -> nn.Module:
    """The network with random weights. Raises BadInput for a preset or configuration that the family does not know."""
    if not isinstance(config.network, str):
        return recipe.MODEL(recipe.config_from(config.network))
    if config.network not in recipe.PRESETS:
        known = ", ".join(recipe.PRESETS)
        raise BadInput(f"config: network: expected one of {known}, or a configuration, found {config.network!r}")
    return recipe.MODEL(recipe.PRESETS[config.network])


def start_from(model: nn.Module, config: TrainConfig) -> None:
    """Puts the weights of the configuration's checkpoint, if it names one, into the network. Raises BadInput."""
    if config.start:
        checkpoint = read_checkpoint(Path(config.start), cast(Family, config.family))
        load_into(model, checkpoint.state)


def rate_at(share: float, config: TrainConfig) -> float:
    """The learning rate: a line up from nearly 0, then half a cosine down to 0."""
    if share < config.warm_up:
        return config.rate * max(share / config.warm_up, 1e-3)
    return config.rate * 0.5 * (1 + math.cos(math.pi * (share - config.warm_up) / (1 - config.warm_up)))


def _config_of(model: nn.Module) -> Any:
    return cast(Any, model).config
