"""Read the OpenEXR files Blender writes: scan lines, one or many parts, uncompressed or ZIP. numpy and zlib only.

Layout after https://openexr.com/en/latest/OpenEXRFileLayout.html: a magic number, a version, one header a part, one
table of chunk offsets a part, then the chunks, each the lines of one part, line by line, channel after channel.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MAGIC = 20000630
_MULTI_PART = 0x1000
_TILED_OR_DEEP = 0x200 | 0x800
_PIXEL_TYPES = ("<u4", "<f2", "<f4")  # indexed by the channel's type: uint, half, float
_LINES_PER_CHUNK = {0: 1, 2: 1, 3: 16}  # by compression: none, ZIPS (one line), ZIP (16 lines)


@dataclass(frozen=True)
class _Part:
    name: str
    channels: tuple[tuple[str, str], ...]  # name and numpy dtype, in file order
    width: int
    height: int
    first_line: int
    compression: int

    @property
    def lines_per_chunk(self) -> int:
        return _LINES_PER_CHUNK[self.compression]

    @property
    def chunks(self) -> int:
        return -(-self.height // self.lines_per_chunk)

    @property
    def line_bytes(self) -> int:
        return sum(np.dtype(dtype).itemsize for _, dtype in self.channels) * self.width


def read(path: Path) -> dict[str, np.ndarray]:
    """All channels of all parts by name, as "ViewLayer.Combined.R", each [H,W] in the file's own float16 or float32.

    Raises ValueError for a file that is cut short, or of a kind that Blender's plain settings do not write."""
    data = path.read_bytes()
    try:
        return _decode(data)
    except (struct.error, zlib.error, IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path.name}: not an OpenEXR file this reader knows ({error})") from error


def _decode(data: bytes) -> dict[str, np.ndarray]:
    magic, version = struct.unpack_from("<II", data, 0)
    if magic != _MAGIC or version & _TILED_OR_DEEP:
        raise ValueError("wrong magic number, or tiles or deep data")
    multi_part = bool(version & _MULTI_PART)
    parts, at = _read_headers(data, 8, multi_part)
    channels: dict[str, np.ndarray] = {}
    for number, part in enumerate(parts):
        offsets = struct.unpack_from(f"<{part.chunks}Q", data, at)
        at += 8 * part.chunks
        lines = _read_lines(data, part, offsets, number if multi_part else None)
        channels.update(_split_channels(part, lines))
    return channels


def _read_headers(data: bytes, at: int, multi_part: bool) -> tuple[list[_Part], int]:
    parts = []
    while data[at]:
        attributes, at = _read_attributes(data, at)
        parts.append(_part(attributes))
        if not multi_part:
            return parts, at
    return parts, at + 1


def _read_attributes(data: bytes, at: int) -> tuple[dict[str, bytes], int]:
    attributes = {}
    while data[at]:
        name, at = _read_text(data, at)
        _, at = _read_text(data, at)  # the attribute's type: known from its name
        (size,) = struct.unpack_from("<i", data, at)
        attributes[name] = data[at + 4 : at + 4 + size]
        at += 4 + size
    return attributes, at + 1


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1


def _part(attributes: dict[str, bytes]) -> _Part:
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    compression = attributes["compression"][0]
    if compression not in _LINES_PER_CHUNK:
        raise ValueError(f"compression {compression} is neither none nor ZIP")
    return _Part(
        name=attributes.get("name", b"").decode(),
        channels=_channel_list(attributes["channels"]),
        width=right - left + 1,
        height=bottom - top + 1,
        first_line=top,
        compression=compression,
    )


def _channel_list(data: bytes) -> tuple[tuple[str, str], ...]:
    channels, at = [], 0
    while data[at]:
        name, at = _read_text(data, at)
        kind, _, x_step, y_step = struct.unpack_from("<iiii", data, at)
        if (x_step, y_step) != (1, 1):
            raise ValueError(f"channel {name} is subsampled")
        channels.append((name, _PIXEL_TYPES[kind]))
        at += 16
    return tuple(channels)


def _read_lines(data: bytes, part: _Part, offsets: tuple[int, ...], number: int | None) -> np.ndarray:
    """[H, bytes of a line] uint8."""
    lines = np.empty((part.height, part.line_bytes), dtype=np.uint8)
    for offset in offsets:
        if number is not None:
            (found,) = struct.unpack_from("<i", data, offset)
            if found != number:
                raise ValueError(f"chunk of part {found} where part {number} was expected")
            offset += 4
        line, size = struct.unpack_from("<ii", data, offset)
        first = line - part.first_line
        count = min(part.lines_per_chunk, part.height - first)
        raw = _inflate(data[offset + 8 : offset + 8 + size], count * part.line_bytes)
        lines[first : first + count] = raw.reshape(count, -1)
    return lines


def _inflate(chunk: bytes, size: int) -> np.ndarray:
    """Undo ZIP: deflate, then differences of neighbouring bytes, then even and odd bytes stored apart. A chunk that
    would not have shrunk is stored as it is."""
    if len(chunk) == size:
        return np.frombuffer(chunk, dtype=np.uint8)
    differences = np.frombuffer(zlib.decompress(chunk), dtype=np.uint8)
    if differences.size != size:
        raise ValueError(f"a chunk of {differences.size} bytes where {size} were expected")
    signed = differences.astype(np.int64)
    signed[1:] -= 128
    restored = np.cumsum(signed).astype(np.uint8)
    half = (size + 1) // 2
    raw = np.empty(size, dtype=np.uint8)
    raw[0::2], raw[1::2] = restored[:half], restored[half:]
    return raw


def _split_channels(part: _Part, lines: np.ndarray) -> dict[str, np.ndarray]:
    channels, start = {}, 0
    for name, dtype in part.channels:
        stop = start + np.dtype(dtype).itemsize * part.width
        channels[name] = np.ascontiguousarray(lines[:, start:stop]).view(dtype)
        start = stop
    return channels
