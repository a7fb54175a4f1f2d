"""Checkpoints: the optimiser's moving average, whole files or none, weights in parts, and what ships."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from backend import training_state as state
from backend.bad_input import BadInput
from backend.training_state import AveragingAdamW, Progress

PROGRESS = Progress(
    {"family": "lgm", "rate": 0.1}, {"input_size": 16}, 7, 14, 2.5, (0.5, 0.25), 1, ((4, 20.5), (6, 19.0))
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.BatchNorm1d(2))


def optimiser(model: nn.Module) -> AveragingAdamW:
    return AveragingAdamW(model, weight_decay=0.05, average=0.9)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(5, 3, generator=rng)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


# ---- the optimiser


def test_weights_move_as_with_adamw_and_matrices_alone_decay() -> None:
    ours, theirs = network(), network()
    groups = [
        {"params": [weight for weight in theirs.parameters() if weight.ndim >= 2], "weight_decay": 0.05},
        {"params": [weight for weight in theirs.parameters() if weight.ndim < 2], "weight_decay": 0.0},
    ]
    learn(ours, optimiser(ours), 6)
    learn(theirs, torch.optim.AdamW(groups, betas=(0.9, 0.95)), 6)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)  # fused steps round otherwise


def test_the_average_is_that_of_the_weights_it_saw() -> None:
    model = network()
    optimizer = optimiser(model)
    wanted: dict[str, Tensor] = {}
    rng = torch.Generator().manual_seed(1)
    for step in range(1, 121):
        model(torch.randn(5, 3, generator=rng)).square().sum().backward()
        optimizer.step()
        keep = min(0.9, (1 + step) / (10 + step))
        for name, weight in model.named_parameters():
            old = wanted.get(name, weight.detach())
            wanted[name] = keep * old + (1 - keep) * weight.detach()
        optimizer.zero_grad()
    found = state.averages(state.gathered(model, optimizer))
    assert found.keys() == model.state_dict().keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)
    assert not torch.equal(found["0.weight"], model.state_dict()["0.weight"])
    assert torch.equal(found["3.running_mean"], model.state_dict()["3.running_mean"]), "no weight: as it is"


def test_what_has_no_gradient_yet_is_its_own_average() -> None:
    model = network()
    optimizer = optimiser(model)
    model[0](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = state.gathered(model, optimizer)
    assert "average/0.weight" in tensors and "average/2.weight" not in tensors
    assert torch.equal(state.averages(tensors)["2.weight"], model.state_dict()["2.weight"])
    fresh = network()
    state.restore(fresh, optimiser(fresh), tensors)


# ---- there and back


def test_a_restored_run_goes_on_the_same(tmp_path: Path) -> None:
    model = network()
    optimizer = optimiser(model)
    learn(model, optimizer, 3)
    state.save(tmp_path, PROGRESS, state.gathered(model, optimizer))
    loaded = state.load_latest(tmp_path)
    assert loaded is not None and loaded[0] == PROGRESS
    other = network()
    restored = optimiser(other)
    state.restore(other, restored, loaded[1])
    for one, its in ((model, optimizer), (other, restored)):
        learn(one, its, 3)
    for name, tensor in state.gathered(model, optimizer).items():
        assert torch.equal(tensor, state.gathered(other, restored)[name]), name


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_weights_in_parts_are_kept_whole(one_process: None) -> None:
    whole, parted = network(), copy.deepcopy(network())
    fully_shard(parted, mesh=init_device_mesh("cpu", (1,)))
    one, other = optimiser(whole), optimiser(parted)
    learn(whole, one, 3)
    learn(parted, other, 3)
    expected, found = state.gathered(whole, one), state.gathered(parted, other)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert type(tensor) is Tensor
        torch.testing.assert_close(tensor, expected[name])
    fresh = network()
    fully_shard(fresh, mesh=init_device_mesh("cpu", (1,)))
    its = optimiser(fresh)
    state.restore(fresh, its, expected)
    learn(whole, one, 2)
    learn(fresh, its, 2)
    torch.testing.assert_close(state.gathered(fresh, its), state.gathered(whole, one))


# ---- whole files or none


def saved(folder: Path, step: int) -> Path:
    progress = Progress({"family": "lgm"}, {}, step)
    return state.save(folder, progress, {"weight/a": torch.full((64,), float(step)), "step/a": torch.tensor(1.0)})


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    paths = [saved(tmp_path, step) for step in (5, 10, 15)]
    assert sorted(tmp_path.iterdir()) == paths[1:]
    assert state.load_latest(tmp_path / "nothing") is None


def cut_short(content: bytearray) -> bytes:
    return bytes(content[:-40])


def emptied(content: bytearray) -> bytes:
    return b""


def zeroed(content: bytearray) -> bytes:
    """As after a power cut: as long as it was."""
    return bytes(content[:-64]) + bytes(64)


def turned(content: bytearray) -> bytes:
    content[-100] ^= 1
    return bytes(content)


def relabelled(content: bytearray) -> bytes:
    return bytes(content).replace(b'step\\": 2', b'step\\": 3')


@pytest.mark.parametrize("damage", [cut_short, emptied, zeroed, turned, relabelled])
def test_a_torn_checkpoint_is_never_read(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1)
    newest = saved(tmp_path, 2)
    before = newest.read_bytes()
    newest.write_bytes(damage(bytearray(before)))
    assert newest.read_bytes() != before
    with caplog.at_level(logging.WARNING):
        loaded = state.load_latest(tmp_path)
    assert loaded is not None and loaded[0].step == 1 and float(loaded[1]["weight/a"][0]) == 1
    assert "step_000000002.safetensors is damaged and left out" in caplog.text


def test_nothing_but_damaged_checkpoints_is_no_new_run(tmp_path: Path) -> None:
    saved(tmp_path, 1).write_bytes(b"{")
    with pytest.raises(BadInput, match="expected a checkpoint that can be read, found 1 damaged"):
        state.load_latest(tmp_path)


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    path = saved(tmp_path, 1)
    (tmp_path / ".step_000000002.safetensors.99.part").write_bytes(b"half of it")
    assert state.load_latest(tmp_path) is not None
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [path]


# ---- what ships


def test_a_run_without_scores_exports_its_last_average(tmp_path: Path) -> None:
    tensors = {"weight/a": torch.ones(2), "average/a": torch.full((2,), 0.5), "weight/n": torch.tensor([3])}
    state.save(tmp_path / "checkpoints", PROGRESS, tensors)
    state.export(tmp_path, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found["a"].tolist() == [0.5, 0.5] and found["a"].dtype == torch.float16
    assert found["n"].dtype == torch.int64 and set(found) == {"a", "n"}


def test_it_says_how_it_was_made(tmp_path: Path) -> None:
    state.write_weights(tmp_path / state.BEST, "lgm", PROGRESS, {"a": torch.ones(2)})
    state.export(tmp_path, tmp_path / "out.safetensors")
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["family"] == "lgm" and json.loads(metadata["config"]) == {"input_size": 16}
    made = json.loads(metadata["training"])
    assert made == {"config": {"family": "lgm", "rate": 0.1}, "step": 7, "samples": 14, "seconds": 2.5, "psnr": 19.0}


def test_what_ships_names_no_folder(tmp_path: Path) -> None:
    where = {"assets": "/home/me/assets", "folders": ["/data/one", "two/three"], "seed": 3}
    progress = replace(PROGRESS, config={"family": "lgm", "data": where, "start": "/home/me/old.safetensors"})
    state.write_weights(tmp_path / state.BEST, "lgm", progress, {"a": torch.ones(2)})
    state.export(tmp_path, tmp_path / "out.safetensors")
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        told = json.loads(file.metadata()["training"])["config"]
    named = {"assets": "assets", "folders": ["one", "three"], "seed": 3}
    assert told == {"family": "lgm", "data": named, "start": "old.safetensors"}
