"""What Long-LRM wants of cameras and pictures: a frame and scale of its own, well spread views, whole patches.

The published data loader's rules, with an answer for the cases where they have none (cameras in a ring, or all at one
place) and without its slight distortion of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views

VANISHING = 1e-3  # an average of unit vectors shorter than this points nowhere
ONE_PLACE = 1e-6  # of the farthest coordinate: cameras nearer to one another than this stand at one place
CHOOSING_REACH = 10.0  # scene units: views are chosen as in a world whose cameras reach so far, as COLMAP's do
KMEANS_STEPS = 300
KMEANS_TOLERANCE = 1e-4  # of the variance of the points, for the squared distance that all centres move together


@dataclass(frozen=True)
class SetUp:
    """Views as Long-LRM wants them.

    images    [V,3,H,W] float32, 0..1, over white; H and W are multiples of the patch
    cameras   V pinhole cameras in the normalised world
    to_world  [4,4] float64, the similarity that maps the normalised world back to that of the views
    """

    images: Tensor
    cameras: Cameras
    to_world: Tensor


def set_up(views: Views, *, multiple: int, scene_scale: float, most_views: int, longest_side: int) -> SetUp:
    """At most `most_views` of the views, at most about `longest_side` pixels wide or high, in the normalised world.

    multiple     H and W become multiples of it
    scene_scale  see `normalise`
    Raises BadInput for orthographic views, whose rays the network has never seen.
    """
    flat = views.cameras.orthographic.nonzero()[:, 0].tolist()
    if flat:
        raise BadInput(f"orthographic: Long-LRM wants perspective views, found view {flat[0]} orthographic")
    chosen = well_spread(views.cameras.c2w, most_views)
    height, width = size_for(views.cameras.height, views.cameras.width, multiple=multiple, longest_side=longest_side)
    images, cameras = over_white(views.images[chosen]), views.cameras[chosen]
    images, cameras = crop(*cover(images, cameras, height, width), height, width)
    c2w, to_world = normalise(cameras.c2w, scene_scale)
    return SetUp(images, replace(cameras, c2w=c2w), to_world)


# ---- the normalised world


def normalise(c2w: Tensor, scene_scale: float) -> tuple[Tensor, Tensor]:
    """c2w [V,4,4] in the frame of the average camera, scaled, and the similarity [4,4] float64 that leads back.

    scene_scale  the farthest coordinate of any camera becomes 1 / scene_scale. 1 in the published code; the published
                 weights want 1.35
    Cameras that all stand at one place tell no scale: the world's unit is kept then, over `scene_scale`.
    """
    average = average_pose(c2w)
    seen = torch.linalg.inv(average) @ c2w.double()
    reach = seen[:, :3, 3].abs().max()
    apart = reach > ONE_PLACE * c2w[:, :3, 3].abs().max()
    reach = torch.where(apart, reach, 1.0) * scene_scale
    seen[:, :3, 3] /= reach
    to_world = average.clone()
    to_world[:3, :3] *= reach
    return seen.to(c2w.dtype), to_world


def average_pose(c2w: Tensor) -> Tensor:
    """[4,4] float64: the mean position, with Z along the mean viewing direction and Y as near the mean downward
    direction as a right angle allows.

    A mean that vanishes (cameras that look outwards or inwards in a level ring), or a downward one that lies along
    the viewing direction (a raised ring), gives way to the first camera's direction.
    """
    axes, first = c2w[:, :3, :3].double().mean(0), c2w[0, :3, :3].double()
    forward = _direction([axes[:, 2], first[:, 2]])
    down = _direction([_across(axis, forward) for axis in (axes[:, 1], first[:, 1], first[:, 0])])
    pose = torch.eye(4, dtype=torch.float64, device=c2w.device)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = torch.linalg.cross(down, forward), down, forward
    pose[:3, 3] = c2w[:, :3, 3].double().mean(0)
    return pose


def _across(vector: Tensor, forward: Tensor) -> Tensor:
    return vector - (vector @ forward) * forward


def _direction(candidates: Sequence[Tensor]) -> Tensor:
    """The first of the vectors that has a direction, as a unit vector; the last one for want of a better."""
    for vector in candidates[:-1]:
        if float(vector.norm()) > VANISHING:
            return F.normalize(vector, dim=0)
    return F.normalize(candidates[-1], dim=0)


# ---- which views


def well_spread(c2w: Tensor, most: int) -> list[int]:
    """Indices of at most `most` views that stand and look as differently as possible, in ascending order.

    The published rule weighs positions, in the units of the world, against directions. Worlds come in all units here,
    so that they are brought to those that the published choices were made in; the choice does not depend on them.
    """
    if len(c2w) <= most:
        return list(range(len(c2w)))
    return sorted(set(k_means_views(normalise(c2w, 1 / CHOOSING_REACH)[0], most)))


def k_means_views(c2w: Tensor, count: int) -> list[int]:
    """`count` indices in ascending order, by the published rule: the views nearest to the centres of k-means clusters
    of positions and viewing directions, in the given world. Two centres may share a view.
    """
    points = torch.cat([c2w[:, :3, 3], c2w[:, :3, 2]], dim=1).double().cpu().numpy()
    centres = _k_means(points, count)
    return sorted(int(_squared_distances(centre[None], points).argmin()) for centre in centres)


def _k_means(points: np.ndarray, count: int) -> np.ndarray:
    """[count,D] centres after Lloyd's algorithm, the same as scikit-learn's KMeans with random_state 0 gives, which
    the published choices of views come from.
    """
    mean = points.mean(0)
    points = points - mean
    centres = _spread_centres(points, count, np.random.RandomState(0))
    tolerance, labels = KMEANS_TOLERANCE * points.var(0).mean(), np.full(len(points), -1)
    for _ in range(KMEANS_STEPS):
        distances = _squared_distances(centres, points)  # [count,N]
        before, labels = labels, distances.argmin(0)
        moved = _means(points, labels, distances.min(0), count)
        shift, centres = ((moved - centres) ** 2).sum(), moved
        if (labels == before).all() or shift <= tolerance:
            break
    return centres + mean


def _spread_centres(points: np.ndarray, count: int, random: np.random.RandomState) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): one centre after the other, drawn by its squared distance from those
    there are; the best of a few draws is kept.
    """
    draws = 2 + int(np.log(count))
    chosen = [int(random.choice(len(points), p=np.full(len(points), 1 / len(points))))]
    nearest = _squared_distances(points[chosen], points)[0]
    for _ in range(1, count):
        draw = random.uniform(size=draws) * nearest.sum()
        candidates = np.searchsorted(nearest.cumsum(), draw).clip(max=len(points) - 1)
        remaining = np.minimum(nearest, _squared_distances(points[candidates], points))  # [draws,N]
        best = remaining.sum(1).argmin()
        chosen.append(int(candidates[best]))
        nearest = remaining[best]
    return points[chosen]


def _means(points: np.ndarray, labels: np.ndarray, distances: np.ndarray, count: int) -> np.ndarray:
    """[count,D] means of the clusters. Empty ones get the points that are farthest from their own centres."""
    empty = np.setdiff1d(np.arange(count), labels)
    labels = labels.copy()
    labels[np.argsort(-distances, kind="stable")[: len(empty)]] = empty
    members = labels == np.arange(count)[:, None]  # [count,N]
    return members @ points / np.maximum(members.sum(1, keepdims=True), 1)


def _squared_distances(centres: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[K,N]"""
    return ((centres[:, None] - points[None]) ** 2).sum(-1)


# ---- pictures in whole patches


def over_white(images: Tensor) -> Tensor:
    """[V,3,H,W] of straight-alpha [V,H,W,4]."""
    rgb, alpha = images[..., :3], images[..., 3:]
    return (rgb * alpha + (1 - alpha)).permute(0, 3, 1, 2)


def size_for(height: int, width: int, *, multiple: int, longest_side: int) -> tuple[int, int]:
    """(height, width) in multiples of a patch nearest to the picture's own, or to the smaller ones that keep within
    `longest_side`; at least one patch.
    """
    shrink = min(1.0, longest_side / max(height, width))
    scale = max(shrink, multiple / min(height, width))
    return round(height * scale / multiple) * multiple, round(width * scale / multiple) * multiple


def cover(images: Tensor, cameras: Cameras, height: int, width: int) -> tuple[Tensor, Cameras]:
    """Pictures [V,3,H,W] and cameras resized alike in both directions, so that they just cover the size."""
    scale = max(height / cameras.height, width / cameras.width)
    size = (max(height, round(cameras.height * scale)), max(width, round(cameras.width * scale)))
    return resize(images, cameras, *size)


def resize(images: Tensor, cameras: Cameras, height: int, width: int) -> tuple[Tensor, Cameras]:
    """Pictures [V,3,H,W] and cameras at another size: bilinear as published, averaging where that would skip pixels."""
    if (cameras.height, cameras.width) == (height, width):
        return images, cameras
    skips = 2 * height < cameras.height or 2 * width < cameras.width
    images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=skips)
    return images, cameras.resized(width, height)


def crop(images: Tensor, cameras: Cameras, height: int, width: int) -> tuple[Tensor, Cameras]:
    """The middle of pictures [V,3,H,W], and their cameras."""
    top, left = (cameras.height - height) // 2, (cameras.width - width) // 2
    Ks = cameras.Ks.clone()
    Ks[:, 0, 2] -= left
    Ks[:, 1, 2] -= top
    return images[..., top : top + height, left : left + width], replace(cameras, Ks=Ks, width=width, height=height)
