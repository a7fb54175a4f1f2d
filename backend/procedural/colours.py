"""Colours by name, and colours by chance."""

from __future__ import annotations

import colorsys

import numpy as np

from backend.assets import decode_srgb

# sRGB of what people call by these names
COLOURS = {
    "black": (0.06, 0.06, 0.06),
    "dark grey": (0.27, 0.27, 0.27),
    "grey": (0.5, 0.5, 0.5),
    "light grey": (0.75, 0.75, 0.75),
    "white": (0.97, 0.97, 0.97),
    "red": (0.85, 0.12, 0.12),
    "dark red": (0.5, 0.07, 0.1),
    "orange": (0.96, 0.52, 0.1),
    "brown": (0.44, 0.27, 0.14),
    "dark brown": (0.25, 0.16, 0.1),
    "tan": (0.78, 0.63, 0.45),
    "beige": (0.92, 0.86, 0.74),
    "gold": (0.83, 0.66, 0.2),
    "yellow": (0.96, 0.88, 0.2),
    "olive": (0.48, 0.47, 0.18),
    "lime": (0.65, 0.88, 0.2),
    "green": (0.2, 0.62, 0.24),
    "light green": (0.6, 0.86, 0.6),
    "dark green": (0.1, 0.32, 0.15),
    "teal": (0.1, 0.5, 0.5),
    "turquoise": (0.25, 0.82, 0.78),
    "light blue": (0.6, 0.8, 0.95),
    "blue": (0.16, 0.36, 0.82),
    "dark blue": (0.08, 0.12, 0.42),
    "purple": (0.5, 0.2, 0.65),
    "lavender": (0.75, 0.68, 0.92),
    "magenta": (0.85, 0.15, 0.65),
    "pink": (0.96, 0.65, 0.75),
    "salmon": (0.94, 0.55, 0.48),
}
NEUTRAL = ("black", "dark grey", "grey", "light grey", "white", "white")
WHITE_POINT = np.array([0.95047, 1.0, 1.08883])  # CIE XYZ of D65
# linear sRGB to XYZ (IEC 61966-2-1)
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b* [...,3] of linear colours [...,3], 0..1."""
    ratio = linear @ TO_XYZ.T / WHITE_POINT
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


NAMES = tuple(COLOURS)
IS_NEUTRAL = np.array([name in NEUTRAL for name in NAMES])
GREYEST, DARKEST = 12.0, 12.0  # chroma of what is still grey, and lightness of what is always black
NAMED_LAB = lab(decode_srgb(np.array(list(COLOURS.values()))))


def colour_name(linear: np.ndarray) -> str:
    """The name in COLOURS that is nearest to a linear colour [3], 0..1."""
    return colour_names(linear[None])[0]


def colour_names(linear: np.ndarray) -> list[str]:
    """Those of linear colours [N,3].

    Near is by lightness L, chroma C and hue H of L*a*b*: the squares of the differences of L and H (CIE 1976), and that
    of C halved, since a dull red is still a red. Only what is nearly grey, or nearly black, is called so.
    """
    colours = lab(linear)[:, None]
    chroma, named_chroma = (np.hypot(values[..., 1], values[..., 2]) for values in (colours, NAMED_LAB))
    lightness = colours[..., 0] - NAMED_LAB[..., 0]
    hue = np.square(colours[..., 1:] - NAMED_LAB[..., 1:]).sum(-1) - np.square(chroma - named_chroma)
    apart = np.square(lightness) + np.square((chroma - named_chroma) / 2) + hue
    apart = np.where((chroma > GREYEST) & (colours[..., 0] > DARKEST) & IS_NEUTRAL, np.inf, apart)
    return [NAMES[number] for number in apart.argmin(axis=1)]


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """[3] sRGB, 0..1: a neutral, a saturated, a pale or a muted one."""
    style = rng.random()
    if style < 0.25:
        colour = COLOURS[NEUTRAL[int(rng.integers(len(NEUTRAL)))]]
    elif style < 0.45:
        colour = COLOURS[NAMES[int(rng.integers(len(NAMES)))]]
    elif style < 0.75:
        colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.7, 1), rng.uniform(0.5, 1))
    else:
        colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.15, 0.6), rng.uniform(0.3, 1))
    return np.clip(np.array(colour) + rng.uniform(-0.05, 0.05, 3), 0.01, 0.99)
