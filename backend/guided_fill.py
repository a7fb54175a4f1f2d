"""Values where there are none, from those around them, not across edges of a picture."""

from __future__ import annotations

import numpy as np

ROUNDS = 3
SMOOTHNESS = 400.0  # squared pixels over which a value spreads in a picture without edges
EDGE = 0.04  # difference of sRGB values (0..1) that weakens the link between two pixels by e
WEAKEST = 1e-5  # share of a known value that must reach a pixel for it to be filled


def guided_fill(values: np.ndarray, weights: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """[V,h,w] weighted means of `values` [V,h,w] with `weights` [V,h,w] >= 0 around each pixel, guided by [V,h,w,C].

    Both are spread along rows and columns in turn by solving tridiagonal systems and divided (the fast global smoother,
    Min et al. 2014, equations 7 and 13). Where nothing known is near: the mean over the picture; 0 if nothing is known.
    """
    across = _links(pictures)
    down = _links(pictures.swapaxes(1, 2))
    both = np.stack([values * weights, weights]).astype(np.float64)
    for turn in range(ROUNDS):
        # the schedule of equation 13: four times weaker each round, in all SMOOTHNESS
        strength = 1.5 * SMOOTHNESS * 4.0 ** (ROUNDS - turn - 1) / (4.0**ROUNDS - 1)
        both = _spread(both, strength * across)
        both = _spread(both.swapaxes(2, 3), strength * down).swapaxes(2, 3)
    total, share = both
    known = weights.sum(axis=(1, 2), keepdims=True)
    mean = (values * weights).sum(axis=(1, 2), keepdims=True) / np.maximum(known, 1e-12)
    return np.where(share > WEAKEST, total / np.maximum(share, WEAKEST), mean)


def _links(pictures: np.ndarray) -> np.ndarray:
    """[V,n,m-1] how much neighbours along the third axis of [V,n,m,C] belong together, 0..1."""
    return np.exp(-np.abs(np.diff(pictures.astype(np.float64), axis=2)).max(axis=-1) / EDGE)


def _spread(planes: np.ndarray, links: np.ndarray) -> np.ndarray:
    """x of (1 + L) x = planes [...,V,n,m] along the last axis, with the Laplacian L of `links` [V,n,m-1].

    Thomas' algorithm, all lines at once.
    """
    length = planes.shape[-1]
    x = planes.copy()
    ratios = np.zeros((*links.shape[:2], length))
    before = np.zeros(links.shape[:2])
    for n in range(length):
        after = links[..., n] if n + 1 < length else np.zeros_like(before)
        pivot = 1 + before + after - (before * ratios[..., n - 1] if n else 0)
        ratios[..., n] = after / pivot
        x[..., n] = (x[..., n] + (before * x[..., n - 1] if n else 0)) / pivot
        before = after
    for n in range(length - 2, -1, -1):
        x[..., n] += ratios[..., n] * x[..., n + 1]
    return x
