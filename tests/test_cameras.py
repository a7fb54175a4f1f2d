"""Rays, orbits and views by laws; conventions by hand-computed examples."""

from __future__ import annotations

import math

import pytest
import torch

from backend.cameras import Cameras, Views, look_at, orbit, rays


def random_cameras(count: int, seed: int, *, orthographic: bool = False) -> Cameras:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 3, generator=generator) * 3
    K = torch.tensor([[50.0, 0, 17], [0, 60, 11], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(look_at(centres, torch.tensor([0.3, -0.2, 0.1])), K, torch.full((count,), orthographic), 32, 24)


def projected(points: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """points [V,H,W,3] to pixels [V,H,W,2], written out as the docstring of Cameras says."""
    rotation, translation = cameras.viewmats[:, None, None, :3, :3], cameras.viewmats[:, None, None, :3, 3]
    local = (rotation @ points[..., None])[..., 0] + translation
    flat = local[..., :2] if bool(cameras.orthographic[0]) else local[..., :2] / local[..., 2:]
    return flat * cameras.Ks[:, None, None, [0, 1], [0, 1]] + cameras.Ks[:, None, None, :2, 2]


@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("distance", [0.5, 4.0])
def test_points_on_a_ray_project_to_its_pixel_centre(orthographic, distance):
    cameras = random_cameras(3, 1, orthographic=orthographic)
    rays_o, rays_d = rays(cameras)
    assert rays_d.norm(dim=-1) == pytest.approx(torch.ones(3, 24, 32), abs=1e-5)
    pixels = projected(rays_o + distance * rays_d, cameras)
    expected = torch.stack(torch.meshgrid(torch.arange(32) + 0.5, torch.arange(24) + 0.5, indexing="xy"), dim=-1)
    assert (pixels - expected).abs().max() < 2e-3


def test_a_ray_by_hand():
    """A camera at the origin that looks along +Z: the pixel right of and below the middle goes right and down."""
    K = torch.tensor([[[2.0, 0, 1], [0, 2, 1], [0, 0, 1]]])
    cameras = Cameras(torch.eye(4)[None], K, torch.tensor([False]), 2, 2)
    rays_o, rays_d = rays(cameras)
    assert rays_o.abs().max() == 0
    expected = torch.nn.functional.normalize(torch.tensor([0.25, 0.25, 1.0]), dim=0)
    assert rays_d[0, 1, 1] == pytest.approx(expected, abs=1e-6)
    assert rays_d[0, 0, 1, 1] == pytest.approx(-rays_d[0, 1, 1, 1].item())


def test_viewmats_undo_c2w():
    cameras = random_cameras(5, 2)
    assert cameras.viewmats @ cameras.c2w == pytest.approx(torch.eye(4).repeat(5, 1, 1), abs=1e-5)


@pytest.mark.parametrize("centre", [[2.0, 1, 0.5], [0, 0, 3.0], [0, 0, -3.0], [0, -2.0, 0]])
def test_look_at(centre):
    """The target is straight ahead, the axes are a rotation, and up in the picture is up in the world."""
    c2w = look_at(torch.tensor([centre]), torch.zeros(3))[0]
    rotation = c2w[:3, :3]
    assert rotation.T @ rotation == pytest.approx(torch.eye(3), abs=1e-6)
    assert torch.linalg.det(rotation) == pytest.approx(1, abs=1e-6)
    assert rotation[:, 2] == pytest.approx(-torch.tensor(centre) / torch.tensor(centre).norm(), abs=1e-6)
    assert rotation[2, 1] <= 1e-6, "the camera's +Y points down"


def test_orbit_by_hand():
    """Azimuth 0 is on -Y, then counter-clockwise from above: on +X, +Y, -X."""
    target = torch.tensor([1.0, 2, 3])
    cameras = orbit(4, target=target, radius=2, elevation=math.radians(30), fov=math.radians(90), size=64)
    level, height = 2 * math.cos(math.radians(30)), 1.0
    expected = target + torch.tensor([[0, -level, height], [level, 0, height], [0, level, height], [-level, 0, height]])
    assert cameras.centres == pytest.approx(expected, abs=1e-5)
    assert cameras.Ks[0, 0, 0] == pytest.approx(32) and cameras.Ks[0, :2, 2].tolist() == [32, 32]
    ahead = target + 0 * cameras.centres
    local = (cameras.viewmats[:, :3, :3] @ ahead[..., None])[..., 0] + cameras.viewmats[:, :3, 3]
    assert local == pytest.approx(torch.tensor([0, 0, 2.0]).expand(4, 3), abs=1e-5)


def test_resizing_keeps_what_a_camera_sees():
    cameras = random_cameras(2, 3)
    resized = cameras.resized(64, 12)
    _, before = rays(cameras)
    assert (resized.width, resized.height) == (64, 12)
    assert resized.Ks[0, 0].tolist() == [100, 0, 34] and resized.Ks[0, 1].tolist() == [0, 30, 5.5]
    assert before.shape == (2, 24, 32, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Ks": torch.zeros(2, 3, 4)}, "Ks must have shape"),
        ({"orthographic": torch.zeros(3)}, "orthographic must have shape"),
        ({"width": 0}, "must be positive"),
    ],
)
def test_cameras_check_their_shapes(change, words):
    given = {"c2w": torch.eye(4).repeat(2, 1, 1), "Ks": torch.eye(3).repeat(2, 1, 1)}
    given |= {"orthographic": torch.zeros(2, dtype=torch.bool), "width": 4, "height": 3}
    with pytest.raises(ValueError, match=words):
        Cameras(**(given | change))


def test_views_check_their_shapes_and_know_their_alpha():
    cameras = random_cameras(2, 4)
    opaque = torch.ones(2, 24, 32, 4)
    assert not Views(opaque, cameras).has_alpha and len(Views(opaque, cameras)) == 2
    seen_through = opaque.clone()
    seen_through[1, 3, 5, 3] = 0
    assert Views(seen_through, cameras).has_alpha
    with pytest.raises(ValueError, match="images must have shape"):
        Views(opaque[:1], cameras)
    with pytest.raises(ValueError, match="depth must have shape"):
        Views(opaque, cameras, torch.ones(2, 24, 31))
