"""GRM, our own setting: first the surface itself, which our data knows, then pictures as in the paper (section 3.3).

That the depths, sizes and turns of the Gaussians are told directly needs no rasteriser and leaves nothing to guess; the
pictures then settle what the surface does not say: colours, edges, what no view sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.bad_input import BadInput
from backend.cameras import Cameras, Views
from backend.gaussians import Gaussians, transform
from backend.models.grm import GRM, PRESETS, GRMConfig, config_from, placed_object
from backend.models.grm_cameras import object_window
from backend.models.grm_config import config_data
from backend.models.grm_gaussians import RawGaussians, activate
from backend.projection import ALPHA_MIN
from backend.recipes import Batch
from backend.recipes.targets import picture_terms

__all__ = ["MODEL", "PRESETS", "WEIGHTS", "config_data", "config_from", "loss", "predict"]

MODEL = GRM
WEIGHTS = {"depth": 0.0, "shape": 0.0, "rgb": 1.0, "alpha": 1.0, "perceptual": 0.2}
NEAR_DEPTH = 0.03  # network units: depth errors below this count by their square
NEAR_SHAPE = 0.1  # squared pixels, the same for covariances
SOLID = 0.5  # alpha of a pixel that has a surface of its own
ACROSS, THROUGH = 0.6, 0.1  # pixels that a Gaussian on a surface should measure along it and through it
STEEPEST = 4.0  # pixels that a step to the next pixel may lead away
TOLD = 0.4  # share of objects of which the network is told the depth, as captures of a scene have it


@dataclass(frozen=True)
class _Placed:
    """A batch's inputs as the network wants them, and what their pixels show.

    images   [B,V,4,R,R] as `GRM.forward` takes them
    cameras  of each object
    outward  of each object [4,4], to the batch's world
    depth    [B,V,R,R] network units; 0 where the true depth is not known
    normals  [B,V,R,R,3] in the network's world
    """

    images: Tensor
    cameras: list[Cameras]
    outward: list[Tensor]
    depth: Tensor
    normals: Tensor


def loss(
    model: GRM, batch: Batch, share: float, rng: torch.Generator, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """See `backend.recipes.Recipe`. `depth`: how far depths are off; `shape`: how unlike flat tiles on the surface."""
    del share
    placed = _place(model.config, batch)
    told = torch.rand(len(batch), generator=rng) < TOLD
    raw = _run(model, placed, torch.where(told.to(placed.depth.device)[:, None, None, None], placed.depth, 0.0))
    gaussians = activate(raw, model.config)
    terms = {}
    if weights["depth"] or weights["shape"]:
        depth, shape = surface_terms(raw, gaussians, placed.images, placed.depth, placed.normals, placed.cameras)
        terms = {"depth": weights["depth"] * depth, "shape": weights["shape"] * shape}
    return terms | picture_terms(_outward(gaussians, placed), batch, weights, rng)


def predict(model: GRM, batch: Batch) -> list[Gaussians]:
    """See `backend.recipes.Recipe`."""
    placed = _place(model.config, batch)
    return _outward(activate(_run(model, placed, None), model.config), placed)


def _run(model: GRM, placed: _Placed, depth: Tensor | None) -> RawGaussians:
    c2w = torch.stack([cameras.c2w for cameras in placed.cameras]).to(placed.images)
    Ks = torch.stack([cameras.Ks for cameras in placed.cameras]).to(placed.images)
    kinds = torch.stack([cameras.orthographic for cameras in placed.cameras]).to(placed.images.device)
    raw = model(placed.images, c2w, Ks, kinds, depth)
    whole = {field.name: getattr(raw, field.name).float() for field in fields(raw) if field.name != "backdrop"}
    return RawGaussians(**whole, backdrop=raw.backdrop)


def _outward(gaussians: list[Gaussians], placed: _Placed) -> list[Gaussians]:
    """In the batch's world, without those that no picture can show."""
    visible = [one[one.opacities.detach() >= ALPHA_MIN] for one in gaussians]
    return [transform(one, matrix) for one, matrix in zip(visible, placed.outward, strict=True)]


def _place(config: GRMConfig, batch: Batch) -> _Placed:
    """Pictures that are smaller than the network's are taken as they are, where it takes such.

    Raises BadInput for a network that is not guided: the published setting needs the published data.
    """
    if not config.guided:
        raise BadInput("network: expected a guided GRM, our own setting; the published one is not trained here")
    side = next((side for side in config.sides if side <= batch.images.shape[2]), config.sides[-1])
    middle = None if batch.inputs > 1 else torch.zeros(3)  # a single view does not tell how far the object is
    rows = []
    for item in range(len(batch)):
        views = Views(batch.images[item, : batch.inputs], batch.cameras(item)[: batch.inputs])
        pictures, cameras, outward, _ = placed_object(views, side, middle)
        surface = torch.cat([batch.depth[item, : batch.inputs, ..., None], batch.normals[item, : batch.inputs]], -1)
        cut = [
            object_window(image[..., 3]).cut(planes.permute(2, 0, 1), side, "nearest")
            for image, planes in zip(views.images, surface, strict=True)
        ]
        rows.append((2 * pictures - 1, cameras, outward, torch.stack(cut)))
    images, cameras, outward, surface = zip(*rows, strict=True)
    scales = torch.stack([torch.linalg.det(matrix[:3, :3]) ** (1 / 3) for matrix in outward]).to(images[0])
    turns = torch.stack([matrix[:3, :3] for matrix in outward]).to(images[0]) / scales[:, None, None]
    depth, normals = torch.stack(surface).split([1, 3], dim=2)
    return _Placed(
        images=torch.stack(images),
        cameras=list(cameras),
        outward=list(outward),
        depth=depth[:, :, 0] / scales[:, None, None, None],
        normals=normals.permute(0, 1, 3, 4, 2) @ turns[:, None, None],
    )


def surface_terms(
    raw: RawGaussians,
    gaussians: list[Gaussians],
    images: Tensor,
    depth: Tensor,
    normals: Tensor,
    cameras: list[Cameras],
) -> tuple[Tensor, Tensor]:
    """[], []: means over the objects, of what depths and shapes are off on average where the surface is known; 0 where
    it nowhere is.

    The shape of a Gaussian is its covariance in squared pixels; what it should be is a flat tile that covers its pixel
    on a surface with the true normal.
    """
    solid = (images[:, :, 3] > 2 * SOLID - 1) & (depth > 0)  # [B,V,R,R]
    rows = []
    for item, one in enumerate(gaussians):
        known = solid[item]
        off = F.smooth_l1_loss(raw.depth[item][known], depth[item][known], beta=NEAR_DEPTH, reduction="none")
        known = known & normals[item].any(-1)  # some data says how far a surface is, but not how it is turned
        unit = raw.unit[item].view(known.shape)[known]
        got = one[: known.numel()][known.flatten()].covariances / unit[:, None, None] ** 2
        want = tile_covariances(normals[item], cameras[item])[known]
        unlike = F.smooth_l1_loss(got, want, beta=NEAR_SHAPE, reduction="none")
        rows.append(torch.stack([errors.sum() / max(errors.numel(), 1) for errors in (off, unlike)]))
    depths, shapes = torch.stack(rows).mean(0).unbind()
    return depths, shapes


def tile_covariances(normals: Tensor, cameras: Cameras) -> Tensor:
    """[V,R,R,3,3] of tiles with these normals [V,R,R,3] that each cover a pixel; in squared pixel widths, world axes.

    From a pixel to the next on the plane of the tile, the way leads along the picture's axis and along the ray.
    """
    axes, focal = cameras.c2w[:, :3, :3].to(normals), cameras.Ks[:, [0, 1], [0, 1]].to(normals)
    rows = torch.arange(cameras.height).to(normals) + 0.5
    columns = torch.arange(cameras.width).to(normals) + 0.5
    x = (columns - cameras.Ks[:, :1, 2].to(normals)) / focal[:, :1]  # [V,W]
    y = (rows - cameras.Ks[:, 1, 2:].to(normals)) / focal[:, 1:]  # [V,H]
    flat = cameras.orthographic.to(normals.device)[:, None]
    x, y = torch.where(flat, 0.0, x)[:, None, :, None], torch.where(flat, 0.0, y)[:, :, None, None]
    right, down, forward = (axes[:, None, None, :, axis] for axis in range(3))
    ray = forward + x * right + y * down  # [V,H,W,3]
    tall = (focal[:, 0] / focal[:, 1])[:, None, None, None]  # a pixel's height in its widths
    facing = (normals * ray).sum(-1, keepdim=True)
    facing = torch.where(facing.abs() < 1e-3, -1e-3, facing)
    steps = [
        axis - ((normals * axis).sum(-1, keepdim=True) / facing).clamp(-STEEPEST, STEEPEST) * ray
        for axis in (right, tall * down)
    ]
    spread = [ACROSS * step for step in steps] + [THROUGH * normals]
    return torch.stack([part[..., :, None] * part[..., None, :] for part in spread]).sum(0)
