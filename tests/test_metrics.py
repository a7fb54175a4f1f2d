"""PSNR by hand and SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from backend.metrics import over, psnr, ssim


def test_psnr_of_a_constant_error_is_the_textbook_value():
    want = torch.full((4, 5, 3), 0.5)
    assert float(psnr(want + 0.1, want)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(want, want)) == pytest.approx(100.0)


def test_over_composites_straight_alpha():
    pixel = torch.tensor([1.0, 0.5, 0.0, 0.25])
    assert over(pixel, 1.0).tolist() == pytest.approx([1.0, 0.875, 0.75])
    assert over(pixel, torch.tensor([0.0, 1.0, 0.0])).tolist() == pytest.approx([0.25, 0.875, 0.0])


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
