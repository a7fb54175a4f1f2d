"""Which splats touch which tiles of the picture, front to back."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from backend.projection import (
    CONIC_A,
    CONIC_B,
    CONIC_C,
    EXTENT_X,
    EXTENT_Y,
    HIDDEN,
    LOG_CENTRE,
    LOG_OPACITY,
    MEAN_X,
    MEAN_Y,
    SPLAT_COLUMNS,
)

TILE = 16  # pixels along each side of a tile
MAX_TILE_PAIRS = 2**26  # per view; with their gradients about 3 GB
SLACK = 1e-3  # px by which an ellipse is widened when tiles are chosen, so that rounding never loses one


class Bins(NamedTuple):
    """The lists of splats of all tiles, tiles row by row.

    starts   [tiles+1] int64  tile t owns entries starts[t]:starts[t+1] of `members`
    members  [pairs] int32    splats in the order of depth within each tile
    schedule [tiles] int64    tiles from most to least members: dealt out in this order, workers get equal shares
    offsets  [n+1] int64      splat j owns entries offsets[j]:offsets[j+1] of `slots`
    slots    [pairs] int32    where in `members` a splat stands
    """

    starts: np.ndarray
    members: np.ndarray
    schedule: np.ndarray
    offsets: np.ndarray
    slots: np.ndarray


@njit(cache=True, parallel=True)
def _gather(rows, order, workers, out):
    """out[j] = rows[order[j]]"""
    count = order.shape[0]
    for worker in prange(workers):
        for j in range(worker * count // workers, (worker + 1) * count // workers):
            for column in range(rows.shape[1]):
                out[j, column] = rows[order[j], column]


def sort_by_depth(splats: np.ndarray, depths: np.ndarray, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `splats` [N,SPLAT_COLUMNS] that are not HIDDEN, nearest first (ties by index), and the index [n] each
    had.
    """
    # Positive floats order like their bits, so depth and index together are one integer that has no ties.
    keys = depths.view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(len(depths), dtype=np.uint64)
    keys.sort()
    hidden = np.uint64(np.float32(HIDDEN).view(np.uint32)) << np.uint64(32)
    order = (keys[: np.searchsorted(keys, hidden)] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    nearest_first = np.empty((len(order), splats.shape[1]), np.float32)
    _gather(splats, order, workers, nearest_first)
    return nearest_first, order


@njit(cache=True, inline="always")
def _tiles_between(low, high, size):
    """First and one past the last tile along an axis of `size` pixels with a pixel centre in [low, high]."""
    first = math.floor((low - SLACK - 0.5 - (TILE - 1)) / TILE) + 1
    last = math.floor((high + SLACK - 0.5) / TILE) + 1
    return max(0, int(first)), min((size - 1) // TILE + 1, int(last))


@njit(cache=True, inline="always")
def _half_chord(splat, y, reach):
    """The ellipse's middle and half width along the line at height `y` from its centre."""
    a, b, c = float(splat[CONIC_A]), float(splat[CONIC_B]), float(splat[CONIC_C])
    root = (b * y) ** 2 - a * (c * y * y - reach)
    return -b * y / a, math.sqrt(max(root, 0.0)) / a


@njit(cache=True)
def _tile_span(splat, row, width):
    """First and one past the last tile of a row of tiles that the ellipse touches: exact up to SLACK.

    The ellipse's right end over a band of heights lies at the height of its rightmost point, held inside the band; its
    left end likewise.
    """
    reach = 2 * (splat[LOG_OPACITY] + LOG_CENTRE)
    extent_x, extent_y = float(splat[EXTENT_X]), float(splat[EXTENT_Y])
    low = max(row * TILE + 0.5 - splat[MEAN_Y], -extent_y)
    high = min(row * TILE + TILE - 0.5 - splat[MEAN_Y], extent_y)
    y_right = -splat[CONIC_B] / splat[CONIC_C] * extent_x
    middle, half = _half_chord(splat, min(max(y_right, low), high), reach)
    right = splat[MEAN_X] + middle + half
    middle, half = _half_chord(splat, min(max(-y_right, low), high), reach)
    return _tiles_between(splat[MEAN_X] + middle - half, right, width)


@njit(cache=True, inline="always")
def _tile_box(splat, width, height):
    """First and one past the last column, then row, of tiles that the box around the splat's ellipse touches."""
    first_column, last_column = _tiles_between(splat[MEAN_X] - splat[EXTENT_X], splat[MEAN_X] + splat[EXTENT_X], width)
    first_row, last_row = _tiles_between(splat[MEAN_Y] - splat[EXTENT_Y], splat[MEAN_Y] + splat[EXTENT_Y], height)
    return first_column, last_column, first_row, last_row


# The parallel loops below only call functions: numba drops stores to a named tuple's arrays that stand in the loop
# itself.


@njit(cache=True)
def _count_splat(splat, width, height, counts):
    """Add one to `counts` [tiles] for each tile that the splat touches; how many that are."""
    columns, touched = (width - 1) // TILE + 1, 0
    first, last, first_row, last_row = _tile_box(splat, width, height)
    corners = last - first > 1 and last_row - first_row > 1  # only then can the box hold tiles that the ellipse misses
    for row in range(first_row, last_row):
        if corners:
            first, last = _tile_span(splat, row, width)
        for column in range(first, last):
            counts[row * columns + column] += 1
        touched += max(0, last - first)
    return touched


@njit(cache=True)
def _scatter_splat(j, splat, width, height, cursors, bins):
    """Enter splat j in the list of each tile that it touches, at the tile's cursor."""
    columns, entry = (width - 1) // TILE + 1, bins.offsets[j]
    first, last, first_row, last_row = _tile_box(splat, width, height)
    corners = last - first > 1 and last_row - first_row > 1
    for row in range(first_row, last_row):
        if corners:
            first, last = _tile_span(splat, row, width)
        for tile in range(row * columns + first, row * columns + last):
            bins.members[cursors[tile]] = j
            bins.slots[entry] = cursors[tile]
            cursors[tile] += 1
            entry += 1


@njit(cache=True, parallel=True)
def _count(splats, width, height, counts, touched):
    """Fill `counts` [chunks,tiles]: pairs of each tile from each chunk of splats; `touched` [n]: tiles of each
    splat.
    """
    chunks, total = counts.shape[0], splats.shape[0]
    for chunk in prange(chunks):
        for j in range(chunk * total // chunks, (chunk + 1) * total // chunks):
            touched[j] = _count_splat(splats[j], width, height, counts[chunk])


@njit(cache=True, parallel=True)
def _scatter(splats, width, height, cursors, bins):
    """Fill the members and slots of `bins`; `cursors` [chunks,tiles] say where each chunk's part of each tile
    begins.
    """
    chunks, total = cursors.shape[0], splats.shape[0]
    for chunk in prange(chunks):
        for j in range(chunk * total // chunks, (chunk + 1) * total // chunks):
            _scatter_splat(j, splats[j], width, height, cursors[chunk], bins)


def bin_splats(splats: np.ndarray, width: int, height: int, *, workers: int) -> Bins:
    """Tile lists of depth-sorted `splats` [n,SPLAT_COLUMNS] by a counting sort in `workers` parallel parts; the result
    does not depend on their number.

    Raises MemoryError when the lists would hold more than MAX_TILE_PAIRS entries.
    """
    assert splats.shape[1] == SPLAT_COLUMNS, splats.shape
    tiles = ((width - 1) // TILE + 1) * ((height - 1) // TILE + 1)
    counts = np.zeros((workers, tiles), np.int64)
    touched = np.empty(len(splats), np.int64)
    _count(splats, width, height, counts, touched)
    per_tile = counts.sum(axis=0)
    pairs = int(per_tile.sum())
    if pairs > MAX_TILE_PAIRS:
        raise MemoryError(
            f"rasteriser: {len(splats)} splats touch {pairs} tiles of a {width}x{height} picture, "
            f"the limit is {MAX_TILE_PAIRS}; use fewer or smaller Gaussians or a smaller picture"
        )
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(per_tile)])
    bins = Bins(
        starts=starts,
        members=np.empty(pairs, np.int32),
        schedule=np.argsort(-per_tile, kind="stable"),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(touched)]),
        slots=np.empty(pairs, np.int32),
    )
    cursors = starts[:-1] + np.cumsum(counts, axis=0) - counts
    _scatter(splats, width, height, cursors, bins)
    return bins
