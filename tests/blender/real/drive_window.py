"""Runs beside Blender on the virtual screen: uses the mouse like a person and takes pictures. Standard library only.

    python3 drive_window.py OUT SCENE.blend BACKEND_PYTHON

Writes OUT/*.png and OUT/window.json; leaves with 1 and a sentence when a step does not happen in time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QUICK = {
    "method": "BEST",
    "count": 8,
    "quality": "PREVIEW",
    "use_resolution": True,
    "resolution": 128,
    "use_steps": True,
    "steps": 150,
    "output": "BOTH",
    "faces": 3000,
}
LONG = {"steps": 20_000}
PROMPT = "a red wooden chair"
CURSOR = [2.0, 1.0, 0.5]
IMAGINED = {
    "source": "PROMPT",
    "method": "FAST",
    "output": "SPLATS",
    "imagining.prompt_front_end": "starter",
    "imagining.candidates": 2,
    "imagining.place": "CURSOR",
    "imagining.size": 1.5,
    "cursor": CURSOR,
}
TABS_WIDTH = 20  # pixels of the strip of tabs at the sidebar's right edge
RUN_SECONDS = 600  # for eight small pictures and a short fit, on a machine that does other things too
ENDED = {"DONE", "FAILED", "CANCELLED"}  # phases that end a run
TRIES = 3
USUAL_HEIGHT = 24  # pixels; Generate and Cancel are taller


class Window:
    def __init__(self, out: Path, process: subprocess.Popen[bytes]) -> None:
        self.out = out
        self.process = process
        self.pictures: list[str] = []

    def state(self) -> dict[str, Any]:
        if self.process.poll() is not None:
            raise SystemExit(f"Blender ended with exit status {self.process.returncode}")
        try:
            return json.loads((self.out / "state.json").read_text())
        except FileNotFoundError:
            return {}

    def until(self, what: str, holds: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            state = self.state()
            if state and holds(state):
                return state
            time.sleep(0.1)
        self.picture("failed")
        raise SystemExit(f"{what} did not happen within {seconds:g} s; the last state was {self.state()}")

    def picture(self, name: str) -> None:
        self.pictures.append(f"{name}.png")
        subprocess.run(["import", "-window", "root", str(self.out / f"{name}.png")], check=True)

    def choose(self, settings: dict[str, Any]) -> None:
        """Has the settings of the panel and of the view changed, and waits until they are."""
        part = self.out / "settings.part"
        part.write_text(json.dumps(QUICK | settings))
        part.replace(self.out / "settings.json")
        time.sleep(1)

    def move(self, x: float, y: float) -> None:
        subprocess.run(["xdotool", "mousemove", str(round(x)), str(round(y))], check=True)

    def click(self) -> None:
        subprocess.run(["xdotool", "sleep", "0.3", "click", "1", "sleep", "0.3"], check=True)

    def open_tab(self, name: str) -> None:
        """Clicks the sidebar's tabs from the top until the right one is shown."""
        x, y, width, height = self.state()["sidebar"]
        for row in range(y + 30, y + height, 40):
            self.move(x + width - TABS_WIDTH / 2, row)
            self.click()
            time.sleep(1)  # a machine without a graphics card draws slowly
            if self.state()["category"] == name:
                return
        raise SystemExit(f"the sidebar has no tab {name}")

    def press(self, what: str, happened: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Clicks the tall button until Blender, which may be busy drawing and miss a click, has noticed."""
        for _ in range(TRIES):
            self.click_tall_button()
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                if happened(self.state()):
                    return self.state()
                time.sleep(0.1)
        self.picture("failed")
        raise SystemExit(f"{what} did not happen after {TRIES} clicks; the last state was {self.state()}")

    def click_tall_button(self) -> None:
        """The panel's one tall button is Generate, or Cancel while a run is in progress."""
        x, y, width, height = self.state()["sidebar"]
        self.move(x + width / 2, y + height - 5)  # away from the buttons, so that none is lit
        time.sleep(0.5)
        place = tall_button(self.screen(x, y, width // 2, height), width // 2, tuple(self.state()["button_colour"]))
        if place is None:
            self.picture("failed")
            raise SystemExit("the panel shows no tall button")
        self.move(x + place[0], y + place[1])
        self.click()

    def screen(self, x: int, y: int, width: int, height: int) -> bytes:
        """A part of the screen, three bytes a pixel, row by row."""
        part = ["-window", "root", "-crop", f"{width}x{height}+{x}+{y}", "-depth", "8", "rgb:-"]
        return subprocess.run(["import", *part], check=True, capture_output=True).stdout

    def type_prompt(self, text: str) -> None:
        """Clicks the panel's field, types, and presses Return, until Blender has taken all of it."""
        x, y, width, height = self.state()["sidebar"]
        for _ in range(TRIES):
            self.move(x + width / 2, y + height - 5)  # away from the fields, so that none is lit
            time.sleep(0.5)
            place = long_field(self.screen(x, y, width, height), width, tuple(self.state()["text_colour"]))
            if place is None:
                continue
            self.move(x + place[0], y + place[1])
            self.click()
            for words in (("key", "ctrl+a"), ("type", "--delay", "60", text), ("key", "Return")):
                subprocess.run(["xdotool", *words], check=True)
                time.sleep(2)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                if self.state()["prompt"] == text:
                    return
                time.sleep(0.2)
        self.picture("failed")
        raise SystemExit(f"the panel did not take the prompt; it holds {self.state()['prompt']!r}")


def long_field(pixels: bytes, width: int, colour: tuple[int, ...]) -> tuple[int, int] | None:
    """The middle of the first row, from the top, of which the colour fills an unbroken half."""
    for y in range(0, len(pixels) // (3 * width), 4):
        run = 0
        for x in range(width):
            pixel = pixels[3 * (y * width + x) : 3 * (y * width + x) + 3]
            run = run + 1 if all(abs(a - b) <= 3 for a, b in zip(pixel, colour, strict=True)) else 0
            if run > width // 2:
                return x - run // 2, y + USUAL_HEIGHT // 3
    return None


def tall_button(pixels: bytes, width: int, colour: tuple[int, ...]) -> tuple[int, int] | None:
    """Where the longest run of the colour down any column has its middle, if a button of usual height is shorter."""
    rows = len(pixels) // (3 * width)
    best, place = USUAL_HEIGHT, None
    for x in range(width // 8, width, 4):
        run = 0
        for y in range(rows):
            pixel = pixels[3 * (y * width + x) : 3 * (y * width + x) + 3]
            run = run + 1 if all(abs(a - b) <= 3 for a, b in zip(pixel, colour, strict=True)) else 0
            if run > best:
                best, place = run, (x, y - run // 2)
    return place


def use(window: Window) -> dict[str, Any]:
    window.until("the sidebar", lambda state: state["sidebar"][2] > 100, 60)
    time.sleep(3)  # it slides in
    window.open_tab("Gaussmith")
    time.sleep(1)
    window.picture("1_panel")
    window.choose({})
    before = window.state()["objects"]
    window.press("the run", lambda state: state.get("phase", "") == "CAPTURING")
    fractions, labels = watch(window)
    done = window.state()
    window.choose({"hidden": ["Cube"], "shading": "MATERIAL"})
    window.until("the material view", lambda state: state["shading"] == "MATERIAL", 120)
    time.sleep(45)  # the first drawing compiles its shaders
    window.picture("4_result")
    window.choose({"hidden": []})
    window.until("the solid view", lambda state: state["shading"] == "SOLID", 120)
    undo_seconds = undo_and_redo(window, done["last_result"])
    cancel_seconds = cancel_another(window)
    window.picture("6_cancelled")
    after_cancel = window.state()["objects"] == done["objects"]
    imagined = imagine(window)
    return {
        **{"added": sorted(set(done["objects"]) - set(before)), "fractions": fractions, "labels": labels},
        **{"cancel_seconds": cancel_seconds, "undo_seconds": undo_seconds, "figures": window.state()["figures"]},
        **{"after_cancel": after_cancel, "imagined": imagined},
    }


def imagine(window: Window) -> dict[str, Any]:
    """Types a prompt, makes two sets of views, chooses the second, and gets its result at the 3D cursor."""
    before = window.state()["objects"]
    window.choose(IMAGINED)
    window.type_prompt(PROMPT)
    window.picture("7_prompt")
    window.press("the making of views", lambda state: state["phase"] == "IMAGINING")
    found = window.until("the choice", lambda state: state["phase"] in ENDED | {"CHOOSING"}, RUN_SECONDS)
    if found["phase"] != "CHOOSING":
        window.picture("failed")
        raise SystemExit(f"the views ended as {found['phase']}: {found['problem']}")
    time.sleep(3)  # their pictures are drawn
    window.picture("8_candidates")
    window.choose(IMAGINED | {"use": found["candidates"][1]})
    window.until("the chosen result", lambda state: state["phase"] in ENDED, RUN_SECONDS)
    done = window.state()
    if done["phase"] != "DONE":
        window.picture("failed")
        raise SystemExit(f"the chosen views ended as {done['phase']}: {done['problem']}")
    window.choose(IMAGINED | {"shading": "MATERIAL"})
    time.sleep(45)  # the first drawing compiles its shaders
    window.picture("9_imagined")
    added = sorted(set(done["objects"]) - set(before))
    return {"added": added, "candidates": len(found["candidates"]), "place": done["places"][done["last_result"]]}


def undo_and_redo(window: Window, result: str) -> float:
    """One Ctrl-Z takes the result away and one more key brings it back; the seconds of both."""
    x, y, _, height = window.state()["sidebar"]
    window.move(x / 2, y + height / 2)
    began = time.monotonic()
    for keys, there in (("ctrl+z", False), ("ctrl+shift+z", True)):
        subprocess.run(["xdotool", "key", keys], check=True)
        window.until(f"{keys} on {result}", lambda state, there=there: (result in state["objects"]) == there, 60)
    return time.monotonic() - began


def watch(window: Window) -> tuple[list[float], list[str]]:
    """Follows the run to its end, with a picture of the capture and one of the bar."""
    window.picture("2_capturing")
    fractions, labels, pictured = [], [], False
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        state = window.state()
        phase, fraction = state["phase"], state["fraction"]
        fractions += [fraction] if phase == "RECONSTRUCTING" and fraction not in fractions else []
        labels += [state["label"]] if state["label"] not in labels else []
        if phase == "RECONSTRUCTING" and fraction > 0.3 and not pictured:
            window.picture("3_progress")
            pictured = True
        if phase in ENDED:
            break
        time.sleep(0.1)
    if window.state()["phase"] != "DONE":
        window.picture("failed")
        raise SystemExit(f"the run ended as {window.state()['phase']}: {window.state()['problem']}")
    return fractions, labels


def cancel_another(window: Window) -> float:
    """Starts a long run and cancels it with the mouse; the seconds until the backend was free again."""
    window.choose(LONG)
    window.press("the second run", lambda state: state["phase"] in ("CAPTURING", "RECONSTRUCTING"))
    window.until(
        "the second run", lambda state: state["phase"] == "RECONSTRUCTING" and state["fraction"] > 0.02, RUN_SECONDS
    )
    window.picture("5_second_run")
    window.press("the cancel", lambda state: state["phase"] == "CANCELLED")
    began = time.monotonic()
    window.until("the backend's rest", lambda state: state["backend"] == "ready", 60)
    return time.monotonic() - began


def main() -> None:
    out, scene, python = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    (out / "settings.json").write_text(json.dumps(QUICK | {"method": "FAST"}))  # what a user sees first
    arguments = ["--gpu-backend", "opengl", "--window-geometry", "0", "0", "1600", "1000", scene]
    script = ["-P", str(HERE / "inside_window.py"), "--", str(out / "state.json"), str(out / "settings.json")]
    with (out / "window.log").open("wb") as log:
        blender = subprocess.Popen(
            ["blender", *arguments, *script], stdout=log, stderr=log, env=os.environ | {"GAUSSMITH_PYTHON": python}
        )
        try:
            found = use(Window(out, blender))
        finally:
            blender.terminate()
            blender.wait(20)
    (out / "window.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
