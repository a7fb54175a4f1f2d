"""Picture files of any kind, as a user has them: read into colours and alpha, upright and in sRGB.

A file is a stranger's: its header tells its size before anything is decoded, and a format whose reading would start
another program is not read.
"""

from __future__ import annotations

import codecs
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from backend.bad_input import BadInput

LEAST_SIDE, MOST_SIDE = 16, 8192  # pixels of a picture that is read
KEPT_SIDE = 2048  # a larger picture is reduced to this: more no network sees
MOST_BYTES = 256 * 2**20  # of a file
UNREAD = {"EPS"}  # Ghostscript would run what is in it
WANTED = "a picture such as PNG, JPEG, WebP or TIFF"

# What Pillow raises for a broken file: its plugins promise no class.
BROKEN = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# The first bytes of files, from a place on, and what such a file is called.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyphei", "a HEIC photograph; save it as JPEG or PNG"),
    (4, b"ftyphev", "a HEIC photograph; save it as JPEG or PNG"),
    (4, b"ftypmif1", "a HEIC photograph; save it as JPEG or PNG"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture; save it as PNG"),
    (0, b"#?RADIANCE", "a Radiance HDR picture; save it as PNG"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript drawing"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG that is broken or cut off"),
    (0, b"\xff\xd8\xff", "a JPEG that is broken or cut off"),
    (0, b"GIF8", "a GIF that is broken or has no picture in it"),
    (8, b"WEBP", "a WebP that is broken or cut off"),
    (0, b"II*\0", "a TIFF that is broken or of a kind that is not read"),
    (0, b"MM\0*", "a TIFF that is broken or of a kind that is not read"),
    (0, b"BM", "a BMP that is broken or cut off"),
)

# How the picture of a file whose EXIF orientation is the key is made upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112  # the EXIF tag

SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}  # of ICC profiles, and Pillow's mode of each


def read_picture_file(path: Path) -> Tensor:
    """[H,W,4] as `read_picture` gives it. Raises BadInput for what is no file, cannot be read or is too large, too."""
    try:
        if not path.is_file():
            raise BadInput(f"{path}: expected {WANTED}, found {'a folder' if path.is_dir() else 'no such file'}")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{path}: expected {WANTED}, found a file that cannot be read: {error.strerror}") from error
    return read_picture(data, str(path))


def read_picture(data: bytes, name: str) -> Tensor:
    """[H,W,4] float32, 0..1, sRGB, straight alpha: the picture in a file's bytes, or the first of several.

    It is upright as its EXIF orientation says, its colours are brought to sRGB from its ICC profile, and its longest
    side has at most KEPT_SIDE pixels. `name` is for sentences.

    Raises BadInput for anything but a whole picture of LEAST_SIDE to MOST_SIDE pixels a side.
    """
    if len(data) > MOST_BYTES:
        raise BadInput(f"{name}: expected at most {MOST_BYTES // 2**20} MiB, found more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sizes are looked at here, and what is broken is told in a sentence
        try:
            with _opened(data) as image:
                return torch.from_numpy(_pixels(image, name))
        except BadInput:
            raise
        except Image.DecompressionBombError as error:
            raise _too_large(name, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} in all") from error
        except BROKEN as error:
            raise BadInput(f"{name}: expected {WANTED}, found {_kind_of(data)}") from error


def _opened(data: bytes) -> Image.Image:
    Image.init()
    return Image.open(io.BytesIO(data), formats=[kind for kind in Image.OPEN if kind not in UNREAD])


def _kind_of(data: bytes) -> str:
    """What bytes that are no picture are, in words."""
    if not data:
        return "an empty file"
    for place, signature, words in SIGNATURES:
        if data[place:].startswith(signature):
            return words
    beginning = data[:4096]
    if b"<svg" in beginning:
        return "an SVG drawing; save it as PNG"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)  # which bears that the last letter is cut
    except UnicodeDecodeError:
        return "something else"
    return "something else" if b"\0" in beginning else "a text"


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """[H,W,4] float32: the steps that any picture takes."""
    _check_sides(image, name)
    image.draft(None, _kept_size(image))  # a JPEG need not be decoded in full
    icc = image.info.get("icc_profile")
    image.load()
    _check_sides(image, name)  # of icons, that of the largest is known now
    turn = _turn(image)  # not before: a TIFF is made upright while it is loaded
    picture = _in_few_modes(image, name)
    if picture.size != _kept_size(picture):
        picture = picture.resize(_kept_size(picture), Image.Resampling.BOX)
    return _values(picture if turn is None else picture.transpose(turn), icc)


def _check_sides(image: Image.Image, name: str) -> None:
    width, height = image.size
    if max(width, height) > MOST_SIDE:
        raise _too_large(name, f"{width} x {height}")
    if min(width, height) < LEAST_SIDE:
        raise BadInput(f"{name}: expected a picture of at least {LEAST_SIDE} pixels a side, found {width} x {height}")


def _too_large(name: str, found: str) -> BadInput:
    return BadInput(f"{name}: expected a picture of at most {MOST_SIDE} pixels a side, found {found}")


def _kept_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    share = min(1.0, KEPT_SIDE / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except BROKEN:
        return None  # what else a camera wrote is no reason to refuse its picture


# ---- colours


def _in_few_modes(image: Image.Image, name: str) -> Image.Image:
    """The picture as L, LA, RGB, RGBA, CMYK, LAB or F of 0..1: modes that can be resized."""
    key = image.info.get("transparency")  # one colour, or a palette's entries, that are transparent
    keyed = key is not None
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, as the file has them; the pixels were read as 8
        image.info["transparency"] = tuple(part >> 8 for part in key)
    match image.mode:
        case "L" | "1":
            return image.convert("LA" if keyed else "L")
        case "LA" | "RGBA" | "CMYK" | "LAB":
            return image
        case "La":
            return image.convert("LA")
        case "F" | "I":
            return _deep(image, name)
        case mode if mode.startswith("I;16"):
            return _deep(image, name)
        case "RGB" | "P":
            return image.convert("RGBA" if keyed else "RGB")
        case "PA" | "RGBa":
            return image.convert("RGBA")
    return image.convert("RGB")


def _deep(image: Image.Image, name: str) -> Image.Image:
    """F of 0..1, or LA where one grey is transparent, from more than 8 bits of grey."""
    values = np.asarray(image).astype(np.float32)
    most = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= most):
        raise BadInput(
            f"{name}: expected greys from 0 to {most:g}, found {float(values.min()):g} to {float(values.max()):g}"
        )
    key = image.info.get("transparency")
    grey = Image.fromarray(values / most)
    if key is None:
        return grey
    grey = _as_bytes(grey)
    grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _as_bytes(grey: Image.Image) -> Image.Image:
    """L from F of 0..1."""
    return Image.fromarray((np.asarray(grey) * 255).round().astype(np.uint8))


def _values(picture: Image.Image, icc: bytes | None) -> np.ndarray:
    """[H,W,4] float32 from one of the few modes."""
    values = np.ones((picture.height, picture.width, 4), np.float32)
    if picture.mode == "F" and icc is None:
        values[..., :3] = np.asarray(picture)[..., None]
        return values
    if picture.mode in ("LA", "RGBA"):
        values[..., 3] = np.asarray(picture.getchannel("A")) / np.float32(255)
        picture = picture.convert(picture.mode[:-1])
    picture = _as_bytes(picture) if picture.mode == "F" else picture
    values[..., :3] = np.asarray(_in_srgb(picture, icc)) / np.float32(255)
    return values


def _in_srgb(picture: Image.Image, icc: bytes | None) -> Image.Image:
    """RGB from L, RGB, CMYK or LAB in the colour space of an ICC profile, where that can be used."""
    try:
        source = ImageCms.createProfile("LAB") if picture.mode == "LAB" else _profile(icc, picture.mode)
        if source is None:
            return picture.convert("RGB")
        converted = ImageCms.profileToProfile(
            picture,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError:
        return picture.convert("RGB")
    assert converted is not None  # it is None where a picture is converted in place
    return converted


def _profile(icc: bytes | None, mode: str) -> ImageCms.ImageCmsProfile | None:
    """The profile of a picture; None where there is none, it is broken or it is of another kind of colours."""
    if not icc:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except BROKEN:
        return None
    about: Any = profile.profile  # declared as a file
    return profile if SPACES.get(about.xcolor_space) == mode else None
