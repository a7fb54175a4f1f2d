"""Curves that bodies are turned, cut out and swept from: profiles, flat outlines, letters and lines in space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backend.procedural.grids import interpolation

# ---- profiles [R,2] of radius 0..1 and height -1..1, from the bottom up


def _through(knots: np.ndarray, rows: int) -> np.ndarray:
    """A smooth profile through evenly spaced radii, the widest 1."""
    radii = np.maximum(interpolation(len(knots), rows, False) @ knots, 0.04)
    return np.stack([radii / radii.max(), np.linspace(-1, 1, rows)], axis=1)


def vase(rng: np.random.Generator, rows: int) -> np.ndarray:
    return _through(rng.uniform(0.25, 1, int(rng.integers(4, 6))), rows)


def bowl(rng: np.random.Generator, rows: int) -> np.ndarray:
    angles = np.linspace(np.arccos(rng.uniform(0.25, 0.6)), 0, rows)
    return np.stack([np.cos(angles), 1 - 2 * np.sin(angles) / np.sin(angles[0])], axis=1)


def cup(rng: np.random.Generator, rows: int) -> np.ndarray:
    wide = rng.uniform(0.6, 1)
    return np.stack([np.linspace(wide, 1, rows), np.linspace(-1, 1, rows)], axis=1)


def drop(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Closed at both ends: an egg, a pear or a drop."""
    t = np.linspace(0, np.pi, rows)
    radii = np.sin(t) * (1 + rng.uniform(-0.6, 0.6) * np.cos(t) + rng.uniform(-0.25, 0.35) * np.cos(2 * t))
    radii[[0, -1]] = 0
    return np.stack([radii / radii.max(), -np.cos(t)], axis=1)


def bottle(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Straight body, round shoulder, narrow neck."""
    neck, shoulder, slope = rng.uniform(0.2, 0.5), rng.uniform(-0.1, 0.4), rng.uniform(0.2, 0.5)
    t = np.linspace(0, 1, rows)
    curve = np.stack([neck + (1 - neck) * (0.5 + 0.5 * np.cos(np.pi * t)), shoulder + slope * t], axis=1)
    return np.concatenate([[(1, -1)], curve, [(neck, 1)]])


def goblet(rng: np.random.Generator, rows: int) -> np.ndarray:
    """A foot, a thin stem and a cup on it, as one outside."""
    stem, height, wide = rng.uniform(0.08, 0.16), rng.uniform(-0.3, 0.2), rng.uniform(0.65, 1)
    t = np.linspace(0, np.pi / 2, rows)
    foot = np.stack([stem + (wide - stem) * (1 - np.sin(t)), -1 + 0.25 * (1 - np.cos(t))], axis=1)
    cup = np.stack([stem + (1 - stem) * np.sin(t), height + (1 - height) * (1 - np.cos(t))], axis=1)
    return np.concatenate([foot, cup])


def spindle(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Turned wood: beads and coves of changing width."""
    beads = int(rng.integers(3, 7))
    z = np.linspace(-1, 1, max(rows, 6 * beads))
    wave = np.abs(np.sin(0.5 * np.pi * beads * (z + 1)))
    radii = 0.3 + wave * np.interp(z, np.linspace(-1, 1, beads), rng.uniform(0.15, 0.7, beads))
    return np.stack([radii / radii.max(), z], axis=1)


# ---- outlines [N+1,2] in [-1,1]^2, counter-clockwise, closed, seen whole from the origin


def _polar(angles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return np.concatenate([points, points[:1]]) / np.abs(points).max()


def star(rng: np.random.Generator) -> np.ndarray:
    tips = int(rng.integers(4, 9))
    angles = np.pi / 2 + np.arange(2 * tips) * np.pi / tips
    return _polar(angles, np.where(np.arange(2 * tips) % 2, rng.uniform(0.35, 0.7), 1))


def gear(rng: np.random.Generator) -> np.ndarray:
    teeth, depth = int(rng.integers(7, 14)), rng.uniform(0.72, 0.88)
    phase = np.array([0, 0.2, 0.3, 0.7, 0.8]) - 0.5
    angles = ((np.arange(teeth)[:, None] + phase) * 2 * np.pi / teeth).reshape(-1)
    return _polar(angles, np.tile([depth, depth, 1, 1, depth], teeth))


def flower(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return _polar(angles, 1 + rng.uniform(0.12, 0.3) * np.cos(int(rng.integers(3, 8)) * angles))


def heart(rng: np.random.Generator) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False) + np.pi
    x = 16 * np.sin(-t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t) + 3
    points = np.stack([x, y], axis=1) / 17
    return np.concatenate([points, points[:1]])


def plus(rng: np.random.Generator) -> np.ndarray:
    w = rng.uniform(0.2, 0.5)
    quarter = np.array([[1, -w], [1, w], [w, w]])
    turns = [quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    points = np.concatenate(turns)
    return np.concatenate([points, points[:1]])


def arrow(rng: np.random.Generator) -> np.ndarray:
    w, neck = rng.uniform(0.2, 0.45), rng.uniform(-0.1, 0.15)
    points = np.array([[-w, -1], [w, -1], [w, neck], [0.9, neck], [0, 1], [-0.9, neck], [-w, neck], [-w, -1]])
    return points - np.array([0, 0.5 * neck])


# name: (outline, whether its wall is smooth)
OUTLINES: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], bool]] = {
    "star": (star, False),
    "gear": (gear, False),
    "flower": (flower, True),
    "heart": (heart, True),
    "cross": (plus, False),
    "arrow": (arrow, False),
}

LETTERS = {
    "L": ("#..", "#..", "#..", "###"),
    "T": ("###", ".#.", ".#.", ".#."),
    "H": ("#.#", "#.#", "###", "#.#", "#.#"),
    "E": ("###", "#..", "##.", "#..", "###"),
    "F": ("###", "#..", "##.", "#..", "#.."),
    "U": ("#.#", "#.#", "#.#", "###"),
    "A": ("###", "#.#", "###", "#.#", "#.#"),
    "O": ("###", "#.#", "#.#", "###"),
    "P": ("###", "#.#", "###", "#..", "#.."),
    "Z": ("##.", ".#.", ".##"),
}


# ---- lines in space [N,3], whose extent is scaled by the caller


def arch(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, np.pi * rng.uniform(0.8, 1.5), 14)
    return np.stack([np.cos(angles), np.zeros(14), np.sin(angles)], axis=1)


def hook(rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(0, np.pi * rng.uniform(0.7, 1.1), 10)
    top = np.stack([0.5 - 0.5 * np.cos(angles), np.zeros(10), 0.5 + 0.5 * np.sin(angles)], axis=1)
    return np.concatenate([[(0, 0, -1), (0, 0, -0.2)], top])


def spring(rng: np.random.Generator) -> np.ndarray:
    turns = rng.uniform(2.5, 5)
    angles = np.linspace(0, 2 * np.pi * turns, int(14 * turns))
    return np.stack([np.cos(angles), np.sin(angles), np.linspace(-1, 1, len(angles))], axis=1)


def spiral(rng: np.random.Generator) -> np.ndarray:
    turns = rng.uniform(1.5, 3)
    angles = np.linspace(0, 2 * np.pi * turns, int(14 * turns))
    radii = np.linspace(0.15, 1, len(angles))
    rise = rng.uniform(0, 1.5) * (1 - radii)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles), rise], axis=1)


def wave(rng: np.random.Generator) -> np.ndarray:
    """A smooth line through five random points on the way up."""
    knots = np.column_stack([rng.uniform(-0.4, 0.4, (5, 2)), np.linspace(-1, 1, 5)])
    return interpolation(5, 21, False) @ knots


CURVES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "arch": arch,
    "hook": hook,
    "spring": spring,
    "spiral": spiral,
    "curved tube": wave,
}


def knot(rng: np.random.Generator) -> np.ndarray:
    """A torus knot; the last point is the first one."""
    p, q = ((2, 3), (3, 2), (2, 5), (3, 4))[int(rng.integers(4))]
    t = np.linspace(0, 2 * np.pi, 73)
    radius = 1 + rng.uniform(0.3, 0.5) * np.cos(q * t)
    return np.stack([radius * np.cos(p * t), radius * np.sin(p * t), 0.5 * np.sin(q * t)], axis=1)


def _arc(x: float, z: float, radius: float, start: float, stop: float) -> np.ndarray:
    """[9,2] of a circle, angles in degrees."""
    angles = np.radians(np.linspace(start, stop, 9))
    return np.stack([x + radius * np.cos(angles), z + radius * np.sin(angles)], axis=1)


# one pen stroke each, as pieces that are joined: letters and figures with round parts
STROKES = {
    "letter S": (_arc(0, 0.5, 0.5, 30, 270), _arc(0, -0.5, 0.5, 90, -150)),
    "letter C": (_arc(0, 0, 0.9, 50, 310),),
    "letter J": (np.array([[0.5, 1.0], [0.5, 0.2]]), _arc(0, -0.45, 0.5, 0, -170)),
    "figure 2": (_arc(0, 0.45, 0.5, 170, -30), np.array([[-0.5, -0.8], [-0.35, -0.85], [0.6, -0.85]])),
    "figure 3": (_arc(0, 0.45, 0.45, 150, -70), _arc(0, -0.5, 0.55, 70, -150)),
    "figure 6": (_arc(0.35, 0.1, 0.9, 100, 190), _arc(0, -0.4, 0.5, 190, 500)),
}


def pen_line(name: str) -> np.ndarray:
    """[N,3] of a stroke in STROKES, upright in the xz plane."""
    stroke = np.concatenate(STROKES[name])
    return np.stack([stroke[:, 0], np.zeros(len(stroke)), stroke[:, 1]], axis=1)
