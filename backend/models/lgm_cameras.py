"""LGM's camera set-up, made from any posed views of one object.

LGM was trained on cameras at one distance and with one field of view, all looking at the origin, in a world where the
first of them stands on the +Z axis, upright (Y is up). Any pinhole view can be brought there without a loss but what
falls outside the picture: turning a camera about its own centre and changing its lens only moves pixels, and the world
may be turned, shifted and scaled as one likes, because the result is mapped back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views, best_spread, look_at, rays

FACING_BACK = (1.0, -1.0, -1.0)  # OpenCV axes of a camera that looks along -Z with +Y up: right, down, forward
PARALLEL = 1e-3  # mean squared sine of the angles between the view axes and one line, below which they are parallel
FARTHEST = 2.0  # distances from the object may differ from the first view's by this factor
LOST = 0.1  # share of what a view shows that may fall outside the model's picture
SHRINK_FROM = 1.5  # source pixels a model's pixel, from which averaging is better than picking between four


@dataclass(frozen=True)
class Lens:
    """The one lens and distance a model is made for: pictures of `size` pixels a side, `fov` radians across them,
    taken from `radius` units away.
    """

    size: int
    fov: float
    radius: float


@dataclass(frozen=True)
class SetUp:
    """Views as LGM wants them.

    rgb       [V,3,S,S] float32, 0..1, over white
    cameras   V pinhole cameras in LGM's world (OpenCV camera axes, Y up), looking at the origin; the first one's
              rotation is that of an OpenGL identity and its centre (0, 0, radius)
    to_world  [4,4] float64, the similarity that maps LGM's world back to that of the views
    """

    rgb: Tensor
    cameras: Cameras
    to_world: Tensor


def set_up(views: Views, lens: Lens, *, count: int) -> SetUp:
    """`count` of the views, the first one among them, brought to LGM's lens, aim, distance and world.

    Raises BadInput where that cannot be done: too few or orthographic views, views that look at no common point or away
    from it, from distances that differ too much, or from so near that the object does not fit into the picture.
    """
    _check_kind(views.cameras, count)
    target = meeting_point(views.cameras)
    chosen = best_spread(views.cameras, target, count)
    cameras, images = views.cameras[chosen], views.images[chosen]
    distances = _check_aim(cameras, target, chosen)
    aimed = aim(cameras, target, lens)
    ink, cameras = _shrunk(_ink(images), cameras, aimed)
    if views.has_alpha:
        _check_shown(ink, cameras, aimed, chosen, lens)
    to_lgm = pin(aimed.c2w[0], float(distances[0]), lens.radius)
    return SetUp(1 + resample(ink[:, :3], cameras, aimed), moved(aimed, to_lgm), torch.linalg.inv(to_lgm))


def standard_cameras(lens: Lens, *, azimuths: tuple[float, ...], elevation: float) -> Cameras:
    """The cameras that LGM's own pictures are made with, in its world (Y up).

    azimuths   degrees; 0 stands on +Z, 90 on +X
    elevation  degrees, and LGM's sign: a positive one is below the object
    """
    around = torch.tensor(azimuths, dtype=torch.float64).deg2rad()
    below = torch.full_like(around, math.radians(elevation))
    places = torch.stack([below.cos() * around.sin(), -below.sin(), below.cos() * around.cos()], -1)
    c2w = look_at(lens.radius * places, torch.zeros(3, dtype=torch.float64), up=(0, 1, 0)).float()
    return _with_lens(c2w, lens)


# ---- where the views look


def meeting_point(cameras: Cameras) -> Tensor:
    """[3] float64, world: the point with the least squared distance to the rays through the pictures' middles."""
    axes, centres = _middle_rays(cameras), cameras.centres.double()
    across = torch.eye(3).to(axes) - axes[:, :, None] * axes[:, None, :]  # [V,3,3] removes what lies along an axis
    normal = across.sum(0)
    if float(torch.linalg.eigvalsh(normal)[0]) < PARALLEL * len(cameras):
        raise BadInput("c2w: expected views that look at one object from different sides, found parallel view axes")
    return torch.linalg.solve(normal, (across @ centres[:, :, None]).sum(0))[:, 0]


def _middle_rays(cameras: Cameras) -> Tensor:
    """[V,3] float64 unit directions in the world through the middles of the pictures, wherever the lens is shifted."""
    middle = torch.tensor([cameras.width / 2, cameras.height / 2]).to(cameras.Ks.double())
    plane = (middle - cameras.Ks[:, :2, 2]) / cameras.Ks[:, [0, 1], [0, 1]]
    ahead = torch.cat([plane, torch.ones_like(plane[:, :1])], dim=1)
    return F.normalize((cameras.c2w[:, :3, :3].double() @ ahead[:, :, None])[..., 0], dim=-1)


# ---- cameras


def aim(cameras: Cameras, target: Tensor, lens: Lens) -> Cameras:
    """The cameras with the model's lens, turned by the shortest way to look at the target; their centres stay."""
    c2w = cameras.c2w.double()
    forward, wanted = c2w[:, :3, 2], F.normalize(target - c2w[:, :3, 3], dim=-1)
    sine, cosine = torch.linalg.cross(forward, wanted), (forward * wanted).sum(-1)
    eye = torch.eye(3).to(sine)
    cross = torch.linalg.cross(eye.expand(len(sine), 3, 3), sine[:, None], dim=-1)  # [V,3,3] the matrix of sine x
    turn = eye + cross + cross @ cross / (1 + cosine)[:, None, None]  # Rodrigues
    c2w = torch.cat([torch.cat([turn @ c2w[:, :3, :3], c2w[:, :3, 3:]], dim=2), c2w[:, 3:]], dim=1)
    return _with_lens(c2w.float(), lens)


def _with_lens(c2w: Tensor, lens: Lens) -> Cameras:
    focal, middle = 0.5 * lens.size / math.tan(0.5 * lens.fov), lens.size / 2
    K = torch.tensor([[focal, 0, middle], [0, focal, middle], [0, 0, 1]], device=c2w.device)
    flat = torch.zeros(len(c2w), dtype=torch.bool, device=c2w.device)
    return Cameras(c2w, K.repeat(len(c2w), 1, 1), flat, lens.size, lens.size)


def pin(first: Tensor, distance: float, radius: float) -> Tensor:
    """[4,4] float64, world to LGM's world: a similarity that puts the camera `first` [4,4], which looks at the object
    from `distance`, at (0, 0, radius), upright and looking along -Z, so that the object lies at the origin.
    """
    rotation = torch.tensor(FACING_BACK).to(first.double())[:, None] * first[:3, :3].double().T
    matrix = torch.eye(4).to(rotation)
    matrix[:3, :3] = rotation * (radius / distance)
    matrix[:3, 3] = -matrix[:3, :3] @ first[:3, 3].double()
    matrix[2, 3] += radius
    return matrix


def moved(cameras: Cameras, matrix: Tensor) -> Cameras:
    """Pinhole cameras after a similarity [4,4] of their world: what they see is the same."""
    scale = torch.linalg.det(matrix[:3, :3]) ** (1 / 3)
    c2w = matrix @ cameras.c2w.double()
    c2w[:, :3, :3] /= scale
    return replace(cameras, c2w=c2w.float())


def pluecker(cameras: Cameras) -> Tensor:
    """[V,6,H,W] moment (origin x direction) and unit direction of the ray through each pixel's centre."""
    rays_o, rays_d = rays(cameras)
    return torch.cat([torch.linalg.cross(rays_o, rays_d), rays_d], dim=-1).permute(0, 3, 1, 2)


# ---- pictures


def _ink(images: Tensor) -> Tensor:
    """[V,4,H,W] of straight alpha [V,H,W,4]: the difference from white that a picture over white has, and its alpha.
    Both are 0 where nothing is, which is what lies outside of a picture.
    """
    rgb, alpha = images[..., :3], images[..., 3:]
    return torch.cat([(rgb - 1) * alpha, alpha], dim=-1).permute(0, 3, 1, 2)


def _shrunk(ink: Tensor, cameras: Cameras, wanted: Cameras) -> tuple[Tensor, Cameras]:
    """Pictures [V,C,H,W] averaged down until the pixels are no smaller than those wanted, and their cameras."""
    ratio = (cameras.Ks[:, [0, 1], [0, 1]] / wanted.Ks[:, [0, 1], [0, 1]]).amin(0).tolist()
    if max(ratio) < SHRINK_FROM:
        return ink, cameras
    width, height = (max(1, round(n / max(r, 1))) for n, r in zip((cameras.width, cameras.height), ratio, strict=True))
    small = F.interpolate(ink, (height, width), mode="bilinear", antialias=True)
    return small, cameras.resized(width, height)


def resample(planes: Tensor, cameras: Cameras, wanted: Cameras) -> Tensor:
    """[V,C,S,S] what `wanted` cameras would have taken from the centres where `cameras` took `planes` [V,C,H,W].

    Bilinear between pixel centres; 0 outside of the picture.
    """
    place, front = _carried(wanted, cameras)
    size = torch.tensor([cameras.width, cameras.height]).to(place)
    grid = torch.where(front, 2 * place / size - 1, 2.0)  # -1..1 over the picture, 2 lies outside
    return F.grid_sample(planes, grid.to(planes), mode="bilinear", padding_mode="zeros", align_corners=False)


def _carried(source: Cameras, goal: Cameras) -> tuple[Tensor, Tensor]:
    """Where the pixel centres of `source` appear in pictures taken from the same centres by `goal`.

    [V,H,W,2] float64 pixels, and [V,H,W,1] bool, whether that is in front of the goal's camera.
    """
    turn = goal.c2w[:, :3, :3].double().transpose(1, 2) @ source.c2w[:, :3, :3].double()
    homography = goal.Ks.double() @ turn @ torch.linalg.inv(source.Ks.double())  # [V,3,3]
    rows = torch.arange(source.height, device=turn.device) + 0.5
    columns = torch.arange(source.width, device=turn.device) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1).to(homography)  # [H,W,3]
    x, y, depth = (pixels @ homography.transpose(1, 2)[:, None]).split(1, -1)
    front = depth > 1e-6
    return torch.cat([x, y], -1) / torch.where(front, depth, 1.0), front


# ---- what cannot be brought to LGM's set-up


def _check_kind(cameras: Cameras, count: int) -> None:
    if len(cameras) < count:
        raise BadInput(f"views: LGM wants at least {count} views around the object, found {len(cameras)}")
    if bool(cameras.orthographic.any()):
        # A far pinhole sees the same, but its rays and sizes are like nothing LGM was trained on.
        view = int(cameras.orthographic.nonzero()[0])
        raise BadInput(f"views: LGM wants pinhole cameras, found an orthographic one (view {view})")


def _check_aim(cameras: Cameras, target: Tensor, names: list[int]) -> Tensor:
    """[V] distances to the target, which must lie inside every picture and at much the same distance from all."""
    offsets = target - cameras.centres.double()
    x, y, depth = (offsets[:, None] @ cameras.c2w[:, :3, :3].double())[:, 0].unbind(-1)
    focal, middle = cameras.Ks[:, [0, 1], [0, 1]], cameras.Ks[:, :2, 2]
    place = torch.stack([x, y], -1) / depth[:, None] * focal + middle
    size = torch.tensor([cameras.width, cameras.height]).to(place)
    good = (depth > 0) & ((place > 0) & (place < size)).all(1)
    distances = offsets.norm(dim=-1)
    for name, fine, ratio in zip(names, good.tolist(), (distances / distances[0]).tolist(), strict=True):
        if not fine:
            raise BadInput(f"c2w: LGM wants views that all look at one object, found that view {name} looks elsewhere")
        if not 1 / FARTHEST <= ratio <= FARTHEST:
            raise BadInput(
                f"c2w: LGM wants views from much the same distance, found view {name} {ratio:.2g} times as far from "
                "the object as view 0"
            )
    return distances


def _check_shown(ink: Tensor, cameras: Cameras, aimed: Cameras, names: list[int], lens: Lens) -> None:
    """Something must be there, and most of it must fit into the model's picture."""
    place, front = _carried(cameras, aimed)
    inside = (front & (place > 0) & (place < lens.size)).all(-1)
    alpha = ink[:, 3]
    total, kept = alpha.sum((1, 2)).tolist(), (alpha * inside).sum((1, 2)).tolist()
    for name, whole, part in zip(names, total, kept, strict=True):
        if whole <= 0:
            raise BadInput(f"images: expected an object in every view, found nothing in view {name}")
        if part < (1 - LOST) * whole:
            raise BadInput(
                f"views: LGM sees {math.degrees(lens.fov):.1f} degrees around the point the views look at, found that "
                f"view {name} shows {100 * (1 - part / whole):.0f}% of the object outside of it; move the camera back"
            )
