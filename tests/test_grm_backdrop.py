"""The Gaussians of a guided network that no pixel has: which voxels they stand for, and what is told of those."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from backend.cameras import orbit
from backend.hull import VoxelGrid, project
from backend.initialise import cover_of, splats_of_grid
from backend.models import grm_backdrop
from backend.models.grm_backdrop import FARTHEST, FEATURES, FEW, NEAR, Backdrop, voxels_of
from backend.radiance_grid import RadianceGrid
from backend.scans import cameras_around

SIDE = 32
RING = orbit(3, target=torch.zeros(3), radius=2.7, elevation=0.4, fov=math.radians(30), size=SIDE)


def some_grid(seed: int = 0) -> RadianceGrid:
    """A lump with holes in it, in colours of all kinds, around the origin."""
    rng, shape = np.random.default_rng(seed), (12, 10, 11)
    grid = VoxelGrid(torch.tensor([-0.55, -0.45, -0.5]), 0.1, shape)
    free = np.array((grid.centres().norm(dim=-1) < 0.42).numpy())
    values = np.concatenate([rng.normal(1, 2, (*shape, 1)), rng.uniform(0, 1, (*shape, 3))], axis=-1)
    values[~free, 0] = -30
    return RadianceGrid(grid, values.astype(np.float32), free)


@pytest.fixture(autouse=True)
def _the_grids_own_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finer ones are interpolated, which has tests of its own."""
    monkeypatch.setattr(grm_backdrop, "LATTICE", 12)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """[3,R,R,4] of no object in particular, and a surface [3,R,R] at about the origin's depth."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, SIDE, SIDE, 4, generator=generator)
    return images, 2.2 + torch.rand(3, SIDE, SIDE, generator=generator)


def test_all_that_any_view_sees_is_there() -> None:
    """The voxels that a fit would start from, with the same colours and covers."""
    fitted = some_grid()
    voxels = voxels_of(fitted, *pictures(), RING)
    box = torch.stack([fitted.grid.centres()[0, 0, 0], fitted.grid.centres()[-1, -1, -1]]).numpy()
    want = splats_of_grid(fitted, [RING.resized(24, 24), cameras_around(box, 24)], 10_000, 0)
    assert voxels.features.shape == (len(voxels.centres), FEATURES)
    known = {tuple(point): row for row, point in enumerate(voxels.centres.tolist())}
    found = [number for number, point in enumerate(want.means.tolist()) if tuple(point) in known]
    assert len(found) > 0.9 * len(want) and len(known) < 1.2 * len(want)
    rows = [known[tuple(point)] for point in want.means[found].tolist()]
    torch.testing.assert_close(voxels.colours[rows], want.colours[found])
    torch.testing.assert_close(voxels.cover[rows], want.opacities[found], rtol=0, atol=1e-4)


def test_it_starts_with_balls() -> None:
    backdrop = Backdrop()
    torch.nn.init.zeros_(list(backdrop.parameters())[-2])
    voxels = voxels_of(some_grid(), *pictures(), RING)
    made = backdrop(voxels)
    assert torch.equal(made.means, voxels.centres)
    torch.testing.assert_close(made.scales, torch.full_like(made.scales, 0.05))
    torch.testing.assert_close(made.colours, voxels.colours.clamp(0.02, 0.98))
    torch.testing.assert_close(made.opacities, voxels.cover.clamp(0.02, 0.98))


def test_gaussians_stay_beside_their_voxel() -> None:
    backdrop, generator = Backdrop(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in backdrop.parameters():
            parameter.normal_(generator=generator)
    voxels = voxels_of(some_grid(), *pictures(), RING)
    made = backdrop(voxels)
    assert 0.02 < float((made.means - voxels.centres).detach().abs().max()) <= 0.05001
    assert float(made.scales.detach().max() / 0.05) <= math.e + 1e-4
    assert float(made.scales.detach().min() / 0.05) >= math.exp(-2) - 1e-4


@pytest.mark.parametrize("number", [0, 40, 200])
def test_what_is_told_of_a_voxel(number: int) -> None:
    """One voxel by hand."""
    fitted, (images, surface) = some_grid(), pictures()
    voxels = voxels_of(fitted, images, surface, RING)
    centre, own = voxels.centres[number], voxels.colours[number]
    i, j, k = ((centre - fitted.grid.origin) / fitted.grid.spacing).round().int().tolist()
    torch.testing.assert_close(torch.from_numpy(fitted.values[i, j, k, 1:]), own)
    torch.testing.assert_close(
        voxels.cover[number], cover_of(torch.tensor(float(fitted.values[i, j, k, 0]))), rtol=0, atol=1e-4
    )
    want = []
    for x, y, z in np.ndindex(3, 3, 3):
        place = (i + x - 1, j + y - 1, k + z - 1)
        clear = 1 / (1 + math.exp(fitted.values[place][0])) if fitted.free[place] else 1.0  # exp(-softplus(density))
        colour = (1 - clear) * (torch.from_numpy(fitted.values[place][1:]) - own)
        want += [torch.tensor([1 - clear]), own - 0.5 if (x, y, z) == (1, 1, 1) else colour]
    told = voxels.features[number].split([108, 7])
    torch.testing.assert_close(told[0], torch.cat(want).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told[1], in_views(centre, own, images, surface), rtol=1e-3, atol=1e-4)


def in_views(centre: torch.Tensor, own: torch.Tensor, images: torch.Tensor, surface: torch.Tensor) -> torch.Tensor:
    difference, weight, alphas, before, nearest = torch.zeros(3), 0.0, [], [], []
    for view in range(3):
        pixel, depth = project(centre[None], RING, view)
        x, y = (pixel[0] - 0.5).tolist()
        left, top = int(x), int(y)
        planes = torch.cat([images[view], surface[view][..., None]], dim=-1)
        upper, lower = (planes[top + row, left : left + 2] for row in (0, 1))
        row = (1 - (y - top)) * upper + (y - top) * lower
        seen = (1 - (x - left)) * row[0] + (x - left) * row[1]
        gap = float((depth[0] - seen[4]).clamp(-FARTHEST, FARTHEST))
        near = float(seen[3]) * math.exp(-((gap / NEAR) ** 2))
        difference += near * (seen[:3] - own)
        weight += near
        alphas.append(float(seen[3]))
        before.append(gap if seen[3] > 0.5 else -FARTHEST)
        nearest.append(near)
    rest = [min(weight, 1.0), min(alphas), min(before) / FARTHEST, max(nearest)]
    return torch.cat([difference / (weight + FEW), torch.tensor(rest)])
