"""Published checkpoints, written small, from the command line to splats: loading, memory, progress, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import network, ply
from backend.__main__ import main
from backend.cameras import BadInput, Views
from backend.monitor import JobCancelled, Silent
from tests import published_files
from tests.balls import ball_views, write_ball

CPU = torch.device("cpu")
WRITERS: dict[str, tuple[str, str, Callable[[Path, Path], Path]]] = {
    "grm": ("grm", "grm", published_files.write_grm),
    "lgm": ("lgm", "lgm/model", published_files.write_lgm),
    "lgm_legacy": ("lgm", "lgm/model", lambda source, folder: published_files.write_lgm(source, folder, legacy=True)),
    "long_lrm": ("long_lrm", "long_lrm/model_variant", published_files.write_long_lrm),
    "openlrm": ("lrm", "openlrm", published_files.write_openlrm),
    "triposr": ("lrm", "triposr", published_files.write_triposr),
}
QUICK = ("--max-splats", "4000", "--faces", "400", "--texture-size", "32")


@pytest.fixture(autouse=True)
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights make a surface everywhere; a coarse one will do."""
    monkeypatch.setattr(network, "FIELD_GRID", 32)


@pytest.fixture
def written(shared_folder: Path, tmp_path: Path) -> Callable[[str], tuple[str, Path]]:
    """A published checkpoint's family and path, by its name in WRITERS."""

    def write(name: str) -> tuple[str, Path]:
        family, golden, writer = WRITERS[name]
        folder = tmp_path / name
        folder.mkdir()
        return family, writer(shared_folder / "golden" / golden, folder)

    return write


def run(family: str, views: Views, path: Path, **changes) -> network.Outcome:
    given = {"checkpoint": str(path), "precision": "auto", "device": CPU, "mesh": False, "monitor": Silent()}
    return network.reconstruct(family, views, **(given | changes))


@pytest.mark.parametrize("name", WRITERS)
def test_published_files_reconstruct_from_the_command_line(name: str, written, tmp_path: Path) -> None:
    family, path = written(name)
    views = tmp_path / "views"
    views.mkdir()
    write_ball(views)
    out = tmp_path / "out"
    words = ["reconstruct", str(views), "--out", str(out), "--model", family, "--weights", str(path), *QUICK]
    assert main([*words, *(["--mesh"] if name == "triposr" else [])]) == 0
    report = json.loads((out / "report.json").read_text())
    assert (out / "mesh.glb").is_file() == (name == "triposr")
    splats = ply.load(out / "splats.ply")
    assert 0 < len(splats) == report["splats"] <= 4000 and bool(splats.finite.all())
    assert report["model"] == family and report["weights"] == str(path) and len(report["weights_sha256"]) == 64
    assert report["precision"] == "float32" and report["start"] == "network" and report["steps"] == 0


def test_refining_goes_on_from_the_network(written, tmp_path: Path) -> None:
    _, path = written("lgm")
    write_ball(tmp_path)
    out = tmp_path / "out"
    words = ["reconstruct", str(tmp_path), "--out", str(out), "--model", "lgm", "--weights", str(path), *QUICK]
    assert main(words) == 0
    alone = json.loads((out / "report.json").read_text())
    assert main([*words, "--refine", "40"]) == 0
    refined = json.loads((out / "report.json").read_text())
    assert refined["steps"] == 40 and refined["start"] == "gaussians" and refined["psnr"] > alone["psnr"] + 1


def test_a_field_has_a_surface_of_its_own(written) -> None:
    family, path = written("triposr")
    outcome = run(family, ball_views(1), path, mesh=True)
    assert outcome.surface is not None and len(outcome.surface.faces) > 100
    near = outcome.gaussians.means.numpy()
    size = np.ptp(outcome.surface.vertices, axis=0)
    np.testing.assert_allclose(near.min(0), outcome.surface.vertices.min(0), atol=0.1 * size.max())
    np.testing.assert_allclose(near.max(0), outcome.surface.vertices.max(0), atol=0.1 * size.max())
    family, path = written("grm")
    assert run(family, ball_views(4), path, mesh=True).surface is None


def test_precisions_agree(written) -> None:
    family, path = written("grm")
    full = run(family, ball_views(4), path, precision="float32").gaussians
    half = run(family, ball_views(4), path, precision="bfloat16").gaussians
    assert len(half) > 0.9 * len(full)
    assert float((half.means.median(0).values - full.means.median(0).values).abs().max()) < 0.05
    again = run(family, ball_views(4), path, precision="float32").gaussians
    torch.testing.assert_close(again.means, full.means)  # rounding the weights to run in half must not stay


def test_memory_steps_down_and_then_refuses(written, monkeypatch: pytest.MonkeyPatch) -> None:
    family, path = written("lgm")
    loaded = network.load(path, family)
    needs = [loaded.file.memory_needed(loaded.model.config, 4, 32, 32, width) for width in (4, 2)]
    assert needs[0] > needs[1]
    held = network._held(loaded.model, CPU)
    monkeypatch.setattr(network, "free_memory", lambda device: sum(needs) / 2 / network.USABLE_MEMORY - held)
    assert run(family, ball_views(4), path).precision == "bfloat16"
    held = network._held(network.load(path, family).model, CPU)
    monkeypatch.setattr(network, "free_memory", lambda device: 0.5 * needs[1] - held)
    with pytest.raises(MemoryError, match=r"lgm needs about .* GiB for 4 views of 32x32"):
        run(family, ball_views(4), path)


def test_little_memory_is_exit_status_2(written, tmp_path: Path, monkeypatch, capsys) -> None:
    _, path = written("lgm")
    write_ball(tmp_path)
    monkeypatch.setattr(network, "free_memory", lambda device: 1000)
    words = ["reconstruct", str(tmp_path), "--out", str(tmp_path / "out"), "--model", "lgm", "--weights", str(path)]
    assert main(words) == 2
    assert "GiB are free" in capsys.readouterr().err and not list((tmp_path / "out").glob("*.ply"))


class Impatient(Silent):
    """Cancels at the tenth step of the network, and notes what it hears."""

    def __init__(self, patience: int = 10) -> None:
        self.heard: list[tuple[str, int, int]] = []
        self.patience = patience

    def progress(self, stage: str, step: int, total: int) -> None:
        self.heard.append((stage, step, total))
        if stage == "network" and step >= self.patience:
            raise JobCancelled


def test_a_pass_shows_progress_and_can_be_cancelled(written) -> None:
    family, path = written("lgm")
    watcher = Impatient(patience=10**6)
    run(family, ball_views(4), path, monitor=watcher)
    steps = [step for stage, step, _ in watcher.heard if stage == "network"]
    assert steps == sorted(steps) and steps[-1] == watcher.heard[-1][2] > 20
    watcher = Impatient()
    with pytest.raises(JobCancelled):
        run(family, ball_views(4), path, monitor=watcher)
    assert watcher.heard[-1][1] == 10
    run(family, ball_views(4), path)  # no hook stays behind to cancel this


@pytest.mark.parametrize(
    ("family", "name", "views", "sentence"),
    [
        ("grm", "lgm", 4, "expected a checkpoint of grm, found one of lgm"),
        ("lgm", "lgm", 3, "LGM needs at least 4 views, found 3"),
        ("grm", "grm", 3, "1, 4, 9, 16 views .* found 3"),
    ],
)
def test_what_does_not_go_together(family: str, name: str, views: int, sentence: str, written) -> None:
    _, path = written(name)
    with pytest.raises(BadInput, match=sentence):
        run(family, ball_views(views), path)


def test_orthographic_views_are_refused_by_what_cannot_take_them(written) -> None:
    family, path = written("lgm")
    views = ball_views(4)
    flat = replace(views, cameras=replace(views.cameras, orthographic=torch.ones(4, dtype=torch.bool)))
    with pytest.raises(BadInput, match="perspective cameras alone"):
        run(family, flat, path)


def test_damaged_files(written) -> None:
    family, path = written("lgm")
    state = load_file(path)
    name = next(iter(state))
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, path)
    with pytest.raises(BadInput, match="finite numbers"):
        run(family, ball_views(4), path)
    save_file({key: value for key, value in state.items() if key != name}, path)
    with pytest.raises(BadInput, match="missing"):
        run(family, ball_views(4), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=path.name):
        run(family, ball_views(4), path)
