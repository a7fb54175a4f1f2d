"""Unwrapping, baking and rendering a texture: colours are those of the views, in the right place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from backend.cameras import Cameras, Views
from backend.mesh_render import rasterise
from backend.meshing import Mesh
from backend.texturing import TexturedMesh, bake, render_textured
from tests.shapes import capture, colour_at, gaussians_on, orbit

BALL = trimesh.creation.icosphere(subdivisions=4)


def as_mesh(mesh: trimesh.Trimesh) -> Mesh:
    return Mesh(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32))


@pytest.fixture(scope="module")
def baked() -> TexturedMesh:
    return bake(as_mesh(BALL), capture(BALL, orbit(14, (-50, 0, 50), size=192)), gaussians_on(BALL), size=256)


def texels(textured: TexturedMesh) -> tuple[np.ndarray, np.ndarray]:
    """[T,T] the face that covers each texel (-1: none) and [T,T,3] the surface point."""
    size = len(textured.texture)
    flat = np.stack([textured.uvs[:, 0] * size, (1 - textured.uvs[:, 1]) * size, np.ones(len(textured.uvs))], axis=1)
    page = Cameras(torch.eye(4)[None], torch.eye(3)[None], torch.ones(1, dtype=torch.bool), size, size)
    seen = rasterise(flat, textured.faces, page)
    points = (textured.vertices[textured.faces[seen.faces[0]]] * seen.barycentrics[0][..., None]).sum(axis=2)
    return seen.faces[0], points


def test_vertices_are_split_copies(baked: TexturedMesh) -> None:
    assert baked.faces.shape == BALL.faces.shape and baked.faces.dtype == np.int32
    np.testing.assert_allclose(
        np.sort(baked.vertices[baked.faces].reshape(-1, 9), axis=0),
        np.sort(np.asarray(BALL.vertices, np.float32)[BALL.faces].reshape(-1, 9), axis=0),
        atol=1e-6,
    )
    assert trimesh.Trimesh(baked.vertices, baked.faces).volume > 4  # faces still turn outwards


def test_uvs_are_inside_and_do_not_overlap(baked: TexturedMesh) -> None:
    """The faces' areas in the texture add up to the area that they cover together."""
    assert baked.uvs.min() >= 0 and baked.uvs.max() <= 1
    corners = baked.uvs[baked.faces].astype(np.float64)
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    total = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    covered = (texels(baked)[0] >= 0).mean()
    assert covered == pytest.approx(total, rel=0.02)
    assert covered > 0.4  # the page is used


def test_texture_has_the_colour_of_the_place(baked: TexturedMesh) -> None:
    index, points = texels(baked)
    error = np.abs(baked.texture[..., :3] / 255 - colour_at(points, 1.0))[index >= 0]
    assert np.quantile(error, 0.99) < 0.03 and error.max() < 0.15
    assert (baked.texture[..., 3] == 255).all()


def test_gutters_repeat_the_nearest_chart(baked: TexturedMesh) -> None:
    """No texel is left in a colour of its own: each one outside the charts is also found inside them."""
    inside = texels(baked)[0] >= 0
    known = {tuple(colour) for colour in baked.texture[inside]}
    assert {tuple(colour) for colour in baked.texture[~inside]} <= known


def test_pictures_from_new_places(baked: TexturedMesh) -> None:
    cameras = orbit(3, (25,), size=96)
    want = capture(BALL, cameras).images
    got = render_textured(baked, cameras)
    inside = (want[..., 3] > 0) & (got.alpha > 0.99)
    error = ((got.rgb - want[..., :3]) ** 2)[inside].mean()
    assert -10 * torch.log10(error) > 35
    assert (got.alpha[want[..., 3] == 0] < 1).all()
    assert (got.rgb <= got.alpha[..., None] + 1e-6).all()  # premultiplied


def test_background_does_not_bleed() -> None:
    """The views' background is a glaring red with alpha 0, the outline's pixels half covered: no texel turns red."""
    views = capture(BALL, orbit(14, (-50, 0, 50), size=128))
    images = views.images.clone()
    images[images[..., 3] == 0] = torch.tensor([1.0, 0, 0, 0])
    grey = images.clone()
    grey[..., :3] = torch.where(images[..., 3:] > 0, torch.tensor(0.4), images[..., :3])
    gaussians = gaussians_on(BALL)
    gaussians = replace(gaussians, sh=torch.full_like(gaussians.sh, -0.1 / 0.2820948))
    textured = bake(as_mesh(BALL), replace(views, images=grey), gaussians, size=128)
    index, _ = texels(textured)
    np.testing.assert_allclose(textured.texture[index >= 0][:, :3] / 255, 0.4, atol=0.02)


def test_hidden_side_takes_the_colour_of_the_gaussians() -> None:
    """One view from +X in grey; the Gaussians are blue: the far side is blue, the near side grey."""
    cameras = orbit(1, (0,), size=128)
    seen = capture(BALL, cameras)
    grey = torch.cat([torch.full_like(seen.images[..., :3], 0.5), seen.images[..., 3:]], dim=-1)
    gaussians = gaussians_on(BALL)
    blue = torch.tensor([0.0, 0.0, 1.0])
    gaussians = replace(gaussians, sh=((blue - 0.5) / 0.28209479)[None, None].expand(len(gaussians), 1, 3))
    textured = bake(as_mesh(BALL), Views(grey, cameras), gaussians, size=128)
    index, points = texels(textured)
    colours = textured.texture[..., :3] / 255
    near, far = (index >= 0) & (points[..., 0] > 0.7), (index >= 0) & (points[..., 0] < 0.2)
    np.testing.assert_allclose(colours[near], 0.5, atol=0.02)
    assert np.abs(colours[far] - [0, 0, 1]).mean() < 0.03


def test_what_is_in_front_is_not_painted_on_what_is_behind() -> None:
    """A white panel before a black one: the view from the front must not whiten the back panel's hidden middle."""
    front, back = trimesh.creation.box((0.1, 0.5, 0.5)), trimesh.creation.box((0.1, 1.6, 1.6))
    front.apply_translation([0.6, 0, 0])
    back.apply_translation([-0.4, 0, 0])
    vertices = np.concatenate([front.vertices, back.vertices]).astype(np.float32)
    faces = np.concatenate([front.faces, back.faces + len(front.vertices)]).astype(np.int32)
    cameras = orbit(1, (0,), size=128)
    seen = rasterise(vertices, faces, cameras)
    white = (seen.faces >= 0) & (seen.faces < len(front.faces))
    image = np.concatenate([np.repeat(white[..., None], 3, -1), (seen.faces >= 0)[..., None]], -1).astype(np.float32)
    gaussians = gaussians_on(trimesh.Trimesh(vertices, faces))
    gaussians = replace(gaussians, sh=torch.full_like(gaussians.sh, -0.5 / 0.28209479))
    textured = bake(Mesh(vertices, faces), Views(torch.from_numpy(image), cameras), gaussians, size=256)
    index, points = texels(textured)
    panel = (index >= 0) & (np.abs(points[..., 0] + 0.35) < 1e-3)
    assert panel.sum() > 1000
    assert (textured.texture[panel][:, :3] < 30).mean() > 0.99


def test_empty_mesh_is_refused() -> None:
    views = capture(BALL, orbit(1, (0,), size=16))
    with pytest.raises(ValueError, match="no faces"):
        bake(Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)), views, gaussians_on(BALL, 10))
