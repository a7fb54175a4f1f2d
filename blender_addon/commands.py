"""`blender -b FILE.blend -c gaussmith generate | capture | status`: blocking, for farms and scripts.

Exit status: 0 success; 2 bad input, with one sentence; 1 anything else. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import bpy

from . import api, preferences
from .atomic_file import replacing
from .families import DEFAULT_METHOD, FAMILIES, METHODS, PRECISIONS
from .front_ends import DEFAULT_FRONT_END, FRONT_ENDS
from .imagining import CUTS, MOST_CANDIDATES, PLACES
from .order import TEXTURE_SIZES
from .session import SessionState
from .views import CaptureError

NAME = "gaussmith"
SUCCESS, FAILURE, BAD_INPUT = 0, 1, 2
BAD_INPUT_KINDS = ("bad_request", "nothing_seen", "missing_weights")
SHOWN_STEP = 0.05  # progress lines come when so much more is done
OWN_WORDS = ("command", "object", "save", "json", "backend_python", "out")
START_SECONDS = 200.0


class BadInput(Exception):
    """One sentence that names what was expected and found."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message[:1].upper()}{message[1:]} (see -c {NAME} --help).")


@dataclass
class ProgressLines:
    """Writes a line when the stage changes or a step of SHOWN_STEP is done."""

    stage: str = ""
    shown: float = -1.0

    def __call__(self, stage: str, fraction: float) -> None:
        if stage == self.stage and fraction < self.shown + SHOWN_STEP:
            return
        self.stage, self.shown = stage, fraction
        sys.stderr.write(f"gaussmith: {stage} {round(100 * fraction)} %\n")
        sys.stderr.flush()


def execute(arguments: Sequence[str]) -> int:
    """What Blender calls with the words after `-c gaussmith`; its return value is Blender's exit status."""
    try:
        options = parser().parse_args(list(arguments))
        with first_window():
            return COMMANDS[options.command](options)
    except (BadInput, CaptureError) as error:
        return _say(str(error), BAD_INPUT)
    except api.GenerateError as error:
        sys.stderr.write(f"{error.failure.detail}\n" if error.failure.detail else "")
        return _say(error.failure.sentence, BAD_INPUT if error.failure.kind in BAD_INPUT_KINDS else FAILURE)
    except (OSError, TimeoutError) as error:
        return _say(str(error), FAILURE)
    except SystemExit as leaving:  # --help
        return int(leaving.code or 0)


@contextlib.contextmanager
def first_window() -> Iterator[None]:
    """Blender runs commands without a window, and 4.3 then crashes when a scene is removed; files bring windows."""
    windows = bpy.context.window_manager.windows
    if bpy.context.window is not None or not windows:
        yield
        return
    with bpy.context.temp_override(window=windows[0]):
        yield


def generate(options: argparse.Namespace) -> int:
    made = api.generate(
        objects=chosen_objects(options), backend_python=options.backend_python, on_progress=ProgressLines(),
        **words(options),
    )  # fmt: skip
    report = made.report
    if options.save:
        save_blend(options.save)
        report = {**report, "saved": str(options.save)}
    write_report(options.json, report)
    return SUCCESS


def capture(options: argparse.Namespace) -> int:
    views = api.capture_views(objects=chosen_objects(options), on_progress=ProgressLines(), **words(options))
    path = views.save(options.out)
    write_report(options.json, {"transforms": str(path), "views": len(views), "size": [views.width, views.height]})
    return SUCCESS


def status(options: argparse.Namespace) -> int:
    """Starts the backend and says what it is. 0 only when it answers."""
    python, origin = preferences.backend_python()
    if options.backend_python is not None:
        python, origin = options.backend_python, "--backend-python"
    if python is None:
        write_report(options.json, {"backend": "not set up", "python": None})
        return _say("The backend is not set up: press Set Up Backend in the preferences or name one.", FAILURE)
    with api.session_for(options.backend_python) as session:
        answer = api.answered(session, START_SECONDS)
        found = {"backend": session.state.value, "python": str(python), "named_by": origin, "log": _log()}
        if answer is not None:
            found |= {"device": answer.device, "device_name": answer.device_name, "models": list(answer.models)}
            found |= {"front_ends": list(answer.front_ends)}
        ready = session.state is not SessionState.FAILED and answer is not None
        sentence = session.failure.sentence if session.failure is not None else "The backend did not answer."
    write_report(options.json, found)
    return SUCCESS if ready else _say(sentence, FAILURE)


COMMANDS = {"generate": generate, "capture": capture, "status": status}


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog=f"blender -b FILE.blend -c {NAME}", description="Cameras, a prompt or a picture to splats and meshes."
    )
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    makes = commands.add_parser("generate", help="capture, reconstruct and put the result into the scene")
    takes = commands.add_parser("capture", help="write the views as pictures and transforms.json")
    asks = commands.add_parser("status", help="start the backend and say what it is")
    for command in (makes, takes):
        add_capture_words(command)
    add_imagining_words(makes)
    add_result_words(makes)
    takes.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    for command in (makes, asks):
        command.add_argument("--backend-python", type=Path, metavar="PATH", help="Python of the backend's environment")
    for command in (makes, takes, asks):
        command.add_argument("--json", type=Path, metavar="REPORT.json", help="write the report there, not to stdout")
    return top


def add_capture_words(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--source",
        choices=("orbit", "cameras", "animation", "views"),
        help="default: orbit around --object or the selection",
    )
    several = command.add_mutually_exclusive_group()
    several.add_argument("--views", type=int, metavar="N", help="pictures of an orbit, 4 to 64")
    several.add_argument("--transforms", type=Path, metavar="FILE", help="pictures and cameras instead of rendering")
    add("--object", metavar="NAME", help="what to capture, instead of the selection saved in the file")
    add("--elevations", type=float, nargs="+", metavar="DEGREES", help="taken in turn by the orbit's views")
    add("--distance", type=float, metavar="FACTOR", help="1: the bounding sphere just fits the picture")
    add("--lens", type=float, metavar="MM", help="focal length of the orbit's cameras")
    add("--resolution", type=int, metavar="PIXELS", help="of the longest side")
    add("--quality", choices=("preview", "standard", "final"), help="care taken with the pictures")
    add("--no-depth", dest="depth", action="store_false", default=None, help="pictures alone")
    add("--cameras", choices=("all", "selected"), help="which of the scene's cameras")
    add("--frames", type=int, nargs=3, metavar=("FIRST", "LAST", "STEP"), help="of an animation")
    add("--whole-scene", dest="selected_only", action="store_false", default=None, help="not the selection alone")
    add("--others", choices=("hidden", "holdout"), help="what the rest of the scene becomes")


def add_imagining_words(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--prompt", metavar="TEXT", help="what to make, instead of capturing the scene")
    add("--image", metavar="FILE", help="a picture of what to make, from the front")
    for side in ("right", "back", "left"):
        add(f"--image-{side}", metavar="FILE", help=f"the same object from another side: its {side}")
    add("--front-end", choices=tuple(FRONT_ENDS), help=f"what makes the views; default: {DEFAULT_FRONT_END}")
    add("--negative", metavar="TEXT", help="what the views shall not show")
    add("--candidates", type=int, metavar="N", help=f"sets of views to make, 1 to {MOST_CANDIDATES}; default: 1")
    add("--candidate", type=int, metavar="K", help="the one of them that becomes the result, from 1; default: 1")
    add("--guidance", type=float, metavar="G", help="how closely to keep to the prompt or picture")
    add("--sampling-steps", type=int, metavar="N", help="of the front end")
    add("--cut", choices=CUTS, help="how the object is told from the picture's background")
    add("--size", type=float, metavar="METRES", help="longest side of the result; default: 1")
    add("--facing", type=float, metavar="DEGREES", help="turn about Z; at 0 the front looks towards -Y")
    add("--place", choices=PLACES, help="what the result stands on; default: cursor")


def add_result_words(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    methods = ", ".join(f"{method.name}: {method.tip[0].lower()}{method.tip[1:]}" for method in METHODS.values())
    add("--method", choices=tuple(METHODS), help=f"{methods}; default: {DEFAULT_METHOD}")
    add("--model", choices=tuple(FAMILIES), help="instead of a method")
    add("--weights", metavar="NAME_OR_PATH", help="a checkpoint of the model")
    add("--precision", choices=PRECISIONS, help="of a network's numbers")
    add("--steps", type=int, help="optimisation steps of fit")
    add("--refine", type=int, metavar="STEPS", help="fit steps after a network")
    add("--max-splats", type=int, metavar="N")
    add("--mesh", action="store_true", default=None, help="a textured mesh beside the splats")
    add("--faces", type=int, metavar="N", help="target face count of the mesh")
    add("--texture-size", type=int, choices=TEXTURE_SIZES, metavar="PIXELS")
    add("--device", choices=("auto", "cpu", "cuda"))
    add("--seed", type=int)
    add("--name", help="of the result")
    add("--save", type=Path, metavar="OUT.blend", help="save the scene with the result there")


def words(options: argparse.Namespace) -> Any:
    """The options that were given, under the names api.generate has for them."""
    given = {name: value for name, value in vars(options).items() if value is not None and name not in OWN_WORDS}
    if "transforms" in given and given.get("source") not in (None, "views"):
        raise BadInput(f"--transforms brings its own views, so --source must be views, found {given['source']}.")
    if "frames" in given:
        given["frames"] = tuple(given["frames"])
    if given.get("source") in ("cameras", "animation") and given.pop("views", None) is not None:
        sys.stderr.write(f"gaussmith: --views is for an orbit; the source {given['source']} has its own number\n")
    return given


def chosen_objects(options: argparse.Namespace) -> list[bpy.types.Object]:
    """The object of --object, which must be in the scene; none when it is not given."""
    if options.object is None:
        return []
    item = bpy.context.view_layer.objects.get(options.object)
    if item is None:
        names = ", ".join(sorted(item.name for item in bpy.context.view_layer.objects)[:10]) or "no object at all"
        raise BadInput(f"--object must name an object of the scene, found {options.object!r}; the scene has {names}.")
    return [item]


def save_blend(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        bpy.ops.wm.save_as_mainfile(filepath=str(path.resolve()), copy=True, check_existing=False)
    except RuntimeError as error:
        raise OSError(f"{path} could not be saved: {error}") from error


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=1) + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def _log() -> str:
    return str(preferences.log_path())


def _say(sentence: str, status: int) -> int:
    sys.stderr.write(f"gaussmith: {sentence}\n")
    return status
