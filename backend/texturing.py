"""A mesh's colours: an unwrapped texture baked from the captured views, with the Gaussians where no view saw.

Every texel is a point of the surface. Each view that sees it offers the colour of its pixel, with a weight that falls
steeply as the surface turns away, as the view gets coarser and towards edges, where an error of a pixel would fetch the
colour of something else. So the best view nearly decides alone, and the picture stays sharp.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch
import trimesh
import xatlas
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from backend.cameras import Cameras, Views
from backend.gaussians import SH_C0, Gaussians
from backend.mesh_render import rasterise, render_mesh
from backend.meshing import Mesh
from backend.monitor import Monitor, Silent
from backend.rendering import Rendering, render
from backend.scans import cameras_around
from backend.volume import camera_arrays, project
from blender_addon.atomic_file import replacing

STAGE = "Texture"
CHART_PADDING = 4  # texels
ANGLE_POWER = 6.0  # of the cosine between surface and view
FINENESS_POWER = 2.0  # of the pixels per scene unit
EDGE_PIXELS = 3.0  # a pixel this far from an edge, or farther, counts fully
EDGE_FLOOR = 0.01  # what a pixel at the very edge counts
COSINE_FLOOR = 0.08  # flatter views of a texel are not used
GAUSSIAN_SHARE = 1e-6  # weight of a rendered view against a captured one: any fair captured view wins
DEPTH_PIXELS = 1.5  # slack of the visibility test, in pixels' sizes; more for a slanted surface
VIRTUAL_SIZE = 384  # pixels of a rendered view


@dataclass(frozen=True)
class TexturedMesh:
    """A mesh whose vertices are split at texture seams.

    vertices [N,3] float32 world; faces [M,3] int32 counter-clockwise from outside; uvs [N,2] float32, v up;
    texture [T,T,4] uint8 sRGB, row 0 at v = 1
    """

    vertices: np.ndarray
    faces: np.ndarray
    uvs: np.ndarray
    texture: np.ndarray


@dataclass(frozen=True)
class _Texels:
    """P points of the surface and where they are in the texture: rows, columns [P], points and normals [P,3]."""

    rows: np.ndarray
    columns: np.ndarray
    points: np.ndarray
    normals: np.ndarray


def bake(
    mesh: Mesh, views: Views, gaussians: Gaussians, *, size: int = 1024, monitor: Monitor | None = None
) -> TexturedMesh:
    """The mesh with a square texture of `size` texels a side. Raises ValueError for a mesh without faces."""
    monitor = monitor or Silent()
    if len(mesh.faces) == 0:
        raise ValueError("texture: the mesh has no faces")
    views, gaussians = views.to("cpu"), gaussians.detach().to("cpu")
    around = cameras_around(np.stack([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)]), VIRTUAL_SIZE)
    total = 2 + len(views) + len(around)
    monitor.progress(STAGE, 0, total)
    source, faces, uvs = _unwrapped(mesh, size)
    vertices = mesh.vertices[source]
    texels = _texels(vertices, faces, uvs, _vertex_normals(mesh)[source], size)
    sums = np.zeros((len(texels.rows), 4))
    pictures = _pictures(views, gaussians, around)
    for step, (camera, image, share) in enumerate(pictures, start=1):
        monitor.progress(STAGE, step, total)
        depth = rasterise(mesh.vertices, mesh.faces, camera).depth[0]
        _gather(
            sums,
            texels.points,
            texels.normals,
            _camera_values(camera),
            image,
            depth,
            (_safety(image[..., 3], depth, camera) * share).astype(np.float32),
        )
    monitor.progress(STAGE, total - 1, total)
    texture = _filled(texels, sums, gaussians, size)
    monitor.progress(STAGE, total, total)
    return TexturedMesh(vertices, faces, uvs, texture)


def render_textured(textured: TexturedMesh, cameras: Cameras) -> Rendering:
    """Pictures of the mesh in its texture's colours; rgb is premultiplied by alpha."""
    return render_mesh(textured.vertices, textured.faces, textured.uvs, textured.texture, cameras)


def save_glb(textured: TexturedMesh, path: Path | str) -> None:
    """Writes a GLB with its texture inside, whole or not at all. Y is up in the file: (x, y, z) becomes (x, z, -y)."""
    x, y, z = textured.vertices.T
    material = PBRMaterial(
        name="Gaussmith",
        baseColorTexture=Image.fromarray(textured.texture[..., :3]),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=True,
    )
    mesh = trimesh.Trimesh(
        vertices=np.stack([x, z, -y], axis=1),
        faces=textured.faces,
        visual=TextureVisuals(uv=textured.uvs, material=material),
        process=False,
    )
    exported = trimesh.Scene({"mesh": mesh}).export(file_type="glb", include_normals=True)
    if not isinstance(exported, bytes):
        raise TypeError(f"trimesh made {type(exported).__name__} of a GLB, expected bytes")
    with replacing(Path(path)) as file:
        file.write(io.BytesIO(exported).getbuffer())


# ---- the surface as texels


def _unwrapped(mesh: Mesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new vertex the mesh vertex it copies [N], the faces [M,3] int32 and uvs [N,2] float32, v up."""
    low, extent = mesh.vertices.min(axis=0), float(np.ptp(mesh.vertices, axis=0).max())
    atlas = xatlas.Atlas()
    atlas.add_mesh((mesh.vertices - low) / extent, mesh.faces.astype(np.uint32))  # its thresholds expect size 1
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    packing.resolution, packing.padding, packing.bruteForce = size, CHART_PADDING, False
    atlas.generate(charts, packing)
    source, faces, uvs = atlas[0]
    return source.astype(np.int64), faces.astype(np.int32), np.clip(uvs, 0, 1).astype(np.float32)


def _vertex_normals(mesh: Mesh) -> np.ndarray:
    """[N,3] area-weighted unit normals."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros((len(mesh.vertices), 3))
    for corner in range(3):
        np.add.at(normals, mesh.faces[:, corner], across)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(length == 0, 1, length)


def _texels(vertices: np.ndarray, faces: np.ndarray, uvs: np.ndarray, normals: np.ndarray, size: int) -> _Texels:
    """The texels whose centre a face covers, found by drawing the unwrapped faces as if they were seen from above."""
    flat = np.stack([uvs[:, 0] * size, (1 - uvs[:, 1]) * size, np.ones(len(uvs))], axis=1)
    page = Cameras(torch.eye(4)[None], torch.eye(3)[None], torch.ones(1, dtype=torch.bool), size, size)
    drawn = rasterise(flat, faces, page)
    rows, columns = np.nonzero(drawn.faces[0] >= 0)
    corners = faces[drawn.faces[0, rows, columns]]
    weights = drawn.barycentrics[0, rows, columns][..., None]
    points = (vertices[corners] * weights).sum(axis=1)
    turned = (normals[corners] * weights).sum(axis=1)
    turned /= np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
    return _Texels(rows, columns, points.astype(np.float64), turned)


# ---- colours from pictures


def _pictures(views: Views, gaussians: Gaussians, around: Cameras) -> Iterator[tuple[Cameras, np.ndarray, float]]:
    """One camera, its image [H,W,4] with straight alpha, and its share: the captured views, then rendered ones."""
    for view in range(len(views)):
        yield views.cameras[[view]], views.images[view].numpy(), 1.0
    if len(gaussians) == 0:
        return
    for view in range(len(around)):
        with torch.no_grad():
            rendering = render(gaussians, around[[view]])
        rgb = rendering.rgb[0] / rendering.alpha[0].clamp(min=1e-3)[..., None]
        image = torch.cat([rgb, rendering.alpha[0][..., None]], dim=-1).clamp(0, 1)
        yield around[[view]], image.numpy().astype(np.float32), GAUSSIAN_SHARE


def _camera_values(camera: Cameras) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
    """World to camera, pixels, orthographic, and the centre [3] or, for an orthographic camera, the view axis [3]."""
    matrix, pixels, orthographic = camera_arrays(camera, 0)
    c2w = camera.c2w[0].numpy().astype(np.float64)
    return matrix, pixels, orthographic, (c2w[:3, 2] if orthographic else c2w[:3, 3]).copy()


def _safety(alpha: np.ndarray, depth: np.ndarray, camera: Cameras) -> np.ndarray:
    """[H,W] 0..1: how far a pixel is from the mask's outline and from the edges in the mesh's own depth."""
    solid = (alpha > 0.95) & (depth > 0)
    footprint = depth / float(camera.Ks[0, 0, 0]) if not bool(camera.orthographic[0]) else 1 / float(camera.Ks[0, 0, 0])
    jump = ndimage.maximum_filter(depth, 3) - ndimage.minimum_filter(depth, 3) > 12 * footprint
    distance = np.asarray(ndimage.distance_transform_edt(np.pad(solid & ~jump, 1, mode="edge")))[1:-1, 1:-1]
    ramp = np.clip(distance / EDGE_PIXELS, EDGE_FLOOR, 1)
    return np.where(alpha > 0.5, ramp, 0)


@numba.njit(parallel=True, cache=True)
def _gather(sums, points, normals, camera, image, depth, safety):
    """Adds one picture's weighted colours and its weights to sums [P,4]."""
    height, width = depth.shape
    matrix, pixels, orthographic, centre = camera
    for p in numba.prange(points.shape[0]):
        x, y, z = points[p]
        column, row, distance = project(matrix, pixels, orthographic, x, y, z)
        if distance <= 0 or column < 0 or row < 0 or column >= width or row >= height:
            continue
        if orthographic:
            tx, ty, tz = -centre[0], -centre[1], -centre[2]
        else:
            tx, ty, tz = centre[0] - x, centre[1] - y, centre[2] - z
        facing = normals[p, 0] * tx + normals[p, 1] * ty + normals[p, 2] * tz
        cosine = facing / np.sqrt(tx * tx + ty * ty + tz * tz)
        front = depth[int(row), int(column)]
        footprint = (1.0 if orthographic else distance) / pixels[0, 0]
        if cosine < COSINE_FLOOR or front <= 0 or distance - front > footprint * DEPTH_PIXELS * (1 + 1 / cosine):
            continue  # turned away, or something is in front
        weight = cosine**ANGLE_POWER / footprint**FINENESS_POWER
        _add_pixel(sums[p], image, safety, (column, row), weight)


@numba.njit(cache=True)
def _add_pixel(sums, image, safety, position, weight):
    """Adds the colour at position (column, row), between the four nearest pixel centres; sums [4]."""
    height, width = safety.shape
    x = min(max(position[0] - 0.5, 0.0), width - 1.0)
    y = min(max(position[1] - 0.5, 0.0), height - 1.0)
    x0, y0 = int(x), int(y)
    fx, fy = x - x0, y - y0
    red, green, blue, cover, safe = 0.0, 0.0, 0.0, 0.0, 0.0
    for corner in range(4):
        right, down = corner % 2, corner // 2
        xx, yy = min(x0 + right, width - 1), min(y0 + down, height - 1)
        share = (fx if right else 1 - fx) * (fy if down else 1 - fy)
        safe += share * safety[yy, xx]
        share *= image[yy, xx, 3]
        cover += share
        red += share * image[yy, xx, 0]
        green += share * image[yy, xx, 1]
        blue += share * image[yy, xx, 2]
    if cover > 0.0 and safe > 0.0:
        sums[0] += weight * safe * red / cover
        sums[1] += weight * safe * green / cover
        sums[2] += weight * safe * blue / cover
        sums[3] += weight * safe


def _filled(texels: _Texels, sums: np.ndarray, gaussians: Gaussians, size: int) -> np.ndarray:
    """[size,size,4] uint8: weighted means, the nearest Gaussian's base colour where nothing saw, and filled gutters."""
    seen = sums[:, 3] > 0
    mean = np.full((len(sums), 3), 0.5)
    mean[seen] = sums[seen, :3] / sums[seen, 3:]
    solid = (gaussians.opacities > 0.1).numpy()
    if not seen.all() and solid.any():
        nearest = KDTree(gaussians.means.numpy()[solid]).query(texels.points[~seen])[1]
        mean[~seen] = 0.5 + SH_C0 * gaussians.sh[:, 0].numpy()[solid][nearest]
    texture = np.zeros((size, size, 4), dtype=np.uint8)
    texture[..., 3] = 255
    covered = np.zeros((size, size), dtype=bool)
    covered[texels.rows, texels.columns] = True
    texture[texels.rows, texels.columns, :3] = np.round(np.clip(mean, 0, 1) * 255).astype(np.uint8)
    # each texel between the charts takes the nearest texel's colour, so that no filter or mip level mixes in a stranger
    rows, columns = np.asarray(ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True))
    return texture[rows, columns]
