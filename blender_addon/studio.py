"""What runs while the extension is on: the session, the run, the environment being made. One object, one timer.

`registration.register` opens it and `unregister` closes it; nothing else in the package outlives a call.
"""

from __future__ import annotations

import logging
import platform
import time
import traceback
from typing import Any

import bpy
from bpy.app.handlers import persistent

from . import backend_process, preferences, protocol, temporary
from .candidates import Candidates
from .child import Child
from .cut_preview import CutPreview
from .environment import EnvironmentReport
from .generation import Generation, Problem
from .order import Order
from .preview import FileIcons, PreviewIcon
from .prompt_history import PromptHistory
from .session import Session
from .shelf import NOTICES, Action, Shelf
from .tick_figures import TickFigures
from .views import CaptureError
from .windows import main_window, redraw

log = logging.getLogger(__name__)

BUDGET = 0.005  # seconds a tick may go on building; it can be late by the length of one slice
IDLE = 0.5  # seconds between two ticks when nothing runs
BUSY = 0.05  # while the backend works
EAGER = 0.005  # while pictures are taken or objects are built


class Studio:
    """Owns the session and at most one run. Panels read it, operators ask it for things, the timer calls `tick`."""

    def __init__(self, session: Session, command: object = None) -> None:
        self.session = session
        self.command = command  # Blender's handle of the command line entry, kept to give it back
        self.generation: Generation | None = None
        self.setup: Child | None = None
        self.shelf = Shelf(preferences.run_weights)
        self.problem: Problem | None = None
        self.notice = ""  # a sentence that is no problem, such as what a check has found
        self.figures = TickFigures()
        self.preview = PreviewIcon()
        self.candidates = Candidates()
        self.cut = CutPreview()
        self.thumbnails = FileIcons()
        self.history = PromptHistory(preferences.history_path)
        self._shown: tuple[object, ...] = ()

    # ---- what operators ask for

    @property
    def busy(self) -> bool:
        return self.generation is not None and self.generation.active

    def generate(self, context: bpy.types.Context, order: Order) -> None:
        """Starts a run with an order alone; see `begin`."""
        self.begin(context, Generation(order, self.session))

    def begin(self, context: bpy.types.Context, generation: Generation) -> None:
        """Starts a run. Raises CaptureError when it cannot begin; the reason is also the panel's problem."""
        self.problem, self.notice = None, ""
        try:
            generation.start(context)
        except CaptureError as error:
            self.problem = Problem(str(error))
            raise
        self.generation = generation
        self.session.start()  # it loads its libraries while the pictures are taken
        hurry()

    def preview_cut(self, path: str, cut: protocol.Cut) -> None:
        """Asks what will be taken of a picture. Raises CaptureError when its file cannot be read."""
        self.problem, self.notice = None, ""
        try:
            self.cut.begin(self.session, path, cut)
        except CaptureError as error:
            self.problem = Problem(str(error))
            raise
        hurry()

    def cancel(self) -> None:
        if self.generation is not None:
            self.generation.cancel()
        hurry()

    def begin_setup(self, setup: Child) -> None:
        self.problem, self.notice, self.setup = None, "", setup
        hurry()

    def cancel_setup(self) -> None:
        if self.setup is not None:
            self.setup.cancel()
        hurry()

    def begin_weights(self, action: Action, name: str = "", *, accept: bool = False) -> None:
        """Starts a task with a checkpoint. Raises OSError with a sentence when it cannot begin."""
        self.problem, self.notice = None, ""
        self.shelf.begin(action, name, accept=accept)
        hurry()

    def cancel_weights(self) -> None:
        task = self.shelf.task
        self.shelf.cancel()
        if task is not None:
            self._show_end(task, "")
        hurry()

    def tell_check(self, found: EnvironmentReport) -> None:
        """Shows what a check of an environment has found."""
        self.problem = None if found.usable else Problem(found.problem, str(found.versions))
        self.notice = f"Python {found.python} with torch {found.versions['torch']}" if found.usable else ""
        redraw()

    def details(self) -> str:
        """The problem with what a report of it needs: versions, the machine, the end of the log."""
        problem = self.problem or Problem("")
        welcome = self.session.welcome
        about = {
            "Gaussmith": f"protocol {protocol.VERSION}",
            "Blender": bpy.app.version_string,
            "System": platform.platform(),
            "Device": f"{welcome.device} {welcome.device_name}" if welcome is not None else "no backend",
        }
        head = [f"{name}: {value}" for name, value in about.items()]
        log_lines = backend_process.tail(preferences.log_path())
        return "\n".join([problem.sentence, *head, "", problem.detail, "", "End of the log:", log_lines])

    def close(self) -> None:
        """Ends everything that runs, the child processes too."""
        if self.generation is not None:
            self.generation.cancel()
        if self.setup is not None:
            self.setup.cancel()
        self.shelf.cancel()
        self.generation, self.setup = None, None
        self.session.close()
        self.candidates.clear()
        for icons in (self.preview, self.cut, self.thumbnails):
            icons.close()

    # ---- what the timer does

    def tick(self) -> float:
        """One short turn of everything that runs; the seconds until the next."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        phase = self.generation.phase if self.generation is not None else ""
        try:
            pause = self._turn(began)
        except Exception as error:  # a timer that raises is dropped by Blender, and the panel would say nothing
            log.exception("a turn of the timer failed")
            self._stumbled(error)
            pause = IDLE
        self.figures.count(phase, time.perf_counter() - began, time.thread_time() - cpu_began)
        return pause

    def _turn(self, began: float) -> float:
        pause = self.session.pump()
        if self.setup is not None:
            self._follow_setup(self.setup)
            pause = BUSY
        self._follow_shelf()
        if self.shelf.task is not None:
            pause = BUSY
        self._follow_cut()
        if self.thumbnails.fetch():
            redraw()
        if self.generation is not None and self.generation.active:
            self._follow_generation(self.generation, began + BUDGET)
            self.preview.show(self.generation.preview)
            pause = BUSY if self.generation.phase in ("IMAGINING", "RECONSTRUCTING") else EAGER
        self._redraw_if_changed()
        return min(pause, IDLE)

    def _follow_generation(self, generation: Generation, deadline: float) -> None:
        scene = generation.scene()
        if scene is None:
            generation.fail("The scene that this result was for is gone.")
        else:
            with main_window(scene):
                if generation.phase == "INSERTING":
                    bpy.ops.gaussmith.insert_result("EXEC_DEFAULT", True)  # True: push its undo step
                else:
                    generation.tick(bpy.context, deadline)
        if generation.phase == "FAILED":
            self.problem = generation.problem
        elif generation.phase == "CHOOSING":
            self.candidates.take(generation.order, generation.imagined, generation.again)
        elif generation.phase == "DONE" and generation.shown < 1:
            self.notice = (
                f"The viewport shows {generation.shown:.0%} of the splats, to stay quick; renders show all. "
                "Change Viewport Density in the object's modifier."
            )

    def _follow_cut(self) -> None:
        failure = self.cut.pump()
        if failure is not None:
            self.problem = Problem(failure.sentence, failure.detail)

    def _follow_setup(self, setup: Child) -> None:
        if not setup.pump():
            return
        self.setup = None
        self._show_end(setup, "The backend is set up.")
        if setup.done:
            self.shelf.forget()

    def _follow_shelf(self) -> None:
        action = self.shelf.action
        ended = self.shelf.pump()
        if ended is not None:
            self._show_end(ended, NOTICES[action])

    def _show_end(self, child: Child, notice: str) -> None:
        """How a child process has ended, as a problem or a notice."""
        if child.failure is None:
            self.notice = notice or self.notice
        elif child.failure.kind == "cancelled":
            self.notice = child.failure.sentence
        else:
            self.problem = Problem(child.failure.sentence, child.failure.detail)

    def _stumbled(self, error: Exception) -> None:
        detail = "".join(traceback.format_exception(error))
        if self.generation is not None and self.generation.active:
            self.generation.fail("Something went wrong inside Gaussmith. Copy the details and report them.", detail)
        self.problem = Problem("Something went wrong inside Gaussmith. Copy the details and report them.", detail)
        redraw()

    def _redraw_if_changed(self) -> None:
        run, setup = self.generation, self.setup
        shown: tuple[object, ...] = (self.session.state, self.problem, self.notice)
        if run is not None:
            shown += (self.preview.shown, run.phase, run.label, round(run.fraction, 2), int(run.seconds_left or 0))
        for child in (setup, self.shelf.task):
            if child is not None:
                shown += (child.stage, round(child.fraction, 2))
        shown += (self.shelf.items, self.candidates.version, self.cut.busy, self.cut.shown)
        if shown != self._shown:
            self._shown = shown
            redraw()


# ---- the one studio


class _Holder:
    """Keeps the studio between `register` and `unregister`: Blender offers an extension no object to hang it on."""

    studio: Studio | None = None


_HOLDER = _Holder()


def current() -> Studio:
    """The running studio. Raises RuntimeError while the extension is off."""
    if _HOLDER.studio is None:
        raise RuntimeError("Gaussmith is not registered")
    return _HOLDER.studio


def offered_models() -> tuple[str, ...]:
    """The families the backend offers; `fit` before it has answered."""
    studio = _HOLDER.studio
    welcome = studio.session.welcome if studio is not None else None
    return welcome.models if welcome is not None and welcome.models else ("fit",)


def lacks_weights(front_end: str) -> bool:
    """Whether a front end is known to have no weights on this machine; False before anybody has said."""
    studio = _HOLDER.studio
    if studio is None:
        return False
    item = studio.shelf.item(front_end)  # what a download has changed since the backend started
    if item is not None and item.family == "views":
        return item.state not in ("fetched", "shipped")
    welcome = studio.session.welcome
    return welcome is not None and front_end not in welcome.front_ends


def open_studio(*, command: object = None) -> None:
    if _HOLDER.studio is not None:
        raise RuntimeError("Gaussmith is registered already")
    _HOLDER.studio = Studio(Session(preferences.launch, lambda _job: None), command)
    bpy.app.timers.register(timer_tick, first_interval=IDLE, persistent=True)
    for handlers, handler in HANDLERS:
        getattr(bpy.app.handlers, handlers).append(handler)


def close_studio() -> object:
    """Ends everything; returns the handle that `open_studio` was given."""
    for handlers, handler in reversed(HANDLERS):
        listed = getattr(bpy.app.handlers, handlers)
        if handler in listed:
            listed.remove(handler)
    if bpy.app.timers.is_registered(timer_tick):
        bpy.app.timers.unregister(timer_tick)
    studio, _HOLDER.studio = _HOLDER.studio, None
    if studio is None:
        raise RuntimeError("Gaussmith is not registered")
    studio.close()
    return studio.command


def timer_tick() -> float | None:
    """What Blender's timer calls; None ends the timer."""
    studio = _HOLDER.studio
    return studio.tick() if studio is not None else None


def hurry() -> None:
    """Lets the next tick come now instead of after the idle pause."""
    if bpy.app.timers.is_registered(timer_tick):
        bpy.app.timers.unregister(timer_tick)
    bpy.app.timers.register(timer_tick, first_interval=0, persistent=True)
    redraw()


# ---- Blender's own events


@persistent
def _before_undo(*_: Any) -> None:
    studio = _HOLDER.studio
    if studio is not None and studio.generation is not None:
        studio.generation.suspend()


@persistent
def _before_load(*_: Any) -> None:
    """The run's scene is about to go: end it, with the old file's settings restored."""
    studio = _HOLDER.studio
    if studio is None:
        return
    if studio.busy:
        studio.cancel()
        studio.problem = Problem("The run was cancelled because another file was opened.")
    studio.candidates.clear()
    studio.cut.drop(studio.session)


@persistent
def _after_replacing(*_: Any) -> None:
    """An undo step or a file may hold the temporary scene of a capture that has ended since."""
    temporary.remove_all()


@persistent
def _before_exit(*_: Any) -> None:
    studio = getattr(_HOLDER, "studio", None)  # a Python that ends has taken _HOLDER away already
    if studio is not None:
        studio.close()


HANDLERS = [("undo_pre", _before_undo), ("redo_pre", _before_undo), ("load_pre", _before_load)]
HANDLERS += [(name, _after_replacing) for name in ("undo_post", "redo_post", "load_post")]
if hasattr(bpy.app.handlers, "exit_pre"):  # 5.1 and later; before, the backend leaves by itself when Blender has gone
    HANDLERS.append(("exit_pre", _before_exit))
