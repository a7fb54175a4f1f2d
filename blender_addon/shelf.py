"""The checkpoints as Blender sees them: what the backend's `weights` command lists, and one task at a time.

Blender's timer calls `pump`. No bpy, no threads: each task is a child process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .child import Child

Action: TypeAlias = Literal["list", "fetch", "verify", "remove"]

# What a person reads when a task has ended well.
NOTICES: dict[Action, str] = {
    "list": "",
    "fetch": "The checkpoint is here.",
    "verify": "The checkpoint is sound.",
    "remove": "The checkpoint was removed.",
}
COMMERCIAL = {"yes": "commercial use allowed", "no": "no commercial use", "unclear": "commercial use unclear"}


@dataclass(frozen=True)
class Item:
    """A checkpoint, as the backend describes it."""

    name: str
    family: str
    purpose: str
    page: str
    licence: str
    commercial: str
    accepted: bool
    state: str  # absent, partial, fetched or shipped
    bytes: int
    disk_bytes: int
    memory_gib: float


class Shelf:
    """Public attributes are for reading.

    items    in the backend's order; None: not listed yet
    task     the child process at work, with `action` and `name`; None: none
    listed   whether listing was tried, so that a backend that cannot is not asked again and again
    """

    def __init__(self, start: Callable[[Sequence[str]], Child]) -> None:
        """`start` runs the backend's `weights` command with some arguments (OSError: it cannot)."""
        self.items: tuple[Item, ...] | None = None
        self.folder = ""
        self.free_bytes = 0
        self.task: Child | None = None
        self.action: Action = "list"
        self.name = ""
        self.wanted = False  # a panel shows the list and has none
        self.listed = False
        self._start = start

    @property
    def disk_bytes(self) -> int:
        """What all of them take in the folder."""
        return sum(item.disk_bytes for item in self.items or () if item.state != "shipped")

    def item(self, name: str) -> Item | None:
        return next((item for item in self.items or () if item.name == name), None)

    def begin(self, action: Action, name: str = "", *, accept: bool = False) -> None:
        """Starts a task; a list is given up for any other. Raises OSError when the backend cannot be started."""
        if self.task is not None and self.action != "list":
            raise OSError(f"Another task is at work on {self.name}.")
        self.cancel()
        arguments = [action, *([name] if name else []), "--json", "--with-parent"]
        self.action, self.name, self.listed, self.wanted = action, name, True, False
        self.task = self._start([*arguments, "--accept-licence"] if accept else arguments)

    def cancel(self) -> None:
        """Ends the task; a fetch goes on the next time."""
        if self.task is not None:
            self.task.cancel()
            self._renew_after(self.action)
        self.task = None

    def forget(self) -> None:
        """Drops the list, when another backend may have another."""
        self.cancel()
        self.items, self.listed = None, False

    def pump(self) -> Child | None:
        """Takes in what the task tells; the task when it has ended. The list is renewed after every other task."""
        if self.task is None and self.wanted and not self.listed:
            self.listed = True
            with contextlib.suppress(OSError):  # without a backend there is no list; the panel says so
                self.begin("list")
        task = self.task
        if task is None or not task.pump():
            return None
        self.task = None
        if task.done and self.action == "list":
            self._take_in(task.told)
        self._renew_after(self.action)
        return task

    def _renew_after(self, action: Action) -> None:
        if action != "list":
            self.listed, self.wanted = False, True

    def _take_in(self, told: dict[str, Any]) -> None:
        names = Item.__dataclass_fields__
        self.items = tuple(Item(**{name: entry[name] for name in names}) for entry in told["weights"])
        self.folder, self.free_bytes = told["folder"], told["free_bytes"]
