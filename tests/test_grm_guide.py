"""What a guided GRM is told: the surface of a coarse grid, inside the hull, in the channels and the order it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh

from backend.cameras import Cameras, Views, orbit
from backend.compositing import over
from backend.mesh_render import rasterise
from backend.models import grm_guide
from backend.models.grm_cameras import poses
from backend.models.grm_guide import (
    CHANNELS,
    FARTHEST,
    FEW,
    NEAR,
    STRIDE,
    agreement,
    fitted,
    guide_of,
    without_white,
)

SIDE = 48


def box(extents: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    made = trimesh.creation.box(extents)
    return np.asarray(made.vertices, np.float32), np.asarray(made.faces, np.int32)


def bowl() -> tuple[np.ndarray, np.ndarray]:
    """A box whose top is open: its hull from the sides is full."""
    vertices, faces = box((1.4, 1.4, 1.0))
    top = (vertices[faces][:, :, 2] > 0.49).all(1)
    return vertices, faces[~top]


def pictures_of(mesh: tuple[np.ndarray, np.ndarray], cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """[V,4,R,R] -1..1 coloured by position over white, and the true depth [V,R,R]."""
    seen = rasterise(*mesh, cameras)
    hit = torch.from_numpy(seen.faces >= 0)
    corners = torch.from_numpy(mesh[0][mesh[1][seen.faces.clip(0)]]).float()
    points = (corners * torch.from_numpy(seen.barycentrics)[..., None]).sum(-2)
    colour = torch.where(hit[..., None], 0.5 + 0.4 * points, 1.0)
    rgba = torch.cat([colour, hit[..., None].float()], dim=-1)
    return 2 * rgba.permute(0, 3, 1, 2) - 1, torch.from_numpy(seen.depth)


def test_colours_come_back_from_over_white() -> None:
    alpha = torch.tensor([1.0, 0.25, 0.0])
    colour = torch.tensor([0.2, 0.6, 0.9])[:, None] * torch.ones(3, 3)
    over = colour.T * alpha + 1 - alpha  # [3,P]
    given = 2 * torch.cat([over, alpha[None]])[..., None] - 1
    got = without_white(given)[:, 0]
    torch.testing.assert_close(got[:2, :3], colour[:2])
    torch.testing.assert_close(got[:, 3], alpha)
    assert float(got[2, :3].abs().max()) == 0


def test_the_surface_is_nearer_to_the_truth_than_the_hull_and_inside_it() -> None:
    """Looking down into a bowl, the hull of its sides is a lid; colours and the least surface open it."""
    ring = orbit(4, target=torch.zeros(3), radius=2.7, elevation=0.6, fov=math.radians(50), size=SIDE)
    images, depth = pictures_of(bowl(), ring)
    given = poses(ring.c2w[None], ring.Ks[None], ring.orthographic[None], SIDE)
    guide = guide_of(images[None], ring.Ks[None], given)
    hull, solid = guide.hull, (images[None, :, 3] > 0.99) & (depth[None] > 0)
    off, hull_off = ((found - depth[None])[solid].abs().mean() for found in (guide.surface, hull.entry))
    assert float(off) < 0.8 * float(hull_off)
    assert bool((guide.surface >= hull.entry).all()) and bool((guide.surface <= hull.entry + hull.room).all())


def test_channels() -> None:
    ring = orbit(3, target=torch.zeros(3), radius=2.7, elevation=0.3, fov=math.radians(50), size=SIDE)
    images, _ = pictures_of(box((1.0, 0.8, 0.6)), ring)
    given = poses(ring.c2w[None], ring.Ks[None], ring.orthographic[None], SIDE)
    guide = guide_of(images[None], ring.Ks[None], given)
    from_origin, inside, room = guide.channels[:, :, :3].unbind(2)
    assert torch.equal(guide.channels[:, :, 7:], agreement(images[None], guide.surface, given))
    grid = fitted(without_white(images), ring)
    assert grid is not None
    shown, clear = grid.views(ring, STRIDE).images, without_white(images)
    beside = [over(shown, 1.0) - over(clear, 1.0), shown[..., 3:] - clear[..., 3:]]
    torch.testing.assert_close(guide.channels[0, :, 3:7].movedim(1, -1), torch.cat(beside, dim=-1))
    assert 0 < float(guide.channels[:, :, 3:7].abs().mean()) < 0.05
    assert guide.channels.shape == (1, 3, CHANNELS, SIDE, SIDE)
    origin = guide.hull.origin[..., None, None]
    torch.testing.assert_close(from_origin + origin, guide.surface)
    torch.testing.assert_close(inside + guide.hull.entry, guide.surface)
    assert torch.equal(room, guide.hull.room)
    empty = images[None, :, 3] == -1
    assert float(from_origin[empty].abs().max()) < 1e-6 and float(inside[empty].abs().max()) == 0


def test_the_same_pictures_give_the_same_surface() -> None:
    ring = orbit(2, target=torch.zeros(3), radius=2.7, elevation=0.3, fov=math.radians(50), size=SIDE)
    images = without_white(pictures_of(box((1.0, 0.8, 0.6)), ring)[0])
    first, second = fitted(images, ring), fitted(images, ring)
    assert first is not None and second is not None and np.array_equal(first.values, second.values)


def test_pictures_that_agree_on_nothing_have_no_surface() -> None:
    """Masks without a common object: no depth, so the guide falls back on the hull."""
    ring = orbit(2, target=torch.zeros(3), radius=2.7, elevation=0.0, fov=math.radians(50), size=SIDE)
    images = torch.zeros(2, SIDE, SIDE, 4)
    images[0, :8, :8], images[1, -8:, -8:] = 1.0, 1.0
    assert fitted(images, ring) is None
    assert fitted(torch.zeros(2, SIDE, SIDE, 4), ring) is None
    Views(images, ring)


def test_a_known_depth_is_the_surface_where_it_is_known() -> None:
    ring = orbit(3, target=torch.zeros(3), radius=2.7, elevation=0.3, fov=math.radians(50), size=SIDE)
    images, depth = pictures_of(box((1.0, 0.8, 0.6)), ring)
    given = poses(ring.c2w[None], ring.Ks[None], ring.orthographic[None], SIDE)
    half = depth[None].clone()
    half[:, :, : SIDE // 2] = 0
    told, untold = guide_of(images[None], ring.Ks[None], given, half), guide_of(images[None], ring.Ks[None], given)
    assert torch.equal(told.known, half > 0) and not bool(untold.known.any())
    assert torch.equal(told.surface[told.known], half[told.known])
    assert torch.equal(told.surface[~told.known], untold.surface[~told.known])


def test_where_all_depth_is_known_no_grid_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = orbit(2, target=torch.zeros(3), radius=2.7, elevation=0.3, fov=math.radians(50), size=SIDE)
    images, depth = pictures_of(box((1.0, 0.8, 0.6)), ring)
    given = poses(ring.c2w[None], ring.Ks[None], ring.orthographic[None], SIDE)
    monkeypatch.setattr(grm_guide, "fit_grid", None)
    guide_of(images[None], ring.Ks[None], given, depth[None])
    with pytest.raises(TypeError):
        guide_of(images[None], ring.Ks[None], given)


@pytest.mark.parametrize("orthographic", [False, True])
def test_agreement_by_hand(orthographic: bool) -> None:
    """Pixel by pixel and view by view, with cameras' own projection."""
    rng, side = np.random.default_rng(3), 10
    ring = orbit(3, target=torch.zeros(3), radius=2.7, elevation=0.4, fov=math.radians(40), size=side)
    if orthographic:
        K = torch.tensor([[4.0, 0, side / 2], [0, 4.0, side / 2], [0, 0, 1]])
        ring = Cameras(ring.c2w, K.expand(3, 3, 3).clone(), torch.ones(3, dtype=torch.bool), side, side)
    alpha = torch.from_numpy(rng.uniform(0, 1, (3, side, side)).round(1)).float()
    colour = torch.from_numpy(rng.uniform(0, 1, (3, 3, side, side))).float()
    images = 2 * torch.cat([1 - alpha[:, None] * (1 - colour), alpha[:, None]], dim=1) - 1
    surface = torch.from_numpy(rng.uniform(2.2, 3.2, (3, side, side))).float()
    given = poses(ring.c2w[None], ring.Ks[None], ring.orthographic[None], side)
    got = agreement(images[None], surface[None], given)[0]
    for view, y, x in [(0, 5, 5), (1, 3, 6), (2, 7, 2), (0, 4, 1)]:
        want = alpha[view, y, x] * expected_agreement(ring, colour, alpha, surface, (view, y, x))
        torch.testing.assert_close(got[view, :, y, x], want, rtol=1e-3, atol=1e-3)
    assert float(got.movedim(1, -1)[alpha == 0].abs().max()) == 0


def expected_agreement(
    ring: Cameras, colour: torch.Tensor, alpha: torch.Tensor, surface: torch.Tensor, pixel: tuple[int, int, int]
) -> torch.Tensor:
    view, y, x = pixel
    shown = torch.cat([colour * (alpha > 0)[:, None], alpha[:, None], surface[:, None]], dim=1)
    K, depth = ring.Ks[view], surface[pixel]
    across = torch.stack([(x + 0.5 - K[0, 2]) / K[0, 0], (y + 0.5 - K[1, 2]) / K[1, 1]])
    across = across if ring.orthographic[view] else across * depth
    point = ring.c2w[view, :3, :3] @ torch.cat([across, depth[None]]) + ring.c2w[view, :3, 3]
    difference, weight, before = torch.zeros(3), 0.0, []
    for other in range(len(ring)):
        if other == view:
            continue
        local = ring.c2w[other, :3, :3].T @ (point - ring.c2w[other, :3, 3])
        u, v = (local / (1 if ring.orthographic[other] else local[2]))[:2] * ring.Ks[other].diagonal()[:2]
        seen = bilinear(shown[other], u + ring.Ks[other, 0, 2] - 0.5, v + ring.Ks[other, 1, 2] - 0.5)
        gap = (local[2] - seen[4]).clamp(-FARTHEST, FARTHEST)
        near = float(seen[3] * torch.exp(-((gap / NEAR) ** 2)))
        difference += near * (seen[:3] - shown[pixel[0], :3, y, x])
        weight += near
        before.append(float(gap) if seen[3] > 0.5 else -FARTHEST)
    return torch.cat([difference / (weight + FEW), torch.tensor([min(weight, 1.0), min(before) / FARTHEST])])


def bilinear(planes: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """planes [C,H,W] -> [C] at a position counted from the first pixel's centre, the edge going on."""
    last = planes.shape[-1] - 1
    x, y = x.clamp(0, last), y.clamp(0, last)
    left, top = min(int(x), last - 1), min(int(y), last - 1)
    fx, fy = x - left, y - top
    rows = [(1 - fx) * planes[:, row, left] + fx * planes[:, row, left + 1] for row in (top, top + 1)]
    return (1 - fy) * rows[0] + fy * rows[1]


def test_a_point_before_another_views_surface_is_told() -> None:
    """On the true surface colours agree and nothing is before anything; pulled towards the camera, it is."""
    ring = orbit(8, target=torch.zeros(3), radius=2.7, elevation=0.3, fov=math.radians(50), size=SIDE)
    images, depth = pictures_of(box((1.0, 1.0, 1.0)), ring)
    given = poses(ring.c2w[None], ring.Ks[None], ring.orthographic[None], SIDE)
    inner = torch.nn.functional.avg_pool2d(images[:, 3], 5, 1, 2) > 0.99
    true, pulled = (agreement(images[None], depth[None] - by, given)[0].movedim(1, -1)[inner] for by in (0.0, 0.06))
    shared = true[:, 3] > 0.9  # what another view shows as well
    assert float(shared.float().mean()) > 0.2
    assert float(pulled[shared, :3].abs().mean()) > 1.5 * float(true[shared, :3].abs().mean())
    assert float(pulled[:, 4].mean()) < float(true[:, 4].mean()) - 0.05
