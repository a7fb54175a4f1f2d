"""A z-buffer renderer of textured meshes on the CPU, for pinhole and orthographic cameras.

A triangle is set up in homogeneous coordinates (Olano and Greer, "Triangle scan conversion using 2D homogeneous
coordinates", 1997): with the camera-space corners as the columns of M, the solution b of M b = (x, y, 1) for the ray
through a pixel is the barycentric weight of each corner over the depth. So nothing is clipped against the near plane,
and the weights are right in perspective. An orthographic camera uses the columns (x, y, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch

from backend.cameras import Cameras
from backend.rendering import Rendering

EDGE_TOLERANCE = 1e-9  # of a barycentric weight: a pixel centre on a shared edge must not fall between two triangles
NEAR = 1e-6  # of the largest distance of a vertex from the camera: what lies nearer counts as behind it
BAND_ROWS = 32  # rows of one parallel piece of work


@dataclass(frozen=True)
class Fragments:
    """What V cameras see of a mesh at each pixel centre.

    faces         [V,H,W] int32, index of the nearest face, -1 where there is none
    barycentrics  [V,H,W,3] float32, weights of the face's corners, right in perspective; 0 where there is no face
    depth         [V,H,W] float32, planar depth in scene units, 0 where there is no face
    """

    faces: np.ndarray
    barycentrics: np.ndarray
    depth: np.ndarray


def rasterise(vertices: np.ndarray, faces: np.ndarray, cameras: Cameras) -> Fragments:
    """The nearest face of either orientation at every pixel centre.

    vertices [N,3] world, faces [M,3]. Faces without an area are skipped.
    """
    count, height, width = len(cameras), cameras.height, cameras.width
    index = np.full((count, height, width), -1, dtype=np.int32)
    weights = np.zeros((count, height, width, 3), dtype=np.float32)
    depth = np.zeros((count, height, width), dtype=np.float32)
    corners = np.ascontiguousarray(faces, dtype=np.int64)
    for view in range(count):
        viewmat = cameras.viewmats[view].detach().cpu().numpy().astype(np.float64)
        pixel_matrix = cameras.Ks[view].detach().cpu().numpy().astype(np.float64)
        orthographic = bool(cameras.orthographic[view])
        points = vertices.astype(np.float64) @ viewmat[:3, :3].T + viewmat[:3, 3]
        near = NEAR * float(np.abs(points).max(initial=0.0))
        edges, boxes = _set_up(points, corners, pixel_matrix, orthographic, near, width, height)
        _fill(points[corners, 2], edges, boxes, orthographic, near, index[view], weights[view], depth[view])
    return Fragments(index, weights, depth)


@numba.njit(cache=True)
def _set_up(points, corners, pixel_matrix, orthographic, near, width, height):
    """Per face: the matrix [3,3] from a pixel (x, y, 1) to weights (over depth), and its pixel box x0 x1 y0 y1."""
    count = corners.shape[0]
    edges = np.zeros((count, 3, 3))
    boxes = np.zeros((count, 4), dtype=np.int32)
    rows = np.empty((3, 3))
    for face in range(count):
        x0, x1, y0, y1, behind = np.inf, -np.inf, np.inf, -np.inf, 0
        for corner in range(3):
            x, y, z = points[corners[face, corner]]
            w = 1.0 if orthographic else z
            rows[corner, 0] = pixel_matrix[0, 0] * x + pixel_matrix[0, 1] * y + pixel_matrix[0, 2] * w
            rows[corner, 1] = pixel_matrix[1, 1] * y + pixel_matrix[1, 2] * w
            rows[corner, 2] = w
            if z <= near:
                behind += 1
            else:
                x0, x1 = min(x0, rows[corner, 0] / w), max(x1, rows[corner, 0] / w)
                y0, y1 = min(y0, rows[corner, 1] / w), max(y1, rows[corner, 1] / w)
        if behind == 3:
            continue
        if behind > 0:  # the outline passes through infinity: try all pixels
            x0, x1, y0, y1 = 0.0, float(width), 0.0, float(height)
        a, b, c = rows[0], rows[1], rows[2]
        edges[face, 0] = np.cross(b, c)
        edges[face, 1] = np.cross(c, a)
        edges[face, 2] = np.cross(a, b)
        determinant = np.dot(a, edges[face, 0])
        if determinant == 0.0:
            continue
        edges[face] /= determinant
        # the pixels whose centre, at +0.5, is inside; clipped before the conversion, which cannot hold huge values
        boxes[face, 0] = int(np.ceil(min(max(x0 - 0.5, 0.0), float(width)) - 1e-6))
        boxes[face, 1] = int(np.floor(min(max(x1 - 0.5, -1.0), width - 1.0) + 1e-6)) + 1
        boxes[face, 2] = int(np.ceil(min(max(y0 - 0.5, 0.0), float(height)) - 1e-6))
        boxes[face, 3] = int(np.floor(min(max(y1 - 0.5, -1.0), height - 1.0) + 1e-6)) + 1
    return edges, boxes


@numba.njit(parallel=True, cache=True)
def _fill(corner_depths, edges, boxes, orthographic, near, index, weights, depth):
    height = index.shape[0]
    bands = (height + BAND_ROWS - 1) // BAND_ROWS
    for band in numba.prange(bands):
        top, bottom = band * BAND_ROWS, min((band + 1) * BAND_ROWS, height)
        for face in range(edges.shape[0]):
            if boxes[face, 3] <= top or boxes[face, 2] >= bottom:
                continue
            z0, z1, z2 = corner_depths[face]
            m = edges[face]
            for row in range(max(boxes[face, 2], top), min(boxes[face, 3], bottom)):
                y = row + 0.5
                for column in range(boxes[face, 0], boxes[face, 1]):
                    x = column + 0.5
                    b0 = m[0, 0] * x + m[0, 1] * y + m[0, 2]
                    b1 = m[1, 0] * x + m[1, 1] * y + m[1, 2]
                    b2 = m[2, 0] * x + m[2, 1] * y + m[2, 2]
                    total = b0 + b1 + b2
                    if total <= 0.0:  # the hit is behind the camera
                        continue
                    limit = -EDGE_TOLERANCE * total
                    if b0 < limit or b1 < limit or b2 < limit:
                        continue
                    z = b0 * z0 + b1 * z1 + b2 * z2 if orthographic else 1.0 / total
                    if z <= near or (index[row, column] >= 0 and z >= depth[row, column]):
                        continue
                    index[row, column] = face
                    depth[row, column] = z
                    weights[row, column, 0] = b0 / total
                    weights[row, column, 1] = b1 / total
                    weights[row, column, 2] = b2 / total


# ---- textures


class _Pyramid(NamedTuple):
    """A texture and its halvings down to one texel, one after another.

    texels [L,4] float32 0..1; starts [levels] first texel of each level; sides [levels,2] height and width of each
    """

    texels: np.ndarray
    starts: np.ndarray
    sides: np.ndarray


def _pyramid(texture: np.ndarray) -> _Pyramid:
    levels = [texture.astype(np.float32) / 255]
    while min(levels[-1].shape[:2]) > 1:
        last = levels[-1][: levels[-1].shape[0] // 2 * 2, : levels[-1].shape[1] // 2 * 2]
        levels.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / 4)
    sizes = [level.shape[0] * level.shape[1] for level in levels]
    return _Pyramid(
        texels=np.concatenate([level.reshape(-1, 4) for level in levels]),
        starts=np.cumsum([0, *sizes[:-1]]),
        sides=np.array([level.shape[:2] for level in levels]),
    )


def render_mesh(
    vertices: np.ndarray,
    faces: np.ndarray,
    uvs: np.ndarray,
    texture: np.ndarray,
    cameras: Cameras,
    *,
    supersample: int = 2,
) -> Rendering:
    """Pictures of a mesh in its texture's colours, without light: filtered texture, `supersample`^2 samples a pixel.

    vertices [N,3] world, faces [M,3], uvs [N,2] with v up, texture [T,T,4] uint8 sRGB, row 0 at v = 1. The depth of
    the rendering is summed over the samples, so that it divides by alpha as a Gaussian rendering's does.
    """
    pyramid = _pyramid(texture)
    height, width = cameras.height, cameras.width
    fine = cameras.resized(width * supersample, height * supersample)
    rgba = np.zeros((len(cameras), height, width, 4), dtype=np.float32)
    depth = np.zeros((len(cameras), height, width), dtype=np.float32)
    corners, coordinates = np.ascontiguousarray(faces, dtype=np.int64), np.ascontiguousarray(uvs, dtype=np.float64)
    for view in range(len(cameras)):  # one view at a time: the fine buffers are the largest arrays here
        camera = fine[[view]]
        seen = rasterise(vertices, faces, camera)
        levels = _level_of_face(vertices, corners, coordinates, texture.shape, camera)
        shaded = _shade(seen.faces[0], seen.barycentrics[0], corners, coordinates, levels, pyramid)
        blocks = (height, supersample, width, supersample)
        rgba[view] = shaded.reshape(*blocks, 4).mean(axis=(1, 3))
        depth[view] = (seen.depth[0] * shaded[..., 3]).reshape(blocks).mean(axis=(1, 3))
    return Rendering(torch.from_numpy(rgba[..., :3]), torch.from_numpy(rgba[..., 3]), torch.from_numpy(depth))


def _level_of_face(
    vertices: np.ndarray, corners: np.ndarray, uvs: np.ndarray, texture_shape: tuple[int, ...], camera: Cameras
) -> np.ndarray:
    """[M] float32: log2 of the texels a pixel spans along one side, from the face's areas in texels and in pixels."""
    viewmat = camera.viewmats[0].detach().cpu().numpy().astype(np.float64)
    points = vertices.astype(np.float64) @ viewmat[:3, :3].T + viewmat[:3, 3]
    nearness = np.ones(len(points)) if bool(camera.orthographic[0]) else np.maximum(points[:, 2], 1e-12)
    focal = camera.Ks[0, [0, 1], [0, 1]].detach().cpu().numpy()
    on_screen = points[:, :2] / nearness[:, None] * focal
    in_texels = uvs * np.array([texture_shape[1], texture_shape[0]])
    ratio = _areas(in_texels, corners) / np.maximum(_areas(on_screen, corners), 1e-9)
    return (0.5 * np.log2(np.maximum(ratio, 1e-9))).astype(np.float32)


def _areas(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    a, b = points[corners[:, 1]] - points[corners[:, 0]], points[corners[:, 2]] - points[corners[:, 0]]
    return 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])


@numba.njit(parallel=True, cache=True)
def _shade(index, weights, corners, uvs, levels, pyramid):
    """[H,W,4] premultiplied colours, filtered within and between the two nearest levels."""
    height, width = index.shape
    out = np.zeros((height, width, 4), dtype=np.float32)
    for row in numba.prange(height):
        for column in range(width):
            face = index[row, column]
            if face < 0:
                continue
            u, v = 0.0, 0.0
            for corner in range(3):
                u += weights[row, column, corner] * uvs[corners[face, corner], 0]
                v += weights[row, column, corner] * uvs[corners[face, corner], 1]
            level = min(max(levels[face], 0.0), len(pyramid.starts) - 1.0)
            low = int(level)
            high = min(low + 1, len(pyramid.starts) - 1)
            blend = level - low
            for channel in range(4):
                a = _bilinear(pyramid.texels, pyramid.starts[low], pyramid.sides[low], u, v, channel)
                b = _bilinear(pyramid.texels, pyramid.starts[high], pyramid.sides[high], u, v, channel)
                out[row, column, channel] = (1 - blend) * a + blend * b
            for channel in range(3):
                out[row, column, channel] *= out[row, column, 3]
    return out


@numba.njit(cache=True)
def _bilinear(texels, start, side, u, v, channel):
    """One channel at (u, v), v up; texel centres at +0.5, the border repeated."""
    height, width = side
    x = min(max(u * width - 0.5, 0.0), width - 1.0)
    y = min(max((1 - v) * height - 0.5, 0.0), height - 1.0)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    fx, fy = x - x0, y - y0
    top = (1 - fx) * texels[start + y0 * width + x0, channel] + fx * texels[start + y0 * width + x1, channel]
    bottom = (1 - fx) * texels[start + y1 * width + x0, channel] + fx * texels[start + y1 * width + x1, channel]
    return (1 - fy) * top + fy * bottom
