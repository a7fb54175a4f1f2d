"""The mesh renderer against cases worked out by hand and against a slow twin that casts a ray through every pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from backend.cameras import Cameras
from backend.mesh_render import rasterise, render_mesh
from tests.shapes import orbit


def camera(*, size: int = 8, focal: float = 8.0, orthographic: bool = False) -> Cameras:
    """At the origin, looking along +Z, the principal point in the middle."""
    K = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    return Cameras(torch.eye(4)[None], K, torch.tensor([orthographic]), size, size)


def cast_rays(vertices: np.ndarray, faces: np.ndarray, cameras: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slow twin (Möller and Trumbore 1997): face, barycentrics and planar depth, one ray and face at a time."""
    shape = (len(cameras), cameras.height, cameras.width)
    index, weights, depth = np.full(shape, -1), np.zeros((*shape, 3)), np.zeros(shape)
    inverse = np.linalg.inv(cameras.Ks.numpy().astype(float))
    poses = cameras.c2w.numpy().astype(float)
    corners = vertices[faces].astype(float)
    for view, row, column in np.ndindex(shape):
        ray = inverse[view] @ [column + 0.5, row + 0.5, 1]
        start, direction = np.zeros(3), ray
        if cameras.orthographic[view]:
            start, direction = np.array([ray[0], ray[1], 0]), np.array([0.0, 0, 1])
        start, direction = poses[view, :3, :3] @ start + poses[view, :3, 3], poses[view, :3, :3] @ direction
        edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        across = np.cross(direction, edge2)
        determinant = (edge1 * across).sum(1)
        offset = start - corners[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = (offset * across).sum(1) / determinant
            turned = np.cross(offset, edge1)
            v = turned @ direction / determinant
            t = (edge2 * turned).sum(1) / determinant
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 1e-9)
        if hit.any():
            face = np.flatnonzero(hit)[np.argmin(t[hit])]
            index[view, row, column], depth[view, row, column] = face, t[face]
            weights[view, row, column] = [1 - u[face] - v[face], u[face], v[face]]
    return index, weights, depth


def test_triangle_by_hand() -> None:
    """A right triangle at depth 2 whose legs run along two pixel borders: it covers x + y < 4 pixels from (2, 2)."""
    corners = np.array([[2, 2], [6, 2], [2, 6]])
    vertices = np.concatenate([(corners - 4) / 8 * 2, np.full((3, 1), 2.0)], axis=1)
    seen = rasterise(vertices, np.array([[0, 1, 2]]), camera())
    expected = np.zeros((8, 8), bool)
    for row, length in zip(range(2, 6), (4, 3, 2, 1), strict=True):  # centres on the slanted side count as inside
        expected[row, 2 : 2 + length] = True
    np.testing.assert_array_equal(seen.faces[0] >= 0, expected)
    np.testing.assert_allclose(seen.depth[0][expected], 2, rtol=1e-6)
    np.testing.assert_allclose(seen.barycentrics[0, 2, 2], [0.75, 0.125, 0.125], atol=1e-6)


def test_nearer_face_wins_whatever_the_order() -> None:
    square = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    near, far = (np.concatenate([square * 9, np.full((4, 1), z)], axis=1) for z in (2.0, 3.0))
    quad = np.array([[0, 1, 2], [0, 2, 3]])
    for first, second, depth in ((near, far, 2), (far, near, 2)):
        seen = rasterise(np.concatenate([first, second]), np.concatenate([quad, quad + 4]), camera())
        np.testing.assert_allclose(seen.depth, depth)


@pytest.mark.parametrize("orthographic", [False, True])
def test_equals_the_slow_twin(orthographic: bool) -> None:
    mesh = trimesh.creation.torus(0.7, 0.3, major_sections=12, minor_sections=8)
    cameras = orbit(3, (-20, 10, 50), size=24, orthographic=orthographic)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    seen = rasterise(vertices, faces, cameras)
    index, weights, depth = cast_rays(vertices, faces, cameras)
    np.testing.assert_array_equal(seen.faces, index)
    np.testing.assert_allclose(seen.depth, depth, atol=1e-5)
    np.testing.assert_allclose(seen.barycentrics, weights, atol=1e-4)
    assert (index >= 0).mean() > 0.1


def test_faces_through_and_behind_the_camera() -> None:
    """A floor under the camera that begins far behind it: every ray that points down hits it at height / slope."""
    floor = np.array([[-100.0, 1, -100], [100, 1, -100], [0, 1, 300]])
    faces = np.array([[0, 1, 2]])
    seen = rasterise(floor, faces, camera())
    index, _, depth = cast_rays(floor, faces, camera())
    np.testing.assert_array_equal(seen.faces, index)
    np.testing.assert_allclose(seen.depth, depth, rtol=1e-5)
    assert (seen.faces[0, 4:] == 0).all() and (seen.faces[0, :4] == -1).all()
    assert (rasterise(floor * [1, 1, -1] - [0, 0, 400], faces, camera()).faces == -1).all()


def test_no_pixel_falls_between_faces() -> None:
    """A fine plane seen whole: no hole along any of its inner edges, at any turn."""
    plane = trimesh.creation.box((4, 4, 0.5)).subdivide().subdivide().subdivide()
    for angle in np.linspace(0, 1, 5):
        turned = plane.copy()
        turned.apply_transform(trimesh.transformations.rotation_matrix(angle, [0.3, 1, 0.2]))
        turned.apply_translation([0, 0, 5])
        assert (rasterise(turned.vertices, turned.faces, camera(size=64, focal=160)).faces >= 0).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_scale_of_the_scene_does_not_matter(scale: float) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=2)
    cameras = orbit(2, (10,), size=32)
    moved = torch.diag(torch.tensor([1, 1, 1, 1.0])).expand(2, 4, 4).clone() @ cameras.c2w
    moved[:, :3, 3] *= scale
    larger = Cameras(moved, cameras.Ks, cameras.orthographic, 32, 32)
    a = rasterise(mesh.vertices, mesh.faces, cameras)
    b = rasterise(mesh.vertices * scale, mesh.faces, larger)
    assert (a.faces == b.faces).mean() > 0.995  # float32 poses
    np.testing.assert_allclose(np.median(b.depth[b.depth > 0]), np.median(a.depth[a.depth > 0]) * scale, rtol=1e-4)


def quad_with_texture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A square that fills the 8x8 picture at depth 1, its uvs the picture's (v up)."""
    vertices = np.array([[-0.5, -0.5, 1], [0.5, -0.5, 1], [0.5, 0.5, 1], [-0.5, 0.5, 1]])
    return vertices, np.array([[0, 1, 2], [0, 2, 3]]), np.array([[0.0, 1], [1, 1], [1, 0], [0, 0]])


def test_texture_lands_texel_for_pixel() -> None:
    vertices, faces, uvs = quad_with_texture()
    texture = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    texture[..., 3] = 255
    picture = render_mesh(vertices, faces, uvs, texture, camera(), supersample=1)
    np.testing.assert_allclose(picture.rgb[0], texture[..., :3] / 255, atol=1e-5)
    np.testing.assert_allclose(picture.alpha, 1)
    np.testing.assert_allclose(picture.depth, 1, rtol=1e-6)


def test_fine_texture_is_averaged() -> None:
    """A checkerboard of single texels, 32 to a pixel's side, is grey from afar."""
    vertices, faces, uvs = quad_with_texture()
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    texture = np.stack([board] * 3 + [np.full_like(board, 255)], axis=-1)
    picture = render_mesh(vertices, faces, uvs, texture, camera(), supersample=1)
    np.testing.assert_allclose(picture.rgb, 0.5, atol=0.01)


def test_supersampled_edge_is_partly_covered() -> None:
    vertices, faces, uvs = quad_with_texture()
    shifted = vertices + np.array([1 / 16, 0, 0])  # half a pixel to the right
    picture = render_mesh(shifted, faces, uvs, np.full((4, 4, 4), 255, np.uint8), camera(), supersample=2)
    np.testing.assert_allclose(picture.alpha[0, :, 0], 0.5)
    np.testing.assert_allclose(picture.alpha[0, :, 1:], 1)
    np.testing.assert_allclose(picture.rgb[0, :, 0], 0.5)  # premultiplied
    np.testing.assert_allclose(picture.depth[0, :, 0], 0.5, rtol=1e-6)


def test_empty_mesh() -> None:
    seen = rasterise(np.zeros((0, 3)), np.zeros((0, 3), int), camera())
    assert (seen.faces == -1).all() and (seen.depth == 0).all()
