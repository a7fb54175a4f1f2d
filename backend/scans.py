"""Depth maps to make a mesh of: those that came with the views, the reconstruction's own, and views from all around."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from backend import volume
from backend.cameras import Cameras, Views

DepthOf = Callable[[Cameras], np.ndarray]  # [V,H,W] float32 planar depth of a reconstruction, inf where it is empty
VIRTUAL_VIEWS = 26  # around the object, besides the captured ones
VIRTUAL_SIZE = 256  # pixels
TRUST = {"exact": 1.0, "captured": 0.5, "virtual": 0.15}  # weights of a depth map's votes, by where it comes from


def given(cameras: Cameras, depth: torch.Tensor) -> volume.Scan:
    """Depth [V,H,W] that came along with the pictures."""
    values = depth.numpy().astype(np.float32)
    return volume.Scan(cameras, np.where(np.isfinite(values), values, 0), TRUST["exact"])


def captured(views: Views, depth_of: DepthOf) -> volume.Scan:
    """The captured cameras with their own depth, where it came along, else with that of the reconstruction."""
    if views.depth is not None:
        return given(views.cameras, views.depth)
    depth = depth_of(views.cameras)
    if views.has_alpha:  # the masks know better where there is nothing, and where there is something
        depth[np.isinf(depth)] = 0
    return volume.Scan(views.cameras, depth, TRUST["captured"])


def virtual(box: np.ndarray, depth_of: DepthOf) -> volume.Scan:
    """Cameras all around the box [2,3] with the reconstruction's depth."""
    around = cameras_around(box, VIRTUAL_SIZE)
    return volume.Scan(around, depth_of(around), TRUST["virtual"])


def cameras_around(box: np.ndarray, size: int) -> Cameras:
    """Cameras on a sphere about the box, evenly spread (Fibonacci), that see it whole; square pictures."""
    centre, radius = box.mean(axis=0), 0.5 * float(np.linalg.norm(box[1] - box[0]))
    steps = np.arange(VIRTUAL_VIEWS) + 0.5
    height = 1 - 2 * steps / VIRTUAL_VIEWS
    angle = np.pi * (1 + 5**0.5) * steps
    ring = np.sqrt(1 - height**2)
    outward = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    distance = 3.0 * radius
    c2w = np.stack([_looking(-direction, centre + distance * direction) for direction in outward])
    focal = 0.5 * size * 0.95 * (distance**2 - radius**2) ** 0.5 / radius  # the sphere fills the picture
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float32)
    return Cameras(
        c2w=torch.from_numpy(c2w).float(),
        Ks=K.expand(VIRTUAL_VIEWS, 3, 3),
        orthographic=torch.zeros(VIRTUAL_VIEWS, dtype=torch.bool),
        width=size,
        height=size,
    )


def _looking(forward: np.ndarray, position: np.ndarray) -> np.ndarray:
    aside = np.array([0.0, 0.0, 1.0]) if abs(forward[2]) < 0.99 else np.array([0.0, 1.0, 0.0])
    right = np.cross(forward, aside)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2], c2w[:3, 3] = right, np.cross(forward, right), forward, position
    return c2w


def inside_masks(points: np.ndarray, masks: volume.Silhouettes) -> np.ndarray:
    """[N] bool: within the picture of some view, and in no view on the background."""
    inside, seen = np.ones(len(points), dtype=bool), np.zeros(len(points), dtype=bool)
    viewmats, Ks = masks.cameras.viewmats.numpy().astype(np.float64), masks.cameras.Ks.numpy().astype(np.float64)
    for view in range(len(masks.cameras)):
        local = points @ viewmats[view, :3, :3].T + viewmats[view, :3, 3]
        nearness = np.ones(len(points)) if bool(masks.cameras.orthographic[view]) else np.maximum(local[:, 2], 1e-12)
        pixel = (local[:, :2] / nearness[:, None]) @ Ks[view, :2, :2].T + Ks[view, :2, 2]
        column, row = np.floor(np.clip(pixel, -1, 1e6)).astype(int).T
        height, width = masks.distance[view].shape
        within = (local[:, 2] > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
        seen |= within
        inside[within] &= masks.distance[view][row[within], column[within]] > -1
    return inside & seen


def unprojected(scan: volume.Scan, stride: int = 2) -> np.ndarray:
    """[P,3] world points of every `stride`-th pixel with a depth."""
    points = []
    rows, columns = np.mgrid[0 : scan.cameras.height : stride, 0 : scan.cameras.width : stride]
    for view in range(len(scan.cameras)):
        depth = scan.depth[view][rows, columns]
        known = np.isfinite(depth) & (depth > 0)
        pixel = np.stack([columns[known] + 0.5, rows[known] + 0.5, np.ones(known.sum())])
        ray = (np.linalg.inv(scan.cameras.Ks[view].numpy().astype(np.float64)) @ pixel).T
        if bool(scan.cameras.orthographic[view]):
            local = np.concatenate([ray[:, :2], depth[known][:, None]], axis=1)
        else:
            local = ray * depth[known][:, None]
        c2w = scan.cameras.c2w[view].numpy().astype(np.float64)
        points.append(local @ c2w[:3, :3].T + c2w[:3, 3])
    return np.concatenate(points) if points else np.zeros((0, 3))
