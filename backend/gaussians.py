"""What a set of Gaussians is: always activated, in world space. Raw network or file values never use this type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from backend import spherical_harmonics
from backend.cameras import Cameras

SH_C0 = spherical_harmonics.C0  # colour = 0.5 + SH_C0 * sh[:, 0]


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

    @property
    def finite(self) -> Tensor:
        """[N] bool: whether all values of a Gaussian are finite."""
        fields = (self.means, self.quats, self.scales, self.opacities[:, None], self.sh.flatten(1))
        return torch.cat(fields, 1).isfinite().all(1)

    @property
    def covariances(self) -> Tensor:
        """[N,3,3] in the world, squared scene units."""
        axes = rotation_matrices(self.quats) * self.scales[:, None]
        return axes @ axes.transpose(1, 2)

    @property
    def colours(self) -> Tensor:
        """[N,3] sRGB of the constant harmonic alone: the mean over all directions, not held in 0..1."""
        return sh_to_rgb(self.sh[:, 0])


def rgb_to_sh(rgb: Tensor) -> Tensor:
    """Coefficients of the constant harmonic, [...,3], for sRGB colours [...,3]."""
    return (rgb - 0.5) / SH_C0


def sh_to_rgb(sh: Tensor) -> Tensor:
    """sRGB colours [...,3] of coefficients of the constant harmonic [...,3]."""
    return 0.5 + SH_C0 * sh


def colours_seen(gaussians: Gaussians, camera: Cameras) -> Tensor:
    """[N,3] sRGB, at least 0, as one camera sees each Gaussian; an orthographic camera looks the same way at all of
    them.
    """
    if camera.orthographic[0]:
        directions = camera.viewmats[0, 2, :3].to(gaussians.means).expand(len(gaussians), 3)
    else:
        offsets = gaussians.means - camera.centres[0].to(gaussians.means)
        directions = torch.nn.functional.normalize(offsets, dim=-1)
    basis = spherical_harmonics.basis(directions, gaussians.sh_degree)
    return torch.clamp(0.5 + torch.einsum("nk,nkc->nc", basis, gaussians.sh), min=0)


def rotation_matrices(quats: Tensor) -> Tensor:
    """[N,3,3] of wxyz `quats` [N,4], which need not have unit length; differentiable."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quats_of(rotations: Tensor) -> Tensor:
    """[...,4] wxyz unit quaternions of rotation matrices [...,3,3]; not differentiable."""
    matrices = rotations.detach().cpu().double().reshape(-1, 3, 3).numpy()
    quats = torch.from_numpy(Rotation.from_matrix(matrices).as_quat(scalar_first=True))
    return quats.reshape(*rotations.shape[:-2], 4).to(rotations)


def multiply_quats(left: Tensor, right: Tensor) -> Tensor:
    """[...,4] wxyz products: the rotation `right` first, then `left`."""
    a, b, c, d = left.unbind(-1)
    w, x, y, z = right.unbind(-1)
    product = [
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    ]
    return torch.stack(product, -1)


def transform(gaussians: Gaussians, matrix: Tensor) -> Gaussians:
    """The Gaussians moved by a similarity [4,4]: turned, scaled alike in all directions, shifted; view-dependent colour
    turns along.

    Raises ValueError when the matrix mirrors or stretches, which Gaussians with harmonics cannot follow.
    """
    linear = matrix[:3, :3].double().cpu()
    determinant = float(torch.linalg.det(linear))
    scale = abs(determinant) ** (1 / 3)
    error = (linear @ linear.T - scale**2 * torch.eye(3, dtype=torch.float64)).abs().max()
    if not (determinant > 0 and float(error) <= 1e-4 * scale**2):
        raise ValueError(f"transform: expected a rotation with one scale in all directions, found {linear.tolist()}")
    rotation = linear / scale
    quat = quats_of(rotation).to(gaussians.quats)
    harmonics = spherical_harmonics.rotation_matrix(rotation, gaussians.sh_degree).to(gaussians.sh)
    return Gaussians(
        means=gaussians.means @ (linear.T).to(gaussians.means) + matrix[:3, 3].to(gaussians.means),
        quats=multiply_quats(quat.expand_as(gaussians.quats), gaussians.quats),
        scales=gaussians.scales * scale,
        opacities=gaussians.opacities,
        sh=torch.einsum("kj,njc->nkc", harmonics, gaussians.sh),
    )


def merge(parts: Sequence[Gaussians]) -> Gaussians:
    """All parts as one, in order; lower harmonic degrees are filled up with zeros. Raises ValueError for no parts."""
    if not parts:
        raise ValueError("merge: expected at least one set of Gaussians, found none")
    bases = max(part.sh.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(part.sh, (0, 0, 0, bases - part.sh.shape[1])) for part in parts]
    return Gaussians(
        means=torch.cat([part.means for part in parts]),
        quats=torch.cat([part.quats for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        opacities=torch.cat([part.opacities for part in parts]),
        sh=torch.cat(padded),
    )


def prune(gaussians: Gaussians, *, min_opacity: float) -> Gaussians:
    """Without the Gaussians that are fainter than `min_opacity` or hold a value that is not finite."""
    return gaussians[gaussians.finite & (gaussians.opacities >= min_opacity)]
