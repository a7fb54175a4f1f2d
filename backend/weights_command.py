"""`python -m backend weights`: list checkpoints; fetch, verify and remove the published ones. Imports no torch.

With --json every line of standard output is one object: `stage` and `fraction` while it works; at the end `done`, with
`weights` where there is something to list, or `failure` (a kind) with `sentence` and `detail`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import threading
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from backend import downloads
from backend.bad_input import BadInput
from backend.exit_status import BAD_INPUT, BROKEN, INTERRUPTED, SUCCESS
from backend.hub import DISK_FULL, Hub, TransferError, Transport
from backend.weights import CATALOGUE, GIB, Entry, disk_bytes, entry_of, record_of, tensors_of, weights_folder

JSON_SECONDS = 0.1  # between two lines about the same stage


def weights(given: argparse.Namespace, transport: Transport | None = None) -> int:
    """Runs the command with its parsed options; returns the exit status. `transport`: None for the hub."""
    teller = JsonTeller() if given.json else TextTeller()
    if given.with_parent:
        threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        teller.finish(_act(given, transport or Hub(), teller))
        return SUCCESS
    except BadInput as error:
        teller.fail("bad_input", str(error))
        return BAD_INPUT
    except TransferError as error:
        teller.fail(error.kind, str(error), repr(error.__cause__ or ""))
    except KeyboardInterrupt:
        teller.fail("interrupted", "interrupted; a fetch goes on where it was the next time")
        return INTERRUPTED
    except OSError as error:
        kind = "disk_full" if error.errno in DISK_FULL else "failed"
        teller.fail(kind, f"{error.filename or weights_folder()}: {error.strerror or error}", repr(error))
    return BROKEN


def _act(given: argparse.Namespace, transport: Transport, teller: Teller) -> dict[str, Any]:
    chosen = [entry_of(given.name)] if given.name else list(CATALOGUE)
    if not given.name and given.action in ("fetch", "remove"):
        raise BadInput(
            f"weights {given.action}: expected the NAME of a checkpoint, found none; weights list shows them"
        )
    if given.name and given.action != "list" and chosen[0].shipped:
        raise BadInput(f"weights {given.action}: expected a checkpoint that is fetched; {given.name} ships with this")
    match given.action:
        case "fetch":
            if given.accept_licence:
                downloads.accept(chosen[0])
            downloads.fetch(chosen[0], transport, teller.progress)
        case "verify":
            for entry in chosen:
                if given.name or record_of(entry) is not None:
                    downloads.verify(entry, teller.progress)
        case "remove":
            downloads.remove(chosen[0])
    return describe(chosen)


def describe(entries: list[Entry]) -> dict[str, Any]:
    """The entries and the folder as JSON."""
    folder = weights_folder()
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return {
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(existing).free,
        "weights": [_described(entry) for entry in entries],
    }


def _described(entry: Entry) -> dict[str, Any]:
    record = record_of(entry)
    return {
        "name": entry.name,
        "family": entry.family,
        "preset": entry.preset,
        "purpose": entry.purpose,
        "repository": entry.repository,
        "page": entry.page,
        "files": [file.name for file in entry.files],
        "bytes": entry.bytes,
        "code_licence": entry.code_licence,
        "weight_licence": entry.weight_licence,
        "commercial": entry.commercial,
        "licence": entry.licence,
        "accepted": downloads.is_accepted(entry),
        "memory_gib": entry.memory_gib,
        "state": _state(entry),
        "disk_bytes": disk_bytes(entry),
        "path": str(tensors_of(entry)),
        "revision": record.get("revision", "") if record is not None else "",
    }


def _state(entry: Entry) -> str:
    if record_of(entry) is not None:
        return "fetched"
    if not disk_bytes(entry):
        return "absent"
    return "shipped" if entry.shipped else "partial"


# ---- how it is told


class Teller(Protocol):
    """Where progress, the result and a failure go."""

    def progress(self, stage: str, done: int, total: int) -> None: ...
    def finish(self, told: dict[str, Any]) -> None: ...
    def fail(self, kind: str, sentence: str, detail: str = "") -> None: ...


class JsonTeller:
    """Lines of JSON on standard output, for a program that reads them."""

    def __init__(self) -> None:
        self._stage = ""
        self._told_at = 0.0

    def progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._told_at > JSON_SECONDS:
            self._stage, self._told_at = stage, now
            self._say({"stage": stage, "fraction": round(done / max(total, 1), 4), "bytes": done, "total": total})

    def finish(self, told: dict[str, Any]) -> None:
        self._say({"done": True, **told})

    def fail(self, kind: str, sentence: str, detail: str = "") -> None:
        self._say({"failure": kind, "sentence": sentence, "detail": detail})

    def _say(self, line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


class TextTeller:
    """A bar on standard error, the result as a table on standard output, a failure as one sentence."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task: TaskID | None = None

    def progress(self, stage: str, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(stage)
        self._bar.update(self._task, description=stage, completed=done, total=total)

    def finish(self, told: dict[str, Any]) -> None:
        self._end_bar()
        entries = told["weights"]
        lines = [f"{name:15} {value}" for name, value in entries[0].items()] if len(entries) == 1 else _table(entries)
        sys.stdout.write("\n".join([*lines, f"in {told['folder']}, {told['free_bytes'] / GIB:.1f} GiB free", ""]))

    def fail(self, kind: str, sentence: str, detail: str = "") -> None:
        del kind, detail
        self._end_bar()
        sys.stderr.write(f"error: {sentence}\n")

    def _end_bar(self) -> None:
        if self._task is not None:
            self._bar.stop()


def _table(entries: list[dict[str, Any]]) -> list[str]:
    columns = "{name:24} {family:9} {size:>5} {state:8} {commercial:14} {purpose}"
    head = {"name": "name", "family": "family", "size": "GB", "state": "state", "purpose": "what for"}
    rows = [head | {"commercial": "commercial use"}]
    rows += [entry | {"size": f"{entry['bytes'] / 1e9:.2f}"} for entry in entries]
    return [columns.format_map(row) for row in rows]


def _leave_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    os._exit(INTERRUPTED)
