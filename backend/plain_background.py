"""Cutting an object out of a picture whose background is plain: what differs from it, with soft edges.

The background is a colour that may change slowly over the picture, told from the picture's border. What the border
reaches without leaving that colour is background; at the edge a pixel's colour is a mixture, which is taken apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

BORDER = 0.015  # width of the border that is looked at, of the picture's side
BORDER_SAMPLES = 20_000
ROUNDS = 12  # of fitting the background with less weight on what does not fit
PLAIN = 0.6  # share of the border that must fit: an object may be cut off by it
LEAST_REACH, MOST_REACH = 0.03, 0.14  # distance of colours (root of the sum of squares) at which the background ends
CLEAR = 0.2  # distance that no background has
RINGING = 8.0  # times the median distance near the object: as far as JPEG's noise there reaches
MOST_RINGING = 0.08
FIT_DISTANCE = 0.1  # the same, for the border while it is fitted
FAINT = 2.0  # times that distance: nearer than this is object only where it is no thin rim, as JPEG leaves around edges
HOLE_SHARE = 0.0003  # of the picture's area: smaller holes are taken for highlights
HOLE = 0.75  # median distance of a hole from the background, of the distance at which the background ends
SHARP = 0.6  # distance of a hole's rim from the background at least, of that of the object further on
LEAST_CONTRAST = 0.12  # of object and background: less cannot be taken apart


@dataclass(frozen=True)
class Backdrop:
    """colours  [H,W,3] of the background at each pixel
    reach    distance from them up to which a colour is background
    """

    colours: np.ndarray
    reach: float


def border_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours [N,3] of a picture's [H,W,3] border and their places [N,2], x and y in -1..1."""
    height, width = rgb.shape[:2]
    ring = np.ones((height, width), bool)
    thick = max(1, round(BORDER * min(height, width)))
    ring[thick:-thick, thick:-thick] = False
    rows, columns = np.nonzero(ring)
    step = max(1, len(rows) // BORDER_SAMPLES)
    rows, columns = rows[::step], columns[::step]
    return rgb[rows, columns], np.stack([_across(width)[columns], _across(height)[rows]], axis=1)


def flat(rgb: np.ndarray, colour: np.ndarray) -> Backdrop:
    """A background of one colour [3] behind a picture [H,W,3]."""
    return _backdrop(rgb, np.broadcast_to(colour.astype(np.float32), rgb.shape), noise=0.0)


def fitted(rgb: np.ndarray, start: np.ndarray) -> Backdrop | None:
    """The background behind a picture [H,W,3], near the colour `start` [3]; None where the border is not plain."""
    colours, places = border_of(rgb)
    terms = _terms(places[:, 0], places[:, 1])
    distance, fit = np.linalg.norm(colours - start, axis=1), np.zeros((6, 3))
    for _ in range(ROUNDS):
        scale = max(1.5 * float(np.median(distance)), 0.02)
        weights = 1 / (1 + (distance / scale) ** 2)
        fit = np.linalg.lstsq(terms * weights[:, None], colours * weights[:, None], rcond=None)[0]
        distance = np.linalg.norm(colours - terms @ fit, axis=1)
    inside = distance < FIT_DISTANCE
    if inside.mean() < PLAIN:
        return None
    noise = float(np.quantile(distance[inside], 0.95))
    height, width = rgb.shape[:2]
    everywhere = _surface(fit.astype(np.float32), _across(width), _across(height))
    return _backdrop(rgb, everywhere.clip(0, 1), noise)


def _backdrop(rgb: np.ndarray, colours: np.ndarray, noise: float) -> Backdrop:
    """With the reach that the border's noise and that around the object ask for."""
    ringing = min(RINGING * _noise_around(_distance(rgb, colours)), MOST_RINGING)
    return Backdrop(colours, min(max(2 * noise, ringing, LEAST_REACH), MOST_REACH))


def _noise_around(distance: np.ndarray) -> float:
    """The median distance in a band around what is clearly object: JPEG leaves noise there even where the border has
    none.
    """
    clear = distance > CLEAR
    around = _grown(clear, 10) & ~_grown(clear, 3)
    values = distance[around & (distance < CLEAR)]
    return float(np.median(values)) if len(values) else 0.0


def _across(count: int) -> np.ndarray:
    return ((np.arange(count, dtype=np.float32) + 0.5) / count) * 2 - 1


def _terms(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _surface(fit: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[H,W,3] what the terms [6,3] give at columns x [W] and rows y [H]."""
    zero = np.zeros_like
    along = _terms(x, zero(x)) @ fit  # what changes along rows alone
    down = (_terms(zero(y), y) - _terms(zero(y), zero(y))) @ fit
    return along[None] + down[:, None] + (y[:, None] * x)[..., None] * fit[4]


# ---- what is background


def background_of(rgb: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """[H,W] bool: what the border reaches through pixels of the background's colour."""
    return _reached_from_border(_like_background(_distance(rgb, backdrop.colours), backdrop))


def holes_of(rgb: np.ndarray, backdrop: Backdrop, background: np.ndarray) -> np.ndarray:
    """[H,W] bool: places inside the object that show the background: large, of just its colour, with a sharp rim."""
    distance, width = _distance(rgb, backdrop.colours), _edge_width(rgb)
    parts = _numbered(_like_background(distance, backdrop) & ~background)
    holes, just = np.zeros_like(background), max(HOLE * backdrop.reach, LEAST_REACH)
    for number, window in enumerate(ndimage.find_objects(parts), start=1):
        rows, columns = (slice(max(part.start - 4 * width, 0), part.stop + 4 * width) for part in window)
        part, values = parts[rows, columns] == number, distance[rows, columns]
        large = part.sum() >= HOLE_SHARE * distance.size
        if large and np.median(values[part]) <= just and _has_sharp_rim(part, values, width):
            holes[rows, columns] |= part
    return holes


def _has_sharp_rim(part: np.ndarray, distance: np.ndarray, width: int) -> bool:
    """Whether the object begins at once around a part: a highlight fades into it."""
    edge = _grown(part, width)
    beyond = _grown(part, 3 * width) & ~_grown(part, 2 * width)
    at_edge = ndimage.maximum_filter(distance, 3)[edge & ~part]
    contrast = float(np.median(distance[beyond])) if beyond.any() else 0.0
    return len(at_edge) > 0 and float(np.median(at_edge)) > max(CLEAR, SHARP * contrast)


def _distance(rgb: np.ndarray, colours: np.ndarray) -> np.ndarray:
    difference = rgb - colours
    return np.sqrt(np.einsum("hwc,hwc->hw", difference, difference))


def _like_background(distance: np.ndarray, backdrop: Backdrop) -> np.ndarray:
    """[H,W] bool: what is near the background's colour, and thin rims of what is not far from it."""
    near = distance < backdrop.reach
    faint = distance < FAINT * backdrop.reach
    thick = _grown(~_grown(near, 2), 2)
    return near | (faint & ~thick)


def _reached_from_border(mask: np.ndarray) -> np.ndarray:
    parts = _numbered(mask)
    at_border = np.zeros(int(parts.max()) + 1, bool)
    for side in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        at_border[side] = True
    at_border[0] = False
    return at_border[parts]


def _numbered(mask: np.ndarray) -> np.ndarray:
    """[H,W] int32: of each pixel of a mask, which of its parts it is in, from 1; 0 outside."""
    parts = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=parts)
    return parts


# ---- edges


def cut(rgb: np.ndarray, backdrop: Backdrop, background: np.ndarray) -> np.ndarray:
    """[H,W,4] float32, straight alpha: the picture [H,W,3] without its background [H,W] bool.

    Alpha is soft at the edge alone, and colours have nothing of the background in them, even where alpha is 0.
    """
    solid = ~background
    if not solid.any():
        return np.concatenate([rgb, np.zeros_like(rgb[..., :1])], axis=2)
    width = _edge_width(rgb)
    inner = ~_grown(background, width)
    sure = inner | _ridges(rgb, backdrop, solid, inner, width)
    colours = inner_colours(rgb, sure)
    contrast = colours - backdrop.colours
    strength = (contrast**2).sum(2)
    mixed = ((rgb - backdrop.colours) * contrast).sum(2) / np.maximum(strength, 1e-6)
    alpha = np.where(strength < LEAST_CONTRAST**2, solid, np.clip((mixed - 0.05) / 0.9, 0, 1))
    alpha = np.where(inner, 1, np.where(_grown(solid, width), alpha, 0))[..., None]
    apart = (rgb - (1 - alpha) * backdrop.colours) / np.maximum(alpha, 0.3)
    colours = np.where(alpha > 0.3, np.clip(apart, 0, 1), colours)
    return np.concatenate([colours, alpha], axis=2).astype(np.float32)


def _edge_width(rgb: np.ndarray) -> int:
    """Pixels on either side of an edge that may be mixtures: large pictures are less sharp."""
    return max(1, round(max(rgb.shape[:2]) / 512)) + 1


def inner_colours(rgb: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """[H,W,3] the colour of the nearest pixel that is surely object: `sure` [H,W] bool, which has some."""
    nearest = np.zeros((2, *sure.shape), np.int32)
    ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True, indices=nearest)
    return rgb[nearest[0], nearest[1]]


def _grown(mask: np.ndarray, width: int) -> np.ndarray:
    """With all pixels that are at most `width` rows and columns away."""
    return ndimage.maximum_filter(mask, 2 * width + 1)


def _ridges(rgb: np.ndarray, backdrop: Backdrop, solid: np.ndarray, inner: np.ndarray, width: int) -> np.ndarray:
    """[H,W] bool: of parts too thin to have an inside, the pixels that differ most from the background."""
    thin = solid & ~_grown(inner, width + 1)
    distance = np.where(solid, _distance(rgb, backdrop.colours), 0)
    return thin & (distance >= ndimage.maximum_filter(distance, 2 * width + 1))
