"""The coarse grid by torch against its slow twin, the one by numba: boxes, hulls, steps, and what it shows at last."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from backend import grid_kernels, hull, radiance_grid
from backend.cameras import Cameras, Views, orbit
from backend.mesh_render import rasterise
from backend.models import grm_grid_hull as batch_hull
from backend.models import grm_grid_torch as grids
from backend.models.grm_grid_hull import Posed, boxes, lattice_over
from backend.models.grm_grid_torch import TorchGrid, fit_grids
from backend.models.grm_guide import COARSE, STRIDE
from backend.radiance_grid import GridConfig, Level, fit_grid

SIDE = 32
SHORT = GridConfig(levels=(Level(16, 3),))
COARSER = replace(COARSE, levels=(Level(12, 30), Level(18, 20)))  # whose time a test has


def pictures(extents: tuple[float, float, float], cameras: Cameras, *, turn: float = 0.0) -> Views:
    """A box coloured by position, without its top."""
    mesh = trimesh.creation.box(extents)
    vertices, faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)
    faces = faces[~(vertices[faces][:, :, 2] > 0.49 * extents[2]).all(1)]
    cosine, sine = math.cos(turn), math.sin(turn)
    vertices = vertices @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], np.float32)
    seen = rasterise(vertices, faces, cameras)
    hit = torch.from_numpy(seen.faces >= 0)
    corners = torch.from_numpy(vertices[faces[seen.faces.clip(0)]]).float()
    points = (corners * torch.from_numpy(seen.barycentrics)[..., None]).sum(-2)
    colour = torch.where(hit[..., None], 0.5 + 0.4 * points, 0.0)
    return Views(torch.cat([colour, hit[..., None].float()], dim=-1), cameras)


def ring(count: int = 4, *, elevation: float = 0.5, side: int = SIDE, orthographic: bool = False) -> Cameras:
    cameras = orbit(count, target=torch.zeros(3), radius=2.7, elevation=elevation, fov=math.radians(50), size=side)
    if not orthographic:
        return cameras
    Ks = cameras.Ks.clone()
    Ks[:, [0, 1], [0, 1]] /= 2.7
    return replace(cameras, Ks=Ks, orthographic=torch.ones(count, dtype=torch.bool))


def several(side: int = SIDE) -> list[Views]:
    """Objects of different shapes, before cameras of different kinds."""
    return [
        pictures((1.4, 1.3, 1.0), ring(side=side)),
        pictures((0.6, 1.6, 0.5), ring(side=side, elevation=0.1), turn=0.4),
        pictures((1.0, 0.8, 1.2), ring(side=side, orthographic=True), turn=1.0),
    ]


def posed(every: list[Views]) -> Posed:
    cameras = [views.cameras for views in every]
    return Posed(
        torch.stack([views.images for views in every]),
        *(torch.stack([getattr(own, name) for own in cameras]) for name in ("c2w", "Ks", "orthographic")),
    )


def grids_of(every: list[Views], config: GridConfig, device: str = "cpu") -> list[TorchGrid | None]:
    given = posed(every)
    images, c2w, Ks, flat = (part.to(device) for part in (given.images, given.c2w, given.Ks, given.orthographic))
    return fit_grids(images, c2w, Ks, flat, config)


def shown_by(grid: TorchGrid | None, views: Views) -> Views:
    assert grid is not None
    return grid.views(views.cameras.to(grid.values.device), STRIDE).to("cpu")


def depth_of(views: Views) -> torch.Tensor:
    assert views.depth is not None
    return views.depth


# ---- where the object can be


def cut_off(views: Views) -> Views:
    """The same with half of each picture gone, so that the object leaves the frame."""
    Ks = views.cameras.Ks.clone()
    Ks[:, 0, 2] -= SIDE / 2
    cameras = replace(views.cameras, Ks=Ks, width=SIDE // 2)
    return Views(views.images[:, :, SIDE // 2 :], cameras)


CASES = {
    "around": lambda: several()[0],
    "orthographic": lambda: several()[2],
    "two opposite": lambda: pictures((1.2, 1.0, 0.8), ring(2, elevation=0.0)),
    "two beside each other": lambda: pictures((1.2, 1.0, 0.8), ring(40)[[0, 1]]),
    "open": lambda: pictures((1.2, 1.0, 0.8), ring(40, orthographic=True)[[0, 0]]),
    "cut off": lambda: cut_off(several()[0]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_box_is_that_of_the_linear_programmes(case: str) -> None:
    views = CASES[case]()
    low, high, found = boxes(posed([views]))
    assert bool(found[0])
    for got, want in zip((low[0], high[0]), hull.common_box(views), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_masks_without_a_common_object_have_no_box_and_no_grid() -> None:
    nothing, apart = several()[0], several()[0]
    nothing, apart = (replace(views, images=torch.zeros_like(views.images)) for views in (nothing, apart))
    apart.images[0, :8, :8], apart.images[1, -8:, -8:] = 1.0, 1.0
    every = [nothing, several()[0], apart]
    assert boxes(posed(every))[2].tolist() == [False, True, False]
    assert [grid is not None for grid in grids_of(every, SHORT)] == [False, True, False]
    assert grids_of([nothing, apart], SHORT) == [None, None]


def test_voxels_hull_and_colours_are_those_of_one_object() -> None:
    every = several(48)
    given = posed(every)
    low, high, _ = boxes(given)
    lattice = lattice_over(low, high, 16)
    got, colours = batch_hull.hulls(given, lattice), batch_hull.mean_colours(given, lattice)
    for item, views in enumerate(every):
        grid = hull.grid_over(*hull.common_box(views), 16)
        assert tuple(lattice.shape[item].tolist()) == grid.shape
        part = tuple(slice(length) for length in grid.shape)
        want = hull.visual_hull(views, grid)
        assert float(((got[item][part] - want).abs() > 1e-3).float().mean()) < 0.01
        torch.testing.assert_close(lattice.origin[item], grid.origin, rtol=1e-4, atol=1e-4)
        off = (colours[item].permute(1, 2, 3, 0)[part] - hull.mean_colours(views, grid)).abs()
        assert float((off > 1e-2).float().mean()) < 0.02


# ---- the fit


def by_numba(views: Views, steps: int, config: GridConfig) -> tuple[radiance_grid.RadianceGrid, np.ndarray]:
    """The grid after so many steps with the samples where torch has them, and where it began."""
    grid = hull.grid_over(*hull.common_box(views), config.levels[0].resolution)
    fitted = radiance_grid._level_start(views, grid, None, config)
    begun = fitted.values.copy()
    cameras, marched, targets = radiance_grid._observations(views, fitted, config)
    shape = fitted.free.shape
    gradient, moments = np.zeros((1, *shape, 4), np.float32), np.zeros((2, *shape, 4), np.float32)
    occupancy = np.zeros(shape, np.float32)
    knobs = np.array([config.coverage, config.softness], np.float32)
    faces = math.prod(hull.voxel_pixels(grid, cameras, 0))
    numbers = np.arange(len(targets))
    for step in range(steps):
        jitter = ((0.5 + grids.SPREAD[0] * numbers + grids.SPREAD[1] * step) % 1).astype(np.float32)
        stride = np.float32(config.stride)
        grid_kernels.push(fitted.values, fitted.active, marched.rows, jitter, stride, targets, knobs, gradient)
        grid_kernels.occupancy_of(fitted.values, fitted.free, occupancy)
        slow = config.last_rates if step >= 0.7 * config.levels[0].steps else 1.0
        terms = [step + 1, config.rate_density * slow, config.rate_colour * slow]
        terms += [config.area * faces, config.roughness * faces]
        grid_kernels.descend(fitted.values, fitted.free, occupancy, gradient, moments, np.array(terms, np.float32))
    return fitted, begun


@pytest.mark.parametrize("item", [0, 1, 2])
def test_the_steps_are_those_of_numba(item: int) -> None:
    """From the same beginning; a step of Adam has the gradient's sign, so that what is almost 0 may go either way."""
    every = several()
    given = posed(every)
    low, high, _ = boxes(given)
    _, field, _ = grids.fitted(given, low, high, SHORT)
    want, begun = by_numba(every[item], 3, SHORT)
    part = tuple(slice(length) for length in want.free.shape)
    got = field[item].permute(1, 2, 3, 0)[part].numpy()
    assert ((got[..., 0] > -9) == want.free).mean() > 0.999
    moved = np.abs(want.values - begun)[want.free]
    off = np.abs(got - want.values)[want.free]
    assert off.mean() < 0.02 * moved.mean()
    assert np.quantile(off[:, 0], 0.98) < 0.02 * COARSE.rate_density


def test_a_finer_level_begins_as_the_coarser_one_ended() -> None:
    views = several()[1]
    given = posed([views])
    low, high, _ = boxes(given)
    source, lattice = lattice_over(low, high, 8), lattice_over(low, high, 16)
    coarse, finer = (hull.grid_over(*hull.common_box(views), resolution) for resolution in (8, 16))
    values = np.random.default_rng(0).random((*coarse.shape, 4), np.float32)
    field = torch.full((1, 4, 8, 8, 8), 9.0)  # what is beyond the shape must not be seen
    field[0][:, : coarse.shape[0], : coarse.shape[1], : coarse.shape[2]] = torch.from_numpy(values).permute(3, 0, 1, 2)
    got = grids.resampled(source, field, lattice)[0].permute(1, 2, 3, 0)
    want = radiance_grid._resampled(radiance_grid.RadianceGrid(coarse, values, values[..., 0] > 0), finer)
    torch.testing.assert_close(got[tuple(slice(n) for n in finer.shape)], torch.from_numpy(want), rtol=0, atol=1e-3)


def test_what_it_shows_is_as_near_to_numbas_as_another_seeds_is() -> None:
    every = several()[:2]
    got, off, usual = grids_of(every, COARSER), [], []
    for views, grid in zip(every, got, strict=True):
        seeds = [fit_grid(views, COARSER, np.random.default_rng(seed), lambda *_: False) for seed in (0, 1)]
        first, again = (fitted.views(views.cameras, STRIDE) for fitted in seeds)
        ours = shown_by(grid, views)
        assert float(((depth_of(ours) > 0) == (depth_of(first) > 0)).float().mean()) > 0.99
        both = (depth_of(ours) > 0) & (depth_of(first) > 0) & (depth_of(again) > 0)
        for known, other in ((off, ours), (usual, again)):
            known.append([float((depth_of(other) - depth_of(first))[both].abs().mean())])
            known[-1].append(float((other.images - first.images).abs().mean()))
    assert bool((np.sum(off, axis=0) < 1.5 * np.sum(usual, axis=0)).all())


@pytest.mark.parametrize("orthographic", [False, True])
def test_a_grid_is_seen_as_by_numba(orthographic: bool) -> None:
    views = several()[0]
    want = fit_grid(views, SHORT, np.random.default_rng(0), lambda *_: False)
    grid = TorchGrid(want.grid, torch.from_numpy(want.values), torch.from_numpy(want.free))
    cameras = ring(3, elevation=0.2, orthographic=orthographic)
    ours, theirs = grid.views(cameras, 0.7), want.views(cameras, 0.7)
    torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=2e-3)
    torch.testing.assert_close(depth_of(ours), depth_of(theirs), rtol=0, atol=2e-3)
    off = (grid.prominence(cameras, 0.7) - want.prominence(cameras, 0.7)).abs()
    assert float((off > 1e-3).float().mean()) < 0.002


def test_an_objects_grid_does_not_depend_on_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    every = several()
    together = grids_of(every, SHORT)
    alone = [grids_of([views], SHORT)[0] for views in every]
    monkeypatch.setitem(grids.SAMPLES_AT_ONCE, "cpu", 1)
    for others in (alone, grids_of(every, SHORT)):
        for one, other in zip(together, others, strict=True):
            assert one is not None and other is not None and one.grid.shape == other.grid.shape
            torch.testing.assert_close(one.values, other.values, rtol=0, atol=1e-3)


def test_it_is_the_same_amid_half_precision_and_without_gradients() -> None:
    every = several()[:1]
    (want,) = grids_of(every, SHORT)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (got,) = grids_of(every, SHORT)
    assert got is not None and want is not None and torch.equal(got.values, want.values)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same() -> None:
    every = several()
    for views, grid, other in zip(every, grids_of(every, COARSER, "cuda"), grids_of(every, COARSER), strict=True):
        got, want = depth_of(shown_by(grid, views)), depth_of(shown_by(other, views))
        both = (got > 0) & (want > 0)
        assert float(((got > 0) == (want > 0)).float().mean()) > 0.99
        assert float((got - want)[both].abs().mean()) < 0.01
        assert grid is not None and grid.prominence(views.cameras, STRIDE).is_cuda
