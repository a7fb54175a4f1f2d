"""Shape from few pictures with masks: a grid of density and colour inside the visual hull, fitted by ray marching.

Silhouettes leave much open when only a few views look at an object: the hull of four has pyramids where the object is
flat, and it fills every hollow. Among the shapes that explain masks and colours this fit prefers the one with the least
surface (the area term of convex silhouette methods, Cremers and Kolev 2011) and with the calmest colours, which also
continues both over what no view saw. It works from coarse to fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numba
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from backend import grid_kernels
from backend.cameras import Cameras, Views, rays
from backend.compositing import premultiplied
from backend.hull import VoxelGrid, common_box, grid_over, mean_colours, visual_hull, voxel_pixels

FAINTEST = 1e-6  # density that still has a logarithm
SURFACE_VOXELS = 4.0  # times the square of a grid's resolution: about what a fitted object's skin is made of


@dataclass(frozen=True)
class Level:
    """One resolution of the fit: voxels along the largest side of the box, and steps of Adam."""

    resolution: int
    steps: int


@dataclass(frozen=True)
class GridConfig:
    """How a radiance grid is fitted.

    levels            from coarse to fine
    pixels_per_voxel  the pictures are reduced until a voxel is this wide
    most_rays         rays of one step; more are drawn at random
    stride            way between the samples of a ray, voxels
    hull_threshold    what the hull has below this cannot be occupied (one voxel around it can)
    start_density     raw density inside the hull to begin with: 0 blocks half the light over 1 voxel
    rate_density      Adam's rate of the raw density
    rate_colour       Adam's rate of the colours
    last_rates        both rates are multiplied by this for the last third of a level
    coverage          weight of the alpha error against that of colour
    softness          errors below this count by their square, above it by their size
    area              weight of the surface's area against the pictures' error over the same area
    roughness         weight of the difference of neighbouring colours, likewise
    """

    levels: tuple[Level, ...] = (Level(32, 100), Level(64, 80), Level(96, 60))
    pixels_per_voxel: float = 1.75
    most_rays: int = 60_000
    stride: float = 0.75
    hull_threshold: float = 0.3
    start_density: float = 0.0
    rate_density: float = 0.3
    rate_colour: float = 0.05
    last_rates: float = 0.3
    coverage: float = 1.0
    softness: float = 0.05
    area: float = 0.1
    roughness: float = 0.05


@dataclass(frozen=True)
class RadianceGrid:
    """A fitted field.

    grid    where the voxels lie
    values  [X,Y,Z,4] float32: raw density, sRGB colour
    free    [X,Y,Z] bool: voxels that can hold anything; all others are empty
    """

    grid: VoxelGrid
    values: np.ndarray
    free: np.ndarray
    active: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cells = self.free[:-1] | self.free[1:]
        cells = cells[:, :-1] | cells[:, 1:]
        cells = cells[:, :, :-1] | cells[:, :, 1:]
        object.__setattr__(self, "active", np.pad(cells, ((0, 1), (0, 1), (0, 1))))

    def views(self, cameras: Cameras, stride: float) -> Views:
        """The pictures, straight alpha, and the planar depth that the cameras see; depth 0 where alpha is below 1/4."""
        marched = _rays_through(self.grid, cameras, stride)
        out = np.zeros((len(marched.rows), grid_kernels.OUT_COLUMNS), np.float32)
        grid_kernels.trace(self.values, self.active, marched.rows, np.float32(stride), numba.get_num_threads(), out)
        traced = torch.from_numpy(out)
        alpha = traced[:, 3:4]
        colour = traced[:, :3] / alpha.clamp_min(1e-6)
        number = traced[:, 4] / alpha[:, 0].clamp_min(1e-6) + 0.5
        depth = torch.where(alpha[:, 0] > 0.25, marched.first_z + number * marched.step_z, 0.0)
        shape = (len(cameras), cameras.height, cameras.width)
        return Views(torch.cat([colour, alpha], 1).reshape(*shape, 4).clamp(0, 1), cameras, depth.reshape(shape))

    def finer(self, resolution: int) -> RadianceGrid:
        """See `finer`."""
        grid, values, free = finer(self.grid, torch.from_numpy(self.values), torch.from_numpy(self.free), resolution)
        return RadianceGrid(grid, values.numpy(), free.numpy())

    def prominence(self, cameras: Cameras, stride: float) -> Tensor:
        """[X,Y,Z] the largest share of a pixel, 0..1, that any camera sees of each voxel."""
        rows = _rays_through(self.grid, cameras, stride).rows
        most = np.zeros((numba.get_num_threads(), *self.free.shape), np.float32)
        grid_kernels.look(self.values, self.active, rows, np.float32(stride), most)
        return torch.from_numpy(most.max(axis=0))


@dataclass(frozen=True)
class _Rays:
    """rows [R,7] as the kernels take them; first_z and step_z [R] planar depth of sample 0 and from one to the next."""

    rows: np.ndarray
    first_z: Tensor
    step_z: Tensor


def fit_grid(
    views: Views, config: GridConfig, generator: np.random.Generator, advance: Callable[[int, int], bool]
) -> RadianceGrid:
    """Fit a grid to pictures with masks. Raises NothingSeen where they show no common object.

    advance  called after each step with the number of steps done and in all; true ends the fit there
    """
    low, high = common_box(views)
    total, done, fitted = sum(level.steps for level in config.levels), 0, None
    for level in config.levels:
        fitted = _level_start(views, grid_over(low, high, level.resolution), fitted, config)
        pictures, marched, targets = _observations(views, fitted, config)
        workers, shape = numba.get_num_threads(), fitted.free.shape
        gradient = np.zeros((workers, *shape, 4), np.float32)
        moments, occupancy = np.zeros((2, *shape, 4), np.float32), np.zeros(shape, np.float32)
        knobs = np.array([config.coverage, config.softness], np.float32)
        faces = math.prod(voxel_pixels(fitted.grid, pictures, 0))  # rays of one view across the face of a voxel
        for step in range(level.steps):
            rows, wanted, share = _batch(marched, targets, config.most_rays, generator)
            jitter = generator.random(len(rows), np.float32)
            stride = np.float32(config.stride)
            grid_kernels.push(fitted.values, fitted.active, rows, jitter, stride, wanted, knobs, gradient)
            grid_kernels.occupancy_of(fitted.values, fitted.free, occupancy)
            slow = config.last_rates if step >= 0.7 * level.steps else 1.0
            terms = [step + 1, config.rate_density * slow, config.rate_colour * slow]
            terms += [config.area * faces * share, config.roughness * faces * share]
            grid_kernels.descend(fitted.values, fitted.free, occupancy, gradient, moments, np.array(terms, np.float32))
            done += 1
            if advance(done, total):
                return fitted
    assert fitted is not None, "a grid needs at least one level"
    return fitted


def _level_start(views: Views, grid: VoxelGrid, coarser: RadianceGrid | None, config: GridConfig) -> RadianceGrid:
    """The grid before its first step: the hull in the pictures' mean colours, or the coarser level's values."""
    hull = visual_hull(views, grid).numpy()
    free = np.array(ndimage.binary_dilation(hull > config.hull_threshold), bool)
    for axis in range(3):  # the kernels read one voxel beyond each free one
        np.moveaxis(free, axis, 0)[[0, -1]] = False
    if coarser is None:
        values = np.empty((*grid.shape, 4), np.float32)
        values[..., 1:] = mean_colours(views, grid).numpy()
        values[..., 0] = np.where(hull > 0.5, config.start_density, 0.5 * grid_kernels.EMPTY)
    else:
        values = _resampled(coarser, grid)
    values[~free, 0] = -grid_kernels.BOUND
    return RadianceGrid(grid, values, free)


def _resampled(source: RadianceGrid, grid: VoxelGrid) -> np.ndarray:
    return resampled(source.grid, torch.from_numpy(source.values), grid).numpy()


def resampled(source: VoxelGrid, values: Tensor, grid: VoxelGrid) -> Tensor:
    """values [X,Y,Z,C] at a grid's voxels -> [X',Y',Z',C] at another's, the edge going on."""
    places = (grid.centres() - source.origin) / source.spacing
    places = 2 * places / (torch.tensor(source.shape) - 1).clamp_min(1) - 1
    planes = values.permute(3, 0, 1, 2)[None]
    sampled = F.grid_sample(planes, places.flip(-1)[None].to(values), padding_mode="border", align_corners=True)
    return sampled[0].permute(1, 2, 3, 0).contiguous()


def finer(grid: VoxelGrid, values: Tensor, free: Tensor, resolution: int) -> tuple[VoxelGrid, Tensor, Tensor]:
    """The same field, values [X,Y,Z,4] and free [X,Y,Z], on voxels of which `resolution` lie along the largest side;
    each blocks as much less light as it is smaller.
    """
    low = grid.origin - grid.spacing / 2
    new = grid_over(low, low + grid.spacing * torch.tensor(grid.shape), resolution)
    fine = resampled(grid, values, new)
    dense = F.softplus(fine[..., 0]) * (new.spacing / grid.spacing)
    fine[..., 0] = dense.clamp_min(FAINTEST).expm1().log()
    nearest = ((new.centres() - grid.origin) / grid.spacing).round().long()
    nearest = torch.minimum(nearest.clamp_min(0), torch.tensor(grid.shape) - 1).to(free.device)
    inside = free[tuple(nearest.unbind(-1))]
    for axis in range(3):  # the kernels read one voxel beyond each free one
        inside.movedim(axis, 0)[[0, -1]] = False
    fine[..., 0] = torch.where(inside, fine[..., 0], -float(grid_kernels.BOUND))
    return new, fine, inside


def _observations(views: Views, fitted: RadianceGrid, config: GridConfig) -> tuple[Cameras, _Rays, np.ndarray]:
    """Reduced cameras, their rays that meet the hull, and what those should see [R,4]: premultiplied colour, alpha."""
    voxel = _largest_voxel(fitted.grid, views.cameras)
    shrink_x, shrink_y = (max(1.0, pixels / config.pixels_per_voxel) for pixels in voxel)
    size = (max(1, round(views.cameras.height / shrink_y)), max(1, round(views.cameras.width / shrink_x)))
    cameras = views.cameras.resized(size[1], size[0])
    ink = premultiplied(views.images).permute(0, 3, 1, 2)
    reduced = F.adaptive_avg_pool2d(ink, size).permute(0, 2, 3, 1).reshape(-1, 4)
    marched = _rays_through(fitted.grid, cameras, config.stride)
    solid = fitted.values.copy()
    solid[..., 0] = np.where(fitted.free, 5.0, -grid_kernels.BOUND)
    met = np.zeros((len(marched.rows), grid_kernels.OUT_COLUMNS), np.float32)
    grid_kernels.trace(solid, fitted.active, marched.rows, np.float32(config.stride), numba.get_num_threads(), met)
    hit = met[:, 3] > 0.01
    keep = torch.from_numpy(hit)
    chosen = _Rays(marched.rows[hit], marched.first_z[keep], marched.step_z[keep])
    return cameras, chosen, np.ascontiguousarray(reduced.numpy()[hit])


def _largest_voxel(grid: VoxelGrid, cameras: Cameras) -> tuple[float, float]:
    """How many pixels wide and high a voxel is at most."""
    wide, high = zip(*(voxel_pixels(grid, cameras, view) for view in range(len(cameras))), strict=True)
    return max(wide), max(high)


def _rays_through(grid: VoxelGrid, cameras: Cameras, stride: float) -> _Rays:
    """One row for each pixel of each camera; no samples where the ray misses the grid."""
    origins, directions = (t.reshape(-1, 3) for t in rays(cameras))
    origins = (origins - grid.origin) / grid.spacing
    inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
    to_low, to_high = -origins * inverse, (torch.tensor(grid.shape) - 1 - origins) * inverse
    enter = torch.minimum(to_low, to_high).amax(1).clamp_min(0)
    leave = torch.maximum(to_low, to_high).amin(1)
    count = ((leave - enter) / stride).clamp_min(0).ceil()
    rows = torch.cat([origins + enter[:, None] * directions, stride * directions, count[:, None]], dim=1)
    forward = cameras.c2w[:, None, :3, 2].expand(-1, cameras.height * cameras.width, -1).reshape(-1, 3)
    along = (directions * forward).sum(1) * grid.spacing
    return _Rays(rows.float().contiguous().numpy(), enter * along, stride * along)


def _batch(
    marched: _Rays, targets: np.ndarray, most: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """The rays of one step, what they should see, and the share of all rays that they are."""
    if len(targets) <= most:
        return marched.rows, targets, 1.0
    chosen = generator.choice(len(targets), most, replace=False)
    return marched.rows[chosen], targets[chosen], most / len(targets)


def resolution_for(views: Views, splats: int) -> int:
    """Voxels along the largest side, from 8 to 96: one for about two pixels, and no more than the splats can fill."""
    low, high = common_box(views)
    largest = max(_largest_voxel(grid_over(low, high, 96), views.cameras)) * 96
    fillable = math.sqrt(splats / SURFACE_VOXELS)
    return int(min(96, max(8, math.ceil(min(largest / 2, fillable)))))
