"""The Gaussians of a guided network that belong to no pixel: one for each voxel of the coarse grid that can be seen.

They stand behind and between those of the pixels, where no view looks and where the views contradict each other, and
look like the grid. A small network says of each voxel, from its neighbours and from what the views show there, how its
Gaussian differs from a ball.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.cameras import Cameras
from backend.gaussians import Gaussians, rgb_to_sh
from backend.hull import project
from backend.initialise import LEAST_PROMINENCE, WIDTH, cover_of
from backend.models.grm_grid_torch import TorchGrid
from backend.radiance_grid import RadianceGrid
from backend.scans import cameras_around

NEIGHBOURS = tuple(itertools.product((-1, 0, 1), repeat=3))
MIDDLE = NEIGHBOURS.index((0, 0, 0))
IN_VIEWS = 7  # numbers that tell what the views show at a voxel
FEATURES = 4 * len(NEIGHBOURS) + IN_VIEWS
NUMBERS = 14  # offset 3, scale 3, rotation 4, opacity 1, colour 3
HIDDEN = 128
LATTICE = 84  # voxels along the largest side of the box: finer than the grid's own, so that balls blur it less
STRIDE = 1.0  # way between the samples of a ray, voxels
FIRST_CHANGE = 0.002  # spread of the first weights of last layers, which say only what to change
CLEAREST = 0.98  # colours from 1 - this to this, and covers up to this, have a logit
NARROWEST, WIDEST = -2.0, 1.0  # logarithms of what a ball's size may be multiplied by
# Of what other views tell of a point, here and in `grm_guide.agreement`:
NEAR = 0.08  # network units from a view's surface at which a point counts a third as much as one on it
FARTHEST = 0.3  # before or behind a view's surface, as far as it is told
FEW = 0.1  # views' worth of doubt: a point that hardly any view shows has hardly any difference of colour


@dataclass(frozen=True)
class Voxels:
    """N voxels of one object.

    centres   [N,3] in the network's world
    colours   [N,3] sRGB, 0..1
    cover     [N] opacity of a ball that stands for the voxel, 0..1
    features  [N,FEATURES] what the network sees of each
    spacing   [] edge of a voxel
    """

    centres: Tensor
    colours: Tensor
    cover: Tensor
    features: Tensor
    spacing: Tensor


def voxels_of(fitted: RadianceGrid | TorchGrid, images: Tensor, surface: Tensor, cameras: Cameras) -> Voxels:
    """Those voxels of a grid, made finer, that its views or views from all around see.

    images   [V,R,R,4] straight alpha
    surface  [V,R,R] depth at which each pixel is seen to lie
    """
    fitted, device = fitted.finer(LATTICE), images.device
    corners = fitted.grid.centres()
    box = torch.stack([corners[0, 0, 0], corners[-1, -1, -1]]).numpy()
    size = 2 * max(fitted.grid.shape)
    groups = (cameras.resized(size, size), cameras_around(box, size))
    seen = torch.stack([fitted.prominence(group, STRIDE) for group in groups]).amax(0)
    rows = torch.nonzero(seen > LEAST_PROMINENCE, as_tuple=True)
    values = torch.as_tensor(fitted.values)
    chosen, centres = values[rows], corners.to(device)[rows]
    around = _neighbours(values, torch.as_tensor(fitted.free), rows)
    return Voxels(
        centres=centres,
        colours=chosen[:, 1:],
        cover=cover_of(chosen[:, 0]),
        features=torch.cat([around, _in_views(centres, chosen[:, 1:], images, surface, cameras)], dim=1),
        spacing=torch.tensor(fitted.grid.spacing, device=device),
    )


def _neighbours(values: Tensor, free: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
    """[N,108] how much each of the 27 voxels around blocks, and what its colour differs by from the middle one's, as
    far as it is seen; in the middle the colour itself.
    """
    block = torch.where(free, 1 - torch.exp(-F.softplus(values[..., 0])), 0.0)
    parts = []
    for step in NEIGHBOURS:
        place = tuple(row + by for row, by in zip(rows, step, strict=True))
        own = block[place][:, None]
        parts += [own, own * (values[place][:, 1:] - values[rows][:, 1:])]
    parts[2 * MIDDLE + 1] = values[rows][:, 1:] - 0.5
    return torch.cat(parts, dim=1)


def _in_views(centres: Tensor, colours: Tensor, images: Tensor, surface: Tensor, cameras: Cameras) -> Tensor:
    """[N,7] by all views whose surface is near: their mean difference of colour (3), how many they are, at most 1; then
    the least alpha of all views, how far the centre is before the surface of that view before whose surface it is most,
    in FARTHEST, and how near the nearest surface is.
    """
    shown = torch.cat([images, surface[..., None]], dim=-1).permute(0, 3, 1, 2)  # [V,5,R,R]
    size = torch.tensor([cameras.width, cameras.height], dtype=torch.float32, device=images.device)
    rows = []
    for view in range(len(cameras)):
        pixels, depth = project(centres, cameras, view)
        place = (2 * pixels / size - 1)[None, None]
        seen = F.grid_sample(shown[view : view + 1], place, padding_mode="border", align_corners=False)[0, :, 0].T
        gap = (depth - seen[:, 4]).clamp(-FARTHEST, FARTHEST)
        rows.append(torch.cat([seen[:, :4], gap[:, None]], dim=1))
    colour, alpha, gap = torch.stack(rows).split([3, 1, 1], dim=-1)  # [V,N,...]
    near = alpha * torch.exp(-((gap / NEAR) ** 2))
    weight = near.sum(0)
    difference = (near * (colour - colours)).sum(0) / (weight + FEW)
    before = torch.where(alpha > 0.5, gap, -FARTHEST).amin(0) / FARTHEST
    return torch.cat([difference, weight.clamp_max(1), alpha.amin(0), before, near.amax(0)], dim=1)


class Backdrop(nn.Module):
    """What makes a Gaussian of a voxel; it starts with balls as dense as the voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, NUMBERS)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=FIRST_CHANGE)
        nn.init.zeros_(last.bias)

    def forward(self, voxels: Voxels) -> Gaussians:
        """In the network's world, float32."""
        kind = next(self.parameters()).dtype
        said = self.layers(voxels.features.to(kind)).float()
        offset, size, turn, opacity, colour = said.split([3, 3, 4, 1, 3], dim=-1)
        return Gaussians(
            means=voxels.centres + 0.5 * voxels.spacing * torch.tanh(offset),
            quats=F.normalize(turn + torch.tensor([1.0, 0, 0, 0], device=turn.device), dim=-1),
            scales=WIDTH * voxels.spacing * size.clamp(NARROWEST, WIDEST).exp(),
            opacities=(voxels.cover.clamp(1 - CLEAREST, CLEAREST).logit() + opacity[:, 0]).sigmoid(),
            sh=rgb_to_sh((voxels.colours.clamp(1 - CLEAREST, CLEAREST).logit() + colour).sigmoid())[:, None],
        )
