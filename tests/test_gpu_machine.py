"""The command for a GPU machine, with other programs in place of its stages; what it packs, and what it brings out."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gpu_machine
from backend import gpu_run, packing, shards
from backend.bad_input import BadInput
from backend.gpu_run import ROOT, Plan, carry_out, words
from backend.train_config import read_config

# Each stage writes its name into the folder of work; {} is replaced by what else it does.
STAGE = """
import json, os, pathlib, signal, subprocess, sys, time
work, out, name = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
with (work / "stages").open("a") as file:
    file.write(name + "\\n")
print("says", name, flush=True)
{}
"""
TRAIN = """
def stop(*_):
    (run / "stopped").touch()
    sys.exit(130)
run = work / "run"
signal.signal(signal.SIGTERM, stop)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "config.json").write_text("{}")
(run / "best.safetensors").write_bytes(b"network")
(run / "report.html").write_text("report")
with (run / "log.jsonl").open("a") as file:
    file.write('{"kind": "step", "step": 1}\\n{"kind": "validation", "step": 1, "psnr": 20.5}\\n')
"""
DOES = {
    "probe": "sys.stdout.write('ready')",
    "build": "",
    "tests": "",
    "bench": "(out / 'bench.json').write_text('{}')",
    "train": TRAIN,
    "export": "(work / 'best.safetensors').write_bytes((work / 'run/best.safetensors').read_bytes())",
    "scores": "(out / 'scores.json').write_text('{\"methods\": []}')",
}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """For ten seconds; and stages that do nothing but leave what they should."""
    monkeypatch.setattr(gpu_run, "POLL", 0.02)
    monkeypatch.setattr(gpu_run, "GRACE", 5.0)
    fake(monkeypatch, {})
    for name in ("out", "work", "bench"):
        (tmp_path / name).mkdir()
    now = time.monotonic()
    return Plan(
        out=tmp_path / "out",
        work=tmp_path / "work",
        config=gpu_machine.CONFIG,
        assets=None,
        bench=tmp_path / "bench",
        scores=now + 9,
        end=now + 10,
        whole=0.0,
        environment=dict(os.environ),
    )


def fake(monkeypatch: pytest.MonkeyPatch, other: dict[str, str]) -> None:
    """Stages as in DOES, but for those that do something else."""

    def command(plan: Plan, stage: str) -> list[str]:
        # the probe's only words are its answer
        does = (DOES | other)[stage]
        told = does if stage == "probe" else STAGE.replace("{}", does, 1)
        head = "import sys\n" if stage == "probe" else ""
        return [sys.executable, "-S", "-c", head + told, str(plan.work), str(plan.out), stage]

    monkeypatch.setattr(gpu_run, "words", command)


def stages(plan: Plan) -> list[str]:
    return (plan.work / "stages").read_text().split()


# ---- the order of things


def test_everything_is_done_and_brought_out(plan: Plan) -> None:
    assert carry_out(plan) == 0
    assert stages(plan) == ["tests", "bench", "train", "export", "scores"]
    assert {path.name for path in plan.out.iterdir()} == {
        *("test.log", "bench.json", "train.log", "report.html", "scores.json", "shards"),
    }
    assert json.loads((plan.out / "scores.json").read_text()) == {"methods": []}
    log = (plan.out / "test.log").read_text()
    assert "says tests" in log and "tests: done" in log and "bench: done" in log
    shards.join(plan.out / "shards/best.safetensors.json", plan.work / "joined")
    assert (plan.work / "joined").read_bytes() == b"network"


def test_while_gsplat_compiles_it_trains_already(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    build = "while not (work / 'run/report.html').exists(): time.sleep(0.02)"
    train = TRAIN + "if not (work / 'run/stopped').exists(): time.sleep(30)"
    fake(monkeypatch, {"probe": "sys.stdout.write('uncompiled')", "build": build, "train": train})
    assert carry_out(plan) == 0
    told = stages(plan)
    assert sorted(told[:2]) == ["build", "train"] and told[2:] == ["tests", "bench", "train", "export", "scores"]
    assert (plan.run / "stopped").exists(), "it could write its checkpoint"


def test_the_first_part_leaves_time_for_tests_and_bench(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(gpu_run, "words", lambda plan, stage: asked.append(plan.scores) or [sys.executable, "-c", ""])
    gpu_run.train_while_building(plan)
    assert min(asked) == pytest.approx(plan.scores - 120 - 120 - 30) and max(asked) == plan.scores


def test_a_stage_that_fails_or_takes_too_long_ends_alone(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it has started."""
    child = "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])"
    late = f"(out / 'child').write_text(str({child}.pid)); time.sleep(60)"
    fake(monkeypatch, {"tests": late, "bench": "sys.exit(3)", "scores": "sys.exit(1)"})
    monkeypatch.setattr(gpu_run, "TEST_SECONDS", 1.0)
    assert carry_out(plan) == 0
    log = (plan.out / "test.log").read_text()
    assert "tests: stopped: its time was over" in log and "bench: ended with status 3" in log
    assert stages(plan)[-2:] == ["export", "scores"]
    assert not _runs(int((plan.out / "child").read_text()))
    assert json.loads((plan.out / "scores.json").read_text())["validations"][0]["psnr"] == 20.5


def _runs(number: int) -> bool:
    """Whether a process is there, and no more than a name that its parent has not asked for."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_training_stops_in_time_for_the_scores(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, {"train": TRAIN + "time.sleep(60)"})
    monkeypatch.setattr(gpu_run, "GRACE", 0.5)
    began = time.monotonic()
    soon = replace(plan, scores=began + 1.5, end=began + 30)
    assert carry_out(soon) == 0
    assert (soon.run / "stopped").exists() and stages(soon)[-1] == "scores" and time.monotonic() - began < 15


@pytest.mark.parametrize(("status", "wanted"), [(0, 0), (1, 1), (2, 2), (130, 0), (-9, 1)])
def test_the_status_is_that_of_the_training(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, status: int, wanted: int
) -> None:
    ends = f"os.kill(os.getpid(), {-status})" if status < 0 else f"sys.exit({status})"
    fake(monkeypatch, {"train": TRAIN + ends})
    assert carry_out(plan) == wanted
    assert stages(plan)[-1] == "scores", "what there is is judged all the same"


def test_results_are_renewed_while_it_trains(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = "until = time.monotonic() + 8\n"
    seen += "while not (out / 'shards').exists() and time.monotonic() < until: time.sleep(0.02)"
    told = "\n(out / 'early').write_text(str((out / 'shards').exists()))"
    fake(monkeypatch, {"train": TRAIN + seen + told})
    monkeypatch.setattr(gpu_run, "REFRESH", 0.1)
    assert carry_out(plan) == 0
    assert (plan.out / "early").read_text() == "True"
    assert stages(plan).count("export") == 1, "the same network is not exported again"


def test_an_interruption_brings_out_what_there_is(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, {"train": TRAIN + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"})
    with gpu_machine._stoppable():
        assert carry_out(plan) == 130
    assert (plan.run / "stopped").exists() and (plan.out / "shards/best.safetensors.json").is_file()
    assert "scores" not in stages(plan) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_without_objects_to_judge_by_the_scores_are_the_runs_own(plan: Plan) -> None:
    (plan.out / "scores.json").write_text('{"methods": ["of an earlier call"]}')
    assert carry_out(replace(plan, bench=None)) == 0
    assert "scores" not in stages(plan)
    told = json.loads((plan.out / "scores.json").read_text())
    assert told == {"validations": [{"kind": "validation", "step": 1, "psnr": 20.5}]}


# ---- the real commands


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_a_new_run_gets_the_assets_and_the_minutes_there_are(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plan = replace(plan, scores=time.monotonic() + 630, assets=ROOT / "assets")
    command = words(plan, "train")
    file = Path(command[command.index("train") + 1])
    assert read_config(file).data.assets == Path("assets")
    assert float(option(command, "--minutes")) == pytest.approx(10, abs=0.1)
    assert float(option(command, "--stop-after")) == pytest.approx(10.5, abs=0.1)
    assert float(option(words(replace(plan, whole=40), "train"), "--minutes")) == 40
    words(replace(plan, assets=None), "train")
    assert read_config(file).data.assets is None


def test_a_run_that_is_there_goes_on_as_it_was(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plan.run.mkdir()
    (plan.run / "config.json").write_text("{}")
    command = words(plan, "train")
    assert str(plan.run / "config.json") in command and "--minutes" not in command and "--stop-after" in command


def test_the_tests_are_those_that_need_a_gpu(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    files = {Path(word).name for word in words(plan, "tests") if word.endswith(".py")}
    assert {"test_rendering.py", "test_mamba.py"} <= files and "test_cameras.py" not in files


def test_what_is_trained_there() -> None:
    config = read_config(gpu_machine.CONFIG, minutes=12)
    assert config.minutes == 12 and config.precision == "bfloat16" and config.workers > 0
    assert config.data.assets is not None and not config.data.assets.is_absolute()
    first, second = config.stages[:2]
    pictures = ("rgb", "alpha", "perceptual")
    assert not any(first.weights[name] for name in pictures), "it can train before gsplat is compiled"
    assert first.until <= 0.1 and all(second.weights[name] for name in pictures)


# ---- the machine


def test_without_a_gpu_it_stops_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_machine, "carry_out", lambda plan: pytest.fail("nothing can be done"))
    assert gpu_machine.main(["run", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 2
    said = capsys.readouterr().err
    assert "expected an NVIDIA GPU" in said and said.count("\n") == 1 and not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "expected a Python with PyTorch, found none in" in gpu_machine.cuda_problem()


def test_the_time_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(gpu_machine, "cuda_problem", lambda: "")
    monkeypatch.setattr(gpu_machine, "install", lambda *_: None)
    monkeypatch.setattr(gpu_machine, "carry_out", lambda plan: plans.append(plan) or 0)
    (tmp_path / "objects").mkdir()
    run = [
        "run",
        "--out",
        str(tmp_path / "out"),
        "--work",
        str(tmp_path / "work"),
        "--bench",
        str(tmp_path / "objects"),
    ]
    for minutes in ("5", "25"):
        assert gpu_machine.main([*run, "--minutes", minutes]) == 0
    now = time.monotonic()
    assert [plan.end - now for plan in plans] == pytest.approx([300, 1500], abs=10)
    assert [plan.end - plan.scores for plan in plans] == pytest.approx([60, 240])
    assert str(tmp_path / "work/packages") in plans[0].environment["PYTHONPATH"].split(os.pathsep)
    assert gpu_machine.main([*run, "--assets", str(tmp_path / "none")]) == 2


def write_wheel(folder: Path, name: str) -> None:
    told = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/__init__.py", "HERE = True\n" * 100)
        wheel.writestr(f"{told}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{told}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{told}/RECORD", "".join(f"{file},,\n" for file in wheel.namelist()))


def test_packages_that_are_missing_come_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine, "NEEDED", ("numpy", "gaussmith-needed"))
    monkeypatch.setattr(gpu_machine, "WANTED", ("gaussmith-wanted",))
    wheels, packages, log = tmp_path / "wheels", tmp_path / "packages", tmp_path / "log"
    wheels.mkdir()
    with pytest.raises(BadInput, match="expected the packages gaussmith-needed, found"):
        gpu_machine.install(wheels, packages, log)
    write_wheel(wheels, "gaussmith_needed")
    path = wheels / "gaussmith_needed-1.0-py3-none-any.whl"
    path.write_bytes(packing.stored(path.read_bytes()))  # as it comes out of an archive
    gpu_machine.install(wheels, packages, log)
    assert (packages / "gaussmith_needed/__init__.py").is_file()
    assert "packages that are missing: gaussmith-wanted" in log.read_text()


# ---- what travels there


def git(folder: Path, *what: str) -> None:
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=b", *what], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name, text in {"a.py": "a", "docs/b.png": "b", ".gitignore": "secret\n", "secret": "c", "new.py": "d"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", "a.py", "docs", ".gitignore")
    return root


def test_an_archive_holds_the_repository_and_folders_beside_it(repository: Path, tmp_path: Path) -> None:
    models = tmp_path / "bank/models"
    models.mkdir(parents=True)
    numbers = np.tile(np.arange(1000, dtype=np.uint16), 20)
    np.savez_compressed(models / "one.npz", numbers=numbers)
    out = tmp_path / "all.tar.xz"
    sizes = packing.pack(repository, {"assets": tmp_path / "bank"}, out)
    with tarfile.open(out) as archive:
        assert archive.getnames() == [".gitignore", "a.py", "new.py", "assets/models/one.npz"]
        packed = archive.extractfile("assets/models/one.npz")
        assert packed is not None
        content = packed.read()
    assert (np.load(io.BytesIO(content))["numbers"] == numbers).all()
    assert len(content) == sizes["assets"] > numbers.nbytes, "compressed once, by the archive alone"
    before = out.read_bytes()
    packing.pack(repository, {"assets": tmp_path / "bank"}, out)
    assert out.read_bytes() == before


def test_an_archive_that_is_too_large_is_not_written(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"all\.tar\.xz: expected at most 100 bytes, found \d+"):
        packing.pack(repository, {}, tmp_path / "all.tar.xz", limit=100)
    with pytest.raises(BadInput, match="none: expected a folder of wheels"):
        packing.pack(repository, {"wheels": tmp_path / "none"}, tmp_path / "all.tar.xz")
    (tmp_path / "plain").mkdir()
    with pytest.raises(BadInput, match="plain: expected a git repository"):
        packing.pack(tmp_path / "plain", {}, tmp_path / "all.tar.xz")
    assert not (tmp_path / "all.tar.xz").exists() and len(list(tmp_path.iterdir())) == 2


def test_models_are_read_as_they_are_packed(shared_folder: Path, tmp_path: Path) -> None:
    from backend.assets import models_in, read_asset

    path = models_in(shared_folder / "assets")[0]
    (tmp_path / path.name).write_bytes(packing.stored(path.read_bytes()))
    packed, asset = read_asset(tmp_path / path.name), read_asset(path)
    for name in ("vertices", "faces", "uvs", "normals", "face_material"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(asset, name))
    for one, other in zip(packed.materials, asset.materials, strict=True):
        assert one.base_color == other.base_color
        assert (one.texture is None) == (other.texture is None)
        if one.texture is not None and other.texture is not None:
            np.testing.assert_array_equal(one.texture, other.texture)


# ---- what comes back


def test_parts_are_put_together(tmp_path: Path) -> None:
    file, folder = tmp_path / "best.bin", tmp_path / "shards"
    file.write_bytes(bytes(range(250)))
    assert len(shards.split(file, folder, part=40)) == 8
    assert max(path.stat().st_size for path in folder.glob("best.bin.[0-9]*")) == 40
    file.write_bytes(bytes(range(100)))
    written = shards.split(file, folder, part=40)
    assert sorted(folder.iterdir()) == sorted(written), "no part of what was there before is left"
    assert gpu_machine.main(["join", str(folder / "best.bin.json"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_nothing_wrong_is_put_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder, again = tmp_path / "best.bin", tmp_path / "shards", tmp_path / "again"
    file.write_bytes(bytes(range(100)))
    assert gpu_machine.main(["split", str(file), str(folder)]) == 0
    manifest = folder / "best.bin.json"

    def refused() -> str:
        assert gpu_machine.main(["join", str(manifest), str(again)]) == 2 and not again.exists()
        return capsys.readouterr().err

    (folder / "best.bin.00").write_bytes(bytes(100))
    assert "best.bin.00: expected the sum" in refused()
    (folder / "best.bin.00").unlink()
    assert "best.bin.00: expected a part of 100 bytes, found no such file" in refused()
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"parts": []}))
    assert "expected parts whose sum is" in refused()
    manifest.write_text(json.dumps(told | {"parts": [told["parts"][0] | {"name": "../best.bin"}]}))
    assert "expected a manifest of parts beside it" in refused()
    for text in ("{", "[]", "{}"):
        manifest.write_text(text)
        assert "expected a manifest of parts" in refused()
