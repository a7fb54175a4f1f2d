"""Objects as a whole: bounds, seeds, paint, words."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy.spatial import KDTree
from skimage.color import rgb2lab

from backend.assets import Asset, decode_srgb
from backend.procedural import make_object, patterns
from backend.procedural.captions import ALSO, Group, caption
from backend.procedural.colours import COLOURS, NEUTRAL, colour_name, lab
from backend.procedural.outlines import LETTERS, STROKES
from backend.procedural.paints import Paint, Palette, random_paint, seen_colours
from backend.procedural.primitives import HELD_OUT_KINDS, KINDS

PICTURES = (
    np.full((32, 32, 3), (200, 20, 25), np.uint8),
    np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8),
)
SEEDS = 60


@pytest.fixture(scope="module")
def objects() -> list[Asset]:
    return [make_object(np.random.default_rng(seed), PICTURES) for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def held_out() -> list[Asset]:
    return [make_object(np.random.default_rng(seed), PICTURES, families="held_out") for seed in range(20)]


def doubled_areas(asset: Asset) -> np.ndarray:
    corners = asset.vertices[asset.faces].astype(float)
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)


def test_every_object_is_sound_and_of_one_size(objects, held_out):
    for asset in objects + held_out:
        for array in (asset.vertices, asset.uvs, asset.normals):
            assert np.isfinite(array).all()
        low, high = asset.vertices.min(axis=0), asset.vertices.max(axis=0)
        np.testing.assert_allclose(low, -high, atol=1e-5)
        side, radius = (high - low).max(), np.linalg.norm(asset.vertices, axis=1).max()
        assert side <= 1.8 + 1e-5 and radius <= 1.1 + 1e-5
        assert side == pytest.approx(1.8, abs=1e-4) or radius == pytest.approx(1.1, abs=1e-4)
        assert doubled_areas(asset).min() > 0
        assert asset.faces.min() == 0 and asset.faces.max() == len(asset.vertices) - 1
        assert asset.face_material.min() >= 0 and asset.face_material.max() < len(asset.materials)


def test_shading_normals_are_unit_and_on_the_outside(objects, held_out):
    for asset in objects + held_out:
        np.testing.assert_allclose(np.linalg.norm(asset.normals, axis=-1), 1, atol=1e-5)
        corners = asset.vertices[asset.faces].astype(float)
        own = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        large = np.linalg.norm(own, axis=1) > 1e-7  # single precision bends the direction of smaller ones
        agreement = (asset.normals * (own / np.linalg.norm(own, axis=1, keepdims=True))[:, None]).sum(axis=-1)
        assert agreement[large].min() > 0.1


def test_a_seed_gives_the_same_object_and_another_seed_another_one(objects):
    for seed in (0, 3, 11):
        again = make_object(np.random.default_rng(seed), PICTURES)
        assert again.caption == objects[seed].caption and again.name == objects[seed].name
        for name in ("vertices", "faces", "uvs", "normals", "face_material"):
            np.testing.assert_array_equal(getattr(again, name), getattr(objects[seed], name))
        for a, b in zip(again.materials, objects[seed].materials, strict=True):
            assert a.base_color == b.base_color and a.roughness == b.roughness and a.metallic == b.metallic
            assert (a.texture is None) == (b.texture is None)
            np.testing.assert_array_equal(0 if a.texture is None else a.texture, 0 if b.texture is None else b.texture)
    assert len({asset.vertices.tobytes() for asset in objects}) == SEEDS


def test_objects_are_light_and_varied(objects):
    counts = np.array([len(asset.faces) for asset in objects])
    assert counts.mean() < 4000 and counts.max() < 20_000 and counts.std() > 500
    assert len({asset.name for asset in objects}) > SEEDS // 3


def test_materials_are_of_every_sort(objects):
    materials = [material for asset in objects for material in asset.materials]
    flat = [material for material in materials if material.texture is None]
    given = [material for material in materials if any(material.texture is picture for picture in PICTURES)]
    assert min(len(flat), len(given), len(materials) - len(flat) - len(given)) > 0.1 * len(materials)
    assert {material.metallic for material in materials} == {0.0, 1.0}
    roughness = np.array([material.roughness for material in materials])
    assert 0.1 <= roughness.min() < 0.3 and 0.9 < roughness.max() <= 1
    brightness = np.array([np.mean(material.base_color[:3]) for material in flat])
    assert brightness.min() < 0.05 and brightness.max() > 0.8


def test_without_pictures_there_are_none():
    for seed in range(10):
        for material in make_object(np.random.default_rng(seed), ()).materials:
            assert material.texture is None or material.texture.shape[0] in patterns.SIDES


def test_what_is_called_symmetric_is(objects):
    found = [asset for asset in objects if asset.caption.endswith("symmetric")]
    assert found
    for asset in found:
        distance, _ = KDTree(asset.vertices).query(asset.vertices * np.array([-1, 1, 1], np.float32))
        assert distance.max() < 1e-4


# ---- paint


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_patterns_show_both_colours_and_fit_together(name):
    draw = patterns.PATTERNS[name][0]
    rng = np.random.default_rng(5)
    first, second = np.zeros(3), np.ones(3)
    for size in patterns.SIDES:
        share = draw(rng, size)
        picture = patterns.drawn(share, first, second)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        assert picture.min() < 110 and picture.max() > 145
    if name in ("mottled", "wooden", "marble"):  # a seam would be a jump
        steps = np.abs(np.diff(share, axis=0)).max()
        assert np.abs(share[0] - share[-1]).max() <= 1.5 * steps


def test_drawn_mixes_two_colours():
    share = np.array([[0.0, 0.5, 1.0]])
    got = patterns.drawn(share, np.array([1.0, 0, 0]), np.array([0, 0, 1.0]))
    np.testing.assert_allclose(got[0].astype(int), [[255, 0, 0], [127, 0, 128], [0, 0, 255]], atol=1)


def test_a_palette_keeps_its_number_of_paints():
    palette = Palette(np.random.default_rng(0), PICTURES)
    numbers = [palette.draw() for _ in range(200)]
    assert len(palette.paints) == 8 and set(numbers) == set(range(8))


# ---- words


def named_by_skimage(srgb: np.ndarray) -> str:
    """Nearest in lightness, hue and half of the chroma of CIELAB; only what is nearly grey, or black, is called so."""
    colour, table = rgb2lab(srgb), rgb2lab(np.array(list(COLOURS.values())))
    best, least = "", math.inf
    for name, (lightness, a, b) in zip(COLOURS, table, strict=True):
        chroma, named = math.hypot(*colour[1:]), math.hypot(a, b)
        if name in NEUTRAL and chroma > 12 and colour[0] > 12:
            continue
        hue = 2 * (chroma * named - colour[1] * a - colour[2] * b)  # squared: the cosine law less the chromas' part
        apart = (lightness - colour[0]) ** 2 + (chroma - named) ** 2 / 4 + hue
        best, least = (name, apart) if apart < least else (best, least)
    return best


def test_lab_is_that_of_skimage_in_the_dark_too():
    srgb = np.random.default_rng(1).random((200, 3)) * np.linspace(0.02, 1, 200)[:, None]
    np.testing.assert_allclose(lab(decode_srgb(srgb)), rgb2lab(srgb), atol=0.05)


def test_colours_are_named_as_their_neighbours():
    for srgb in np.random.default_rng(0).random((300, 3)):
        assert colour_name(decode_srgb(srgb)) == named_by_skimage(srgb)
    assert [colour_name(decode_srgb(np.array(srgb))) for srgb in COLOURS.values()] == list(COLOURS)


def test_a_dull_colour_is_not_called_grey():
    names = {(0.49, 0.26, 0.33): "dark red", (0.3, 0.4, 0.3): "dark green", (0.45, 0.4, 0.42): "grey"}
    assert {srgb: colour_name(decode_srgb(np.array(srgb))) for srgb in names} == names


def test_a_picture_has_one_colour_or_the_two_that_share_it():
    red, white, blue = (decode_srgb(np.array(COLOURS[name])) for name in ("red", "white", "blue"))
    assert seen_colours(np.array([red] * 7 + [white] * 3)) == ("red",)
    assert seen_colours(np.array([red] * 5 + [white] * 4 + [blue])) == ("red", "white")
    assert seen_colours(np.array([0.5 * red] * 4 + [red] * 4 + [white, blue])) == ("red", "dark red")
    mixed = np.array([red, white, blue] * 3)
    assert seen_colours(mixed) == (colour_name(mixed.mean(axis=0)),)


def encoded(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_captions_name_the_colour_that_covers_most():
    checked = 0
    for seed in range(150):
        asset = make_object(np.random.default_rng(seed), PICTURES[:1])
        covered = np.bincount(asset.face_material, doubled_areas(asset))
        most = asset.materials[int(covered.argmax())]
        if covered.max() < 0.6 * covered.sum() or not (most.texture is None or most.texture is PICTURES[0]):
            continue
        linear = np.array(most.base_color[:3])
        if most.texture is not None:
            linear = linear * decode_srgb(PICTURES[0][0, 0] / 255)
        assert named_by_skimage(encoded(linear)) in asset.caption, asset.caption
        checked += 1
    assert checked > 20


def mentions(text: str, word: str) -> bool:
    return re.search(rf"\b{word}(e?s)?\b", text) is not None


def test_captions_name_kinds_of_their_family_alone(objects, held_out):
    kinds = set(KINDS) - {"letter"}
    ours = {noun for kind in kinds for noun in ALSO.get(kind, (kind,))} | {f"letter {name}" for name in LETTERS}
    theirs = (set(HELD_OUT_KINDS) | set(STROKES)) - {"bent letter"}
    for asset in held_out:
        assert any(mentions(asset.caption, noun) for noun in theirs), asset.caption
        assert not any(mentions(asset.caption, noun) for noun in ours), asset.caption
    for asset in objects:
        assert asset.caption and not any(mentions(asset.caption, noun) for noun in theirs), asset.caption


def flat(colour: str, finish: str = "", pattern: str = "") -> Paint:
    paint = random_paint(np.random.default_rng(0), ())
    return Paint(paint.material, (colour,), pattern, finish, None)


def test_a_caption_by_hand():
    rng = np.random.default_rng(0)
    groups = [
        Group("cone", 1, 1.0, (flat("orange"),), False),
        Group("gear", 2, 3.0, (flat("red", pattern="mottled"),), False),
        Group("star", 1, 0.01, (flat("blue"),), False),
    ]
    texts = {caption(rng, "", groups, ["cut open"]) for _ in range(20)}
    assert texts == {
        "two red mottled gears with an orange cone, cut open",
        "two red mottled gears and an orange cone, cut open",
    }
    legs = [Group("top", 1, 3.0, (flat("white"),), False), Group("legs", 4, 1.0, (flat("black"),), False)]
    assert caption(rng, "table", legs, []) == "a white table with black legs"
