"""The CPU rasteriser: project, sort and bin, blend; and back. One autograd function over all cameras of a call."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from backend.binning import Bins, bin_splats, sort_by_depth
from backend.blending import blend, blend_backward
from backend.cameras import Cameras
from backend.gaussians import Gaussians
from backend.projection import MEAN_X, MEAN_Y, SPLAT_COLUMNS, Lens, Scene, project, project_backward


@dataclass(frozen=True)
class Pass:
    """What the backward pass needs of one camera's forward pass."""

    lens: Lens
    order: np.ndarray  # [n] Gaussian of each splat
    splats: np.ndarray  # [n,SPLAT_COLUMNS] nearest first
    bins: Bins
    image: np.ndarray  # [H,W,5] colour, depth, alpha


def rasterise(gaussians: Gaussians, cameras: Cameras, screen_offsets: Tensor | None = None) -> Tensor:
    """[V,H,W,5] float32: premultiplied colour, depth (sum of weight times z), alpha; differentiable by the Gaussians.

    screen_offsets  None or [V,N,2], pixels, added to the projected centres. Zeros that require a gradient receive the gradient
                    by the centres in the plane, which is what densification looks at.
    Gaussians that are not finite are left out. Raises MemoryError when a view needs too many tile pairs (see `bin_splats`).
    """
    fields = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh)
    return _Rasterise.apply(lenses(cameras), screen_offsets, *(field.float().contiguous() for field in fields))


def lenses(cameras: Cameras) -> list[Lens]:
    """The cameras as the kernels take them."""
    viewmats, Ks = cameras.viewmats.detach().double().cpu().numpy(), cameras.Ks.detach().double().cpu().numpy()
    centres = cameras.centres.detach().double().cpu().numpy()
    return [
        Lens(
            viewmat=np.ascontiguousarray(viewmats[view]),
            centre=np.ascontiguousarray(centres[view]),
            fx=float(Ks[view, 0, 0]),
            fy=float(Ks[view, 1, 1]),
            cx=float(Ks[view, 0, 2]),
            cy=float(Ks[view, 1, 2]),
            width=cameras.width,
            height=cameras.height,
            orthographic=bool(cameras.orthographic[view]),
        )
        for view in range(len(cameras))
    ]


def rasterise_view(scene: Scene, lens: Lens, offsets: np.ndarray | None, image: np.ndarray) -> Pass:
    """Render one camera into `image` [H,W,5]."""
    workers = numba.get_num_threads()
    splats = np.empty((len(scene.means), SPLAT_COLUMNS), np.float32)
    depths = np.empty(len(scene.means), np.float32)
    project(scene, lens, workers, splats, depths)
    if offsets is not None:
        splats[:, [MEAN_X, MEAN_Y]] += offsets
    splats, order = sort_by_depth(splats, depths)
    bins = bin_splats(splats, lens.width, lens.height, chunks=workers)
    blend(splats, bins, workers, image)
    return Pass(lens, order, splats, bins, image)


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cameras: list[Lens], screen_offsets: Tensor | None, *fields: Tensor) -> Tensor:
        scene = Scene(*(field.detach().numpy() for field in fields))
        offsets = None if screen_offsets is None else screen_offsets.detach().numpy()
        width, height = (cameras[0].width, cameras[0].height) if cameras else (0, 0)
        images = torch.empty(len(cameras), height, width, 5)
        passes = [
            rasterise_view(scene, lens, None if offsets is None else offsets[view], images.numpy()[view])
            for view, lens in enumerate(cameras)
        ]
        ctx.save_for_backward(*fields, images)
        ctx.passes = passes if any(ctx.needs_input_grad) else None
        return images

    @staticmethod
    def backward(ctx, *image_grads: Tensor) -> tuple[Tensor | list | None, ...]:
        *fields, _ = ctx.saved_tensors
        scene = Scene(*(field.detach().numpy() for field in fields))
        field_grads = [torch.zeros_like(field) for field in fields]
        grads = Scene(*(grad.numpy() for grad in field_grads))
        image_grad = image_grads[0].contiguous().numpy()
        centre_grads = torch.zeros(len(ctx.passes), len(scene.means), 2) if ctx.needs_input_grad[1] else None
        workers = numba.get_num_threads()
        for view, done in enumerate(ctx.passes):
            splat_grads = blend_backward(done.splats, done.bins, workers, done.image, image_grad[view])
            project_backward(scene, done.lens, workers, done.order, done.splats, splat_grads, grads)
            if centre_grads is not None:
                centre_grads.numpy()[view, done.order] = splat_grads[:, [MEAN_X, MEAN_Y]]
        return None, centre_grads, *field_grads
