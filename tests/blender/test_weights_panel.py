"""The checkpoints in the preferences: with the real command as a child process and a hub on loopback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import preferences, registration, shelf, studio, weights_panel  # noqa: E402
from tests.blender.test_panels import Layout  # noqa: E402
from tests.fake_hub import FakeHub, serving  # noqa: E402

SECONDS = 60.0
NAME = "openlrm-obj-small-1.1"
CONTENT = b"tensors" * 100_000


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub()) as running:
        repository = "zxhezexin/openlrm-obj-small-1.1"
        running.put(repository, "model.safetensors", CONTENT)
        running.put(repository, "config.json", b"{}", large=False)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def running(factory: Any, hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[studio.Studio]:
    """The extension, switched on and allowed online, with the backend that GAUSSMITH_PYTHON names."""
    if not os.environ.get(preferences.PYTHON_VARIABLE):
        pytest.skip(f"{preferences.PYTHON_VARIABLE} names no environment of the backend")
    monkeypatch.setenv("GAUSSMITH_WEIGHTS", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setattr(preferences, "online_allowed", lambda: True)
    registration.register()
    yield studio.current()
    registration.unregister()


def tick_until(running: studio.Studio, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, (running.shelf.action, running.problem)
        time.sleep(min(running.tick(), 0.02))


def finish(running: studio.Studio) -> None:
    """Until the task and the listing after it have ended."""
    tick_until(running, lambda: running.shelf.task is None and not (running.shelf.wanted and not running.shelf.listed))


def item(running: studio.Studio, name: str = NAME) -> shelf.Item:
    found = running.shelf.item(name)
    assert found is not None
    return found


def drawn() -> list[str]:
    found: list[str] = []
    settings = SimpleNamespace(bl_rna=preferences.GaussmithPreferences.bl_rna)
    weights_panel.draw_weights(Layout(found), settings)  # type: ignore[arg-type]
    return found


def listed(running: studio.Studio) -> None:
    drawn()
    finish(running)


def fetch(running: studio.Studio) -> None:
    listed(running)
    assert bpy.ops.gaussmith.fetch_weights(name=NAME, accept=True) == {"FINISHED"}
    finish(running)


def test_drawing_asks_for_the_list_once(running: studio.Studio) -> None:
    assert "gaussmith.fetch_weights" not in drawn() and running.shelf.task is None, "drawing starts nothing"
    running.tick()
    assert running.shelf.task is not None and running.shelf.action == "list"
    finish(running)
    shown = drawn()
    assert {"grm_u", "lgm", "long_lrm", "triposr", NAME} <= set(shown)
    fetched = [one for one in running.shelf.items or () if one.state != "shipped"]
    assert shown.count("gaussmith.fetch_weights") == len(fetched), "what ships is not fetched"
    for name in ("starter", "starter-views"):
        assert name in shown and item(running, name).state == "shipped"
    assert "gaussmith.verify_weights" not in shown and "weights_folder" in shown
    assert any("1.68 GB   commercial use allowed" in line for line in shown)
    assert any("no commercial use" in line for line in shown) and any("On the disk: 0.0 GB" in line for line in shown)
    running.tick()
    assert running.shelf.task is None, "the list is asked for once"


def test_a_download_from_licence_to_removal(running: studio.Studio, folder: Path) -> None:
    fetch(running)
    assert running.problem is None and running.notice == "The checkpoint is here."
    assert (folder / NAME / "model.safetensors").read_bytes() == CONTENT
    assert item(running).state == "fetched" and item(running).accepted and item(running).disk_bytes > len(CONTENT)
    shown = drawn()
    assert shown.count("gaussmith.verify_weights") == 1 and "gaussmith.remove_weights" in shown
    assert bpy.ops.gaussmith.verify_weights(name=NAME) == {"FINISHED"}
    finish(running)
    assert running.notice == "The checkpoint is sound."
    assert bpy.ops.gaussmith.remove_weights(name=NAME) == {"FINISHED"}
    finish(running)
    assert running.notice == "The checkpoint was removed." and not (folder / NAME).exists()
    assert item(running).state == "absent"


def test_nothing_is_downloaded_before_the_licence_is_accepted(
    running: studio.Studio, hub: FakeHub, folder: Path
) -> None:
    listed(running)
    with pytest.raises(RuntimeError, match="Accept the licence first"):
        bpy.ops.gaussmith.fetch_weights(name=NAME)
    assert running.shelf.task is None and not hub.requests and not folder.exists()


def test_what_was_accepted_once_is_not_asked_again(running: studio.Studio) -> None:
    fetch(running)
    bpy.ops.gaussmith.remove_weights(name=NAME)
    finish(running)
    assert bpy.ops.gaussmith.fetch_weights(name=NAME) == {"FINISHED"}
    finish(running)
    assert item(running).state == "fetched"


def test_the_dialog_shows_the_licence(running: studio.Studio) -> None:
    listed(running)
    found: list[str] = []
    weights_panel.draw_licence(Layout(found), item(running))
    text = " ".join(found)
    assert "CC BY-NC 4.0" in text and "Commercial use is not allowed" in text and "0.45 GB" in text
    assert "wm.url_open" in found
    weights_panel.draw_licence(Layout(found), None)


def test_offline_blender_downloads_nothing(running: studio.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(running)
    monkeypatch.setattr(preferences, "online_allowed", lambda: False)
    assert not bpy.ops.gaussmith.fetch_weights.poll() and bpy.ops.gaussmith.verify_weights.poll()
    assert weights_panel.why_not(online=True) == weights_panel.OFFLINE
    assert any("Allow Online Access" in line for line in drawn())


def test_stopping_and_going_on(running: studio.Studio, hub: FakeHub, folder: Path) -> None:
    hub.put("zxhezexin/openlrm-obj-small-1.1", "model.safetensors", bytes(30_000_000))
    hub.pause = 0.1
    listed(running)
    bpy.ops.gaussmith.fetch_weights(name=NAME, accept=True)
    tick_until(running, lambda: running.shelf.task is not None and running.shelf.task.fraction > 0)
    shown = drawn()
    assert any(line.startswith(f"{NAME}: Downloading model.safetensors") for line in shown)
    assert "gaussmith.cancel_weights" in shown
    assert not bpy.ops.gaussmith.fetch_weights.poll() and not bpy.ops.gaussmith.remove_weights.poll()
    began = time.monotonic()
    assert bpy.ops.gaussmith.cancel_weights() == {"FINISHED"}
    assert time.monotonic() - began < 3 and running.shelf.task is None
    assert "goes on where it was" in running.notice
    finish(running)
    assert item(running).state == "partial" and 0 < item(running).disk_bytes < 30_000_000
    hub.pause = 0.0
    bpy.ops.gaussmith.fetch_weights(name=NAME)
    finish(running)
    assert item(running).state == "fetched"
    assert any(asked.startswith("bytes=") for method, _, asked, _ in hub.requests if method == "GET")


@pytest.mark.parametrize(("refuses", "words"), [((503, ""), "status 503"), ((403, "GatedRepo"), "wants a login")])
def test_a_failure_is_a_sentence(running: studio.Studio, hub: FakeHub, refuses: tuple[int, str], words: str) -> None:
    hub.refuses = refuses
    fetch(running)
    assert running.problem is not None and words in running.problem.sentence
    assert item(running).state == "absent"


def test_without_a_backend_there_is_no_list(running: studio.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, "/nowhere")
    assert any("does not exist" in line for line in drawn())
    running.tick()
    assert running.shelf.task is None and not bpy.ops.gaussmith.list_weights.poll()
    with pytest.raises(OSError, match="/nowhere, which is no file"):
        running.begin_weights("list")


def test_a_backend_that_cannot_list_is_asked_once(running: studio.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its environment lacks a package."""
    monkeypatch.setenv(preferences.PYTHON_VARIABLE, sys.executable if Path(sys.executable).is_file() else "python")
    monkeypatch.setattr(preferences.backend_process, "SOURCE", Path("/"))
    listed(running)
    assert running.problem is not None and "could not handle its checkpoints" in running.problem.sentence
    drawn()
    running.tick()
    assert running.shelf.task is None and running.shelf.items is None


def test_leaving_ends_the_download(factory: Any, running: studio.Studio, hub: FakeHub) -> None:
    hub.put("zxhezexin/openlrm-obj-small-1.1", "model.safetensors", bytes(30_000_000))
    hub.pause = 0.1
    listed(running)
    bpy.ops.gaussmith.fetch_weights(name=NAME, accept=True)
    tick_until(running, lambda: running.shelf.task is not None and running.shelf.task.fraction > 0)
    task = running.shelf.task
    assert task is not None
    running.close()
    assert task._process.poll() is not None and running.shelf.task is None


def test_the_folder_of_the_preferences_reaches_the_backend(
    running: studio.Studio, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = SimpleNamespace(weights_folder=str(tmp_path / "other"), existing_python="", accelerator="CPU")
    monkeypatch.setattr(preferences, "found", lambda: chosen)
    listed(running)
    assert running.shelf.folder == str(tmp_path / "other")
    assert preferences.backend_variables() == {"GAUSSMITH_WEIGHTS": str(tmp_path / "other")}
