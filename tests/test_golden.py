"""The command that runs our networks on golden values: every folder, every tensor, right to a part in a thousand.

The tests of each family hold its tensors to the tolerances that the golden folders state.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests import golden
from tests.fakes import ROOT

FOLDERS = {
    "grm": ("grm", "grm/half_res_exp", "grm/no_upsampler"),
    "lgm": ("lgm/model",),
    "long_lrm": ("long_lrm/model", "long_lrm/model_variant"),
    "mamba2": ("long_lrm/mamba2_mixer",),
    "bimamba2": ("long_lrm/bimamba2_block",),
    "mvdream": ("mvdream/text", "mvdream/image"),
    "openlrm": ("openlrm",),
    "triposr": ("triposr",),
}
CASES = [(family, folder) for family, folders in FOLDERS.items() for folder in folders]


@pytest.mark.parametrize(("family", "folder"), CASES, ids=[folder for _, folder in CASES])
def test_every_tensor_is_written(family: str, folder: str, shared_folder: Path, tmp_path: Path) -> None:
    source, out = shared_folder / "golden" / folder, tmp_path / "out.safetensors"
    assert golden.main([family, str(source), str(out)]) == 0
    made, wanted = load_file(out), load_file(source / "output.safetensors")
    assert set(wanted) <= set(made), sorted(set(wanted) - set(made))
    for name, tensor in wanted.items():
        assert made[name].shape == tensor.shape, name
        if name.startswith("prune_"):  # opacities may lie closer than their noise: neighbours then change places
            count = tensor.shape[1] if tensor.ndim > 1 else 0
            assert count == 0 or len(np.intersect1d(made[name].numpy(), tensor.numpy())) > 0.99 * count or "xyz" in name
            continue
        span = float(tensor.abs().max().clamp(min=1e-6))
        assert float((made[name].double() - tensor.double()).abs().max()) < 1e-3 * span, name


def test_as_a_command(shared_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    folder = shared_folder / "golden/long_lrm/mamba2_mixer"
    command = [sys.executable, str(ROOT / "tests/golden.py"), "mamba2", str(folder), str(out)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    assert set(load_file(out)) == set(load_file(folder / "output.safetensors"))


def test_what_it_refuses(shared_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "golden", str(tmp_path / "out.safetensors")
    shutil.copytree(shared_folder / "golden/lgm/model", folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"mid_layers": 1', '"mid_layers": 1, "dropout": 0.1'))
    assert golden.main(["lgm", str(folder), out]) == 2 and "dropout" in capsys.readouterr().err
    (folder / "weights.safetensors").unlink()
    assert golden.main(["lgm", str(folder), out]) == 2 and "weights.safetensors" in capsys.readouterr().err
    assert golden.main(["no_such_family", str(folder), out]) == 2
    assert not Path(out).exists()
