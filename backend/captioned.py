"""Objects with the words for them, seen by the cameras of the starter's views: what its generator learns from.

An object stands as it was made, its front towards -Y. Its pictures are what a user might give: from about the front,
from other heights, through other lenses. What a sample is follows from the seed and the sample's number alone.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.assets import Asset
from backend.cameras import Cameras, rig_cameras
from backend.data import random_model, textures_of
from backend.matting import recentred
from backend.photograph import photograph
from backend.procedural import make_simple_object
from backend.procedural.captions import Group
from backend.procedural.colours import colour_names, decode_srgb
from backend.procedural.paints import Paint
from backend.sample import SPHERE
from backend.wording import Description, prompt
from blender_addon.front_ends import FRONT_ENDS, Rig

RIG = FRONT_ENDS["starter"].rig
FILL = FRONT_ENDS["starter"].fill
REAL_SHARE = 0.25  # of the objects: models of the folder of assets
PICTURES = 2  # of an object
PROMPTS = 4
HELD_OUT_PAIRS = 12  # one pair of a kind and a colour in so many is never learned from
MAIN_COLOUR = 0.45  # share of a model's surface from which a colour is the model's
PLAIN = 0.6  # share of an object's surface from which one paint of one colour is all that it shows from afar
PLACES = np.array([[2, 2, 2], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / 6  # of a triangle, where its colour is looked at
# degrees; of the azimuths, the spread about the front
PICTURE_ELEVATION, PICTURE_AZIMUTH, PICTURE_FOV = (-5.0, 40.0), 10.0, (20.0, 60.0)
SHOWN = 1.05  # times an object's sphere, across the picture before it is brought to FILL


@dataclass(frozen=True)
class Captioned:
    """One object.

    views     [V,S,S,4] float32, 0..1, sRGB, straight alpha, by the rig's cameras
    pictures  [PICTURES,S,S,4] as views: the object from about its front, in the middle, FILL of the side
    prompts   PROMPTS ways to ask for it
    kind, colour  what it is, and the one colour of most of it, "" where there is no such
    """

    views: Tensor
    pictures: Tensor
    prompts: tuple[str, ...]
    kind: str
    colour: str


def captioned(seed: int, index: int, assets: Path | None, *, held_out: bool = False) -> Captioned:
    """The sample of this number. `assets` is a folder of models and textures, see data.py; None: all is made up.

    held_out  show a pair of a kind and a plain colour that samples otherwise never show
    """
    rng = np.random.default_rng((seed, index, int(held_out), 2))
    while True:
        asset, described = _object(rng, assets, held_out=held_out)
        apart = is_held_out(described.kind, described.colour)
        if apart == held_out and (plain_colour(described) or not held_out):
            break
    extent = np.ptp(asset.vertices, axis=0).tolist()
    return Captioned(
        views=photograph(asset, rig_cameras(RIG)).images,
        pictures=torch.stack([_picture(asset, rng) for _ in range(PICTURES)]),
        prompts=tuple(prompt(rng, described, extent) for _ in range(PROMPTS)),
        kind=described.kind,
        colour=plain_colour(described),
    )


def is_held_out(kind: str, colour: str) -> bool:
    """Whether objects of this kind in this colour are kept from training."""
    return bool(colour) and zlib.crc32(f"{colour} {kind}".encode()) % HELD_OUT_PAIRS == 0


def plain_colour(described: Description) -> str:
    """The colour of the paint that covers most of an object; "" where that paint has two, or none does."""
    areas: dict[tuple[str, ...], float] = {}
    for group in described.groups:
        colours = group.paints[0].colours
        areas[colours] = areas.get(colours, 0.0) + group.area
    colours, area = max(areas.items(), key=lambda item: item[1])
    return colours[0] if len(colours) == 1 and area > PLAIN * sum(areas.values()) else ""


# ---- objects and words


def _object(rng: np.random.Generator, assets: Path | None, *, held_out: bool) -> tuple[Asset, Description]:
    if assets is None or held_out or rng.random() > REAL_SHARE:
        asset, title, groups = make_simple_object(rng, textures_of(assets))
        return asset, Description(title, groups)
    asset = random_model(assets, rng, held_out=False)
    return asset, described_model(asset)


def described_model(asset: Asset) -> Description:
    """A model by its title, and by its colour where most of its surface has one."""
    shares = _colour_areas(asset)
    name, share = max(shares.items(), key=lambda item: item[1])
    colours = (name,) if share > MAIN_COLOUR * sum(shares.values()) else ()
    title = re.sub(r"( [a-z0-9]| \d+)+$", "", asset.caption.split(",")[0]) or "object"  # "chair a" is one of several
    paint = Paint(asset.materials[0], colours, "", "", None)
    return Description(title, (Group(title, 1, sum(shares.values()), (paint,), bumpy=False),))


def _colour_areas(asset: Asset) -> dict[str, float]:
    """How much of a model's surface is of each colour, looked at in four places of every triangle."""
    corners = asset.vertices[asset.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    uvs = np.einsum("pc,fcu->fpu", PLACES, asset.uvs)
    shares: dict[str, float] = {}
    for number, material in enumerate(asset.materials):
        own = asset.face_material == number
        colours = np.broadcast_to(np.array(material.base_color[:3]), (int(own.sum()), len(PLACES), 3))
        if material.texture is not None:
            colours = colours * _texels(material.texture, uvs[own])
        for name, area in zip(colour_names(colours.reshape(-1, 3)), np.repeat(areas[own], len(PLACES)), strict=True):
            shares[name] = shares.get(name, 0.0) + float(area) / len(PLACES)
    return shares


def _texels(texture: np.ndarray, uvs: np.ndarray) -> np.ndarray:
    """[...,3] linear colours of a texture, see assets.Material, at uvs [...,2]."""
    height, width = texture.shape[:2]
    columns, rows = np.floor(uvs[..., 0] * width) % width, np.floor((1 - uvs[..., 1]) * height) % height
    return decode_srgb(texture[rows.astype(int), columns.astype(int), :3] / 255)


# ---- cameras


def _camera(rng: np.random.Generator) -> Cameras:
    """One from about the front, that sees the whole object."""
    fov, angles = rng.uniform(*PICTURE_FOV), (rng.uniform(*PICTURE_ELEVATION), rng.normal(0, PICTURE_AZIMUTH))
    radius = SHOWN * SPHERE / math.sin(math.radians(fov) / 2)
    return rig_cameras(Rig((angles,), RIG.side, radius, fov))


def _picture(asset: Asset, rng: np.random.Generator) -> Tensor:
    picture = photograph(asset, _camera(rng)).images[0]
    return recentred(picture, RIG.side, FILL) if bool(picture[..., 3].any()) else picture  # a sheet, edge-on
