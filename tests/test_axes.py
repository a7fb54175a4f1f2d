"""Camera axes: laws over random cameras, and one camera worked out by hand."""

from __future__ import annotations

import numpy as np

from blender_addon import axes


def test_there_and_back_is_the_same() -> None:
    c2w = np.random.default_rng(0).normal(size=(5, 4, 4))
    np.testing.assert_array_equal(axes.blender_from_opencv(axes.opencv_from_blender(c2w)), c2w)


def test_blenders_default_camera_looks_down() -> None:
    """An unrotated Blender camera looks along -Z with +Y up: in OpenCV axes forward is world -Z and down is world
    -Y."""
    c2w = np.eye(4)
    c2w[:3, 3] = 1, 2, 3
    opencv = axes.opencv_from_blender(c2w)
    np.testing.assert_array_equal(opencv[:3, 0], [1, 0, 0])
    np.testing.assert_array_equal(opencv[:3, 1], [0, -1, 0])
    np.testing.assert_array_equal(opencv[:3, 2], [0, 0, -1])
    np.testing.assert_array_equal(opencv[:3, 3], [1, 2, 3])


def test_handedness_and_last_row_stay() -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    c2w = np.eye(4)
    c2w[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
    opencv = axes.opencv_from_blender(c2w)
    assert np.linalg.det(opencv[:3, :3]) > 0.999
    np.testing.assert_array_equal(opencv[3], [0, 0, 0, 1])
