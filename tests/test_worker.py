"""What a job's end is told as, and what a job is asked while it runs."""

from __future__ import annotations

import ast
import importlib
import time
import typing
from collections import deque

import numpy as np
import pytest

from backend import worker
from backend.monitor import JobCancelled
from blender_addon import protocol
from tests import fakes


class RecordingClient:
    """In place of the socket: what is sent is kept, what is to be heard is put into `incoming`."""

    def __init__(self) -> None:
        self.sent: list[protocol.Message] = []
        self.incoming: deque[protocol.Message] = deque()

    def send(self, message: protocol.Message) -> None:
        protocol.encode(message)
        self.sent.append(message)

    def poll(self) -> list[protocol.Message]:
        heard, self.incoming = list(self.incoming), deque()
        return heard


def run(act: fakes.Act, incoming: typing.Iterable[protocol.Message] = ()) -> list[protocol.Message]:
    client = RecordingClient()
    client.incoming.extend(incoming)
    worker.run_job(typing.cast("typing.Any", client), fakes.request("job"), typing.cast("typing.Any", act))
    return client.sent


def exception_classes() -> set[str]:
    """The full names of all exception classes that the backend or the code it shares with the extension defines."""
    shared = ("protocol", "client", "ply", "atomic_file")
    files = [*(fakes.ROOT / "backend").rglob("*.py"), *(fakes.ROOT / "blender_addon" / f"{name}.py" for name in shared)]
    found = set()
    for file in files:
        module = ".".join(file.relative_to(fakes.ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.bases:
                loaded = getattr(importlib.import_module(module), node.name, None)
                if isinstance(loaded, type) and issubclass(loaded, BaseException):
                    found.add(f"{module}.{node.name}")
    return found


def test_every_exception_we_define_has_its_kind():
    """JobCancelled is no failure: run_job answers it itself. Training is no job."""
    ours = {name for name in worker.KINDS if name.split(".")[0] in ("backend", "blender_addon")}
    assert ours == exception_classes() - {"backend.monitor.JobCancelled", "backend.train.Diverged"}
    assert set(worker.KINDS.values()) <= set(typing.get_args(protocol.FailureKind))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (OSError(28, "No space left on device"), "disk_full"),
        (OSError(27, "File too large"), "disk_full"),
        (OSError(13, "Permission denied"), "internal"),
        (ValueError("shapes (3,) and (4,) not aligned"), "internal"),
        (RuntimeError("size mismatch"), "internal"),
        (protocol.ProtocolError("x"), "internal"),
    ],
)  # fmt: skip
def test_kinds(error, kind):
    assert worker.kind_of(error) == kind


def test_kinds_of_classes_that_need_torch():
    import torch

    from backend.cameras import BadInput
    from backend.hull import NothingSeen

    assert worker.kind_of(torch.OutOfMemoryError("CUDA out of memory")) == "out_of_memory"
    assert worker.kind_of(BadInput("steps")) == "bad_request"
    assert worker.kind_of(NothingSeen("nothing")) == "nothing_seen"


def test_a_job_ends_with_one_last_word():
    for act in (fakes.works, fakes.ACTS["internal"], fakes.ACTS["out_of_memory"]):
        last = [one for one in run(act) if isinstance(one, protocol.Done | protocol.Failed | protocol.Cancelled)]
        assert len(last) == 1


def test_a_failure_carries_its_traceback_apart_from_its_message():
    failed = run(fakes.ACTS["internal"])[-1]
    assert isinstance(failed, protocol.Failed)
    assert failed.message == "'a bug'" and "Traceback" in failed.detail and "fakes.py" in failed.detail


def test_cancel_is_heard_at_the_next_step():
    sent = run(fakes.patient, [protocol.Cancel("another"), protocol.Cancel("job")])
    assert sent == [protocol.Cancelled("job")]


def test_finish_ends_the_work_with_a_result():
    sent = run(fakes.patient, [protocol.Finish("job")])
    assert [type(one) for one in sent] == [protocol.Splats, protocol.Done]


def test_a_result_that_does_not_fit_its_declaration_is_a_failure():
    def act(job, monitor):
        yield protocol.Preview(job.job_id, np.zeros((2, 2, 4), np.float32))

    failed = run(act)[-1]
    assert isinstance(failed, protocol.Failed) and failed.kind == "internal" and "uint8" in failed.message


def monitor_of(shares: dict[str, float]) -> tuple[worker.JobMonitor, RecordingClient]:
    client = RecordingClient()
    return worker.JobMonitor(typing.cast("typing.Any", client), "job", shares), client


def test_progress_is_thinned_but_never_at_the_ends():
    monitor, client = monitor_of({"Fit": 1})
    for step in range(1000):
        monitor.progress("Fit", step + 1, 1000)
    steps = [one.step for one in client.sent if isinstance(one, protocol.Progress)]
    assert steps[0] == 1 and steps[-1] == 1000 and len(steps) < 20


def test_the_bar_of_the_whole_job_never_runs_backwards():
    monitor, client = monitor_of({"Fit": 80.0, "Mesh": 20.0})
    for stage, step, total in [
        ("Fit", 0, 2),
        ("Fit", 2, 2),
        ("Odd", 0, 9),
        ("Mesh", 1, 2),
        ("Fit", 0, 2),
        ("Mesh", 2, 2),
    ]:
        monitor.progress(stage, step, total)
    fractions = [one.fraction for one in client.sent if isinstance(one, protocol.Progress)]
    assert fractions == pytest.approx([0, 0.8, 0.8, 0.9, 0.9, 1.0])


def test_a_stage_that_is_left_out_takes_no_part_of_the_bar():
    monitor, client = monitor_of({"depth": 50.0, "fit": 40.0, "Mesh": 10.0})
    monitor.progress("fit", 1, 2)
    monitor.progress("Mesh", 1, 1)
    fractions = [one.fraction for one in client.sent if isinstance(one, protocol.Progress)]
    assert fractions == pytest.approx([0.4, 1.0])


def test_previews_are_thinned():
    monitor, client = monitor_of({})
    start = time.monotonic()
    while time.monotonic() - start < 0.2:
        monitor.preview(np.zeros((1, 1, 4), np.uint8))
    assert len(client.sent) == 1


def test_a_monitor_raises_for_its_own_job_only():
    monitor, client = monitor_of({})
    client.incoming.append(protocol.Cancel("other"))
    monitor.progress("Fit", 0, 1)
    client.incoming.append(protocol.Cancel("job"))
    with pytest.raises(JobCancelled):
        monitor.finish_early()


@pytest.mark.skipif(not hasattr(worker.os, "sysconf"), reason="POSIX tells the memory's size so")
def test_memory_of_this_machine():
    assert 2**28 < worker.memory_bytes() < 2**50
