"""What a set of Gaussians is: always activated, in world space. Raw network or file values never use this type."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 * sh[:, 0]


@dataclass(frozen=True)
class Gaussians:
    """N anisotropic Gaussians.

    means      [N,3] centres, world, scene units
    quats      [N,4] wxyz, unit length, local to world
    scales     [N,3] linear standard deviations along the local axes, scene units
    opacities  [N]   0..1
    sh         [N,K,3] harmonic coefficients, K = (degree+1)^2; colour is in sRGB as captured
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        count, bases = self.means.shape[0], self.sh.shape[1]
        expected = {
            "means": (count, 3),
            "quats": (count, 4),
            "scales": (count, 3),
            "opacities": (count,),
            "sh": (count, bases, 3),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"gaussians: {name} must have shape {shape}, found {tuple(getattr(self, name).shape)}")
        if bases not in (1, 4, 9, 16):
            raise ValueError(f"gaussians: sh must hold 1, 4, 9 or 16 coefficients, found {bases}")

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        return int(self.sh.shape[1] ** 0.5) - 1

    def __getitem__(self, index: Tensor | slice) -> Gaussians:
        """The chosen Gaussians: index with a boolean mask, indices or a slice."""
        return Gaussians(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> Gaussians:
        return Gaussians(*(getattr(self, field.name).to(device) for field in fields(self)))

    def detach(self) -> Gaussians:
        return Gaussians(*(getattr(self, field.name).detach() for field in fields(self)))
