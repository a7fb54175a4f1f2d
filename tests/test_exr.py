"""The EXR reader against files put together here, byte by byte after the format's own description; and encoding."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blender_addon import exr, pictures

TYPES = {"f2": 1, "f4": 2}


def attribute(name: str, kind: str, value: bytes) -> bytes:
    return name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value


def header(channels: dict[str, np.ndarray], compression: int, part: str) -> bytes:
    height, width = next(iter(channels.values())).shape
    listed = b"".join(
        name.encode() + b"\0" + struct.pack("<iBxxxii", TYPES[values.dtype.str[1:]], 0, 1, 1)
        for name, values in channels.items()
    )
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    text = attribute("channels", "chlist", listed + b"\0") + attribute(
        "compression", "compression", bytes([compression])
    )
    text += attribute("dataWindow", "box2i", window)
    return text + (attribute("name", "string", part.encode()) if part else b"") + b"\0"


def deflate(raw: bytes) -> bytes:
    """ZIP as EXR does it: bytes at even places first, then differences, then deflate."""
    data = np.frombuffer(raw, np.uint8)
    split = np.concatenate([data[0::2], data[1::2]]).astype(np.int64)
    differences = np.concatenate([split[:1], (split[1:] - split[:-1] + 128) % 256]).astype(np.uint8)
    packed = zlib.compress(differences.tobytes())
    return packed if len(packed) < len(raw) else raw


def chunks(channels: dict[str, np.ndarray], compression: int) -> list[tuple[int, bytes]]:
    height = next(iter(channels.values())).shape[0]
    lines = 16 if compression == 3 else 1
    made = []
    for first in range(0, height, lines):
        rows = range(first, min(first + lines, height))
        raw = b"".join(values[row].tobytes() for row in rows for values in channels.values())
        made.append((first, deflate(raw) if compression else raw))
    return made


def make_exr(parts: list[tuple[str, dict[str, np.ndarray]]], compression: int) -> bytes:
    multi = len(parts) > 1
    head = struct.pack("<II", 20000630, 2 | (0x1000 if multi else 0))
    head += b"".join(header(channels, compression, name) for name, channels in parts) + (b"\0" if multi else b"")
    listed = [chunks(channels, compression) for _, channels in parts]
    at = len(head) + 8 * sum(len(part) for part in listed)
    tables, body = b"", b""
    for number, part in enumerate(listed):
        for line, data in part:
            tables += struct.pack("<Q", at + len(body))
            body += (struct.pack("<i", number) if multi else b"") + struct.pack("<ii", line, len(data)) + data
    return head + tables + body


def sample(height: int = 37, width: int = 21) -> list[tuple[str, dict[str, np.ndarray]]]:
    generator = np.random.default_rng(3)
    combined = {f"L.Combined.{c}": generator.uniform(0, 2, (height, width)).astype("<f2") for c in "ABGR"}
    depth = {"L.Depth.Z": np.where(generator.random((height, width)) < 0.5, 1e10, 3.25).astype("<f4")}
    return [("L.Combined", combined), ("L.Depth", depth)]


@pytest.mark.parametrize("compression", [0, 2, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_reads_what_was_written(tmp_path: Path, compression: int, parts: int) -> None:
    written = sample()[:parts]
    path = tmp_path / "a.exr"
    path.write_bytes(make_exr(written, compression))
    read = exr.read(path)
    assert set(read) == {name for _, channels in written for name in channels}
    for _, channels in written:
        for name, values in channels.items():
            assert read[name].dtype == values.dtype
            np.testing.assert_array_equal(read[name], values)


@pytest.mark.parametrize("keep", [0, 3, 8, 60, 200, 0.5, 0.999])
def test_a_file_cut_short_is_refused_by_name(tmp_path: Path, keep: float) -> None:
    data = make_exr(sample(), 3)
    path = tmp_path / "cut.exr"
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"cut\.exr"):
        exr.read(path)


def test_an_unknown_compression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "piz.exr"
    path.write_bytes(
        make_exr(sample(), 0).replace(
            b"compression\0compression\0\x01\0\0\0\0", b"compression\0compression\0\x01\0\0\0\x04"
        )
    )
    with pytest.raises(ValueError, match="compression 4"):
        exr.read(path)


def combined(rgba: list[float]) -> dict[str, np.ndarray]:
    return {f"V.Combined.{c}": np.full((1, 1), value, "<f2") for c, value in zip("RGBA", rgba, strict=True)}


def test_encoding_by_hand() -> None:
    """Linear 0.5 is sRGB 188; premultiplied (0.25, 0, 0.1) at alpha 0.5 is straight (0.5, 0, 0.2), so (188, 0, 124)."""
    assert pictures.encode(combined([0.5, 1.0, 0.0, 1.0]))[0, 0].tolist() == [188, 255, 0, 255]
    assert pictures.encode(combined([0.25, 0.0, 0.1, 0.5]))[0, 0].tolist() == [188, 0, 124, 128]


def test_encoding_survives_what_renderers_write() -> None:
    assert pictures.encode(combined([np.nan, np.inf, -1.0, 1.0]))[0, 0].tolist() == [0, 255, 0, 255]
    assert pictures.encode(combined([5.0, 5.0, 5.0, 0.0]))[0, 0].tolist() == [0, 0, 0, 0]


def test_encoding_matches_the_curve_at_all_levels() -> None:
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).astype("<f2")[None]
    channels = {f"V.Combined.{c}": linear for c in "RGB"} | {"V.Combined.A": np.ones_like(linear)}
    assert np.abs(pictures.encode(channels)[0, :, 0].astype(int) - np.arange(256)).max() == 0


@pytest.mark.parametrize("space", ["Linear Rec.2020", "ACEScg"])
def test_white_is_white_in_every_working_space(space: str) -> None:
    assert pictures.encode(combined([1, 1, 1, 1]), working_space=space)[0, 0].tolist() == [255, 255, 255, 255]


def test_depth_is_zero_off_the_surface() -> None:
    channels = {
        "V.Combined.A": np.array([[1, 1, 0.5, 1]], "<f2"),
        "V.Depth.Z": np.array([[2.5, 1e10, 2.5, 65504]], "<f4"),
    }
    depth = pictures.depth(channels)
    assert depth is not None and depth.tolist() == [[2.5, 0, 0, 65504]]
    assert pictures.depth({"V.Combined.A": np.ones((1, 1), "<f2")}) is None


def test_png_is_read_by_others_as_written() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 29, 4), dtype=np.uint8)
    with Image.open(io.BytesIO(pictures.png(pixels))) as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image), pixels)
