"""Pictures over backgrounds, and colours that are premultiplied and back."""

from __future__ import annotations

import pytest
import torch

from backend.compositing import over, premultiplied, straight


def test_over_composites_straight_alpha():
    pixel = torch.tensor([1.0, 0.5, 0.0, 0.25])
    assert over(pixel, 1.0).tolist() == pytest.approx([1.0, 0.875, 0.75])
    assert over(pixel, torch.tensor([0.0, 1.0, 0.0])).tolist() == pytest.approx([0.25, 0.875, 0.0])


def test_premultiplied_and_back():
    images = torch.rand(5, 4, 4)
    torch.testing.assert_close(straight(premultiplied(images)), images)
    assert premultiplied(torch.tensor([0.4, 0.2, 1.0, 0.5])).tolist() == pytest.approx([0.2, 0.1, 0.5, 0.5])


def test_what_is_too_faint_has_dark_colours_and_what_is_nothing_none():
    images = torch.tensor([[0.2, 0.1, 0.0, 0.2], [0.001, 0.0, 0.0, 0.001], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 0.5, 0.0, 0.2], [0.01, 0.0, 0.0, 0.001], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(straight(images, 0.1), expected)
