"""Files of `torch.save`, in both of its forms, read without unpickling anything.

`PickledFile.content` is the file's value with a StoredTensor for each tensor; `PickledFile.load` reads the numbers of
those that are wanted, after it has seen that the file holds as many bytes as it promises.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from backend.bad_input import BadInput
from backend.safe_pickle import Malformed, Refused, Storage, StoredTensor, expect, run

ZIP_START = b"PK\x03\x04"
MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in a file of the form before zip archives
DAMAGED = (Malformed, zipfile.BadZipFile, EOFError, KeyError, RuntimeError)  # the last: an encrypted archive
MAX_PICKLE = 32 * 2**20  # bytes; the values around some thousand tensors take less than one


class PickledFile:
    """A file of torch.save, open for reading: `content` is its value with a StoredTensor for each tensor.

    Raises BadInput, naming the file, when it is damaged or asks for anything but plain values and tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        self._zip: zipfile.ZipFile | None = None
        self._places: dict[str, tuple[int, int]] = {}  # of each storage in a file without a zip: offset, numbers
        try:
            self.content = self._read_zip() if self._file.read(len(ZIP_START)) == ZIP_START else self._read_legacy()
        except DAMAGED as error:
            self._file.close()
            raise self._refusal(error) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PickledFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def load(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Reads tensors, each on the CPU with memory of its own or shared as in the file. Raises BadInput."""
        storages = {tensor.storage for tensor in tensors.values()}
        try:
            self._check(storages)
            self._check_copies(tensors)
            numbers = {storage: self._numbers(storage) for storage in storages}
        except DAMAGED as error:
            raise self._refusal(error) from error
        return {name: _taken(numbers[tensor.storage], tensor) for name, tensor in tensors.items()}

    def _refusal(self, error: Exception) -> BadInput:
        if isinstance(error, Refused):
            return BadInput(f"{self.path}: expected tensors and plain values, found {error}; nothing of it was run")
        found = error if isinstance(error, Malformed) else "one that ends too early or is damaged"
        return BadInput(f"{self.path}: expected a whole file of torch.save, found {found}")

    def _check(self, storages: set[Storage]) -> None:
        """Sees that the file holds every storage, before memory is taken for any."""
        total = 0
        for storage in storages:
            held = self._held(storage)
            if held != storage.bytes:
                raise Malformed(f"{held} bytes where {storage.bytes} belong")
            total += held
        if total > self.path.stat().st_size:  # members of a zip archive that overlap
            raise Malformed(f"{total} bytes of tensors in a smaller file")

    def _check_copies(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Sees that the parts of storages, each of which is copied, are no more than the file."""
        parts = [tensor for tensor in tensors.values() if tensor.count != tensor.storage.count]
        copied = sum(tensor.count * tensor.storage.dtype.itemsize for tensor in parts)
        if copied > self.path.stat().st_size:
            raise Malformed(f"{copied} bytes of tensors that overlap in a smaller file")

    def _held(self, storage: Storage) -> int:
        if self._zip is None:
            return self._places[storage.key][1] * storage.dtype.itemsize
        return self._stored_size(f"data/{storage.key}")

    def _numbers(self, storage: Storage) -> Tensor:
        if storage.count == 0:
            return torch.empty(0, dtype=storage.dtype)
        buffer = bytearray(storage.bytes)
        if self._zip is None:
            self._file.seek(self._places[storage.key][0])
            read = self._file.readinto(buffer)
        else:
            with self._zip.open(f"{self._root}/data/{storage.key}") as member:
                read = _read_all(member, buffer)
        if read != storage.bytes:
            raise Malformed(f"{read} bytes where {storage.bytes} belong")
        return torch.frombuffer(buffer, dtype=storage.dtype)

    def _read_zip(self) -> Any:
        self._zip = zipfile.ZipFile(self._file)
        found = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise Malformed("a zip archive that torch.save has not written")
        self._root = found[0].split("/")[0]
        if self._stored_size("data.pkl") > MAX_PICKLE:
            raise Malformed("too much beside the tensors")
        if f"{self._root}/byteorder" in self._zip.namelist() and self._stored_size("byteorder") == 3:
            raise Malformed("the byte order 'big'")
        return run(io.BytesIO(self._zip.read(found[0])))

    def _stored_size(self, member: str) -> int:
        assert self._zip is not None
        info = self._zip.getinfo(f"{self._root}/{member}")
        if info.compress_type != zipfile.ZIP_STORED:  # could grow without bound; torch.save does not compress
            raise Malformed("a compressed archive")
        return info.file_size

    def _read_legacy(self) -> Any:
        """Five pickles (mark, version, machine, value, keys of the storages), then each storage after its length."""
        self._file.seek(0)
        stream = io.BytesIO(self._file.read(MAX_PICKLE))
        if run(stream) != MAGIC:
            raise Malformed("another kind of pickle")
        run(stream)
        machine = run(stream)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise Malformed("a byte order other than 'little'")
        content, keys = run(stream), expect(list, run(stream))
        widths = {storage.key: storage.dtype.itemsize for storage in _storages(content)}
        place, size = stream.tell(), self.path.stat().st_size
        for key in (expect(str, key) for key in keys):
            self._file.seek(place)
            count = int.from_bytes(self._file.read(8), "little", signed=True)
            end = place + 8 + count * widths.get(key, 1)
            if count < 0 or end > size:
                raise Malformed(f"{size} bytes where {end} belong")
            self._places[key] = (place + 8, count)
            place = end
        return content


def _storages(content: Any) -> set[Storage]:
    """Every storage that a value's tensors lie in."""
    found, open_values, seen = set(), [content], set[int]()
    while open_values:
        value = open_values.pop()
        if isinstance(value, StoredTensor):
            found.add(value.storage)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            open_values += value.values() if isinstance(value, dict) else value
    return found


def _read_all(stream: Any, buffer: bytearray) -> int:
    view, done = memoryview(buffer), 0
    while read := stream.readinto(view[done:]):
        done += read
    return done


def _taken(numbers: Tensor, tensor: StoredTensor) -> Tensor:
    """The tensor in its storage; a copy where it is but a part, so that the rest is freed."""
    found = numbers.as_strided(tensor.shape, tensor.stride, tensor.offset)
    return found if found.numel() == numbers.numel() else found.clone()
