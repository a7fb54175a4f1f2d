"""Real spherical harmonics up to degree 3, in the sign and order convention of 3D Gaussian splatting files.

The same polynomials stand here twice: for torch (any device and type, autograd) and for numba (one direction at a time,
with its derivatives). Tests hold them together.
"""

from __future__ import annotations

import math

import torch
from numba import njit
from torch import Tensor

C0 = 0.28209479177387814  # 1 / (2 sqrt(pi))
C1 = 0.4886025119029199  # sqrt(3 / (4 pi))
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


def basis(directions: Tensor, degree: int) -> Tensor:
    """[..., (degree+1)^2] harmonics at unit `directions` [...,3]; degree 0 to 3."""
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree > 0:
        values += [-C1 * y, C1 * z, -C1 * x]
    if degree > 1:
        values += [C2[0] * x * y, -C2[0] * y * z, C2[1] * (2 * z * z - x * x - y * y)]
        values += [-C2[0] * x * z, C2[2] * (x * x - y * y)]
    if degree > 2:
        values += [-C3[0] * y * (3 * x * x - y * y), C3[1] * x * y * z, -C3[2] * y * (4 * z * z - x * x - y * y)]
        values += [C3[3] * z * (2 * z * z - 3 * x * x - 3 * y * y), -C3[2] * x * (4 * z * z - x * x - y * y)]
        values += [C3[4] * z * (x * x - y * y), -C3[0] * x * (x * x - 3 * y * y)]
    return torch.stack(values, -1)


def rotation_matrix(rotation: Tensor, degree: int) -> Tensor:
    """[K,K] in float64: coefficients c of a function f become `matrix @ c` of the turned function d -> f(rotation^T d).

    `rotation` is a proper [3,3] rotation. Harmonics of one degree mix only among themselves, so the matrix is found
    exactly by evaluating both sides at more directions than there are coefficients and solving for it.
    """
    directions = _spread_directions(64).to(rotation.device)
    turned = basis(directions @ rotation.double(), degree)  # row vectors: d R is R^T d
    return torch.linalg.lstsq(basis(directions, degree), turned).solution


def _spread_directions(count: int) -> Tensor:
    """[count,3] float64 unit vectors on a Fibonacci spiral: spread evenly, the same at each call."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * index / count
    azimuth = index * math.pi * (1 + math.sqrt(5))
    radius = torch.sqrt(1 - z * z)
    return torch.stack([radius * torch.cos(azimuth), radius * torch.sin(azimuth), z], -1)


@njit(cache=True)
def evaluate(bases, x, y, z, out):
    """Write the first `bases` harmonics at the unit direction (x, y, z) into `out` [16]."""
    out[0] = C0
    if bases > 1:
        out[1] = -C1 * y
        out[2] = C1 * z
        out[3] = -C1 * x
    if bases > 4:
        out[4] = C2[0] * x * y
        out[5] = -C2[0] * y * z
        out[6] = C2[1] * (2 * z * z - x * x - y * y)
        out[7] = -C2[0] * x * z
        out[8] = C2[2] * (x * x - y * y)
    if bases > 9:
        out[9] = -C3[0] * y * (3 * x * x - y * y)
        out[10] = C3[1] * x * y * z
        out[11] = -C3[2] * y * (4 * z * z - x * x - y * y)
        out[12] = C3[3] * z * (2 * z * z - 3 * x * x - 3 * y * y)
        out[13] = -C3[2] * x * (4 * z * z - x * x - y * y)
        out[14] = C3[4] * z * (x * x - y * y)
        out[15] = -C3[0] * x * (x * x - 3 * y * y)


@njit(cache=True)
def gradient(bases, weights, x, y, z):
    """Derivative of sum_k weights[k] basis_k over the first `bases` by the direction (x, y, z), its coordinates taken
    as free.
    """
    gx = gy = gz = 0.0
    if bases > 1:
        gx, gy, gz = -C1 * weights[3], -C1 * weights[1], C1 * weights[2]
    if bases > 4:
        a, b, c, d, e = weights[4], weights[5], weights[6], weights[7], weights[8]
        gx += C2[0] * (y * a - z * d) - 2 * C2[1] * x * c + 2 * C2[2] * x * e
        gy += C2[0] * (x * a - z * b) - 2 * C2[1] * y * c - 2 * C2[2] * y * e
        gz += C2[0] * (-y * b - x * d) + 4 * C2[1] * z * c
    if bases > 9:
        a, b, c, d, e = weights[9], weights[10], weights[11], weights[12], weights[13]
        f, g = weights[14], weights[15]
        xx, yy, zz = x * x, y * y, z * z
        gx += -6 * C3[0] * x * y * a + C3[1] * y * z * b + 2 * C3[2] * x * y * c - 6 * C3[3] * x * z * d
        gx += -C3[2] * (4 * zz - 3 * xx - yy) * e + 2 * C3[4] * x * z * f - 3 * C3[0] * (xx - yy) * g
        gy += -3 * C3[0] * (xx - yy) * a + C3[1] * x * z * b - C3[2] * (4 * zz - xx - 3 * yy) * c
        gy += -6 * C3[3] * y * z * d + 2 * C3[2] * x * y * e - 2 * C3[4] * y * z * f + 6 * C3[0] * x * y * g
        gz += C3[1] * x * y * b - 8 * C3[2] * y * z * c + C3[3] * (6 * zz - 3 * xx - 3 * yy) * d
        gz += -8 * C3[2] * x * z * e + C3[4] * (xx - yy) * f
    return gx, gy, gz
