"""A fitted field on other voxels: it looks the same."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from backend.cameras import orbit
from backend.hull import VoxelGrid
from backend.radiance_grid import RadianceGrid

RING = orbit(3, target=torch.zeros(3), radius=2.7, elevation=0.4, fov=math.radians(30), size=40)


def soft_ball(resolution: int = 16) -> RadianceGrid:
    """Coloured by place, thinner and thinner towards its rim."""
    spacing = 1.2 / resolution
    origin = torch.full((3,), -0.6 + spacing / 2)
    grid = VoxelGrid(origin, spacing, (resolution, resolution, resolution - 2))
    centres = grid.centres()
    far = centres.norm(dim=-1, keepdim=True)
    values = torch.cat([4 - 16 * far, centres + 0.5], dim=-1)
    free = np.array((far[..., 0] < 0.5).numpy())
    for axis in range(3):
        np.moveaxis(free, axis, 0)[[0, -1]] = False
    values[torch.from_numpy(~free), 0] = -30
    return RadianceGrid(grid, values.numpy(), free)


def test_a_finer_field_looks_the_same() -> None:
    coarse = soft_ball()
    fine = coarse.finer(36)
    assert max(fine.grid.shape) == 36 and fine.grid.shape[2] in (31, 32)
    before, after = coarse.views(RING, 0.25), fine.views(RING, 0.5)
    assert float((before.images[..., 3] - after.images[..., 3]).abs().mean()) < 0.01
    both = (before.images[..., 3] > 0.9) & (after.images[..., 3] > 0.9)
    assert int(both.sum()) > 300
    assert float((before.images - after.images)[both].abs().mean()) < 0.01
    assert before.depth is not None and after.depth is not None
    assert float((before.depth - after.depth)[both].abs().mean()) < 0.5 * coarse.grid.spacing


def test_the_same_voxels_are_the_same_field() -> None:
    coarse = soft_ball()
    same = coarse.finer(16)
    assert same.grid.shape == coarse.grid.shape and np.array_equal(same.free, coarse.free)
    np.testing.assert_allclose(same.values[coarse.free], coarse.values[coarse.free], rtol=1e-3, atol=1e-3)


def test_a_smaller_voxel_blocks_as_much_less() -> None:
    coarse = soft_ball()
    fine = coarse.finer(32)
    inner = fine.grid.centres().norm(dim=-1) < 0.3
    centres = fine.grid.centres()[inner]
    dense = F.softplus(torch.from_numpy(fine.values))[..., 0][inner]
    want = F.softplus(4 - 16 * centres.norm(dim=-1)) / 2  # half as wide
    assert float((dense - want).abs().mean()) < 0.08 * float(want.mean())
