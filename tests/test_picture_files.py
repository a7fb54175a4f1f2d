"""Reading pictures: every kind of file gives the colours that were put in, or one sentence that says why not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from backend import picture_files
from backend.bad_input import BadInput
from backend.picture_files import read_picture, read_picture_file

HEIGHT, WIDTH = 24, 32
LOSSLESS = ("PNG", "BMP", "TIFF", "TGA", "PPM", "ICO", "JPEG2000", "DDS")


def slopes() -> np.ndarray:
    """[H,W,3] uint8 that no turn or flip leaves as it is, and that JPEG hardly changes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([40 + 5 * x, 30 + 6 * y, 200 - 2 * x - 3 * y], axis=2).astype(np.uint8)


def file_of(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, colour_type: int, *, size: tuple[int, int] | None = None, between: bytes = b"") -> bytes:
    """A PNG of 16 bits as the standard has it: Pillow cannot write all of them. `size` is what its header says."""
    width, height = size or (values.shape[1], values.shape[0])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep(colours: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, colours)).astype(np.uint16)


def assert_shows(picture: torch.Tensor, pixels: np.ndarray, *, levels: float = 0.51) -> None:
    """That a picture has these bytes, 3 or 4 a pixel, up to some levels."""
    assert picture.dtype == torch.float32 and picture.shape == (*pixels.shape[:2], 4)
    found = picture.numpy() * 255
    np.testing.assert_allclose(found[..., : pixels.shape[2]], pixels.astype(float), atol=levels)
    if pixels.shape[2] == 3:
        assert (found[..., 3] == 255).all()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_file_gives_its_bytes(kind: str) -> None:
    options = {"sizes": [(WIDTH, HEIGHT)]} if kind == "ICO" else {}
    assert_shows(read_picture(file_of(slopes(), kind, **options), "a"), slopes())


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("AVIF", {})])
def test_a_lossy_file_is_near(kind: str, options: dict[str, int]) -> None:
    assert_shows(read_picture(file_of(slopes(), kind, **options), "a"), slopes(), levels=12)


def test_colours_for_printing_become_colours_of_light() -> None:
    data = file_of(Image.fromarray(slopes()).convert("CMYK"), "JPEG", quality=98)
    assert_shows(read_picture(data, "a"), slopes(), levels=10)


def test_lab_becomes_srgb() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(slopes()), srgb, lab, outputMode="LAB")
    assert image is not None
    assert_shows(read_picture(file_of(image, "TIFF"), "a"), slopes(), levels=14)  # 8 bits of LAB are coarse in blues


# ---- greys, depths and palettes


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_of_grey_are_kept(kind: str) -> None:
    values = deep(1)[..., 0]
    picture = read_picture(file_of(values, kind), "a")
    for channel in range(3):
        np.testing.assert_allclose(picture[..., channel].numpy() * 65535, values, atol=0.01)


def test_16_bits_of_colour_are_read_as_8() -> None:
    assert_shows(read_picture(png(deep(3), 2), "a"), deep(3) / 257, levels=1)
    assert_shows(read_picture(png(deep(4), 6), "a"), deep(4) / 257, levels=1)


def test_16_bits_with_one_transparent_colour() -> None:
    values = deep(3)
    values[3, 5] = (65535, 0, 1000)
    alpha = read_picture(png(values, 2, between=chunk(b"tRNS", struct.pack(">3H", 65535, 0, 1000))), "a")[..., 3]
    assert alpha[3, 5] == 0 and alpha.mean() == 1 - 1 / alpha.numel()
    grey = values[..., :1]
    alpha = read_picture(png(grey, 0, between=chunk(b"tRNS", struct.pack(">H", int(grey[7, 2, 0])))), "a")[..., 3]
    assert alpha[7, 2] == 0 and alpha.mean() > 0.99


def test_greys_with_alpha_and_in_black_and_white() -> None:
    grey_alpha = np.stack([slopes()[..., 0], slopes()[..., 1]], axis=2)
    assert_shows(read_picture(file_of(grey_alpha), "a"), grey_alpha[..., [0, 0, 0, 1]])
    bits = slopes()[..., 0] > 120
    assert_shows(read_picture(file_of(Image.fromarray(bits)), "a"), np.repeat(bits[..., None] * 255, 3, 2))


def test_a_palette_with_transparent_entries() -> None:
    image = Image.fromarray((np.arange(HEIGHT * WIDTH) % 3).astype(np.uint8).reshape(HEIGHT, WIDTH), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture = read_picture(file_of(image, transparency=bytes([255, 0, 128])), "a")
    assert_shows(picture[:1, :3], np.array([[[255, 0, 0, 255], [0, 255, 0, 0], [0, 0, 255, 128]]]))


def test_floats_are_read_within_their_range_alone() -> None:
    values = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    np.testing.assert_array_equal(read_picture(file_of(values, "TIFF"), "a")[..., 1].numpy(), values)
    for wrong in (values * 1.5, values - 0.5, values * np.nan):
        with pytest.raises(BadInput, match=r"a.tif: expected greys from 0 to 1, found"):
            read_picture(file_of(wrong, "TIFF"), "a.tif")


# ---- colour profiles


def swapped_profile() -> bytes:
    """sRGB with its red and green primaries exchanged: what such a file calls red is green."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for place in range(132, 132 + 12 * struct.unpack_from(">I", data, 128)[0], 12):
        name = bytes(data[place : place + 4])
        data[place : place + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    return bytes(data)


def test_a_profile_is_converted_from() -> None:
    pixels = np.concatenate([slopes(), np.full((HEIGHT, WIDTH, 1), 100, np.uint8)], axis=2)
    picture = read_picture(file_of(pixels, icc_profile=swapped_profile()), "a")
    assert_shows(picture, pixels[..., [1, 0, 2, 3]], levels=1.6)


def test_srgb_stays_as_it_is() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_shows(read_picture(file_of(slopes(), icc_profile=profile), "a"), slopes(), levels=1.1)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_broken_or_foreign_profile_is_left_out(mode: str) -> None:
    image = Image.fromarray(slopes()).convert(mode)
    plain = read_picture(file_of(image, "TIFF"), "a")
    profiles = [b"no profile"] + ([] if mode == "RGB" else [swapped_profile()])
    for profile in profiles:
        torch.testing.assert_close(read_picture(file_of(image, "TIFF", icc_profile=profile), "a"), plain)


# ---- orientation

SHOWN = {  # of a stored array, what is to be seen, as the EXIF standard has it
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),  # clockwise
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_is_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(file_of(slopes(), kind, exif=exif), "a")
    assert_shows(picture, SHOWN[orientation](slopes()), levels=12)


def test_a_broken_orientation_is_left_out() -> None:
    assert_shows(read_picture(file_of(slopes(), exif=b"Exif\0\0MM\0*nonsense"), "a"), slopes())


# ---- several pictures, and large ones


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})])
def test_of_several_pictures_the_first_is_taken(kind: str, options: dict[str, object]) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_shows(read_picture(data, "a"), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_reduced(kind: str) -> None:
    pixels = np.zeros((192, 6144, 3), np.uint8)
    pixels[:96, :3072, 0] = pixels[96:, 3072:, 1] = 255
    picture = read_picture(file_of(pixels, kind, **({"quality": 95} if kind == "JPEG" else {})), "a")
    assert_shows(picture, pixels.reshape(64, 3, 2048, 3, 3).mean((1, 3)), levels=20 if kind == "JPEG" else 1)


def test_reducing_mixes_no_colour_of_what_is_transparent() -> None:
    pixels = np.zeros((16, 4096, 4), np.uint8)
    pixels[:, ::2] = (255, 0, 0, 255)
    pixels[:, 1::2] = (0, 255, 0, 0)
    picture = read_picture(file_of(np.repeat(pixels, 2, axis=0)), "a")
    assert picture.shape == (16, 2048, 4)
    torch.testing.assert_close(picture[0, 0], torch.tensor([1.0, 0.0, 0.0, 128 / 255]))


# ---- what is no picture


def spoilt() -> bytes:
    data = bytearray(file_of(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


ONE = np.zeros((1, 1, 3), np.uint16)
BAD = {
    "empty": (b"", "found an empty file"),
    "text": ("Grüße, dies ist kein Bild. ".encode() * 300, "found a text"),
    "bytes": (bytes(range(256)), "found something else"),
    "svg": (b"<?xml version='1.0'?><svg></svg>", "found an SVG drawing"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(64), "found a HEIC photograph"),
    "exr": (b"\x76\x2f\x31\x01" + bytes(64), "found an OpenEXR picture"),
    "no-frame": (b"GIF89a\x20\0\x20\0\0\0\0;", "found a GIF that is broken or has no picture in it"),
    "cut-png": (file_of(slopes())[:-40], "found a PNG that is broken or cut off"),
    "spoilt-png": (spoilt(), "found a PNG that is broken or cut off"),
    "cut-jpeg": (file_of(slopes(), "JPEG")[:-60], "found a JPEG that is broken or cut off"),
    "cut-webp": (file_of(slopes(), "WEBP")[:-60], "found a WebP that is broken or cut off"),
    "one-pixel": (png(ONE, 2), "expected a picture of at least 16 pixels a side, found 1 x 1"),
    "narrow": (file_of(slopes()[:, :15]), "at least 16 pixels a side, found 15 x 24"),
    "wide": (png(ONE, 2, size=(8193, 100)), "expected a picture of at most 8192 pixels a side, found 8193 x 100"),
    "100-megapixels": (png(ONE, 2, size=(10_000, 10_000)), "at most 8192 pixels a side, found 10000 x 10000"),
    "300-megapixels": (png(ONE, 2, size=(20_000, 15_000)), "at most 8192 pixels a side, found more than"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_told_in_one_sentence(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    data, words = BAD[kind]
    most, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with pytest.raises(BadInput) as told:
        read_picture(data, "photo.png")
    assert str(told.value).startswith("photo.png: expected") and words in str(told.value)
    assert "\n" not in str(told.value)
    assert not recwarn.list and Image.MAX_IMAGE_PIXELS == most and warnings.filters == filters


def test_a_drawing_that_would_start_ghostscript_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(slopes(), "EPS")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(BadInput, match="found a PostScript drawing"):
        read_picture(data, "a.png")


# ---- files


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "photo.dat").write_bytes(file_of(slopes()))
    assert_shows(read_picture_file(tmp_path / "photo.dat"), slopes())


def test_what_is_no_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"nothing\.png: expected a picture .*, found no such file"):
        read_picture_file(tmp_path / "nothing.png")
    with pytest.raises(BadInput, match="found a folder"):
        read_picture_file(tmp_path)
    monkeypatch.setattr(picture_files, "MOST_BYTES", 2**20)
    (tmp_path / "large.png").write_bytes(file_of(slopes()) + bytes(2**20))
    with pytest.raises(BadInput, match=r"large\.png: expected at most 1 MiB, found more"):
        read_picture_file(tmp_path / "large.png")
