"""Gaussians and the views they came from, turned into a triangle mesh.

    depth of the Gaussians, of the capture  ->  signed distance on a grid  ->  solid  ->  surface  ->  few faces
                                     masks  ->  visual hull            ------^

With masks the result is closed: what no view saw inside the hull counts as solid. Without masks (a room, a street) only
what was seen becomes surface, and the mesh is open where the cameras' view ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import fast_simplification
import numpy as np
from scipy import ndimage
from skimage import measure

from backend import density, mesh_repair, scans, volume
from backend.cameras import Cameras, Views
from backend.gaussians import Gaussians
from backend.monitor import Monitor, Silent
from backend.rendering import median_depth

STAGE = "Mesh"
LONGEST_SIDE = 256  # voxels; 16.8 million at most, 0.3 GB with all that is kept a voxel
SHORTEST_SIDE = 48
VOXEL_PIXELS = 0.8  # a voxel's side in pixels of the views, when that is coarser than the limit above
TRUNCATION = {"exact": 2.5, "rendered": 4.0}  # voxels
SMALLEST_PART = 0.002  # of the largest part's voxels; smaller parts are floaters
SMOOTHING_ROUNDS = 3
LEAST_WEIGHT = 0.25  # fewer votes do not make a place known: one or two rendered views alone carve nothing
EXTENT_MARGIN = 1.0  # voxels that the shape may stick out of the convex hull of what was seen
FAR_POINTS = (0.02, 0.98)  # quantiles of the seen points along each axis: without masks, what is farther is left out


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in the world: vertices [N,3] float32, faces [M,3] int32, counter-clockwise seen from outside."""

    vertices: np.ndarray
    faces: np.ndarray


def extract_mesh(gaussians: Gaussians, views: Views, *, faces: int = 20_000, monitor: Monitor | None = None) -> Mesh:
    """The surface of the Gaussians, of at most about `faces` triangles.

    Depth maps that came with the views are used as they are, else the Gaussians' own. Raises ValueError when there is
    nothing to mesh: no Gaussians, or no place that the views' masks have in common.
    """
    monitor = monitor or Silent()
    gaussians, views = gaussians.detach().to("cpu"), views.to("cpu")
    if len(gaussians) == 0:
        raise ValueError("mesh: there are no Gaussians to take a surface from")
    monitor.progress(STAGE, 0, 6)
    grid, distance, known = _object(gaussians, views, monitor) if views.has_alpha else _scene(gaussians, views, monitor)
    monitor.progress(STAGE, 3, 6)
    surface = _isosurface(grid, distance, known)
    monitor.progress(STAGE, 4, 6)
    surface = _decimated(surface, faces, closed=known is None)
    monitor.progress(STAGE, 6, 6)
    return surface


def simplified(mesh: Mesh, faces: int) -> Mesh:
    """A closed mesh with at most about `faces` triangles."""
    return _decimated(mesh, faces, closed=True)


def mesh_report(mesh: Mesh) -> dict[str, Any]:
    """faces, vertices, components, holes (loops of edges with one face) and whether the mesh is watertight."""
    components, _ = mesh_repair.component_labels(mesh.faces, len(mesh.vertices))
    holes = len(mesh_repair.boundary_loops(mesh.faces))
    watertight = len(mesh.faces) > 0 and holes == 0 and not mesh_repair.crowded_faces(mesh.faces).any()
    return {
        "faces": len(mesh.faces),
        "vertices": len(mesh.vertices),
        "components": components,
        "holes": holes,
        "watertight": bool(watertight),
    }


# ---- the two kinds of views: the grid, signed distances on it [X,Y,Z], voxels, and where they are known (None: all)


def _object(gaussians: Gaussians, views: Views, monitor: Monitor) -> tuple[volume.Grid, np.ndarray, None]:
    """With masks: a solid, from the views' depth, the surface of the Gaussians' density, and the masks."""
    masks = volume.silhouettes(views.images[..., 3].numpy(), views.cameras)
    box = _bounds_of_object(gaussians, masks, views)
    grid = _choose_grid(box, views.cameras)
    surface = density.surface_of(gaussians, views, grid)
    monitor.progress(STAGE, 1, 6)
    captured, virtual = scans.captured(views, surface.depth), scans.virtual(box, surface.depth)
    monitor.progress(STAGE, 2, 6)
    field = volume.empty_field(grid, TRUNCATION["rendered" if views.depth is None else "exact"] * grid.voxel)
    return grid, _solid(field, masks, captured, virtual), None


def _scene(gaussians: Gaussians, views: Views, monitor: Monitor) -> tuple[volume.Grid, np.ndarray, np.ndarray]:
    """Without masks: surfaces where depth maps show them, and nothing where no view looked."""

    def depth_of(cameras: Cameras) -> np.ndarray:
        depth = median_depth(gaussians, cameras).numpy()
        return np.where(depth > 0, depth, np.inf).astype(np.float32)

    captured = scans.captured(views, depth_of)
    monitor.progress(STAGE, 1, 6)
    grid = _choose_grid(_bounds_of_scene(gaussians, captured), views.cameras)
    field = volume.empty_field(grid, TRUNCATION["rendered" if views.depth is None else "exact"] * grid.voxel)
    volume.vote(field, captured, np.ones(grid.shape, dtype=bool))
    return grid, field.mean * (field.truncation / grid.voxel), field.weight > 0


# ---- where the voxels are


def _bounds_of_object(gaussians: Gaussians, masks: volume.Silhouettes, views: Views) -> np.ndarray:
    """[2,3] lowest and highest corner, with a margin: Gaussians within all masks, and the views' own depth."""
    means = _solid_means(gaussians)
    points = [means[scans.inside_masks(means, masks)]]
    if views.depth is not None:
        points.append(scans.unprojected(scans.given(views.cameras, views.depth)))
    return _box_of(np.concatenate(points), (0.0, 1.0))


def _bounds_of_scene(gaussians: Gaussians, captured: volume.Scan) -> np.ndarray:
    """[2,3] lowest and highest corner, with a margin, of most of what was seen."""
    seen = scans.unprojected(captured)
    return _box_of(seen if len(seen) else _solid_means(gaussians), FAR_POINTS)


def _solid_means(gaussians: Gaussians) -> np.ndarray:
    return gaussians.means[gaussians.opacities > 0.05].numpy().astype(np.float64)


def _box_of(points: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    low, high = np.quantile(points, ends, axis=0) if len(points) else np.zeros((2, 3))
    if not (high - low).max() > 0:
        raise ValueError("mesh: the cameras do not see a common object; no Gaussian lies within the masks of all views")
    margin = 0.04 * (high - low).max()
    return np.stack([low - margin, high + margin])


def _choose_grid(box: np.ndarray, cameras: Cameras) -> volume.Grid:
    """As fine as the pixels are where the object is, within the limits of memory."""
    centre, size = box.mean(axis=0), box[1] - box[0]
    distance = np.linalg.norm(cameras.centres.numpy() - centre, axis=1)
    footprint = np.where(cameras.orthographic.numpy(), 1.0, distance) / cameras.Ks[:, 0, 0].numpy()
    longest = float(np.clip(size.max() / (VOXEL_PIXELS * np.median(footprint)), SHORTEST_SIDE, LONGEST_SIDE))
    voxel = float(size.max()) / longest
    shape = np.maximum(np.ceil(size / voxel).astype(int) + 1, 4)
    return volume.Grid(origin=box[0], voxel=voxel, shape=(int(shape[0]), int(shape[1]), int(shape[2])))


# ---- from distances to a solid and its surface


def _solid(field: volume.Field, masks: volume.Silhouettes, captured: volume.Scan, virtual: volume.Scan) -> np.ndarray:
    """[X,Y,Z] signed distance in voxels, negative inside: what the masks, the depth maps and the seen extent leave."""
    voxel, truncation = field.grid.voxel, field.truncation
    hull = volume.carve(field.grid, masks)
    worth = hull > -2 * voxel
    volume.vote(field, captured, worth)
    volume.vote(field, volume.without_blocked(virtual, field), worth)
    inside = np.where(field.weight > LEAST_WEIGHT, field.mean * truncation, -truncation)
    distance = np.maximum(inside, -np.minimum(hull, truncation))
    seen = scans.unprojected(captured)
    if len(seen):
        distance = np.maximum(distance, volume.limit_to_extent(field.grid, seen) - EXTENT_MARGIN * voxel)
    return _one_solid(distance / voxel)


def _one_solid(field: np.ndarray) -> np.ndarray:
    """Without cavities, which no camera can look into, and without floaters."""
    open_space = _labels(np.pad(field >= 0, 1, constant_values=True), 1)
    cavity = ((open_space > 0) & (open_space != open_space[0, 0, 0]))[1:-1, 1:-1, 1:-1]
    field = np.where(cavity, -np.maximum(np.abs(field), 0.5), field)
    labels = _labels(field < 0, 3)
    if not labels.any():
        raise ValueError("mesh: the views carve everything away; their cameras do not see a common object")
    sizes = np.bincount(labels.ravel())[1:]
    small = np.flatnonzero(sizes < SMALLEST_PART * sizes.max()) + 1
    return np.where(np.isin(labels, small), np.maximum(np.abs(field), 0.5), field)


def _labels(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """[X,Y,Z] int32 numbers of the regions that join by faces (1) or by corners too (3); 0 where the mask is False."""
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=ndimage.generate_binary_structure(3, connectivity), output=labels)
    return labels


def _isosurface(grid: volume.Grid, field: np.ndarray, known: np.ndarray | None) -> Mesh:
    field = field.astype(np.float32)
    field[np.abs(field) < 1e-3] = 1e-3  # a value of 0 makes triangles without an area
    pad = 1 if known is None else 0
    if pad:
        field = np.pad(field, pad, constant_values=1.0)
    try:
        vertices, faces, _, _ = measure.marching_cubes(
            field, 0.0, mask=None if known is None else _known_cells(known), gradient_direction="descent"
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError("mesh: no surface between what the cameras saw as solid and as empty") from error
    faces = faces.astype(np.int64)
    vertices = mesh_repair.taubin(vertices, faces, rounds=SMOOTHING_ROUNDS)
    world = grid.origin + (vertices - pad) * grid.voxel
    return Mesh(world.astype(np.float32), faces.astype(np.int32))


def _known_cells(known: np.ndarray) -> np.ndarray:
    """[X,Y,Z] bool for marching_cubes, which asks for a cell at its last corner: all eight corners are known."""
    cells = np.zeros_like(known)
    cells[1:, 1:, 1:] = True
    for i, j, k in np.ndindex(2, 2, 2):
        corner = known[i : known.shape[0] - 1 + i, j : known.shape[1] - 1 + j, k : known.shape[2] - 1 + k]
        cells[1:, 1:, 1:] &= corner
    return cells


def _decimated(mesh: Mesh, target: int, *, closed: bool) -> Mesh:
    """At most about `target` faces, by quadric edge collapse in a frame of unit size; closed again if it was."""
    vertices, faces = mesh.vertices.astype(np.float64), mesh.faces
    low, size = vertices.min(axis=0), float(np.ptp(vertices, axis=0).max())
    if len(faces) > target:
        unit = ((vertices - low) / size).astype(np.float32)
        reduced = fast_simplification.simplify(unit, faces, target_count=target)
        vertices, faces = reduced[0].astype(np.float64) * size + low, reduced[1]
    faces = faces.astype(np.int64)
    if closed:
        vertices, faces = mesh_repair.close(vertices, faces)
    else:
        vertices, faces = mesh_repair.compact(vertices, mesh_repair.without_degenerate(faces))
    return replace(mesh, vertices=vertices.astype(np.float32), faces=faces.astype(np.int32))
