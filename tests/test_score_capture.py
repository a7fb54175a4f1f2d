"""The scores by hand: a shape against itself, moved, and halved; pictures a grey level apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.score_capture import CLOSE, f_score, mean_psnr


def test_f_score() -> None:
    box = trimesh.creation.box((1, 1, 1))
    assert f_score(box, box) == 1
    near, far = box.copy(), box.copy()
    near.apply_translation([0.5 * CLOSE, 0, 0])
    far.apply_translation([0.5, 0.5, 0.5])
    assert f_score(near, box) > 0.99 and f_score(far, box) < 0.1
    side = trimesh.Trimesh(box.vertices, box.faces[:2])  # a sixth of the surface: precise, and little of it
    assert f_score(side, box) == pytest.approx(2 / 7, abs=0.02)


def test_psnr_is_over_white(tmp_path: Path) -> None:
    for part, grey in (("checked", 100), ("result", 110)):
        (tmp_path / part).mkdir()
        rgba = np.zeros((4, 4, 4), np.uint8)
        rgba[:2] = (grey, grey, grey, 255)  # the other half is see-through and black: the same white in both
        Image.fromarray(rgba).save(tmp_path / part / "a.png")
    assert mean_psnr(tmp_path, "") == pytest.approx(-10 * np.log10((10 / 255) ** 2 / 2))
