"""Values by hand, gradients against finite differences."""

from __future__ import annotations

import pytest
import torch

from backend import losses
from backend.metrics import ssim


def picture(seed: int) -> torch.Tensor:
    return torch.rand(14, 17, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_photometric_loss_is_zero_for_equal_pictures_and_mixes_its_two_parts():
    got, want = picture(0), picture(1)
    assert float(losses.photometric(want, want, 0.2)) == pytest.approx(0, abs=1e-7)
    only_l1, only_ssim = losses.photometric(got, want, 0.0), losses.photometric(got, want, 1.0)
    assert float(only_l1) == pytest.approx(float((got - want).abs().mean()))
    assert float(losses.photometric(got, want, 0.2)) == pytest.approx(0.8 * float(only_l1) + 0.2 * float(only_ssim))


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_photometric_gradient_is_that_of_finite_differences(share):
    got = picture(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.photometric(x, picture(3), share), (got,), atol=1e-6)


@pytest.mark.parametrize(
    "term",
    [
        lambda x: losses.oversize(x, 0.3),
        lambda x: losses.needles(x, 1.2),
        lambda x: losses.coverage(x, torch.full_like(x, 0.5)),
    ],
    ids=["oversize", "needles", "coverage"],
)
def test_gradients_of_the_other_terms_are_those_of_finite_differences(term):
    values = torch.rand(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 0.9 + 0.05
    assert torch.autograd.gradcheck(term, (values.requires_grad_(),), atol=1e-6)


def test_perceptual_loss_is_of_structure_and_edges():
    """A step that one picture lacks, by hand; and what SSIM says, which small pictures' single window decides."""
    want = torch.full((2, 8, 8, 3), 0.5)
    assert float(losses.perceptual(want, want)) == pytest.approx(0, abs=1e-6)
    got = want.clone()
    got[:, :, 4:] = 0.7  # a step of 0.2 at one of seven places across
    assert float(losses.perceptual(got, want)) == pytest.approx(1 - float(ssim(got, want)) + 0.2 / 7, rel=1e-5)
    turned = losses.perceptual(got.transpose(1, 2), want)
    assert float(turned) == pytest.approx(float(losses.perceptual(got, want)), rel=1e-5)
    brighter = losses.perceptual(want + 0.1, want)
    assert 0 < float(brighter) < 0.3 * float(losses.perceptual(got, want))


def test_perceptual_gradient_is_that_of_finite_differences():
    got = picture(5)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.perceptual(x, picture(6)[None]), (got,), atol=1e-6)


def test_regularisers_by_hand():
    disc, needle = torch.tensor([[2.0, 2.0, 0.1]]), torch.tensor([[8.0, 1.0, 1.0]])
    assert float(losses.needles(disc, 4.0)) == 0
    assert float(losses.needles(needle, 4.0)) == pytest.approx(4.0)
    assert float(losses.oversize(needle, 4.0)) == pytest.approx(1.0)
    assert float(losses.oversize(disc, 4.0)) == 0
