"""The Gaussians that a per-scene optimisation of photographs without alpha starts from.

views -> depth, confidence      given, or by plane_sweep
      -> sure points            confirmed by other views, without those that other views see through
      -> depth of every pixel   its own, else that of the nearest sure point behind it, else smoothed from around it
      -> guessed points         where no sure point lies behind a pixel, without those that hide a sure point
      -> samples                one for each cell of a few pixels' size
      -> Gaussians              flat, across the surface
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor

from backend import sweep_kernels as kernels
from backend.cameras import Views
from backend.gaussians import SH_C0, Gaussians
from backend.guided_fill import guided_fill
from backend.hull import meeting_point, project
from backend.initialise import facing
from backend.monitor import Monitor
from backend.plane_sweep import Rig, first_span, rig_of, shrunk, sweep_depth

SIDE = 240  # pixels of the longer side of the pictures whose pixels become points
MOST_PIXELS = 4_000_000  # of all views together; many views are looked at more coarsely
LEAST_SURE = 0.02  # share of the pixels with confirmed depth below which stereo has found nothing
SURE, GUESSED = 0.9, 0.8  # opacities
WIDTH = 0.4  # standard deviation of a Gaussian in units of the distance to its neighbour
FLATNESS = 0.3  # thickness in units of the width, where the surface's direction is known
GUESSED_SHARE = 0.25  # of all Gaussians that guessed points may take
SEEN_THROUGH = 0.06  # relative distance by which a surface must lie behind a point for the view to see through it
OBJECTIONS = 2  # sure points that so many more views see through than confirm are dropped
EDGE_REACH = 4  # pixels from known depths within which a guess knows of a jump between them
JUMP = 0.1  # relative difference of depth between two surfaces
BEYOND = 2.0  # where exact depth shows no surface, background lies this many times as far as anything else
CELL_LEVELS = 2  # cell sizes to a factor of two
ROUNDS = 12  # bisections of the cell size


@dataclass(frozen=True)
class Samples:
    """P samples of what the views show.

    points     [P,3] world
    colours    [P,3] sRGB, 0..1
    normals    [P,3] unit, or zero where the direction is unknown
    sizes      [P] distance between neighbours, scene units
    opacities  [P] 0..1
    """

    points: Tensor
    colours: Tensor
    normals: Tensor
    sizes: Tensor
    opacities: Tensor

    def __len__(self) -> int:
        return self.points.shape[0]

    def __getitem__(self, rows: Tensor) -> Samples:
        return Samples(*(getattr(self, field.name)[rows] for field in fields(self)))

    def gaussians(self) -> Gaussians:
        """One a sample: a disc across the normal, a ball where there is none."""
        width = WIDTH * self.sizes
        oriented = self.normals.norm(dim=1) > 0.5
        return Gaussians(
            means=self.points,
            quats=facing(torch.where(oriented[:, None], self.normals, torch.tensor([0.0, 0.0, 1.0]))),
            scales=torch.stack([width, width, torch.where(oriented, FLATNESS * width, width)], dim=1),
            opacities=self.opacities,
            sh=(self.colours[:, None] - 0.5) / SH_C0,
        )


def together(parts: list[Samples]) -> Samples:
    return Samples(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Samples)))


def scene_gaussians(views: Views, *, count: int, seed: int, monitor: Monitor) -> Gaussians:
    """At most `count` Gaussians (harmonics of degree 0) on what the views show, the same for the same seed.

    Places come from `views.depth` where given, else from plane-sweep stereo; pixels without depth become background in
    line with their surroundings. Where stereo finds nothing (no texture, no parallax, a single view), they are random
    points where the cameras look. Alpha is ignored. Reports the stage "depth".
    """
    pictures = shrunk(views, _side_for(views))
    if views.depth is None:
        depth, confidence = sweep_depth(pictures, side=SIDE, monitor=monitor)
    else:
        size = (pictures.cameras.height, pictures.cameras.width)
        depth = F.interpolate(views.depth[:, None], size, mode="nearest-exact")[:, 0]
        confidence = (depth > 0).float()
    if float((confidence > 0).float().mean()) < LEAST_SURE:
        return _scattered(pictures, count, torch.Generator().manual_seed(seed)).gaussians()
    cloud = _Cloud(pictures, depth.numpy(), confidence.numpy(), exact=views.depth is not None)
    guessed = thinned(cloud.guessed(), round(GUESSED_SHARE * count))
    sure = thinned(cloud.sure(), count - len(guessed))
    return together([sure, guessed]).gaussians()


def _side_for(views: Views) -> int:
    cameras = views.cameras
    longer = max(cameras.width, cameras.height)
    return min(SIDE, max(16, int(longer * (MOST_PIXELS / (len(views) * cameras.width * cameras.height)) ** 0.5)))


def _scattered(views: Views, count: int, generator: torch.Generator) -> Samples:
    """`count` pixels at random depths around where the optical axes meet, or ahead where they do not."""
    rig = rig_of(views.cameras)
    axes = torch.stack([project(meeting_point(views.cameras), views.cameras, v)[1] for v in range(len(views))])
    nearest = torch.from_numpy(first_span(rig).near).float()
    reach = torch.where(axes > nearest, axes, 2 * nearest)
    picks = torch.randint(views.images[..., 0].numel(), (count,), generator=generator)
    factor = 2 ** (2 * torch.rand(count, generator=generator) - 1)
    spacing = math.sqrt(views.images[..., 0].numel() / count)
    parts = []
    for view in range(len(views)):
        chosen = picks // views.images[view, ..., 0].numel() == view
        pixels = picks[chosen] % views.images[view, ..., 0].numel()
        depth = (reach[view] * factor[chosen]).numpy()
        points = torch.from_numpy(_unprojected(rig, view, pixels.numpy(), depth)).float()
        size = spacing * torch.from_numpy(_footprint(rig, view, depth))
        colours, solid = views.images[view, ..., :3].reshape(-1, 3)[pixels], torch.full_like(size, GUESSED)
        parts.append(Samples(points, colours, torch.zeros_like(points), size, solid))
    return together(parts)


class _Cloud:
    """The points of all pixels of the views, sure and guessed ones."""

    def __init__(self, views: Views, depth: np.ndarray, confidence: np.ndarray, *, exact: bool) -> None:
        """depth, confidence [V,h,w] of the views; exact: whether depth 0 means that there is no surface."""
        self.rig = rig_of(views.cameras)
        self.images = views.images[..., :3]
        self.sure_depth = self._checked(np.where(confidence > 0, depth, 0).astype(np.float32), confidence)
        points = np.concatenate([_points(self.rig, view, d)[d > 0] for view, d in enumerate(self.sure_depth)])
        behind = kernels.nearest_depths(points, self.rig.viewmats, self.rig.lenses, *depth.shape[1:])
        self.covered = F.max_pool2d(torch.from_numpy(behind)[:, None], 3, 1, 1)[:, 0].numpy() > 0
        known = np.where(self.sure_depth > 0, self.sure_depth, behind)
        if exact:
            known = np.where(known > 0, known, BEYOND * known.max())
        self.depth = self._filled(known)

    def sure(self) -> Samples:
        return self._samples(self.sure_depth > 0, SURE)

    def guessed(self) -> Samples:
        samples = self._samples((self.sure_depth == 0) & ~self.covered, GUESSED)
        return samples[torch.from_numpy(self._objections(samples.points.double().numpy(), self.sure_depth) == 0)]

    def _checked(self, depth: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """The depth [V,h,w] without points that clearly more views see through than confirm."""
        checked = depth.copy()
        for view, d in enumerate(depth):
            shown = d > 0
            objections = self._objections(_points(self.rig, view, d)[shown], depth)
            votes = confidence[view][shown] * 4
            checked[view][shown] = np.where(objections > votes + OBJECTIONS - 1, 0, d[shown])
        return checked

    def _objections(self, points: np.ndarray, depth: np.ndarray) -> np.ndarray:
        return kernels.sees_through(points, self.rig.viewmats, self.rig.lenses, depth, SEEN_THROUGH)

    def _filled(self, known: np.ndarray) -> np.ndarray:
        """[V,h,w] depth everywhere, from [V,h,w] with zeros: even in inverse depth if the camera is a pinhole."""
        flat = self.rig.lenses[:, 4, None, None] > 0
        with np.errstate(divide="ignore"):
            place = np.where(known > 0, np.where(flat, known, 1 / known), 0)
        place = guided_fill(place, (known > 0).astype(float), self.images.numpy())
        with np.errstate(divide="ignore"):
            depth = np.where(flat, place, 1 / place)
        depth = _behind_edges(np.where(np.isfinite(depth), depth, 0), known)
        return np.where(known > 0, known, depth).astype(np.float32)

    def _samples(self, chosen: np.ndarray, opacity: float) -> Samples:
        """The chosen [V,h,w] pixels' points at their depth, each the size of its pixel."""
        chosen = chosen & (self.depth > 0)
        parts = []
        for view, depth in enumerate(self.depth):
            pick = torch.from_numpy(chosen[view])
            points = torch.from_numpy(_points(self.rig, view, depth))
            normals = _normals(points, torch.from_numpy(depth), float(1 / self.rig.lenses[view, 0]))
            footprint = torch.from_numpy(_footprint(self.rig, view, depth))
            solid = torch.full_like(footprint, opacity)
            parts.append(
                Samples(
                    points[pick].float(), self.images[view][pick], normals[pick].float(), footprint[pick], solid[pick]
                )
            )
        return together(parts)


def _points(rig: Rig, view: int, depth: np.ndarray) -> np.ndarray:
    """[h,w,3] float64 world points of a depth map [h,w]."""
    return _unprojected(rig, view, np.arange(depth.size), depth.ravel()).reshape(*depth.shape, 3)


def _unprojected(rig: Rig, view: int, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """[P,3] float64 world points of pixels [P], counted along the rows, at planar depths [P]."""
    fx, fy, cx, cy, orthographic = rig.lenses[view]
    u, v = pixels % rig.width + 0.5, pixels // rig.width + 0.5
    z = depth.astype(np.float64)
    scale = 1.0 if orthographic else z
    local = np.stack([(u - cx) / fx * scale, (v - cy) / fy * scale, z], axis=-1)
    return local @ rig.c2w[view, :3, :3].T + rig.c2w[view, :3, 3]


def _behind_edges(filled: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[V,h,w] `filled` depth, but the farther one beside a jump of the `known` depth: what one view alone sees there is
    what the nearer surface hides from the others."""
    window = (1, 2 * EDGE_REACH + 1, 2 * EDGE_REACH + 1)
    farthest = maximum_filter(known, window)
    nearest = minimum_filter(np.where(known > 0, known, np.inf), window)
    return np.where(farthest > (1 + JUMP) * nearest, farthest, filled)


def _footprint(rig: Rig, view: int, depth: np.ndarray) -> np.ndarray:
    """[...] float32 the size of a pixel at each depth [...], scene units."""
    scale = np.ones_like(depth) if rig.lenses[view, 4] else depth
    return (scale / rig.lenses[view, 0]).astype(np.float32)


def _normals(points: Tensor, depth: Tensor, pixel: float) -> Tensor:
    """[h,w,3] unit normals of world points [h,w,3]; zero at the frame and where the depth jumps."""
    normals = torch.zeros_like(points)
    if min(depth.shape) < 3:
        return normals
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    steep = torch.maximum((depth[1:-1, 2:] - depth[1:-1, :-2]).abs(), (depth[2:, 1:-1] - depth[:-2, 1:-1]).abs())
    smooth = steep < 12 * pixel * depth[1:-1, 1:-1]
    normals[1:-1, 1:-1] = torch.where(smooth[..., None], F.normalize(torch.linalg.cross(down, across), dim=-1), 0.0)
    return normals


def thinned(samples: Samples, limit: int) -> Samples:
    """At most `limit` samples: the means over cubic cells whose edge is some common multiple of the samples' size."""
    if len(samples) <= limit:
        return samples
    low, high = 1.0, 2.0
    while int(_cells(samples, high).max()) + 1 > limit:
        low, high = high, 2 * high
    for _ in range(ROUNDS):
        middle = (low * high) ** 0.5
        enough = int(_cells(samples, middle).max()) + 1 <= limit
        low, high = (low, middle) if enough else (middle, high)
    return _means(samples, _cells(samples, high), high)


def _cells(samples: Samples, multiple: float) -> Tensor:
    """[P] number of the cell of each sample: cells are cubes in a lattice of their own for each size."""
    level = (CELL_LEVELS * torch.log2(samples.sizes.double() * multiple)).round()
    edge = 2 ** (level / CELL_LEVELS)
    index = ((samples.points.double() - samples.points.amin(0)) / edge[:, None]).floor().long()
    # one number for a place in the lattices; the odd factors keep different places apart in 64 bits
    key = ((index[:, 0] * 0x9E3779B97F4A7C1 + index[:, 1]) * 0x2545F4914F6CDD1D + index[:, 2]) * 0x5851F42D4C957F2D
    return torch.unique(key + level.long(), return_inverse=True)[1]


def _means(samples: Samples, cell: Tensor, multiple: float) -> Samples:
    count = int(cell.max()) + 1
    share = torch.zeros(count).index_add_(0, cell, torch.ones(len(samples)))[:, None]
    points, colours, normals, sizes, opacities = (
        torch.zeros(count, values.shape[1]).index_add_(0, cell, values) / share
        for values in (
            samples.points,
            samples.colours,
            samples.normals,
            samples.sizes[:, None],
            samples.opacities[:, None],
        )
    )
    agree = normals.norm(dim=1, keepdim=True) > 0.7
    return Samples(
        points, colours, torch.where(agree, F.normalize(normals, dim=1), 0.0), sizes[:, 0] * multiple, opacities[:, 0]
    )
