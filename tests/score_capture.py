"""Scores a reconstruction against what was captured:  python -m tests.score_capture FOLDER

FOLDER is as tests/blender/figures.py leaves it: checked/*.png, result/ with pictures of the same names, geometry.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from scipy.spatial import KDTree

SAMPLES = 60_000
CLOSE = 0.01  # of the geometry's longest side


def on_white(path: Path) -> np.ndarray:
    """[H,W,3] 0..1."""
    with Image.open(path) as image:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float64) / 255
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def mean_psnr(folder: Path, prefix: str) -> float:
    """dB, the mean over the pictures."""
    pictures = sorted((folder / "checked").glob("*.png"))
    errors = [np.mean((on_white(one) - on_white(folder / "result" / f"{prefix}{one.name}")) ** 2) for one in pictures]
    return float(np.mean([-10 * np.log10(error) for error in errors]))


def f_score(made: trimesh.Trimesh, truth: trimesh.Trimesh) -> float:
    """Harmonic mean of the shares of both surfaces that lie within CLOSE of the other."""
    ours, theirs = (np.asarray(trimesh.sample.sample_surface(mesh, SAMPLES, seed=0)[0]) for mesh in (made, truth))
    near = CLOSE * float(np.ptp(truth.vertices, axis=0).max())
    precision, recall = (KDTree(theirs).query(ours)[0] < near).mean(), (KDTree(ours).query(theirs)[0] < near).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def main() -> None:
    folder = Path(sys.argv[1])
    made = trimesh.load(folder / "result" / "mesh.glb", force="mesh")
    assert isinstance(made, trimesh.Trimesh)
    made.vertices = made.vertices[:, [0, 2, 1]] * [1, -1, 1]  # glTF is Y up
    with np.load(folder / "geometry.npz") as geometry:
        truth = trimesh.Trimesh(geometry["vertices"], geometry["faces"], process=False)
    sys.stdout.write(
        f"{folder.name}: splats {mean_psnr(folder, ''):.2f} dB, mesh {mean_psnr(folder, 'mesh_'):.2f} dB, "
        f"F-score {f_score(made, truth):.3f} at {CLOSE:.0%} of the size\n"
    )


if __name__ == "__main__":
    main()
