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
import torch
from scipy import ndimage
from skimage import measure

from backend import mesh_repair, volume
from backend.cameras import Cameras, Views
from backend.gaussians import Gaussians
from backend.monitor import Monitor, Silent
from backend.rendering import render

STAGE = "Mesh"
LONGEST_SIDE = 256  # voxels; 16.8 million at most, 0.3 GB with all that is kept a voxel
SHORTEST_SIDE = 48
VOXEL_PIXELS = 0.8  # a voxel's side in pixels of the views, when that is coarser than the limit above
TRUNCATION = {"exact": 2.5, "rendered": 4.0}  # voxels
VIRTUAL_VIEWS = 26  # around the object, besides the captured ones
VIRTUAL_SIZE = 256  # pixels
SOLID_ALPHA = 0.5  # of a Gaussian rendering: less is empty
TRUST = {"exact": 1.0, "captured": 0.5, "virtual": 0.15}  # weights of a depth map's votes, by where it comes from
SMALLEST_PART = 0.002  # of the largest part's voxels; smaller parts are floaters
SMOOTHING_ROUNDS = 3


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
    masks = volume.silhouettes(views.images[..., 3].numpy(), views.cameras) if views.has_alpha else None
    scans = _captured_scans(gaussians, views)
    box = _bounds(gaussians, masks, scans)
    monitor.progress(STAGE, 1, 6)
    if masks is not None:
        scans = [*scans, _virtual_scan(gaussians, box)]
    monitor.progress(STAGE, 2, 6)
    grid = _choose_grid(box, views.cameras)
    field, known = _solid(grid, masks, scans, exact=views.depth is not None)
    monitor.progress(STAGE, 3, 6)
    surface = _isosurface(grid, field, known)
    monitor.progress(STAGE, 4, 6)
    surface = _decimated(surface, faces, closed=masks is not None)
    monitor.progress(STAGE, 6, 6)
    return surface


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


# ---- what the cameras see


def _rendered_depth(gaussians: Gaussians, cameras: Cameras) -> np.ndarray:
    """[V,H,W] planar depth, inf where the Gaussians let most light through."""
    with torch.no_grad():
        rendering = render(gaussians, cameras)
    depth = rendering.depth / rendering.alpha.clamp(min=1e-6)
    return torch.where(rendering.alpha >= SOLID_ALPHA, depth, torch.inf).numpy().astype(np.float32)


def _captured_scans(gaussians: Gaussians, views: Views) -> list[volume.Scan]:
    if views.depth is not None:
        depth = views.depth.numpy().astype(np.float32)
        return [volume.Scan(views.cameras, np.where(np.isfinite(depth), depth, 0), TRUST["exact"])]
    depth = _rendered_depth(gaussians, views.cameras)
    if views.has_alpha:  # the masks know better where there is nothing, and where there is something
        depth[np.isinf(depth)] = 0
    return [volume.Scan(views.cameras, depth, TRUST["captured"])]


def _virtual_scan(gaussians: Gaussians, box: np.ndarray) -> volume.Scan:
    around = cameras_around(box, VIRTUAL_SIZE)
    return volume.Scan(around, _rendered_depth(gaussians, around), TRUST["virtual"])


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


# ---- where the voxels are


def _bounds(gaussians: Gaussians, masks: volume.Silhouettes | None, scans: list[volume.Scan]) -> np.ndarray:
    """[2,3] lowest and highest corner of the box to mesh, with a margin."""
    means = gaussians.means[gaussians.opacities > 0.05].numpy().astype(np.float64)
    if masks is None:
        points = np.concatenate([_unprojected(scan) for scan in scans])
        points = means if len(points) == 0 else points
        low, high = np.quantile(points, [0.02, 0.98], axis=0) if len(points) else (np.zeros(3), np.zeros(3))
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    else:
        points = np.concatenate([means[_inside(means, masks)], *(_unprojected(scan) for scan in scans)])
        low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(3), np.zeros(3))
    if not (high - low).max() > 0:
        raise ValueError("mesh: the cameras do not see a common object; no Gaussian lies within the masks of all views")
    margin = 0.04 * (high - low).max()
    return np.stack([low - margin, high + margin])


def _inside(points: np.ndarray, masks: volume.Silhouettes) -> np.ndarray:
    """[N] bool: in no view on the background."""
    inside = np.ones(len(points), dtype=bool)
    viewmats, Ks = masks.cameras.viewmats.numpy().astype(np.float64), masks.cameras.Ks.numpy().astype(np.float64)
    for view in range(len(masks.cameras)):
        local = points @ viewmats[view, :3, :3].T + viewmats[view, :3, 3]
        nearness = np.ones(len(points)) if bool(masks.cameras.orthographic[view]) else np.maximum(local[:, 2], 1e-12)
        pixel = (local[:, :2] / nearness[:, None]) @ Ks[view, :2, :2].T + Ks[view, :2, 2]
        column, row = np.floor(np.clip(pixel, -1, 1e6)).astype(int).T
        height, width = masks.distance[view].shape
        within = (local[:, 2] > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
        inside[within] &= masks.distance[view][row[within], column[within]] > -1
    return inside


def _unprojected(scan: volume.Scan, stride: int = 4) -> np.ndarray:
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


def _solid(
    grid: volume.Grid, masks: volume.Silhouettes | None, scans: list[volume.Scan], *, exact: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """[X,Y,Z] signed distance in voxels, negative inside, and where it is known (None: everywhere)."""
    truncation = TRUNCATION["exact" if exact else "rendered"] * grid.voxel
    if masks is None:
        votes = volume.fuse(grid, scans, truncation, np.ones(grid.shape, dtype=bool))
        return votes.mean * (truncation / grid.voxel), votes.weight > 0
    hull = volume.carve(grid, masks)
    votes = volume.fuse(grid, scans, truncation, hull > -2 * grid.voxel)
    inside = np.where(votes.weight > 0, votes.mean * truncation, -truncation)
    field = np.maximum(inside, -np.minimum(hull, truncation)) / grid.voxel
    return _one_solid(field), None


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
        vertices, faces, _, _ = measure.marching_cubes(field, 0.0, mask=known, gradient_direction="descent")
    except (ValueError, RuntimeError) as error:
        raise ValueError("mesh: no surface between what the cameras saw as solid and as empty") from error
    faces = faces.astype(np.int64)
    vertices = mesh_repair.taubin(vertices, faces, rounds=SMOOTHING_ROUNDS)
    world = grid.origin + (vertices - pad) * grid.voxel
    return Mesh(world.astype(np.float32), faces.astype(np.int32))


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
