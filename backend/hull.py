"""The visual hull: everything that no alpha mask rules out (Laurentini 1994), on a grid of voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor

from backend.cameras import Cameras, Views
from backend.compositing import premultiplied

MASK_LIMIT = 512  # pixels of a side; finer masks than this change no voxel of the grids in use
MARGIN = 0.04  # the box grows by this share of its largest side, so that the surface closes inside the grid


class NothingSeen(ValueError):
    """The views show no object, or none that they have in common."""


@dataclass(frozen=True)
class VoxelGrid:
    """Where the voxels of a field of shape [X,Y,Z] lie: the centre of voxel (i,j,k) is origin + spacing (i,j,k).

    origin   [3] float32, world
    spacing  edge of a voxel, scene units
    shape    voxels along the world's X, Y and Z
    """

    origin: Tensor
    spacing: float
    shape: tuple[int, int, int]

    def centres(self) -> Tensor:
        """[X,Y,Z,3] world positions of the voxel centres."""
        axes = [self.origin[axis] + self.spacing * torch.arange(self.shape[axis]) for axis in range(3)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    @property
    def diagonal(self) -> float:
        """Length of the box's diagonal, scene units."""
        return self.spacing * math.hypot(*self.shape)


def grid_over(low: Tensor, high: Tensor, resolution: int) -> VoxelGrid:
    """Cubic voxels that fill the box from `low` to `high` [3], `resolution` of them along its largest side."""
    spacing = float((high - low).max()) / resolution
    shape = [max(1, math.ceil(float(side) / spacing - 1e-4)) for side in high - low]
    slack = (torch.tensor(shape) * spacing - (high - low)) / 2
    return VoxelGrid(low - slack + spacing / 2, spacing, (shape[0], shape[1], shape[2]))


def project(points: Tensor, cameras: Cameras, view: int) -> tuple[Tensor, Tensor]:
    """Pixel positions [...,2] and depths [...] of world points [...,3] in one camera, unclipped.

    A depth of at most 0 means behind the camera; its pixel position means nothing for a pinhole.
    """
    viewmat, K = cameras.viewmats[view], cameras.Ks[view]
    local = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    depth = local[..., 2]
    divisor = torch.ones_like(depth) if cameras.orthographic[view] else depth.clamp_min(1e-9)
    return (local[..., :2] / divisor[..., None]) * K.diagonal()[:2] + K[:2, 2], depth


def common_box(views: Views) -> tuple[Tensor, Tensor]:
    """The corners [3], [3] of the box around the part of space that every mask's bounding rectangle allows.

    Each side of a rectangle is a plane through its camera, unless the object is cut off there by the frame; six linear
    programmes find the box. With too few directions to close it, frames count as sides too and the depth of each
    camera's share is held to the object's apparent width.

    Raises NothingSeen where no mask shows anything or where the masks contradict each other.
    """
    shown = [view for view in range(len(views)) if bool((views.images[view, ..., 3] > 0.5).any())]
    if not shown:
        raise NothingSeen("The views are fully transparent: no camera sees the object.")
    planes = np.concatenate([_rectangle_planes(views, view) for view in shown])
    box = _box_of(planes)
    if box is None:
        depths = [_depth_planes(views, view, meeting_point(views.cameras[shown])) for view in shown]
        frames = [_rectangle_planes(views, view, frame_closes=True) for view in shown]
        box = _box_of(np.concatenate([*frames, *depths]))
    if box is None:
        raise NothingSeen("The cameras see no common object: their masks have no part of space in common.")
    low, high = box
    margin = MARGIN * float((high - low).max())
    return low - margin, high + margin


def visual_hull(views: Views, grid: VoxelGrid) -> Tensor:
    """[X,Y,Z] float32, 0..1: the least alpha that any view shows where the voxel lies; the hull's surface is at 0.5.

    A mask is softened to the size of a voxel first, keeping what is thinner than one. Views that show nothing and
    places outside a frame rule nothing out.
    """
    centres = grid.centres()
    hull = torch.ones(grid.shape)
    for view in range(len(views)):
        alpha = views.images[view, ..., 3]
        if not bool((alpha > 0.5).any()):
            continue
        pixels, depth = project(centres, views.cameras, view)
        hull = torch.minimum(hull, _sample_mask(alpha, pixels, depth, voxel_pixels(grid, views.cameras, view)))
    return hull


def mean_colours(views: Views, grid: VoxelGrid) -> Tensor:
    """[X,Y,Z,3] mean sRGB colour of the opaque pixels onto which a voxel falls; grey where there are none."""
    centres = grid.centres()
    total, weight = torch.zeros(*grid.shape, 3), torch.zeros(*grid.shape, 1)
    height, width = views.cameras.height, views.cameras.width
    for view in range(len(views)):
        image = views.images[view]
        colours = premultiplied(image).permute(2, 0, 1)[None]
        pixels, depth = project(centres, views.cameras, view)
        place = (2 * pixels / torch.tensor([width, height]) - 1).reshape(1, grid.shape[0], -1, 2)
        sampled = F.grid_sample(colours, place, align_corners=False)[0].permute(1, 2, 0).reshape(*grid.shape, 4)
        ahead = (depth > 0)[..., None]
        total += torch.where(ahead, sampled[..., :3], 0.0)
        weight += torch.where(ahead, sampled[..., 3:], 0.0)
    return torch.where(weight > 0.05, total / weight.clamp_min(0.05), 0.5)


def voxel_pixels(grid: VoxelGrid, cameras: Cameras, view: int) -> tuple[float, float]:
    """How many pixels wide and high a voxel in the middle of the grid is."""
    middle = grid.origin + grid.spacing * (torch.tensor(grid.shape) - 1) / 2
    depth = float(project(middle, cameras, view)[1])
    reach = 1.0 if cameras.orthographic[view] else max(depth, 1e-6)
    per_pixel = grid.spacing / reach
    return float(cameras.Ks[view, 0, 0]) * per_pixel, float(cameras.Ks[view, 1, 1]) * per_pixel


def _sample_mask(alpha: Tensor, pixels: Tensor, depth: Tensor, voxel: tuple[float, float]) -> Tensor:
    """Alpha [H,W] at `pixels` [X,Y,Z,2]; 1 outside the frame and behind the camera; voxel in pixels wide and high."""
    height, width = alpha.shape
    wide, high = (
        max(1, math.floor(size / 2), math.ceil(side / MASK_LIMIT))
        for size, side in zip(voxel, (width, height), strict=True)
    )
    mask = F.max_pool2d(alpha[None, None], (high, wide), ceil_mode=True)
    covered = torch.tensor([mask.shape[3] * wide, mask.shape[2] * high])  # ceil_mode reaches past the last pixel
    place = (2 * pixels / covered - 1).reshape(1, pixels.shape[0], -1, 2)
    values = F.grid_sample(mask, place, padding_mode="border", align_corners=False).reshape(depth.shape)
    inside = ((pixels >= 0) & (pixels <= torch.tensor([width, height]))).all(-1) & (depth > 0)
    return torch.where(inside, values, 1.0)


def _rectangle_planes(views: Views, view: int, *, frame_closes: bool = False) -> np.ndarray:
    """[P,4] rows (n, d): n.x <= d for points in front of the camera that project into the mask's rectangle.

    frame_closes  whether sides where the object is cut off by the frame count too
    """
    rows, columns = torch.nonzero(views.images[view, ..., 3] > 0.5, as_tuple=True)
    height, width = views.cameras.height, views.cameras.width
    left, right = int(columns.min()), int(columns.max()) + 1
    top, bottom = int(rows.min()), int(rows.max()) + 1
    K = views.cameras.Ks[view]
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    sides = [(0, (left - cx) / fx, -1.0, left > 0), (0, (right - cx) / fx, 1.0, right < width)]
    sides += [(1, (top - cy) / fy, -1.0, top > 0), (1, (bottom - cy) / fy, 1.0, bottom < height)]
    pinhole = not bool(views.cameras.orthographic[view])
    local = [[0.0, 0.0, -1.0, 0.0]] if pinhole else []
    for axis, edge, sign, closed in sides:
        if closed or frame_closes:
            normal = [0.0, 0.0, -sign * edge if pinhole else 0.0]
            normal[axis] = sign
            local.append([*normal, 0.0 if pinhole else sign * edge])
    return _to_world(np.array(local).reshape(-1, 4), views.cameras, view)


def _depth_planes(views: Views, view: int, meeting: Tensor) -> np.ndarray:
    """[2,4] planes that keep a camera's share as deep as its mask is wide, around the point where the cameras meet."""
    cameras = views.cameras
    depth = float(project(meeting, cameras, view)[1])
    pinhole = not bool(cameras.orthographic[view])
    if pinhole and depth <= 0:
        depth = 1.0
    rows, columns = torch.nonzero(views.images[view, ..., 3] > 0.5, as_tuple=True)
    size_px = max(int(columns.max() - columns.min()), int(rows.max() - rows.min())) + 1
    reach = 0.5 * size_px / float(cameras.Ks[view, 0, 0]) * (depth if pinhole else 1.0)
    near = max(depth - reach, 0.05 * depth) if pinhole else depth - reach
    return _to_world(np.array([(0.0, 0.0, 1.0, depth + reach), (0.0, 0.0, -1.0, -near)]), cameras, view)


def _to_world(planes: np.ndarray, cameras: Cameras, view: int) -> np.ndarray:
    """Planes (n, d) of camera space in world space: x_cam = R x + t."""
    viewmat = cameras.viewmats[view].double().numpy()
    normals = planes[:, :3] @ viewmat[:3, :3]
    return np.concatenate([normals, (planes[:, 3] - planes[:, :3] @ viewmat[:3, 3])[:, None]], axis=1)


def meeting_point(cameras: Cameras) -> Tensor:
    """[3] the point nearest to all optical axes; the world's origin decides along directions that they leave open."""
    forward = cameras.c2w[:, :3, 2].double()
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    weak = 1e-6 * len(cameras) * torch.eye(3, dtype=torch.float64)
    target = (across @ cameras.centres.double()[..., None]).sum(0)
    return torch.linalg.solve(across.sum(0) + weak, target)[:, 0].float()


def _box_of(planes: np.ndarray) -> tuple[Tensor, Tensor] | None:
    """The bounding box of {x: n.x <= d}, or None where that set is empty or reaches to infinity."""
    limits = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            cost = np.zeros(3)
            cost[axis] = sign
            answer = linprog(cost, A_ub=planes[:, :3], b_ub=planes[:, 3], bounds=(None, None))
            if answer.status != 0:
                return None
            limits.append(sign * answer.fun)
    low, high = torch.tensor(limits[0::2], dtype=torch.float32), torch.tensor(limits[1::2], dtype=torch.float32)
    return (low, high) if bool((high > low).all()) else None
