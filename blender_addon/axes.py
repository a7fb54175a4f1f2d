"""Blender's camera axes (+X right, +Y up, -Z forward, as OpenGL and transforms.json) to and from OpenCV's (+X right,
+Y down, +Z forward). The world is the same on both sides: right-handed, Z up, scene units. The only place where a sign
flips."""

from __future__ import annotations

import numpy as np

_FLIP = np.array([1.0, -1.0, -1.0, 1.0], dtype=np.float32)


def opencv_from_blender(c2w: np.ndarray) -> np.ndarray:
    """[...,4,4] camera to world with Blender's camera axes -> the same cameras with OpenCV's."""
    return c2w * _FLIP


def blender_from_opencv(c2w: np.ndarray) -> np.ndarray:
    """[...,4,4] camera to world with OpenCV's camera axes -> the same cameras with Blender's."""
    return c2w * _FLIP
