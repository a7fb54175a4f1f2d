"""What training looks at: an object in the middle of the world, about as large as any other, and pictures of it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backend.cameras import Views

BOX, SPHERE = 1.8, 1.1  # longest side of an object's box, and radius of the sphere that made-up objects stay in
HELD_OUT = 20  # one object in so many is kept from training: those whose name's CRC-32 is a multiple of it


@dataclass(frozen=True)
class Sample:
    """An object and pictures of it.

    views    V views, with depth where that is known
    normals  [V,H,W,3] float32, world, unit, towards the camera; 0 where there is no surface, or none is known
    name     of the object
    caption  words that describe it, "" if unknown
    """

    views: Views
    normals: Tensor
    name: str
    caption: str

    def to(self, device: torch.device | str) -> Sample:
        return replace(self, views=self.views.to(device), normals=self.normals.to(device))


def is_held_out(name: str) -> bool:
    """Whether the object of this name is kept from training."""
    return zlib.crc32(name.encode()) % HELD_OUT == 0
