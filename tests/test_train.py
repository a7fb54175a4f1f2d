"""Training: that it learns, goes on after kills as if there had been none, is the same on two processes, and says what
is wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backend import data, train_command, training_data, training_state
from backend import train as training
from backend.__main__ import main, parser
from backend.bad_input import BadInput
from backend.checkpoint_files import read_checkpoint
from backend.compositing import over
from backend.metrics import psnr
from backend.models import lgm
from backend.monitor import Silent
from backend.train import Diverged, Guard, train
from backend.train_config import config_from, read_config
from backend.training_data import requests
from backend.training_report import read
from tests.training_runs import LGM, RUN, ball_scene, ball_take, start

CPU = torch.device("cpu")
DEADLINE = 60.0


@pytest.fixture(autouse=True)
def balls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that take no time to make."""
    monkeypatch.setattr(training_data, "draw", ball_scene)
    monkeypatch.setattr(training_data, "take", ball_take)


def last_state(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint."""
    return load_file(max((out / "checkpoints").iterdir()))


def losses(out: Path) -> list[float]:
    """By step, each of which must be there once and in its order."""
    lines = [line for line in read(out / "log.jsonl") if line["kind"] == "step"]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def finish(*processes: BaseProcess) -> None:
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# ---- the run


def test_a_run_learns_and_leaves_everything(tmp_path: Path) -> None:
    config = config_from(RUN | {"steps": 50})
    progress = train(config, tmp_path / "run", device="cpu")
    assert (progress.step, progress.samples, len(progress.scores)) == (50, 100, 2)
    told = losses(tmp_path / "run")
    assert sum(told[-10:]) < 0.6 * sum(told[:10])
    (held_out,) = training_data.held_out(config, CPU)
    nothing = psnr(torch.ones(1, 16, 16, 3), over(held_out.images[0, 4:], 1.0))
    assert progress.best > float(nothing) + 2, "the PSNR of an empty picture"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "log.jsonl", "report.html", "checkpoints", "best.safetensors"),
    }
    assert config_from(json.loads((tmp_path / "run/config.json").read_text())) == config
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == training_state.KEPT
    assert "data:image/png" in (tmp_path / "run/report.html").read_text()


def test_three_kills_change_nothing(tmp_path: Path) -> None:
    """At random moments, checkpoints being written all the time."""
    config = RUN | {"steps": 24, "checkpoint_seconds": 0}
    finish(start(config, tmp_path / "whole"))
    chance, out, killed = random.Random(), tmp_path / "killed", []
    for goal in (2, 7, 12):
        process = start(config, out)
        until = time.monotonic() + DEADLINE
        while len(steps := [line for line in read(out / "log.jsonl") if line["kind"] == "step"]) < goal:
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        process.join()
        killed.append(len(steps))
    finish(start(config, out))
    assert killed == sorted(killed) and killed[-1] < 24
    starts = [line["step"] for line in read(out / "log.jsonl") if line["kind"] == "start"]
    assert len(starts) == 4 and starts[0] == 0 < starts[1] < starts[2] < starts[3]
    assert losses(out) == losses(tmp_path / "whole")
    whole, torn = last_state(tmp_path / "whole"), last_state(out)
    assert whole.keys() == torn.keys() and all(torch.equal(whole[name], torn[name]) for name in whole)


def test_two_processes_are_one(tmp_path: Path) -> None:
    config = RUN | {"steps": 12}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    ranks = [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    finish(*(start(config, tmp_path / "two", environment=rank) for rank in ranks))
    train(config_from(config), tmp_path / "one", device="cpu")
    assert read(tmp_path / "two/log.jsonl")[0]["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = last_state(tmp_path / "one"), last_state(tmp_path / "two")
    assert one.keys() == two.keys()
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def ahead_and_here(kind: str) -> None:
    """The same batches are made by workers, for a kind of device, and here."""
    config = config_from(RUN | {"steps": 4, "workers": 1, "data": {"seed": 3, "real_share": 0.0}})
    wanted = list(itertools.islice(requests(config, 0, lambda _: 0.9, rank=0, ranks=1), 2))
    for request, (told, batch) in zip(wanted, training_data.batches(config, wanted, torch.device(kind)), strict=True):
        here = training_data.batch_of(config, request, CPU)
        assert told == request and torch.equal(batch.images, here.images) and torch.equal(batch.c2w, here.c2w)


def test_workers_make_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """They know nothing of this test's samples: with the real ones."""
    monkeypatch.setattr(training_data, "draw", data.draw)
    monkeypatch.setattr(training_data, "take", data.take)
    ahead_and_here("cpu")


def test_a_gpu_photographs_what_workers_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_ahead(made: Any, wanted: Any, workers: int) -> Iterator[Any]:
        assert workers == 1
        return (made[request] for request in wanted)

    monkeypatch.setattr(training_data, "_made_ahead", made_ahead)
    monkeypatch.setattr(training_data, "take", lambda scenes, device: ball_take(scenes))
    ahead_and_here("cuda")


def test_a_run_stops_when_it_is_told_to_and_goes_on(tmp_path: Path) -> None:
    class Early(Silent):
        asked = 0

        def finish_early(self) -> bool:
            self.asked += 1
            return self.asked > 5

    config = config_from(RUN | {"steps": 10})
    train(config, tmp_path / "whole", device="cpu")
    assert train(config, tmp_path / "parts", device="cpu", monitor=Early()).step == 5
    assert train(config, tmp_path / "parts", device="cpu").step == 10
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert train(config, tmp_path / "parts", device="cpu").step == 10, "there is nothing left to do"


def test_minutes_lay_out_rate_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes one second each time it is read: time is all that counts then."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)))
    sizes: list[int] = []

    def draw(stream: data.DataConfig, index: int) -> tuple[data.DataConfig, int]:
        sizes.append(stream.size)
        return ball_scene(stream, index)

    monkeypatch.setattr(training_data, "draw", draw)
    train(config_from(RUN | {"minutes": 1.2, "validations": 0}), tmp_path / "run", device="cpu")
    lines = [line for line in read(tmp_path / "run/log.jsonl") if line["kind"] == "step"]
    assert 8 < len(lines) < 60
    assert lines[0]["share"] < 0.1 and 0.9 < lines[-1]["share"] < 1
    rates = [line["rate"] for line in lines[1:]]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.05 * RUN["rate"]
    assert sizes == sorted(sizes) and set(sizes) == {8, 16} and 0.3 < sizes.count(8) / len(sizes) < 0.7


def test_bfloat16_keeps_geometry_and_weights_exact(tmp_path: Path) -> None:
    progress = train(config_from(RUN | {"steps": 6, "precision": "bfloat16"}), tmp_path / "half", device="cpu")
    train(config_from(RUN | {"steps": 6}), tmp_path / "full", device="cpu")
    assert progress.step == 6
    assert {tensor.dtype for tensor in last_state(tmp_path / "half").values()} == {torch.float32}
    half, full = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert half != full and half == pytest.approx(full, rel=0.05)


def test_a_run_begins_with_the_weights_it_is_given(tmp_path: Path) -> None:
    train(config_from(RUN | {"steps": 6, "validations": 1}), tmp_path / "first", device="cpu")
    config = config_from(RUN | {"steps": 1, "rate": 1e-12, "start": str(tmp_path / "first/best.safetensors")})
    train(config, tmp_path / "second", device="cpu")
    given, kept = load_file(tmp_path / "first/best.safetensors"), last_state(tmp_path / "second")
    for name, tensor in given.items():
        torch.testing.assert_close(kept[f"weight/{name}"], tensor)


# ---- what ships


def test_what_is_exported_loads_and_is_the_best(tmp_path: Path) -> None:
    train(config_from(RUN | {"steps": 8}), tmp_path / "run", device="cpu")
    out = tmp_path / "lgm.safetensors"
    assert main(["train", "--export", str(tmp_path / "run"), "--out", str(out)]) == 0
    shipped = read_checkpoint(out, "lgm")
    assert lgm.config_from(shipped.config) == lgm.config_from(LGM)
    best = load_file(tmp_path / "run/best.safetensors")
    assert shipped.state.keys() == best.keys()
    for name, tensor in shipped.state.items():
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor.float(), best[name], rtol=1e-3, atol=1e-6)


def test_the_best_is_the_average_and_stays_when_it_gets_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([20.0, 10.0])
    seen: list[dict[str, torch.Tensor]] = []

    def score(self: training.Judge, weights: Any) -> tuple[float, list[Any]]:
        seen.append({name: tensor.clone() for name, tensor in weights.items()})
        return next(scores), []

    monkeypatch.setattr(training.Judge, "score", score)
    train(config_from(RUN | {"steps": 8}), tmp_path / "run", device="cpu")
    best, after = load_file(tmp_path / "run/best.safetensors"), last_state(tmp_path / "run")
    assert all(torch.equal(best[name], seen[0][name]) for name in best)
    assert all(torch.equal(after[f"average/{name}"], seen[1][name]) for name in best)
    assert any(not torch.equal(after[f"weight/{name}"], seen[1][name]) for name in best)


# ---- the order of the samples


def taken(config: Any, first: int, steps: int, *, ranks: int = 1) -> list[Any]:
    streams = [requests(config, first, lambda step: step / 100, rank=rank, ranks=ranks) for rank in range(ranks)]
    parts = config.batch // config.micro_batch // ranks
    return sorted((next(stream) for stream in streams for _ in range(steps * parts)), key=lambda one: one.number)


def test_every_sample_comes_once_whatever_the_processes() -> None:
    config = config_from(RUN | {"steps": 100, "batch": 8, "micro_batch": 2})
    every = taken(config, 0, 6)
    assert [index for one in every for index in range(*one.indices)] == list(range(48))
    assert taken(config, 0, 6, ranks=2) == every == taken(config, 0, 6, ranks=4)
    assert taken(config, 0, 2) + taken(config, 2, 4) == every, "it goes on with the very next one"
    late = taken(config, 60, 20)
    assert {one.stage for one in every} == {0} and {one.stage for one in late} == {1}
    assert {one.views for one in every} == {4, 5} and {one.views for one in late} == {5}


def test_what_is_judged_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_from(RUN | {"steps": 1, "validation_objects": 2, "validation_inputs": 3})
    seen: list[tuple[bool, int, int, int]] = []

    def draw(stream: data.DataConfig, index: int) -> tuple[data.DataConfig, int]:
        seen.append((stream.held_out, stream.views, stream.inputs, index))
        return ball_scene(stream, index)

    monkeypatch.setattr(training_data, "draw", draw)
    found = [(len(one), one.images.shape[1], one.inputs) for one in training_data.held_out(config, CPU)]
    assert found == [(1, 5, 3)] * 2 and seen == [(True, 5, 3, 0), (True, 5, 3, 1)]


# ---- guards


def test_the_guard_skips_what_is_unusual() -> None:
    guard = Guard(10.0)
    assert all(guard.accepts(norm) for norm in (50.0, 1.0, 2.0, 100.0)), "nothing is known yet"
    guard = Guard(10.0, norms=(1.0,) * 20)
    assert not guard.accepts(10.5) and not guard.accepts(float("nan")) and not guard.accepts(float("inf"))
    assert guard.skipped == 3
    assert guard.accepts(9.5) and guard.skipped == 0


def test_a_lasting_change_is_no_accident() -> None:
    guard = Guard(10.0, norms=(1.0,) * training.WINDOW)
    assert sum(not guard.accepts(30.0) for _ in range(100)) <= training.WINDOW // 2


class Broken(lgm.LGM):
    """Gives no numbers from some pass on."""

    passes = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        Broken.passes += 1
        return super().forward(inputs) * (float("nan") if Broken.passes > 8 else 1.0)


def test_a_run_without_numbers_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.recipes import lgm as recipe

    monkeypatch.setattr(recipe, "MODEL", Broken)
    monkeypatch.setattr(Broken, "passes", 0)
    config = config_from(RUN | {"steps": 30, "patience": 3, "checkpoint_seconds": 0})
    with pytest.raises(Diverged, match=r"stopped at step 7.* 3 times in a row; lower the rate"):
        train(config, tmp_path, device="cpu")
    kinds = [line["kind"] for line in read(tmp_path / "log.jsonl")]
    assert kinds == ["start", *["step"] * 4, *["skip"] * 3]
    assert all(bool(tensor.isfinite().all()) for tensor in last_state(tmp_path).values())


# ---- what is refused


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    train(config_from(RUN | {"steps": 2, "validations": 0}), tmp_path, device="cpu")
    with pytest.raises(BadInput, match=r"another configuration: rate was 0\.004 and is 0\.5"):
        train(config_from(RUN | {"steps": 2, "validations": 0, "rate": 0.5}), tmp_path, device="cpu")
    again = config_from(RUN | {"steps": 2, "validations": 0, "micro_batch": 2, "checkpoint_seconds": 7})
    assert train(again, tmp_path, device="cpu").step == 2, "these change nothing that is computed"


def test_a_run_goes_on_that_began_before_a_field_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_from(RUN | {"steps": 2, "validations": 0})
    train(config, tmp_path, device="cpu")
    found = training_state.load_latest(tmp_path / "checkpoints")
    assert found is not None
    told = dict(found[0].config)
    told["data"] = {name: value for name, value in told["data"].items() if name not in ("folders", "folder_share")}
    old = replace(found[0], config=told), found[1]
    monkeypatch.setattr(training_state, "load_latest", lambda folder: old)
    assert train(config, tmp_path, device="cpu").step == 2


def test_unknown_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="network: expected one of big, big_legacy, small, tiny, or a configuration"):
        train(config_from(RUN | {"steps": 1, "network": "huge"}), tmp_path, device="cpu")
    with pytest.raises(BadInput, match="input_sizes: LGM expects one of"):
        train(config_from(RUN | {"steps": 1, "network": LGM | {"input_sizes": 1}}), tmp_path, device="cpu")
    assert not list(tmp_path.iterdir())


# ---- the command


def test_the_command_trains_and_complains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = parser().parse_args("train C.json --out R --minutes 20 --stop-after 5 --device cuda".split())
    assert (given.config, given.out, given.minutes, given.stop_after) == (Path("C.json"), Path("R"), 20.0, 5.0)
    file, out = tmp_path / "run.json", tmp_path / "run"
    file.write_text(json.dumps(RUN | {"steps": 2, "validations": 0}))
    assert read_config(file, minutes=3).minutes == 3 and read_config(file, minutes=3).steps == 0
    assert main(["train", str(file), "--out", str(out), "--device", "cpu"]) == 0
    assert len(losses(out)) == 2
    for words in (["train", "--out", str(out)], ["train", "--export", str(tmp_path / "none"), "--out", str(file)]):
        assert main(words) == 2
    said = capsys.readouterr().err
    assert "CONFIG: expected a JSON file" in said and "found no checkpoint in it" in said
    assert read_config(file).steps == 2, "nothing was written over it"


def test_ctrl_c_leaves_a_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def interrupted(config: Any, out: Path, *, device: str, monitor: Silent) -> None:
        asked.append(monitor.finish_early())
        os.kill(os.getpid(), signal.SIGTERM)
        asked.append(monitor.finish_early())

    monkeypatch.setattr(train_command, "train", interrupted)
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"steps": 2}))
    before = signal.getsignal(signal.SIGTERM)
    words = ["train", str(tmp_path / "run.json"), "--out", str(tmp_path)]
    assert main(words) == 130 and asked == [False, True]
    assert signal.getsignal(signal.SIGTERM) == before
    assert train_command.Interruptible(1e-9).finish_early() and not train_command.Interruptible(5).finish_early()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="device: expected cuda, found none"):
        train(config_from(RUN | {"steps": 1}), tmp_path, device="cuda")
