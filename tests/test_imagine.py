"""From a prompt or pictures to views, and on to an object that is the right one in the right pose."""

from __future__ import annotations

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend import worker
from backend.bad_input import BadInput
from backend.budgets import GIB, choose_budget
from backend.cameras import rig_cameras
from backend.imagine import (
    Candidate,
    Given,
    ImagineOptions,
    cut_preview,
    imagine,
    read_request,
    summary,
)
from backend.monitor import JobCancelled, Silent
from backend.multiview import Held
from backend.pipelines import ReconstructOptions, reconstruct
from backend.samplers import Samplers
from backend.weights import WeightsMissing
from blender_addon import protocol
from blender_addon.front_ends import FRONT_ENDS, Rig
from tests.fake_samplers import FakeModels, jack, jack_scale, nearest, photographs, png, small_rigs
from tests.jack import REACH

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    small_rigs(monkeypatch)


def options(folder: Path, front_end: str = "starter", **fields: Any) -> ImagineOptions:
    """What a front end can be given, its weights being in a folder."""
    takes = FRONT_ENDS[front_end].takes
    given = {"prompt": "a jack"} if "prompt" in takes else {"pictures": (Given(png(), "disc.png"),)}
    return ImagineOptions(**{"front_end": front_end, "weights": str(folder), "device": "cpu", **given, **fields})


def candidates(folder: Path, models: FakeModels | None = None, **fields: Any) -> list[Candidate]:
    return list(imagine(options(folder, **fields), Silent(), (models or FakeModels()).samplers()))


# ---- the right object in the right pose


MADE: dict[Rig, Any] = {}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_right_object_in_the_right_pose(tmp_path, name):
    """Upright, its front towards -Y, un-mirrored and of the stated size: every arm of the jack is where it should be,
    in its own colour. At size 2, the jack's longest side, the result is the jack itself, standing on the floor.
    """
    (candidate,) = candidates(tmp_path, front_end=name)
    rig = FRONT_ENDS[name].rig
    assert candidate.views.images.shape == (len(rig.angles), rig.side, rig.side, 4)
    if rig not in MADE:  # front ends with equal cameras and backgrounds have equal views
        chosen = ReconstructOptions(steps=60, max_splats=1500, size=2.0, device="cpu")
        MADE[rig] = reconstruct(candidate.views, chosen, Silent())
    result = MADE[rig]
    floor = torch.tensor([0.0, 0.0, REACH[2]])
    solid = result.gaussians[result.gaussians.opacities > 0.5]
    surface = torch.from_numpy(jack(1.0).vertices[jack(1.0).faces]).mean(1) + floor  # the middles of its faces
    assert result.report["psnr"] > 20
    assert float(nearest(solid.means, _points() + floor).quantile(0.9)) < 0.25
    assert float(nearest(surface, solid.means).quantile(0.9)) < 0.35
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        bright = (solid.colours[:, axis] > 0.5) & (solid.colours[:, others] < 0.35).all(1)
        assert int(bright.sum()) > 20
        expected = floor.clone()
        expected[axis] += (0.25 + REACH[axis]) / 2
        assert solid.means[bright].mean(0) == pytest.approx(expected, abs=0.2), f"the arm towards +{'XYZ'[axis]}"
    assert result.report["placed"]["scale"] == pytest.approx(1 / jack_scale(rig), rel=0.12)


@cache
def _points() -> torch.Tensor:
    """[N,3] all over the jack's surface."""
    corners = torch.from_numpy(jack(1.0).vertices[jack(1.0).faces])  # [F,3,3]
    weights = torch.distributions.Dirichlet(torch.ones(3)).sample((40,))  # [40,3]
    return torch.einsum("sk,fkd->sfd", weights, corners).reshape(-1, 3)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_first_camera_sees_what_its_azimuth_says(name):
    """By hand: a camera at azimuth a looks from (sin a, -cos a), and what is above is above in its picture."""
    rig = FRONT_ENDS[name].rig
    cameras = rig_cameras(rig)
    for view, (elevation, azimuth) in enumerate(rig.angles):
        e, a = math.radians(elevation), math.radians(azimuth)
        towards = torch.tensor([math.sin(a) * math.cos(e), -math.cos(a) * math.cos(e), math.sin(e)])
        assert cameras.centres[view] == pytest.approx(rig.radius * towards, abs=1e-5)
        assert cameras.c2w[view, :3, 2] == pytest.approx(-towards, abs=1e-5)
        assert float(cameras.c2w[view, 2, 1]) == pytest.approx(-math.cos(e), abs=1e-5), "down in the picture is down"
    assert bool(cameras.orthographic.all()) == (rig.fov == 0)
    half = rig.side / 2 / float(cameras.Ks[0, 0, 0])
    assert half == pytest.approx(rig.width / 2 if rig.fov == 0 else math.tan(math.radians(rig.fov / 2)))
    smaller = rig_cameras(rig, 16)
    assert smaller.width == 16 and smaller.Ks[0, 0, 0] == pytest.approx(float(cameras.Ks[0, 0, 0]) * 16 / rig.side)


# ---- candidates


def test_each_candidate_has_its_seed(tmp_path):
    models = FakeModels()
    made = candidates(tmp_path, models, candidates=3, seed=7, prompt="a chair", negative_prompt="legs")
    assert [(one.number, one.seed) for one in made] == [(0, 7), (1, 8), (2, 9)]
    (sampler,) = models.loaded
    assert [wish.seed for wish in sampler.wishes] == [7, 8, 9]
    front_end = FRONT_ENDS["starter"]
    assert {(wish.steps, wish.guidance) for wish in sampler.wishes} == {(front_end.steps, front_end.guidance)}
    assert {(wish.prompt, wish.negative_prompt, wish.picture) for wish in sampler.wishes} == {("a chair", "legs", None)}
    report = json.loads(json.dumps(summary([one.report for one in made]), allow_nan=False))
    assert report["seeds"] == [7, 8, 9] and report["prompt"] == "a chair" and report["front_end"] == "starter"
    assert report["seconds"] == pytest.approx(sum(one.report["seconds"] for one in made), abs=0.01)
    assert report["device"] == "cpu" and report["precision"] == "float32" and report["steps"] == 24
    last = candidates(tmp_path, candidates=2, seed=2**63 - 1)
    assert [one.seed for one in last] == [2**63 - 1, 0]


def test_steps_and_guidance_that_are_named(tmp_path):
    models = FakeModels()
    candidates(tmp_path, models, steps=3, guidance=1.5)
    assert (models.loaded[0].wishes[0].steps, models.loaded[0].wishes[0].guidance) == (3, 1.5)


def test_a_picture_comes_as_the_front_end_wants_it(tmp_path):
    models = FakeModels()
    candidates(tmp_path, models, front_end="zero123plus-1.2")
    picture = models.loaded[0].wishes[0].picture
    front_end = FRONT_ENDS["zero123plus-1.2"]
    assert picture is not None and picture.shape == (front_end.rig.side, front_end.rig.side, 4)
    rows = (picture[..., 3] > 0.5).any(1).nonzero()[:, 0]
    assert (int(rows.max() - rows.min()) + 1) / front_end.rig.side == pytest.approx(front_end.fill, abs=0.05)


def test_one_view_anew(tmp_path):
    """The others stay as they were, to the last bit."""
    rig = FRONT_ENDS["starter"].rig
    kept = torch.rand(len(rig.angles), rig.side, rig.side, 4)
    (made,) = candidates(tmp_path, held=Held(kept, 2))
    assert torch.equal(made.views.images[[0, 1, 3]], kept[[0, 1, 3]])
    assert torch.equal(made.views.images[2], photographs(rig)[2])


def test_progress_of_several_candidates_is_one_stage(tmp_path):
    told = []

    class Watch(Silent):
        def progress(self, stage: str, step: int, total: int) -> None:
            told.append((stage, step / total))

    list(imagine(options(tmp_path, candidates=2, steps=4), Watch(), FakeModels().samplers()))
    views = [share for stage, share in told if stage == "views"]
    assert views == sorted(views) and views[-1] == 1.0 and 0.5 in views
    assert {stage for stage, _ in told} <= set(worker.IMAGINE_SHARES)


def test_cancelling_between_steps(tmp_path):
    class Cancelled(Silent):
        def progress(self, stage: str, step: int, total: int) -> None:
            if stage == "views" and step == 2:
                raise JobCancelled

    with pytest.raises(JobCancelled):
        list(imagine(options(tmp_path), Cancelled(), FakeModels().samplers()))


# ---- pictures that are views


def test_pictures_of_sides_are_views(tmp_path):
    """No model is loaded, and the cameras look from where the sides are."""
    models = FakeModels()
    pictures = tuple(Given(png(40 + 8 * number), f"{side}.png", side) for number, side in enumerate(("back", "right")))
    (made,) = imagine(ImagineOptions(pictures=pictures), Silent(), models.samplers())
    assert not models.loaded and made.views.images.shape[0] == 2 and made.views.has_alpha
    directions = torch.nn.functional.normalize(made.views.cameras.centres, dim=1)
    assert directions == pytest.approx(torch.tensor([[0.0, 1, 0], [1, 0, 0]]), abs=1e-6)
    assert made.report["sides"] == ["back", "right"] and made.report["pictures"] == ["back.png", "right.png"]
    (single,) = imagine(ImagineOptions(pictures=(Given(png(), "l", "left"),)), Silent(), models.samplers())
    assert len(single.views) == 1 and not models.loaded


# ---- the boundary


def message(**fields: Any) -> protocol.Imagine:
    data = [png(), png(60)][: fields.pop("count", 0)]
    sent = protocol.Imagine(
        "job",
        np.frombuffer(b"".join(data), np.uint8),
        np.array([len(one) for one in data], np.int64),
        **fields,
    )
    received = protocol.decode(protocol.encode(sent))
    assert isinstance(received, protocol.Imagine)
    return received


def test_a_request_becomes_options():
    read = read_request(message(count=2, prompt="a mug", picture_names=("a", "b"), sides=("back", "left"), seed=3))
    assert [(one.name, one.side, one.data) for one in read.pictures] == [("a", "back", png()), ("b", "left", png(60))]
    assert (read.prompt, read.seed, read.held) == ("a mug", 3, None)
    rig = FRONT_ENDS["starter"].rig
    views = np.full((len(rig.angles), rig.side, rig.side, 4), 51, np.uint8)
    held = read_request(message(prompt="a mug", views=views, redo=1)).held
    assert held is not None and held.redo == 1 and float(held.images.max()) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "prompt: expected a prompt or a picture, found neither"),
        ({"prompt": " \n"}, "prompt: expected a prompt or a picture, found neither"),
        ({"prompt": "word " * 2000}, "prompt: expected at most 300 words, found 2000"),
        ({"prompt": "x" * 5000}, "prompt: expected at most 3000 letters, found 5000"),
        ({"prompt": "x", "negative_prompt": "word " * 301}, "negative_prompt: expected at most 300 words"),
        ({"prompt": "x", "front_end": "no_such"}, "front_end: expected one of starter, "),
        ({"prompt": "x", "front_end": "imagedream"}, "front_end: ImageDream needs a picture"),
        ({"count": 1, "front_end": "mvdream"}, "front_end: MVDream makes views of a prompt alone"),
        ({"prompt": "x", "candidates": 0}, "candidates: expected a number from 1 to 16, found 0"),
        ({"prompt": "x", "candidates": 17}, "candidates"),
        ({"prompt": "x", "steps": -1}, "steps: expected a number from 0 to 1000, found -1"),
        ({"prompt": "x", "guidance": -0.5}, "guidance: expected a number from 0.0 to 100.0, found -0.5"),
        ({"prompt": "x", "seed": -1}, "seed: expected a number from 0"),
        ({"count": 2, "sides": ("front", "top")}, "sides: expected front, right, back, left, found 'top'"),
        ({"count": 2, "sides": ("back", "back")}, "sides: expected each side once, found back 2 times"),
        ({"count": 2}, "sides: expected each side once, found front 2 times"),
        ({"count": 2, "sides": ("back",)}, "sides: expected one for each of 2 pictures, found 1"),
        ({"count": 1, "picture_names": ("a", "b")}, "picture_names: expected one for each of 1 pictures, found 2"),
        ({"prompt": "x", "redo": 1}, "redo: expected the number of a view together with views, found 1 without views"),
        ({"prompt": "x", "views": np.zeros((4, 64, 64, 4), np.uint8)}, "found -1 with views"),
        (
            {"prompt": "x", "views": np.zeros((4, 64, 64, 4), np.uint8), "redo": 4},
            "redo: expected the number of a view",
        ),
        ({"prompt": "x", "views": np.zeros((3, 64, 64, 4), np.uint8), "redo": 0}, "views: expected those of starter"),
        (
            {"prompt": "x", "views": np.zeros((4, 32, 32, 4), np.uint8), "redo": 0},
            "(4, 64, 64, 4), found (4, 32, 32, 4)",
        ),
        (
            {"prompt": "x", "views": np.zeros((4, 64, 64, 4), np.uint8), "redo": 0, "candidates": 2},
            "candidates: expected 1 where one view is made anew, found 2",
        ),
    ],
)
def test_bad_requests(fields, words):
    with pytest.raises(BadInput) as error:
        read_request(message(**fields))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("lengths", [[5], [1000, -1], [0]])
def test_pictures_that_are_not_as_long_as_said(lengths):
    sent = protocol.Imagine("job", np.zeros(999, np.uint8), np.array(lengths, np.int64))
    with pytest.raises(BadInput, match="picture_bytes: expected the pictures' 999 bytes in all, found"):
        read_request(sent)


@pytest.mark.parametrize("data", [b"", b"no picture", png()[: len(png()) // 2], png(1), png(empty=True)])
def test_bad_pictures(tmp_path, data):
    """One sentence that names the picture, and no model is loaded for it."""
    models = FakeModels()
    given = (Given(data, "broken.png"),)
    with pytest.raises(ValueError, match=r"broken\.png") as error:
        list(imagine(options(tmp_path, pictures=given), Silent(), models.samplers()))
    assert worker.kind_of(error.value) in ("bad_request", "nothing_seen") and "\n" not in str(error.value)
    assert not models.loaded


def test_missing_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("GAUSSMITH_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsMissing, match="weights fetch mvdream") as error:
        candidates(tmp_path, front_end="mvdream", weights="")
    assert worker.kind_of(error.value) == "missing_weights"
    with pytest.raises(BadInput, match="weights: expected the folder of a MVDream model, found"):
        candidates(tmp_path, front_end="mvdream", weights=str(tmp_path / "nowhere"))


# ---- the job


def test_the_messages_that_answer_an_imagine(tmp_path, monkeypatch):
    monkeypatch.setattr("backend.samplers.multiview.load", FakeModels().load)
    monkeypatch.setattr(Samplers.__init__, "__defaults__", (FakeModels().load,))
    desk = worker.Desk()
    request = message(prompt="a jack", candidates=2, weights=str(tmp_path), seed=5, device="cpu")
    answer = list(desk(request, Silent()))
    assert [type(one) for one in answer] == [protocol.Imagined, protocol.Imagined, protocol.Done]
    first = answer[0]
    assert isinstance(first, protocol.Imagined) and (first.candidate, first.seed) == (0, 5)
    done = answer[-1]
    assert isinstance(done, protocol.Done) and done.report["seeds"] == [5, 6]
    for one in answer:
        protocol.decode(protocol.encode(one))
    sent = protocol.Reconstruct(
        "next", first.images, first.c2w, first.Ks, first.orthographic, steps=3, max_splats=200, size=1.0, device="cpu"
    )
    told = list(desk(sent, Silent()))[-1]
    assert isinstance(told, protocol.Done) and told.report["placed"]["scale"] > 0


def test_the_messages_that_answer_a_cut():
    request = protocol.CutOut("job", np.frombuffer(png(900), np.uint8), "disc.png")
    preview, done = worker.Desk()(request, Silent())
    assert isinstance(preview, protocol.Preview) and isinstance(done, protocol.Done)
    assert max(preview.image.shape[:2]) <= 512 and preview.image.shape[2] == 4
    assert preview.image[..., 3].max() == 255 and preview.image[0, 0, 3] == 0
    small = cut_preview(png(60), "disc.png", "auto")
    assert max(small.shape[:2]) <= 60


def test_the_cuts_are_those_of_the_command():
    import typing

    from backend.__main__ import CUTS

    assert typing.get_args(protocol.Cut) == CUTS


# ---- the model in memory


def test_a_model_is_kept_until_another_is_wanted(tmp_path, monkeypatch):
    models = FakeModels()
    samplers = models.samplers()
    (tmp_path / "model.bin").write_bytes(b"x")
    first = samplers.get("starter", tmp_path, CPU)
    assert samplers.get("starter", tmp_path, CPU) is first
    assert samplers.get("mvdream", tmp_path, CPU) is not first and len(models.loaded) == 2
    samplers.get("mvdream", tmp_path, CPU)
    (tmp_path / "model.bin").write_bytes(b"xy")
    os.utime(tmp_path / "model.bin", ns=(1, 1))
    samplers.get("mvdream", tmp_path, CPU)
    assert len(models.loaded) == 3, "its files have changed"
    monkeypatch.setattr("backend.samplers.free_memory", lambda device: 100 * GIB)
    samplers.make_room()
    samplers.get("mvdream", tmp_path, CPU)
    assert len(models.loaded) == 3
    monkeypatch.setattr("backend.samplers.free_memory", lambda device: 2 * GIB)
    samplers.make_room()
    samplers.get("mvdream", tmp_path, CPU)
    assert len(models.loaded) == 4


@pytest.mark.parametrize(
    ("device", "weights", "free", "dtype", "offload", "slicing"),
    [
        (CPU, 0.01, 1, torch.float32, False, False),
        (CUDA, 0.01, 1, torch.float32, False, False),
        (CPU, 5, 12, torch.float32, False, False),
        (CPU, 5, 11, torch.bfloat16, False, True),
        (CPU, 5, 6, torch.bfloat16, False, True),
        (CUDA, 5, 24, torch.float16, False, False),
        (CUDA, 5, 9, torch.float16, False, True),
        (CUDA, 8, 12, torch.float16, False, True),
        (CUDA, 12, 14.5, torch.float16, True, False),
        (CUDA, 8, 9, torch.float16, True, True),
        (CUDA, 8, 3, torch.float16, True, True),
    ],
)
def test_budgets(device, weights, free, dtype, offload, slicing):
    budget = choose_budget(device, int(weights * GIB), int(free * GIB))
    assert (budget.device, budget.dtype) == (device, dtype)
    assert (budget.offload, budget.slicing) == (offload, slicing)


def test_a_budget_that_no_memory_suffices_for():
    with pytest.raises(MemoryError, match=r"memory: the front end's weights take 7\.0 GiB, and 4\.0 GiB are free"):
        choose_budget(CPU, 7 * GIB, 4 * GIB)


def test_what_is_loaded_gets_the_budget_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("backend.samplers.free_memory", lambda device: 12 * GIB)
    monkeypatch.setattr("backend.weights.tensor_bytes", lambda folder: 8 * GIB)
    assert FakeModels().samplers().get("starter", tmp_path, CPU).budget.dtype == torch.bfloat16
