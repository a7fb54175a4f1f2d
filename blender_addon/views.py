"""What a capture is asked for and what it gives: plain values, no bpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Source = Literal["orbit", "cameras", "animation", "viewport"]
Quality = Literal["preview", "standard", "final"]


class CaptureError(Exception):
    """A capture that cannot be made. The message is one plain sentence for the artist, with what to do."""


@dataclass(frozen=True)
class CaptureSettings:
    """What to capture and how.

    source         orbit: new cameras around the selection; cameras: the scene's cameras; animation: the active camera
                   over a frame range; viewport: the view the artist looks through, then an orbit that starts there
    count          number of views of orbit (4 to 64) and viewport (1 to 64)
    elevations     degrees above the horizon, taken in turn by the views of an orbit; empty: chosen for the count
    distance       distance of an orbit's cameras, 1 where the bounding sphere just fits the picture
    lens           focal length of an orbit's cameras in millimetres on a 36 mm sensor
    resolution     pixels of the longest side: square for orbit and viewport, the render's proportions for scene cameras
    depth          also keep the distance of the surface, where the engine gives it
    cameras        which of the scene's cameras
    selected_only  capture the selected objects and their children alone
    others         what the rest becomes then: a hole in the picture that still casts light and shadow, or not there
    frames         first, last and step of an animation, in frames; last is included
    """

    source: Source = "orbit"
    count: int = 24
    elevations: tuple[float, ...] = ()
    distance: float = 1.1
    lens: float = 50.0
    resolution: int = 512
    depth: bool = True
    quality: Quality = "standard"
    cameras: Literal["all", "selected"] = "all"
    selected_only: bool = True
    others: Literal["holdout", "hidden"] = "hidden"
    frames: tuple[int, int, int] = (1, 24, 1)

    def __post_init__(self) -> None:
        limits = {
            "count": (self.count, 1 if self.source == "viewport" else 4, 64),
            "distance": (self.distance, 0.01, 100.0),
            "lens": (self.lens, 1.0, 5000.0),
            "resolution": (self.resolution, 4, 8192),
            "frame step": (self.frames[2], 1, 1_000_000),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise CaptureError(f"The capture's {name} must lie between {low:g} and {high:g}, found {value:g}.")
        if self.frames[1] < self.frames[0]:
            raise CaptureError(f"The last frame ({self.frames[1]}) lies before the first ({self.frames[0]}).")
        if any(not -90 <= elevation <= 90 for elevation in self.elevations):
            raise CaptureError("Elevations must lie between -90 and 90 degrees.")


@dataclass(frozen=True)
class CapturedViews:
    """Posed pictures of one size.

    images        [V,H,W,4] uint8, sRGB, straight alpha
    c2w           [V,4,4] float32, camera to world, OpenCV axes, rigid, scene units
    Ks            [V,3,3] float32, pixels; of an orthographic camera: pixels per scene unit
    orthographic  [V] bool
    depth         [V,H,W] float32 planar depth at the pixel centre, scene units, 0 where there is no surface; or None
    names         one label a view
    engine        the render engine that made them, empty for files
    """

    images: np.ndarray
    c2w: np.ndarray
    Ks: np.ndarray
    orthographic: np.ndarray
    depth: np.ndarray | None = None
    names: tuple[str, ...] = ()
    engine: str = ""

    def __post_init__(self) -> None:
        views, height, width = self.images.shape[:3]
        expected = {
            "images": (self.images, np.uint8, (views, height, width, 4)),
            "c2w": (self.c2w, np.float32, (views, 4, 4)),
            "Ks": (self.Ks, np.float32, (views, 3, 3)),
            "orthographic": (self.orthographic, np.bool_, (views,)),
        }
        if self.depth is not None:
            expected["depth"] = (self.depth, np.float32, (views, height, width))
        for name, (array, dtype, shape) in expected.items():
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name}: expected {dtype.__name__} {shape}, found {array.dtype} {array.shape}")
        if len(self.names) != views:
            raise ValueError(f"names: expected {views}, found {len(self.names)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def width(self) -> int:
        return self.images.shape[2]

    @property
    def height(self) -> int:
        return self.images.shape[1]

    def save(self, folder: Path | str) -> Path:
        """Write pictures, depth and `transforms.json` into `folder`; returns the path of the latter (see
        transforms.py)."""
        from . import transforms

        return transforms.write(self, Path(folder))

    @classmethod
    def load(cls, path: Path | str) -> CapturedViews:
        """Read a `transforms.json` and its pictures. Raises CaptureError with the file and field at fault."""
        from . import transforms

        return transforms.read(Path(path))
