"""Views in, Gaussians and a mesh out; what makes no sense is named before any work is done."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend import pipelines, worker
from backend.cameras import BadInput, Views
from backend.hull import NothingSeen
from backend.monitor import JobCancelled, Silent
from backend.pipelines import ReconstructOptions, check_size, check_views, reconstruct
from blender_addon import protocol
from tests.balls import RADIUS, ball_views

QUICK = ReconstructOptions(steps=30, max_splats=2000, faces=500, texture_size=64)


class Watch(Silent):
    """Remembers the stages, and may stop or cancel at a step of the fit."""

    def __init__(self, *, cancel_at: int | None = None, finish_at: int | None = None) -> None:
        self.stages: list[str] = []
        self.pictures = 0
        self._cancel_at, self._finish_at, self._step = cancel_at, finish_at, 0

    def progress(self, stage: str, step: int, total: int) -> None:
        assert 0 <= step <= total
        if self.stages[-1:] != [stage]:
            self.stages.append(stage)
        if stage == "fit":
            self._step = step
            if self._cancel_at is not None and step >= self._cancel_at:
                raise JobCancelled

    def preview(self, image: np.ndarray) -> None:
        assert image.dtype == np.uint8 and image.shape[2] == 4
        self.pictures += 1

    def finish_early(self) -> bool:
        return self._finish_at is not None and self._step >= self._finish_at


@pytest.fixture(scope="module")
def made():
    watch = Watch()
    return reconstruct(ball_views(), replace(QUICK, mesh=True), watch), watch


def test_the_ball_is_where_it_was(made):
    result, _ = made
    solid = result.gaussians.opacities > 0.3
    distances = result.gaussians.means[solid].norm(dim=1)
    assert 0.7 * RADIUS < distances.median() < 1.2 * RADIUS
    assert result.mesh is not None
    size = result.mesh.vertices.max(axis=0) - result.mesh.vertices.min(axis=0)
    assert size == pytest.approx(np.full(3, 2 * RADIUS), rel=0.2)


def test_the_report_is_complete_and_json(made):
    result, _ = made
    report = json.loads(json.dumps(result.report, allow_nan=False))
    assert report["psnr"] > 15 and report["splats"] == len(result.gaussians) and report["steps"] == 30
    assert report["mesh"]["faces"] == len(result.mesh.faces) and report["problems"] == []
    assert set(report["seconds"]) == {"splats", "mesh", "texture", "total"}
    assert report["versions"]["torch"] and report["device"] == "cpu" and report["weights_sha256"] == ""


def test_the_stages_are_those_the_bar_knows(made):
    """Names that fitting and meshing give; another name would leave the bar where it is."""
    _, watch = made
    shares = list(worker.FIT_SHARES | worker.MESH_SHARES)
    assert set(watch.stages) <= set(shares)
    assert [shares.index(stage) for stage in watch.stages] == sorted(shares.index(stage) for stage in watch.stages)
    masks = Watch()
    reconstruct(replace(ball_views(), depth=None), replace(QUICK, steps=1), masks)
    opaque = Watch()
    views = ball_views()
    reconstruct(
        replace(views, depth=None, images=torch.cat([views.images[..., :3], torch.ones(4, 32, 32, 1)], -1)),
        replace(QUICK, steps=1),
        opaque,
    )
    assert set(masks.stages) | set(opaque.stages) <= set(shares)


def test_the_same_seed_gives_the_same_splats():
    first, second = (reconstruct(ball_views(), replace(QUICK, steps=5), Silent()) for _ in range(2))
    assert torch.equal(first.gaussians.means, second.gaussians.means)


def test_cancel_and_finish():
    with pytest.raises(JobCancelled):
        reconstruct(ball_views(), QUICK, Watch(cancel_at=5))
    result = reconstruct(ball_views(), QUICK, Watch(finish_at=5))
    assert result.report["stopped_early"] and result.report["steps"] < 30 and len(result.gaussians) > 0


def test_a_size_stands_the_result_on_the_origin():
    result = reconstruct(ball_views(), replace(QUICK, steps=5, mesh=True, size=3.0), Silent())
    assert result.mesh is not None
    low, high = result.mesh.vertices.min(axis=0), result.mesh.vertices.max(axis=0)
    assert high - low == pytest.approx(np.full(3, 3.0), rel=0.2) and low[2] == pytest.approx(0, abs=0.2)
    assert (low + high)[:2] == pytest.approx(np.zeros(2), abs=0.2)
    assert result.report["placed"]["scale"] == pytest.approx(1.5 / RADIUS, rel=0.2)


def test_refining_goes_on_from_the_result():
    result = reconstruct(ball_views(), replace(QUICK, steps=5, refine=7), Silent())
    assert result.report["start"] == "gaussians" and result.report["steps"] == 7


def test_a_mesh_that_cannot_be_made_is_a_problem_not_a_failure(monkeypatch):
    def no_surface(*given: object, **options: object) -> None:
        raise ValueError("mesh: there is no surface")

    monkeypatch.setattr(pipelines.meshing, "extract_mesh", no_surface)
    result = reconstruct(ball_views(), replace(QUICK, steps=2, mesh=True), Silent())
    assert result.mesh is None and result.report["problems"] == ["no mesh: mesh: there is no surface"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "no_such"}, "model: expected fit or grm or lgm or long_lrm or lrm, found 'no_such'"),
        ({"weights": "some"}, "weights: the model 'fit' has none, found 'some'"),
        ({"steps": -1}, "steps: expected a number from 0 to 1000000, found -1"),
        ({"faces": 3}, "faces: expected a number from 4"),
        ({"texture_size": 10**6}, "texture_size"),
        ({"seed": 2**63}, "seed"),
        ({"size": -1.0}, "size: expected a number from 0.0 to 1000000.0, found -1.0"),
        ({"size": float("nan")}, "size: expected a number from 0.0"),
    ],
)
def test_options(fields, words):
    with pytest.raises(BadInput) as error:
        ReconstructOptions(**fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((4, 0, 4), "from 1 to 8192 pixels a side, found 0x4"),
        ((4, 4, 8193), "from 1 to 8192 pixels a side, found 4x8193"),
        ((0, 4, 4), "expected from 1 to 1024 views, found 0"),
        ((1025, 4, 4), "found 1025"),
        ((5, 8192, 8192), "use fewer or smaller views"),
    ],
)
def test_sizes(size, words):
    with pytest.raises(BadInput) as error:
        check_size(*size)
    assert words in str(error.value)


def changed(change) -> Views:
    """The ball's views after a change of copies of their tensors."""
    views = ball_views()
    assert views.depth is not None
    parts = {"images": views.images.clone(), "depth": views.depth.clone()}
    parts |= {"c2w": views.cameras.c2w.clone(), "Ks": views.cameras.Ks.clone()}
    change(parts)
    cameras = replace(views.cameras, c2w=parts["c2w"], Ks=parts["Ks"])
    return Views(parts["images"], cameras, parts["depth"], views.names)


def put(name: str, index: tuple, value: float):
    def change(parts: dict[str, torch.Tensor]) -> None:
        parts[name][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("images", (2, 3, 4, 0), float("nan")), "images: expected finite pixels; view 2 (1 of 4 views) is not so"),
        (put("images", (1, 0, 0, 3), 1.5), "images: expected pixels from 0 to 1; view 1"),
        (put("depth", (0, 1, 1), float("inf")), "depth: expected finite depths"),
        (put("depth", (0, 1, 1), -1.0), "depth: expected finite depths of at least 0; view 0"),
        (put("c2w", (3, 0, 3), float("nan")), "c2w: expected finite numbers; view 3"),
        (put("c2w", (0, 0, 0), 2.0), "c2w: expected orthonormal axes"),
        (put("c2w", (0, 3, 3), 2.0), "c2w: expected the last row 0 0 0 1"),
        (lambda parts: parts["c2w"][1, :3, 0].neg_(), "c2w: expected a rotation, found a mirrored camera; view 1"),
        (put("Ks", (0, 0, 0), -5.0), "Ks: expected positive focal lengths"),
        (put("Ks", (0, 0, 1), 0.1), "Ks: expected the form"),
        (put("Ks", (0, 2, 2), 2.0), "Ks: expected the form"),
    ],
)
def test_views_that_make_no_sense(change, words):
    with pytest.raises(BadInput) as error:
        check_views(changed(change))
    assert words in str(error.value)


def message(views: Views, **fields: object) -> protocol.Reconstruct:
    return protocol.Reconstruct(
        "job",
        (views.images * 255).round().byte().numpy(),
        views.cameras.c2w.numpy(),
        views.cameras.Ks.numpy(),
        views.cameras.orthographic.numpy(),
        None if views.depth is None else views.depth.numpy(),
        **fields,  # pyright: ignore[reportArgumentType]
    )


def test_a_request_becomes_views_and_options():
    sent = message(ball_views(), steps=9, mesh=True, seed=3)
    received = protocol.decode(protocol.encode(sent))  # read-only arrays, as they come
    assert isinstance(received, protocol.Reconstruct)
    views, options = pipelines.read_request(received)
    assert options == ReconstructOptions(steps=9, mesh=True, seed=3)
    assert views.images == pytest.approx(ball_views().images, abs=0.5 / 255 + 1e-6)
    assert views.depth is not None and torch.equal(views.cameras.c2w, ball_views().cameras.c2w)
    empty = replace(sent, images=sent.images[:, :0], depth=None)
    with pytest.raises(BadInput, match="at least one pixel"):
        pipelines.read_request(empty)


def test_the_messages_that_answer_a_request():
    sent = message(ball_views(), steps=3, mesh=True, faces=200, texture_size=32, max_splats=500)
    answer = list(worker.reconstruct(sent, Silent()))
    assert [type(one) for one in answer] == [protocol.Splats, protocol.TexturedMesh, protocol.Done]
    for one in answer:
        protocol.decode(protocol.encode(one))


def test_cameras_that_do_not_see_the_object():
    views = ball_views()
    c2w = views.cameras.c2w.clone()
    c2w[:, :3, 0] *= -1
    c2w[:, :3, 2] *= -1  # turned to look away
    with pytest.raises(NothingSeen):
        reconstruct(Views(views.images, replace(views.cameras, c2w=c2w)), QUICK, Silent())
    with pytest.raises(NothingSeen):
        reconstruct(Views(torch.zeros_like(views.images), views.cameras), QUICK, Silent())


def test_devices():
    assert pipelines.choose_device("cpu", "fit") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert pipelines.choose_device("auto", "fit") == torch.device("cpu")
        with pytest.raises(BadInput, match="device: 'cuda' cannot be used: No NVIDIA GPU"):
            pipelines.choose_device("cuda", "fit")


def test_a_network_takes_the_card_without_the_rasteriser(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pipelines, "gsplat_problem", lambda: "The package gsplat is not installed.")
    assert pipelines.choose_device("auto", "grm") == torch.device("cuda")
    assert pipelines.choose_device("auto", "fit") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pipelines.choose_device("auto", "grm") == torch.device("cpu")
    with pytest.raises(BadInput, match="No NVIDIA GPU"):
        pipelines.choose_device("cuda", "grm")
