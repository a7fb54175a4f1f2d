"""What judges the starter's generator: right where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.cameras import Views, rig_cameras
from backend.captioned import RIG, is_held_out
from backend.evaluate import Entry, Guess
from backend.gaussians import Gaussians, transform
from backend.metrics import object_box
from backend.monitor import Monitor, Silent
from backend.multiview import Wish
from backend.procedural.colours import COLOURS
from backend.procedural.primitives import KINDS
from backend.rendering import render
from backend.views_evaluation import (
    BASIC_COLOUR,
    LEVELS,
    SAME_KIND,
    agreement,
    as_in,
    asked,
    colour_of,
    consistency,
    from_one_picture,
    histogram,
    mean_object,
    trained_judge,
)
from backend.views_evaluation_command import OTHERS, PARAPHRASES, UNSEEN, sheet, side_by_side
from backend.views_objects import Objects
from backend.wording import KIND_WORDS

SIDE = RIG.side
PAINTS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def objects(count: int, seed: int = 0) -> Objects:
    """Wide and high boxes, red and blue, of random sizes."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 6, SIDE, SIDE, 4), np.uint8)
    kinds, colours = [], []
    for number in range(count):
        kinds.append(("table", "tower")[number % 2])
        colours.append(("red", "blue")[number // 2 % 2])
        long, short = int(rng.integers(60, 80)), int(rng.integers(20, 40))
        high, wide = (short, long) if kinds[-1] == "table" else (long, short)
        y, x = (SIDE - high) // 2, (SIDE - wide) // 2
        images[number, :, y : y + high, x : x + wide] = (*PAINTS[colours[-1]], 255)
    prompts = [[f"a {colour} {kind}"] for kind, colour in zip(kinds, colours, strict=True)]
    return Objects(images, prompts, kinds, colours)


class Truth:
    """A sampler that shows the objects as they are, in their order; or with each one's colour turned."""

    def __init__(self, shown: Objects, *, swapped: bool = False) -> None:
        self.images = torch.from_numpy(shown.images[:, :4]).float() / 255
        if swapped:
            self.images = self.images[..., [2, 1, 0, 3]]

    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        del monitor
        return self.images[wish.seed % len(self.images)]


@pytest.fixture(scope="module")
def judge():
    return trained_judge(objects(48), steps=40, batch=16)


def test_the_classifier_knows_what_it_learned(judge):
    assert judge.kinds == ("table", "tower") and judge.colours == ("blue", "red")
    unseen = objects(24, seed=1)
    found, views = agreement(judge, Truth(unseen), unseen, 20, Silent())
    assert found.prompts == 20 and views.shape == (20, 4, 4, SIDE, SIDE)
    assert (found.colour, found.kind) == (found.true_colour, found.true_kind)
    assert found.true_colour == found.true_kind == 1.0


def test_wrong_colours_are_found_out(judge):
    unseen = objects(24, seed=2)
    found, _ = agreement(judge, Truth(unseen, swapped=True), unseen, 20, Silent())
    assert found.colour < 0.2 and found.kind > 0.9 and found.true_colour == 1.0


def test_a_histogram_by_hand():
    """Half of what is to be seen is pure red, half of it, faintly, a middle grey."""
    views = torch.zeros(1, 4, 4, 8, 8)
    views[0, 0, :, 0, :4] = torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None]
    views[0, 3, :, 5] = torch.tensor([0.25, 0.25, 0.25, 0.5])[:, None]
    shares = histogram(views)[0]
    assert shares.nonzero()[:, 0].tolist() == [(3 * LEVELS + 3) * LEVELS + 3, 5 * LEVELS**2]
    assert shares[shares > 0].tolist() == pytest.approx([0.5, 0.5])


def test_a_prompt_that_names_the_colour_is_asked():
    prompts = ["a chair", "chair, scarlet, timber", "a red chair"]
    assert asked("chair", "red", prompts) == "chair, scarlet, timber"
    assert asked("chair", "red", ["a chair"]) == asked("chair", "red", ()) == "a red chair"


def test_tables_name_what_there_is():
    basic = {"black", "white", "grey", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink"}
    assert {colour_of(name) for name in COLOURS} == basic
    assert set(BASIC_COLOUR) <= set(COLOURS)
    titles = set(KIND_WORDS) | set(KINDS) | {"robot", "jar", "can", "drum", "lorry", "toy car", "toy animal", "knife"}
    assert set(SAME_KIND) <= titles | {"mallet", "sandwich"}
    assert not set(SAME_KIND) & set(SAME_KIND.values()), "one name in two steps"


def test_the_sheet_shows_what_it_says():
    assert len(UNSEEN) == len(PARAPHRASES) == 8 and len(OTHERS) == 16
    for prompt in UNSEEN:
        words = prompt.split()[1:]
        assert is_held_out(words[-1], " ".join(words[:-1])), prompt
    picture = sheet(Truth(objects(4)), ("one", "two", "three"))
    pixels = np.asarray(picture)
    assert pixels.shape == (2 * 112, 800, 3)
    assert (pixels[48, 48] == PAINTS["red"]).all() and (pixels[112 + 96 // 2, 48] == PAINTS["blue"]).all()


def test_pictures_side_by_side():
    """The picture, then three views as they are, blue, and as they were made, half of red."""
    views = Views(torch.zeros(8, 32, 32, 4), rig_cameras(RIG, 32)[[0] * 8])
    views.images[:, 8:24, 8:24] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    made = np.zeros((8, 32, 32, 4), np.uint8)
    made[:, 8:24, 8:24] = (255, 0, 0, 128)
    pairs = [(Entry(name, views, views), Guess(made, 0.0)) for name in ("one", "two")]
    pixels = np.asarray(side_by_side(pairs))
    assert pixels.shape == (2 * 96, 7 * 96, 3)
    middles = pixels[48 + 96, 48::96].tolist()
    assert middles == [[0, 0, 255]] + [[0, 0, 255], [255, 127, 127]] * 3
    assert (pixels[2, 2] == 255).all()


def test_views_of_one_thing_are_consistent_and_of_four_are_less():
    cameras = rig_cameras(RIG)
    ball = torch.zeros(4, SIDE, SIDE, 4)
    y, x = torch.meshgrid(torch.arange(SIDE) - 63.5, torch.arange(SIDE) - 63.5, indexing="ij")
    ball[(x.square() + y.square() < 40**2).expand(4, -1, -1)] = torch.tensor([0.8, 0.3, 0.2, 1.0])
    assert len(cameras) == 4
    good = consistency(ball)
    noise = ball.clone()
    noise[..., :3] = torch.rand(noise[..., :3].shape, generator=torch.Generator().manual_seed(0))
    assert good > 24 and good > consistency(noise) + 5


def test_the_mean_object_is_that_of_the_nearest_view():
    learned = objects(4)
    learned.images[:, 1, :, :, :3] //= 2
    nearly = torch.tensor([[0, -2.5, 0.9], [2.5, 0.3, 1.0]])
    cameras = rig_cameras(RIG, 64)[[0, 1]]
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] = nearly
    guess = mean_object(learned)(Views(torch.zeros(2, 64, 64, 4), cameras), replace(cameras, c2w=c2w))
    assert guess.images.shape == (2, 64, 64, 4)
    middle = guess.images[:, 32, 32]
    assert middle[0, 3] == 255 and np.allclose(middle[0, :3], (125, 30, 125), atol=2)
    assert np.allclose(middle[1, :3], (62, 15, 62), atol=2)


def test_a_picture_goes_to_the_sampler_in_the_middle():
    seen: list[Wish] = []
    truth = Truth(objects(4))

    class Watching:
        def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
            seen.append(wish)
            return truth.sample(wish, monitor)

    corner = torch.zeros(1, 64, 64, 4)
    corner[0, 2:22, 12:22] = torch.tensor([0.1, 0.8, 0.1, 1.0])
    cameras = rig_cameras(RIG, 64)[[0]]
    guess = from_one_picture(Watching())(Views(corner, cameras), cameras)
    solid = seen[0].picture[..., 3] > 0.5  # type: ignore[index]
    assert solid.any(1).sum() == pytest.approx(0.7 * SIDE, abs=2) and not seen[0].prompt
    assert guess.images.shape == (1, 64, 64, 4)
    ends = [(side.start, side.stop) for side in object_box(torch.from_numpy(guess.images[0, ..., 3]) / 255)]
    assert [sum(two) / 2 for two in ends] == pytest.approx([12, 17], abs=1.5), "where the picture has it"
    assert max(stop - start for start, stop in ends) == pytest.approx(20, abs=2), "and as large"


def test_what_is_made_is_brought_to_where_the_picture_has_it():
    camera = rig_cameras(RIG)[[0]]
    places = torch.cartesian_prod(*[torch.linspace(-0.4, 0.4, 17)] * 3)
    means = places[places.norm(dim=1) < 0.4] + torch.tensor([0.1, 0.0, 0.05])
    ball = Gaussians(
        means=means,
        scales=torch.full(means.shape, 0.03),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means), 1),
        opacities=torch.full((len(means),), 0.95),
        sh=torch.zeros(len(means), 1, 3),
    )
    matrix = torch.eye(4)
    matrix[:3, :3] *= 1.4
    matrix[:3, 3] = camera.c2w[0, :3, :2] @ torch.tensor([0.1, -0.15])  # farther or nearer no picture tells
    picture = render(transform(ball, matrix), camera)
    got = as_in(torch.cat([picture.rgb, picture.alpha[..., None]], -1)[0], camera, ball)
    torch.testing.assert_close(got.means.mean(0), transform(ball, matrix).means.mean(0), atol=0.05, rtol=0)
    spread, before = got.means.std(0), ball.means.std(0)
    torch.testing.assert_close(spread, 1.4 * before, atol=0, rtol=0.03)
