"""Front-to-back blending of sorted splats inside each tile, and its derivative.

Splats are the outer loop and pixels the inner one, a row of a tile at a time, so that the compiler turns the row into vector
instructions. A tile's state lives in one flat array of planes of TILE*TILE floats, which lets the compiler see that the planes
do not overlap.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from backend.binning import TILE
from backend.projection import (
    ALPHA_MAX,
    BLUE,
    CONIC_A,
    CONIC_B,
    CONIC_C,
    DEPTH,
    EXTENT_Y,
    GRADIENT_COLUMNS,
    GREEN,
    LOG_CENTRE,
    LOG_OPACITY,
    MEAN_X,
    MEAN_Y,
    RED,
    TRANSMITTANCE_STOP,
)

AREA = TILE * TILE
f32 = np.float32
MIN_POWER, MAX_ALPHA, STOP = f32(-LOG_CENTRE), f32(ALPHA_MAX), f32(TRANSMITTANCE_STOP)
CHECK_EVERY = 16  # splats between two looks at whether all pixels of a tile are done

# exp((x - LOG_CENTRE) / 4) for |x| <= LOG_CENTRE, relative error 1e-8 (minimax fit); its fourth power is exp(x - LOG_CENTRE),
# in float32 to 1.2e-6.
E0, E1, E2, E3 = f32(0.500244677), f32(0.125061184), f32(0.0156326648), f32(0.00130271295)
E4, E5, E6, E7 = f32(8.14067607e-05), f32(4.0727673e-06), f32(1.72484278e-07), f32(5.97756555e-09)

# Vectorises sums of products without assuming that infinities and NaN never occur.
FAST = {"contract", "nsz", "arcp"}


@njit(cache=True, inline="always", fastmath=FAST)
def _exp(x):
    p = E0 + x * (E1 + x * (E2 + x * (E3 + x * (E4 + x * (E5 + x * (E6 + x * E7))))))
    square = p * p
    return square * square


@njit(cache=True, inline="always")
def _rows(splat, top, height):
    """First and one past the last row of pixels of a tile that the splat's ellipse can touch."""
    low = math.ceil(splat[MEAN_Y] - splat[EXTENT_Y] - f32(0.5) - f32(1e-3))
    high = math.floor(splat[MEAN_Y] + splat[EXTENT_Y] - f32(0.5) + f32(1e-3)) + 1
    return max(0, int(low) - top), min(min(TILE, height - top), int(high) - top)


@njit(cache=True, fastmath=FAST)
def _blend_splat(splat, left, top, height, state):
    """Lay one splat behind what is in `state` [5*AREA]: transmittance (negative once the pixel is done), colour, depth."""
    mean_x, mean_y = splat[MEAN_X] - f32(left) - f32(0.5), splat[MEAN_Y] - f32(top) - f32(0.5)
    a, b, c = f32(-0.5) * splat[CONIC_A], -splat[CONIC_B], f32(-0.5) * splat[CONIC_C]
    power, red, green, blue, depth = splat[LOG_OPACITY], splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
    first, last = _rows(splat, top, height)
    for row in range(first, last):
        dy = f32(row) - mean_y
        constant, linear = power + c * dy * dy, b * dy
        for x in range(TILE):
            p = row * TILE + x
            dx = f32(x) - mean_x
            exponent = constant + dx * (linear + dx * a)
            alpha = min(_exp(exponent), MAX_ALPHA) if exponent >= MIN_POWER else f32(0)
            before = state[p]
            after = before - before * alpha
            live = after >= STOP
            weight = before * alpha if live else f32(0)
            state[p] = after if live else -abs(before)
            state[AREA + p] += weight * red
            state[2 * AREA + p] += weight * green
            state[3 * AREA + p] += weight * blue
            state[4 * AREA + p] += weight * depth


@njit(cache=True, fastmath=FAST)
def _all_done(state):
    largest = f32(0)
    for p in range(AREA):
        largest = max(largest, state[p])
    return largest <= f32(0)


@njit(cache=True)
def _blend_tile(tile, splats, bins, state, image):
    """Blend one tile and write it into `image` [H,W,5]: colour, depth, alpha."""
    height, width = image.shape[0], image.shape[1]
    columns = (width - 1) // TILE + 1
    left, top = tile % columns * TILE, tile // columns * TILE
    state[:AREA] = 1
    state[AREA:] = 0
    for entry in range(bins.starts[tile], bins.starts[tile + 1]):
        _blend_splat(splats[bins.members[entry]], left, top, height, state)
        if entry % CHECK_EVERY == 0 and _all_done(state):
            break
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            p = y * TILE + x
            for channel in range(4):
                image[top + y, left + x, channel] = state[(channel + 1) * AREA + p]
            image[top + y, left + x, 4] = f32(1) - abs(state[p])


@njit(cache=True, parallel=True)
def blend(splats, bins, workers, image):
    """Fill `image` [H,W,5] float32 with colour, depth and alpha of the depth-sorted `splats`."""
    tiles = bins.schedule.shape[0]
    for worker in prange(workers):
        state = np.empty(5 * AREA, np.float32)
        for turn in range(int(worker), tiles, workers):
            _blend_tile(bins.schedule[turn], splats, bins, state, image)


@njit(cache=True, fastmath=FAST)
def _blend_splat_backward(splat, left, top, height, state, sums, grad):
    """Replay one splat and fill `grad` [GRADIENT_COLUMNS].

    `state` [7*AREA]: transmittance as in the forward pass; the part of the loss's linear form that splats behind this one will still
    add; gradients of the loss by red, green, blue, depth and alpha. `sums` [10*TILE] is scratch: one sum a lane.
    """
    mean_x, mean_y = splat[MEAN_X] - f32(left) - f32(0.5), splat[MEAN_Y] - f32(top) - f32(0.5)
    a, b, c = f32(-0.5) * splat[CONIC_A], -splat[CONIC_B], f32(-0.5) * splat[CONIC_C]
    power, red, green, blue, depth = splat[LOG_OPACITY], splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
    first, last = _rows(splat, top, height)
    sums[:] = 0
    for row in range(first, last):
        dy = f32(row) - mean_y
        constant, linear = power + c * dy * dy, b * dy
        for x in range(TILE):
            p = row * TILE + x
            dx = f32(x) - mean_x
            exponent = constant + dx * (linear + dx * a)
            raw = _exp(exponent) if exponent >= MIN_POWER else f32(0)
            alpha = min(raw, MAX_ALPHA)
            before = state[p]
            after = before - before * alpha
            live = after >= STOP
            weight = before * alpha if live else f32(0)
            state[p] = after if live else -abs(before)
            value = red * state[2 * AREA + p] + green * state[3 * AREA + p] + blue * state[4 * AREA + p]
            value += depth * state[5 * AREA + p] + state[6 * AREA + p]
            rest = state[AREA + p] - weight * value
            state[AREA + p] = rest
            slope = (before * value - rest / (f32(1) - alpha)) * raw
            slope = slope if live and raw <= MAX_ALPHA else f32(0)
            sums[x] += weight * state[2 * AREA + p]
            sums[TILE + x] += weight * state[3 * AREA + p]
            sums[2 * TILE + x] += weight * state[4 * AREA + p]
            sums[3 * TILE + x] += weight * state[5 * AREA + p]
            sums[4 * TILE + x] += slope
            sums[5 * TILE + x] += slope * dx
            sums[6 * TILE + x] += slope * dy
            sums[7 * TILE + x] += slope * dx * dx
            sums[8 * TILE + x] += slope * dx * dy
            sums[9 * TILE + x] += slope * dy * dy
    _collect(splat, sums, grad)


@njit(cache=True, inline="always", fastmath=FAST)
def _collect(splat, sums, grad):
    """Sum the lanes and turn the moments of d loss / d log alpha into the gradient by centre and conic."""
    for column in range(10):
        for x in range(1, TILE):
            sums[column * TILE] += sums[column * TILE + x]
    grad[RED], grad[GREEN], grad[BLUE], grad[DEPTH] = sums[0], sums[TILE], sums[2 * TILE], sums[3 * TILE]
    grad[LOG_OPACITY] = sums[4 * TILE]
    grad[MEAN_X] = splat[CONIC_A] * sums[5 * TILE] + splat[CONIC_B] * sums[6 * TILE]
    grad[MEAN_Y] = splat[CONIC_B] * sums[5 * TILE] + splat[CONIC_C] * sums[6 * TILE]
    grad[CONIC_A] = f32(-0.5) * sums[7 * TILE]
    grad[CONIC_B] = -sums[8 * TILE]
    grad[CONIC_C] = f32(-0.5) * sums[9 * TILE]


@njit(cache=True)
def _load_tile(left, top, image, image_grad, state):
    """Set the replay's state: see `_blend_splat_backward`. Pixels outside the picture have no gradient."""
    height, width = image.shape[0], image.shape[1]
    state[:AREA] = 1
    state[AREA:] = 0
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            p = y * TILE + x
            total = f32(0)
            for channel in range(5):
                gradient = image_grad[top + y, left + x, channel]
                state[(2 + channel) * AREA + p] = gradient
                total += gradient * image[top + y, left + x, channel]
            state[AREA + p] = total


@njit(cache=True)
def _blend_tile_backward(tile, splats, bins, image, image_grad, state, sums, pair_grads):
    height, width = image.shape[0], image.shape[1]
    columns = (width - 1) // TILE + 1
    left, top = tile % columns * TILE, tile // columns * TILE
    _load_tile(left, top, image, image_grad, state)
    done = False
    for entry in range(bins.starts[tile], bins.starts[tile + 1]):
        if done:
            pair_grads[entry] = 0
            continue
        _blend_splat_backward(splats[bins.members[entry]], left, top, height, state, sums, pair_grads[entry])
        done = entry % CHECK_EVERY == 0 and _all_done(state)


@njit(cache=True, parallel=True)
def _pair_gradients(splats, bins, workers, image, image_grad, pair_grads):
    tiles = bins.schedule.shape[0]
    for worker in prange(workers):
        state = np.empty(7 * AREA, np.float32)
        sums = np.empty(10 * TILE, np.float32)
        for turn in range(int(worker), tiles, workers):
            _blend_tile_backward(bins.schedule[turn], splats, bins, image, image_grad, state, sums, pair_grads)


@njit(cache=True, parallel=True)
def _sum_pairs(bins, workers, pair_grads, splat_grads):
    """Sum each splat's entries in one fixed order: no races, the same result at every run."""
    count = splat_grads.shape[0]
    for worker in prange(workers):
        for j in range(worker * count // workers, (worker + 1) * count // workers):
            splat_grads[j] = 0
            for entry in range(bins.offsets[j], bins.offsets[j + 1]):
                slot = bins.slots[entry]
                for column in range(GRADIENT_COLUMNS):
                    splat_grads[j, column] += pair_grads[slot, column]


def blend_backward(splats, bins, workers, image, image_grad):
    """[n,GRADIENT_COLUMNS] gradient by the splats from that by `image` [H,W,5], which must be what `blend` gave."""
    pair_grads = np.empty((len(bins.members), GRADIENT_COLUMNS), np.float32)
    _pair_gradients(splats, bins, workers, image, image_grad, pair_grads)
    splat_grads = np.empty((len(splats), GRADIENT_COLUMNS), np.float32)
    _sum_pairs(bins, workers, pair_grads, splat_grads)
    return splat_grads
