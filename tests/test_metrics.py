"""PSNR, masks and surfaces by hand; SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from backend.metrics import alpha_iou, closeness, object_box, psnr, ssim


def test_psnr_of_a_constant_error_is_the_textbook_value():
    want = torch.full((4, 5, 3), 0.5)
    assert float(psnr(want + 0.1, want)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(want, want)) == pytest.approx(100.0)


@pytest.mark.parametrize("size", [(31, 47), (64, 64), (11, 12)])
def test_ssim_is_scikit_images_gaussian_ssim(size):
    generator = torch.Generator().manual_seed(sum(size))
    want = torch.rand(*size, 3, generator=generator)
    got = (want + 0.3 * torch.rand(*size, 3, generator=generator)).clamp(0, 1)
    expected = structural_similarity(
        got.numpy().astype(np.float64),
        want.numpy().astype(np.float64),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert float(ssim(got.double(), want.double())) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_every_second_window_is_near_that_of_all():
    generator = torch.Generator().manual_seed(1)
    want = torch.rand(80, 90, 3, generator=generator)
    got = (want + 0.3 * torch.rand(80, 90, 3, generator=generator)).clamp(0, 1)
    assert float(ssim(got, want, every=2)) == pytest.approx(float(ssim(got, want)), abs=0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 7)])
def test_ssim_takes_pictures_smaller_than_its_window(size):
    picture = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    assert float(ssim(picture, picture)) == pytest.approx(1.0, abs=1e-5)
    assert float(ssim(1 - picture, picture)) < 0.99


def test_the_box_of_an_object():
    alpha = torch.zeros(6, 8)
    alpha[2, 3], alpha[4, 5], alpha[0, 0] = 0.6, 1.0, 0.5
    assert object_box(alpha) == (slice(2, 5), slice(3, 6))
    assert object_box(torch.full((6, 8), 0.5)) == (slice(0, 6), slice(0, 8)), "nothing is above one half"


def test_intersection_over_union_by_hand():
    want, got = torch.zeros(4, 4), torch.zeros(4, 4)
    want[:2], got[1:, :3] = 1.0, 0.51  # 8 and 9 pixels, 3 of them common
    assert float(alpha_iou(got, want)) == pytest.approx(3 / 14)
    assert float(alpha_iou(want, want)) == 1
    assert float(alpha_iou(0.9 * got, want)) == 0, "0.46 is not solid"
    assert float(alpha_iou(torch.zeros(4, 4), torch.zeros(4, 4))) == 0


def test_chamfer_and_f_score_by_hand():
    want = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    got = np.array([[0.0, 0, 0.01], [1, 0.03, 0]])
    close = closeness(got, want, limit=0.02)
    there = (0.01 + 0.03) / 2
    back = (0.01 + 0.03 + np.hypot(1, 0.03) + np.hypot(2, 0.03)) / 4
    assert close.chamfer == pytest.approx((there + back) / 2)
    assert close.f1 == pytest.approx(2 * 0.5 * 0.25 / 0.75)
    assert closeness(want, want, limit=0.02).f1 == pytest.approx(1) and closeness(want, want, limit=0.02).chamfer == 0
    assert closeness(got + 10, want, limit=0.02).f1 == 0


def test_the_nearest_points_are_those_of_every_pair():
    generator = np.random.default_rng(0)
    got, want = generator.random((50, 3)), generator.random((70, 3))
    pairs = np.linalg.norm(got[:, None] - want, axis=-1)
    there, back = pairs.min(1), pairs.min(0)
    close = closeness(got, want, limit=0.15)
    precision, recall = (there < 0.15).mean(), (back < 0.15).mean()
    assert close.chamfer == pytest.approx((there.mean() + back.mean()) / 2)
    assert close.f1 == pytest.approx(2 * precision * recall / (precision + recall))
