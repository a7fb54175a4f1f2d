"""What a prompt or pictures ask for: the message for the backend, what is refused, and what a result remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blender_addon import imagining, protocol
from blender_addon.families import METHODS
from blender_addon.front_ends import FRONT_ENDS
from blender_addon.imagining import Again, Imagining, Picture, Placing
from blender_addon.order import Order
from blender_addon.views import CaptureError

FRONT, RIGHT = Picture(Path("a/chair.png")), Picture(Path("b/side.jpg"), "right")


def sent(wanted: Imagining, files: list[bytes], **words: Any) -> protocol.Imagine:
    """The message after a trip over the wire."""
    asked = imagining.request(wanted, files, device="cpu", seed=3, **words)
    found = protocol.decode([bytes(frame) for frame in protocol.encode(asked)])
    assert isinstance(found, protocol.Imagine)
    return found


def test_a_prompt_as_the_backend_gets_it() -> None:
    wanted = Imagining(
        prompt=" a red wooden chair ",
        negative_prompt="legs",
        front_end="mvdream",
        candidates=2,
        sampling_steps=7,
        guidance=4,
    )
    message = sent(wanted, [])
    assert (message.prompt, message.negative_prompt, message.front_end) == ("a red wooden chair", "legs", "mvdream")
    assert (message.candidates, message.steps, message.guidance, message.seed) == (2, 7, 4.0, 3)
    assert (len(message.pictures), len(message.picture_bytes), message.views, message.redo) == (0, 0, None, -1)
    assert message.device == "cpu" and message.sides == () and message.cut == "auto"


def test_pictures_as_the_backend_gets_them() -> None:
    message = sent(Imagining(pictures=(FRONT, RIGHT), front_end="imagedream", cut="alpha"), [b"one", b"three"])
    assert message.pictures.tobytes() == b"onethree" and message.picture_bytes.tolist() == [3, 5]
    assert message.picture_names == ("chair.png", "side.jpg") and message.sides == ("front", "right")
    assert message.cut == "alpha"
    assert message.front_end == "starter", "pictures of sides are the views: no front end makes any"


def test_one_view_anew() -> None:
    images = np.arange(4 * 2 * 2 * 4, dtype=np.uint8).reshape(4, 2, 2, 4)
    message = sent(Imagining(prompt="a chair"), [], again=Again(1, images, 2))
    assert message.redo == 2 and message.views is not None
    np.testing.assert_array_equal(message.views, images)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "Type a prompt or choose a picture"),
        ({"prompt": "  \n"}, "Type a prompt or choose a picture"),
        ({"prompt": "a", "front_end": "imagedream"}, "ImageDream needs a picture"),
        ({"pictures": (FRONT,), "front_end": "mvdream"}, "MVDream makes views of a prompt alone"),
        ({"prompt": "a", "front_end": "dall-e"}, "found 'dall-e'"),
        ({"prompt": "a", "candidates": 9}, "between 1 and 8, found 9"),
        ({"prompt": "a", "candidates": 0}, "between 1 and 8, found 0"),
        ({"prompt": "a", "guidance": -1}, "guidance must lie between 0 and 100"),
        ({"prompt": "a", "sampling_steps": 5000}, "found 5000"),
        ({"prompt": "a", "cut": "scissors"}, "found 'scissors'"),
        ({"pictures": (FRONT, FRONT)}, "found two of the front"),
        ({"pictures": (Picture(Path("a"), "top"),)}, "found 'top'"),  # type: ignore[arg-type]
        ({"pictures": (FRONT, RIGHT), "candidates": 2}, "one candidate, found 2"),
    ],
)
def test_what_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(CaptureError, match=said) as refused:
        Imagining(**words)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("words", "said"),
    [({"size": 0}, "found 0"), ({"facing": 1e9}, "found 1e"), ({"place": "moon"}, "found 'moon'")],
)
def test_places_that_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        Placing(**words)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_every_method_suits_every_front_end(name: str) -> None:
    front_end = FRONT_ENDS[name]
    words = {"prompt": "a"} if "prompt" in front_end.takes else {"pictures": (FRONT,)}
    for method in METHODS.values():
        Order(imagining=Imagining(front_end=name, **words), method=method.name, **method.settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("front_end", "model", "words"),
    [
        ("starter", "lgm", "LGM does not suit the views of Starter: choose GRM or Fit"),
        ("mvadapter-sdxl", "long_lrm", "Long-LRM does not suit the views of MV-Adapter"),
    ],
)
def test_a_pair_that_does_not_fit(front_end: str, model: str, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        Order(imagining=Imagining(prompt="a", front_end=front_end), model=model)
    Order(model=model)


def test_what_the_result_says_and_remembers() -> None:
    wanted = Imagining(prompt="a red wooden chair", guidance=2.5)
    order = Order(imagining=wanted, placing=Placing(0.9, 90, "origin"), seed=3, model="fit")
    recipe = json.loads(json.dumps(order.recipe({"names": ["v"] * 4}, {"steps": 5}, {})))
    assert recipe["imagined_by"] == "Starter: a red wooden chair (seed 3)"
    assert (recipe["source"], recipe["made_by"]) == ("prompt", "Fit (per scene): 5 steps of fit, 4 views")
    assert imagining.of_recipe(recipe["imagining"]) == wanted and Placing(**recipe["placing"]) == order.placing
    assert "imagining" not in Order().recipe({"names": []}, {}, {})


def test_what_a_result_of_pictures_says() -> None:
    one = Imagining(pictures=(FRONT,), changed=(1, 2))
    assert one.made_by(0) == "Starter: chair.png (seed 0, 2 changed)" and one.title == "chair"
    two = Imagining(pictures=(FRONT, RIGHT))
    assert two.made_by(0) == "chair.png, side.jpg"
    assert imagining.of_recipe(json.loads(json.dumps(two.recipe()))) == two
    for stored in ({}, {"pictures": [{"side": "front"}]}, {"prompt": 3, "pictures": 3}):
        with pytest.raises(CaptureError):
            imagining.of_recipe(stored)


def test_the_size_is_the_request_s() -> None:
    made = protocol.Imagined(
        "job",
        np.zeros((2, 3, 3, 4), np.uint8),
        np.tile(np.eye(4, dtype=np.float32), (2, 1, 1)),
        np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)),
        np.array([True, True]),
    )
    views = imagining.views_of(made)
    request = Order(imagining=Imagining(prompt="a")).request(views, size=0.5)
    assert request.size == 0.5 and request.orthographic.all() and len(views.names) == 2
    assert Order().request(views).size == 0
    white = np.full((3, 3, 4), 255, np.uint8)
    changed = imagining.with_view(made, 1, white)
    assert not changed.images[0].any() and changed.images[1].all() and not made.images.any()
