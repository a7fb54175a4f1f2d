"""The CPU rasteriser: project, sort and bin, blend; and back. One autograd function over all cameras of a call.

Constants and behaviour are those of gsplat's classic mode; `projection.py` holds them in one table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from backend.binning import Bins, bin_splats, sort_by_depth
from backend.blending import blend, blend_backward, sum_pairs
from backend.cameras import Cameras
from backend.gaussians import Gaussians
from backend.median import blend_median
from backend.projection import MEAN_X, MEAN_Y, SPLAT_COLUMNS, Lens, Scene, lenses, project, project_backward


@dataclass(frozen=True)
class Plane:
    """What one camera sees, ready to blend.

    splats    [N,SPLAT_COLUMNS] by Gaussian; undefined where depths is HIDDEN
    depths    [N] camera z or HIDDEN
    order     [n] Gaussian of each visible splat, nearest first
    sorted    [n,SPLAT_COLUMNS] splats[order]
    """

    lens: Lens
    splats: np.ndarray
    depths: np.ndarray
    order: np.ndarray
    sorted: np.ndarray
    bins: Bins


def rasterise(gaussians: Gaussians, cameras: Cameras, screen_offsets: Tensor | None = None) -> Tensor:
    """[V,H,W,5] float32: premultiplied colour, depth (sum of weight times z), alpha; differentiable by the Gaussians.

    screen_offsets  None or [V,N,2], pixels, added to the projected centres. Zeros that require a gradient receive the
                    gradient by the centres in the plane, which is what densification looks at.
    Gaussians that are not finite are left out. Raises MemoryError when a view needs too many tile pairs (see
    `bin_splats`).
    """
    fields = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh)
    contiguous = (field.float().contiguous() for field in fields)
    # torch leaves the type of apply() open
    return _Rasterise.apply(cameras, screen_offsets, *contiguous)  # type: ignore[return-value]


def rasterise_median_depth(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """[V,H,W] float32 camera z of the Gaussian at which a pixel's transmittance falls to one half or less, 0 where none
    does.
    """
    scene = Scene(
        *(
            field.detach().float().contiguous().numpy()
            for field in (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh)
        )
    )
    depth = torch.empty(len(cameras), cameras.height, cameras.width)
    workers = numba.get_num_threads()
    for view, lens in enumerate(lenses(cameras)):
        plane = prepare(scene, lens, workers)
        blend_median(plane.sorted, plane.bins, workers, depth.numpy()[view])
    return depth


def prepare(scene: Scene, lens: Lens, workers: int, screen_offsets: np.ndarray | None = None) -> Plane:
    """Project, sort and bin the Gaussians for one camera; `screen_offsets` [N,2] as in `rasterise`."""
    splats = np.empty((len(scene.means), SPLAT_COLUMNS), np.float32)
    depths = np.empty(len(scene.means), np.float32)
    project(scene, lens, workers, splats, depths)
    if screen_offsets is not None:
        splats[:, MEAN_X] += screen_offsets[:, 0]
        splats[:, MEAN_Y] += screen_offsets[:, 1]
    nearest_first, order = sort_by_depth(splats, depths, workers)
    bins = bin_splats(nearest_first, lens.width, lens.height, workers=workers)
    return Plane(lens, splats, depths, order, nearest_first, bins)


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cameras: Cameras, screen_offsets: Tensor | None, *fields: Tensor) -> Tensor:
        scene = Scene(*(field.detach().numpy() for field in fields))
        offsets = None if screen_offsets is None else screen_offsets.detach().float().numpy()
        images = torch.empty(len(cameras), cameras.height, cameras.width, 5)
        workers, keep = numba.get_num_threads(), any(ctx.needs_input_grad)
        planes = []
        for view, lens in enumerate(lenses(cameras)):
            plane = prepare(scene, lens, workers, None if offsets is None else offsets[view])
            blend(plane.sorted, plane.bins, workers, images.numpy()[view])
            if keep:
                planes.append(plane)
        ctx.planes = planes
        ctx.save_for_backward(*fields, images)
        return images

    @staticmethod
    def backward(ctx, *image_grads: Tensor) -> tuple[Tensor | None, ...]:
        *fields, images = ctx.saved_tensors
        scene = Scene(*(field.detach().numpy() for field in fields))
        field_grads = [torch.zeros_like(field) for field in fields]
        grads = Scene(*(grad.numpy() for grad in field_grads))
        screen_grads = torch.zeros(len(images), len(scene.means), 2) if ctx.needs_input_grad[1] else None
        image_grad, workers = image_grads[0].contiguous().numpy(), numba.get_num_threads()
        for view, plane in enumerate(ctx.planes):
            pair_grads = blend_backward(plane.sorted, plane.bins, workers, images.numpy()[view], image_grad[view])
            splat_grads = sum_pairs(plane.bins, workers, pair_grads, plane.order, len(scene.means))
            project_backward(scene, plane.lens, workers, plane.splats, plane.depths, splat_grads, grads)
            if screen_grads is not None:
                seen = torch.from_numpy(np.isfinite(plane.depths))
                screen_grads[view] = torch.where(
                    seen[:, None], torch.from_numpy(splat_grads[:, MEAN_X : MEAN_Y + 1]), 0
                )
        return None, screen_grads, *field_grads
