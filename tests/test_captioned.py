"""Objects with words: the rig's cameras, pictures in the middle, pairs kept apart, the same number the same sample."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend import captioned as module
from backend.assets import Asset, Material
from backend.cameras import rig_cameras
from backend.captioned import FILL, RIG, captioned, described_model, is_held_out, plain_colour
from backend.procedural.captions import Group
from backend.procedural.paints import Paint
from backend.sample import BOX
from backend.wording import Description


@pytest.fixture(scope="module")
def samples() -> list[module.Captioned]:
    return [captioned(3, index, None) for index in range(4)]


def test_the_same_number_is_the_same_sample(samples: list[module.Captioned]):
    again = captioned(3, 2, None)
    assert again.prompts == samples[2].prompts
    assert torch.equal(again.views, samples[2].views) and torch.equal(again.pictures, samples[2].pictures)
    assert not torch.equal(samples[1].views, samples[2].views)


def test_shapes_and_ranges(samples: list[module.Captioned]):
    for sample in samples:
        assert sample.views.shape == (4, RIG.side, RIG.side, 4)
        assert sample.pictures.shape == (module.PICTURES, RIG.side, RIG.side, 4)
        assert len(sample.prompts) == module.PROMPTS and sample.kind
        for images in (sample.views, sample.pictures):
            assert images.min() >= 0 and images.max() <= 1 and images[..., 3].max() > 0.9


def test_cameras_by_hand():
    cameras = rig_cameras(RIG)
    level, height = 2.7 * math.cos(math.radians(20)), 2.7 * math.sin(math.radians(20))
    expected = torch.tensor([[0, -level, height], [level, 0, height], [0, level, height], [-level, 0, height]])
    torch.testing.assert_close(cameras.centres, expected, atol=1e-5, rtol=0)
    ahead = -cameras.centres / cameras.centres.norm(dim=1, keepdim=True)
    torch.testing.assert_close(cameras.c2w[:, :3, 2], ahead)
    assert cameras.Ks[0, 0, 0] == pytest.approx(64 / math.tan(math.radians(25)))
    assert BOX / 2 * math.sqrt(3) > 1.1  # an object is kept in a sphere that these cameras see whole
    assert 2.7 * math.sin(math.radians(25)) > 1.1


def test_pictures_are_in_the_middle_and_as_large_as_stated(samples: list[module.Captioned]):
    for picture in torch.cat([sample.pictures for sample in samples]):
        solid = picture[..., 3] > 0.5
        rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
        size = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
        assert size == pytest.approx(FILL * RIG.side, abs=3)
        for side in (rows, columns):
            assert float(side[0] + side[-1] + 1) / 2 == pytest.approx(RIG.side / 2, abs=1.5)


def test_pairs_are_kept_apart():
    for index in range(6):
        sample, apart = captioned(5, index, None), captioned(5, index, None, held_out=True)
        assert not is_held_out(sample.kind, sample.colour)
        assert apart.colour and is_held_out(apart.kind, apart.colour), "they are plain, so that they can be judged"
    pairs = [
        (kind, colour) for kind in ("chair", "table", "car", "fish") for colour in ("red", "blue", "green", "white")
    ]
    kept = np.mean([is_held_out(kind, colour) for kind, colour in pairs * 1])
    assert 0 <= kept < 0.5 and not is_held_out("chair", "")


def test_an_object_has_a_colour_where_one_paint_of_one_colour_covers_most():
    def group(area: float, *colours: str) -> Group:
        return Group("part", 1, area, (Paint(Material((1.0, 1.0, 1.0, 1.0)), colours, "", "", None),), bumpy=False)

    assert plain_colour(Description("chair", (group(2.0, "red"), group(1.0, "blue")))) == "red"
    assert plain_colour(Description("chair", (group(1.0, "red"), group(1.0, "blue"), group(1.0, "red")))) == "red"
    assert plain_colour(Description("chair", (group(1.1, "red"), group(1.0, "blue")))) == ""
    assert plain_colour(Description("chair", (group(2.0, "red", "white"), group(1.0, "blue")))) == ""


def model(caption: str, colours: list[tuple[float, float, float]], areas: list[float]) -> Asset:
    """Squares of these linear colours and areas."""
    vertices, faces, numbers = [], [], []
    for number, area in enumerate(areas):
        side, first = math.sqrt(area), len(vertices)
        vertices += [(0, 0, number), (side, 0, number), (side, side, number), (0, side, number)]
        faces += [(first, first + 1, first + 2), (first, first + 2, first + 3)]
        numbers += [number, number]
    count = len(faces)
    return Asset(
        name="model",
        caption=caption,
        vertices=np.array(vertices, np.float32) / 10,
        faces=np.array(faces, np.int32),
        uvs=np.zeros((count, 3, 2), np.float32),
        normals=np.tile(np.array([0, 0, 1], np.float32), (count, 3, 1)),
        face_material=np.array(numbers, np.int32),
        materials=tuple(Material((*colour, 1.0)) for colour in colours),
    )


def test_a_model_is_described_by_its_title_and_its_main_colour():
    red, blue = (0.7, 0.01, 0.01), (0.02, 0.1, 0.6)
    assert described_model(model("fire engine b, vehicle", [red, blue], [3, 1])).kind == "fire engine"
    assert described_model(model("fire engine 2, vehicle", [red, blue], [3, 1])).colour == "red"
    thirds = described_model(model("flag, toy", [red, blue, (0.9, 0.9, 0.9)], [1, 1, 1]))
    assert (thirds.kind, thirds.colour) == ("flag", "")


def test_a_models_colour_is_what_its_triangles_show_of_their_texture():
    """Of a picture that is red above and blue below, they show the blue."""
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4], texture[4:] = (200, 20, 20), (20, 40, 220)
    made = model("box", [(1.0, 1.0, 1.0)], [1])
    low = replace(made.materials[0], texture=texture)
    uvs = np.tile(np.array([[0.1, 0.1], [0.9, 1.2], [1.5, 0.4]], np.float32), (2, 1, 1))  # v up, and it repeats
    shown = replace(made, materials=(low,), uvs=np.where(uvs > 1, uvs - 1, uvs) * np.array([1, 0.9], np.float32))
    assert described_model(shown).colour == "blue"
    assert described_model(replace(shown, uvs=shown.uvs + np.array([3, 0.5], np.float32))).colour == "red"
