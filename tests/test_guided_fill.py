"""Filling depth between known values."""

from __future__ import annotations

import numpy as np

from backend.guided_fill import _spread, guided_fill


def test_spreading_solves_its_system() -> None:
    rng = np.random.default_rng(0)
    planes, links = rng.random((2, 3, 4, 6)), 5 * rng.random((3, 4, 5))
    x = _spread(planes, links)
    flow = links * np.diff(x, axis=-1)
    left = np.concatenate([np.zeros((2, 3, 4, 1)), flow], axis=-1)
    right = np.concatenate([flow, np.zeros((2, 3, 4, 1))], axis=-1)
    assert np.allclose(x + left - right, planes)


def test_one_value_fills_a_plain_picture() -> None:
    values, weights = np.zeros((1, 12, 16)), np.zeros((1, 12, 16))
    values[0, 5, 5], weights[0, 5, 5] = 3.0, 1.0
    assert np.allclose(guided_fill(values, weights, np.full((1, 12, 16, 3), 0.5)), 3.0)


def test_values_stop_at_edges_of_the_picture() -> None:
    picture = np.zeros((1, 16, 20, 3))
    picture[:, :, 10:] = 1.0
    values, weights = np.zeros((1, 16, 20)), np.zeros((1, 16, 20))
    values[0, 8, 3], values[0, 8, 16] = 2.0, 7.0
    weights[0, 8, [3, 16]] = 1.0
    filled = guided_fill(values, weights, picture)
    assert np.abs(filled[0, :, :10] - 2).max() < 0.1
    assert np.abs(filled[0, :, 10:] - 7).max() < 0.1


def test_nothing_known_gives_zero() -> None:
    assert (guided_fill(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), np.zeros((1, 4, 4, 3))) == 0).all()
