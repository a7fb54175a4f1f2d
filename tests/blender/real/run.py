"""The built zip in real Blenders, as a user would install and use it. Prints `N passed, N failed`; fails when one does.

    python tests/blender/real/run.py --out DIR [--suite sid] [--suite trixie] [--only NAME] [--no-window]

Needs `../shared/tools/real-blender` beside the checkout, and GAUSSMITH_PYTHON (default: .venv/bin/python).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
SHARED = ROOT.parent / "shared"
TOOL = SHARED / "tools" / "real-blender"
SCENES = SHARED / "bench" / "scenes"
TORUS_SCENE = "03_selected_object_cm_parents"
TOLERANCE = 0.02  # of the object's size
SECONDS = 1500


@dataclass(frozen=True)
class Bench:
    """One Blender: its suite, a folder of its own for settings and extensions, and one for what the tests write."""

    suite: str
    user: Path
    out: Path
    python: Path

    def call(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs the tool; its output goes to the log too. Raises AssertionError for an exit status other than 0."""
        environment = os.environ | {"REAL_BLENDER_SUITE": self.suite, "REAL_BLENDER_USER": str(self.user)}
        done = subprocess.run(
            [str(TOOL), *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        with (self.out / "calls.log").open("a") as log:
            log.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}-> {done.returncode}\n\n")
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        return done


def install(bench: Bench) -> None:
    """Builds the zip for this Blender's own Python and installs it as a user would."""
    told = bench.call(
        "run", "-b", "--python-expr", "import bpy, sys; print('IS', bpy.app.version, sys.version_info[:2])"
    )
    numbers = re.search(r"IS \((\d+), (\d+), \d+\) \((\d+), (\d+)\)", told.stdout)
    assert numbers, told.stdout
    major, minor, python_major, python_minor = numbers.groups()
    arguments = ["--python", f"{python_major}.{python_minor}", "--blender-min", f"{major}.{minor}.0"]
    arguments += ["--platform", "linux-x64", "--out", str(bench.out)]
    subprocess.run([sys.executable, str(ROOT / "build_addon.py"), *arguments], check=True, capture_output=True)
    (archive,) = bench.out.glob("gaussmith-*.zip")
    installed = bench.call("run", "--command", "extension", "install-file", "-r", "user_default", "-e", str(archive))
    assert 'Installed "gaussmith"' in installed.stdout + installed.stderr


def registers_twice(bench: Bench) -> None:
    done = bench.call("run", "-b", "--python-exit-code", "1", "-P", str(HERE / "check_registration.py"))
    assert "Traceback" not in done.stdout + done.stderr, done.stderr


def status(bench: Bench) -> None:
    report = bench.out / "status.json"
    bench.call("run", "-b", "-c", "gaussmith", "status", "--backend-python", str(bench.python), "--json", str(report))
    found = json.loads(report.read_text())
    assert found["backend"] == "ready" and "fit" in found["models"], found


def bad_input(bench: Bench) -> None:
    """Exit status 2 and one sentence that names what was wrong."""
    wrong = {
        "--object": ("--object", "Nobody"),
        "does not suit": ("--prompt", "a chair", "--model", "lgm"),
        "no_such.png": ("--image", "no_such.png"),
        "between 4 and 64": ("--views", "1"),
        "no_such.json": ("--transforms", "no_such.json"),
    }
    for named, words in wrong.items():
        done = bench.call("run", "-b", scene(TORUS_SCENE), "-c", "gaussmith", "generate", *words, check=False)
        said = [line for line in done.stderr.splitlines() if line.startswith("gaussmith:")]
        assert done.returncode == 2 and len(said) == 1 and named in said[0], (done.returncode, said)


def generates_in_place(bench: Bench) -> None:
    """The result stands where the object stands: each side of its box within 2 % of the object's size."""
    report, saved = bench.out / "generate.json", bench.out / "generate.blend"
    words = [
        "--views",
        "16",
        "--resolution",
        "256",
        "--quality",
        "preview",
        "--method",
        "best",
        "--steps",
        "200",
        "--mesh",
        "--faces",
        "8000",
    ]
    words += ["--backend-python", str(bench.python), "--json", str(report), "--save", str(saved)]
    bench.call("run", "-b", scene(TORUS_SCENE), "-c", "gaussmith", "generate", *words)
    made = json.loads(report.read_text())
    objects = json.loads((SCENES / "expected.json").read_text())[TORUS_SCENE]["objects"]
    wanted = next(item for item in objects if item["name"] == "Target_Torus")
    assert {item["role"] for item in made["objects"]} == {"splats", "mesh"}
    for item in made["objects"]:
        for end in ("bbox_min", "bbox_max"):
            for axis in range(3):
                size = wanted["bbox_max"][axis] - wanted["bbox_min"][axis]
                off = abs(item[end][axis] - wanted[end][axis])
                assert off <= TOLERANCE * size, f"{item['name']} {end}[{axis}] is off by {off / size:.1%}"
    assert made["psnr"] > 20, made["psnr"]
    assert saved.is_file()


def captures(bench: Bench) -> None:
    folder = bench.out / "capture"
    words = ["--views", "4", "--resolution", "64", "--quality", "preview", "--out", str(folder)]
    bench.call("run", "-b", scene("01_default_cube"), "-c", "gaussmith", "capture", *words)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    assert len(frames) == 4 and all((folder / frame["file_path"]).is_file() for frame in frames)


def window(bench: Bench) -> None:
    """Opens the panel, clicks Generate with the mouse, watches the bar, gets splats, cancels another run; then types a
    prompt, and gets what was chosen of two candidates at the 3D cursor.
    """
    out = bench.out / f"window-{time.strftime('%H%M%S')}"
    out.mkdir()
    bench.call("gui", str(HERE / "gui.sh"), str(out), scene("01_default_cube"), str(bench.python))
    found = json.loads((out / "window.json").read_text())
    assert len(found["added"]) == 3, f"an empty, splats and a mesh: {found['added']}"
    assert len(found["fractions"]) >= 4 and found["fractions"] == sorted(found["fractions"]), found["fractions"]
    assert found["after_cancel"], "the cancelled run changed the scene"
    assert found["cancel_seconds"] < 3 * crowding(), found["cancel_seconds"]
    imagined = found["imagined"]
    assert len(imagined["added"]) == 2, f"an empty and splats: {imagined['added']}"
    assert imagined["candidates"] == 2 and imagined["place"] == [2.0, 1.0, 0.5], imagined


def short_ticks(bench: Bench) -> None:
    """A million splats arrive over a real socket; no tick of ours is longer than 20 ms."""
    out = bench.out / "ticks"
    out.mkdir()
    bench.call("gui", str(HERE / "ticks.sh"), str(out), str(bench.python))
    figures = json.loads((out / "ticks.json").read_text())
    sys.stdout.write(f"     {figures}\n")
    assert figures["splats"] == 1_000_000
    crowded = crowding()
    longest = figures["longest"] if crowded == 1 else figures["longest_cpu"] / 2  # others wear the caches out
    assert longest <= 0.020, f"the longest tick took {1000 * longest:.1f} ms"


def crowding() -> float:
    """How many programs want each processor core; 1 on the machine that the limits are for."""
    return max(1.0, os.getloadavg()[1] / (os.cpu_count() or 1))


def scene(name: str) -> str:
    return str(SCENES / f"{name}.blend")


CHECKS: tuple[Callable[[Bench], None], ...] = (
    install,
    registers_twice,
    status,
    bad_input,
    captures,
    generates_in_place,
    window,
    short_ticks,
)
NEED_WINDOW = (window, short_ticks)
NEED_QUIET = (short_ticks,)
TWICE = (window,)  # software drawing on a busy machine can swallow a click


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "real", help="folder for logs, reports and pictures")
    parser.add_argument("--suite", action="append", choices=("sid", "trixie"), help="default: both")
    parser.add_argument("--only", action="append", help="names of checks; install always runs")
    parser.add_argument("--no-window", action="store_true", help="leave out what needs a screen")
    parser.add_argument("--untimed", action="store_true", help="leave out what needs a machine that does nothing else")
    options = parser.parse_args()
    if not TOOL.is_file():
        sys.stdout.write(f"0 passed, 0 failed: there is no {TOOL}\n")
        return 0
    results = [passes(check, bench) for bench, check in plan(options)]
    sys.stdout.write(f"{sum(results)} passed, {len(results) - sum(results)} failed\n")
    return 0 if all(results) else 1


def plan(options: argparse.Namespace) -> list[tuple[Bench, Callable[[Bench], None]]]:
    python = Path(os.environ.get("GAUSSMITH_PYTHON", ROOT / ".venv" / "bin" / "python"))
    wanted = [check for check in CHECKS if not (options.no_window and check in NEED_WINDOW)]
    wanted = [check for check in wanted if not (options.untimed and check in NEED_QUIET)]
    wanted = [check for check in wanted if not options.only or check.__name__ in options.only or check is install]
    planned = []
    for suite in options.suite or ("sid", "trixie"):
        stamp = time.strftime("%H%M%S")
        out = options.out.resolve() / f"{suite}-{stamp}"
        out.mkdir(parents=True)
        bench = Bench(suite, user=out / "user", out=out, python=python)
        planned += [(bench, check) for check in wanted]
    return planned


def passes(check: Callable[[Bench], None], bench: Bench) -> bool:
    began = time.monotonic()
    for left in reversed(range(2 if check in TWICE else 1)):
        try:
            check(bench)
        except (AssertionError, subprocess.SubprocessError, OSError, ValueError):
            word = "again" if left else "FAIL "
            sys.stdout.write(f"{word} {bench.suite} {check.__name__}\n{traceback.format_exc()}\n")
        else:
            sys.stdout.write(f"ok    {bench.suite} {check.__name__} {time.monotonic() - began:.0f} s\n")
            sys.stdout.flush()
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
