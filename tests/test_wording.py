"""Words for objects: right, varied, and never of another colour."""

from __future__ import annotations

import numpy as np
import pytest

from backend import wording
from backend.assets import Material
from backend.procedural.captions import ALSO, Group
from backend.procedural.colours import COLOURS
from backend.procedural.paints import FINISHES, Paint
from backend.procedural.patterns import PATTERNS
from backend.wording import COLOUR_WORDS, KIND_WORDS, LOOK_WORDS, MADE_OF, Description, prompt

CLOTH = Material((1.0, 1.0, 1.0, 1.0))


def group(noun: str, colour: str, area: float, *, pattern: str = "", finish: str = "", count: int = 1) -> Group:
    return Group(noun, count, area, (Paint(CLOTH, (colour,) if colour else (), pattern, finish, None),), bumpy=False)


CHAIR = Description("chair", (group("seat", "red", 3.0, pattern="wooden"), group("legs", "black", 1.0, count=4)))


def prompts(described: Description, extent: tuple[float, ...] = (), count: int = 300) -> list[str]:
    rng = np.random.default_rng(0)
    return [prompt(rng, described, extent) for _ in range(count)]


def test_says_what_covers_most():
    assert (CHAIR.kind, CHAIR.colour) == ("chair", "red")
    bare = Description("", (group("cone", "blue", 1.0),))
    assert (bare.kind, bare.colour) == ("cone", "blue")


def test_every_prompt_names_the_kind_and_nearly_every_one_the_colour():
    found = prompts(CHAIR)
    assert all("chair" in text for text in found)
    named = [any(word in text for word in ("red", *COLOUR_WORDS["red"])) for text in found]
    assert 0.85 < np.mean(named) < 1


def test_prompts_vary():
    found = prompts(CHAIR)
    assert len(set(found)) > 150
    for way in ("chair, ", " in ", " made of ", "a 3d model of ", " with "):
        assert any(way in text for text in found), way


def test_parts_keep_their_own_colours():
    for text in prompts(CHAIR):
        if "with" in text:
            told = text.split(" with ", 1)[1]
            assert any(word in told for word in ("black", *COLOUR_WORDS["black"])), text
            assert "red" not in told, text


def test_an_object_without_one_colour_is_given_none():
    words = [word for name in COLOURS for word in (name, *COLOUR_WORDS[name])]
    for text in prompts(Description("ship", (group("ship", "", 1.0),))):
        assert not any(f" {word} " in f" {text} " for word in words), text


@pytest.mark.parametrize(
    ("extent", "words"),
    [
        ((1.0, 1.0, 3.0), {"tall", "high", "slim"}),
        ((1.0, 1.0, 0.2), {"low", "flat"}),
        ((3.0, 0.5, 1.3), {"long", "narrow"}),
        ((1.0, 1.0, 1.0), set()),
    ],
)
def test_words_for_the_shape_fit_the_box(extent: tuple[float, ...], words: set[str]):
    every = {"tall", "high", "slim", "low", "flat", "long", "narrow"}
    found = {word for text in prompts(CHAIR, extent) for word in every if word in text.replace(",", "").split()}
    assert found == words


def test_an_article_fits_its_word():
    rng = np.random.default_rng(1)
    texts = {prompt(rng, Description("", (group("egg", "orange", 1.0),)), ()) for _ in range(100)}
    assert not any(text.startswith(("a orange", "a egg", "an tangerine")) for text in texts)


def test_tables_speak_of_what_there_is():
    assert set(COLOUR_WORDS) == set(COLOURS)
    assert set(LOOK_WORDS) <= set(PATTERNS) | set(FINISHES)
    assert set(MADE_OF) <= set(LOOK_WORDS)
    own = {word for words in COLOUR_WORDS.values() for word in words}
    assert not own & set(COLOURS), "one colour's other word is another's name"
    assert not set(KIND_WORDS) & set(ALSO)
    assert len(own) == sum(map(len, COLOUR_WORDS.values())), "two colours share a word"
    assert wording.THIN < 1 < wording.TALL
