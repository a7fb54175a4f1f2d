"""The bench's scene is the one its figures are about, and its table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from backend import bench, bench_networks, network, weights
from backend.models import grm
from backend.rasterise_cpu import rasterise


def test_the_scene_is_a_shell_of_splats_of_one_to_three_pixels() -> None:
    gaussians, cameras = bench.sphere_shell(4000, 512)
    torch.testing.assert_close(gaussians.means.norm(dim=1), torch.ones(4000))
    pixels = gaussians.scales * cameras.Ks[0, 0, 0] / 2.7
    assert 1 <= pixels.min() < 1.01 and 2.99 < pixels.max() <= 3.001
    assert 0.3 <= gaussians.opacities.min() and gaussians.opacities.max() <= 0.95
    covered = rasterise(gaussians, cameras)[0, ..., 4] > 0
    assert 0.4 < covered.float().mean() < 0.75  # a disc of 0.86 times the half width


def test_the_table_holds_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = (bench.Scene("small", 200, 32, 3),)
    for scenes in ("CPU_SCENES", "SLOW_SCENES", "SAME_SIZE_SCENES"):
        monkeypatch.setattr(bench, scenes, small)
    monkeypatch.setattr(bench, "gsplat_problem", lambda: "no such card")
    tiny = bench_networks.Case("tiny", "grm", "grm_u", 4, 32, (("input_res", 32), ("layers", 1), ("width", 128)))
    monkeypatch.setattr(bench_networks, "CASES", (tiny,))
    monkeypatch.setattr(bench_networks, "LENGTHS", (256, 512))
    monkeypatch.setattr(bench_networks, "MATMUL_SIDE", {"cpu": 256})
    monkeypatch.setattr(bench_networks, "PRECISIONS", {"cpu": ("float32", "bfloat16")})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.bench(tmp_path / "new" / "table.json") == 0
    written = json.loads((tmp_path / "new" / "table.json").read_text())
    assert [row["count"] for row in written["rows"]] == [200, 200, 200, 65536, 1048576]
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in written["rows"][:3])
    assert written["rows"][3]["forward_ms"] is None and "no such card" in written["rows"][3]["note"]
    printed = capsys.readouterr().out
    assert "small" in printed and "no such card" in printed
    speed, lengths = written["networks"][0], written["scan"]
    assert speed["name"] == "tiny" and speed["seconds"] > 0 and 0.1 < speed["peak_gib"] < 4 and speed["tflop"] > 0
    half = written["networks"][1]
    assert speed["difference"] == 0 and half["precision"] == "bfloat16" and 0 < half["difference"] < 0.1
    assert [row["tokens"] for row in lengths] == [256, 512] and all(row["seconds"] > 0 for row in lengths)
    assert "tiny" in printed and "to the power" in printed


def test_the_starter_is_measured_as_it_ships() -> None:
    """Its row has the shipped weights, which a run in half precision does not round for the next."""
    assert bench_networks.STARTER in bench_networks.CASES and bench_networks.STARTER in bench_networks.CUDA_CASES
    views = bench_networks.coloured_views(2, 32)
    bench_networks._network(bench_networks.STARTER, torch.bfloat16, "cpu")
    got = bench_networks._network(bench_networks.STARTER, torch.float32, "cpu")(views)
    path, _ = weights.resolve("starter", "grm")
    model = network.load(path, "grm").model
    assert isinstance(model, grm.GRM)
    want = grm.reconstruct(model, views)
    torch.testing.assert_close(got.means, want.means)
    assert network.load(path, "grm").dtype == torch.float32


def test_the_exponent_of_a_power_law() -> None:
    rows = [bench_networks.Length(n, 3e-6 * n**1.5, 0.5 * n) for n in (100, 1000, 5000)]
    assert bench_networks.exponent(rows, "seconds") == pytest.approx(1.5)
    assert bench_networks.exponent(rows, "mib") == pytest.approx(1.0)
