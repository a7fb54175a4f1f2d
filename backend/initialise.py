"""Where fitting begins: splats on the surfaces that depth maps or alpha masks show, or where the cameras look."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import Cameras, Views
from backend.gaussians import SH_C0, Gaussians
from backend.radiance_grid import RadianceGrid

FLATNESS = 0.3  # thickness of a starting splat in units of its width, where the surface's direction is known
GRID_STRIDE = 0.5  # voxels between the samples of a ray when a fitted grid is looked at
LEAST_PROMINENCE = 0.05  # voxels that make up less than this of every pixel are left out
WIDTH = 0.5  # standard deviation of a starting splat in units of the distance to its neighbour


@dataclass(frozen=True)
class Surfels:
    """P samples of a surface.

    points   [P,3] world
    colours  [P,3] sRGB, 0..1
    normals  [P,3] unit, or zero where the direction is unknown
    sizes    [P] distance between neighbours, scene units
    alphas   [P] how much of what lies behind they cover, 0..1
    """

    points: Tensor
    colours: Tensor
    normals: Tensor
    sizes: Tensor
    alphas: Tensor

    def __len__(self) -> int:
        return self.points.shape[0]

    def __getitem__(self, index: Tensor) -> Surfels:
        return Surfels(*(getattr(self, field.name)[index] for field in fields(self)))


def splats_on(surfels: Surfels, opacity: float, sh_degree: int) -> Gaussians:
    """One splat a sample, `opacity` times its alpha: a disc across the normal, a ball where there is none."""
    width = WIDTH * surfels.sizes
    oriented = surfels.normals.norm(dim=1) > 0.5
    thickness = torch.where(oriented, FLATNESS * width, width)
    sh = torch.zeros(len(surfels), (sh_degree + 1) ** 2, 3)
    sh[:, 0] = (surfels.colours - 0.5) / SH_C0
    return Gaussians(
        means=surfels.points,
        quats=facing(torch.where(oriented[:, None], surfels.normals, torch.tensor([0.0, 0.0, 1.0]))),
        scales=torch.stack([width, width, thickness], dim=1),
        opacities=opacity * surfels.alphas,
        sh=sh,
    )


def facing(normals: Tensor) -> Tensor:
    """[N,4] wxyz: the shortest rotations that take +Z to the unit vectors `normals` [N,3]."""
    x, y, z = normals.unbind(1)
    halfway = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=1)
    reversed_ = torch.tensor([0.0, 1.0, 0.0, 0.0])  # half a turn about X where the two directions are opposite
    return F.normalize(torch.where((z < -1 + 1e-6)[:, None], reversed_, halfway), dim=1)


def surfels_of_depth(views: Views, limit: int) -> Surfels:
    """At most `limit` samples of the surfaces that depth maps show, evenly over the pictures' detail.

    Samples are pixels' points merged in cells that grow with the footprint of a pixel, so that what is far is sampled
    more coarsely. Pixels without depth or with an alpha below one half are left out.
    """
    parts = [_surfels_of_view(views, view) for view in range(len(views))]
    pixels = together(parts)
    cells = 1.0
    merged = merge(pixels, cells)
    for _ in range(8):  # the count falls with the square of the cell: a few corrections reach the limit
        if len(merged) <= limit:
            break
        cells *= math.sqrt(1.1 * len(merged) / limit)
        merged = merge(pixels, cells)
    return merged


def merge(surfels: Surfels, cells: float) -> Surfels:
    """One sample for each occupied cubic cell, whose edge is about `cells` times the size of the samples in it."""
    if len(surfels) == 0:
        return surfels
    finest = surfels.sizes.amin()
    level = (2 * torch.log2(surfels.sizes / finest)).round()
    edge = cells * finest * 2 ** (level / 2)
    base = surfels.points.amin(0)
    index = ((surfels.points - base) / edge[:, None]).floor().long()
    keys = torch.cat([index, level.long()[:, None]], dim=1)
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    count = int(group.max()) + 1
    share = torch.zeros(count).index_add_(0, group, torch.ones(len(surfels)))[:, None]
    points, colours, normals = (
        torch.zeros(count, 3).index_add_(0, group, values) / share
        for values in (surfels.points, surfels.colours, surfels.normals)
    )
    sizes, alphas = (torch.zeros(count).index_add_(0, group, values) / share[:, 0] for values in (edge, surfels.alphas))
    agree = normals.norm(dim=1, keepdim=True) > 0.7
    return Surfels(points, colours, torch.where(agree, F.normalize(normals, dim=1), 0.0), sizes, alphas)


def camera_points(depth: Tensor, cameras: Cameras, view: int) -> Tensor:
    """[H,W,3] camera-space points of a planar depth map [H,W]."""
    height, width = depth.shape
    K = cameras.Ks[view]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    across = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]], dim=-1)
    if not cameras.orthographic[view]:
        across = across * depth[..., None]
    return torch.cat([across, depth[..., None]], dim=-1)


def _surfels_of_view(views: Views, view: int) -> Surfels:
    """Every pixel with a depth as one sample of the size of its footprint."""
    assert views.depth is not None
    depth, image, c2w = views.depth[view], views.images[view], views.cameras.c2w[view]
    local = camera_points(depth, views.cameras, view)
    shown = (depth > 0) & (image[..., 3] > 0.5)
    focal = views.cameras.Ks[view, 0, 0]
    footprint = torch.ones_like(depth) / focal if views.cameras.orthographic[view] else depth / focal
    normals = _normals(local, depth, footprint, shown)
    points = local[shown] @ c2w[:3, :3].T + c2w[:3, 3]
    return Surfels(
        points, image[..., :3][shown], normals[shown] @ c2w[:3, :3].T, footprint[shown], image[..., 3][shown]
    )


def _normals(local: Tensor, depth: Tensor, footprint: Tensor, shown: Tensor) -> Tensor:
    """[H,W,3] unit normals of camera-space points; zero at the frame's edge and where the depth jumps."""
    normals = torch.zeros_like(local)
    if min(depth.shape) < 3:
        return normals
    across, down = local[1:-1, 2:] - local[1:-1, :-2], local[2:, 1:-1] - local[:-2, 1:-1]
    inner = F.normalize(torch.linalg.cross(down, across, dim=-1), dim=-1)
    steepest = torch.maximum(across[..., 2].abs(), down[..., 2].abs())
    around = shown[1:-1, 2:] & shown[1:-1, :-2] & shown[2:, 1:-1] & shown[:-2, 1:-1]
    smooth = around & (steepest < 16 * footprint[1:-1, 1:-1])  # a slope of about 83 degrees
    normals[1:-1, 1:-1] = torch.where(smooth[..., None], inner, 0.0)
    return normals


def splats_of_grid(fitted: RadianceGrid, cameras: list[Cameras], limit: int, sh_degree: int) -> Gaussians:
    """One ball a voxel for the at most `limit` voxels of a radiance grid that the cameras see most of."""
    seen = torch.stack([fitted.prominence(group, GRID_STRIDE) for group in cameras]).amax(0)
    rank = seen.flatten().argsort(descending=True, stable=True)[:limit]
    chosen = torch.zeros(seen.numel(), dtype=torch.bool)
    chosen[rank] = True
    rows = torch.nonzero(chosen.reshape(seen.shape) & (seen > LEAST_PROMINENCE), as_tuple=True)
    values = torch.from_numpy(fitted.values)[rows]
    points = fitted.grid.centres()[rows]
    sizes = torch.full((len(points),), fitted.grid.spacing)
    surfels = Surfels(points, values[:, 1:], torch.zeros_like(points), sizes, cover_of(values[:, 0]))
    return splats_on(surfels, 1.0, sh_degree)


def cover_of(density: Tensor) -> Tensor:
    """Opacity of the ball that stands for a voxel with this raw density, 0..1.

    Balls of half a voxel's deviation in a lattice cover, on average over a layer, 2 pi / 4 of their opacity: that makes
    a layer of them as dense as the layer of voxels was.
    """
    return 1 - torch.exp(-F.softplus(density) / (2 * math.pi * WIDTH**2))


def together(parts: list[Surfels]) -> Surfels:
    """All samples of all parts."""
    return Surfels(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Surfels)))
