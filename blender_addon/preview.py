"""Pictures as icons, since a panel can draw icons but no pictures of its own."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import bpy.utils.previews
import numpy as np

LARGEST = 160  # pixels of a side; a sidebar shows no more


class PreviewIcon:
    """Holds one picture. `show` costs under a millisecond; `icon_id` is 0 while there is none."""

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest = largest  # pixels of a side
        self._pictures: Any = None  # made with the first picture: most Blenders never show one
        self._image: np.ndarray | None = None
        self.shown = 0  # how many pictures have been shown, so that a redraw can be told apart

    @property
    def icon_id(self) -> int:
        key = str(self.shown)
        return self._pictures[key].icon_id if self._pictures is not None and key in self._pictures else 0

    def show(self, image: np.ndarray | None) -> None:
        """[H,W,4] uint8, sRGB, straight alpha, row 0 at the top; None takes the picture away."""
        if image is self._image:
            return
        if self._pictures is None:
            self._pictures = bpy.utils.previews.new()
        self._image = image
        self._pictures.clear()
        self.shown += 1
        if image is None:
            return
        step = max(1, -(-max(image.shape[:2]) // self._largest))
        pixels = premultiplied(image[::-step, ::step])  # Blender's first row is the bottom one
        picture = self._pictures.new(str(self.shown))
        picture.image_size = (pixels.shape[1], pixels.shape[0])
        picture.image_pixels.foreach_set(pixels.view(np.int32).reshape(-1))

    def close(self) -> None:
        """To be called once. While Blender quits its own list of pictures may be gone already."""
        if self._pictures is not None:
            with contextlib.suppress(KeyError):
                bpy.utils.previews.remove(self._pictures)


def premultiplied(image: np.ndarray) -> np.ndarray:
    """[H,W,4] uint8 as Blender draws icons, of straight alpha; a faint pixel would glow else."""
    colours = image[..., :3].astype(np.uint16) * image[..., 3:] // 255
    return np.concatenate([colours.astype(np.uint8), image[..., 3:]], axis=-1)


class FileIcons:
    """Thumbnails of picture files, made by Blender itself. A panel wishes for one; the timer's `fetch` begins it."""

    def __init__(self) -> None:
        self._pictures: Any = None
        self._wished: set[str] = set()

    def icon_id(self, path: str) -> int:
        """0 while there is none yet. Touches no file."""
        if not path:
            return 0
        if self._pictures is None or path not in self._pictures:
            self._wished.add(path)
            return 0
        return self._pictures[path].icon_id

    def fetch(self) -> bool:
        """Begins what was wished for; whether there was something. Blender reads the files when it draws them."""
        wished, self._wished = self._wished, set()
        if wished and self._pictures is None:
            self._pictures = bpy.utils.previews.new()
        for path in wished:
            if path not in self._pictures:
                self._pictures.load(path, path, "IMAGE")
        return bool(wished)

    def close(self) -> None:
        """To be called once."""
        if self._pictures is not None:
            with contextlib.suppress(KeyError):
                bpy.utils.previews.remove(self._pictures)


def contact_sheet(images: np.ndarray, largest: int) -> np.ndarray:
    """[H,W,4] uint8: views [V,h,w,4] beside one another, row by row, thinned out to at most `largest` pixels a side."""
    views, columns = len(images), math.ceil(math.sqrt(len(images)))
    step = max(1, -(-columns * max(images.shape[1:3]) // largest))
    small = images[:, ::step, ::step]
    rows, (height, width) = -(-views // columns), small.shape[1:3]
    cells = np.zeros((rows * columns, height, width, 4), np.uint8)
    cells[:views] = small
    return cells.reshape(rows, columns, height, width, 4).swapaxes(1, 2).reshape(rows * height, columns * width, 4)
