"""Pictures from disk, as the backend wants them: a file's bytes as they are, but a PNG of what only Blender reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import bpy
import numpy as np

from . import pictures
from .capture import working_space
from .imagining import Picture
from .views import CaptureError

MIB = 2**20
LARGEST_FILE = 512 * MIB
ONLY_IN_BLENDER = (".exr", ".hdr", ".dpx", ".cin")
OTHERS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".tga", ".gif", ".jp2")
ENDINGS = (*OTHERS, *ONLY_IN_BLENDER)  # of the files that can be dropped into a viewport


def read(path: Path) -> bytes:
    """The bytes to send. Raises CaptureError for a file that is missing, too large or unreadable."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CaptureError(f"The picture must be a file, found {path}: choose another.")
        if size > LARGEST_FILE:
            raise CaptureError(
                f"{path.name}: a picture's file may have {LARGEST_FILE // MIB} MB, found {size // MIB} MB."
            )
        return _as_png(path) if path.suffix.lower() in ONLY_IN_BLENDER else path.read_bytes()
    except FileNotFoundError as error:
        raise CaptureError(f"There is no picture {path}: choose another.") from error
    except OSError as error:
        raise CaptureError(f"{path.name} could not be read: {error.strerror}.") from error


def read_all(given: Sequence[Picture]) -> list[bytes]:
    return [read(picture.path) for picture in given]


def fitted(path: Path, *, width: int, height: int) -> np.ndarray:
    """[height,width,4] uint8, sRGB, straight alpha: a picture that is cut out already, as large as fits, in the middle.

    Raises CaptureError for a file that cannot be read, or that has nothing transparent around its object.
    """
    if not path.is_file():
        raise CaptureError(f"There is no picture {path}: choose another.")
    with _loaded(path) as image:
        scale = min(width / image.size[0], height / image.size[1])
        image.scale(max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale)))
        small = _pixels(image)
    if small[..., 3].min() == 255:
        raise CaptureError(f"{path.name} must show the object cut out, with transparency around it; it has none.")
    whole = np.zeros((height, width, 4), np.uint8)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    whole[top : top + small.shape[0], left : left + small.shape[1]] = small
    return whole


def _as_png(path: Path) -> bytes:
    with _loaded(path) as image:
        return pictures.png(_pixels(image))


@contextmanager
def _loaded(path: Path) -> Iterator[bpy.types.Image]:
    """Blender's image of a file, for as long as the block runs."""
    try:
        image = bpy.data.images.load(str(path))
    except RuntimeError as error:
        raise CaptureError(f"{path.name} is no picture that Blender can read.") from error
    try:
        if not image.size[0] or not image.size[1]:
            raise CaptureError(f"{path.name} is no picture that Blender can read.")
        yield image
    finally:
        bpy.data.images.remove(image)


def _pixels(image: bpy.types.Image) -> np.ndarray:
    """[H,W,4] uint8, sRGB, straight alpha, row 0 at the top.

    Blender holds the pixels of a file of 8 bits as they are, and all others as scene-linear, premultiplied floats.
    """
    width, height = image.size
    values = np.empty(width * height * image.channels, np.float32)
    image.pixels.foreach_get(values)
    values = _with_four(values.reshape(height, width, image.channels)[::-1])
    if image.is_float:
        channels = {f"Combined.{letter}": values[..., number] for number, letter in enumerate("RGBA")}
        return pictures.encode(channels, working_space=working_space())
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def _with_four(values: np.ndarray) -> np.ndarray:
    """[H,W,4] of a picture with 1 to 4 channels."""
    if values.shape[-1] == 4:
        return values
    colour = values if values.shape[-1] == 3 else np.repeat(values[..., :1], 3, axis=-1)
    return np.concatenate([colour, np.ones_like(colour[..., :1])], axis=-1)
