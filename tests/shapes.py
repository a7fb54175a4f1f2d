"""Analytic captures for the tests: cameras round a known mesh, and what they see of it, exactly."""

from __future__ import annotations

import numpy as np
import torch
import trimesh

from backend.cameras import Cameras, Views
from backend.gaussians import SH_C0, Gaussians
from backend.mesh_render import rasterise


def looking_at(positions: np.ndarray, target: np.ndarray) -> torch.Tensor:
    """[V,4,4] float32 camera to world, OpenCV axes, world Z up."""
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    for pose, position in zip(poses, positions, strict=True):
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, position
    return torch.from_numpy(poses).float()


def orbit(
    count: int, elevations: tuple[float, ...], *, radius: float = 3.0, size: int = 128, orthographic: bool = False
) -> Cameras:
    """`count` cameras spread over rings at elevations (degrees) round the origin, which see 0.4 radius each way."""
    rings = np.resize(np.radians(elevations), count)
    angles = 2 * np.pi * np.arange(count) / count
    outward = np.stack([np.cos(rings) * np.cos(angles), np.cos(rings) * np.sin(angles), np.sin(rings)], axis=1)
    focal = (1.2 / radius if orthographic else 1.2) * size
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    kinds = torch.full((count,), orthographic)
    return Cameras(looking_at(radius * outward, np.zeros(3)), K.expand(count, 3, 3), kinds, size, size)


def colour_at(points: np.ndarray, extent: float) -> np.ndarray:
    """[...,3] a smooth colour of the place, 0.1..0.9."""
    return 0.5 + 0.4 * np.sin(points / extent * np.array([2.0, 2.5, 3.0]))


def capture(mesh: trimesh.Trimesh, cameras: Cameras, *, depth: bool = True, background: bool = False) -> Views:
    """What the cameras see of a mesh painted with `colour_at`; with `background` nothing is see-through."""
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    seen = rasterise(vertices, faces, cameras)
    points = (vertices[faces[seen.faces]] * seen.barycentrics[..., None]).sum(axis=-2)
    alpha = (seen.faces >= 0)[..., None].astype(np.float64)
    rgb = colour_at(points, float(np.abs(vertices).max())) * alpha
    images = np.concatenate([rgb, np.ones_like(alpha) if background else alpha], axis=-1)
    maps = torch.from_numpy(seen.depth) if depth else None
    return Views(torch.from_numpy(images).float(), cameras, maps)


def gaussians_on(mesh: trimesh.Trimesh, count: int = 20_000) -> Gaussians:
    """Small round Gaussians all over the surface, in the colours of `colour_at`."""
    points = np.asarray(trimesh.sample.sample_surface(mesh, count, seed=1)[0])
    spacing = (mesh.area / count) ** 0.5
    sh = (colour_at(points, float(np.abs(mesh.vertices).max())) - 0.5) / SH_C0
    return Gaussians(
        means=torch.from_numpy(points).float(),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(count, 4),
        scales=torch.full((count, 3), 0.8 * spacing),
        opacities=torch.full((count,), 0.95),
        sh=torch.from_numpy(sh).float()[:, None],
    )
