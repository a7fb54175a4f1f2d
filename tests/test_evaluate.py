"""The scores against the benchmark's own script, the tables, and the command with its errors."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from backend import evaluate_command, pipelines
from backend.__main__ import main, parser
from backend.cameras import BadInput, Cameras, Views
from backend.evaluate import (
    Entry,
    Failure,
    Guess,
    Table,
    evaluate,
    find_objects,
    judge,
    mean_scores,
    read_entries,
    read_entry,
)
from backend.evaluate_command import Deadline, Method, methods_of, read_method
from backend.lpips import Lpips
from backend.monitor import JobCancelled, Silent
from backend.rendering import straight_rgba
from backend.texturing import TexturedMesh, render_textured, save_glb
from backend.transforms import write_transforms
from tests.balls import RADIUS, ball_views

SIZE = 32


def write_views(folder: Path, part: str, views: Views) -> None:
    """Pictures and transforms, as the benchmark has them."""
    names = [f"{part}_{index:02d}.png" for index in range(len(views))]
    for image, name in zip(views.images, names, strict=True):
        Image.fromarray((image * 255).round().byte().numpy()).save(folder / name)
    write_transforms(views.cameras, names, folder / f"transforms_{part}.json")


def write_object(folder: Path, *, size: int = SIZE) -> Path:
    """A ball with four inputs and three tests, and points on and in it, of which those inside are not visible."""
    folder.mkdir(parents=True)
    write_views(folder, "input", ball_views(4, size))
    write_views(folder, "test", ball_views(3, size))
    points = torch.nn.functional.normalize(torch.randn(600, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    radius = torch.where(torch.arange(600) % 3 == 0, 0.1, RADIUS)[:, None]
    visible = (radius[:, 0] == RADIUS).numpy()
    normals = points.half().numpy()
    np.savez(folder / "surface.npz", points=(radius * points).half().numpy(), normals=normals, visible=visible)
    (folder / "cameras.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    for name in ("first", "second"):
        write_object(folder / name)
    (folder / "notes").mkdir()
    return folder


def ball_mesh() -> TexturedMesh:
    """A coarse ball, a little aside, with a grey texture that is darker to the right."""
    shape = trimesh.creation.icosphere(subdivisions=2, radius=RADIUS)
    uvs = np.random.default_rng(0).random((len(shape.vertices), 2)).astype(np.float32)
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[..., :3] = np.linspace(200, 90, 8, dtype=np.uint8)[None, :, None]
    vertices = shape.vertices.astype(np.float32) + np.array([0.05, 0, 0.01], np.float32)
    return TexturedMesh(vertices, shape.faces.astype(np.int32), uvs, texture)


def noisy(entry: Entry, seed: int = 0) -> np.ndarray:
    """The test pictures with noise, shifted by two pixels, partly see-through."""
    images = (entry.tests.images * 255).round().byte().numpy()
    images = np.roll(images, 2, axis=2).astype(int)
    images = images + np.random.default_rng(seed).integers(-40, 40, images.shape)
    return np.clip(images, 0, 255).astype(np.uint8)


# ---- scores


def test_scores_are_those_of_the_benchmarks_own_script(dataset, tmp_path, shared_folder):
    """The same pictures and the same mesh through both; the mesh as a file with Y up for the script."""
    script = shared_folder / "bench" / "score.py"
    ours = {}
    for number, folder in enumerate(find_objects(dataset)):
        entry = read_entry(folder)
        guess = Guess(noisy(entry, number), 0.5, ball_mesh())
        ours[entry.name] = judge(guess, entry)
        out = tmp_path / "results" / entry.name
        out.mkdir(parents=True)
        mesh_images = straight_rgba(render_textured(ball_mesh(), entry.tests.cameras))
        for view in range(3):
            Image.fromarray(guess.images[view]).save(out / f"test_{view:02d}.png")
            Image.fromarray(mesh_images[view]).save(out / f"mesh_test_{view:02d}.png")
        save_glb(ball_mesh(), out / "mesh.glb")
    told = tmp_path / "scores.json"
    command = [sys.executable, str(script), str(tmp_path / "results"), str(dataset), "--json", str(told)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    theirs = json.loads(told.read_text())["objects"]
    ours["MEAN"] = mean_scores(list(ours.values()))
    for name, scores in ours.items():
        for field, column in (("chamfer", "cd"), *((same, same) for same in ("psnr", "boxpsnr", "ssim", "iou", "f1"))):
            assert getattr(scores, field) == pytest.approx(theirs[name][column], rel=1e-4), (name, field)
        assert scores.mesh_psnr == pytest.approx(theirs[name]["mesh_psnr"], rel=1e-5)
        assert scores.mesh_boxpsnr == pytest.approx(theirs[name]["mesh_boxpsnr"], rel=1e-5)


def test_a_perfect_guess(dataset):
    entry = read_entry(dataset / "first")
    images = (entry.tests.images * 255).round().byte().numpy()
    scores = judge(Guess(images, 1.5), entry)
    assert scores.psnr == scores.boxpsnr == pytest.approx(100) and scores.ssim == pytest.approx(1) and scores.iou == 1
    assert scores.seconds == 1.5 and scores.lpips is None and scores.mesh_psnr is None and scores.chamfer is None


def test_the_box_counts_where_the_object_is(dataset):
    """An error in the object weighs more in its box; one outside weighs nothing there."""
    entry = read_entry(dataset / "first")
    images = (entry.tests.images * 255).round().byte().numpy()
    inside, outside = images.copy(), images.copy()
    inside[:, SIZE // 2, SIZE // 2, :3] ^= 128
    outside[:, 0, 0] = (0, 0, 0, 255)
    scores = judge(Guess(inside, 0.0), entry)
    assert scores.boxpsnr < scores.psnr < 50
    assert judge(Guess(outside, 0.0), entry).boxpsnr == pytest.approx(100) and judge(Guess(outside, 0.0), entry).iou < 1


def test_lpips_is_measured_where_it_is_given(dataset):
    torch.manual_seed(0)
    entry = read_entry(dataset / "first")
    scores = judge(Guess(noisy(entry), 0.0), entry, Lpips())
    assert scores.lpips is not None and scores.lpips > 0
    images = (entry.tests.images * 255).round().byte().numpy()
    assert judge(Guess(images, 0.0), entry, Lpips()).lpips == 0


@pytest.mark.parametrize("images", [np.zeros((3, 8, 8, 4), np.uint8), np.zeros((3, SIZE, SIZE, 4), np.float32)])
def test_pictures_of_another_kind_are_refused(dataset, images):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(3, 32, 32, 4\)"):
        judge(Guess(images, 0.0), read_entry(dataset / "first"))


def test_means_are_over_what_was_measured(dataset):
    entry = read_entry(dataset / "first")
    one = judge(Guess(noisy(entry, 0), 1.0), entry)
    two = judge(Guess(noisy(entry, 1), 3.0, ball_mesh()), entry)
    mean = mean_scores([one, two])
    assert mean is not None and mean.seconds == 2 and mean.psnr == pytest.approx((one.psnr + two.psnr) / 2)
    assert mean.f1 == two.f1 and mean.lpips is None and mean_scores([]) is None


# ---- a method over a data set


def test_an_object_that_fails_is_told_and_the_rest_goes_on(dataset):
    def choosy(inputs: Views, cameras: Cameras) -> Guess:
        assert len(inputs) == 4 and len(cameras) == 3
        if len(seen) == 1:
            seen.append("failed")
            raise MemoryError("memory: too little")
        seen.append("done")
        return Guess(np.zeros((3, SIZE, SIZE, 4), np.uint8), 0.0, problem="no mesh: none" if len(seen) > 2 else "")

    seen: list[str] = []
    entry = read_entry(dataset / "first")
    entries = [replace(entry, name=name) for name in "abc"]
    table = evaluate([entries[0], Failure("x", "cannot be read"), *entries[1:]], choosy, method="choosy")
    assert table.method == "choosy" and list(table.scores) == ["a", "c"]
    assert [(failure.name, failure.reason) for failure in table.failures] == [
        ("x", "cannot be read"),
        ("b", "memory: too little"),
        ("c", "no mesh: none"),
    ]
    assert Table("nothing", {}, ()).mean() is None


def test_objects_are_folders_with_both_files(dataset, tmp_path):
    assert [folder.name for folder in find_objects(dataset)] == ["first", "second"]
    assert find_objects(dataset / "first") == [dataset / "first"]
    with pytest.raises(BadInput, match=r"expected folders with transforms_input\.json and transforms_test\.json"):
        find_objects(tmp_path)
    with pytest.raises(BadInput, match="expected a folder of objects, found nothing"):
        find_objects(tmp_path / "none")


def test_a_surface_is_what_can_be_seen(dataset):
    surface = read_entry(dataset / "first").surface
    assert surface is not None and surface.shape == (400, 3)
    assert np.linalg.norm(surface, axis=1) == pytest.approx(np.full(400, RADIUS), abs=1e-3)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"points": np.zeros((4, 3))}, "the keys 'points' and 'visible'"),
        ({"points": np.zeros((4, 2)), "visible": np.ones(4, bool)}, "expected points"),
        ({"points": np.zeros((4, 3)), "visible": np.ones(3, bool)}, "expected points"),
        ({"points": np.zeros((4, 3)), "visible": np.zeros(4, bool)}, "some of them visible"),
        ({"points": np.array([[None] * 3] * 4), "visible": np.ones(4, bool)}, "the keys 'points' and 'visible'"),
    ],
)
def test_bad_surfaces(tmp_path, arrays, words):
    folder = write_object(tmp_path / "thing")
    np.savez(folder / "surface.npz", **arrays)
    (failure,) = read_entries([folder])
    assert isinstance(failure, Failure) and failure.name == "thing"
    assert words in failure.reason and "surface.npz" in failure.reason


def test_an_object_without_a_surface_can_be_judged(tmp_path):
    folder = write_object(tmp_path / "thing")
    (folder / "surface.npz").unlink()
    entry = read_entry(folder)
    scores = judge(Guess(noisy(entry), 0.0, ball_mesh()), entry)
    assert scores.mesh_psnr is not None and scores.chamfer is None and scores.f1 is None


# ---- the methods of the command


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("nearest", Method("nearest")),
        ("fit", Method("fit")),
        ("fit@10s", Method("fit", seconds=10)),
        ("fit@0.5s", Method("fit", seconds=0.5)),
        ("grm+100", Method("grm", refine=100)),
        ("long_lrm+10@60s", Method("long_lrm", refine=10, seconds=60)),
    ],
)
def test_the_grammar_of_methods(text, method):
    assert read_method(text) == method and str(method) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected NAME"),
        ("gaussmith", "nearest or hull or fit or grm"),
        ("fit@10", "expected NAME"),
        ("fit@s", "expected NAME"),
        ("grm+", "expected NAME"),
        ("grm+-3", "expected NAME"),
        ("grm +3", "expected NAME"),
        ("fit@10s+3", "expected NAME"),
        ("hull+10", "'hull' takes neither steps nor seconds"),
        ("nearest@10s", "'nearest' takes neither steps nor seconds"),
        ("grm@10s", "only fit and a refinement can stop"),
    ],
)
def test_bad_methods(text, words):
    with pytest.raises(BadInput, match=words) as error:
        read_method(text)
    assert "--model" in str(error.value) and repr(text) in str(error.value)


def options(*arguments: str) -> argparse.Namespace:
    return parser().parse_args(["evaluate", "DATASET", *arguments])


def test_the_methods_of_the_options():
    assert methods_of(options()) == [Method("fit")]
    assert [str(method) for method in methods_of(options("--baselines"))] == ["nearest", "hull", "fit@10s", "fit@60s"]
    given = options("--model", "grm", "--model", "grm+5", "--model", "fit", "--model", "grm", "--refine", "10")
    assert [str(method) for method in methods_of(given)] == ["grm+10", "grm+5", "fit"]
    with pytest.raises(BadInput, match="--weights: expected a network among the models, found nearest, fit"):
        methods_of(options("--weights", "x", "--model", "nearest", "--model", "fit"))


def test_a_deadline_ends_a_fit_with_its_best(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(evaluate_command.time, "perf_counter", lambda: now[0])
    deadline = Deadline(Silent(), 110.0)
    assert not deadline.finish_early()
    now[0] = 110.0
    assert deadline.finish_early()
    with pytest.raises(RuntimeError, match="told"):

        class Loud(Silent):
            def progress(self, stage: str, step: int, total: int) -> None:
                raise RuntimeError("told")

        Deadline(Loud(), 0.0).progress("fit", 1, 2)


def test_a_stopped_fit_is_judged(dataset, monkeypatch):
    """Stopped at once it is worse than the whole fit, and made of the same views by the product's own function."""
    made = []
    reconstruct = pipelines.reconstruct

    def spied(views, options, monitor):
        made.append(reconstruct(views, replace(options, max_splats=300, steps=60), monitor))
        return made[-1]

    monkeypatch.setattr(evaluate_command.pipelines, "reconstruct", spied)
    entry, given = read_entry(dataset / "first"), options("--device", "cpu")
    tries = [evaluate_command.reconstructor_of(read_method(text), given, Silent()) for text in ("fit@0s", "fit")]
    stopped, whole = (judge(attempt(entry.inputs, entry.tests.cameras), entry) for attempt in tries)
    assert [one.report["stopped_early"] for one in made] == [True, False]
    assert stopped.psnr < whole.psnr and whole.psnr > 18 and whole.iou > 0.8
    assert whole.seconds == made[1].report["seconds"]["splats"]


# ---- the command


def run(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output and error."""
    try:
        status = main(["evaluate", *(str(argument) for argument in arguments)])
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_table_and_the_file(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GAUSSMITH_WEIGHTS", str(tmp_path))
    file = tmp_path / "deep" / "table.json"
    status, shown, _ = run([dataset, "--model", "nearest", "--json", file], capsys)
    assert status == 0
    report = json.loads(file.read_text())
    (method,) = report["methods"]
    assert method["method"] == "nearest" and method["failures"] == {} and list(method["objects"]) == ["first", "second"]
    assert method["objects"]["first"]["psnr"] == method["mean"]["psnr"] > 10 and method["mean"]["chamfer"] is None
    assert report["lpips"] == "absent" and method["mean"]["lpips"] is None
    row = next(line for line in shown.splitlines() if "mean" in line)
    assert f"{method['mean']['psnr']:.2f}" in row and "absent" in row
    assert "lpips: not measured" in shown and str(tmp_path / "lpips") in shown and "chamfer" not in shown


def test_an_unreadable_object_is_named_and_the_status_says_so(dataset, tmp_path, capsys):
    folder = tmp_path / "objects"
    for name in ("good", "bad"):
        write_object(folder / name)
    (folder / "bad" / "test_01.png").unlink()
    status, shown, said = run([folder, "--model", "nearest", "--json", tmp_path / "t.json"], capsys)
    assert status == 1 and "error: nearest failed at 1 of 2 objects:" in said and "bad: " in said
    assert "Traceback" not in said and "failed" in shown
    (method,) = json.loads((tmp_path / "t.json").read_text())["methods"]
    assert list(method["objects"]) == ["good"] and "test_01.png" in method["failures"]["bad"]
    assert run([folder, "--model", "nearest", "--objects", "1"], capsys)[0] == 1, "bad is the first by name"


def test_meshes_are_judged_where_they_are_wanted(dataset, capsys, monkeypatch):
    """The hull has one; the nearest view has none, which is no failure."""
    for name, value in (("HULL_SIDE", 24), ("HULL_FACES", 500), ("TEXTURE_SIZE", 64)):
        monkeypatch.setattr(evaluate_command.baselines, name, value)
    methods = ["--model", "nearest", "--model", "hull", "--objects", "1"]
    status, shown, _ = run([dataset, *methods, "--mesh"], capsys)
    nearest, hull = (line for line in shown.splitlines() if "mean" in line)
    assert status == 0 and "chamfer" in shown and " - " in nearest and " - " not in hull
    status, shown, _ = run([dataset, *methods], capsys)
    assert status == 0 and "chamfer" not in shown


def test_the_same_command_as_a_program(dataset):
    command = [sys.executable, "-m", "backend", "evaluate", str(dataset), "--model", "nearest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert [line.split()[3] for line in done.stdout.splitlines() if "nearest" in line] == ["first", "second", "mean"]


def test_an_interrupted_command(dataset, tmp_path, capsys, monkeypatch):
    def cancelled(inputs: Views, cameras: Cameras) -> Guess:
        raise JobCancelled

    monkeypatch.setitem(evaluate_command.BASELINES, "hull", cancelled)
    file = tmp_path / "table.json"
    status, _, said = run([dataset, "--model", "nearest", "--model", "hull", "--json", file], capsys)
    assert status == 130 and "interrupted" in said and "Traceback" not in said
    assert [method["method"] for method in json.loads(file.read_text())["methods"]] == ["nearest"], (
        "what was done is kept"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no_such"], "--model: expected NAME"),
        (["--model", "hull+3"], "takes neither steps nor seconds"),
        (["--model", "grm", "--weights", "no_such"], "weights: expected a file or one of starter, grm_u"),
        (["--model", "grm", "--refine", "-1"], "refine: expected a number from 0"),
        (["--objects", "0"], "--objects: expected at least 1"),
        (["--lpips", "no_such"], "lpips: expected a file or a folder"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
    ],
)
def test_bad_options(dataset, tmp_path, capsys, arguments, words):
    file = tmp_path / "table.json"
    status, _, said = run([dataset, "--json", file, *arguments], capsys)
    assert status == 2 and words in said and "Traceback" not in said and not file.exists()


def test_a_data_set_that_is_none(tmp_path, capsys):
    status, _, said = run([tmp_path / "none"], capsys)
    assert status == 2 and said.count("\n") == 1 and "expected a folder of objects" in said
    status, _, said = run([tmp_path], capsys)
    assert status == 2 and "found none" in said
