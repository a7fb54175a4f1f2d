"""What a guided GRM is told: the surface of a coarse grid, inside the hull, in the channels and the order it learns."""

from __future__ import annotations

import math

import numpy as np
import torch
import trimesh

from backend.cameras import Cameras, Views, orbit
from backend.mesh_render import rasterise
from backend.models.grm_cameras import poses
from backend.models.grm_guide import CHANNELS, coarse_depth, guide_of, straight

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
    got = straight(given)[:, 0]
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
    from_origin, inside, room = guide.channels().unbind(2)
    assert guide.channels().shape == (1, 3, CHANNELS, SIDE, SIDE)
    origin = guide.hull.origin[..., None, None]
    torch.testing.assert_close(from_origin + origin, guide.surface)
    torch.testing.assert_close(inside + guide.hull.entry, guide.surface)
    assert torch.equal(room, guide.hull.room)
    empty = images[None, :, 3] == -1
    assert float(from_origin[empty].abs().max()) < 1e-6 and float(inside[empty].abs().max()) == 0


def test_the_same_pictures_give_the_same_surface() -> None:
    ring = orbit(2, target=torch.zeros(3), radius=2.7, elevation=0.3, fov=math.radians(50), size=SIDE)
    images = straight(pictures_of(box((1.0, 0.8, 0.6)), ring)[0])
    assert torch.equal(coarse_depth(images, ring), coarse_depth(images, ring))


def test_pictures_that_agree_on_nothing_have_no_surface() -> None:
    """Masks without a common object: no depth, so the guide falls back on the hull."""
    ring = orbit(2, target=torch.zeros(3), radius=2.7, elevation=0.0, fov=math.radians(50), size=SIDE)
    images = torch.zeros(2, SIDE, SIDE, 4)
    images[0, :8, :8], images[1, -8:, -8:] = 1.0, 1.0
    assert not bool(coarse_depth(images, ring).any())
    assert not bool(coarse_depth(torch.zeros(2, SIDE, SIDE, 4), ring).any())
    Views(images, ring)
