"""Cameras and posed views.

OpenCV axes (+X right, +Y down, +Z forward), right-handed world, scene units, pixel centres at +0.5.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backend.bad_input import BadInput as BadInput
from blender_addon.front_ends import Rig

CANDIDATES = 16  # views among which every choice is tried


@dataclass(frozen=True)
class Cameras:
    """V cameras that share an image size.

    c2w           [V,4,4] float32, camera to world, rigid (a rotation and a position), scene units
    Ks            [V,3,3] float32, pixels. A pinhole camera maps a camera-space point to (fx x/z + cx, fy y/z + cy); an
                  orthographic one to (fx x + cx, fy y + cy), so its focal length is in pixels per scene unit
    orthographic  [V] bool
    """

    c2w: Tensor
    Ks: Tensor
    orthographic: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        count = self.c2w.shape[0]
        expected = {"c2w": (count, 4, 4), "Ks": (count, 3, 3), "orthographic": (count,)}
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"cameras: {name} must have shape {shape}, found {tuple(getattr(self, name).shape)}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"cameras: the image size must be positive, found {self.width}x{self.height}")

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: slice | list[int] | Tensor) -> Cameras:
        """The chosen cameras, always as a Cameras value: index with a slice or a list."""
        return replace(self, c2w=self.c2w[index], Ks=self.Ks[index], orthographic=self.orthographic[index])

    @property
    def viewmats(self) -> Tensor:
        """[V,4,4] world to camera; the rotation is inverted by transposing it."""
        rotation = self.c2w[:, :3, :3].transpose(1, 2)
        viewmats = torch.zeros_like(self.c2w)
        viewmats[:, :3, :3] = rotation
        viewmats[:, :3, 3] = -(rotation @ self.c2w[:, :3, 3:])[..., 0]
        viewmats[:, 3, 3] = 1
        return viewmats

    @property
    def centres(self) -> Tensor:
        """[V,3] positions in the world."""
        return self.c2w[:, :3, 3]

    def to(self, device: torch.device | str) -> Cameras:
        return replace(self, c2w=self.c2w.to(device), Ks=self.Ks.to(device), orthographic=self.orthographic.to(device))

    def resized(self, width: int, height: int) -> Cameras:
        """The same cameras at another resolution: focal lengths and principal points scale with the pixels."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0], device=self.Ks.device)
        return replace(self, Ks=self.Ks * scale[:, None], width=width, height=height)


@dataclass(frozen=True)
class Views:
    """Posed images.

    images   [V,H,W,4] float32, 0..1, sRGB, straight alpha
    depth    None or [V,H,W] float32, planar depth along the view axis in scene units, 0 where there is no surface
    names    one file name or label a view
    """

    images: Tensor
    cameras: Cameras
    depth: Tensor | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = (len(self.cameras), self.cameras.height, self.cameras.width, 4)
        if tuple(self.images.shape) != expected:
            raise ValueError(f"views: images must have shape {expected}, found {tuple(self.images.shape)}")
        if self.depth is not None and tuple(self.depth.shape) != expected[:3]:
            raise ValueError(f"views: depth must have shape {expected[:3]}, found {tuple(self.depth.shape)}")

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: list[int]) -> Views:
        """The views of these numbers."""
        depth = None if self.depth is None else self.depth[index]
        names = tuple(self.names[view] for view in index) if self.names else ()
        return Views(self.images[index], self.cameras[index], depth, names)

    @property
    def has_alpha(self) -> bool:
        """Whether any pixel is see-through, that is, whether the masks say anything about the shape."""
        return bool((self.images[..., 3] < 0.5).any())

    def to(self, device: torch.device | str) -> Views:
        depth = None if self.depth is None else self.depth.to(device)
        return replace(self, images=self.images.to(device), cameras=self.cameras.to(device), depth=depth)


def look_at(centres: Tensor, target: Tensor, *, up: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> Tensor:
    """[V,4,4] camera to world of cameras at `centres` [V,3] that look at `target` [3] with `up` upwards in the picture.

    Looking straight along `up`, a camera takes the world's +Y as its upward direction instead.
    """
    forward = torch.nn.functional.normalize(target - centres, dim=-1)
    upward = torch.tensor(up, dtype=centres.dtype, device=centres.device).expand_as(forward)
    other = torch.tensor([0.0, 1.0, 0.0], dtype=centres.dtype, device=centres.device)
    along_up = torch.linalg.cross(forward, upward).norm(dim=-1, keepdim=True) < 1e-4
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.where(along_up, other, upward)), dim=-1)
    c2w = torch.eye(4, dtype=centres.dtype, device=centres.device).repeat(len(centres), 1, 1)
    c2w[:, :3, 0], c2w[:, :3, 1], c2w[:, :3, 2] = right, torch.linalg.cross(forward, right), forward
    c2w[:, :3, 3] = centres
    return c2w


def orbit(
    count: int, *, target: Tensor, radius: float, elevation: float, fov: float, size: int, azimuth: float = 0.0
) -> Cameras:
    """`count` pinhole cameras on a level circle, evenly spaced, that look at its middle; square pictures.

    target     [3] world
    radius     distance from the target, scene units
    elevation  radians above the target's level; world Z is up
    fov        opening angle across the picture, radians
    size       pixels of a side
    azimuth    radians of the first camera, counter-clockwise from above, 0 being on -Y (Blender's front view)
    """
    angles = azimuth + torch.arange(count) * (2 * math.pi / count)
    level, height = math.cos(elevation), torch.full((count,), math.sin(elevation))
    offsets = torch.stack([angles.sin() * level, -angles.cos() * level, height], dim=-1)
    focal = 0.5 * size / math.tan(0.5 * fov)
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    c2w = look_at(target + radius * offsets, target)
    return Cameras(c2w, K.repeat(count, 1, 1), torch.zeros(count, dtype=torch.bool), size, size)


def rig_cameras(rig: Rig, side: int | None = None) -> Cameras:
    """The cameras of a front end's views, in their order; `side` pixels instead of the rig's own."""
    side = side or rig.side
    elevation, azimuth = torch.tensor(rig.angles, dtype=torch.float64).deg2rad().T
    level = elevation.cos()
    offsets = torch.stack([level * azimuth.sin(), -level * azimuth.cos(), elevation.sin()], dim=-1)
    c2w = look_at(rig.radius * offsets, torch.zeros(3, dtype=torch.float64)).float()
    flat = rig.fov == 0
    focal = side / rig.width if flat else 0.5 * side / math.tan(0.5 * math.radians(rig.fov))
    K = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
    count = len(rig.angles)
    return Cameras(c2w, K.repeat(count, 1, 1), torch.full((count,), flat), side, side)


def rays(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """rays_o, rays_d [V,H,W,3]: world origins and unit directions through the pixel centres.

    A pinhole camera's rays start at its centre, an orthographic camera's on the plane through its centre.
    """
    device = cameras.Ks.device
    columns = torch.arange(cameras.width, device=device) + 0.5
    rows = torch.arange(cameras.height, device=device) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")  # [H,W]
    focal, middle = cameras.Ks[:, [0, 1], [0, 1]], cameras.Ks[:, :2, 2]  # [V,2]
    plane = (torch.stack([u, v], dim=-1) - middle[:, None, None]) / focal[:, None, None]  # [V,H,W,2] at z = 1
    flat = cameras.orthographic[:, None, None, None]
    ahead = torch.ones_like(plane[..., :1])
    directions = torch.cat([torch.where(flat, 0.0, plane), ahead], dim=-1)
    starts = torch.cat([torch.where(flat, plane, 0.0), torch.zeros_like(ahead)], dim=-1)
    turn = cameras.c2w[:, None, :3, :3].mT  # one product a row of pixels: [W,3] @ [3,3]
    rays_d = torch.nn.functional.normalize(directions, dim=-1) @ turn
    return cameras.centres[:, None, None] + starts @ turn, rays_d


def best_spread(cameras: Cameras, target: Tensor, count: int) -> list[int]:
    """Indices, ascending and with 0, of the `count` views that stand best around the target.

    Best is the least electrostatic energy on the first view's ground plan: points that repel each other spread evenly,
    and the views from above and below, which object networks are not trained on, crowd in the plan's middle.
    """
    offsets = torch.nn.functional.normalize(cameras.centres.double() - target, dim=-1)
    plan = (offsets @ cameras.c2w[0, :3, :3].double())[:, [0, 2]].cpu()  # rightwards and forwards
    distance = torch.cdist(plan, plan)
    candidates = _farthest(distance, max(CANDIDATES, count)) if len(cameras) > CANDIDATES else range(len(cameras))
    energy = (1 / (distance + 1e-6)).fill_diagonal_(0)
    sets = torch.tensor([(0, *others) for others in itertools.combinations(sorted(candidates)[1:], count - 1)])
    energies = energy[sets[:, :, None], sets[:, None]].sum((1, 2))
    return sets[int(energies.round(decimals=4).argmin())].tolist()  # rounded: of equals always the same


def _farthest(distance: Tensor, count: int) -> list[int]:
    """Indices of `count` points, from the first on always the one farthest from those taken; `distance` [N,N]."""
    taken, gap = [0], distance[0]
    while len(taken) < count:
        taken.append(int(gap.round(decimals=4).argmax()))
        gap = torch.minimum(gap, distance[taken[-1]])
    return taken
