"""What an object is to be: its bodies and where they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from backend.procedural.solids import Builder

T = TypeVar("T")

COUNT_WEIGHTS = np.array([5.0, 5, 5, 5, 5, 4, 3, 2, 1])  # of 1 to 9 bodies (Xie et al. 2024, appendix on Zeroverse)
LIKELIER = {"box": 5.0, "ball": 4.0, "cylinder": 4.0, "rounded box": 3.0, "cone": 2.0, "ring": 2.0}
STYLES = ("scatter", "attach", "attach", "stack")
MOST_STACKED = 5  # bodies: of more, only a thin tower would be seen
STANDING = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # local z turned to -y, y to z
ALONG_X = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # local z turned to x


@dataclass(frozen=True)
class Piece:
    """One body.

    kind    name of a builder
    half    [3] half extents before turning
    centre  [3]
    turn    [3,3] rotation
    group   pieces of one group, kind and size are alike, and share their materials
    noun    what a caption calls the group, "" for the kind's own name
    """

    kind: str
    half: np.ndarray
    centre: np.ndarray
    turn: np.ndarray = field(default_factory=lambda: np.eye(3))
    group: int = 0
    noun: str = ""


@dataclass(frozen=True)
class Plan:
    """title: what the whole is called, "" where it is only what it is made of."""

    title: str
    pieces: tuple[Piece, ...]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def reach(piece: Piece) -> np.ndarray:
    """[3] half extents of the turned piece's box."""
    return np.abs(piece.turn) @ piece.half


def rotation(rng: np.random.Generator) -> np.ndarray:
    """[3,3] half of the time along the axes, else about z alone or any."""
    style = rng.random()
    if style < 0.5:
        return np.eye(3) if style < 0.35 else pick(rng, (STANDING, ALONG_X))
    if style < 0.65:
        return about_z(rng.uniform(0, 2 * np.pi))
    quaternion = rng.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def half_extents(rng: np.random.Generator) -> np.ndarray:
    """[3] stout, round, long or flat."""
    style, size = rng.random(), np.exp(rng.uniform(np.log(0.3), 0))
    if style < 0.5:
        return size * rng.uniform(0.35, 1, 3)
    if style < 0.7:
        return size * np.array([1, 1, rng.uniform(0.5, 1.5)]) * rng.uniform(0.5, 1)
    if style < 0.85:
        thin = rng.uniform(0.06, 0.3)
        return rng.permutation(size * np.array([thin, thin * rng.uniform(0.7, 1.4), 1]))
    return rng.permutation(size * np.array([1, rng.uniform(0.5, 1), rng.uniform(0.04, 0.15)]))


def assembly(rng: np.random.Generator, kinds: Mapping[str, Builder], most: int) -> Plan:
    """One to `most` bodies, scattered, attached to one another or stacked; sometimes one body repeated."""
    weights = COUNT_WEIGHTS[:most]
    count = 1 + int(rng.choice(most, p=weights / weights.sum()))
    likely = np.array([LIKELIER.get(kind, 1.0) for kind in kinds])
    names = tuple(kinds)
    chosen = [names[i] for i in rng.choice(len(names), size=count, p=likely / likely.sum())]
    style = pick(rng, STYLES if count <= MOST_STACKED else STYLES[:2])
    pieces: list[Piece] = []
    for group, kind in enumerate(chosen):
        piece = Piece(kind, half_extents(rng), np.zeros(3), rotation(rng), group)
        pieces.append(replace(piece, centre=_place(rng, style, piece, pieces)))
        if rng.random() < 0.12:
            pieces += _row(rng, pieces[-1], 10 - len(pieces))
    return Plan("", tuple(pieces[:9]))


def single(rng: np.random.Generator, kinds: Mapping[str, Builder]) -> Plan:
    """One body, upright."""
    return Plan("", (Piece(pick(rng, tuple(kinds)), half_extents(rng), np.zeros(3), np.eye(3), 0),))


def _place(rng: np.random.Generator, style: str, piece: Piece, others: list[Piece]) -> np.ndarray:
    if not others:
        return np.zeros(3)
    if style == "scatter":
        return rng.uniform(-0.7, 0.7, 3)
    own, base = reach(piece), others[-1] if style == "stack" else pick(rng, others)
    theirs = reach(base)
    if style == "stack":
        top = max(other.centre[2] + reach(other)[2] for other in others)
        sideways = 0.3 * theirs[:2] * rng.uniform(-1, 1, 2) * (rng.random() < 0.5)
        return np.append(base.centre[:2] + sideways, top + 0.96 * own[2])
    axis, side = int(rng.integers(3)), pick(rng, (-1.0, 1.0))
    centre = base.centre + theirs * rng.uniform(-0.7, 0.7, 3) * (rng.random() < 0.7)
    centre[axis] = base.centre[axis] + side * (theirs[axis] + rng.uniform(-0.4, 0.7) * own[axis])
    return centre


def _row(rng: np.random.Generator, piece: Piece, most: int) -> list[Piece]:
    """Copies along a line or round the z axis."""
    count = min(int(rng.integers(2, 6)), most)
    if rng.random() < 0.5:
        axis = int(rng.integers(3))
        step = np.eye(3)[axis] * reach(piece)[axis] * rng.uniform(1.0, 2.2)
        return [replace(piece, centre=piece.centre + (k + 1) * step) for k in range(count)]
    turns = [about_z(2 * np.pi * (k + 1) / (count + 1)) for k in range(count)]
    out = np.hypot(*piece.centre[:2])
    near = np.array([1.2 * float(reach(piece)[0]), 0, piece.centre[2]])
    start = near if out < 0.1 else piece.centre * np.array([1, 1, 0]) * min(1, 0.7 / out) + near * np.array([0, 0, 1])
    return [replace(piece, centre=turn @ start, turn=turn @ piece.turn) for turn in turns]


def leaning(angle: float) -> np.ndarray:
    """[3,3] about x: local z leans towards -y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


class Maker:
    """Collects pieces; those of one noun are one group."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.nouns: list[str] = []

    def add(self, noun: str, kind: str, half: tuple, centre: tuple, turn: np.ndarray | None = None) -> None:
        """Of the noun and its group. What follows a # sets groups of one noun apart."""
        if noun not in self.nouns:
            self.nouns.append(noun)
        turn = np.eye(3) if turn is None else turn
        place = np.array(centre, dtype=float)
        self.pieces.append(
            Piece(kind, np.array(half, dtype=float), place, turn, self.nouns.index(noun), noun.split("#")[0])
        )

    def pair(self, noun: str, kind: str, half: tuple, centre: tuple, turn: np.ndarray | None = None) -> None:
        """One on either side of x = 0."""
        for side in (-1, 1):
            self.add(noun, kind, half, (side * centre[0], *centre[1:]), turn)

    def four(self, noun: str, kind: str, half: tuple, centre: tuple, turn: np.ndarray | None = None) -> None:
        for side in (-1, 1):
            self.pair(noun, kind, half, (centre[0], side * centre[1], centre[2]), turn)


Thing = Callable[[np.random.Generator, Maker], str]  # adds its pieces and returns its title
