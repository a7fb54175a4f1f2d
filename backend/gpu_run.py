"""The stages of a call of gpu_machine.py, each a process of its own that may fail without ending the others:

    gsplat not compiled yet:   build and train at once -> tests -> bench -> train on -> scores
    else:                      tests -> bench -> train -> scores

The results are brought out while it trains and whatever happens: the machine may be taken away at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from backend import shards
from backend.exit_status import BAD_INPUT, BROKEN, INTERRUPTED, SUCCESS
from blender_addon.atomic_file import replacing

Stage = Literal["probe", "build", "tests", "bench", "train", "export", "scores"]

ROOT = Path(__file__).resolve().parents[1]
BUILD_SECONDS, TEST_SECONDS, BENCH_SECONDS = 600.0, 120.0, 120.0  # at most
START_SECONDS = 30.0  # that a start of the training takes until its own clock runs
GRACE = 60.0  # seconds to write a checkpoint when told to stop
REFRESH = 120.0  # seconds between two looks at what can be brought out
POLL = 0.5
METHODS = ("grm", "grm+10", "grm+100")
PROBE = (  # says whether gsplat has what it compiles
    "import importlib.util, sys; from backend.rendering import gsplat_problem as problem; "
    "sys.stdout.write('absent' if not importlib.util.find_spec('gsplat') else 'uncompiled' if problem() else 'ready')"
)


@dataclass(frozen=True)
class Plan:
    """What is done, and by when.

    out, work    folders, absolute: of results, and of work, which holds the run
    config       what to train, for a new run
    assets       models to train on, or None
    bench        objects for the scores, or None
    scores, end  when training must have ended, and everything, by time.monotonic
    whole        minutes that a new run is laid out for; 0: as many as there are
    environment  of the processes
    """

    out: Path
    work: Path
    config: Path
    assets: Path | None
    bench: Path | None
    scores: float
    end: float
    whole: float
    environment: Mapping[str, str]

    @property
    def run(self) -> Path:
        return self.work / "run"

    @property
    def best(self) -> Path:
        return self.work / "best.safetensors"


def carry_out(plan: Plan) -> int:
    """All stages. The training's status."""
    (plan.out / "scores.json").unlink(missing_ok=True)  # of an earlier call
    status = INTERRUPTED
    try:
        if build_is_due(plan):
            train_while_building(plan)
        bounded(plan, "tests", plan.out / "test.log", TEST_SECONDS)
        bounded(plan, "bench", plan.out / "test.log", BENCH_SECONDS)
        status = train(plan)
        bring_out(plan)
        if plan.bench and plan.best.is_file():
            bounded(plan, "scores", plan.out / "train.log", plan.end - time.monotonic())
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        bring_out(plan)
    return status


def words(plan: Plan, stage: Stage) -> list[str]:
    """The command of a stage."""
    backend = [sys.executable, "-m", "backend"]
    match stage:
        case "probe":
            return [sys.executable, "-c", PROBE]
        case "build":
            return [sys.executable, "-c", "from gsplat.cuda import _backend; assert _backend._C is not None"]
        case "tests":
            tests = sorted((ROOT / "tests").glob("test_*.py"))
            marked = [str(path) for path in tests if b"mark.cuda" in path.read_bytes()]  # others would only be imported
            return [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", *marked]
        case "bench":
            return [*backend, "bench", "--json", str(plan.out / "bench.json")]
        case "train":
            return [*backend, "train", *_told(plan), "--out", str(plan.run), "--device", "cuda"]
        case "export":
            return [*backend, "train", "--export", str(plan.run), "--out", str(plan.best)]
        case "scores":
            methods = [word for method in METHODS for word in ("--model", method)]
            files = ["--weights", str(plan.best), "--json", str(plan.out / "scores.json")]
            return [*backend, "evaluate", str(plan.bench), *methods, *files, "--device", "cuda"]


def _told(plan: Plan) -> list[str]:
    """What to train: a run that is there goes on as it was; a new one gets the assets and the minutes of this plan."""
    left = max(6.0, plan.scores - time.monotonic())
    stop = ["--stop-after", f"{left / 60:.3f}"]
    if (plan.run / "config.json").is_file():
        return [str(plan.run / "config.json"), *stop]
    told = json.loads(plan.config.read_text("utf-8"))
    assets = os.path.relpath(plan.assets, ROOT) if plan.assets else None
    told["data"] = told.get("data", {}) | {"assets": assets}
    with replacing(plan.work / "config.json") as file:
        file.write(json.dumps(told, indent=1).encode())
    minutes = plan.whole or max(6.0, left - START_SECONDS) / 60
    return [str(plan.work / "config.json"), "--minutes", f"{minutes:.3f}", *stop]


# ---- stages


def build_is_due(plan: Plan) -> bool:
    """Whether gsplat is there and still has to compile what it runs on the GPU."""
    done = _made(plan, "probe")
    say(f"gsplat: {done.stdout.strip() or done.stderr.strip()[-300:]}")
    return done.stdout.strip() == "uncompiled"


def train_while_building(plan: Plan) -> None:
    """Lets gsplat compile. What is trained meanwhile the processor renders, if anything: it stops at the build's end.

    The run is laid out so that it ends in time although tests and bench interrupt it.
    """
    began, pauses = time.monotonic(), TEST_SECONDS + BENCH_SECONDS + START_SECONDS
    training = words(replace(plan, scores=plan.scores - pauses), "train")
    with (
        started(plan, words(plan, "build"), plan.out / "test.log") as build,
        started(plan, training, plan.out / "train.log") as job,
    ):
        wait(build, min(plan.scores, began + BUILD_SECONDS))
        say(f"gsplat compiled for {time.monotonic() - began:.0f} s: {_told_of(build.poll())}")
        stop(job)


def train(plan: Plan) -> int:
    """Trains until the time for the scores has come, bringing out now and then what there is; an exit status."""
    last = plan.scores + GRACE
    with started(plan, words(plan, "train"), plan.out / "train.log") as job:
        while job.poll() is None and time.monotonic() < last:
            wait(job, min(last, time.monotonic() + REFRESH))
            if job.poll() is None:
                bring_out(plan)
        stop(job)
        status = job.poll()
    say(f"training: {_told_of(status)}")
    return SUCCESS if status in (SUCCESS, INTERRUPTED) else BAD_INPUT if status == BAD_INPUT else BROKEN


def bounded(plan: Plan, stage: Stage, log: Path, seconds: float) -> None:
    """A stage that may fail or take too long: that is told, and the rest goes on."""
    with started(plan, words(plan, stage), log) as job:
        wait(job, min(plan.end, time.monotonic() + seconds))
        told = _told_of(job.poll())
    say(f"{stage}: {told}")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{stage}: {told}\n")


# ---- what is brought out


def bring_out(plan: Plan) -> None:
    """The report, the parts of the best network, and the run's own scores where there are no others."""
    if (plan.run / "report.html").is_file():
        shutil.copyfile(plan.run / "report.html", plan.out / "report.html")
    scores = plan.out / "scores.json"
    if not scores.is_file() or scores.read_bytes().startswith(b'{"validations"'):
        with replacing(scores) as file:
            file.write(json.dumps({"validations": _validations(plan.run / "log.jsonl")}).encode())
    made = [path for path in (plan.run / "best.safetensors", *plan.run.glob("checkpoints/step_*")) if path.is_file()]
    if not made or (plan.best.is_file() and plan.best.stat().st_mtime > made[0].stat().st_mtime):
        return
    done = _made(plan, "export")
    if done.returncode:
        say(f"the best network was not brought out: {done.stderr.strip()[-300:]}")
    else:
        shards.split(plan.best, plan.out / "shards")


def _validations(log: Path) -> list[dict[str, Any]]:
    """Step, seconds and PSNR of each, oldest first."""
    lines = log.read_text("utf-8").splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines if line.startswith('{"kind": "validation"') and line.endswith("}")]


# ---- processes


def _made(plan: Plan, stage: Stage) -> subprocess.CompletedProcess[str]:
    environment = dict(plan.environment)
    return subprocess.run(words(plan, stage), cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def started(plan: Plan, command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a group of processes of its own, none of which outlives the block; it writes to the log's end."""
    with log.open("ab") as file:
        job = subprocess.Popen(
            command, cwd=ROOT, env=dict(plan.environment), stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield job
    except KeyboardInterrupt:
        stop(job)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def wait(job: subprocess.Popen[bytes], until: float) -> None:
    """Until the job has ended or the time has come."""
    while job.poll() is None and time.monotonic() < until:
        time.sleep(POLL)


def stop(job: subprocess.Popen[bytes]) -> None:
    """Asks a job that has not ended to end, and gives it some seconds for that."""
    if job.poll() is None:
        job.terminate()
        wait(job, time.monotonic() + GRACE)


def _told_of(status: int | None) -> str:
    return {None: "stopped: its time was over", SUCCESS: "done"}.get(status, f"ended with status {status}")


def say(text: str) -> None:
    """Tells the terminal."""
    sys.stderr.write(f"gpu: {text}\n")
