"""Reading a network's config.json so that all it says is honoured, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from backend.cameras import BadInput


class Section:
    """One object of a config.json. Each key is taken once; `close` refuses what nobody took.

    Every method raises BadInput that names the key, what was expected and what was found.
    """

    def __init__(self, data: Any, name: str = "") -> None:
        if not isinstance(data, Mapping):
            raise BadInput(f"config: {name or 'the file'}: expected an object, found {data!r}")
        self._left = dict(data)
        self._name = name

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def section(self, key: str) -> Section:
        return Section(self._take(key, None), self._path(key))

    def whole(self, key: str, *, least: int = 1, default: int | None = None) -> int:
        """A whole number of at least `least`."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, f"a whole number of at least {least}", value)
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        return self._finite(key, self._take(key, default))

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers."""
        values = self._take(key, None)
        if not isinstance(values, list | tuple) or len(values) != count:
            raise self._wrong(key, f"{count} numbers", values)
        return tuple(self._finite(key, value) for value in values)

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def choice(self, key: str, known: tuple[str, ...], *, default: str | None = None) -> str:
        value = self._take(key, default)
        if value not in known:
            raise self._wrong(key, " or ".join(repr(name) for name in known), value)
        return value

    def expect(self, key: str, *known: Any) -> None:
        """The key, where it is there at all, must have one of these values: the network knows no other."""
        value = self._left.pop(key, known[0])
        if value not in known:
            raise self._wrong(key, " or ".join(repr(value) for value in known), value)

    def ignore(self, *keys: str) -> None:
        """What says nothing about the network."""
        for key in keys:
            self._left.pop(key, None)

    def close(self) -> None:
        if self._left:
            unknown = ", ".join(self._path(key) for key in self._left)
            raise BadInput(f"config: {unknown}: not known to this network")

    def _take(self, key: str, default: Any) -> Any:
        if key not in self._left and default is None:
            raise BadInput(f"config: {self._path(key)}: expected a value, found none")
        return self._left.pop(key, default)

    def _finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, "a finite number", value)
        return float(value)

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _wrong(self, key: str, expected: str, found: Any) -> BadInput:
        return BadInput(f"config: {self._path(key)}: expected {expected}, found {found!r}")
