"""`python -m backend weights`: as a function with a transport that is none, and as a program with a loopback hub."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import downloads, weights, weights_command
from backend.__main__ import main, parser
from backend.hub import Hub, RemoteFile, TransferError
from tests.fake_hub import FakeHub, serving
from tests.fakes import ROOT

pytestmark = pytest.mark.usefixtures("loopback_only")

DEADLINE = 30.0


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """Holds what the catalogue calls openlrm-obj-small-1.1, at another size."""
    with serving(FakeHub()) as running:
        repository = "zxhezexin/openlrm-obj-small-1.1"
        running.put(repository, "model.safetensors", b"tensors" * 100_000)
        running.put(repository, "config.json", b'{"transformer_dim": 512}', large=False)
        yield running


NAME = "openlrm-obj-small-1.1"


class NoTransport:
    """Fails the test that asks it, or raises what it is given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or AssertionError("nothing was to be fetched")

    def describe(self, repository: str, file: str, revision: str) -> RemoteFile:
        raise self.error

    def append(self, remote: RemoteFile, path: Path, progress: Callable[[int], None]) -> None:
        raise self.error


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def given(text: str) -> argparse.Namespace:
    return parser().parse_args(["weights", *text.split()])


def run(text: str, error: BaseException | None = None) -> int:
    return weights_command.weights(given(text), NoTransport(error))


def test_the_documented_forms():
    for action in ("list", "fetch", "verify", "remove"):
        assert given(action).action == action and given(f"{action} lgm").name == "lgm"
    assert given("fetch lgm --accept-licence --json").accept_licence
    with pytest.raises(SystemExit) as error:
        main(["weights", "burn"])
    assert error.value.code == 2


def test_listing(capsys):
    assert run("list") == 0
    text = capsys.readouterr().out
    assert all(f"\n{entry.name} " in text for entry in weights.CATALOGUE) and "GiB free" in text
    assert run("list triposr") == 0
    text = capsys.readouterr().out
    assert "weight_licence  MIT\n" in text and "absent" in text and "grm_u" not in text


def test_listing_as_json(capsys, folder):
    assert run("list --json") == 0
    (line,) = said(capsys)
    assert line["done"] is True and line["folder"] == str(folder) and line["free_bytes"] > 0
    found = {entry["name"]: entry for entry in line["weights"]}
    assert set(found) == {entry.name for entry in weights.CATALOGUE}
    assert found["long_lrm"]["commercial"] == "no" and "Adobe" in found["long_lrm"]["licence"]
    assert found["lgm"]["state"] == "absent" and found["lgm"]["bytes"] == 830_126_160
    assert found["starter"]["state"] == "shipped" and found["starter"]["disk_bytes"] == found["starter"]["bytes"] > 1e6
    assert found["starter"]["path"] == str(ROOT / "backend" / "starter" / "grm.safetensors")
    assert not folder.exists(), "listing makes nothing"


def test_a_part_is_listed_as_one(capsys, folder):
    (folder / "lgm").mkdir(parents=True)
    (folder / "lgm" / "x.part").write_bytes(bytes(123))
    run("list lgm --json")
    (line,) = said(capsys)
    assert (line["weights"][0]["state"], line["weights"][0]["disk_bytes"]) == ("partial", 123)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fetch", "weights fetch: expected the NAME of a checkpoint, found none"),
        ("remove", "weights remove: expected the NAME"),
        ("fetch nothing", "found 'nothing'"),
        ("fetch lgm", "expected --accept-licence for lgm"),
        ("verify lgm", "expected lgm to be fetched"),
        ("fetch starter", "expected a checkpoint that is fetched; starter ships"),
        ("verify starter", "starter ships"),
        ("remove starter", "starter ships"),
    ],
)
def test_bad_input(capsys, text, words):
    assert run(text) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: weights") and words in errors and errors.count("\n") == 1
    assert run(f"{text} --json") == 2
    (line,) = said(capsys)
    assert line["failure"] == "bad_input" and words in line["sentence"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (TransferError("offline", "the hub cannot be reached"), 1, "offline"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/w"), 1, "disk_full"),
        (OSError(13, "Permission denied", "/w"), 1, "failed"),
    ],
)
def test_failures(capsys, error, status, kind):
    assert run("fetch lgm --accept-licence --json", error) == status
    assert said(capsys)[-1]["failure"] == kind
    assert run("fetch lgm", error) == status, "the licence stays accepted"
    assert capsys.readouterr().err.count("error: ") == 1


def test_nothing_is_accepted_for_a_checkpoint_there_is_not(capsys, folder):
    assert run("fetch nothing --accept-licence") == 2
    assert not (folder / downloads.LICENCES).exists()


def test_fetch_verify_remove(capsys, folder, hub, monkeypatch):
    monkeypatch.setattr(weights_command, "Hub", lambda: Hub(hub.address))
    monkeypatch.setattr(weights_command, "JSON_SECONDS", 0.0)
    assert main(["weights", "fetch", NAME, "--accept-licence", "--json"]) == 0
    lines = said(capsys)
    fractions = [line["fraction"] for line in lines[:-1]]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 3
    assert lines[-1]["done"] and lines[-1]["weights"][0]["state"] == "fetched"
    path = Path(lines[-1]["weights"][0]["path"])
    assert path.read_bytes() == b"tensors" * 100_000 and path == weights.resolve(NAME, "lrm")[0]
    assert main(["weights", "verify"]) == 0 and main(["weights", "verify", NAME]) == 0
    capsys.readouterr()
    path.write_bytes(b"Tensors" * 100_000)
    assert main(["weights", "verify", "--json"]) == 1
    assert said(capsys)[-1]["failure"] == "damaged"
    assert main(["weights", "remove", NAME]) == 0 and not path.parent.exists()
    assert "absent" in capsys.readouterr().out


# ---- as a program


def command(text: str) -> list[str]:
    return [sys.executable, "-m", "backend", "weights", *text.split()]


def environment(hub: FakeHub) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": ""}


def test_the_program(hub):
    done = subprocess.run(
        command(f"fetch {NAME} --accept-licence --json"),
        cwd=ROOT,
        env=environment(hub),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["done"] and done.stderr == ""
    offline = subprocess.run(
        command("fetch lgm --accept-licence"),
        cwd=ROOT,
        env={**environment(hub), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert offline.returncode == 1 and "HF_HUB_OFFLINE is set, so the hub was not asked" in offline.stderr
    assert "Traceback" not in offline.stderr


def test_the_program_leaves_with_its_parent(hub, folder):
    """Its standard input closes in the middle of a download, which the next one goes on with."""
    hub.put("ashawkey/LGM", "model_fp16_fixrot.safetensors", bytes(40_000_000))
    hub.pause = 0.05
    with subprocess.Popen(
        command("fetch lgm --accept-licence --json --with-parent"),
        cwd=ROOT,
        env=environment(hub),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("fraction", 0) > 0:
                break
        process.stdin.close()
        began = time.monotonic()
        assert process.wait(DEADLINE) == 130 and time.monotonic() - began < 5
    (part,) = (folder / "lgm").glob("*.part")
    assert 0 < part.stat().st_size < 40_000_000


def test_listing_loads_neither_torch_nor_the_hub():
    script = "import sys\nfrom backend.__main__ import main\nmain(['weights', 'list', '--json'])\n"
    script += "sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0 and not {"torch", "numpy", "huggingface_hub", "httpx2"} & set(done.stderr.split())
