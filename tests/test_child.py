"""Programs that tell what they do as lines of JSON."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from blender_addon.backend_process import clean_environment
from blender_addon.child import Child

DEADLINE = 20.0


def start(script: str, **options: object) -> Child:
    return Child([sys.executable, "-c", script], cancelled="Cancelled.", ended="Ended.", **options)  # type: ignore[arg-type]


def wait(child: Child) -> list[str]:
    """The stages until the end."""
    stages, deadline = [], time.monotonic() + DEADLINE
    while not child.pump():
        assert time.monotonic() < deadline
        stages += [child.stage] if stages[-1:] != [child.stage] else []
        time.sleep(0.01)
    assert child.pump(), "asked again it stays over"
    assert not child._folder.exists(), "nothing is left behind"
    return stages


TELLS = """
import time
print('{"stage": "One", "fraction": 0.5}', flush=True)
print('a warning', flush=True)
print('[1]', flush=True)
time.sleep(0.3)
print('{"stage": "Two", "fraction": 0.25}', flush=True)
print('{"done": true, "weights": [1]}', flush=True)
time.sleep(0.3)
"""


def test_what_it_compiles_is_kept_where_the_backend_will_look(tmp_path):
    says = "import json, os; print(json.dumps({'done': True, 'cache': os.environ['NUMBA_CACHE_DIR']}), flush=True)"
    child = start(says, cache=tmp_path)
    wait(child)
    assert child.told["cache"] == clean_environment({}, tmp_path)["NUMBA_CACHE_DIR"]
    child = start(says)
    wait(child)
    assert Path(child.told["cache"]).parent == child._folder, "and goes with it where nobody says"


def test_what_it_tells():
    child = start(TELLS)
    stages = wait(child)
    assert "One" in stages and child.stage == "Two"
    assert child.done and child.fraction == 1.0 and child.told["weights"] == [1] and child.failure is None


def test_a_failure_it_tells():
    child = start('print(\'{"failure": "offline", "sentence": "No.", "detail": "x"}\')')
    wait(child)
    assert child.failure is not None and (child.failure.kind, child.failure.sentence) == ("offline", "No.")
    assert not child.done


def test_an_end_without_a_word():
    child = start("raise SystemExit('broken')")
    wait(child)
    assert child.failure is not None and child.failure.sentence == "Ended." and "broken" in child.failure.detail


@pytest.mark.parametrize(
    ("script", "most"), [("import sys; sys.stdin.read()", 2.0), ("import time; time.sleep(60)", 5.0)]
)
def test_cancelling(script, most):
    """A program that does not leave when its standard input closes is ended."""
    child = start(script)
    began = time.monotonic()
    child.cancel()
    child.cancel()
    assert time.monotonic() - began < most
    assert child.failure is not None and child.failure.kind == "cancelled" and child.pump()
    assert not child._folder.exists()


def test_cancelling_after_the_end_changes_nothing():
    child = start("print('{\"done\": true}', flush=True)")
    child._process.wait(DEADLINE)
    child.cancel()
    assert child.done and child.failure is None


def test_folder_and_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("BLENDER_SECRET", "1")
    script = """
import json, os
names = ("GAUSSMITH_WEIGHTS", "BLENDER_SECRET")
print(json.dumps({"done": True, "folder": os.getcwd(), "names": [os.environ.get(name) for name in names]}))
"""
    child = start(script, folder=tmp_path, variables={"GAUSSMITH_WEIGHTS": "/w"})
    wait(child)
    assert Path(child.told["folder"]).samefile(tmp_path) and child.told["names"] == ["/w", None]


def test_a_program_there_is_not(tmp_path):
    with pytest.raises(OSError):
        Child([str(tmp_path / "none")], cancelled="", ended="")
