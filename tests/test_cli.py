"""The commands: files, exit statuses and the one sentence that says what was wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend import command_line, ply
from backend.__main__ import main, parser
from backend.transforms import write_transforms
from tests.balls import ball_cameras, write_ball
from tests.fakes import ROOT

QUICK = ("--steps", "10", "--max-splats", "500", "--faces", "200", "--texture-size", "32")
DEADLINE = 120


def complaint(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what was said on standard error."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        status = int(error.code or 0)
    return status, capsys.readouterr().err


def test_the_documented_commands_and_flags():
    text = parser().format_help()
    assert all(command in text for command in ("serve", "reconstruct", "bench"))
    flags = "--out DIR --model fit --weights W --refine 3 --mesh --cameras C --device cpu --seed 7"
    given = parser().parse_args(["reconstruct", "VIEWS", *flags.split()])
    assert (given.views, given.out, given.cameras) == (Path("VIEWS"), Path("DIR"), Path("C"))
    assert (given.model, given.weights, given.refine, given.mesh, given.seed) == ("fit", "W", 3, True, 7)


def test_everything_is_written(tmp_path):
    write_ball(tmp_path)
    shots = tmp_path / "shots.json"
    write_transforms(ball_cameras(2, 24), ["./far/test_00.png", "test_01"], shots)
    out = tmp_path / "deep" / "out"
    assert main(["reconstruct", str(tmp_path), "--out", str(out), "--mesh", "--cameras", str(shots), *QUICK]) == 0
    pictures = {f"{prefix}test_0{index}.png" for prefix in ("", "mesh_") for index in range(2)}
    assert {path.name for path in out.iterdir()} == {"splats.ply", "report.json", "mesh.glb", *pictures}
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "fit" and report["psnr"] > 10 and report["mesh"]["faces"] > 0
    assert len(ply.load(out / "splats.ply")) == report["splats"]
    for name in pictures:
        with Image.open(out / name) as image:
            assert image.mode == "RGBA" and image.size == (24, 24)
            pixels = np.asarray(image)
        assert pixels[12, 12, 3] > 200 and pixels[0, 0, 3] < 30


def test_straight_alpha():
    import torch

    from backend.rendering import Rendering

    premultiplied = torch.tensor([[[[0.25, 0.0, 0.5], [0, 0, 0]]]])
    rendering = Rendering(premultiplied, torch.tensor([[[0.5, 0.0]]]), torch.zeros(1, 1, 2))
    assert command_line.straight_rgba(rendering).tolist() == [[[[128, 0, 255, 128], [0, 0, 0, 0]]]]


def test_the_same_command_as_a_program(tmp_path):
    """Without a mesh there is none."""
    write_ball(tmp_path)
    command = [sys.executable, "-m", "backend", "reconstruct", "transforms.json", "--out", "out", *QUICK]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=DEADLINE)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"splats.ply", "report.json"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "lgm", "--weights", "no_such"], "weights: expected a file or one of lgm"),
        (["--weights", "x"], "weights: the model 'fit' has none"),
        (["--steps", "-1"], "steps: expected a number from 0"),
        (["--cameras", "nowhere.json"], "nowhere.json: expected a folder or a transforms.json"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--surprise"], "unrecognized arguments"),
    ],
)
def test_bad_options(tmp_path, capsys, arguments, words):
    write_ball(tmp_path)
    status, said = complaint(["reconstruct", tmp_path, "--out", tmp_path / "out", *arguments], capsys)
    assert status == 2 and words in said and "Traceback" not in said
    assert not (tmp_path / "out" / "report.json").exists()


def test_bad_files(tmp_path, capsys):
    status, said = complaint(["reconstruct", tmp_path / "none", "--out", tmp_path / "out"], capsys)
    assert status == 2 and "found nothing there" in said and said.count("\n") == 1
    write_ball(tmp_path)
    (tmp_path / "ball_2.png").unlink()
    status, said = complaint(["reconstruct", tmp_path, "--out", tmp_path / "out"], capsys)
    assert status == 2 and "frame 2: expected the image" in said
    (tmp_path / "file").write_text("")
    write_ball(tmp_path)
    status, said = complaint(["reconstruct", tmp_path, "--out", tmp_path / "file"], capsys)
    assert status == 2 and "file: expected a folder that can be made" in said


def test_pictures_of_the_same_name(tmp_path, capsys):
    write_ball(tmp_path)
    shots = tmp_path / "shots.json"
    write_transforms(ball_cameras(2), ["a/0.png", "b/0.png"], shots)
    status, said = complaint(["reconstruct", tmp_path, "--out", tmp_path / "out", "--cameras", shots], capsys)
    assert status == 2 and "found 0.png more than once" in said


def test_views_that_show_nothing(tmp_path, capsys):
    write_ball(tmp_path)
    for index in range(4):
        Image.new("RGBA", (32, 32)).save(tmp_path / f"ball_{index}.png")
    status, said = complaint(["reconstruct", tmp_path, "--out", tmp_path / "out"], capsys)
    assert status == 2 and "error: " in said and "Traceback" not in said
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mesh_that_fails_is_no_success(tmp_path, capsys, monkeypatch):
    def no_surface(*given: object, **options: object) -> None:
        raise ValueError("mesh: there is no surface")

    monkeypatch.setattr(command_line.pipelines.meshing, "extract_mesh", no_surface)
    write_ball(tmp_path)
    status, said = complaint(
        ["reconstruct", tmp_path, "--out", tmp_path / "out", "--mesh", *QUICK, "--steps", "1"], capsys
    )
    assert status == 1 and "there is no surface" in said and (tmp_path / "out" / "splats.ply").exists()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from backend.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_leaves_no_half_file(tmp_path):
    """The system lets no file grow beyond 3000 bytes, which writing meets as it meets a full disk."""
    write_ball(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "splats.ply").write_text("an older result")
    command = [sys.executable, "-c", LIMITED, "reconstruct", str(tmp_path), "--out", str(out), *QUICK]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in out.iterdir()} == {"splats.ply"}
    assert (out / "splats.ply").read_text() == "an older result"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of terminals")
def test_ctrl_c_cancels_cleanly(tmp_path):
    write_ball(tmp_path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "backend", "reconstruct", str(tmp_path), "--out", str(out), "--steps", "100000"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + DEADLINE
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and "interrupted; nothing was written" in said and "Traceback" not in said
    assert list(out.iterdir()) == []
