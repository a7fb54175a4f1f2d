"""Front ends without a network: they photograph an object that tells its sides apart, at the cameras they state."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from backend.assets import Asset, Material, corner_normals
from backend.cameras import rig_cameras
from backend.monitor import Monitor
from backend.multiview import Budget, Wish
from backend.photograph import photograph
from backend.samplers import Samplers
from blender_addon.front_ends import FRONT_ENDS, Rig
from tests.jack import BOXES, GREY

SIDE = 64  # pixels, instead of the front ends' own
BROWN = (0.04, 0.02, 0.01)  # linear; in the place of the jack's grey, which is that of some backgrounds


@cache
def jack(scale: float) -> Asset:
    """The toy jack, so many times its size."""
    vertices, faces, material = [], [], []
    for number, box in enumerate(BOXES):
        shape = trimesh.creation.box(bounds=np.array([box.low, box.high]) * scale)
        faces.append(shape.faces + 8 * number)
        vertices.append(shape.vertices)
        material += [number] * len(shape.faces)
    places, corners = np.concatenate(vertices).astype(np.float32), np.concatenate(faces).astype(np.int32)
    colours = [BROWN if box.colour == GREY else box.colour for box in BOXES]
    return Asset(
        name="jack",
        caption="",
        vertices=places,
        faces=corners,
        uvs=np.zeros((len(corners), 3, 2), np.float32),
        normals=corner_normals(places, corners, np.zeros(len(corners), bool)),
        face_material=np.array(material, np.int32),
        materials=tuple(Material((*colour, 1.0), roughness=1.0) for colour in colours),
    )


def jack_scale(rig: Rig) -> float:
    """At which the jack fills most of the pictures."""
    half = rig.width / 2 if rig.fov == 0 else rig.radius * np.sin(np.radians(rig.fov / 2))
    return float(0.85 * half / 1.06)


@cache
def photographs(rig: Rig) -> Tensor:
    """[V,S,S,4] the jack, as the rig's cameras see it."""
    return photograph(jack(jack_scale(rig)), rig_cameras(rig)).images


@dataclass
class FakeSampler:
    """Makes the jack's views. A prompt with the word "slowly" takes a hundred steps of 20 milliseconds."""

    front_end: str
    wishes: list[Wish] = field(default_factory=list)

    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        self.wishes.append(wish)
        slow = "slowly" in wish.prompt
        steps = 100 if slow else wish.steps
        for step in range(steps):
            monitor.progress("views", step, steps)
            time.sleep(0.02 if slow else 0)
        monitor.progress("views", steps, steps)
        rig = FRONT_ENDS[self.front_end].rig
        made = photographs(rig)
        if rig.background is None:
            return made.clone()
        alpha = made[..., 3:]
        return made[..., :3] * alpha + rig.background * (1 - alpha)


@dataclass
class FakeModels:
    """In the place of backend.multiview.load; keeps what it loaded."""

    loaded: list[FakeSampler] = field(default_factory=list)

    def load(self, front_end: str, folder: Path, budget: Budget) -> FakeSampler:
        del folder, budget
        self.loaded.append(FakeSampler(front_end))
        return self.loaded[-1]

    def samplers(self) -> Samplers:
        return Samplers(self.load)


def small_rigs(patch: pytest.MonkeyPatch, side: int = SIDE) -> None:
    """All front ends with smaller pictures."""
    for name, front_end in FRONT_ENDS.items():
        patch.setitem(FRONT_ENDS, name, replace(front_end, rig=replace(front_end.rig, side=side)))


def png(side: int = 48, *, empty: bool = False) -> bytes:
    """A picture file: a red disc on nothing."""
    rows, columns = np.mgrid[:side, :side]
    inside = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (side / 3) ** 2
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 0 if empty else inside * 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def nearest(points: Tensor, target: Tensor) -> Tensor:
    """[N] distance of each of `points` [N,3] to the nearest of `target` [M,3]."""
    return torch.cdist(points, target).amin(1)
