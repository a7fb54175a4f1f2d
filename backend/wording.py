"""What people may type for an object: its kind, colours, material and parts, in words and orders that vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.procedural.captions import ALSO, Group
from backend.procedural.plans import pick

# Other words for a colour; its own name is as likely as all of them.
COLOUR_WORDS = {
    "black": ("jet black", "ebony"),
    "dark grey": ("charcoal", "dark gray", "anthracite"),
    "grey": ("gray", "mid grey"),
    "light grey": ("silver", "pale grey", "light gray"),
    "white": ("snow white", "ivory white"),
    "red": ("scarlet", "bright red", "crimson", "ruby"),
    "dark red": ("maroon", "burgundy", "deep red"),
    "orange": ("bright orange", "tangerine"),
    "brown": ("chestnut", "chocolate"),
    "dark brown": ("deep brown", "coffee brown"),
    "tan": ("light brown", "sand"),
    "beige": ("cream", "ecru"),
    "gold": ("golden", "mustard"),
    "yellow": ("bright yellow", "lemon", "canary yellow"),
    "olive": ("olive green", "khaki"),
    "lime": ("lime green", "yellow green"),
    "green": ("emerald", "grass green"),
    "light green": ("mint", "pale green"),
    "dark green": ("forest green", "deep green"),
    "teal": ("petrol", "dark cyan"),
    "turquoise": ("cyan", "aqua"),
    "light blue": ("sky blue", "pale blue", "baby blue"),
    "blue": ("azure", "royal blue", "cobalt"),
    "dark blue": ("navy", "navy blue", "deep blue"),
    "purple": ("violet", "deep purple"),
    "lavender": ("lilac", "pale purple"),
    "magenta": ("fuchsia", "hot pink"),
    "pink": ("pale pink", "rose"),
    "salmon": ("coral", "peach"),
}
KIND_WORDS = {
    "table": ("table", "dining table"),
    "desk": ("desk", "writing desk"),
    "chair": ("chair", "dining chair", "kitchen chair"),
    "stool": ("stool", "bar stool"),
    "sofa": ("sofa", "couch", "settee"),
    "armchair": ("armchair", "easy chair"),
    "lamp": ("lamp", "table lamp", "desk lamp"),
    "mug": ("mug", "cup", "coffee mug"),
    "jug": ("jug", "pitcher"),
    "bottle": ("bottle", "flask"),
    "shelf": ("shelf", "bookcase", "bookshelf"),
    "cabinet": ("cabinet", "cupboard"),
    "chest of drawers": ("chest of drawers", "dresser"),
    "potted plant": ("potted plant", "plant in a pot", "houseplant"),
    "carton": ("carton", "milk carton"),
    "package": ("package", "parcel", "cardboard box"),
    "burger": ("burger", "hamburger"),
    "cake": ("cake", "birthday cake"),
    "ice cream": ("ice cream", "ice cream cone"),
    "screen": ("screen", "monitor"),
    "television": ("television", "tv"),
    "stack of books": ("stack of books", "pile of books"),
    "house": ("house", "home"),
    "hut": ("hut", "cabin"),
    "car": ("car", "automobile"),
    "truck": ("truck", "pickup truck"),
    "aeroplane": ("aeroplane", "plane", "aircraft"),
    "airplane": ("airplane", "plane"),
    "boat": ("boat", "ship"),
    "animal": ("animal", "four-legged animal", "dog"),
    "figure": ("figure", "person", "figurine"),
    "doll": ("doll", "toy figure"),
    "present": ("present", "gift", "gift box"),
    "mushroom": ("mushroom", "toadstool"),
    "rocket": ("rocket", "spaceship"),
    "hammer": ("hammer", "tool"),
    "sword": ("sword", "blade"),
    "dumbbell": ("dumbbell", "weight"),
    "tin": ("tin", "tin can"),
}
LOOK_WORDS = {
    "wooden": ("wooden", "timber", "wood", "oak"),
    "brick": ("brick", "bricked"),
    "marble": ("marble", "veined"),
    "metallic": ("metallic", "metal", "steel", "shiny metal"),
    "glossy": ("glossy", "shiny", "polished"),
    "matte": ("matte", "dull"),
    "striped": ("striped", "stripy"),
}
MADE_OF = {"wooden": ("wood", "timber"), "brick": ("bricks",), "marble": ("marble",), "metallic": ("metal", "steel")}
LEADS = ("a 3d model of ", "a picture of ", "one ", "an object: ")
TALL, FLAT, THIN = 2.2, 0.4, 0.35  # ratios of an object's sides


@dataclass(frozen=True)
class Description:
    """What there is to say of an object.

    title    what the whole is called, "" where it is only the sum of its parts
    groups   bodies that are spoken of together
    remarks  what else there is to say, such as "cut open"
    """

    title: str
    groups: tuple[Group, ...]
    remarks: tuple[str, ...] = ()

    @property
    def largest(self) -> Group:
        return max(self.groups, key=lambda group: group.area)

    @property
    def kind(self) -> str:
        return self.title or self.largest.noun

    @property
    def colour(self) -> str:
        """Of what covers most; "" where that has no one colour."""
        return next(iter(self.largest.paints[0].colours), "")


def prompt(rng: np.random.Generator, described: Description, extent: Sequence[float] = ()) -> str:
    """One way to ask for this object; `extent` [3], its box along x, y and z, may give words for its shape."""
    noun = pick(rng, KIND_WORDS.get(described.kind, ALSO.get(described.kind, (described.kind,))))
    text = _asked(rng, noun, described.largest, _shape(rng, extent))
    parts = [group for group in described.groups if group is not described.largest or not described.title]
    parts = [group for group in parts if group.noun != described.kind and group.paints[0].colours]
    if parts and rng.random() < 0.45:
        named = [parts[number] for number in rng.permutation(len(parts))[: int(rng.integers(1, 3))]]
        text += " with " + " and ".join(_part(rng, group) for group in named)
    if described.remarks and rng.random() < 0.5:
        text += ", " + ", ".join(described.remarks)
    return text


def colour_words(rng: np.random.Generator, name: str) -> str:
    return name if rng.random() < 0.5 else pick(rng, COLOUR_WORDS.get(name, (name,)))


def _asked(rng: np.random.Generator, noun: str, group: Group, shape: str) -> str:
    """The object by its kind, colour and looks; each but the kind may be left out, the colour seldom."""
    colour = " and ".join(colour_words(rng, name) for name in group.paints[0].colours[:2])
    colour = colour if rng.random() < 0.92 else ""
    looks = [word for word in (group.paints[0].finish, group.paints[0].pattern) if word and rng.random() < 0.75]
    style = rng.random()
    if style < 0.08 and looks and looks[-1] in MADE_OF:
        return f"{_with_article(' '.join(filter(None, (shape, colour, noun))))} made of {pick(rng, MADE_OF[looks[-1]])}"
    words = [pick(rng, LOOK_WORDS.get(word, ALSO.get(word, (word,)))) for word in looks]
    if style < 0.2:
        said = [word for word in (shape, colour, *words) if word]
        return ", ".join([noun, *(said[number] for number in rng.permutation(len(said)))])
    if style < 0.3 and colour:
        return f"{_with_article(' '.join(filter(None, (shape, *words, noun))))} in {colour}"
    order = [shape, colour, *words] if rng.random() < 0.7 else [shape, *words, colour]
    phrase = " ".join([*filter(None, order), noun])
    if style < 0.45:
        return phrase
    return (pick(rng, LEADS) if style < 0.52 else "") + _with_article(phrase)


def _part(rng: np.random.Generator, group: Group) -> str:
    words = [colour_words(rng, group.paints[0].colours[0])]
    if group.paints[0].pattern and rng.random() < 0.3:
        words.append(group.paints[0].pattern)
    phrase = " ".join([*words, group.noun])
    return phrase if group.noun.endswith("s") or group.count > 1 else _with_article(phrase)


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[:1] in 'aeiou' else 'a'} {phrase}"


def _shape(rng: np.random.Generator, extent: Sequence[float]) -> str:
    if len(extent) != 3 or rng.random() > 0.2:
        return ""
    wide, deep, high = extent
    if high > TALL * max(wide, deep):
        return pick(rng, ("tall", "high", "slim"))
    if high < FLAT * max(wide, deep):
        return pick(rng, ("low", "flat"))
    if min(wide, deep) < THIN * max(wide, deep):
        return pick(rng, ("long", "narrow"))
    return ""
