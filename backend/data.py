"""An endless, seeded stream of training samples: objects, real or made up, photographed from around.

What a sample is follows from the seed and the sample's number alone, on every device and with any number of workers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from backend.assets import Asset, Material, models_in, read_asset, read_texture, textures_in
from backend.cameras import Cameras, Views, look_at
from backend.folders import Wish, pictured
from backend.photograph import photograph_all
from backend.procedural import make_object
from backend.sample import BOX, SPHERE, Sample, is_held_out

LINED_UP = 0.25  # share of samples with objects and first views square to the axes, as people place them
UPRIGHT = 0.6  # share of objects that are not tilted
RECOLOURED = 0.5  # share of objects whose materials get other colours
PAINTED = 0.7  # share of colourless objects that get a texture; the others get one colour


@dataclass(frozen=True)
class DataConfig:
    """Which samples are drawn.

    seed                one stream of samples for each
    size                pixels of a picture's side
    views               pictures of an object
    inputs              how many of them, the first, are spread evenly around it as a network's inputs are
    assets              folder with models/ and textures/, or None: objects are made up, without pictures on them
    real_share          share of samples that show a model of that folder
    folders             folders with objects that have posed pictures already, see datasets.py
    folder_share        share of samples that are of those; the others are what they are without folders
    orthographic_share  share of samples taken by orthographic cameras
    fov                 opening angle, degrees, one for each sample
    distance            multiples of the distance at which a sphere of radius 1.1 fills the picture; of folders'
                        pictures, as much more is shown than must be
    input_elevation     degrees, one for each sample, for the inputs
    target_elevation    degrees, one for each further view
    jitter              degrees that an input strays from its even place at most, sideways and up
    held_out            draw what training with `held_out=False` never sees: other models, other random numbers
    """

    seed: int = 0
    size: int = 256
    views: int = 8
    inputs: int = 4
    assets: Path | None = None
    real_share: float = 0.5
    folders: tuple[Path, ...] = ()
    folder_share: float = 0.5
    orthographic_share: float = 0.05
    fov: tuple[float, float] = (25.0, 65.0)
    distance: tuple[float, float] = (1.0, 1.2)
    input_elevation: tuple[float, float] = (0.0, 35.0)
    target_elevation: tuple[float, float] = (-10.0, 60.0)
    jitter: float = 15.0
    held_out: bool = False


@dataclass(frozen=True)
class Scene:
    """What is photographed for a sample, and from where."""

    asset: Asset
    cameras: Cameras


def sample(config: DataConfig, index: int, device: torch.device | str = "cpu") -> Sample:
    """The sample of this number of the stream, on the device."""
    return take([draw(config, index)], device)[0]


def draw(config: DataConfig, index: int) -> Scene | Sample:
    """The sample of this number if it is of a folder, else what is to be photographed for it. Needs no device.

    Raises BadInput for a folder or a file that cannot be used.
    """
    rng = np.random.default_rng((config.seed, index, int(config.held_out), 1))  # apart from what scenes are made by
    if config.folders and rng.random() < config.folder_share:
        wish = Wish(config.size, config.views, config.inputs, config.distance)
        found = pictured(config.folders, wish, rng, held_out=config.held_out)
        if found is not None:
            return found
    return scene(config, index)


def take(scenes: Sequence[Scene | Sample], device: torch.device | str = "cpu") -> list[Sample]:
    """The samples, on the device; what is photographed is so all at once, in pictures of one size."""
    taken = iter(_photographed([one for one in scenes if isinstance(one, Scene)], device))
    return [next(taken) if isinstance(one, Scene) else one.to(device) for one in scenes]


def _photographed(scenes: Sequence[Scene], device: torch.device | str) -> list[Sample]:
    cameras = [scene.cameras.to(device) for scene in scenes]
    seen = photograph_all([scene.asset for scene in scenes], cameras, device)
    return [
        Sample(
            views=Views(pictures.images, own, pictures.depth),
            normals=pictures.normals,
            name=scene.asset.name,
            caption=scene.asset.caption,
        )
        for scene, own, pictures in zip(scenes, cameras, seen, strict=True)
    ]


def scene(config: DataConfig, index: int) -> Scene:
    """The object and the cameras that the sample of this number has where it is photographed. Needs no device."""
    rng = np.random.default_rng((config.seed, index, int(config.held_out)))
    lined_up = bool(rng.random() < LINED_UP)
    asset = _placed(_object(config, rng), rng, lined_up=lined_up)
    return Scene(asset, _cameras(config, rng, lined_up=lined_up))


# ---- objects


def _object(config: DataConfig, rng: np.random.Generator) -> Asset:
    real = bool(rng.random() < config.real_share)
    if config.assets is None or not real:
        return make_object(rng, textures_of(config.assets), families="held_out" if config.held_out else "train")
    return random_model(config.assets, rng, held_out=config.held_out)


def random_model(folder: Path, rng: np.random.Generator, *, held_out: bool) -> Asset:
    """A model of a folder of assets, as it is, or in other colours; one without colours is painted."""
    choice = [path for path in _models(folder) if is_held_out(path.stem) == held_out]
    asset = _asset(choice[rng.integers(len(choice))])
    if _is_colourless(asset):
        return replace(asset, materials=(_paint(textures_of(folder), rng),) * len(asset.materials))
    return _recoloured(asset, rng) if rng.random() < RECOLOURED else asset


@functools.lru_cache(maxsize=2)
def _models(folder: Path) -> list[Path]:
    return models_in(folder)


@functools.lru_cache(maxsize=2)
def textures_of(folder: Path | None) -> list[np.ndarray]:
    """The pictures to paint with of a folder of assets; none without a folder."""
    return [] if folder is None else [read_texture(path) for path in textures_in(folder)]


@functools.lru_cache(maxsize=256)
def _asset(path: Path) -> Asset:
    return read_asset(path)


def _is_colourless(asset: Asset) -> bool:
    """One grey all over: a bare shape."""
    colours = np.array([material.base_color[:3] for material in asset.materials])
    return bool(all(material.texture is None for material in asset.materials) and np.ptp(colours) < 0.02)


def _paint(textures: list[np.ndarray], rng: np.random.Generator) -> Material:
    roughness = float(rng.uniform(0.2, 1))
    if textures and rng.random() < PAINTED:
        return Material((1.0, 1.0, 1.0, 1.0), textures[rng.integers(len(textures))], roughness)
    red, green, blue = rng.uniform(0.05, 1, 3) ** 2
    return Material((float(red), float(green), float(blue), 1.0), None, roughness)


def _recoloured(asset: Asset, rng: np.random.Generator) -> Asset:
    """Red, green and blue change places throughout, and each material gets a tint and another roughness."""
    order = rng.permutation(3)
    textures: dict[int, np.ndarray] = {}  # by identity: what was shared stays shared

    def changed(material: Material) -> Material:
        texture = material.texture
        if texture is not None:
            places = [*order, *range(3, texture.shape[2])]
            texture = textures.setdefault(id(texture), np.ascontiguousarray(texture[..., places]))
        red, green, blue = np.minimum(np.array(material.base_color[:3])[order] * np.exp(rng.normal(0, 0.25, 3)), 1)
        colour = (float(red), float(green), float(blue), material.base_color[3])
        return Material(
            colour, texture, float(np.clip(material.roughness + rng.normal(0, 0.2), 0, 1)), material.metallic
        )

    return replace(asset, materials=tuple(changed(material) for material in asset.materials))


def _placed(asset: Asset, rng: np.random.Generator, *, lined_up: bool) -> Asset:
    """Turned about Z, perhaps a little tilted, then centred and scaled to fit again."""
    yaw = float(rng.integers(4)) * 90 if lined_up else float(rng.uniform(0, 360))
    tilt = rng.normal(0, 12, 2) if rng.random() > UPRIGHT and not lined_up else np.zeros(2)
    turn = Rotation.from_euler("zxy", [yaw, *tilt], degrees=True).as_matrix()
    vertices = asset.vertices @ turn.T
    vertices -= (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    scale = min(BOX / np.ptp(vertices, axis=0).max(), SPHERE / np.linalg.norm(vertices, axis=1).max())
    return replace(
        asset,
        vertices=(vertices * scale * rng.uniform(0.9, 1)).astype(np.float32),
        normals=(asset.normals @ turn.T).astype(np.float32),
    )


# ---- cameras


def _cameras(config: DataConfig, rng: np.random.Generator, *, lined_up: bool) -> Cameras:
    """Cameras with one lens that look at about the origin: the inputs around it, the others from anywhere."""
    fov, orthographic = math.radians(rng.uniform(*config.fov)), bool(rng.random() < config.orthographic_share)
    inputs, others = min(config.inputs, config.views), max(0, config.views - config.inputs)
    stray = 0.0 if lined_up else config.jitter * rng.random()
    first = 0.0 if lined_up else rng.uniform(0, 360)
    azimuth = first + np.arange(inputs) * (360 / max(inputs, 1)) + rng.uniform(-stray, stray, inputs)
    elevation = rng.uniform(*config.input_elevation) + rng.uniform(-stray, stray, inputs)
    azimuth = np.radians(np.concatenate([azimuth, rng.uniform(0, 360, others)]))
    elevation = np.radians(np.concatenate([elevation, rng.uniform(*config.target_elevation, others)]))
    multiple = rng.uniform(*config.distance)
    multiples = np.concatenate([np.full(inputs, multiple), rng.uniform(*config.distance, others)])
    level = np.cos(elevation)
    outward = np.stack([level * np.sin(azimuth), -level * np.cos(azimuth), np.sin(elevation)], axis=1)
    centres = torch.from_numpy(outward * (multiples * SPHERE / math.sin(fov / 2))[:, None]).float()
    target = torch.from_numpy(rng.normal(0, 0.02, 3) * (not lined_up)).float()
    focal = 0.5 * config.size / (SPHERE * multiple if orthographic else math.tan(fov / 2))
    K = torch.tensor([[focal, 0, config.size / 2], [0, focal, config.size / 2], [0, 0, 1]])
    kinds = torch.full((config.views,), orthographic)
    return Cameras(look_at(centres, target), K.repeat(config.views, 1, 1), kinds, config.size, config.size)
