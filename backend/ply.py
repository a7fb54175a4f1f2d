"""Gaussians to and from PLY files; what a file stores is `blender_addon.ply`'s business."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from backend.gaussians import Gaussians
from blender_addon import ply


def to_arrays(gaussians: Gaussians) -> ply.SplatArrays:
    """The same Gaussians as float32 numpy arrays on the host."""
    return ply.SplatArrays(
        *(getattr(gaussians, field.name).detach().cpu().numpy().astype(np.float32) for field in fields(gaussians))
    )


def from_arrays(splats: ply.SplatArrays) -> Gaussians:
    """The same Gaussians as torch tensors on the CPU."""
    return Gaussians(*(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) for values in splats))


def save(gaussians: Gaussians, path: Path | str) -> None:
    """Writes a 3DGS PLY, whole or not at all."""
    ply.write(path, to_arrays(gaussians))


def load(path: Path | str) -> Gaussians:
    """Reads a 3DGS PLY of degree 0 to 3. Raises blender_addon.ply.PlyError (a ValueError) for anything else."""
    return from_arrays(ply.read(path))
