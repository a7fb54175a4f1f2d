"""The numba loops of radiance_grid.py: march rays through a grid, push the error back into it, take one step of Adam.

A field is [X,Y,Z,4] float32: raw density and sRGB colour at the voxel centres, interpolated between them. `active`
[X,Y,Z] bool marks the cells (the corner with the lowest indices) that can hold anything. A ray is seven numbers in
voxels: the first sample's position, the way from sample to sample, and the number of samples.
"""

from __future__ import annotations

import math

import numba
import numpy as np

RAY_COLUMNS = 7
OUT_COLUMNS = 5  # premultiplied red, green, blue; alpha; sum of weight times the sample's number
MOST_OPAQUE = np.float32(0.9999)
LEAST_ALPHA = np.float32(1e-4)
LEAST_TRANSMITTANCE = np.float32(1e-3)
EMPTY = np.float32(-8.0)  # raw density below which a sample is skipped
BOUND = np.float32(10.0)  # raw densities stay within plus and minus this

# columns of a sample's record
U, V, W, ALPHA, SLOPE, RED, GREEN, BLUE, WEIGHT = range(9)
SAMPLE_COLUMNS = 9

# positions in the `knobs` of `push`
COVERAGE_WEIGHT, SOFTNESS = 0, 1
# positions in the `knobs` of `descend`
STEP, RATE_DENSITY, RATE_COLOUR, AREA, ROUGHNESS = range(5)
ADAM_FIRST, ADAM_SECOND = np.float32(0.9), np.float32(0.99)
OCCUPANCY_SOFTNESS = np.float32(1e-3)  # squared change of occupancy, below which the area term is quadratic
COLOUR_SOFTNESS = np.float32(1e-4)  # squared difference of colour, likewise


@numba.njit(fastmath=True, cache=True)
def _softplus(x):
    return x if x > 15 else np.float32(math.log1p(math.exp(x)))


@numba.njit(fastmath=True, cache=True)
def _gather(field, active, ray, jitter, stride, cells, samples):
    """Fill `cells` [S,4] (i, j, k, sample) and `samples` [S,SAMPLE_COLUMNS] along a ray; the number of entries."""
    X, Y, Z = active.shape
    entries = 0
    transmittance = np.float32(1)
    for number in range(int(ray[6])):
        along = number + jitter
        x, y, z = ray[0] + along * ray[3], ray[1] + along * ray[4], ray[2] + along * ray[5]
        i, j, k = math.floor(x), math.floor(y), math.floor(z)
        if i < 0 or j < 0 or k < 0 or i >= X - 1 or j >= Y - 1 or k >= Z - 1 or not active[i, j, k]:
            continue
        u, v, w = np.float32(x - i), np.float32(y - j), np.float32(z - k)
        raw, red, green, blue = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for a in range(2):
            for b in range(2):
                near = (u if a else 1 - u) * (v if b else 1 - v)
                for c in range(2):
                    share = near * (w if c else 1 - w)
                    corner = field[i + a, j + b, k + c]
                    raw += share * corner[0]
                    red += share * corner[1]
                    green += share * corner[2]
                    blue += share * corner[3]
        if raw < EMPTY:
            continue
        alpha = min(np.float32(1 - math.exp(-stride * _softplus(raw))), MOST_OPAQUE)
        if alpha < LEAST_ALPHA:
            continue
        cells[entries, 0], cells[entries, 1], cells[entries, 2], cells[entries, 3] = i, j, k, number
        entry = samples[entries]
        entry[U], entry[V], entry[W], entry[ALPHA] = u, v, w, alpha
        entry[SLOPE] = stride / (1 + math.exp(-raw))
        entry[RED], entry[GREEN], entry[BLUE], entry[WEIGHT] = red, green, blue, transmittance * alpha
        transmittance *= 1 - alpha
        entries += 1
        if transmittance < LEAST_TRANSMITTANCE:
            break
    return entries


@numba.njit(fastmath=True, cache=True)
def _composite(cells, samples, entries, out):
    out[:] = 0
    for entry in range(entries):
        weight = samples[entry, WEIGHT]
        out[0] += weight * samples[entry, RED]
        out[1] += weight * samples[entry, GREEN]
        out[2] += weight * samples[entry, BLUE]
        out[3] += weight
        out[4] += weight * cells[entry, 3]


@numba.njit(fastmath=True, parallel=True, cache=True)
def trace(field, active, rays, stride, workers, out):
    """Render rays [R,RAY_COLUMNS] into `out` [R,OUT_COLUMNS]; `stride` is the way between samples in voxels."""
    most = int(rays[:, 6].max()) if len(rays) else 0
    for worker in numba.prange(workers):
        cells, samples = np.empty((most, 4), np.int32), np.empty((most, SAMPLE_COLUMNS), np.float32)
        for r in range(worker, len(rays), workers):
            entries = _gather(field, active, rays[r], np.float32(0.5), stride, cells, samples)
            _composite(cells, samples, entries, out[r])


@numba.njit(fastmath=True, parallel=True, cache=True)
def look(field, active, rays, stride, most):
    """Raise `most` [T,X,Y,Z], one slice a worker, to the largest weight that a sample nearest to the voxel has."""
    longest = int(rays[:, 6].max()) if len(rays) else 0
    workers = most.shape[0]
    for worker in numba.prange(workers):
        cells, samples = np.empty((longest, 4), np.int32), np.empty((longest, SAMPLE_COLUMNS), np.float32)
        for r in range(worker, len(rays), workers):
            entries = _gather(field, active, rays[r], np.float32(0.5), stride, cells, samples)
            for entry in range(entries):
                i = cells[entry, 0] + int(samples[entry, U] > 0.5)
                j = cells[entry, 1] + int(samples[entry, V] > 0.5)
                k = cells[entry, 2] + int(samples[entry, W] > 0.5)
                most[worker, i, j, k] = max(most[worker, i, j, k], samples[entry, WEIGHT])


@numba.njit(fastmath=True, parallel=True, cache=True)
def push(field, active, rays, jitter, stride, target, knobs, gradient):
    """Add to `gradient` [T,X,Y,Z,4], one slice a worker, the gradient of the rays' error.

    target [R,4] premultiplied colour and alpha; the error of a ray is the softened length of its colour difference plus
    COVERAGE_WEIGHT times the softened difference of alpha, both linear beyond SOFTNESS.
    """
    most = int(rays[:, 6].max()) if len(rays) else 0
    workers = gradient.shape[0]
    for worker in numba.prange(workers):
        cells, samples = np.empty((most, 4), np.int32), np.empty((most, SAMPLE_COLUMNS), np.float32)
        out, slope = np.empty(OUT_COLUMNS, np.float32), np.empty(4, np.float32)
        for r in range(worker, len(rays), workers):
            entries = _gather(field, active, rays[r], jitter[r], stride, cells, samples)
            _composite(cells, samples, entries, out)
            _error_slope(out, target[r], knobs, slope)
            _scatter(cells, samples, entries, slope, gradient[worker])


@numba.njit(fastmath=True, cache=True)
def _error_slope(out, target, knobs, slope):
    squared = np.float32(0)
    for channel in range(3):
        slope[channel] = out[channel] - target[channel]
        squared += slope[channel] * slope[channel]
    length = math.sqrt(squared + knobs[SOFTNESS] * knobs[SOFTNESS])
    for channel in range(3):
        slope[channel] /= length
    missing = out[3] - target[3]
    slope[3] = knobs[COVERAGE_WEIGHT] * missing / math.sqrt(missing * missing + knobs[SOFTNESS] * knobs[SOFTNESS])


@numba.njit(fastmath=True, cache=True)
def _scatter(cells, samples, entries, slope, gradient):
    behind = np.float32(0)  # sum over the samples further back of weight times the gradient by the weight
    for entry in range(entries - 1, -1, -1):
        sample = samples[entry]
        by_weight = sample[RED] * slope[0] + sample[GREEN] * slope[1] + sample[BLUE] * slope[2] + slope[3]
        transmittance = sample[WEIGHT] / sample[ALPHA]
        by_raw = (transmittance * by_weight * (1 - sample[ALPHA]) - behind) * sample[SLOPE]
        behind += sample[WEIGHT] * by_weight
        u, v, w, weight = sample[U], sample[V], sample[W], sample[WEIGHT]
        i, j, k = cells[entry, 0], cells[entry, 1], cells[entry, 2]
        for a in range(2):
            for b in range(2):
                near = (u if a else 1 - u) * (v if b else 1 - v)
                for c in range(2):
                    share = near * (w if c else 1 - w)
                    corner = gradient[i + a, j + b, k + c]
                    corner[0] += share * by_raw
                    corner[1] += share * weight * slope[0]
                    corner[2] += share * weight * slope[1]
                    corner[3] += share * weight * slope[2]


@numba.njit(fastmath=True, parallel=True, cache=True)
def occupancy_of(field, free, occupancy):
    """Opacity [X,Y,Z] of one voxel's length of the raw density; 0 outside `free`."""
    X, Y, Z = free.shape
    for i in numba.prange(X):
        for j in range(Y):
            for k in range(Z):
                occupancy[i, j, k] = 1 - math.exp(-_softplus(field[i, j, k, 0])) if free[i, j, k] else 0


@numba.njit(fastmath=True, cache=True)
def _area_share(ahead, other, another):
    return ahead / math.sqrt(ahead * ahead + other * other + another * another + OCCUPANCY_SOFTNESS)


@numba.njit(fastmath=True, cache=True)
def _area_slope(o, i, j, k):
    """Gradient by voxel (i,j,k) of the surface area, the sum of |forward differences| of the occupancy."""
    here = o[i, j, k]
    x, y, z = o[i + 1, j, k] - here, o[i, j + 1, k] - here, o[i, j, k + 1] - here
    slope = -(x + y + z) / math.sqrt(x * x + y * y + z * z + OCCUPANCY_SOFTNESS)
    p = o[i - 1, j, k]
    slope += _area_share(here - p, o[i - 1, j + 1, k] - p, o[i - 1, j, k + 1] - p)
    p = o[i, j - 1, k]
    slope += _area_share(here - p, o[i + 1, j - 1, k] - p, o[i, j - 1, k + 1] - p)
    p = o[i, j, k - 1]
    return slope + _area_share(here - p, o[i + 1, j, k - 1] - p, o[i, j + 1, k - 1] - p)


@numba.njit(fastmath=True, cache=True)
def _roughness_slope(field, free, i, j, k, channel):
    """Gradient by one colour of the sum of its differences to the six neighbours that can hold anything."""
    here, slope = field[i, j, k, channel], np.float32(0)
    for axis in range(3):
        for side in (-1, 1):
            a, b, c = i + side * (axis == 0), j + side * (axis == 1), k + side * (axis == 2)
            if free[a, b, c]:
                difference = here - field[a, b, c, channel]
                slope += difference / math.sqrt(difference * difference + COLOUR_SOFTNESS)
    return slope


@numba.njit(fastmath=True, parallel=True, cache=True)
def descend(field, free, occupancy, gradient, moments, knobs):
    """One step of Adam on every free voxel, with the terms of area and roughness added; clears `gradient`.

    moments [2,X,Y,Z,4]; knobs: step number from 1, rates of density and colour, weights of area and roughness.
    """
    X, Y, Z = free.shape
    before = field.copy()
    unbias_first, unbias_second = 1 - ADAM_FIRST ** knobs[STEP], 1 - ADAM_SECOND ** knobs[STEP]
    for i in numba.prange(1, X - 1):
        for j in range(1, Y - 1):
            for k in range(1, Z - 1):
                if not free[i, j, k]:
                    continue
                for channel in range(4):
                    slope = np.float32(0)
                    for worker in range(gradient.shape[0]):
                        slope += gradient[worker, i, j, k, channel]
                        gradient[worker, i, j, k, channel] = 0
                    if channel == 0:
                        through = (1 - occupancy[i, j, k]) / (1 + math.exp(-before[i, j, k, 0]))
                        slope += knobs[AREA] * through * _area_slope(occupancy, i, j, k)
                    else:
                        slope += knobs[ROUGHNESS] * _roughness_slope(before, free, i, j, k, channel)
                    first = ADAM_FIRST * moments[0, i, j, k, channel] + (1 - ADAM_FIRST) * slope
                    second = ADAM_SECOND * moments[1, i, j, k, channel] + (1 - ADAM_SECOND) * slope * slope
                    moments[0, i, j, k, channel], moments[1, i, j, k, channel] = first, second
                    rate = knobs[RATE_DENSITY] if channel == 0 else knobs[RATE_COLOUR]
                    step = rate * (first / unbias_first) / (math.sqrt(second / unbias_second) + np.float32(1e-8))
                    low, high = (-BOUND, BOUND) if channel == 0 else (np.float32(0), np.float32(1))
                    field[i, j, k, channel] = min(max(before[i, j, k, channel] - step, low), high)
