"""GRM's cameras: the ray channels, the way from depths to points, and any posed views brought into the frame in which
the network works. All of it stays in float32 or higher, whatever the network's precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views

PixelGrid = Literal["corners", "centres"]
Placing = Literal["distance", "object"]

CAMERA_DISTANCE = 2.7  # from the origin to the published cameras; the object lies in [-1,1]^3 around the origin
FIELD_OF_VIEW = math.radians(50)  # of the published cameras
HALF_EXTENT = CAMERA_DISTANCE * math.tan(FIELD_OF_VIEW / 2)  # half a picture's side, measured at the origin

# ---- rays and points


@dataclass(frozen=True)
class Poses:
    """The cameras of a batch, for square pictures.

    c2w           [B,V,4,4] camera to world, OpenCV axes
    intrinsics    [B,V,4] fx fy cx cy as shares of the picture's side; an orthographic camera's fx fy are sides per unit
    orthographic  [B,V] bool
    """

    c2w: Tensor
    intrinsics: Tensor
    orthographic: Tensor


def poses(c2w: Tensor, Ks: Tensor, orthographic: Tensor | None, side: int) -> Poses:
    """c2w [B,V,4,4], Ks [B,V,3,3] in pixels of pictures of `side` pixels, orthographic [B,V] or None: all pinhole."""
    c2w, Ks = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (c2w, Ks))
    intrinsics = torch.stack([Ks[..., 0, 0], Ks[..., 1, 1], Ks[..., 0, 2], Ks[..., 1, 2]], dim=-1) / side
    if orthographic is None:
        orthographic = torch.zeros(c2w.shape[:2], dtype=torch.bool, device=c2w.device)
    return Poses(c2w, intrinsics, orthographic)


def plucker(poses: Poses, side: int, grid: PixelGrid) -> Tensor:
    """[B,V,6,side,side] moments (origin x direction), then unit directions (paper 3.2), in the world.

    On the grid "corners" the published network has its first and last pixels on the picture's edges and, by a slip that
    its weights have learnt, adds half a picture: with a centred principal point its rays look right and down.
    """
    shift = 0.5 if grid == "corners" else 0.0
    lateral, forward = _plane(poses, _positions(side, grid, poses) + shift)
    flat = poses.orthographic[:, :, None, None, None]
    directions = F.normalize(torch.where(flat, 0.0, lateral) + forward, dim=-1)
    origins = poses.c2w[:, :, None, None, :3, 3] + torch.where(flat, lateral, 0.0)
    channels = torch.cat([torch.linalg.cross(origins, directions), directions], dim=-1)  # [B,V,H,W,6]
    return channels.permute(0, 1, 4, 2, 3)


def depth_of_origin(poses: Poses, grid: PixelGrid) -> Tensor:
    """[B,V] the depth that a raw depth of 0 stands for: published, the camera's distance from the origin, whatever it
    looks at; on the grid "centres" the origin's own depth, which an orthographic camera has too.
    """
    position = poses.c2w[..., :3, 3]
    if grid == "corners":
        return torch.linalg.vector_norm(position, dim=-1)
    return -(poses.c2w[..., :3, 2] * position).sum(-1)


def unproject(depth: Tensor, poses: Poses, grid: PixelGrid) -> Tensor:
    """[B,V,H,H,3] world points of depths [B,V,H,H] along the view axes, one a pixel."""
    starts, steps = ray_lines(poses, depth.shape[-1], grid)
    return starts + depth[..., None] * steps


def project(points: Tensor, poses: Poses) -> tuple[Tensor, Tensor]:
    """[B,V,H,W,2] and [B,V,H,W]: where each view's camera sees its own of points [B,V,H,W,3], as shares of the
    picture's side, and at what depth. What is behind a camera is seen far outside or anywhere.
    """
    offset = points - poses.c2w[:, :, None, None, :3, 3]
    local = (offset[..., None] * poses.c2w[:, :, None, None, :3, :3]).sum(-2)
    depth = local[..., 2]
    width = torch.where(poses.orthographic[:, :, None, None], 1.0, depth.clamp_min(1e-3))
    focal, middle = poses.intrinsics[:, :, None, None].split(2, dim=-1)
    return local[..., :2] / width[..., None] * focal + middle, depth


def ray_lines(poses: Poses, side: int, grid: PixelGrid) -> tuple[Tensor, Tensor]:
    """starts, steps [B,V,side,side,3], world: the point at depth z of a pixel's ray is start + z step."""
    lateral, forward = _plane(poses, _positions(side, grid, poses))
    flat, centre = poses.orthographic[:, :, None, None, None], poses.c2w[:, :, None, None, :3, 3]
    return centre + torch.where(flat, lateral, 0.0), forward + torch.where(flat, 0.0, lateral)


def _positions(side: int, grid: PixelGrid, poses: Poses) -> Tensor:
    """[side] pixel positions as shares of the picture's side."""
    index = torch.arange(side, device=poses.c2w.device, dtype=poses.intrinsics.dtype)
    return index / max(side - 1, 1) if grid == "corners" else (index + 0.5) / side


def _plane(poses: Poses, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets [B,V,H,W,3] across the view axis at depth 1, and the axis [B,V,1,1,3], both in the world.

    Sums of products instead of a matrix product: autocast would do that in half precision.
    """
    fx, fy, cx, cy = poses.intrinsics[..., None].unbind(-2)  # [B,V,1]
    x, y = (positions - cx) / fx, (positions - cy) / fy
    right, down, forward = poses.c2w[:, :, None, None, :3, :3].unbind(-1)
    return x[:, :, None, :, None] * right + y[:, :, :, None, None] * down, forward


# ---- placing: from the views' world to the network's


@dataclass(frozen=True)
class Placement:
    """The similarity that takes the views' world to the network's: x -> scale * turn @ (x - target).

    turn    [3,3] float64 rotation
    target  [3] float64, world: becomes the origin
    scale   network units a world unit
    """

    turn: Tensor
    target: Tensor
    scale: float

    def inward(self, cameras: Cameras) -> Cameras:
        """The same cameras in the network's world; an orthographic one has other pixels a unit there."""
        c2w, Ks = cameras.c2w.double().cpu().clone(), cameras.Ks.clone()
        c2w[:, :3, 3] = self.scale * (c2w[:, :3, 3] - self.target) @ self.turn.T
        c2w[:, :3, :3] = self.turn @ c2w[:, :3, :3]
        Ks[cameras.orthographic, :2, :2] /= self.scale
        return replace(cameras, c2w=c2w.float().to(cameras.c2w.device), Ks=Ks)

    @property
    def outward(self) -> Tensor:
        """[4,4] float64, the network's world to the views'."""
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = self.turn.T / self.scale
        matrix[:3, 3] = self.target
        return matrix


def place(views: Views, *, rule: Placing, azimuth: float, target: Tensor | None) -> Placement:
    """Where the network wants the views: looking at the origin, Z up, the first of them at `azimuth`.

    rule     what decides the scale. "distance": the cameras are 2.7 away on average, as published; "object": at the
             origin half a picture's side measures at most 1.26, for pictures cut as `cut_out` does
    azimuth  radians of the first camera, from +X towards +Y
    target   [3] world, the object's middle; None: where the views look at, or else the middle of what their depth shows
    The result moves with the cameras: a similarity of the world changes nothing of what the network sees.
    Raises BadInput when the views do not say where the object is.
    """
    centre = _target(views, rule) if target is None else target.double().cpu()
    c2w = views.cameras.c2w.double().cpu()
    depths = ((centre - c2w[:, :3, 3]) * c2w[:, :3, 2]).sum(-1)
    pinhole = ~views.cameras.orthographic.cpu()
    if bool((depths[pinhole] <= 0).any()):
        raise BadInput(f"target: expected a point before every camera, found {centre.tolist()}")
    if rule == "distance":
        scale = CAMERA_DISTANCE / float(torch.linalg.vector_norm(centre - c2w[:, :3, 3], dim=-1).mean())
    else:
        focal = views.cameras.Ks.double().cpu()[:, [0, 1], [0, 1]].mean(-1)
        half_side = 0.5 * max(views.cameras.width, views.cameras.height) / focal
        scale = HALF_EXTENT / float((half_side * torch.where(pinhole, depths, 1.0)).max())
    return Placement(_turn(c2w[:, :3, :3], azimuth), centre, scale)


def _turn(rotations: Tensor, azimuth: float) -> Tensor:
    """[3,3] from the world to one with Z up and the first camera at `azimuth`, for camera axes [V,3,3].

    Up is the direction to which all pictures' horizontal axes are perpendicular, and among several such the one that
    is most upwards in the pictures.
    """
    right, upwards = rotations[:, :, 0], -rotations[:, :, 1].mean(0)
    tilt = (right[:, :, None] * right[:, None, :]).mean(0) - 1e-4 * upwards[:, None] * upwards
    up = torch.linalg.eigh(tilt).eigenvectors[:, 0]
    up = -up if float(up @ upwards) < 0 else up
    across = right[0] - (right[0] @ up) * up
    if float(torch.linalg.vector_norm(across)) < 1e-3:  # the first picture lies on its side
        across = rotations[0, :, 1] - (rotations[0, :, 1] @ up) * up
    across = F.normalize(across, dim=0)
    here = torch.stack([torch.linalg.cross(across, up), across, up])  # towards the camera, its right, up
    cosine, sine = math.cos(azimuth), math.sin(azimuth)
    there = torch.tensor([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
    return there.T @ here


def _target(views: Views, rule: Placing) -> Tensor:
    """[3] float64: the point nearest to all view axes, or for "object" to the rays through the pictures' middles.

    Along directions that these leave open, as opposite views do, it is the middle of the cameras.
    """
    position, forward = views.cameras.centres.double().cpu(), views.cameras.c2w[:, :3, 2].double().cpu()
    if rule == "object":
        position, towards = _middle_rays(views.cameras)
    else:
        towards = forward
    across = torch.eye(3, dtype=torch.float64) - towards[:, :, None] * towards[:, None, :]
    weak = 1e-6 * torch.eye(3, dtype=torch.float64)
    wanted = (across @ position[..., None]).mean(0)[:, 0] + weak @ position.mean(0)
    target = torch.linalg.solve(across.mean(0) + weak, wanted)
    depths = ((target - position) * forward).sum(-1)
    spread = torch.linalg.vector_norm(position - position.mean(0), dim=-1).max()
    rounding = 1e-6 * torch.linalg.vector_norm(position, dim=-1).max()
    if bool(depths.min() > 1e-3 * spread + rounding):  # parallel axes meet nowhere: that is, at the cameras
        return target
    if views.depth is not None and bool((views.depth > 0).any()):
        return _middle_of_depth(views.depth, position, towards, forward)
    raise BadInput(
        "views: expected axes that meet before the cameras, or depths, to tell where the object is; "
        f"found neither in {len(views)} views"
    )


def _middle_rays(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """[V,3], [V,3] float64, world: starts and unit directions of the rays through the pictures' middles."""
    c2w, Ks = cameras.c2w.double().cpu(), cameras.Ks.double().cpu()
    middle = torch.tensor([cameras.width / 2, cameras.height / 2], dtype=torch.float64)
    plane = (middle - Ks[:, :2, 2]) / Ks[:, [0, 1], [0, 1]]
    lateral = (c2w[:, :3, :2] @ plane[..., None])[..., 0]
    flat = cameras.orthographic.cpu()[:, None]
    starts = c2w[:, :3, 3] + torch.where(flat, lateral, 0.0)
    return starts, F.normalize(c2w[:, :3, 2] + torch.where(flat, 0.0, lateral), dim=-1)


def _middle_of_depth(depth: Tensor, position: Tensor, towards: Tensor, forward: Tensor) -> Tensor:
    """[3] float64: the mean over the views of the point on the ray at the middle depth of what is seen, [V,H,W]."""
    seen = [(view, float(own[own > 0].median())) for view, own in enumerate(depth) if bool((own > 0).any())]
    slope = (towards * forward).sum(-1)  # a ray's depth a unit of its length
    return torch.stack([position[view] + z / slope[view] * towards[view] for view, z in seen]).mean(0)


# ---- framing: from any pictures to the network's squares

MARGIN = 0.05  # of an object's larger side, left free around it on all sides


@dataclass(frozen=True)
class Window:
    """A square part of a picture, in its pixels; it may reach beyond the picture, where nothing is seen."""

    left: int
    top: int
    size: int

    def cut(self, planes: Tensor, side: int, mode: Literal["smooth", "nearest"]) -> Tensor:
        """planes [C,H,W] -> [C,side,side]"""
        height, width = planes.shape[-2:]
        right, bottom = self.left + self.size - width, self.top + self.size - height
        part = F.pad(planes, (-self.left, right, -self.top, bottom))[None]  # negative: cut
        if self.size == side:
            return part[0]
        if mode == "nearest":
            return F.interpolate(part, (side, side), mode="nearest-exact")[0]
        return F.interpolate(part, (side, side), mode="bilinear", antialias=True)[0]

    def intrinsics(self, K: Tensor, side: int) -> Tensor:
        """[3,3] float32 in pixels of the cut, for K [3,3] in pixels of the picture."""
        moved = K.float().clone()
        moved[0, 2] -= self.left
        moved[1, 2] -= self.top
        moved[:2] *= side / self.size
        return moved


def angle_window(alpha: Tensor, K: Tensor, field_of_view: float) -> Window:
    """The square of this opening angle, radians, around the principal point; more where alpha [H,W] reaches beyond."""
    middle, focal = K[:2, 2].tolist(), float(K.diagonal()[:2].mean())
    size = max(round(2 * math.tan(field_of_view / 2) * focal), _reach(alpha, middle))
    return Window(round(middle[0] - size / 2), round(middle[1] - size / 2), size)


def object_window(alpha: Tensor) -> Window:
    """A square around all that is seen in alpha [H,W], with MARGIN, that stays in the picture if it can; all of a
    picture that shows nothing.
    """
    height, width = alpha.shape
    columns, rows = ((alpha > 0).any(axis).nonzero()[:, 0].tolist() for axis in (0, 1))
    if not columns:
        size = max(height, width)
        return Window((width - size) // 2, (height - size) // 2, size)
    extent = max(columns[-1] - columns[0], rows[-1] - rows[0]) + 1
    size = extent + 2 * math.ceil(MARGIN * extent)
    left = _kept((columns[0] + columns[-1] + 1 - size) // 2, size, width)
    return Window(left, _kept((rows[0] + rows[-1] + 1 - size) // 2, size, height), size)


def _kept(start: int, size: int, length: int) -> int:
    """The start nearest to this one of a stretch of `size` within 0..length, where it fits."""
    return start if size > length else min(max(start, 0), length - size)


def frame(views: Views, side: int, field_of_view: float) -> tuple[Tensor, Tensor]:
    """Pictures [V,4,side,side] (sRGB over white, then alpha, 0..1) and their Ks [V,3,3] float32 in pixels.

    The square has this opening angle around the principal point: a narrower picture is padded, a wider one loses its
    empty rim and nothing of what is seen. Whole pixels are cut and padded, so that a picture which is right already
    stays as it is.
    """
    windows = [
        angle_window(image[..., 3], K, field_of_view) for image, K in zip(views.images, views.cameras.Ks, strict=True)
    ]
    return _cut_all(views, windows, side)


def cut_out(views: Views, side: int) -> tuple[Tensor, Cameras, Tensor | None]:
    """Pictures [V,4,side,side] as `frame` gives them, of the object alone as large as it fits; their cameras, and their
    depth [V,side,side] where the views have one.
    """
    windows = [object_window(image[..., 3]) for image in views.images]
    pictures, Ks = _cut_all(views, windows, side)
    depth = views.depth
    if depth is not None:
        parts = zip(windows, depth[:, None], strict=True)
        depth = torch.cat([window.cut(plane, side, "nearest") for window, plane in parts])
    return pictures, replace(views.cameras, Ks=Ks, width=side, height=side), depth


def _cut_all(views: Views, windows: Sequence[Window], side: int) -> tuple[Tensor, Tensor]:
    ink = torch.cat([(1 - views.images[..., :3]) * views.images[..., 3:], views.images[..., 3:]], dim=-1)
    ink = ink.permute(0, 3, 1, 2)  # [V,4,H,W]; what white lacks, and alpha: 0 where nothing is seen
    cut = torch.stack([window.cut(planes, side, "smooth") for window, planes in zip(windows, ink, strict=True)])
    Ks = torch.stack([window.intrinsics(K, side) for window, K in zip(windows, views.cameras.Ks, strict=True)])
    return torch.cat([1 - cut[:, :3], cut[:, 3:]], dim=1), Ks


def _reach(alpha: Tensor, middle: list[float]) -> int:
    """The side in pixels of the smallest square around `middle` that holds all that is seen in alpha [H,W]."""
    seen = alpha > 0
    edges = [0.0]
    for axis, centre in enumerate(middle):
        places = seen.any(axis).nonzero()[:, 0]
        if len(places):
            edges += [centre - float(places[0]), float(places[-1]) + 1 - centre]
    return math.ceil(2 * max(edges) - 1e-3)
