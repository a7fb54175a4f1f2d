"""Words for a procedural object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.procedural.paints import Paint
from backend.procedural.plans import pick

LEAST_AREA = 0.03  # of the whole: smaller groups are not spoken of
MOST_NAMED = 4
NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# other words for a kind or a pattern
ALSO = {
    "box": ("box", "box", "block"),
    "ball": ("ball", "ball", "sphere"),
    "ring": ("ring", "ring", "hoop"),
    "pipe": ("pipe", "hollow cylinder"),
    "capsule": ("capsule", "pill"),
    "wedge": ("wedge", "triangular prism"),
    "horn": ("horn", "tusk"),
    "checkered": ("checkered", "chequered"),
    "dotted": ("dotted", "spotted"),
    "plaid": ("plaid", "tartan"),
    "wooden": ("wooden", "wooden", "wood-grained"),
    "brick": ("brick", "bricked"),
    "printed": ("printed", "labelled"),
    "textured": ("textured", "textured", "patterned"),
    "metallic": ("metallic", "metal", "shiny metal"),
    "glossy": ("glossy", "shiny"),
    "matte": ("matte", "dull"),
}


@dataclass(frozen=True)
class Group:
    """Bodies that are spoken of together.

    noun    singular, or already plural
    count   how many bodies
    area    of the surface of all of them
    paints  from the one that covers most to the one that covers least
    bumpy   whether a height field dents it
    """

    noun: str
    count: int
    area: float
    paints: tuple[Paint, ...]
    bumpy: bool


def caption(rng: np.random.Generator, title: str, groups: Sequence[Group], remarks: Sequence[str]) -> str:
    """Names the kinds, colours and materials of the largest groups, in words that vary.

    title    what the whole is called, "" where it is only the sum of its parts
    remarks  what else there is to say, such as "cut open"
    """
    ranked = sorted(groups, key=lambda group: -group.area)
    total = sum(group.area for group in groups)
    named = [group for group in ranked if group.area > LEAST_AREA * total][:MOST_NAMED]
    if title:
        whole = Group(title, 1, total, named[0].paints, named[0].bumpy)
        text = _phrase(rng, whole, brief=False)
        others = [_phrase(rng, group, brief=True) for group in named[1:]]
    else:
        text = _phrase(rng, named[0], brief=False)
        others = [_phrase(rng, group, brief=False) for group in named[1:]]
    if others:
        text += f" {pick(rng, ('with', 'with', 'and') if not title else ('with',))} {_listed(others)}"
    return ", ".join([text, *remarks])


def _phrase(rng: np.random.Generator, group: Group, *, brief: bool) -> str:
    noun = pick(rng, ALSO.get(group.noun, (group.noun,)))
    words = _described(rng, group, brief=brief)
    if noun.endswith("s") and not noun.endswith("ss"):
        return f"{words} {noun}"
    if group.count > 1:
        count = NUMBERS[group.count] if group.count < len(NUMBERS) else "many"
        return f"{count} {words} {_plural(noun)}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words} {noun}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "ss", "sh", "ch")) else "s")


def _described(rng: np.random.Generator, group: Group, *, brief: bool) -> str:
    """Finish, colours and pattern, the colour of the largest paint always among them."""
    paint = group.paints[0]
    words = ["bumpy"] if group.bumpy and not brief and rng.random() < 0.5 else []
    if paint.finish and (not brief or rng.random() < 0.5):
        words.append(pick(rng, ALSO.get(paint.finish, (paint.finish,))))
    colours = list(paint.colours)
    if len(group.paints) == 2 and len(colours) == 1:
        colours += [colour for colour in group.paints[1].colours[:1] if colour not in colours]
    if len(group.paints) > 2:
        words.append(pick(rng, ("mostly", "largely")))
    words.append(" and ".join(colours))
    if paint.pattern:
        words.append(pick(rng, ALSO.get(paint.pattern, (paint.pattern,))))
    return " ".join(words)


def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
