"""One object in one picture: cut out as networks for a single picture want it, and put back where its camera saw it.

    view, mask  ->  window around the object  ->  camera that looks at its middle  ->  square picture  ->  network
                                                          |
    world  <-  similarity from the network's own space  <-+-  the camera the network believes to look through

Focal lengths differ: a network has one in mind, a view has its own. The object keeps the network's shape all the same,
and gets the size at which it looks as large in the view as its mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views, look_at, rays
from backend.compositing import premultiplied
from backend.hull import meeting_point
from backend.ray_marching import Marched
from backend.triplane import Triplane

GRID = 32  # points a side of the density grid that tells how far an object reaches
PIXELS = 32  # of a side of the small picture that tells how large it looks and where its front is
NEAREST = 0.1  # share of the canonical camera's distance; what is nearer to it has no size in its picture
LEAST_AREA = 1e-3  # share of the picture; what draws less has drawn nothing
ORIGIN_IN_VIEW = (
    0.5  # cosine of the widest angle to a camera's axis at which the world's origin is a hint of its object
)


@dataclass(frozen=True)
class Canonical:
    """The camera a network believes its picture to be from. It looks at the origin, where the object is; up is +Z.

    position  of the camera in the network's space
    focal     focal length in picture widths
    """

    position: tuple[float, float, float]
    focal: float

    @property
    def distance(self) -> float:
        return math.hypot(*self.position)

    @property
    def c2w(self) -> Tensor:
        """[4,4] float64, OpenCV axes."""
        return look_at(torch.tensor([self.position], dtype=torch.float64), torch.zeros(3, dtype=torch.float64))[0]

    def rays(self, pixels: int) -> tuple[Tensor, Tensor]:
        """Origins and unit directions [pixels*pixels,3] float32 of a square picture, row by row."""
        focal = self.focal * pixels
        K = torch.tensor([[focal, 0, pixels / 2], [0, focal, pixels / 2], [0, 0, 1]])
        camera = Cameras(self.c2w[None].float(), K[None], torch.tensor([False]), pixels, pixels)
        rays_o, rays_d = rays(camera)
        return rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)


@dataclass(frozen=True)
class Framed:
    """A square picture of an object, from a camera that looks at the object's middle.

    image       [S,S,4] sRGB premultiplied by alpha, 0..1
    c2w         [4,4] float64 on the CPU, of that camera, in the world, OpenCV axes
    focal       focal length in picture widths; of an orthographic camera in picture widths per scene unit
    flat        whether it is orthographic
    area        share of the picture that the mask covers; None without a mask
    depth       median distance of what is seen, along the camera's axis, in scene units; None where the view has none
    """

    image: Tensor
    c2w: Tensor
    focal: float
    flat: bool
    area: float | None
    depth: float | None


@dataclass(frozen=True)
class Drawn:
    """An object as the network made it.

    points  [P,3] places within it, in the network's space
    area    share of the canonical camera's picture that it covers
    front   median distance of its front from the plane through the origin that faces the camera, below 0 if before it
    """

    points: Tensor
    area: float
    front: float


# ---- into the network's picture


def frame_object(views: Views, *, share: float) -> Framed:
    """The first view's object, its longer side about `share` of the picture's.

    A view without a see-through pixel is taken whole. Raises BadInput for a view in which nothing is to be seen.
    """
    image, depth = views.images[0], None if views.depth is None else views.depth[0]
    camera = views.cameras[[0]].to("cpu")
    middle, side = object_window(image[..., 3], share=share, pixel_shape=_pixel_shape(camera))
    c2w, reach = _facing(camera, middle)
    focal = float(camera.Ks[0, 0, 0]) * reach
    picture = _through(_homography(camera, c2w, focal, side), image, side)
    median = None if depth is None else _median_depth(depth, image[..., 3])
    return Framed(
        image=picture,
        c2w=c2w,
        focal=focal / side,
        flat=bool(camera.orthographic[0]),
        area=float(picture[..., 3].mean()) if bool((image[..., 3] < 0.5).any()) else None,
        depth=None if median is None else median * reach,
    )


def object_window(alpha: Tensor, *, share: float, pixel_shape: float = 1.0) -> tuple[tuple[float, float], int]:
    """The middle (x, y) in pixels and the side, in pixel widths, of a square window around what a mask shows.

    By the published arithmetic: the last row and column count as outside, odd pixels go to the right and bottom.

    alpha        [H,W] 0..1
    share        of the window's side that the longer side of the mask's rectangle takes
    pixel_shape  height of a pixel in widths
    """
    height, width = alpha.shape
    if not bool((alpha < 0.5).any()):
        side = max(width, round(height * pixel_shape))
        return (width / 2, height / 2), side
    rows, columns = (alpha > 0.5 / 255).nonzero(as_tuple=True)  # what is not 0 in eight bits
    if len(rows) == 0:
        raise BadInput("images: expected an object in the first view, found a picture that is see-through everywhere")
    left, right = int(columns.min()), int(columns.max())
    top, bottom = round(int(rows.min()) * pixel_shape), round(int(rows.max()) * pixel_shape)
    longer = max(right - left, bottom - top, 1)
    side = int(longer / share)
    left -= (longer - (right - left)) // 2 + (side - longer) // 2
    top -= (longer - (bottom - top)) // 2 + (side - longer) // 2
    return (left + side / 2, (top + side / 2) / pixel_shape), side


def _pixel_shape(camera: Cameras) -> float:
    return float(camera.Ks[0, 0, 0] / camera.Ks[0, 1, 1])


def _facing(camera: Cameras, middle: tuple[float, float]) -> tuple[Tensor, float]:
    """The camera [4,4] float64 turned to a pixel, or moved there if it is orthographic, and how much farther away the
    picture plane is there than straight ahead.
    """
    K, c2w = camera.Ks[0].double(), camera.c2w[0].double().clone()
    x, y = (middle[0] - float(K[0, 2])) / float(K[0, 0]), (middle[1] - float(K[1, 2])) / float(K[1, 1])
    if bool(camera.orthographic[0]):
        c2w[:3, 3] += x * c2w[:3, 0] + y * c2w[:3, 1]
        return c2w, 1.0
    reach = math.sqrt(x * x + y * y + 1)
    c2w[:3, :3] = c2w[:3, :3] @ _turn_to(x / reach, y / reach, 1 / reach)
    return c2w, reach


def _turn_to(x: float, y: float, z: float) -> Tensor:
    """[3,3] the shortest rotation of (0, 0, 1) to the unit vector (x, y, z), z > 0 (Rodrigues)."""
    a, b, c = 1 - x * x / (1 + z), -x * y / (1 + z), 1 - y * y / (1 + z)
    return torch.tensor([[a, b, x], [b, c, y], [-x, -y, z]], dtype=torch.float64)


def _homography(camera: Cameras, c2w: Tensor, focal: float, side: int) -> Tensor:
    """[3,3] from pixels of the square picture to pixels of the camera's own: both see along the same rays."""
    K, rotation = camera.Ks[0].double(), camera.c2w[0, :3, :3].double()
    square = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]], dtype=torch.float64)
    between = rotation.T @ c2w[:3, :3]
    if bool(camera.orthographic[0]):
        between[:2, 2] = (rotation.T @ (c2w[:3, 3] - camera.c2w[0, :3, 3].double()))[:2]
    return K @ between @ torch.linalg.inv(square)


def _through(homography: Tensor, image: Tensor, side: int) -> Tensor:
    """[side,side,4] the picture [H,W,4] of straight alpha read at the homography's pixels, premultiplied."""
    steps = torch.arange(side, dtype=torch.float64) + 0.5
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack([u, v, torch.ones_like(u)], dim=-1) @ homography.T
    size = torch.tensor([image.shape[1], image.shape[0]], dtype=torch.float64)
    places = (2 * places[..., :2] / places[..., 2:] / size - 1).to(image)
    ink = premultiplied(image).permute(2, 0, 1)
    picture = F.grid_sample(ink[None], places[None], mode="bicubic", align_corners=False)[0]
    return picture.permute(1, 2, 0).clamp(0, 1)


def _median_depth(depth: Tensor, alpha: Tensor) -> float | None:
    seen = depth[(depth > 0) & (alpha > 0.5)]
    return float(seen.median()) if len(seen) else None


# ---- and back into the world


@torch.no_grad()
def drawn(field: Triplane, canonical: Canonical, march: Callable[[Triplane, Tensor, Tensor], Marched]) -> Drawn:
    """What the canonical camera sees of a field, by a family's quadrature along rays."""
    rays_o, rays_d = (part.to(field.planes) for part in canonical.rays(PIXELS))
    seen = march(field, rays_o, rays_d)
    ahead = (seen.depth * (rays_d @ canonical.c2w[:3, 2].to(rays_d)))[seen.alpha > 0.5]
    front = float(ahead.median()) - canonical.distance if len(ahead) else 0.0
    return Drawn(field.solid_points(GRID), float(seen.alpha.mean()), front)


def placement(views: Views, framed: Framed, canonical: Canonical, drawn: Drawn, *, target: Tensor | None) -> Tensor:
    """[4,4] float64, the similarity from the network's space to the world: the object stands in the middle of the
    framed picture, turned as seen, and looks as large there as the mask; without a mask, as large as to the network.

    How far away it stands one view does not tell. It is taken to be, along the framing camera's axis, nearest to
    `target` [3] in the world if that is given; else nearest to where the axes of all views' objects meet; with a single
    view where its depth map shows the surface; without one nearest to the world's origin; and where that is not in
    front of the camera, as far away as the origin is. A camera in the origin gives the object the network's own size.

    Raises BadInput for a target that is no point in front of the camera.
    """
    scale = _scale(framed, canonical, drawn)
    distance = _distance(views, framed, scale, scale * drawn.front, target=target)
    if not framed.flat:
        scale = scale * distance
    inward, outward = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    inward[2, 3] = -canonical.distance
    outward[:3, :3] *= scale
    outward[2, 3] = distance
    return framed.c2w @ outward @ inward @ torch.linalg.inv(canonical.c2w)


def _scale(framed: Framed, canonical: Canonical, drawn: Drawn) -> float:
    """Scene units per unit of the network's space, for a distance of 1 if the view is in perspective.

    The object reaches as far from the middle of the picture as in the network's, times what the mask is larger. Where
    both cameras have the same opening angle and the mask is as drawn, that is distance / canonical distance, and every
    ray is the same in both.
    """
    larger = 1.0 if framed.area is None or drawn.area < LEAST_AREA else math.sqrt(framed.area / drawn.area)
    local = drawn.points.detach().cpu().double() @ canonical.c2w[:3, :3]  # right, down and away from the middle
    reach, ahead = local[:, :2].abs().amax(1), local[:, 2] + canonical.distance
    seen = (ahead > NEAREST * canonical.distance) & (reach > 0)
    if not bool(seen.any()):
        return larger * canonical.focal / (canonical.distance * framed.focal)
    reach, ahead, away = reach[seen], ahead[seen], local[seen, 2]
    tangent = larger * canonical.focal * float((reach / ahead).max()) / framed.focal
    if framed.flat:
        return tangent / float(reach.max())
    # scale * reach / (1 + scale * away) is at most the tangent for all points, and reaches it for one
    slack = reach - tangent * away
    return float((tangent / slack[slack > 0]).min())


def _distance(views: Views, framed: Framed, scale: float, front: float, *, target: Tensor | None) -> float:
    """From the framing camera to the object's middle along its axis, by the rules of `placement`.

    front  of the object from its middle, in scene units if the view is orthographic, else for a distance of 1
    """
    centre, axis = framed.c2w[:3, 3], framed.c2w[:3, 2]
    if target is not None:
        return _distance_of_target(framed, target)
    if len(views) > 1:
        along = float((_meeting_point(views, framed) - centre) @ axis)
        if framed.flat or along > 0:
            return along
    if framed.depth is not None:
        return framed.depth - front if framed.flat else framed.depth / (1 + front)
    along, away = -float(centre @ axis), float(centre.norm())
    if framed.flat or along > ORIGIN_IN_VIEW * away:
        return along
    return away if away > 0 else 1 / scale


def _distance_of_target(framed: Framed, target: Tensor) -> float:
    if tuple(target.shape) != (3,) or not bool(target.isfinite().all()):
        raise BadInput(f"target: expected three finite numbers, found {target.tolist()}")
    along = float((target.cpu().double() - framed.c2w[:3, 3]) @ framed.c2w[:3, 2])
    if not (framed.flat or along > 0):
        raise BadInput(f"target: expected a point in front of the first view's camera, found {target.tolist()}")
    return along


def _meeting_point(views: Views, framed: Framed) -> Tensor:
    """[3] float64, nearest to all lines from the cameras to the middles of their masks."""
    lines = [framed.c2w]
    for view in range(1, len(views)):
        alpha, camera = views.images[view, ..., 3], views.cameras[[view]].to("cpu")
        if bool((alpha > 0.5).any()):
            lines.append(_facing(camera, object_window(alpha, share=1.0, pixel_shape=_pixel_shape(camera))[0])[0])
    c2w = torch.stack(lines)
    anything = torch.eye(3).expand(len(lines), 3, 3)
    return meeting_point(Cameras(c2w, anything, torch.zeros(len(lines), dtype=torch.bool), 1, 1)).double()
