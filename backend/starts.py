"""Which start a fit has: the one that says most about the scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from backend import initialise
from backend.cameras import Cameras, Views
from backend.gaussians import Gaussians
from backend.hull import NothingSeen, common_box
from backend.monitor import Monitor
from backend.radiance_grid import GridConfig, Level, RadianceGrid, fit_grid, resolution_for
from backend.rendering import render
from backend.scans import cameras_around
from backend.scene_start import scene_gaussians

SOLID = 0.9  # opacity of a starting splat on a known surface
AROUND = 192  # pixels of a side of what given Gaussians look like
SPLATS = {"depth": 60_000, "hull": 40_000, "plane_sweep": 60_000}  # when nothing else is asked for


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
        given = initial.detach()
        return Start(given, "gaussians", _as_they_are(given, views) if views.has_alpha and views.depth is None else ())
    if not bool((views.images[..., 3] > 0.5).any()):
        raise NothingSeen("The views are fully transparent: no camera sees the object.")
    if views.depth is not None:
        surfels = initialise.surfels_of_depth(views, wishes.splats("depth"))
        if len(surfels):
            return Start(initialise.splats_on(surfels, SOLID, wishes.sh_degree), "depth")
    if views.has_alpha:
        return start_of_masks(views, wishes, monitor)
    return start_of_photographs(views, wishes, monitor)


def _as_they_are(gaussians: Gaussians, views: Views) -> tuple[Views, ...]:
    """What given Gaussians look like from all around: few views without depth would bend them to themselves alone."""
    box = torch.stack([gaussians.means.amin(0), gaussians.means.amax(0)]).cpu().numpy()
    around = cameras_around(box, min(AROUND, views.cameras.width)).to(gaussians.means.device)
    with torch.no_grad():
        seen = render(gaussians, around)
    alpha = seen.alpha[..., None]
    return (Views(torch.cat([seen.rgb / alpha.clamp_min(1e-6), alpha], dim=-1).clamp(0, 1), around),)


def start_of_masks(views: Views, wishes: Wishes, monitor: Monitor) -> Start:
    """A radiance grid in the visual hull, splats on its surface, and its pictures from all around."""

    def advance(step: int, total: int) -> bool:
        monitor.progress("shape", step, total)
        return monitor.finish_early()

    finest = resolution_for(views, wishes.splats("hull"))
    levels = tuple(Level(max(8, round(finest * share)), steps) for share, steps in ((1 / 3, 100), (2 / 3, 80), (1, 60)))
    fitted = fit_grid(views, GridConfig(levels=levels), np.random.default_rng(wishes.seed), advance)
    around = _cameras_around(views, fitted)
    gaussians = initialise.splats_of_grid(fitted, [views.cameras, around], wishes.splats("hull"), wishes.sh_degree)
    if len(gaussians) == 0:
        raise NothingSeen("The cameras see no common object: their masks have no part of space in common.")
    dreamed = fitted.views(around, initialise.GRID_STRIDE)
    return Start(gaussians, "hull", (dreamed,))


def _cameras_around(views: Views, fitted: RadianceGrid) -> Cameras:
    box = torch.stack(common_box(views)).numpy()
    return cameras_around(box, 2 * max(fitted.grid.shape))


def start_of_photographs(views: Views, wishes: Wishes, monitor: Monitor) -> Start:
    """Splats at the depths of a plane sweep, or at random where the cameras look if that finds nothing."""
    gaussians = scene_gaussians(views, count=wishes.splats("plane_sweep"), seed=wishes.seed, monitor=monitor)
    on_surfaces = bool((gaussians.scales.amin(1) < 0.99 * gaussians.scales.amax(1)).any())  # random ones are balls
    extra = torch.zeros(len(gaussians), (wishes.sh_degree + 1) ** 2 - gaussians.sh.shape[1], 3)
    gaussians = replace(gaussians, sh=torch.cat([gaussians.sh, extra], dim=1))
    return Start(gaussians, "plane_sweep" if on_surfaces else "random")
