"""Depth maps and masks fused into a signed distance on a grid (Curless and Levoy, "A volumetric method", 1996).

Two sources meet. Depth maps vote for a truncated signed distance near the surfaces they see and for emptiness in front
of them. Masks carve: the visual hull is where no view sees the background. What nobody saw stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy import ndimage

from backend.cameras import Cameras

BEHIND = 2  # exponent of the fall of a vote's weight behind the surface, where a thin part's other side may be
SLOPE_LIMIT = 4.0  # depth per pixel over the pixel's own size; steeper neighbours lie across an edge of the shape
EDGE_COSINE = 0.2  # what a pixel at such an edge counts as
BLOCKED = -0.3  # truncation lengths: a mean below this is solid
LOOK_ON = 6.0  # truncation lengths behind a surface in which its other, captured side is looked for
EXTENT_DIRECTIONS = 134


@dataclass(frozen=True)
class Grid:
    """Voxels at origin + voxel * (i, j, k), i below shape[0]; world frame, scene units."""

    origin: np.ndarray
    voxel: float
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Scan:
    """V depth maps that share an image size.

    depth   [V,H,W] float32 planar, scene units, 0 where it is unknown, inf where the ray meets nothing
    trust   weight of a vote
    """

    cameras: Cameras
    depth: np.ndarray
    trust: float


@dataclass(frozen=True)
class Silhouettes:
    """V masks as distances: [V,H,W] float32 pixels to the outline, positive inside."""

    cameras: Cameras
    distance: np.ndarray


@dataclass(frozen=True)
class Field:
    """The votes so far: per voxel the weighted sum of distances in truncation lengths, -1..1, positive outside.

    total, weight   [X,Y,Z] float32, changed in place by `vote`
    """

    grid: Grid
    truncation: float
    total: np.ndarray
    weight: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """[X,Y,Z] float32 in -1..1; 0 where nobody voted."""
        return np.divide(self.total, self.weight, out=np.zeros_like(self.total), where=self.weight > 0)


def silhouettes(alpha: np.ndarray, cameras: Cameras) -> Silhouettes:
    """Signed pixel distances to the outline at alpha 0.5, to a fraction of a pixel; alpha [V,H,W] 0..1."""
    distance = np.empty(alpha.shape, dtype=np.float32)
    for view, image in enumerate(alpha):
        inside = image >= 0.5
        if inside.all() or not inside.any():  # no outline: far inside, or far outside
            distance[view] = np.float32(max(image.shape) * (1 if inside.all() else -1))
            continue
        signed = np.asarray(ndimage.distance_transform_edt(inside)) - np.asarray(
            ndimage.distance_transform_edt(~inside)
        )
        signed -= np.sign(signed) * 0.5  # the outline runs between the last pixel inside and the first outside
        # a partly covered pixel on the outline says where in the pixel the outline runs
        on_outline = (np.abs(signed) < 1) & (image > 0.02) & (image < 0.98)
        distance[view] = np.where(on_outline, image - 0.5, signed)
    return Silhouettes(cameras, distance)


def _distance_to_false(mask: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.distance_transform_edt(mask))


def carve(grid: Grid, masks: Silhouettes) -> np.ndarray:
    """[X,Y,Z] float32 signed distance to the visual hull, scene units, positive inside.

    A view says nothing of voxels behind it or outside its picture; where none says anything the value is inf.
    """
    hull = np.full(grid.shape, np.inf, dtype=np.float32)
    for view in range(len(masks.cameras)):
        matrix, pixels, orthographic = camera_arrays(masks.cameras, view)
        _carve_one(hull, grid.origin, grid.voxel, matrix, pixels, orthographic, masks.distance[view])
    return hull


def empty_field(grid: Grid, truncation: float) -> Field:
    """No votes yet; `truncation` in scene units."""
    return Field(grid, truncation, np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32))


def vote(field: Field, scan: Scan, worth: np.ndarray) -> None:
    """Adds the votes of all depth maps of a scan to the field, in the voxels where `worth` [X,Y,Z] bool is True."""
    placed = (field.grid.origin, field.grid.voxel)
    for view in range(len(scan.cameras)):
        matrix, pixels, orthographic = camera_arrays(scan.cameras, view)
        maps = _slopes(scan.depth[view], pixels, orthographic)
        camera = (np.concatenate([matrix, pixels]), orthographic)
        _vote(field.total, field.weight, worth, placed, camera, maps, (field.truncation, scan.trust))


def without_blocked(scan: Scan, field: Field) -> Scan:
    """The scan without the pixels whose ray passes through what the field already takes for solid.

    Such a ray comes to a surface from behind, through a place that was not captured: it would hollow the shape out.
    """
    mean, grid = field.mean, field.grid
    depth = scan.depth.copy()
    for view in range(len(scan.cameras)):
        c2w = scan.cameras.c2w[view].detach().cpu().numpy().astype(np.float64)
        c2w[:3, 3] = (c2w[:3, 3] - grid.origin) / grid.voxel
        inverse = np.linalg.inv(scan.cameras.Ks[view].detach().cpu().numpy().astype(np.float64))
        orthographic = bool(scan.cameras.orthographic[view])
        _drop_blocked(depth[view], mean, (c2w, inverse, orthographic), grid.voxel, field.truncation)
        dropped = (depth[view] == 0) & (scan.depth[view] != 0)
        depth[view][ndimage.binary_dilation(dropped, iterations=2)] = 0  # their neighbours only just got through
    return Scan(scan.cameras, depth, scan.trust)


def limit_to_extent(grid: Grid, points: np.ndarray) -> np.ndarray:
    """[X,Y,Z] float32 signed distance to the common outside of points [P,3], scene units, positive outside.

    The convex hull from EXTENT_DIRECTIONS sides: nothing unseen is thought to stick out of what was seen.
    """
    directions = _directions()
    parts = np.array_split(points, len(points) // 65536 + 1)  # a product of all at once could fill the memory
    reach = np.max([(part @ directions.T).max(axis=0) for part in parts], axis=0)
    distance = np.full(grid.shape, -np.inf, dtype=np.float32)
    _raise_to_planes(distance, grid.origin, grid.voxel, directions, reach)
    return distance


def _directions() -> np.ndarray:
    """[D,3] the six along the axes and more, evenly spread (Fibonacci)."""
    steps = np.arange(EXTENT_DIRECTIONS - 6) + 0.5
    height = 1 - 2 * steps / len(steps)
    angle, ring = np.pi * (1 + 5**0.5) * steps, np.sqrt(1 - height**2)
    spread = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    return np.concatenate([np.eye(3), -np.eye(3), spread])


def camera_arrays(cameras: Cameras, view: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """World to camera [3,4], fx fy cx cy as [2,4] with the skew, and whether the camera is orthographic."""
    matrix = cameras.viewmats[view, :3].detach().cpu().numpy().astype(np.float64)
    pixel_matrix = cameras.Ks[view].detach().cpu().numpy().astype(np.float64)
    pixels = np.zeros((2, 4))
    pixels[:, :3] = pixel_matrix[:2]
    return matrix, pixels, bool(cameras.orthographic[view])


def _slopes(depth: np.ndarray, pixels: np.ndarray, orthographic: bool) -> np.ndarray:
    """[H,W,4]: depth, its change per pixel right and down, and the cosine between surface and ray.

    Of the two neighbours along an axis the one with the smaller change counts, so that a slope is not taken across an
    edge of the shape.
    """
    focal = 0.5 * (pixels[0, 0] + pixels[1, 1])
    known = np.isfinite(depth) & (depth > 0)
    values = np.where(known, depth, np.inf)
    slopes = []
    with np.errstate(invalid="ignore"):
        for axis in (1, 0):
            step = np.diff(values, axis=axis)
            step = np.where(np.isfinite(step), step, np.inf)
            pad = [(0, 0), (0, 0)]
            pad[axis] = (1, 0)
            before = np.pad(step, pad, constant_values=np.inf)
            pad[axis] = (0, 1)
            after = np.pad(step, pad, constant_values=np.inf)
            least = np.where(np.abs(before) < np.abs(after), before, after)
            slopes.append(least)
    footprint = np.full(depth.shape, 1 / focal) if orthographic else np.where(known, depth, 1) / focal
    steep = np.maximum(np.abs(slopes[0]), np.abs(slopes[1])) > SLOPE_LIMIT * footprint
    right, down = (np.where(steep, 0, slope) for slope in slopes)
    cosine = np.where(steep, EDGE_COSINE, 1 / np.sqrt(1 + (right**2 + down**2) / footprint**2))
    cosine[np.isinf(depth)] = 1
    return np.stack([depth, right, down, cosine], axis=-1).astype(np.float32)


@numba.njit(cache=True)
def project(matrix, pixels, orthographic, x, y, z):
    """Pixel column and row, and planar depth, of a world point."""
    cx = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3]
    cy = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3]
    cz = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] * z + matrix[2, 3]
    w = 1.0 if orthographic else max(cz, 1e-12)
    column = (pixels[0, 0] * cx + pixels[0, 1] * cy) / w + pixels[0, 2]
    row = pixels[1, 1] * cy / w + pixels[1, 2]
    return column, row, cz


@numba.njit(parallel=True, cache=True)
def _carve_one(hull, origin, voxel, matrix, pixels, orthographic, distance):
    height, width = distance.shape
    for i in numba.prange(hull.shape[0]):
        for j in range(hull.shape[1]):
            for k in range(hull.shape[2]):
                x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                column, row, depth = project(matrix, pixels, orthographic, x, y, z)
                if depth <= 0 or column < 0 or row < 0 or column > width or row > height:
                    continue
                px = min(max(column - 0.5, 0.0), width - 1.0)
                py = min(max(row - 0.5, 0.0), height - 1.0)
                x0, y0 = int(px), int(py)
                x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                fx, fy = px - x0, py - y0
                top = (1 - fx) * distance[y0, x0] + fx * distance[y0, x1]
                bottom = (1 - fx) * distance[y1, x0] + fx * distance[y1, x1]
                value = (1 - fy) * top + fy * bottom
                value *= (1.0 if orthographic else depth) / pixels[0, 0]
                hull[i, j, k] = min(hull[i, j, k], value)


@numba.njit(parallel=True, cache=True)
def _vote(total, weight, worth, placed, camera, maps, limits):
    """Adds one depth map's votes to the sums; placed = (origin, voxel), limits = (truncation, trust)."""
    origin, voxel = placed
    matrices, orthographic = camera
    matrix, pixels = matrices[:3], matrices[3:]
    truncation, trust = limits
    height, width = maps.shape[:2]
    for i in numba.prange(total.shape[0]):
        for j in range(total.shape[1]):
            for k in range(total.shape[2]):
                if not worth[i, j, k]:
                    continue
                x, y, z = origin[0] + i * voxel, origin[1] + j * voxel, origin[2] + k * voxel
                column, row, depth = project(matrix, pixels, orthographic, x, y, z)
                if depth <= 0 or column < 0 or row < 0 or column >= width or row >= height:
                    continue
                c, r = int(column), int(row)
                seen = maps[r, c, 0]
                if seen == 0:
                    continue
                cosine = maps[r, c, 3]
                seen += (column - c - 0.5) * maps[r, c, 1] + (row - r - 0.5) * maps[r, c, 2]
                distance = (seen - depth) * cosine / truncation  # along the ray, turned towards the normal
                if distance <= -1:
                    continue
                vote = trust * cosine
                if distance < 0:
                    vote *= (1 + distance) ** BEHIND
                total[i, j, k] += vote * min(distance, 1.0)
                weight[i, j, k] += vote


@numba.njit(parallel=True, cache=True)
def _drop_blocked(depth, mean, camera, voxel, truncation):
    """Sets depth [H,W] to 0 (unknown) where the ray enters solid, a mean below BLOCKED, too early or from the unknown.

    Too early is more than a voxel before the depth. Some of the way behind it counts too, as the Gaussians of a surface
    seen from behind lie a little before it. The camera is (c2w with its position in voxels, inverse of K, kind).
    """
    c2w, inverse, orthographic = camera
    height, width = depth.shape
    size = mean.shape
    longest = float(np.sqrt(size[0] ** 2 + size[1] ** 2 + size[2] ** 2))
    for row in numba.prange(height):
        ray, at, step = np.empty(3), np.empty(3), np.empty(3)
        for column in range(width):
            if depth[row, column] == 0:
                continue
            for axis in range(3):
                ray[axis] = inverse[axis, 0] * (column + 0.5) + inverse[axis, 1] * (row + 0.5) + inverse[axis, 2]
            for axis in range(3):
                aside = c2w[axis, 0] * ray[0] + c2w[axis, 1] * ray[1]
                at[axis] = c2w[axis, 3] + (aside / voxel if orthographic else 0.0)
                step[axis] = c2w[axis, 2] + (0.0 if orthographic else aside)  # planar depth grows by 1 a step
            length = np.sqrt(step[0] ** 2 + step[1] ** 2 + step[2] ** 2)
            centre = 0.0
            for axis in range(3):
                centre += (0.5 * size[axis] - at[axis]) * step[axis] / length**2
            start = max(centre - 0.5 * longest / length, 0.0)
            end = min(centre + 0.5 * longest / length, (depth[row, column] + LOOK_ON * truncation) / voxel)
            travelled, before = start, 0.0
            while travelled < end:
                i = int(np.round(at[0] + travelled * step[0]))
                j = int(np.round(at[1] + travelled * step[1]))
                k = int(np.round(at[2] + travelled * step[2]))
                travelled += 1.0 / length
                if i < 0 or j < 0 or k < 0 or i >= size[0] or j >= size[1] or k >= size[2]:
                    continue
                here = mean[i, j, k]
                if here < BLOCKED:
                    if before == 0.0 or travelled < depth[row, column] / voxel - 1.0:
                        depth[row, column] = 0
                    break
                before = here


@numba.njit(parallel=True, cache=True)
def _raise_to_planes(distance, origin, voxel, directions, reach):
    for i in numba.prange(distance.shape[0]):
        x = origin[0] + i * voxel
        for j in range(distance.shape[1]):
            y = origin[1] + j * voxel
            for d in range(directions.shape[0]):
                base = x * directions[d, 0] + y * directions[d, 1] - reach[d]
                slope = directions[d, 2]
                for k in range(distance.shape[2]):
                    distance[i, j, k] = max(distance[i, j, k], base + (origin[2] + k * voxel) * slope)
