"""What procedural objects are painted with: materials by chance, and the words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.assets import Material, decode_srgb
from backend.procedural.colours import COLOURS, colour_name, colour_names, random_colour
from backend.procedural.patterns import PATTERNS, SIDES, drawn
from backend.procedural.plans import pick

FLAT_SHARE, PICTURE_SHARE = 0.45, 0.3  # of one colour, and of a given picture; the rest has a drawn pattern
TINTED = 0.35  # of the pictures: most materials are grey or brown
REUSE = 0.35  # chance that a surface takes a paint that the object has already
MOST = 8  # paints of one object
MAIN, SECOND, TOGETHER = 0.6, 0.25, 0.75  # shares of a picture: of its one colour, of the other of two, and of both
# word: (least roughness, most roughness, metallic, how often)
FINISHES = {
    "": (0.4, 0.8, 0.0, 0.55),
    "matte": (0.8, 1.0, 0.0, 0.15),
    "glossy": (0.1, 0.3, 0.0, 0.18),
    "metallic": (0.15, 0.5, 1.0, 0.12),
}
METALS = ("light grey", "grey", "dark grey", "gold", "white", "brown")
# what some patterns are mostly made of: names of first and second colours
USUAL = {
    "wooden": (("brown", "tan", "dark brown", "beige"), ("brown", "dark brown", "tan", "orange")),
    "brick": (("dark red", "brown", "salmon", "grey", "red"), ("light grey", "beige", "white", "grey")),
    "marble": (("grey", "dark green", "black", "brown"), ("white", "light grey", "beige", "white")),
}


@dataclass(frozen=True)
class Paint:
    """colours: names of the colours to be seen; pattern, finish: words, "" where there is nothing to say.

    density  repeats of the texture along a unit of length, None where it covers its surface once
    """

    material: Material
    colours: tuple[str, ...]
    pattern: str
    finish: str
    density: float | None


class Palette:
    """The paints of one object, made as they are asked for."""

    def __init__(self, rng: np.random.Generator, textures: Sequence[np.ndarray], reuse: float = REUSE) -> None:
        self._rng, self._textures, self._reuse = rng, textures, reuse
        self.paints: list[Paint] = []

    def draw(self) -> int:
        """The number of a paint in `paints`, new or used before."""
        used = len(self.paints)
        if used >= MOST or (used and self._rng.random() < self._reuse):
            return int(self._rng.integers(used))
        self.paints.append(random_paint(self._rng, self._textures))
        return used


def random_paint(rng: np.random.Generator, textures: Sequence[np.ndarray]) -> Paint:
    style = rng.random()
    if style < FLAT_SHARE:
        return _flat(rng)
    if style < FLAT_SHARE + PICTURE_SHARE and len(textures) > 0:
        return _picture(rng, pick(rng, textures))
    return _pattern(rng)


def _finish(rng: np.random.Generator) -> tuple[str, float, float]:
    """Word, roughness, metallic."""
    odds = np.cumsum([finish[3] for finish in FINISHES.values()])
    word = tuple(FINISHES)[int(np.searchsorted(odds, rng.random() * odds[-1], side="right"))]
    low, high, metallic, _ = FINISHES[word]
    return word, float(rng.uniform(low, high)), metallic


def _linear(srgb: np.ndarray) -> tuple[float, float, float, float]:
    red, green, blue = decode_srgb(srgb)
    return float(red), float(green), float(blue), 1.0


def _flat(rng: np.random.Generator) -> Paint:
    word, roughness, metallic = _finish(rng)
    colour = random_colour(rng)
    if metallic and rng.random() < 0.6:
        colour = near(rng, pick(rng, METALS))
    base = _linear(colour)
    return Paint(Material(base, None, roughness, metallic), (colour_name(np.array(base[:3])),), "", word, None)


def near(rng: np.random.Generator, name: str) -> np.ndarray:
    """[3] sRGB, 0..1, close to a colour of this name."""
    return np.clip(np.array(COLOURS[name]) + rng.uniform(-0.06, 0.06, 3), 0.01, 0.99)


def _picture(rng: np.random.Generator, texture: np.ndarray) -> Paint:
    word, roughness, metallic = _finish(rng)
    tint = 1 - rng.uniform(0, 0.8, 3) if rng.random() < TINTED else np.ones(3)
    base = _linear(tint)
    density = float(np.exp(rng.uniform(np.log(0.4), np.log(2.5))))
    colours = seen_colours(decode_srgb(texture[::8, ::8, :3].reshape(-1, 3) / 255) * base[:3])
    return Paint(Material(base, texture, roughness, metallic), colours, "textured", word, density)


def seen_colours(linear: np.ndarray) -> tuple[str, ...]:
    """What colours a picture shows from afar, of its linear pixels [N,3]: one, or two that share it, or its mean's."""
    names, counts = np.unique(colour_names(linear), return_counts=True)
    order = counts.argsort()[::-1][:2]
    shares = counts[order] / len(linear)
    if shares[0] < MAIN and len(shares) == 2 and shares[1] > SECOND and shares.sum() > TOGETHER:
        return tuple(str(names[number]) for number in order)
    return (str(names[order[0]]) if shares[0] >= MAIN else colour_name(linear.mean(axis=0)),)


def _pattern(rng: np.random.Generator) -> Paint:
    odds = np.cumsum([often for _, often, _ in PATTERNS.values()])
    pattern = tuple(PATTERNS)[int(np.searchsorted(odds, rng.random() * odds[-1], side="right"))]
    draw, _, once = PATTERNS[pattern]
    if pattern in USUAL and rng.random() < 0.75:
        first, second = (near(rng, pick(rng, names)) for names in USUAL[pattern])
    else:
        first, second = random_colour(rng), random_colour(rng)
    word, roughness, metallic = _finish(rng)
    texture = drawn(draw(rng, pick(rng, SIDES)), first, second)
    density = None if once else float(np.exp(rng.uniform(np.log(0.3), np.log(1.5))))
    colours = tuple(dict.fromkeys(colour_name(decode_srgb(colour)) for colour in (first, second)))
    return Paint(Material((1.0, 1.0, 1.0, 1.0), texture, roughness, metallic), colours, pattern, word, density)
