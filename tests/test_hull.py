"""The visual hull of spheres and boxes, for every kind of camera, position and unit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from backend.cameras import Cameras, Views, look_at, orbit, rays
from backend.hull import NothingSeen, common_box, grid_over, project, visual_hull


def sphere_views(cameras: Cameras, centre: torch.Tensor, radius: float) -> Views:
    """Masks of a sphere: opaque where a ray passes its centre within the radius."""
    origins, directions = rays(cameras)
    to_centre = centre - origins
    along = (to_centre * directions).sum(-1, keepdim=True)
    distance = torch.linalg.vector_norm(to_centre - along * directions, dim=-1)
    alpha = (distance < radius).float()
    return Views(torch.cat([torch.full((*alpha.shape, 3), 0.5), alpha[..., None]], dim=-1), cameras)


def ring(centre: torch.Tensor, unit: float, count: int = 12, size: int = 96) -> Cameras:
    """Cameras level, above and below around a place."""
    rings = [
        orbit(count, target=centre, radius=3 * unit, elevation=e, fov=math.radians(50), size=size)
        for e in (-0.9, 0.0, 0.9)
    ]
    return replace(
        rings[0],
        c2w=torch.cat([r.c2w for r in rings]),
        Ks=torch.cat([r.Ks for r in rings]),
        orthographic=torch.cat([r.orthographic for r in rings]),
    )


def orthographic(cameras: Cameras, unit: float) -> Cameras:
    """Parallel projection from the same places; the picture is 3 units wide."""
    Ks = cameras.Ks.clone()
    Ks[:, 0, 0] = Ks[:, 1, 1] = cameras.width / (3 * unit)
    return replace(cameras, Ks=Ks, orthographic=torch.ones_like(cameras.orthographic))


@pytest.mark.parametrize("unit", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("parallel", [False, True], ids=["pinhole", "orthographic"])
def test_hull_of_a_sphere_has_its_volume_place_and_box(unit, parallel):
    centre = torch.tensor([2.0, -1.0, 0.5]) * unit
    cameras = ring(centre, unit)
    views = sphere_views(orthographic(cameras, unit) if parallel else cameras, centre, 0.8 * unit)
    low, high = common_box(views)
    assert torch.all(low < centre - 0.79 * unit) and torch.all(high > centre + 0.79 * unit)
    assert float((high - low).max()) < 2.1 * unit
    grid = grid_over(low, high, 48)
    inside = visual_hull(views, grid) > 0.5
    volume = float(inside.sum()) * grid.spacing**3
    assert volume == pytest.approx(4 / 3 * math.pi * (0.8 * unit) ** 3, rel=0.12)
    middle = grid.centres()[inside].mean(0)
    assert torch.linalg.vector_norm(middle - centre) < 0.03 * unit


def test_hull_contains_the_object():
    centre = torch.zeros(3)
    views = sphere_views(ring(centre, 1.0, count=4), centre, 0.7)
    grid = grid_over(*common_box(views), 40)
    within = torch.linalg.vector_norm(grid.centres(), dim=-1) < 0.7 - grid.spacing
    assert bool((visual_hull(views, grid)[within] > 0.5).all())


def test_an_object_cut_off_by_the_frame_is_not_carved_outside_it():
    centre = torch.zeros(3)
    whole = ring(centre, 1.0, count=8)
    close = orbit(1, target=torch.tensor([0.0, 0.0, 0.6]), radius=1.6, elevation=0.0, fov=math.radians(30), size=64)
    views = sphere_views(whole, centre, 0.7)
    cut = sphere_views(close, centre, 0.7)
    assert bool(cut.images[..., -1, :, 3].any()), "the close camera must cut the sphere"
    low, high = common_box(cut)
    assert bool((high > low).all()) and float((high - low).max()) < 4, "alone it is held to its frame"
    grid = grid_over(*common_box(views), 40)
    assert float((visual_hull(cut, grid) > 0.5)[:, :, 0:12].float().mean()) > 0.3


def test_one_view_still_gives_a_box_around_what_it_sees():
    centre = torch.tensor([0.0, 0.0, 0.0])
    views = sphere_views(orbit(1, target=centre, radius=3.0, elevation=0.0, fov=0.9, size=64), centre, 0.6)
    low, high = common_box(views)
    assert torch.isfinite(low).all() and torch.isfinite(high).all()
    assert torch.all(low < -0.5) and torch.all(high > 0.5) and float((high - low).max()) < 4


def test_transparent_views_and_masks_without_a_common_place_are_nothing_seen():
    cameras = ring(torch.zeros(3), 1.0, count=4)
    views = sphere_views(cameras, torch.zeros(3), 0.5)
    with pytest.raises(NothingSeen, match="transparent"):
        common_box(replace(views, images=views.images * torch.tensor([1.0, 1, 1, 0])))
    c2w = look_at(torch.tensor([[3.0, 0, 0], [-3.0, 0, 0]]), torch.zeros(3))
    c2w[0, :3, :3] = look_at(torch.tensor([[3.0, 0, 0]]), torch.tensor([6.0, 0, 0]))[0, :3, :3]
    c2w[1, :3, :3] = look_at(torch.tensor([[-3.0, 0, 0]]), torch.tensor([-6.0, 0, 0]))[0, :3, :3]
    back_to_back = replace(cameras[[0, 1]], c2w=c2w)
    images = torch.zeros(2, 96, 96, 4)
    images[:, 40:56, 40:56] = 1
    with pytest.raises(NothingSeen, match="common"):
        common_box(Views(images, back_to_back))


def test_project_is_the_inverse_of_rays():
    for cameras in (ring(torch.zeros(3), 1.0, count=2, size=16), orthographic(ring(torch.zeros(3), 1.0, 2, 16), 1.0)):
        origins, directions = rays(cameras)
        for view in range(len(cameras)):
            pixels, depth = project(origins[view] + 2.5 * directions[view], cameras, view)
            v, u = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
            assert torch.allclose(pixels, torch.stack([u, v], dim=-1), atol=1e-3)
            assert bool((depth > 0).all())
