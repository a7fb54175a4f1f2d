"""What hull.py finds for one object on the processor, by torch for a batch of objects on any device: the box that their
masks leave, the voxels in it, and what of those the masks and pictures show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import Cameras, Views
from backend.compositing import premultiplied
from backend.hull import MARGIN, MASK_LIMIT, NothingSeen, VoxelGrid, common_box

FAR = 1e4  # distances between the cameras: what reaches so far has no end


@dataclass(frozen=True)
class Posed:
    """B objects, each seen in V views.

    images        [B,V,H,W,4] float32, 0..1, straight alpha
    c2w           [B,V,4,4] float32, camera to world, OpenCV axes
    Ks            [B,V,3,3] float32, pixels
    orthographic  [B,V] bool
    """

    images: Tensor
    c2w: Tensor
    Ks: Tensor
    orthographic: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Tensor) -> Posed:
        return Posed(*(getattr(self, field.name)[chosen] for field in fields(self)))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.images.shape[2], self.images.shape[3]

    def cameras(self, item: int, size: tuple[int, int]) -> Cameras:
        """Those of one object, for pictures of this height and width."""
        height, width = self.size
        cameras = Cameras(self.c2w[item], self.Ks[item], self.orthographic[item], width, height)
        return cameras.resized(size[1], size[0])


@dataclass(frozen=True)
class Lattice:
    """Where the voxels lie: the centre of (i,j,k) is origin + spacing (i,j,k). Those from `shape` on are never used.

    origin      [B,3] float32, world
    spacing     [B] scene units
    shape       [B,3] voxels along the axes, at most
    resolution  as many
    """

    origin: Tensor
    spacing: Tensor
    shape: Tensor
    resolution: int

    def numbers(self) -> Tensor:
        """[R,R,R,3] i, j, k."""
        axis = torch.arange(self.resolution, device=self.origin.device)
        return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)

    def centres(self) -> Tensor:
        """[B,R^3,3] world."""
        return self.origin[:, None] + self.spacing[:, None, None] * self.numbers().flatten(0, 2)

    def grids(self) -> list[VoxelGrid]:
        """One an object, on the processor."""
        rows = zip(self.origin.cpu(), self.spacing.tolist(), self.shape.tolist(), strict=True)
        return [VoxelGrid(origin, spacing, (x, y, z)) for origin, spacing, (x, y, z) in rows]

    def within(self, rim: int) -> Tensor:
        """[B,R,R,R] bool: what is in the shape and at least so far from its border."""
        numbers = self.numbers()
        last = self.shape[:, None, None, None] - 1 - rim
        return ((numbers >= rim) & (numbers <= last)).all(-1)


# ---- the box that the masks leave, as `hull.common_box` finds it


def boxes(posed: Posed) -> tuple[Tensor, Tensor, Tensor]:
    """low, high [B,3] float32, world, and whether there is such a box [B] bool."""
    found = [_box_of(planes) for planes in _planes(posed)]
    found = [_box_by_programming(posed, item) if box is None else box for item, box in enumerate(found)]
    some = torch.tensor([box is not None for box in found], device=posed.images.device)
    corners = torch.stack([torch.zeros(2, 3).to(posed.c2w) if box is None else box for box in found])
    return corners[:, 0], corners[:, 1], some


def _box_by_programming(posed: Posed, item: int) -> Tensor | None:
    """[2,3] for views that leave the box open, which is rare."""
    cameras = posed.cameras(item, posed.size).to("cpu")
    try:
        low, high = common_box(Views(posed.images[item].cpu(), cameras))
    except NothingSeen:
        return None
    return torch.stack([low, high]).to(posed.images)


def _planes(posed: Posed) -> Tensor:
    """[B,5V,4] float64 (n, d) of unit length with n.x <= d for what the masks' rectangles allow; 0, 1 for no limit."""
    height, width = posed.size
    mask = posed.images[..., 3] > 0.5
    columns, rows = mask.any(-2), mask.any(-1)
    edges = [_first(columns), width - _first(columns.flip(-1)), _first(rows), height - _first(rows.flip(-1))]
    K, pinhole = posed.Ks.double(), ~posed.orthographic
    sides = [torch.tensor([0.0, 0.0, -1.0, 0.0], dtype=torch.float64, device=K.device) * pinhole[..., None]]
    closed = [pinhole]
    for number, edge in enumerate(edges):
        axis, sign = number // 2, -1.0 if number % 2 == 0 else 1.0
        slope = (edge - K[..., axis, 2]) / K[..., axis, axis]
        row = torch.zeros(*slope.shape, 4, dtype=torch.float64, device=K.device)
        row[..., axis] = sign
        row[..., 2] = torch.where(pinhole, -sign * slope, 0.0)
        row[..., 3] = torch.where(pinhole, 0.0, sign * slope)
        sides.append(row)
        closed.append(edge > 0 if sign < 0 else edge < (width, height)[axis])
    counts = torch.stack(closed, -1) & mask.flatten(2).any(-1)[..., None]  # [B,V,5]
    planes = _to_world(torch.stack(sides, dim=-2), posed.c2w.double())
    nothing = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64, device=K.device)
    limits = torch.where(counts[..., None], planes, nothing).flatten(1, 2)
    return torch.cat([limits, _far_planes(posed.c2w[..., :3, 3].double())], dim=1)


def _first(seen: Tensor) -> Tensor:
    """[B,V] first place of [B,V,L] where something is seen."""
    return seen.to(torch.uint8).argmax(-1)


def _to_world(planes: Tensor, c2w: Tensor) -> Tensor:
    """Planes [B,V,P,4] of camera space, in the world, with unit normals."""
    normals = (planes[..., None, :3] * c2w[:, :, None, :3, :3]).sum(-1)
    away = planes[..., 3] + (normals * c2w[:, :, None, :3, 3]).sum(-1)
    return torch.cat([normals, away[..., None]], -1) / normals.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _far_planes(centres: Tensor) -> Tensor:
    """[B,6,4] a box, for cameras at [B,V,3], that only what has no end reaches."""
    middle = centres.mean(1)
    reach = FAR * (centres - middle[:, None]).norm(dim=-1).amax(1).clamp_min(1e-3)
    normals = torch.cat([torch.eye(3), -torch.eye(3)]).to(centres).expand(len(centres), 6, 3)
    away = (normals * middle[:, None]).sum(-1) + reach[:, None]
    return torch.cat([normals, away[..., None]], -1)


def _box_of(planes: Tensor) -> Tensor | None:
    """[2,3] float32 corners, with the margin, of {x: n.x <= d} for planes [P,4], the last six being the far ones.

    None where that is empty or has no end. The extremes of such a set are where three of its planes meet.
    """
    planes = planes[planes[:, :3].any(-1)]
    normals, away = planes[:, :3], planes[:, 3]
    a, b, c = torch.combinations(torch.arange(len(planes), device=planes.device), 3).unbind(1)
    across = torch.linalg.cross(normals[b], normals[c], dim=-1)
    volume = (normals[a] * across).sum(-1)
    points = away[a, None] * across + away[b, None] * torch.linalg.cross(normals[c], normals[a], dim=-1)
    points = points + away[c, None] * torch.linalg.cross(normals[a], normals[b], dim=-1)
    points = points / torch.where(volume.abs() > 1e-9, volume, torch.nan)[:, None]
    scale = (away[-6:].amax() / FAR).abs()
    corners = points[(points @ normals.T <= away + 1e-7 * scale).all(-1)]  # no comparison with NaN is true
    if len(corners) == 0:
        return None
    low, high = corners.amin(0), corners.amax(0)
    margin = MARGIN * (high - low).amax()
    good = bool(((high > low) & (high < 0.5 * away[-6:-3]) & (-low < 0.5 * away[-3:])).all())
    return torch.stack([low - margin, high + margin]).float() if good else None


# ---- voxels


def lattice_over(low: Tensor, high: Tensor, resolution: int) -> Lattice:
    """Cubic voxels that fill boxes from `low` to `high` [B,3], as `hull.grid_over` lays them."""
    low, side = low.double(), (high - low).double()
    spacing = side.amax(1) / resolution
    shape = (side / spacing[:, None] - 1e-4).ceil().clamp_min(1)
    slack = (shape * spacing[:, None] - side) / 2
    origin = low - slack + spacing[:, None] / 2
    return Lattice(origin.float(), spacing.float(), shape.long(), resolution)


def project(posed: Posed, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [B,V,P,2] and depths [B,V,P] of world points [B,P,3], unclipped, as `hull.project` gives them."""
    from_camera = points[:, None] - posed.c2w[:, :, None, :3, 3]
    local = (from_camera[..., None] * posed.c2w[:, :, None, :3, :3]).sum(-2)
    depth = local[..., 2]
    divisor = torch.where(posed.orthographic[..., None], 1.0, depth.clamp_min(1e-9))
    focal, middle = posed.Ks[:, :, [0, 1], [0, 1]], posed.Ks[:, :, :2, 2]
    return local[..., :2] / divisor[..., None] * focal[:, :, None] + middle[:, :, None], depth


def voxel_pixels(posed: Posed, lattice: Lattice) -> Tensor:
    """[B,V,2] how many pixels wide and high a voxel in the middle is, as `hull.voxel_pixels`."""
    middle = lattice.origin + lattice.spacing[:, None] * (lattice.shape - 1) / 2
    depth = project(posed, middle[:, None])[1]
    reach = torch.where(posed.orthographic[..., None], 1.0, depth.clamp_min(1e-6))
    return posed.Ks[:, :, [0, 1], [0, 1]] * lattice.spacing[:, None, None] / reach


def hulls(posed: Posed, lattice: Lattice) -> Tensor:
    """[B,R,R,R] the least alpha that any view shows of each voxel, as `hull.visual_hull`."""
    height, width = posed.size
    pixels, depth = project(posed, lattice.centres())
    alpha = posed.images[..., 3].flatten(0, 1)
    limits = torch.tensor([math.ceil(width / MASK_LIMIT), math.ceil(height / MASK_LIMIT)], device=alpha.device)
    windows = torch.maximum((voxel_pixels(posed, lattice) / 2).floor().long(), limits).clamp_min(1).flatten(0, 1)
    values = torch.ones_like(depth.flatten(0, 1))
    for wide, high in windows.unique(dim=0).tolist():
        chosen = (windows == torch.tensor([wide, high], device=alpha.device)).all(-1).nonzero()[:, 0]
        mask = F.max_pool2d(alpha[chosen][:, None], (high, wide), ceil_mode=True)
        covered = torch.tensor([mask.shape[3] * wide, mask.shape[2] * high], device=alpha.device)
        place = 2 * pixels.flatten(0, 1)[chosen][:, None] / covered - 1
        values[chosen] = F.grid_sample(mask, place, padding_mode="border", align_corners=False)[:, 0, 0]
    size = torch.tensor([width, height], device=alpha.device)
    inside = ((pixels >= 0) & (pixels <= size)).all(-1) & (depth > 0)
    inside &= (posed.images[..., 3] > 0.5).flatten(2).any(-1)[..., None]
    values = torch.where(inside, values.view_as(depth), 1.0).amin(1)
    return values.unflatten(1, (lattice.resolution,) * 3)


def mean_colours(posed: Posed, lattice: Lattice) -> Tensor:
    """[B,3,R,R,R] mean colour of the opaque pixels on which a voxel falls, as `hull.mean_colours`."""
    height, width = posed.size
    pixels, depth = project(posed, lattice.centres())
    place = 2 * pixels / torch.tensor([width, height], device=pixels.device) - 1
    ink = premultiplied(posed.images).movedim(-1, -3).flatten(0, 1)
    sampled = F.grid_sample(ink, place.flatten(0, 1)[:, None], align_corners=False)[:, :, 0]
    sampled = torch.where(depth[:, :, None] > 0, sampled.unflatten(0, depth.shape[:2]), 0.0).sum(1)  # [B,4,P]
    total, weight = sampled.split([3, 1], dim=1)
    colours = torch.where(weight > 0.05, total / weight.clamp_min(0.05), 0.5)
    return colours.unflatten(2, (lattice.resolution,) * 3)
