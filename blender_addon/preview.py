"""The backend's preview as an icon, since a panel can draw icons but no pictures of its own."""

from __future__ import annotations

import contextlib
from typing import Any

import bpy.utils.previews
import numpy as np

LARGEST = 160  # pixels of a side; a sidebar shows no more


class PreviewIcon:
    """Holds one picture. `show` costs under a millisecond; `icon_id` is 0 while there is none."""

    def __init__(self) -> None:
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
        step = max(1, -(-max(image.shape[:2]) // LARGEST))
        pixels = np.ascontiguousarray(image[::-step, ::step])  # Blender's first row is the bottom one
        picture = self._pictures.new(str(self.shown))
        picture.image_size = (pixels.shape[1], pixels.shape[0])
        picture.image_pixels.foreach_set(pixels.view(np.int32).reshape(-1))

    def close(self) -> None:
        """To be called once. While Blender quits its own list of pictures may be gone already."""
        if self._pictures is not None:
            with contextlib.suppress(KeyError):
                bpy.utils.previews.remove(self._pictures)
