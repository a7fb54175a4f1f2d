"""A renderer of textured meshes without light on the CPU, for pinhole and orthographic cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch

from backend import triangles
from backend.cameras import Cameras
from backend.rendering import Rendering
from backend.triangles import Mesh


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
    shape = (len(cameras), cameras.height, cameras.width)
    index = np.full(shape, -1, dtype=np.int32)
    weights = np.zeros((*shape, 3), dtype=np.float32)
    depth = np.zeros(shape, dtype=np.float32)
    mesh = Mesh(torch.from_numpy(np.array(vertices, dtype=np.float64)), torch.from_numpy(np.array(faces, np.int64)))
    for view in range(len(cameras)):  # one view at a time: of a large mesh, the outlines fill the memory
        outlines = triangles.outline([mesh], [cameras[[view]].to("cpu")])
        hits = triangles.nearest(outlines)
        row, column = (hits.faces[0] >= 0).nonzero(as_tuple=True)
        chosen = hits.faces[0, row, column].long()
        at_hits = triangles.weights(triangles.weight_table(outlines), chosen, column + 0.5, row + 0.5)
        index[view], depth[view] = hits.faces[0].numpy(), hits.depth[0].numpy()
        weights[view, row.numpy(), column.numpy()] = at_hits.T.numpy()
    return Fragments(index, weights, depth)


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
