"""Start, stop, and what happens when the parent is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from blender_addon import backend_process
from blender_addon.backend_process import clean_environment, log_file, start_backend, tail
from tests import fakes


def wait_until(condition, seconds: float) -> float:
    """The seconds it took; fails after `seconds`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - start


def test_it_tells_its_address_and_stops(tmp_path):
    backend = fakes.launch(tmp_path)
    wait_until(lambda: backend.endpoint() is not None, fakes.DEADLINE)
    assert backend.exit_code() is None
    server = psutil.Process(backend.pid)
    wait_until(lambda: len(server.children()) > 0, fakes.DEADLINE)
    workers = server.children(recursive=True)
    start = time.monotonic()
    backend.stop()
    assert time.monotonic() - start < 2 and backend.exit_code() == 0
    wait_until(lambda: not any(worker.is_running() for worker in workers), 5)
    assert not backend._folder.exists()
    backend.stop()


def test_a_backend_that_hangs_is_ended_all_the_same(tmp_path):
    command = ("-c", "import time; time.sleep(60)")
    backend = start_backend(Path(sys.executable), log=tmp_path / "log", cache=tmp_path, command=command)
    start = time.monotonic()
    backend.stop()
    assert backend.exit_code() not in (None, 0) and time.monotonic() - start < 4


PARENT = """
import json, sys, time
from pathlib import Path
from tests import fakes
backend = fakes.launch(Path(sys.argv[1]))
while backend.endpoint() is None:
    time.sleep(0.02)
from blender_addon.client import Client
from blender_addon import protocol
client = Client(backend.endpoint())
client.send(protocol.Hello(protocol.VERSION, backend.token))
client.send(fakes.request("job", sys.argv[2]))
while not any(isinstance(message, protocol.Progress) and message.stage == "Fit" for message in client.poll()):
    time.sleep(0.02)
sys.stdout.write(json.dumps(backend.pid) + "\\n")
sys.stdout.flush()
time.sleep(60)
"""


@pytest.mark.parametrize("act", ["patient", "deaf"])
def test_it_leaves_within_five_seconds_when_its_parent_is_killed(tmp_path, act):
    """In the middle of a job, and the worker with it."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), act], cwd=fakes.ROOT, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        server = psutil.Process(json.loads(parent.stdout.readline()))
        family = [server, *server.children(recursive=True)]
        assert len(family) >= 2
        parent.kill()
        parent.wait()
        gone, left = psutil.wait_procs(family, timeout=5)
        assert not left and len(gone) == len(family)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a dead parent's id")
def test_it_leaves_even_when_somebody_holds_its_standard_input_open(tmp_path):
    """A pipe's end that was inherited by another program: only the parent's id tells."""
    keep_read, keep_write = os.pipe()
    script = f"""
import subprocess, sys, time
command = [sys.executable, "-m", "tests.fakes", "serve", "--endpoint-file", {str(tmp_path / "endpoint")!r}]
sys.stdout.write(str(subprocess.Popen(command, stdin={keep_read}).pid))
sys.stdout.flush()
time.sleep(3)
"""
    os.write(keep_write, b"token\n")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=fakes.ROOT,
        pass_fds=[keep_read],
        stdout=subprocess.PIPE,
        timeout=fakes.DEADLINE,
    )
    server = psutil.Process(int(done.stdout))
    psutil.wait_procs([server], timeout=5)
    running = server.is_running() and server.status() != psutil.STATUS_ZOMBIE
    os.close(keep_write)
    os.close(keep_read)
    assert not running


def test_the_environment_is_cleaned(tmp_path):
    kept = {"PATH": "/bin", "HOME": "/home/me", "OMP_NUM_THREADS": "3", "GAUSSMITH_PYTHON": "/z"}
    dropped = ("PYTHONPATH", "PYTHONHOME", "BLENDER_USER_SCRIPTS", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    given = kept | dict.fromkeys(dropped, "/blender")
    made = clean_environment(given, tmp_path)
    assert made.keys() & given.keys() == kept.keys()
    assert made["NUMBA_CACHE_DIR"] == str(tmp_path / "numba") and made["OMP_WAIT_POLICY"] == "passive"


def test_blenders_python_settings_do_not_reach_the_child(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    command = ("-c", "import os, sys; sys.exit(any(name in os.environ for name in ('PYTHONHOME', 'PYTHONPATH')))")
    backend = start_backend(Path(sys.executable), log=tmp_path / "log", cache=tmp_path, command=command)
    wait_until(lambda: backend.exit_code() is not None, fakes.DEADLINE)
    assert backend.exit_code() == 0
    backend.stop()


def test_a_python_that_is_not_there(tmp_path):
    before = set(Path(backend_process.tempfile.gettempdir()).glob("gaussmith-*"))
    with pytest.raises(OSError, match="nowhere"):
        start_backend(tmp_path / "nowhere", log=tmp_path / "log", cache=tmp_path)
    assert set(Path(backend_process.tempfile.gettempdir()).glob("gaussmith-*")) <= before


def test_its_output_is_the_log(tmp_path):
    command = ("-c", "import sys; sys.stdout.write('out\\n'); sys.stdout.flush(); sys.exit('the reason')")
    backend = start_backend(Path(sys.executable), log=tmp_path / "deep" / "log", cache=tmp_path, command=command)
    wait_until(lambda: backend.exit_code() is not None, fakes.DEADLINE)
    assert backend.exit_code() == 1 and backend.log_tail().splitlines()[-2:] == ["out", "the reason"]
    backend.stop()


def test_tail(tmp_path):
    path = tmp_path / "log"
    assert tail(path) == ""
    path.write_bytes(b"\xff" + b"".join(b"line %d\n" % index for index in range(5000)))
    assert tail(path, lines=2) == "line 4998\nline 4999"


def test_log_files_are_our_own_and_old_ones_go(tmp_path):
    old, fresh, other = tmp_path / "backend-1.log", tmp_path / "backend-2.log", tmp_path / "notes.log"
    for path in (old, fresh, other):
        path.write_text("x")
    for path in (old, other):
        os.utime(path, (0, 0))
    assert log_file(tmp_path).name == f"backend-{os.getpid()}.log"
    assert not old.exists() and fresh.exists() and other.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of terminals")
def test_ctrl_c_in_the_terminal_is_not_the_backends(tmp_path):
    backend = fakes.launch(tmp_path)
    assert os.getsid(backend.pid) == backend.pid
    os.kill(backend.pid, signal.SIGTERM)
    wait_until(lambda: backend.exit_code() is not None, 5)
    assert backend.exit_code() == -signal.SIGTERM
    backend.stop()
