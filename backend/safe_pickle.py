"""Reads a pickle of plain values and tensors without unpickling it: nothing is imported, called or run.

A pickle is a program for a small stack machine. The machine here knows the instructions that build plain values, and
of all the names that such a program may ask for only those in TENSOR_PARTS, STORAGES and CONTAINERS. A container, such
as a checkpoint's configuration object, becomes a plain dict. Any other name or instruction is refused by name.

A tensor comes as a StoredTensor, which says where its numbers lie; torch_files.py reads them.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Classes that hold named values and nothing else, among them the attribute dictionaries that configurations use.
CONTAINERS = frozenset(
    {
        ("collections", "OrderedDict"),
        ("easydict", "EasyDict"),
        ("addict.addict", "Dict"),
        ("munch", "Munch"),
        ("yacs.config", "CfgNode"),
        ("argparse", "Namespace"),
        ("types", "SimpleNamespace"),
    }
)
TENSOR_PARTS = frozenset({("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")})


class Malformed(Exception):
    """The pickle is damaged, or no pickle of plain values and tensors; the text says what was found."""


class Refused(Malformed):
    """The pickle asks for something that could run a program; the text names it."""


@dataclass(frozen=True)
class Name:
    """A class or a function that a pickle asks for; here only a pair of words."""

    module: str
    name: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.module, self.name


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or not all(type(size) is int and size >= 0 for size in sizes):
            raise Malformed(f"a tensor with shape {self.shape} and strides {self.stride}")
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if 0 not in self.shape and last >= self.storage.count:
            raise Malformed(f"a tensor of shape {self.shape} in a storage of {self.storage.count} numbers")
        if self.count > max(self.storage.count, 1):
            raise Malformed(f"a tensor of shape {self.shape} that repeats its {self.storage.count} numbers")

    @property
    def count(self) -> int:
        return math.prod(self.shape)


# ---- the machine

ARGUMENTS = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
    SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8""".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = frozenset({"PROTO", "FRAME"})


class _Machine:
    """Runs one pickle. `stack` holds plain values, Names, Storages and StoredTensors, and never anything callable."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in ARGUMENTS:
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in TUPLES:
            self.stack.append(tuple(self._pop_last(TUPLES[opcode])))
        elif opcode in INSTRUCTIONS:
            INSTRUCTIONS[opcode](self, argument)
        elif opcode not in IGNORED:
            raise Refused(f"the instruction {opcode}")

    def _pop_last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError(count)
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _pop_to_mark(self) -> list[Any]:
        return self._pop_last(len(self.stack) - self._marks.pop())

    def mark(self, _: Any) -> None:
        self._marks.append(len(self.stack))

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self._memo[index])

    def empty_list(self, _: Any) -> None:
        self.stack.append([])

    def empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def make_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def make_list(self, _: Any) -> None:
        self.stack.append(self._pop_to_mark())

    def make_dict(self, _: Any) -> None:
        values = self._pop_to_mark()
        self.stack.append(dict(zip(values[::2], values[1::2], strict=True)))

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        expect(list, self.stack[-1]).append(value)

    def extend(self, _: Any) -> None:
        values = self._pop_to_mark()
        expect(list, self.stack[-1]).extend(values)

    def set_item(self, _: Any) -> None:
        key, value = self._pop_last(2)
        expect(dict, self.stack[-1])[key] = value

    def set_items(self, _: Any) -> None:
        values = self._pop_to_mark()
        expect(dict, self.stack[-1]).update(zip(values[::2], values[1::2], strict=True))

    def name(self, words: str) -> None:
        self.stack.append(_known(*words.split(" ", 1)))

    def stacked_name(self, _: Any) -> None:
        module, name = self._pop_last(2)
        self.stack.append(_known(expect(str, module), expect(str, name)))

    def reduce(self, _: Any) -> None:
        name, arguments = self._pop_last(2)
        self.stack.append(_rebuilt(expect(Name, name), expect(tuple, arguments)))

    def build(self, _: Any) -> None:
        """Gives an object its attributes: a namespace's content; for a dictionary only what it holds already."""
        state = self.stack.pop()
        holder = expect(dict, self.stack[-1])
        for key, value in (state if isinstance(state, dict) else {}).items():
            if isinstance(key, str) and not key.startswith("_"):
                holder.setdefault(key, value)

    def storage(self, _: Any) -> None:
        self.stack.append(_storage(expect(tuple, self.stack.pop())))


INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "EMPTY_LIST": _Machine.empty_list,
    "EMPTY_DICT": _Machine.empty_dict,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,  # for a container without arguments the same
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}


def expect(kind: type, value: Any) -> Any:
    """The value, if it is of this kind. Raises Malformed."""
    if not isinstance(value, kind):
        raise Malformed(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _known(module: str, name: str) -> Name:
    found = Name(module, name)
    if found.pair in CONTAINERS or found.pair in TENSOR_PARTS or (module == "torch" and name in STORAGES):
        return found
    raise Refused(f"the name {module}.{name}")


def _rebuilt(name: Name, arguments: tuple[Any, ...]) -> Any:
    if name.pair in CONTAINERS:
        return dict(*arguments)
    if name.name == "_rebuild_parameter":
        return expect(StoredTensor, arguments[0])
    if name.name != "_rebuild_tensor_v2" or any(arguments[6:]):
        raise Refused(f"a call of {name.module}.{name.name}")
    storage, offset, shape, stride = arguments[:4]
    return StoredTensor(expect(Storage, storage), offset, expect(tuple, shape), expect(tuple, stride))


def _storage(identity: tuple[Any, ...]) -> Storage:
    word, kind, key, _, count = identity[:5]
    if word != "storage" or any(identity[5:]):
        raise Malformed("a storage that is part of another")
    if expect(int, count) < 0 or expect(Name, kind).module != "torch":
        raise Malformed("a storage that cannot be")
    return Storage(expect(str, key), STORAGES[kind.name], count)


def run(stream: BinaryIO) -> Any:
    """The plain value that one pickle describes; `stream` is left behind it. Raises Malformed."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise Malformed("one that ends too early or is damaged") from error
    raise Malformed("one that ends too early")
