"""Small pictures to paint surfaces with, drawn by chance in two colours; they repeat without a seam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backend.procedural.grids import interpolation

SIDES = (64, 96, 128)  # pixels
Pattern = Callable[[np.random.Generator, int], np.ndarray]


def drawn(share: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[h,w,3] uint8 of two sRGB colours [3], 0..1, mixed by the share [h,w] of the second one."""
    steps = np.linspace(0, 1, 256)[:, None]
    table = np.clip(255 * (first + steps * (second - first)) + 0.5, 0, 255).astype(np.uint8)
    return table[np.clip(255 * share + 0.5, 0, 255).astype(np.uint8)]


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """u [1,size] and v [size,1] of the pixel centres, 0..1."""
    at = (np.arange(size) + 0.5) / size
    return at[None], at[:, None]


def noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """[size,size] smooth noise in about -1..1, from cells x cells random values."""
    weights = interpolation(cells, size + 1, True)[:-1]
    return weights @ rng.uniform(-1, 1, (cells, cells)) @ weights.T


def checkered(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = _axes(size)
    cells = int(rng.integers(1, 5))
    return ((np.floor(2 * cells * u) + np.floor(2 * cells * v)) % 2).astype(float)


def striped(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = _axes(size)
    count, width = int(rng.integers(1, 7)), rng.uniform(0.25, 0.75)
    along = (u + 0 * v, v + 0 * u, u + v)[int(rng.integers(3))]
    return (along * count % 1 < width).astype(float)


def dotted(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = _axes(size)
    count, radius = int(rng.integers(2, 6)), rng.uniform(0.2, 0.42)
    row = np.floor(v * 2 * count)
    x, y = (u * count + 0.5 * (row % 2)) % 1 - 0.5, (v * 2 * count) % 1 - 0.5
    return (x * x + (0.5 * y) ** 2 < (0.5 * radius) ** 2 * 1.4).astype(float)


def plaid(rng: np.random.Generator, size: int) -> np.ndarray:
    bands = [np.repeat(rng.random(8) < 0.5, size // 8).astype(float) for _ in range(2)]
    return 0.5 * bands[0][None] + 0.5 * bands[1][:, None]


def bricks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Courses that are shifted by half a brick, every brick of its own shade, with joints."""
    u, v = _axes(size)
    courses = 2 * int(rng.integers(2, 5))
    columns, joint = courses // 2, rng.uniform(0.06, 0.14)
    course = np.floor(v * courses).astype(int)
    x = u * columns + 0.5 * (course % 2)
    shades = rng.uniform(0, 0.35, (courses, columns))[course, np.floor(x).astype(int) % columns]
    between = ((v * courses) % 1 < 2 * joint) | (x % 1 < joint)
    return np.where(between, 1.0, shades)


def marble(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = _axes(size)
    warp = noise(rng, size, 3) + 0.5 * noise(rng, size, 6) + 0.25 * noise(rng, size, 12)
    return np.abs(np.sin(np.pi * (int(rng.integers(0, 3)) * u + v + rng.uniform(0.6, 1.5) * warp))) ** 0.4


def wood(rng: np.random.Generator, size: int) -> np.ndarray:
    """Grain along v: rings that a wavering cut goes through, and fibres."""
    u, _ = _axes(size)
    down, along = (interpolation(knots, size + 1, True)[:-1] for knots in (3, 4))
    bend = down @ rng.uniform(-0.25, 0.25, (3, 4)) @ along.T
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (int(rng.integers(2, 7)) * u + 1.5 * bend))
    return np.clip(0.8 * rings + rng.uniform(-0.2, 0.2, (1, size)), 0, 1)


def mottled(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.clip(0.5 + 0.6 * noise(rng, size, 4) + 0.4 * noise(rng, size, 9), 0, 1)


def camouflage(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.round(2 * mottled(rng, size)) / 2


def speckled(rng: np.random.Generator, size: int) -> np.ndarray:
    grain = int(rng.integers(1, 4))
    coarse = rng.random((size // grain + 1, size // grain + 1)) < rng.uniform(0.05, 0.3)
    return np.repeat(np.repeat(coarse, grain, axis=0), grain, axis=1)[:size, :size].astype(float)


def shaded(rng: np.random.Generator, size: int) -> np.ndarray:
    """From one colour at the bottom to the other at the top."""
    return np.broadcast_to(np.linspace(1, 0, size)[:, None] ** rng.uniform(0.5, 2), (size, size))


def printed(rng: np.random.Generator, size: int) -> np.ndarray:
    """As a label: a headline, lines of words, and a bar or a picture's frame."""
    page = np.zeros((size, size))
    unit = size // 16
    page[2 * unit : 4 * unit, 2 * unit : int(rng.integers(7, 14)) * unit] = 1
    if rng.random() < 0.5:
        top, left = int(rng.integers(6, 9)), int(rng.integers(2, 8))
        page[top * unit : (top + 5) * unit, left * unit : (left + 5) * unit] = rng.uniform(0.3, 0.8)
    for line in range(6, 15):
        words = (rng.random(12 * unit) < 0.7) & np.repeat(rng.random(12) < 0.85, unit)
        row = page[line * unit : line * unit + max(1, unit // 2), 2 * unit : 14 * unit]
        np.maximum(row, words, out=row)
    return page


def lettered(rng: np.random.Generator, size: int) -> np.ndarray:
    """A few large signs, each of random strokes on a 5 x 3 raster."""
    count = int(rng.integers(2, 5))
    signs = [np.pad(rng.random((5, 3)) < 0.6, 1) for _ in range(count * count)]
    rows = [np.concatenate(signs[i * count : (i + 1) * count], axis=1) for i in range(count)]
    page = np.concatenate(rows).astype(float)
    at_v, at_u = ((np.arange(size) * side) // size for side in page.shape)
    return page[at_v][:, at_u]


def ringed(rng: np.random.Generator, size: int) -> np.ndarray:
    """A target: circles round the middle."""
    u, v = _axes(size)
    distance = np.hypot(u - 0.5, v - 0.5)
    return (distance * int(rng.integers(4, 10)) % 1 < 0.5).astype(float)


# word for a caption: (pattern, how often it is drawn, whether it covers its surface once)
PATTERNS: dict[str, tuple[Pattern, float, bool]] = {
    "checkered": (checkered, 1, False),
    "striped": (striped, 1.5, False),
    "dotted": (dotted, 1, False),
    "plaid": (plaid, 0.7, False),
    "brick": (bricks, 0.7, False),
    "marble": (marble, 1, False),
    "wooden": (wood, 2, False),
    "mottled": (mottled, 1, False),
    "camouflage": (camouflage, 0.5, False),
    "speckled": (speckled, 0.7, False),
    "shaded": (shaded, 0.8, True),
    "printed": (printed, 1.5, True),
    "lettered": (lettered, 0.7, True),
    "ringed": (ringed, 0.4, True),
}
