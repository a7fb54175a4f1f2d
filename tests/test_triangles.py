"""The two rasterisers against cases worked out by hand, and each against the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from backend import triangles
from backend.cameras import Cameras, rays
from backend.triangles import Hits, Mesh, Outlines, nearest, nearest_by_numba, nearest_by_torch, outline
from tests.shapes import orbit

WAYS = [nearest_by_numba, nearest_by_torch]


def camera(*, size: int = 8, focal: float = 8.0, orthographic: bool = False) -> Cameras:
    """At the origin, looking along +Z, the principal point in the middle."""
    K = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    return Cameras(torch.eye(4)[None], K, torch.tensor([orthographic]), size, size)


def mesh_of(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces))


def soup(count: int, seed: int, *, spread: float = 1.0) -> Mesh:
    """Triangles of all sizes everywhere, some through the cameras and behind them."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(count, 1, 3, generator=generator) * spread
    sides = torch.randn(count, 3, 3, generator=generator) * torch.rand(count, 1, 1, generator=generator) ** 3
    return Mesh((middles + sides).reshape(-1, 3), torch.arange(3 * count).view(-1, 3))


def seen(way, outlines: Outlines) -> Hits:
    return way(outlines, outlines.near[:, None, None].expand(-1, *outlines.size))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("orthographic", [False, True])
def test_triangle_by_hand(way, orthographic: bool) -> None:
    """A right triangle at depth 2 whose legs run along two pixel borders: it covers x + y < 4 pixels from (2, 2)."""
    corners = torch.tensor([[2.0, 2], [6, 2], [2, 6]])
    vertices = torch.cat([(corners - 4) / 8 * (1 if orthographic else 2), torch.full((3, 1), 2.0)], dim=1)
    hits = seen(way, outline([Mesh(vertices, torch.tensor([[0, 1, 2]]))], [camera(orthographic=orthographic)]))
    expected = torch.zeros(8, 8, dtype=torch.bool)
    for row, length in zip(range(2, 6), (4, 3, 2, 1), strict=True):  # centres on the slanted side count as inside
        expected[row, 2 : 2 + length] = True
    assert ((hits.faces[0] == 0) == expected).all() and ((hits.faces[0] == -1) == ~expected).all()
    torch.testing.assert_close(hits.depth[0], torch.where(expected, 2.0, 0.0))


@pytest.mark.parametrize("way", WAYS)
def test_of_equals_the_first_wins(way) -> None:
    vertices = torch.tensor([[-9.0, -9, 2], [9, -9, 2], [0, 20, 2]])
    hits = seen(way, outline([Mesh(vertices, torch.tensor([[0, 1, 2], [0, 1, 2], [2, 1, 0]]))], [camera()]))
    assert (hits.faces == 0).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("orthographic", [False, True])
def test_depth_of_a_ball(way, orthographic: bool) -> None:
    cameras = orbit(3, (-20, 10, 50), size=32, orthographic=orthographic)
    hits = seen(way, outline([mesh_of(trimesh.creation.icosphere(5, 1.0))], [cameras]))
    origins, directions = rays(cameras)
    along = (origins * directions).sum(-1)
    inside = along**2 - origins.square().sum(-1) + 1
    planar = (-along - inside.clamp_min(0).sqrt()) * (directions * cameras.c2w[:, None, None, :3, 2]).sum(-1)
    clear = inside > 0.02  # not at the outline, which the facets move
    torch.testing.assert_close(hits.depth[clear], planar[clear], atol=3e-3, rtol=0)
    assert (hits.depth[inside < 0] == 0).all() and clear.float().mean() > 0.1


@pytest.mark.parametrize("orthographic", [False, True])
def test_the_ways_agree(orthographic: bool) -> None:
    for seed, spread in ((0, 0.5), (1, 3.0)):  # before the cameras, and all around them
        outlines = outline(
            [soup(300, seed, spread=spread)], [orbit(3, (-40, 0, 60), size=48, orthographic=orthographic)]
        )
        a, b = (seen(way, outlines) for way in WAYS)
        assert (a.faces == b.faces).all() and (a.faces >= 0).float().mean() > 0.1
        torch.testing.assert_close(a.depth, b.depth)


def test_small_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    outlines = outline([soup(200, 2)], [orbit(2, (10,), size=32)])
    whole = seen(nearest_by_torch, outlines)
    monkeypatch.setattr(triangles, "SPAN_LIMIT", 100)
    monkeypatch.setattr(triangles, "SAMPLE_LIMIT", 50)
    parts = seen(nearest_by_torch, outlines)
    assert (whole.faces == parts.faces).all() and (whole.depth == parts.depth).all()


@pytest.mark.parametrize("way", WAYS)
def test_what_lies_behind(way) -> None:
    """Walls at depths 3, 1 and 2: asked for what is farther than what was seen, each comes in its turn."""
    wall = torch.tensor([[-99.0, -99, 0], [99, -99, 0], [0, 200, 0]])
    vertices = torch.cat([wall + torch.tensor([0, 0, z]) for z in (3.0, 1.0, 2.0)])
    outlines = outline([Mesh(vertices, torch.arange(9).view(3, 3))], [camera()])
    beyond = torch.full((1, 8, 8), 0.5)
    for face in (1, 2, 0, -1):
        hits = way(outlines, beyond)
        assert (hits.faces == face).all()
        beyond = hits.depth
    mixed = torch.full((1, 8, 8), 0.5)
    mixed[0, 3, 4] = 1.5
    assert way(outlines, mixed).faces[0, 3, 3:5].tolist() == [1, 2]


@pytest.mark.parametrize("way", WAYS)
def test_several_meshes_are_as_each_alone(way) -> None:
    meshes = [soup(50, 4), mesh_of(trimesh.creation.box((1, 1, 1))), soup(20, 5)]
    cameras = [orbit(count, (20,), size=24) for count in (2, 1, 3)]
    together = seen(way, outline(meshes, cameras))
    first_view, first_face = 0, 0
    for mesh, own in zip(meshes, cameras, strict=True):
        alone = seen(way, outline([mesh], [own]))
        part = slice(first_view, first_view + len(own))
        assert (together.depth[part] == alone.depth).all()
        numbers = torch.where(alone.faces >= 0, alone.faces + first_face, -1)
        assert (together.faces[part] == numbers).all() and (alone.faces >= 0).any()
        first_view, first_face = part.stop, first_face + len(mesh.faces)


@pytest.mark.parametrize("orthographic", [False, True])
def test_weights_lead_back_to_the_pixel(orthographic: bool) -> None:
    """The weighted mean of a triangle's corners is on the ray through the pixel, at the depth that was found."""
    mesh, cameras = soup(80, 3, spread=0.4), orbit(3, (25,), size=40, orthographic=orthographic)
    outlines = outline([mesh], [cameras])
    hits = nearest(outlines)
    view, row, column = (hits.faces >= 0).nonzero(as_tuple=True)
    face = hits.faces[view, row, column].long()
    table = triangles.weight_table(outlines)
    weights = triangles.weights(table, face + outlines.offsets[view], column + 0.5, row + 0.5)
    places = (mesh.vertices[mesh.faces[face]] * weights.T[..., None]).sum(1)
    origins, directions = (part[view, row, column] for part in rays(cameras))
    offset = places - origins
    across = offset - (offset * directions).sum(1, keepdim=True) * directions
    assert across.norm(dim=1).quantile(0.999) < 1e-3
    torch.testing.assert_close(
        (offset * cameras.c2w[view, :3, 2]).sum(1), hits.depth[view, row, column], atol=2e-3, rtol=1e-3
    )
    torch.testing.assert_close(weights.sum(0), torch.ones(len(face)))


def test_the_side_that_is_seen() -> None:
    """Areas are negative for faces that turn their outer side to the camera, positive for the others."""
    mesh, cameras = mesh_of(trimesh.creation.box((1, 1, 1))), orbit(4, (30,), size=16)
    areas = outline([mesh], [cameras]).areas.view(4, 12)
    corners = mesh.vertices[mesh.faces]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outer = ((cameras.centres[:, None] - corners[None, :, 0]) * normals).sum(-1) > 0
    assert (outer == (areas < 0)).all() and outer.any() and not outer.all()


def test_no_mesh_at_all() -> None:
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    for way in WAYS:
        assert (seen(way, outline([empty], [camera()])).faces == -1).all()


def test_a_face_number_needs_all_its_bits() -> None:
    """The packed key of torch's way holds the depth above the number of the face."""
    count = 70_000
    vertices = torch.tensor([[-9.0, -9, 2], [9, -9, 2], [0, 20, 2]]).repeat(count, 1)
    vertices[:, 2] += torch.linspace(1, 0, count).repeat_interleave(3)  # the last is the nearest
    outlines = outline([Mesh(vertices, torch.arange(3 * count).view(-1, 3))], [camera(size=2)])
    for way in WAYS:
        assert (seen(way, outlines).faces == count - 1).all()
    np.testing.assert_allclose(seen(nearest_by_torch, outlines).depth, 2)
