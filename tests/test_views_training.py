"""Training of the starter's generator: it learns, goes on where it was, and mirrors as a mirror does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_captioned import model
from test_starter_views import TINY

from backend import views_objects, views_training
from backend.cameras import rig_cameras
from backend.monitor import Silent
from backend.multiview.starter_network import Autoencoder, Denoiser
from backend.photograph import photograph
from backend.views_objects import Objects, Wanted, make_objects, planes, read_objects
from backend.views_training import (
    GIVEN,
    Encoded,
    Lesson,
    Part,
    Trainer,
    ViewsConfig,
    _lesson,
    autoencoder_trainer,
    denoiser_trainer,
    encoded,
    flow_loss,
    learn_components,
)
from blender_addon.front_ends import FRONT_ENDS

CONFIG = ViewsConfig(
    TINY,
    autoencoder=Part(steps=300, batch=4, rate=5e-3, average=0.9),
    denoiser=Part(steps=120, batch=16, rate=1e-2, average=0.9),
)


def objects(count: int = 4) -> Objects:
    """Squares of their own colours."""
    images = np.zeros((count, 6, 32, 32, 4), np.uint8)
    for number in range(count):
        images[number, :, 8:24, 4 + number : 20] = np.array([40 * number, 200 - 40 * number, 90, 255])
    return Objects(images, [["one", "two"]] * count, ["box"] * count, ["red"] * count)


class Counted(Silent):
    """Stops after some questions."""

    def __init__(self, most: int) -> None:
        self.left = most

    def finish_early(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_objects_are_made_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views_objects, "FILE", 2)
    wanted = Wanted(objects=2, held_out=0, workers=1)
    views_objects._make_file(wanted.seed, None, tmp_path, 0, held_out=False)
    before = (tmp_path / "train_00000.npy").stat().st_mtime_ns
    make_objects(wanted, tmp_path, Silent())
    assert (tmp_path / "train_00000.npy").stat().st_mtime_ns == before
    found = read_objects(wanted, tmp_path, held_out=False)
    assert found.images.shape == (2, 6, 128, 128, 4) and len(found.prompts[0]) == 4 and found.kinds[0]
    made = views_objects.captioned(wanted.seed, 1, None)
    colour = made.views[0, ..., :3] * made.views[0, ..., 3:]
    torch.testing.assert_close(planes(found.images[1, 0])[:3], colour.permute(2, 0, 1), atol=0.003, rtol=0)


def test_a_mirrored_object_has_the_mirrored_views():
    """The views of an asset whose x is negated are those that `_mirrored` makes of its own views."""
    asset = model("flag", [(0.8, 0.1, 0.1), (0.1, 0.1, 0.8)], [3, 1])
    asset = replace(asset, vertices=asset.vertices @ np.diag([3, 5, 7]).astype(np.float32))
    flipped = replace(
        asset, vertices=asset.vertices * np.array([-1, 1, 1], np.float32), faces=asset.faces[:, ::-1].copy()
    )
    cameras = rig_cameras(FRONT_ENDS["starter"].rig)
    own, other = (photograph(one, cameras).images.movedim(-1, 1)[None] for one in (asset, flipped))
    assert (own - other).abs().mean() > 0.01
    assert (views_training._mirrored(own) - other).abs().mean() < 2e-4


def test_the_decoder_learns_what_the_components_leave_out(tmp_path: Path):
    torch.manual_seed(0)
    config = replace(CONFIG, network=replace(TINY, channels=2))
    coder = Autoencoder(config.network)
    learn_components(config, coder, objects())
    latents = encoded(coder, objects(), 4)
    trainer = autoencoder_trainer(config, coder, objects(), objects())
    before = trainer.score()
    trainer.train(tmp_path, Silent())
    assert trainer.score() > before + 0.5
    assert torch.equal(encoded(coder, objects(), 4), latents), "what the denoiser has learned from stays as it was"


def test_latents_of_the_views_of_each_picture_and_of_the_mirror():
    coder = Autoencoder(TINY)
    learn_components(CONFIG, coder, objects())
    latents, views = encoded(coder, objects(), 4).float(), planes(objects().images)
    assert latents.shape == (2, 4, 3, 4, 4, 4)
    torch.testing.assert_close(latents[0, :, 0], coder.encode(views[:, :4]), atol=0.01, rtol=0.01)
    everywhere = views[:, 5:].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(latents[0, :, 2], coder.encode(everywhere), atol=0.01, rtol=0.01)
    mirrored = views_training._mirrored(views)[:, :4]
    torch.testing.assert_close(latents[1, :, 0], coder.encode(mirrored), atol=0.01, rtol=0.01)


def test_the_denoiser_learns(tmp_path: Path):
    torch.manual_seed(0)
    data = Encoded(torch.randn(1, 4, 3, 4, 4, 4).expand(2, -1, -1, -1, -1, -1).half(), torch.randn(4, 2, 6, 8).half())
    trainer = denoiser_trainer(CONFIG, Denoiser(TINY), data, data)
    before = trainer.score()
    trainer.train(tmp_path, Silent())
    assert trainer.score() > 0.8 * before > before  # scores are losses below 0


def lesson(count: int) -> Lesson:
    nothing = torch.zeros(count)
    latents, noise = torch.randn(2, count, 4, 2, 2)
    return Lesson(latents, noise, torch.rand(count), nothing, nothing, nothing)


def test_flow_loss_by_hand():
    """A network that tells noise - latents has none; one that tells 0 has their mean square."""
    given = replace(lesson(2), times=torch.tensor([0.25, 0.5]))
    seen: list[torch.Tensor] = []

    class Told(torch.nn.Linear):
        def forward(self, at: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            seen.append(at)
            return given.noise - given.latents

    class Silence(torch.nn.Linear):
        def forward(self, at: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(at)

    exact = replace(CONFIG, precision="float32")
    assert flow_loss(cast(Any, Told(1, 1)), given, exact) == 0
    torch.testing.assert_close(seen[0][1], 0.5 * (given.latents[1] + given.noise[1]))
    torch.testing.assert_close(seen[0][0], 0.75 * given.latents[0] + 0.25 * given.noise[0])
    quiet = flow_loss(cast(Any, Silence(1, 1)), given, exact)
    torch.testing.assert_close(quiet, (given.noise - given.latents).square().mean())


def test_lessons_give_prompts_pictures_both_or_nothing():
    """In the stated shares; a picture is one of the object's own, and only views are to be made."""
    count = 600
    latents = torch.arange(3.0).view(1, 1, 3, 1, 1, 1).expand(2, 5, 3, 4, 4, 4).half()
    data = Encoded(latents, torch.ones(5, 2, 6, 8).half())
    config = replace(CONFIG, denoiser=replace(CONFIG.denoiser, batch=count))
    found = _lesson(data, config, 3)
    assert not found.latents.any()
    assert set(found.pictures[:, 0, 0, 0].tolist()) == {1.0, 2.0}
    asked, shown = found.words.flatten(1).any(1), found.shown
    shares = [(asked & ~shown), (~asked & shown), (asked & shown)]
    assert [float(one.float().mean()) for one in shares] == pytest.approx(list(GIVEN), abs=0.06)
    assert torch.equal(_lesson(data, config, 3).noise, found.noise)
    assert not torch.equal(_lesson(data, config, 4).noise, found.noise)


def test_a_part_goes_on_where_it_stopped(tmp_path: Path):
    """Its steps are the same numbers in the same order, its weights those that were saved."""
    steps: list[int] = []
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)

    def loss(step: int) -> torch.Tensor:
        steps.append(step)
        return (network(torch.ones(1, 2)) - 3).square().mean()

    def trainer() -> Trainer:
        return Trainer("part", Part(steps=10, batch=1, rate=0.1), network, loss, lambda: -abs(float(network.bias)), {})

    trainer().train(tmp_path, Counted(3))
    with torch.no_grad():
        network.weight.fill_(9)  # as a new process would have other weights
    trainer().train(tmp_path, Counted(2))
    assert steps == [0, 1, 2, 3, 4]
    assert network.weight.abs().max() < 5
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "score" in line] == [3, 5]
