"""Median depth: where along a pixel's ray half of the light is gone. Sharper than the mean at edges, so surfaces are
fused from it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from backend.binning import TILE
from backend.blending import (
    AREA,
    HALF,
    LANES,
    MAX_ALPHA,
    MIN_POWER,
    POSITION_X,
    POSITION_Y,
    PRODUCTS,
    STRIP,
    exp_shifted,
    f32,
    pixel_index,
    place_pixels,
    rows_touched,
    strip_touched,
    u64,
)
from backend.projection import CONIC_A, CONIC_B, CONIC_C, DEPTH, LOG_OPACITY, MEAN_X, MEAN_Y

MEDIAN = u64(3) * AREA  # after the planes of transmittance and position
PLANES = u64(4)


@njit(cache=True, fastmath=PRODUCTS)
def _median_run(splat, mean_x, mean_y, first, last, state):
    """Lay a splat behind what pixels first..last of `state` hold; note its depth where it takes the light under one
    half.
    """
    a, b, c = -HALF * splat[CONIC_A], -splat[CONIC_B], -HALF * splat[CONIC_C]
    power, depth = splat[LOG_OPACITY], splat[DEPTH]
    for p in range(first, last):
        dx, dy = state[POSITION_X + p] - mean_x, state[POSITION_Y + p] - mean_y
        exponent = power + c * dy * dy + dx * (b * dy + dx * a)
        alpha = min(exp_shifted(exponent), MAX_ALPHA) if exponent >= MIN_POWER else f32(0)
        before = state[p]
        after = before - before * alpha
        state[p] = after
        crossing = (before > HALF) & (after <= HALF)
        state[MEDIAN + p] = depth if crossing else state[MEDIAN + p]


@njit(cache=True)
def _all_crossed(state):
    clear = 0
    for p in range(AREA):
        clear += state[p] > HALF
    return clear == 0


@njit(cache=True)
def _median_tile(tile, splats, bins, state, depth):
    height, width = depth.shape
    columns = (width - 1) // TILE + 1
    left, top = tile % columns * TILE, tile // columns * TILE
    state[: int(AREA)] = 1
    state[int(MEDIAN) :] = 0
    for entry in range(bins.starts[tile], bins.starts[tile + 1]):
        splat = splats[bins.members[entry]]
        mean_x, mean_y = splat[MEAN_X] - f32(left) - HALF, splat[MEAN_Y] - f32(top) - HALF
        first, last = rows_touched(splat, top, height)
        for strip in range(AREA // STRIP):
            if strip_touched(splat, left, strip):
                start = u64(strip) * STRIP
                _median_run(splat, mean_x, mean_y, start + first * LANES, start + last * LANES, state)
        if entry % 16 == 0 and _all_crossed(state):
            break
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            depth[top + y, left + x] = state[MEDIAN + pixel_index(y, x)]


@njit(cache=True, parallel=True)
def blend_median(splats, bins, workers, depth):
    """Fill `depth` [H,W] float32 with the median depth of the depth-sorted `splats`, 0 where less than half of the
    light is taken.
    """
    tiles = bins.schedule.shape[0]
    for worker in prange(workers):
        state = np.empty(int(PLANES * AREA), np.float32)
        place_pixels(state)
        for turn in range(int(worker), tiles, workers):
            _median_tile(bins.schedule[turn], splats, bins, state, depth)
