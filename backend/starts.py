"""Which start a fit has: the one that says most about the scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend import initialise
from backend.cameras import Cameras, Views
from backend.gaussians import Gaussians
from backend.hull import NothingSeen, common_box
from backend.monitor import Monitor
from backend.plane_sweep import SweepConfig, sweep
from backend.radiance_grid import GridConfig, Level, RadianceGrid, fit_grid, resolution_for
from backend.scans import cameras_around

SOLID = 0.9  # opacity of a starting splat on a known surface
DOUBTFUL = 0.3  # and of one whose place no other view confirmed
SPLATS = {"depth": 60_000, "hull": 40_000, "plane_sweep": 60_000, "random": 30_000}  # when nothing else is asked for
LEAST_AGREEMENT = 0.02  # share of pixels with confirmed depth below which a plane sweep has found nothing


@dataclass(frozen=True)
class Wishes:
    """What the start should be like: most splats (0: by kind), degree of the harmonics, seed."""

    max_splats: int
    sh_degree: int
    seed: int

    def splats(self, kind: str) -> int:
        return min(self.max_splats or SPLATS[kind], SPLATS[kind])


@dataclass(frozen=True)
class Start:
    """Gaussians to begin with, where they come from, and views that the start imagines between the given ones."""

    gaussians: Gaussians
    kind: str
    dreamed: tuple[Views, ...] = ()


def choose_start(views: Views, initial: Gaussians | None, wishes: Wishes, monitor: Monitor) -> Start:
    """What to begin with, in the order of how much it says about the scene.

    Raises NothingSeen where the views show nothing or have nothing in common.
    """
    if initial is not None and len(initial) > 0:
        return Start(initial.detach(), "gaussians")
    if not bool((views.images[..., 3] > 0.5).any()):
        raise NothingSeen("The views are fully transparent: no camera sees the object.")
    if views.depth is not None:
        surfels = initialise.surfels_of_depth(views, wishes.splats("depth"))
        if len(surfels):
            return Start(initialise.splats_on(surfels, SOLID, wishes.sh_degree), "depth")
    if views.has_alpha:
        return start_of_masks(views, wishes, monitor)
    return start_of_photographs(views, wishes, monitor)


def start_of_masks(views: Views, wishes: Wishes, monitor: Monitor) -> Start:
    """A radiance grid in the visual hull, splats on its surface, and its pictures from all around."""

    def advance(step: int, total: int) -> bool:
        monitor.progress("shape", step, total)
        return monitor.finish_early()

    finest = resolution_for(views)
    levels = tuple(Level(max(8, round(finest * share)), steps) for share, steps in ((1 / 3, 100), (2 / 3, 80), (1, 60)))
    fitted = fit_grid(views, GridConfig(levels=levels), np.random.default_rng(wishes.seed), advance)
    around = _cameras_around(views, fitted)
    surfels = initialise.surfels_of_grid(fitted, [views.cameras, around], wishes.splats("hull"))
    if len(surfels) == 0:
        raise NothingSeen("The cameras see no common object: their masks have no part of space in common.")
    dreamed = fitted.views(around, initialise.GRID_STRIDE)
    return Start(initialise.splats_on(surfels, SOLID, wishes.sh_degree), "hull", (dreamed,))


def _cameras_around(views: Views, fitted: RadianceGrid) -> Cameras:
    box = torch.stack(common_box(views)).numpy()
    return cameras_around(box, 2 * max(fitted.grid.shape))


def start_of_photographs(views: Views, wishes: Wishes, monitor: Monitor) -> Start:
    """Splats at the depths of a plane sweep, or at random where the cameras look if that finds nothing."""
    depth, agreed = sweep(views, SweepConfig(), lambda step, total: monitor.progress("depth", step, total))
    if float(agreed.float().mean()) < LEAST_AGREEMENT:
        generator = torch.Generator().manual_seed(wishes.seed)
        surfels = initialise.surfels_in_view(views, wishes.splats("random"), generator)
        return Start(initialise.splats_on(surfels, DOUBTFUL, wishes.sh_degree), "random")
    small = _resized_to(views, depth)
    most = wishes.splats("plane_sweep")
    sure = initialise.surfels_of_depth(replace(small, depth=torch.where(agreed, depth, 0.0)), most * 2 // 3)
    rest = initialise.surfels_of_depth(replace(small, depth=torch.where(agreed, 0.0, depth)), most - len(sure))
    parts = [
        initialise.splats_on(sure, SOLID, wishes.sh_degree),
        initialise.splats_on(rest, DOUBTFUL, wishes.sh_degree),
    ]
    return Start(joined(parts), "plane_sweep")


def _resized_to(views: Views, depth: Tensor) -> Views:
    """The views with pictures of the size of their depth [V,h,w]."""
    _, height, width = depth.shape
    images = F.adaptive_avg_pool2d(views.images.permute(0, 3, 1, 2), (height, width)).permute(0, 2, 3, 1)
    return Views(images, views.cameras.resized(width, height), depth, views.names)


def joined(parts: list[Gaussians]) -> Gaussians:
    """All Gaussians of all parts, which have the same degree of harmonics."""
    names = ("means", "quats", "scales", "opacities", "sh")
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
