"""Other people's tools read what we write: Khronos' glTF validator and PlayCanvas' splat-transform, both from npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trimesh

from backend.meshing import Mesh
from backend.texturing import bake, save_glb
from blender_addon import ply
from tests.shapes import capture, gaussians_on, orbit

HERE = Path(__file__).resolve().parent
VALIDATE = """
const validator = require('gltf-validator');
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[1]));
validator.validateBytes(bytes).then(report => console.log(JSON.stringify(report)));
"""


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The validators, installed once into the ignored folder beside this file."""
    modules = HERE / "node_modules"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    if not (modules / ".package-lock.json").exists():
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        made = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
        if made.returncode != 0:
            pytest.skip(f"npm cannot install the validators (offline?): {made.stderr.strip()[-200:]}")
    return modules


def test_glb_has_no_error(node_modules: Path, tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    mesh = Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32))
    textured = bake(mesh, capture(ball, orbit(4, (20,), size=64)), gaussians_on(ball, 2000), size=128)
    save_glb(textured, tmp_path / "a.glb")
    command = ["node", "-e", VALIDATE, str(tmp_path / "a.glb")]
    done = subprocess.run(command, cwd=node_modules.parent, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(done.stdout)
    assert report["issues"]["numErrors"] == 0 and report["issues"]["numWarnings"] == 0, report["issues"]["messages"]
    assert report["info"]["totalTriangleCount"] == len(mesh.faces)


@pytest.mark.parametrize("suffix", ["spz", "sog"])
@pytest.mark.parametrize("degree", [0, 3])
def test_splats_survive_other_formats(node_modules: Path, tmp_path: Path, suffix: str, degree: int) -> None:
    """Both formats are lossy: every splat comes back, in another order, near where it was."""
    rng = np.random.default_rng(degree)
    count, quats = 3000, rng.normal(size=(3000, 4))
    splats = ply.SplatArrays(
        means=rng.uniform(-1, 1, (count, 3)).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=rng.uniform(0.005, 0.05, (count, 3)).astype(np.float32),
        opacities=rng.uniform(0.1, 0.95, count).astype(np.float32),
        sh=rng.normal(0, 0.3, (count, (degree + 1) ** 2, 3)).astype(np.float32),
    )
    ply.write(tmp_path / "a.ply", splats)
    tool = ["node", str(node_modules / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"), "-q", "-w", "-g", "cpu"]
    for source, target in (("a.ply", f"a.{suffix}"), (f"a.{suffix}", "b.ply")):
        command = [*tool, str(tmp_path / source), str(tmp_path / target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    back = ply.read(tmp_path / "b.ply")
    assert len(back.means) == count and back.sh.shape == splats.sh.shape
    for axis in range(3):
        np.testing.assert_allclose(np.sort(back.means[:, axis]), np.sort(splats.means[:, axis]), atol=2e-3)
    np.testing.assert_allclose(np.sort(back.opacities), np.sort(splats.opacities), atol=0.02)
    np.testing.assert_allclose(np.sort(back.scales.ravel()), np.sort(splats.scales.ravel()), rtol=0.1, atol=5e-4)
