"""Scene-linear pixels to 8-bit sRGB with straight alpha, and PNG files. numpy and zlib only."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_BACKGROUND_DEPTH = 1e9  # Blender's engines write 1e10 where nothing was hit
_OPAQUE = 0.99  # below, a pixel mixes surfaces or background, and its depth belongs to one of them only

# Linear RGB of Blender 5's other working spaces to linear Rec.709 (D65; for ACEScg with Bradford adaptation from D60).
_TO_REC709 = {
    "Linear Rec.2020": (
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ),
    "ACEScg": (
        (1.705051, -0.621792, -0.083259),
        (-0.130256, 1.140805, -0.010548),
        (-0.024003, -0.128969, 1.152972),
    ),
}


def encode(channels: dict[str, np.ndarray], *, working_space: str = "Linear Rec.709") -> np.ndarray:
    """[H,W,4] uint8 sRGB, straight alpha, from the four "...Combined.R" to "A" channels [H,W] (scene-linear,
    premultiplied).

    The colour is what Blender's Standard view shows at exposure 0 and gamma 1."""
    linear = np.stack([_combined(channels, letter) for letter in "RGBA"], axis=-1).astype(np.float16)
    rgb, alpha = linear[..., :3], np.nan_to_num(linear[..., 3].astype(np.float32)).clip(0, 1)
    if working_space in _TO_REC709:
        rgb = (rgb.astype(np.float32) @ np.array(_TO_REC709[working_space], np.float32).T).astype(np.float16)
    mixed = (alpha > 0) & (alpha < 1)
    rgb[mixed] = rgb[mixed].astype(np.float32) / alpha[mixed, None]
    pixels = np.empty(linear.shape, dtype=np.uint8)
    pixels[..., 3] = np.rint(alpha * 255)
    pixels[..., :3] = _half_to_srgb()[np.ascontiguousarray(rgb).view(np.uint16)]
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def depth(channels: dict[str, np.ndarray]) -> np.ndarray | None:
    """[H,W] float32 planar depth, 0 where the pixel is not wholly one surface; None when the engine gave no such
    pass."""
    found = [values for name, values in channels.items() if name.endswith("Depth.Z")]
    if not found:
        return None
    known = (found[0] < _BACKGROUND_DEPTH) & (found[0] > 0) & (_combined(channels, "A") >= _OPAQUE)
    return np.where(known, found[0], 0).astype(np.float32)


def _combined(channels: dict[str, np.ndarray], letter: str) -> np.ndarray:
    return next(values for name, values in channels.items() if name.endswith(f"Combined.{letter}"))


def _half_to_srgb() -> np.ndarray:
    """[65536] uint8: the sRGB value of every float16 bit pattern; a table makes the encoding of a picture one
    look-up."""
    value = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    value = np.nan_to_num(value, nan=0.0).clip(0, 1)
    curve = np.where(value <= 0.0031308, 12.92 * value, 1.055 * np.power(value, 1 / 2.4) - 0.055)
    return np.rint(curve * 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """An 8-bit RGBA PNG file of pixels [H,W,4] uint8, row 0 at the top."""
    height, width = pixels.shape[:2]
    lines = np.ascontiguousarray(pixels).reshape(height, width * 4)
    filtered = np.full((height, 1 + width * 4), 2, dtype=np.uint8)  # 2: each line holds its difference to the one above
    filtered[0, 1:] = lines[0]
    filtered[1:, 1:] = lines[1:] - lines[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in chunks)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
