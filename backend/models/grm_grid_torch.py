"""The coarse grid of grm_guide.py by torch, for a batch of objects at once on any device: on a GPU the processor, one
object after the other, would keep the network waiting.

It is `radiance_grid.fit_grid`: the same boxes, hulls, rays, errors and steps of Adam. Only the places of a ray's
samples are not drawn but follow from the ray and the step, so that what is found for an object does not depend on the
objects beside it; and all rays count in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from backend import grid_kernels
from backend.cameras import Cameras, Views, rays
from backend.compositing import premultiplied
from backend.full_precision import full_precision
from backend.hull import VoxelGrid
from backend.models.grm_grid_hull import (
    Lattice,
    Posed,
    boxes,
    hulls,
    lattice_over,
    mean_colours,
    voxel_pixels,
)
from backend.radiance_grid import GridConfig, finer

EMPTY, BOUND = float(grid_kernels.EMPTY), float(grid_kernels.BOUND)
LEAST_TRANSMITTANCE = float(grid_kernels.LEAST_TRANSMITTANCE)
OCCUPANCY_SOFTNESS, COLOUR_SOFTNESS = float(grid_kernels.OCCUPANCY_SOFTNESS), float(grid_kernels.COLOUR_SOFTNESS)
FIRST, SECOND = float(grid_kernels.ADAM_FIRST), float(grid_kernels.ADAM_SECOND)
SOLID = 5.0  # raw density of what stops every ray
SAMPLES_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}  # of the rays of a step; some 100 bytes each
RAYS_AT_ONCE = 2**17  # of those that look at what was fitted
SPREAD = (0.7548776662466927, 0.5698402909980532)  # whose multiples fill 0..1 evenly (Roberts 2018): rays', steps'


@dataclass(frozen=True)
class Rays:
    """Rays through an object's voxels, in voxels.

    starts   [...,R,3] the first sample's place
    steps    [...,R,3] the way from sample to sample
    counts   [...,R] samples, 0 for a ray that meets nothing
    first_z  [...,R] planar depth of the start, step_z of a step
    """

    starts: Tensor
    steps: Tensor
    counts: Tensor
    first_z: Tensor
    step_z: Tensor

    def __getitem__(self, chosen: Tensor) -> Rays:
        return Rays(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def split(self, most: int) -> Iterator[Rays]:
        parts = zip(*(getattr(self, field.name).split(most) for field in fields(self)), strict=True)
        return (Rays(*part) for part in parts)


@dataclass(frozen=True)
class TorchGrid:
    """The fitted field of one object, on its device; what `radiance_grid.RadianceGrid` is on the processor.

    grid    where the voxels lie
    values  [X,Y,Z,4] float32: raw density, sRGB colour
    free    [X,Y,Z] bool: voxels that can hold anything; all others are empty
    """

    grid: VoxelGrid
    values: Tensor
    free: Tensor

    def finer(self, resolution: int) -> TorchGrid:
        """See `radiance_grid.finer`."""
        return TorchGrid(*finer(self.grid, self.values, self.free, resolution))

    @torch.no_grad()
    def views(self, cameras: Cameras, stride: float) -> Views:
        """See `RadianceGrid.views`. The cameras are on the field's device."""
        marched = rays_through(cameras, self.grid, stride)
        met = marched.counts > 0
        traced = marched.first_z.new_zeros(len(met), 5)
        parts = [march(self._field, _batched([part]), 0.5, stride)[0] for part in marched[met].split(RAYS_AT_ONCE)]
        traced[met] = torch.cat(parts)
        colour, alpha, number = traced.split([3, 1, 1], dim=1)
        number = number[:, 0] / alpha[:, 0].clamp_min(1e-6) + 0.5
        depth = torch.where(alpha[:, 0] > 0.25, marched.first_z + number * marched.step_z, 0.0)
        images = torch.cat([colour / alpha.clamp_min(1e-6), alpha], dim=1).clamp(0, 1)
        shape = (len(cameras), cameras.height, cameras.width)
        return Views(images.reshape(*shape, 4), cameras, depth.reshape(shape))

    @torch.no_grad()
    def prominence(self, cameras: Cameras, stride: float) -> Tensor:
        """[X,Y,Z] see `RadianceGrid.prominence`; of cameras on any device."""
        every = rays_through(cameras.to(self.values.device), self.grid, stride)
        most = self.values.new_zeros(self.free.numel())
        last = torch.tensor(self.grid.shape, device=most.device) - 1
        for part in every[every.counts > 0].split(RAYS_AT_ONCE):
            weight, _, numbers = seen_along(self._field, _batched([part]), 0.5, stride)
            places = part.starts[:, None] + (numbers + 0.5)[:, None] * part.steps[:, None]  # [R,S,3]
            x, y, z = torch.minimum((places + 0.5).floor().clamp_min(0).long(), last).unbind(-1)
            nearest = (x * self.grid.shape[1] + y) * self.grid.shape[2] + z
            most.scatter_reduce_(0, nearest.flatten(), weight.flatten(), "amax")
        return most.view(self.grid.shape)

    @property
    def _field(self) -> Tensor:
        return self.values.permute(3, 0, 1, 2)[None]


@torch.no_grad()
def fit_grids(
    images: Tensor, c2w: Tensor, Ks: Tensor, orthographic: Tensor, config: GridConfig
) -> list[TorchGrid | None]:
    """The grid that fits each object's pictures, on their device; None where they show no common object.

    images        [B,V,H,W,4], 0..1, straight alpha
    c2w           [B,V,4,4], camera to world, OpenCV axes; Ks [B,V,3,3], pixels; orthographic [B,V] bool
    """
    posed = Posed(images.float(), c2w.float(), Ks.float(), orthographic)
    with full_precision(images.device):
        low, high, found = boxes(posed)
        objects = found.nonzero()[:, 0]
        if len(objects) == 0:
            return [None] * len(posed)
        lattice, field, free = fitted(posed[objects], low[objects], high[objects], config)
    grids: list[TorchGrid | None] = [None] * len(posed)
    for item, (place, grid) in enumerate(zip(objects.tolist(), lattice.grids(), strict=True)):
        part = tuple(slice(length) for length in grid.shape)
        values = field[item].permute(1, 2, 3, 0)[part].contiguous()
        grids[place] = TorchGrid(grid, values, free[item][part].contiguous())
    return grids


# ---- voxels


def beginnings(
    posed: Posed, lattice: Lattice, coarser: tuple[Lattice, Tensor] | None, config: GridConfig
) -> tuple[Tensor, Tensor]:
    """The field [B,4,R,R,R] (raw density, colour) of a level before its first step: the hull in the pictures' mean
    colours, or the coarser level's; and which voxels are free [B,R,R,R] bool.
    """
    hull = hulls(posed, lattice)
    free = _grown((hull > config.hull_threshold) & lattice.within(0)) & lattice.within(1)
    if coarser is None:
        density = torch.where(hull > 0.5, config.start_density, 0.5 * EMPTY)
        field = torch.cat([density[:, None], mean_colours(posed, lattice)], dim=1)
    else:
        field = resampled(*coarser, lattice)
    density = torch.where(free, field[:, 0], -BOUND)
    return torch.cat([density[:, None], field[:, 1:]], dim=1), free


def resampled(source: Lattice, field: Tensor, lattice: Lattice) -> Tensor:
    """A field [B,4,S,S,S] at the voxels of another lattice: [B,4,R,R,R]."""
    places = (lattice.centres() - source.origin[:, None]) / source.spacing[:, None, None]
    places = torch.minimum(places.clamp_min(0), source.shape[:, None] - 1.0)  # beyond its border as at it
    places = 2 * places / (source.resolution - 1) - 1
    values = F.grid_sample(field, places.flip(-1)[:, :, None, None], align_corners=True)[..., 0, 0]
    return values.unflatten(2, (lattice.resolution,) * 3)


def _grown(voxels: Tensor) -> Tensor:
    """[B,R,R,R] bool with the six neighbours of each."""
    around, grown = F.pad(voxels, (1, 1, 1, 1, 1, 1)), voxels.clone()
    for axis in (1, 2, 3):
        inner = [slice(None), *(slice(1, -1) for _ in range(3))]
        for side in (slice(None, -2), slice(2, None)):
            inner[axis] = side
            grown |= around[tuple(inner)]
    return grown


# ---- rays


def rays_through(cameras: Cameras, grid: VoxelGrid, stride: float) -> Rays:
    """A ray for each pixel [V*H*W], as `radiance_grid` lays them."""
    origins, directions = (t.reshape(-1, 3) for t in rays(cameras))
    origins = (origins - grid.origin.to(origins)) / grid.spacing
    inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
    last = torch.tensor(grid.shape, device=origins.device) - 1
    to_low, to_high = -origins * inverse, (last - origins) * inverse
    enter = torch.minimum(to_low, to_high).amax(1).clamp_min(0)
    leave = torch.maximum(to_low, to_high).amin(1)
    forward = cameras.c2w[:, None, :3, 2].expand(-1, cameras.height * cameras.width, -1).reshape(-1, 3)
    along = (directions * forward).sum(1) * grid.spacing
    return Rays(
        starts=origins + enter[:, None] * directions,
        steps=stride * directions,
        counts=((leave - enter) / stride).clamp_min(0).ceil(),
        first_z=enter * along,
        step_z=stride * along,
    )


def march(field: Tensor, given: Rays, shift: Tensor | float, stride: float) -> Tensor:
    """[B,R,5] premultiplied colour, alpha and the sum of weight times a sample's number, of rays [B,R] through fields;
    the rest as in `seen_along`.
    """
    weight, colour, numbers = seen_along(field, given, shift, stride)
    parts = [(weight[:, None] * colour).sum(-1), weight.sum(-1)[:, None], (weight * numbers).sum(-1)[:, None]]
    return torch.cat(parts, dim=1).mT


def seen_along(field: Tensor, given: Rays, shift: Tensor | float, stride: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the samples of rays [B,R]: weight [B,R,S], colour [B,3,R,S], and numbers [S].

    field  [B,4,X,Y,Z]; what is not free has the density -BOUND there, so that samples beside it are empty
    shift  [R] or one for all: where in its step each sample is, 0..1
    """
    most = max(1, int(given.counts.amax())) if given.counts.numel() else 1
    numbers = torch.arange(most, device=field.device)
    along = (numbers + (shift[:, None] if isinstance(shift, Tensor) else shift))[..., None]  # [R,S,1] or [S,1]
    scale = 2 / (torch.tensor(field.shape[-3:], device=field.device) - 1).clamp_min(1)
    starts, steps = (scale * given.starts - 1).flip(-1), (scale * given.steps).flip(-1)  # the last axis comes first
    places = starts[:, :, None] + along * steps[:, :, None]  # [B,R,S,3]
    seen = F.grid_sample(field, places[..., None, :], padding_mode="border", align_corners=True)[..., 0]  # [B,4,R,S]
    raw, colour = seen[:, 0], seen[:, 1:]
    counted = (numbers < given.counts[..., None]) & (raw >= EMPTY)
    thickness = torch.where(counted, stride * F.softplus(raw), 0.0)
    through = torch.exp(thickness - thickness.cumsum(-1))  # what reaches the sample
    weight = torch.where(through >= LEAST_TRANSMITTANCE, -through * torch.expm1(-thickness), 0.0)
    return weight, colour, numbers


# ---- the fit


@dataclass(frozen=True)
class Observed:
    """What the rays of an object meet.

    rays    [R] those that meet what is free
    wanted  [R,4] premultiplied colour and alpha
    faces   rays of one view across the face of a voxel
    """

    rays: Rays
    wanted: Tensor
    faces: float

    @property
    def samples(self) -> int:
        """Of all rays, at most."""
        return int(self.rays.counts.amax()) * len(self.wanted) if len(self.wanted) else 0


def observed(posed: Posed, item: int, grid: VoxelGrid, free: Tensor, voxel: Tensor, config: GridConfig) -> Observed:
    """Reduced pictures of one object, until a voxel is `pixels_per_voxel` wide, as rays.

    free   [R,R,R] bool
    voxel  [V,2] how many pixels wide and high one is in each view, unreduced
    """
    shrink = [max(1.0, float(pixels) / config.pixels_per_voxel) for pixels in voxel.amax(0)]
    height, width = posed.size
    size = (max(1, round(height / shrink[1])), max(1, round(width / shrink[0])))
    every = rays_through(posed.cameras(item, size), grid, config.stride)
    ink = premultiplied(posed.images[item]).movedim(-1, -3)
    wanted = F.adaptive_avg_pool2d(ink, size).permute(0, 2, 3, 1).reshape(-1, 4)
    density = torch.where(free, SOLID, -BOUND)[None, None]
    solid = torch.cat([density, torch.zeros_like(density).expand(-1, 3, -1, -1, -1)], dim=1)
    met = march(solid, _batched([every]), 0.5, config.stride)[0, :, 3] > 0.01
    faces = float(voxel[0, 0]) * size[1] / width * float(voxel[0, 1]) * size[0] / height
    return Observed(every[met], wanted[met], faces)


def fitted(posed: Posed, low: Tensor, high: Tensor, config: GridConfig) -> tuple[Lattice, Tensor, Tensor]:
    """The last level's lattice, field [B,4,R,R,R] after all steps, and free voxels [B,R,R,R] bool; boxes [B,3]."""
    coarser = None
    for level in config.levels:
        lattice = lattice_over(low, high, level.resolution)
        field, free = beginnings(posed, lattice, coarser, config)
        voxels = voxel_pixels(posed, lattice).cpu()
        every = [
            observed(posed, item, grid, free[item], voxels[item], config) for item, grid in enumerate(lattice.grids())
        ]
        most = max(1, *(one.samples for one in every))
        for some in torch.arange(len(posed)).split(max(1, SAMPLES_AT_ONCE[field.device.type] // most)):
            part = slice(int(some[0]), int(some[-1]) + 1)
            field[part] = descended(field[part], free[part], every[part], level.steps, config)
        coarser = lattice, field
    return lattice, field, free


def descended(field: Tensor, free: Tensor, every: list[Observed], steps: int, config: GridConfig) -> Tensor:
    """[B,4,R,R,R] after all steps of a level."""
    given = _batched([one.rays for one in every])
    wanted = torch.nn.utils.rnn.pad_sequence([one.wanted for one in every], batch_first=True)
    faces = torch.tensor([one.faces for one in every], device=field.device)
    rays_numbers = torch.arange(wanted.shape[1], device=field.device, dtype=torch.float64)
    density, colour = config.rate_density, config.rate_colour
    rates = torch.tensor([density, colour, colour, colour], device=field.device)[:, None, None, None]
    least, most = (torch.tensor(ends, device=field.device)[:, None, None, None] for ends in _LIMITS)
    first, second = torch.zeros_like(field), torch.zeros_like(field)
    for step in range(steps):
        shift = ((0.5 + SPREAD[0] * rays_numbers + SPREAD[1] * step) % 1).float()
        slope = _slope(field, free, given, wanted, shift, faces, config)
        slow = config.last_rates if step >= 0.7 * steps else 1.0
        first.lerp_(slope, 1 - FIRST)
        second.lerp_(slope.square(), 1 - SECOND)
        unbiased = (second / (1 - SECOND ** (step + 1))).sqrt() + 1e-8
        moved = field - slow * rates * (first / (1 - FIRST ** (step + 1))) / unbiased
        field = torch.where(free[:, None], torch.minimum(torch.maximum(moved, least), most), field)
    return field


_LIMITS = ((-BOUND, 0.0, 0.0, 0.0), (BOUND, 1.0, 1.0, 1.0))  # of raw density and colours


def _slope(
    field: Tensor, free: Tensor, given: Rays, wanted: Tensor, shift: Tensor, faces: Tensor, config: GridConfig
) -> Tensor:
    """[B,4,R,R,R] gradient of the pictures' errors and of area and roughness; 0 where nothing is free."""
    with torch.enable_grad():
        leaf = field.detach().requires_grad_()
        got, soft = march(leaf, given, shift, config.stride), config.softness**2
        off = got[..., :4] - wanted
        error = (off[..., :3].square().sum(-1) + soft).sqrt() + config.coverage * (off[..., 3].square() + soft).sqrt()
        calm = config.area * _areas(leaf[:, 0], free) + config.roughness * _roughness(leaf[:, 1:], free)
        (slope,) = torch.autograd.grad(error.sum() + (faces * calm).sum(), leaf)
    return torch.where(free[:, None], slope, 0.0)


def _areas(density: Tensor, free: Tensor) -> Tensor:
    """[B] surface, in faces of voxels: the lengths of the forward differences of the opacity of a voxel's length."""
    opacity = torch.where(free, torch.sigmoid(density), 0.0)  # 1 - exp(-softplus(x))
    here = opacity[:, :-1, :-1, :-1]
    ahead = (opacity[:, 1:, :-1, :-1], opacity[:, :-1, 1:, :-1], opacity[:, :-1, :-1, 1:])
    squares = torch.stack([(other - here).square() for other in ahead]).sum(0)
    return (squares + OCCUPANCY_SOFTNESS).sqrt().flatten(1).sum(1)


def _roughness(colour: Tensor, free: Tensor) -> Tensor:
    """[B] softened differences of colours [B,3,R,R,R] between neighbours that are both free."""
    total = torch.zeros(len(colour), device=colour.device)
    for axis in (1, 2, 3):
        length = free.shape[axis] - 1
        both = free.narrow(axis, 1, length) & free.narrow(axis, 0, length)
        steps = colour.narrow(axis + 1, 1, length) - colour.narrow(axis + 1, 0, length)
        lengths = torch.where(both[:, None], (steps.square() + COLOUR_SOFTNESS).sqrt(), 0.0)
        total = total + lengths.flatten(1).sum(1)
    return total


def _batched(every: list[Rays]) -> Rays:
    """[B,R] with rays without samples where an object has fewer."""
    parts = [[getattr(one, field.name) for one in every] for field in fields(Rays)]
    return Rays(*(torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in parts))
