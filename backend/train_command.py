"""`python -m backend train`: a run from a file, or the network of a run as a file; one sentence for what went wrong."""

from __future__ import annotations

import argparse
import signal
import time
from types import FrameType

from backend import views_training
from backend.bad_input import BadInput
from backend.exit_status import BAD_INPUT, BROKEN, INTERRUPTED, SUCCESS, complain
from backend.monitor import Silent
from backend.train import Diverged, train
from backend.train_config import read_config, read_json
from backend.training_state import export


class Interruptible(Silent):
    """Ends training, with a checkpoint, after some minutes, or at Ctrl-C or SIGTERM; a second one ends the program."""

    def __init__(self, minutes: float) -> None:
        self.until = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.interrupted = False

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.interrupted = True
        signal.signal(signum, signal.SIG_DFL)

    def finish_early(self) -> bool:
        return self.interrupted or time.monotonic() > self.until


def command(given: argparse.Namespace) -> int:
    """Runs the command with its parsed options; returns the exit status."""
    try:
        return _export(given) if given.export else _train(given)
    except BadInput as error:
        return complain(str(error), BAD_INPUT)
    except (Diverged, MemoryError) as error:
        return complain(str(error) or "memory: there is too little of it for this batch", BROKEN)
    except OSError as error:
        return complain(f"{error.filename or given.out}: {error.strerror or error}", BROKEN)


def _train(given: argparse.Namespace) -> int:
    if given.config is None:
        raise BadInput("CONFIG: expected a JSON file that says what to train, found none")
    data = read_json(given.config)
    monitor = Interruptible(given.stop_after)
    before = {number: signal.signal(number, monitor.interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if isinstance(data, dict) and data.get("family") == views_training.FAMILY:
            views = views_training.config_from(data, minutes=given.minutes)
            views_training.train_views(views, given.out, monitor, device=given.device)
        else:
            train(read_config(given.config, minutes=given.minutes), given.out, device=given.device, monitor=monitor)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return INTERRUPTED if monitor.interrupted else SUCCESS


def _export(given: argparse.Namespace) -> int:
    (views_training.export if views_training.is_run(given.export) else export)(given.export, given.out)
    return SUCCESS
