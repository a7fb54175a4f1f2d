"""Front-to-back blending of sorted splats inside each tile, and its derivative.

Splats are the outer loop and pixels the inner one, so that the compiler turns the inner loop into vector instructions.
Three habits make it do so: a tile's state is one flat array of planes (no two of which can overlap), the tile is cut
into strips of LANES columns with the pixels of a strip one after the other (any run of its rows is one straight loop of
whole vectors), and indices are unsigned (numba then leaves out Python's negative indexing).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from backend.binning import TILE, Bins
from backend.projection import (
    ALPHA_MAX,
    BLUE,
    CONIC_A,
    CONIC_B,
    CONIC_C,
    DEPTH,
    EXTENT_X,
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

u64, f32 = np.uint64, np.float32
AREA = u64(TILE * TILE)
LANES = u64(8)
STRIP = LANES * u64(TILE)  # pixels of a strip
MIN_POWER, MAX_ALPHA, STOP, HALF = f32(-LOG_CENTRE), f32(ALPHA_MAX), f32(TRANSMITTANCE_STOP), f32(0.5)
SLACK = f32(1e-3)  # px by which an ellipse is widened when rows are chosen, so that rounding never loses one
CHECK_EVERY = 16  # splats between two looks at whether all pixels of a tile are done

# Planes of a tile's state. Transmittance turns negative once the pixel is done. POSITION_X and _Y are the pixel's place
# in the tile.
TRANSMITTANCE, POSITION_X, POSITION_Y = u64(0), AREA, u64(2) * AREA
SUM_RED, SUM_GREEN, SUM_BLUE, SUM_DEPTH = u64(3) * AREA, u64(4) * AREA, u64(5) * AREA, u64(6) * AREA
FORWARD_PLANES = u64(7)
# Backward: the loss's gradient by the pixel's colour, depth and alpha, and what the splats not yet replayed add to the
# sum of gradient times value.
GRAD_RED, GRAD_GREEN, GRAD_BLUE, GRAD_DEPTH = u64(3) * AREA, u64(4) * AREA, u64(5) * AREA, u64(6) * AREA
GRAD_ALPHA, REMAINDER = u64(7) * AREA, u64(8) * AREA
BACKWARD_PLANES = u64(9)

# exp((x - LOG_CENTRE) / 4) for |x| <= LOG_CENTRE, relative error 1e-8 (minimax fit); its fourth power is exp(x -
# LOG_CENTRE), in float32 to 1.2e-6.
E0, E1, E2, E3 = f32(0.500244677), f32(0.125061184), f32(0.0156326648), f32(0.00130271295)
E4, E5, E6, E7 = f32(8.14067607e-05), f32(4.0727673e-06), f32(1.72484278e-07), f32(5.97756555e-09)

# What vectorises products, and sums, without assuming that infinities and NaN never occur.
PRODUCTS = {"contract", "nsz", "arcp"}
SUMS = {"contract", "nsz", "arcp", "reassoc"}


@njit(cache=True, fastmath=PRODUCTS)
def exp_shifted(x):
    square = x * x
    low = (E0 + x * E1) + square * (E2 + x * E3)
    high = (E4 + x * E5) + square * (E6 + x * E7)
    root = low + (square * square) * high
    root *= root
    return root * root


@njit(cache=True, inline="always")
def rows_touched(splat, top, height):
    """First and one past the last row of pixels of a tile that the splat's ellipse can touch, as unsigned numbers."""
    low = math.ceil(splat[MEAN_Y] - splat[EXTENT_Y] - HALF - SLACK)
    high = math.floor(splat[MEAN_Y] + splat[EXTENT_Y] - HALF + SLACK) + 1
    first = max(0, int(low) - top)
    return u64(first), u64(max(first, min(min(TILE, height - top), int(high) - top)))


@njit(cache=True, inline="always")
def strip_touched(splat, left, strip):
    """Whether the ellipse can reach the columns of a strip."""
    middle, reach = splat[MEAN_X] - HALF - f32(left), splat[EXTENT_X] + SLACK
    start = f32(u64(strip) * LANES)
    return middle + reach >= start and middle - reach <= start + f32(LANES - u64(1))


@njit(cache=True)
def place_pixels(state):
    """Fill the position planes."""
    for strip in range(TILE // int(LANES)):
        for row in range(TILE):
            for lane in range(int(LANES)):
                p = (strip * TILE + row) * int(LANES) + lane
                state[int(POSITION_X) + p] = strip * int(LANES) + lane
                state[int(POSITION_Y) + p] = row


@njit(cache=True, inline="always")
def pixel_index(y, x):
    """Index in a plane of the pixel at (x, y) of the tile."""
    return (u64(x) // LANES) * STRIP + u64(y) * LANES + u64(x) % LANES


@njit(cache=True, fastmath=PRODUCTS)
def _blend_run(splat, mean_x, mean_y, first, last, state):
    """Lay a splat behind what pixels first..last of `state` hold."""
    a, b, c = -HALF * splat[CONIC_A], -splat[CONIC_B], -HALF * splat[CONIC_C]
    power, red, green, blue, depth = splat[LOG_OPACITY], splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
    for p in range(first, last):
        dx, dy = state[POSITION_X + p] - mean_x, state[POSITION_Y + p] - mean_y
        exponent = power + c * dy * dy + dx * (b * dy + dx * a)
        alpha = min(exp_shifted(exponent), MAX_ALPHA) if exponent >= MIN_POWER else f32(0)
        before = state[p]
        after = before - before * alpha
        live = after >= STOP
        weight = before * alpha if live else f32(0)
        state[p] = after if live else -abs(before)
        state[SUM_RED + p] += weight * red
        state[SUM_GREEN + p] += weight * green
        state[SUM_BLUE + p] += weight * blue
        state[SUM_DEPTH + p] += weight * depth


@njit(cache=True)
def _all_done(state):
    live = 0
    for p in range(AREA):
        live += state[p] > f32(0)
    return live == 0


@njit(cache=True)
def _blend_tile(tile, splats, bins, state, image):
    """Blend one tile and write it into `image` [H,W,5]: colour, depth, alpha."""
    height, width = image.shape[0], image.shape[1]
    columns = (width - 1) // TILE + 1
    left, top = tile % columns * TILE, tile // columns * TILE
    state[: int(AREA)] = 1
    state[int(SUM_RED) :] = 0
    for entry in range(bins.starts[tile], bins.starts[tile + 1]):
        splat = splats[bins.members[entry]]
        mean_x, mean_y = splat[MEAN_X] - f32(left) - HALF, splat[MEAN_Y] - f32(top) - HALF
        first, last = rows_touched(splat, top, height)
        for strip in range(AREA // STRIP):
            if strip_touched(splat, left, strip):
                start = u64(strip) * STRIP
                _blend_run(splat, mean_x, mean_y, start + first * LANES, start + last * LANES, state)
        if entry % CHECK_EVERY == 0 and _all_done(state):
            break
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            p = pixel_index(y, x)
            image[top + y, left + x, 0] = state[SUM_RED + p]
            image[top + y, left + x, 1] = state[SUM_GREEN + p]
            image[top + y, left + x, 2] = state[SUM_BLUE + p]
            image[top + y, left + x, 3] = state[SUM_DEPTH + p]
            image[top + y, left + x, 4] = f32(1) - abs(state[p])


@njit(cache=True, parallel=True)
def blend(splats, bins, workers, image):
    """Fill `image` [H,W,5] float32 with colour, depth and alpha of the depth-sorted `splats`."""
    tiles = bins.schedule.shape[0]
    for worker in prange(workers):
        state = np.empty(int(FORWARD_PLANES * AREA), np.float32)
        place_pixels(state)
        for turn in range(int(worker), tiles, workers):
            _blend_tile(bins.schedule[turn], splats, bins, state, image)


@njit(cache=True, fastmath=SUMS, error_model="numpy")
def _replay_run(splat, mean_x, mean_y, first, last, state):
    """Repeat `_blend_run` and sum over its pixels: weight times gradient (colour, depth), then with s the loss's
    derivative by the logarithm of the splat's alpha at the pixel: s, s dx, s dy, s dx^2, s dx dy, s dy^2."""
    a, b, c = -HALF * splat[CONIC_A], -splat[CONIC_B], -HALF * splat[CONIC_C]
    power, red, green, blue, depth = splat[LOG_OPACITY], splat[RED], splat[GREEN], splat[BLUE], splat[DEPTH]
    sum_red = sum_green = sum_blue = sum_depth = sum_s = sum_x = sum_y = sum_xx = sum_xy = sum_yy = f32(0)
    for p in range(first, last):
        dx, dy = state[POSITION_X + p] - mean_x, state[POSITION_Y + p] - mean_y
        exponent = power + c * dy * dy + dx * (b * dy + dx * a)
        raw = exp_shifted(exponent) if exponent >= MIN_POWER else f32(0)
        alpha = min(raw, MAX_ALPHA)
        before = state[p]
        after = before - before * alpha
        live = after >= STOP
        weight = before * alpha if live else f32(0)
        state[p] = after if live else -abs(before)
        grad_red, grad_green, grad_blue = state[GRAD_RED + p], state[GRAD_GREEN + p], state[GRAD_BLUE + p]
        grad_depth = state[GRAD_DEPTH + p]
        value = state[GRAD_ALPHA + p] + red * grad_red + green * grad_green + blue * grad_blue + depth * grad_depth
        rest = state[REMAINDER + p] - weight * value
        state[REMAINDER + p] = rest
        s = (before * value - rest / (f32(1) - alpha)) * raw
        s = (s if raw <= MAX_ALPHA else f32(0)) if live else f32(0)
        sum_red += weight * grad_red
        sum_green += weight * grad_green
        sum_blue += weight * grad_blue
        sum_depth += weight * grad_depth
        sum_s += s
        sum_x += s * dx
        sum_y += s * dy
        sum_xx += s * dx * dx
        sum_xy += s * dx * dy
        sum_yy += s * dy * dy
    return sum_red, sum_green, sum_blue, sum_depth, sum_s, sum_x, sum_y, sum_xx, sum_xy, sum_yy


@njit(cache=True, inline="always")
def _add_sums(splat, sums, grad):
    """Add the sums of `_replay_run` to the splat's gradient."""
    a, b, c = splat[CONIC_A], splat[CONIC_B], splat[CONIC_C]
    red, green, blue, depth, s, x, y, xx, xy, yy = sums
    grad[RED] += red
    grad[GREEN] += green
    grad[BLUE] += blue
    grad[DEPTH] += depth
    grad[LOG_OPACITY] += s
    grad[MEAN_X] += a * x + b * y
    grad[MEAN_Y] += b * x + c * y
    grad[CONIC_A] -= HALF * xx
    grad[CONIC_B] -= xy
    grad[CONIC_C] -= HALF * yy


@njit(cache=True)
def _load_tile(left, top, image, image_grad, state):
    """Set the planes of the backward pass. Pixels outside the picture have no gradient."""
    height, width = image.shape[0], image.shape[1]
    state[: int(AREA)] = 1
    state[int(GRAD_RED) :] = 0
    for y in range(min(TILE, height - top)):
        for x in range(min(TILE, width - left)):
            p, total = pixel_index(y, x), f32(0)
            for channel in range(5):
                gradient = image_grad[top + y, left + x, channel]
                state[GRAD_RED + u64(channel) * AREA + p] = gradient
                total += gradient * image[top + y, left + x, channel]
            state[REMAINDER + p] = total


@njit(cache=True)
def _blend_tile_backward(tile, splats, bins, image, image_grad, state, pair_grads):
    """Fill the rows of `pair_grads` that belong to a tile."""
    height, width = image.shape[0], image.shape[1]
    columns = (width - 1) // TILE + 1
    left, top = tile % columns * TILE, tile // columns * TILE
    _load_tile(left, top, image, image_grad, state)
    done = False
    for entry in range(bins.starts[tile], bins.starts[tile + 1]):
        pair_grads[entry] = 0
        if done:
            continue
        splat = splats[bins.members[entry]]
        mean_x, mean_y = splat[MEAN_X] - f32(left) - HALF, splat[MEAN_Y] - f32(top) - HALF
        first, last = rows_touched(splat, top, height)
        for strip in range(AREA // STRIP):
            if strip_touched(splat, left, strip):
                start = u64(strip) * STRIP
                sums = _replay_run(splat, mean_x, mean_y, start + first * LANES, start + last * LANES, state)
                _add_sums(splat, sums, pair_grads[entry])
        done = entry % CHECK_EVERY == 0 and _all_done(state)


@njit(cache=True, parallel=True)
def _pair_gradients(splats, bins, workers, image, image_grad, pair_grads):
    tiles = bins.schedule.shape[0]
    for worker in prange(workers):
        state = np.empty(int(BACKWARD_PLANES * AREA), np.float32)
        place_pixels(state)
        for turn in range(int(worker), tiles, workers):
            _blend_tile_backward(bins.schedule[turn], splats, bins, image, image_grad, state, pair_grads)


@njit(cache=True)
def _sum_entries(j, bins, pair_grads, total):
    total[:] = 0
    for entry in range(bins.offsets[j], bins.offsets[j + 1]):
        for column in range(GRADIENT_COLUMNS):
            total[column] += pair_grads[bins.slots[entry], column]


@njit(cache=True, parallel=True)
def _sum_pairs(bins, workers, pair_grads, order, splat_grads):
    """Sum each splat's entries in one fixed order: no races, the same result at every run."""
    count = order.shape[0]
    for worker in prange(workers):
        for j in range(worker * count // workers, (worker + 1) * count // workers):
            _sum_entries(j, bins, pair_grads, splat_grads[order[j]])


def blend_backward(
    splats: np.ndarray, bins: Bins, workers: int, image: np.ndarray, image_grad: np.ndarray
) -> np.ndarray:
    """[pairs,GRADIENT_COLUMNS] gradient by each tile pair from that by `image` [H,W,5], which must be what `blend`
    gave.

    The derivative by log alpha of splat i at a pixel is alpha_i (T_i v_i - R_i / (1 - alpha_i)), where v_i is gradient
    times value of the splat and R_i the sum of weight times v over the splats behind it. R starts as gradient times
    picture and loses each splat's part as the replay passes it, so the replay runs front to back and stops as early as
    the forward pass did.
    """
    pair_grads = np.empty((len(bins.members), GRADIENT_COLUMNS), np.float32)
    _pair_gradients(splats, bins, workers, image, image_grad, pair_grads)
    return pair_grads


def sum_pairs(bins: Bins, workers: int, pair_grads: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """[count,GRADIENT_COLUMNS] gradient by the splats in the order they had before sorting; rows not in `order` [n] are
    undefined.
    """
    splat_grads = np.empty((count, GRADIENT_COLUMNS), np.float32)
    _sum_pairs(bins, workers, pair_grads, order, splat_grads)
    return splat_grads
