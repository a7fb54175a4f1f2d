"""The command from a prompt, a picture or a list to results: files, exit statuses, and what is left when it fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend import generate_command, ply
from backend.__main__ import main, parser
from backend.generate_command import Line, folder_name, generate, read_lines
from backend.transforms import read_views
from blender_addon.front_ends import FRONT_ENDS
from tests.fake_samplers import FakeModels, png, small_rigs
from tests.fakes import ROOT

QUICK = ("--model", "fit", "--steps", "3", "--max-splats", "200", "--device", "cpu")
DEADLINE = 120


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    small_rigs(monkeypatch, 48)


@pytest.fixture
def models() -> FakeModels:
    return FakeModels()


def run(models: FakeModels, folder: Path, *arguments: str | Path) -> int:
    """The exit status; results in `folder`/out, the front ends' weights in `folder`/weights."""
    (folder / "weights").mkdir(exist_ok=True)
    every = ["generate", "--out", folder / "out", "--front-end-weights", folder / "weights", *QUICK, *arguments]
    return generate(parser().parse_args([str(argument) for argument in every]), models.samplers())


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def views(count: int, folder: str = "views") -> set[str]:
    return {f"{folder}/{name}" for name in ("transforms.json", *(f"view_{view}.png" for view in range(count)))}


def sentence_in(said: str) -> str:
    """The complaint, which is the last line of what was said; before it, how far the work had come."""
    *before, last = said.splitlines()
    assert last.startswith("error: ") and not any("error" in line for line in before)
    return last


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


# ---- one result


def test_a_prompt(models, tmp_path):
    assert run(models, tmp_path, "--prompt", "a jack", "--seed", "5", "--size", "2") == 0
    out = tmp_path / "out"
    assert files_in(out) == {"splats.ply", "report.json", *views(4)}
    report = report_of(out)
    told = report["imagined"]
    assert (told["prompt"], told["front_end"], told["seed"], told["steps"]) == ("a jack", "starter", 5, 24)
    assert told["guidance"] == FRONT_ENDS["starter"].guidance and told["seconds"] >= 0 and report["placed"]["scale"] > 0
    assert report["model"] == "fit" and len(ply.load(out / "splats.ply")) == report["splats"]
    with Image.open(out / "views" / "view_0.png") as image:
        assert image.mode == "RGBA" and image.size == (48, 48)
    again = read_views(out / "views")
    assert len(again) == 4 and again.has_alpha and again.cameras.centres.norm(dim=1).max() == pytest.approx(2.7)
    assert not list(tmp_path.glob(".*")), "nothing of the making stays"


def test_a_mesh_and_pictures(models, tmp_path):
    run(models, tmp_path, "--prompt", "a jack", "--views-only")
    shots = tmp_path / "out" / "views" / "transforms.json"
    cameras = tmp_path / "shots.json"
    cameras.write_text(shots.read_text())
    arguments = ("--mesh", "--faces", "200", "--texture-size", "32", "--cameras", cameras, "--steps", "30")
    assert run(models, tmp_path, "--prompt", "a jack", *arguments) == 0
    pictures = {f"{prefix}view_{view}.png" for prefix in ("", "mesh_") for view in range(4)}
    assert files_in(tmp_path / "out") == {"splats.ply", "mesh.glb", "report.json", *views(4), *pictures}


def test_candidates(models, tmp_path):
    arguments = ("--prompt", "a jack", "--candidates", "3", "--candidate", "1", "--seed", "8")
    assert run(models, tmp_path, *arguments) == 0
    out = tmp_path / "out"
    expected = {path for number in range(3) for path in views(4, f"candidates/{number}")}
    assert files_in(out) == {"splats.ply", "report.json", *views(4), *expected}
    assert report_of(out)["imagined"]["seed"] == 9


def test_views_alone(models, tmp_path):
    assert run(models, tmp_path, "--prompt", "a jack", "--views-only", "--sampling-steps", "2") == 0
    assert files_in(tmp_path / "out") == {"report.json", *views(4)}
    assert report_of(tmp_path / "out")["imagined"]["steps"] == 2


def test_a_picture_and_pictures_of_sides(models, tmp_path):
    for name in ("front", "right=odd"):
        (tmp_path / f"{name}.png").write_bytes(png())
    assert run(models, tmp_path, "--image", tmp_path / "front.png", "--front-end", "imagedream") == 0
    assert report_of(tmp_path / "out")["imagined"]["pictures"] == [str(tmp_path / "front.png")]
    assert len(models.loaded) == 1
    sides = ("--image", f"front={tmp_path}/front.png", "--image", f"left={tmp_path}/right=odd.png", "--views-only")
    assert run(models, tmp_path, *sides) == 0
    told = report_of(tmp_path / "out")["imagined"]
    assert told["sides"] == ["front", "left"] and len(models.loaded) == 1
    assert files_in(tmp_path / "out") >= views(2)


def test_the_model_that_suits_the_front_end(models, tmp_path):
    def model(*arguments: str) -> str:
        given = parser().parse_args(["generate", "--out", "x", "--prompt", "x", *arguments])
        order = generate_command.order_of(given)
        assert order.reconstruct is not None
        return order.reconstruct.model

    assert model() == "grm" and model("--front-end", "mvadapter-sdxl") == "fit" and model("--model", "fit") == "fit"
    for front_end in FRONT_ENDS.values():
        assert front_end.models[0] in ("grm", "fit", "lgm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "prompt: expected a prompt or a picture, found neither"),
        (("--prompt", ""), "prompt: expected a prompt or a picture, found neither"),
        (("--prompt", "word " * 2000), "prompt: expected at most 300 words, found 2000"),
        (("--prompt", "x", "--model", "lgm"), "--model: expected grm or fit for the views of Starter, found 'lgm'"),
        (("--prompt", "x", "--candidate", "1"), "--candidate: expected a number from 0 to 0, found 1"),
        (("--prompt", "x", "--size", "-1"), "size: expected a number from 0.0"),
        (("--prompt", "x", "--size", "nan"), "size: expected a number from 0.0"),
        (("--prompt", "x", "--guidance", "nan"), "guidance: expected a number from 0.0"),
        (("--prompt", "x", "--front-end", "imagedream"), "front_end: ImageDream needs a picture"),
        (("--image", "nowhere.png"), "--image nowhere.png: expected a picture, found: No such file"),
        (("--image", "TMP/text.png"), "text.png"),
        (("--image", "TMP/one.png"), "one.png"),
        (("--image", "TMP/empty.png"), "empty.png"),
        (("--image", "TMP/cut.png"), "cut.png"),
        (("--prompt", "x", "--front-end-weights", "nowhere"), "weights: expected the folder of a Starter model"),
        (("--batch", "nowhere.txt"), "--batch nowhere.txt: expected a text or CSV file, found: No such file"),
        (("--batch", "TMP/prompts.txt", "--prompt", "x"), "--batch: expected no --prompt and no --image beside it"),
        (("--prompt", "x", "--cameras", "nowhere.json"), "nowhere.json: expected a folder or a transforms.json"),
        (("--prompt", "x", "--model", "grm", "--weights", "no_such"), "weights: expected a file or one of starter"),
    ],
)
def test_bad_input(models, tmp_path, capsys, arguments, words):
    """One sentence, exit status 2, nothing written and no model loaded."""
    contents = {"text": b"no picture at all", "one": png(1), "empty": png(empty=True), "cut": png()[: len(png()) // 2]}
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    (tmp_path / "prompts.txt").write_text("a jack\n")
    assert run(models, tmp_path, *(argument.replace("TMP", str(tmp_path)) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert words in sentence_in(said) and "Traceback" not in said
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*")) and not models.loaded


def test_missing_and_half_downloaded_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GAUSSMITH_WEIGHTS", str(tmp_path))
    command = ["generate", "--out", str(tmp_path / "out"), "--prompt", "x", "--front-end", "mvdream", "--model", "fit"]
    assert main(command) == 2
    assert "mvdream is not on this machine" in capsys.readouterr().err
    (tmp_path / "mvdream" / "unet").mkdir(parents=True)
    (tmp_path / "mvdream" / "unet" / "diffusion_pytorch_model.safetensors.0123.part").write_bytes(b"half")
    assert main(command) == 2
    said = sentence_in(capsys.readouterr().err)
    assert "mvdream is here only in part" in said and "weights fetch mvdream" in said
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to(models, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run(models, tmp_path, "--prompt", "x") == 2
    assert "out: expected a folder that can be made, found: a file of that name" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "a file"


def test_a_failure_leaves_the_older_result(models, tmp_path, capsys, monkeypatch):
    run(models, tmp_path, "--prompt", "a jack", "--views-only")
    before = files_in(tmp_path / "out")

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device", "splats.ply")

    monkeypatch.setattr("backend.command_line.ply.save", full)
    assert run(models, tmp_path, "--prompt", "another") == 1
    assert "splats.ply: No space left on device" in capsys.readouterr().err
    assert files_in(tmp_path / "out") == before and not list(tmp_path.glob(".*"))
    assert report_of(tmp_path / "out")["imagined"]["prompt"] == "a jack"


# ---- many


def batch_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "batch.json").read_text())


def test_a_list_of_prompts_goes_on_where_it_was(models, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa red chair\n\n  a Mug; blue!  \n")
    assert run(models, tmp_path, "--batch", prompts, "--views-only") == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"0001-a-red-chair", "0002-a-mug-blue", "batch.json"}
    assert [one["state"] for one in batch_of(tmp_path)] == ["done", "done"]
    (sampler,) = models.loaded  # one model for all
    assert [wish.prompt for wish in sampler.wishes] == ["a red chair", "a Mug; blue!"]
    prompts.write_text("a red chair\na Mug; blue!\na lamp\n")
    (out / "0002-a-mug-blue" / "report.json").unlink()
    assert run(models, tmp_path, "--batch", prompts, "--views-only") == 0
    assert [wish.prompt for wish in models.loaded[1].wishes] == ["a Mug; blue!", "a lamp"]
    assert "0003-a-lamp: done" in capsys.readouterr().err


def test_a_table(models, tmp_path):
    (tmp_path / "disc.png").write_bytes(png())
    table = tmp_path / "things.csv"
    table.write_text(
        "Prompt,image,seed,size,name,front_end\n"
        '"a cup, red",,7,0.5,Cup No. 1,mvdream\n'
        ",disc.png,,,../../escape,\n"
        "short\n"
    )
    assert run(models, tmp_path, "--batch", table) == 0
    out = tmp_path / "out"
    first, second, third = (report_of(out / one["folder"]) for one in batch_of(tmp_path))
    assert [one["folder"] for one in batch_of(tmp_path)] == ["0001-cup-no-1", "0002-escape", "0003-short"]
    assert (first["imagined"]["prompt"], first["imagined"]["seed"]) == ("a cup, red", 7)
    assert first["imagined"]["front_end"] == "mvdream" and first["placed"] is not None
    assert second["imagined"]["pictures"] == [str(tmp_path / "disc.png")] and second["placed"] is None
    assert third["imagined"]["prompt"] == "short" and third["imagined"]["seed"] == 0


def test_lines_that_fail_do_not_stop_the_rest(models, tmp_path, capsys):
    table = tmp_path / "things.csv"
    (tmp_path / "empty.png").write_bytes(png(empty=True))
    table.write_text("prompt,image,seed,front_end\n,,,\n,empty.png,,\n,gone.png,,\nx,,many,\nx,,,nothing\na lamp,,,\n")
    assert run(models, tmp_path, "--batch", table, "--views-only") == 2
    told = batch_of(tmp_path)
    assert [one["state"] for one in told] == ["failed"] * 5 + ["done"]
    words = ["found neither", "empty.png", "No such file", "found 'many'", "front_end: expected one of"]
    said = capsys.readouterr().err
    for one, word in zip(told, words, strict=False):
        assert word in one["sentence"] and f"{one['folder']}: {one['sentence']}" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0006-a-lamp", "batch.json"}


def test_what_breaks_counts_more_than_bad_input(models, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("word " * 400 + "\na lamp\na mug\n")
    write = generate_command.save_views

    def full(*given: Any) -> None:
        if "lamp" in str(given[1]):
            raise OSError(28, "No space left on device", "view_0.png")
        write(*given)

    monkeypatch.setattr(generate_command, "save_views", full)
    assert run(models, tmp_path, "--batch", prompts, "--views-only") == 1
    assert [one["state"] for one in batch_of(tmp_path)] == ["failed", "failed", "done"]


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "a.txt", "expected at least one line, found none"),
        ("prompt\n", "a.csv", "expected at least one line, found none"),
        ("name,seed\nx,1\n", "a.csv", "expected columns out of prompt, image"),
        ("prompt,colour\nx,red\n", "a.csv", "expected columns out of prompt, image"),
        ("prompt,prompt\nx,y\n", "a.csv", "expected columns out of prompt, image"),
        (b"\xff\xfe\x00x", "a.txt", "expected text in UTF-8"),
    ],
)
def test_bad_lists(models, tmp_path, capsys, text, name, words):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run(models, tmp_path, "--batch", tmp_path / name) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_names_of_folders():
    assert folder_name(1, Line(prompt="A red chair")) == "0001-a-red-chair"
    assert folder_name(12, Line(prompt="x", name="../..")) == "0012-object"
    assert folder_name(3, Line(image="photos/Old Mug.jpeg")) == "0003-old-mug"
    assert folder_name(4, Line(prompt="word " * 50)).startswith("0004-word-word") and len(folder_name(4, Line())) < 50
    assert len(folder_name(4, Line(prompt="word " * 50))) <= 45


def test_a_row_of_a_table_may_have_lines_within(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,seed\n"a red\nchair",3\n')
    assert read_lines(tmp_path / "a.csv") == [Line(prompt="a red\nchair", seed="3")]


SLOW = """
import sys
from pathlib import Path
from backend.__main__ import parser
from backend.generate_command import generate
from tests.fake_samplers import FakeModels
sys.exit(generate(parser().parse_args(sys.argv[1:]), FakeModels().samplers()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of terminals")
def test_ctrl_c_keeps_what_is_done(tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a jack\na jack slowly\na lamp\n")
    arguments = ["generate", "--out", str(out), "--front-end-weights", str(tmp_path), "--views-only"]
    command = [sys.executable, "-c", SLOW, *arguments, "--batch", str(prompts)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + DEADLINE
        while not (out / ".0002-a-jack-slowly.part").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and "Traceback" not in said and "the results that are done stay" in said
    assert {path.name for path in out.iterdir()} == {"0001-a-jack", "batch.json"}
    assert [one["state"] for one in batch_of(tmp_path)] == ["done", "waiting", "waiting"]
    assert np.asarray(Image.open(out / "0001-a-jack" / "views" / "view_0.png")).shape == (128, 128, 4)
