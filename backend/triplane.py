"""A radiance field on three feature planes (Chan 2022, LRM): at points, on a grid, as a surface and as splats.

    point (x, y, z)  ->  a feature vector from each plane  ->  small MLP  ->  raw density and colour  ->  activated

Points are in the field's own space, a cube about the origin; `world` says where that cube stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from skimage import measure
from torch import Tensor, nn

from backend.gaussians import Gaussians, rgb_to_sh
from backend.hull import NothingSeen
from backend.meshing import Mesh

log = logging.getLogger(__name__)

CHUNK = 2**15  # points decoded at once: the MLP's intermediate values stay in the processor's cache
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
SPLAT_SPREAD = 0.6  # standard deviation in the surface, in sides of a square with the splat's share of the area
SPLAT_FLATNESS = 0.25  # standard deviation across the surface, in those within it
SPLAT_OPACITY = 0.95  # a surface: solid where splats overlap, and still free to move when it is fitted to pictures


def build_decoder(features: int, width: int, linear_layers: int, activation: str) -> nn.Sequential:
    """The MLP from the features of three planes [P,3C] to raw density and raw colour [P,4], as both families have it.

    Linear layers have even indices, activations odd ones.
    """
    sizes = [features, *[width] * (linear_layers - 1), 4]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Reading:
    """How a family of networks means its planes.

    radius   the field fills the cube [-radius, radius]^3
    axes     for each plane, which coordinate runs along its columns and which along its rows
    density  from raw density [P] to density [P], at least 0
    raw      the raw density that gives a density
    colour   from raw colour [P,3] to sRGB [P,3]
    level    density at which the surface lies
    """

    radius: float
    axes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    density: Callable[[Tensor], Tensor]
    raw: Callable[[float], float]
    colour: Callable[[Tensor], Tensor]
    level: float


@dataclass(frozen=True)
class Triplane:
    """One object.

    planes   [3,C,H,W] float32 or float64
    decoder  from [P,3C] to [P,4], in the planes' precision; its first layer is linear
    reading  what planes and decoder's results mean
    world    [4,4] float64 on the CPU, a similarity from the field's space to the world
    """

    planes: Tensor
    decoder: nn.Sequential
    reading: Reading
    world: Tensor

    def raw(self, points: Tensor) -> Tensor:
        """[...,4] raw density and raw colour at points [...,3]; differentiable. Outside the cube all features are 0."""
        parts = [self.decoder(self.features(part)) for part in points.reshape(-1, 3).split(CHUNK)]
        return torch.cat(parts).unflatten(0, points.shape[:-1])

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density [...] and sRGB colour [...,3] at points [...,3] of the field's space; differentiable."""
        raw = self.raw(points)
        return self.reading.density(raw[..., 0]), self.reading.colour(raw[..., 1:])

    def features(self, points: Tensor) -> Tensor:
        """[P,3C] at points [P,3]: bilinear, texel centres half a texel inside the cube's sides, zero beyond them."""
        scaled = points.to(self.planes.dtype) / self.reading.radius
        places = torch.stack([scaled[:, list(axes)] for axes in self.reading.axes])  # [3,P,2] columns, rows
        sampled = F.grid_sample(self.planes, places[:, None], align_corners=False)  # [3,C,1,P]
        return sampled.permute(3, 2, 0, 1).flatten(1)

    @torch.no_grad()
    def raw_grid(self, resolution: int) -> Tensor:
        """[R,R,R] raw densities, axes x, y, z, at R places from -radius to radius, both included, along each.

        A plane knows two coordinates only and the decoder's first layer is linear: it is applied to R x R places of
        each plane, and a point of the grid adds up three of its results.
        """
        first, rest = self.decoder[0], self.decoder[1:]
        assert isinstance(first, nn.Linear), type(first)
        sheets = self._first_layer_on_planes(first, resolution)
        xy, xz, yz = sheets[(0, 1)] + first.bias, sheets[(0, 2)], sheets[(1, 2)]
        raw = torch.empty((resolution,) * 3, dtype=xy.dtype, device=xy.device)
        rows = max(1, CHUNK // resolution)
        for x in range(resolution):
            for y in range(0, resolution, rows):
                part = slice(y, y + rows)
                hidden = xy[x, part, None] + xz[x] + yz[part]  # [rows,R,width]
                raw[x, part] = rest(hidden)[..., 0]
        return raw

    def density_grid(self, resolution: int) -> Tensor:
        """[R,R,R] densities at the places of `raw_grid`."""
        return self.reading.density(self.raw_grid(resolution))

    def _first_layer_on_planes(self, first: nn.Linear, resolution: int) -> dict[tuple[int, int], Tensor]:
        """For each pair of axes a < b the first layer's share [R,R,width], without bias, at grid places a and b."""
        line = torch.linspace(-1, 1, resolution, dtype=self.planes.dtype, device=self.planes.device)
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        places = torch.stack([columns, rows], dim=-1).expand(3, -1, -1, -1)
        sampled = F.grid_sample(self.planes, places, align_corners=False).permute(0, 2, 3, 1)  # [3,rows,columns,C]
        shares = first.weight.unflatten(1, (3, -1)).unbind(1)  # three of [width,C]
        sheets = {}
        for (column, row), features, share in zip(self.reading.axes, sampled, shares, strict=True):
            sheet = features @ share.T
            sheets[(row, column) if row < column else (column, row)] = sheet if row < column else sheet.transpose(0, 1)
        return sheets

    def solid_points(self, resolution: int) -> Tensor:
        """[P,3] the places of a grid, in the field's space, that lie within the surface."""
        grid = self.density_grid(resolution)
        return self._place((grid > self.surface_level(grid)).nonzero(), resolution)

    def _place(self, indices: Tensor, resolution: int) -> Tensor:
        """Positions in the field's space of (fractional) grid indices [P,3]."""
        radius = self.reading.radius
        return indices.to(self.planes) / (resolution - 1) * (2 * radius) - radius

    def surface_level(self, grid: Tensor) -> float:
        """The density at which the surface lies: the family's, or, where the grid never crosses that, halfway.

        Raises NothingSeen for a field that is the same everywhere or not finite.
        """
        low, high = float(grid.min()), float(grid.max())
        if not (np.isfinite(low) and np.isfinite(high) and high - low > 1e-6 * abs(high)):
            raise NothingSeen(f"The network's field has no surface: its density goes from {low:g} to {high:g}.")
        if low < self.reading.level < high:
            return self.reading.level
        level = (low + high) / 2
        log.warning("the density goes from %g to %g, never across %g: taking %g", low, high, self.reading.level, level)
        return level

    @torch.no_grad()
    def mesh(self, resolution: int, *, level: float | None = None) -> tuple[Mesh, np.ndarray]:
        """The surface in the world, and the colour of each vertex [N,3], sRGB in 0..1, as published.

        Marching cubes on a density grid; one vertex on every grid edge that crosses the level. Open where the object
        reaches the cube's sides.

        resolution  of the grid, at least 2
        level       density, None for the family's
        """
        grid = self.density_grid(resolution)
        return self._surface(grid, self.surface_level(grid) if level is None else level)

    @torch.no_grad()
    def splats(self, resolution: int) -> Gaussians:
        """Splats on the surface, in the world, on the planes' device, one a vertex of a grid's marching cubes.

        Those run on raw densities, which are closer to linear across a surface: densities, which rise steeply inside
        and are 0 outside, would put it up to a cell too far out.
        """
        raw = self.raw_grid(resolution)
        level = self.surface_level(self.reading.density(raw))
        return surface_splats(*self._surface(raw, self.reading.raw(level))).to(self.planes.device)

    def _surface(self, grid: Tensor, level: float) -> tuple[Mesh, np.ndarray]:
        vertices, faces = _marching_cubes(grid.cpu().numpy(), level)
        points = self._place(torch.from_numpy(vertices).to(self.planes.device), len(grid))
        colours = self.query(points)[1].clamp(0, 1)
        world = points.cpu().double() @ self.world[:3, :3].T + self.world[:3, 3]
        return Mesh(world.float().numpy(), faces), colours.cpu().float().numpy()


def _marching_cubes(grid: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices [N,3] float64 in grid indices and faces [M,3] int32, counter-clockwise seen from where it is lower.

    Lorensen's cases on the negated grid: faces of cells with two opposite corners inside are split as the published
    meshers split them, and there are no vertices but on edges. Raises NothingSeen where nothing crosses the level.
    """
    try:
        vertices, faces, _, _ = measure.marching_cubes(-grid, -level, method="lorensen")
    except (ValueError, RuntimeError) as error:
        range_found = f"{grid.min():g} to {grid.max():g}"
        raise NothingSeen(f"No surface at {level:g}: the field goes from {range_found}.") from error
    return vertices.astype(np.float64), faces.astype(np.int32)


def surface_splats(mesh: Mesh, colours: np.ndarray) -> Gaussians:
    """A flat splat on every vertex, across its normal, as wide as its share of the surface.

    colours  [N,3] sRGB of the vertices
    """
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces).long()
    corner = vertices[faces]  # [M,3,3]
    cross = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])  # normal times twice the area
    owners, zeros = faces.flatten(), torch.zeros(len(vertices), 4)
    both = torch.cat([cross, cross.norm(dim=1, keepdim=True) / 6], dim=1)
    normals, share = zeros.index_add(0, owners, both.repeat_interleave(3, dim=0)).split([3, 1], dim=1)
    width = SPLAT_SPREAD * share.sqrt()
    splats = Gaussians(
        means=vertices,
        quats=_quats_along(F.normalize(normals, dim=1)),
        scales=torch.cat([width, width, SPLAT_FLATNESS * width], dim=1),
        opacities=torch.full((len(vertices),), SPLAT_OPACITY),
        sh=rgb_to_sh(torch.from_numpy(colours))[:, None],
    )
    return splats[share[:, 0] > 0]


def _quats_along(normals: Tensor) -> Tensor:
    """[N,4] wxyz of the shortest rotations that take the local z axis to unit `normals` [N,3]."""
    x, y, z = normals.unbind(1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=1)
    half_turn = torch.tensor([0.0, 1.0, 0.0, 0.0])
    return F.normalize(torch.where((z < -0.9999)[:, None], half_turn, quats), dim=1)


def surface_memory(resolution: int, width: int) -> int:
    """About the bytes that `Triplane.splats` uses at a resolution, with a decoder of `width`."""
    grid = 3 * 4 * resolution**3  # densities, negated, and as marching cubes copies them
    sheets = 2 * 3 * 4 * width * resolution**2
    vertices = 6 * resolution**2  # of a surface as large as the cube's
    return grid + sheets + 3 * 4 * width * CHUNK + 600 * vertices
