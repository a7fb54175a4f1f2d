"""LGM (Tang et al. 2024): mean squares of colours and masks, and a perceptual term, over inputs and other views.

Its first stage makes pictures that do not quite fit together. So that the network bears that, inputs are distorted and
their cameras jittered now and then (the paper's section 3.4); what they are compared with never is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.bad_input import BadInput
from backend.cameras import Cameras
from backend.gaussians import Gaussians, transform
from backend.models.lgm import LGM, PRESETS, LGMConfig, config_from, decode, network_input
from backend.models.lgm_cameras import aim, moved, pin, resample
from backend.recipes import Batch
from backend.recipes.targets import picture_terms

__all__ = ["MODEL", "PRESETS", "WEIGHTS", "config_data", "config_from", "loss", "predict"]

MODEL = LGM
WEIGHTS = {"rgb": 1.0, "alpha": 1.0, "perceptual": 1.0}
OFTEN = 0.5  # share of objects whose inputs are distorted, and of those whose cameras are jittered
KNOTS = (8, 16)  # fewest and most lines that a distortion moves
JITTER = (math.radians(18), math.radians(9))  # largest turns about a camera's own upward and rightward axis


def config_data(config: LGMConfig) -> dict[str, Any]:
    """See `backend.recipes.Recipe`."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def loss(
    model: LGM, batch: Batch, share: float, rng: torch.Generator, weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """See `backend.recipes.Recipe`. Wants as many inputs as the network, all of them pinhole pictures."""
    del share
    rgb, cameras, to_world = _placed(model.config, batch)
    rgb = torch.stack([distorted(views, rng) if _now(rng) else views for views in rgb])
    cameras = [jittered(posed, rng) if _now(rng) else posed for posed in cameras]
    gaussians = _gaussians(model, rgb, cameras, to_world)
    return picture_terms(gaussians, batch, weights, rng)


def predict(model: LGM, batch: Batch) -> list[Gaussians]:
    """See `backend.recipes.Recipe`."""
    return _gaussians(model, *_placed(model.config, batch))


def _gaussians(model: LGM, rgb: Tensor, cameras: list[Cameras], to_world: list[Tensor]) -> list[Gaussians]:
    raw = model(torch.stack([network_input(views, posed) for views, posed in zip(rgb, cameras, strict=True)]))
    return [transform(decode(one.float()), matrix) for one, matrix in zip(raw, to_world, strict=True)]


def _placed(config: LGMConfig, batch: Batch) -> tuple[Tensor, list[Cameras], list[Tensor]]:
    """Inputs [B,I,3,S,S] over white, through LGM's lens; their cameras in its world; and from there to the batch's.

    As `lgm_cameras.set_up`, but for an object that is known to stand in the origin, and with no look at whether the
    views suit: data that is made can be made to.
    """
    inputs = batch.inputs
    if inputs != config.num_input_views or bool(batch.orthographic[:, :inputs].any()):
        raise BadInput(f"inputs: this LGM takes {config.num_input_views} perspective views, found {inputs} inputs")
    rgb, cameras, to_world = [], [], []
    for item in range(len(batch)):
        own = batch.cameras(item)[:inputs]
        aimed = aim(own, torch.zeros(3).to(own.c2w.double()), config.lens)
        rgb.append(_seen_by(aimed, batch.images[item, :inputs], own))
        to_lgm = pin(aimed.c2w[0], float(own.centres[0].norm()), config.lens.radius)
        cameras.append(moved(aimed, to_lgm))
        to_world.append(torch.linalg.inv(to_lgm))
    return torch.stack(rgb), cameras, to_world


def _seen_by(aimed: Cameras, images: Tensor, cameras: Cameras) -> Tensor:
    """[I,3,S,S] over white of images [I,H,W,4] with straight alpha; larger ones are averaged first."""
    ink = ((images[..., :3] - 1) * images[..., 3:]).permute(0, 3, 1, 2)  # the difference from white
    if cameras.width > aimed.width:
        ink = F.interpolate(ink, (aimed.height, aimed.width), mode="bilinear", antialias=True)
        cameras = cameras.resized(aimed.width, aimed.height)
    return 1 + resample(ink, cameras, aimed)


# ---- inputs that do not quite fit together


def _now(rng: torch.Generator) -> bool:
    return float(torch.rand((), generator=rng)) < OFTEN


def distorted(images: Tensor, rng: torch.Generator) -> Tensor:
    """[I,C,S,S] pictures whose rows and columns are stretched and squeezed at random, but for the first picture."""
    count, _, height, width = images.shape
    knots = int(torch.randint(KNOTS[0], KNOTS[1] + 1, (), generator=rng))
    columns, rows = (torch.stack([_warped(side, knots, rng) for _ in range(count)]) for side in (width, height))
    grid = torch.stack(torch.broadcast_tensors(columns[:, None], rows[:, :, None]), dim=-1).to(images)  # [I,H,W,2]
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return torch.cat([images[:1], warped[1:]])


def _warped(side: int, knots: int, rng: torch.Generator) -> Tensor:
    """[side] for each pixel's centre the place, -1..1, that it shows: evenly spaced lines are moved by up to a quarter
    of their distance, and what lies between two of them stretches.
    """
    even = torch.linspace(0, 1, knots)
    moved_to = (even + 0.5 * (torch.rand(knots, generator=rng) - 0.5) / (knots - 1)).clamp(0, 1)
    moved_to[0], moved_to[-1] = 0, 1
    centres = (torch.arange(side) + 0.5) / side
    after = torch.searchsorted(moved_to, centres).clamp(1, knots - 1)
    along = (centres - moved_to[after - 1]) / (moved_to[after] - moved_to[after - 1])
    return 2 * (even[after - 1] + along / (knots - 1)) - 1


def jittered(cameras: Cameras, rng: torch.Generator) -> Cameras:
    """The cameras, but for the first, turned about the origin: first about their rightward, then their upward axis."""
    amounts = (2 * torch.rand(len(cameras), 2, generator=rng) - 1) * torch.tensor(JITTER)
    amounts[0] = 0
    up, right = cameras.c2w[:, :3, 1], cameras.c2w[:, :3, 0]
    turn = torch.eye(4).to(cameras.c2w).repeat(len(cameras), 1, 1)
    turn[:, :3, :3] = _turns(up, amounts[:, 0]) @ _turns(right, amounts[:, 1])
    return replace(cameras, c2w=turn @ cameras.c2w)


def _turns(axes: Tensor, angles: Tensor) -> Tensor:
    """[N,3,3] rotations about unit `axes` [N,3] by `angles` [N], radians."""
    vectors = axes * angles.to(axes)[:, None]
    cross = torch.linalg.cross(torch.eye(3).to(axes).expand(len(axes), 3, 3), vectors[:, None], dim=-1)  # of vectors x
    return torch.linalg.matrix_exp(cross)
