"""Splats under an affine transform: centres, covariances and spherical harmonics. Numpy only."""

from __future__ import annotations

import numpy as np

from .ply import SplatArrays


def transformed(splats: SplatArrays, matrix: np.ndarray) -> SplatArrays:
    """The splats moved by `matrix` [4,4] (column vectors), which may scale unevenly, shear and mirror.

    A rotation with even scale turns quaternions directly; anything else transforms each covariance R S^2 R^T and takes
    it apart again. Harmonics turn with the rotation nearest to the matrix, mirrored where the matrix mirrors.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if np.array_equal(matrix, np.eye(4)):
        return splats
    linear = matrix[:3, :3]
    means = (splats.means @ linear.T + matrix[:3, 3]).astype(np.float32)
    turn, size = _polar(linear)
    if np.allclose(linear, size * turn, rtol=0, atol=1e-6 * max(size, 1e-30)) and np.linalg.det(turn) > 0:
        quats = _product(_quat(turn[None]), splats.quats.astype(np.float64))
        scales = splats.scales * np.float32(size)
    else:
        quats, scales = _sheared(splats, linear)
    sh = _turned_harmonics(splats.sh, turn)
    return SplatArrays(means, quats.astype(np.float32), scales.astype(np.float32), splats.opacities, sh)


def _polar(linear: np.ndarray) -> tuple[np.ndarray, float]:
    """The orthogonal matrix nearest to `linear` and the mean of its stretches."""
    left, stretch, right = np.linalg.svd(linear)
    return left @ right, float(stretch.mean())


def _sheared(splats: SplatArrays, linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """quats [N,4] and scales [N,3] of the splats' ellipsoids under a general linear map."""
    axes = linear @ matrices(splats.quats.astype(np.float64)) * splats.scales[:, None, :]  # [N,3,3] columns
    left, stretch, _ = np.linalg.svd(axes)
    left[:, :, 2] *= np.sign(np.linalg.det(left))[:, None]  # an ellipsoid has no handedness, a quaternion has
    return _quat(left), stretch


def matrices(quats: np.ndarray) -> np.ndarray:
    """[N,3,3] rotation matrices of unit quaternions [N,4] wxyz."""
    w, x, y, z = quats.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _quat(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions [N,4] wxyz of rotation matrices [N,3,3]: the eigenvector of Bar-Itzhack's symmetric matrix."""
    r = rotations
    k = np.empty((len(r), 4, 4))
    for row in range(3):
        for column in range(3):
            k[:, row + 1, column + 1] = r[:, row, column] + r[:, column, row]
    trace = np.trace(r, axis1=1, axis2=2)
    for axis in range(3):
        k[:, axis + 1, axis + 1] -= trace
    k[:, 0, 0] = trace
    vector = np.stack([r[:, 2, 1] - r[:, 1, 2], r[:, 0, 2] - r[:, 2, 0], r[:, 1, 0] - r[:, 0, 1]], axis=1)
    k[:, 0, 1:] = k[:, 1:, 0] = vector
    return np.linalg.eigh(k)[1][:, :, -1]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation b, then a; wxyz."""
    aw, av, bw, bv = a[:, :1], a[:, 1:], b[:, :1], b[:, 1:]
    w = aw * bw - (av * bv).sum(axis=1, keepdims=True)
    return np.concatenate([w, aw * bv + bw * av + np.cross(av, bv)], axis=1)


# ---- spherical harmonics, in the real basis and signs of the 3D Gaussian splatting paper's code


def harmonics(directions: np.ndarray, degree: int) -> np.ndarray:
    """[N,(degree+1)^2] basis values at unit directions [N,3] (from the camera to the splat)."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    values = [np.full_like(x, 0.28209479177387814)]
    if degree > 0:
        c = 0.4886025119029199
        values += [-c * y, c * z, -c * x]
    if degree > 1:
        c, d, e = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        values += [c * x * y, -c * y * z, d * (2 * zz - xx - yy), -c * x * z, e * (xx - yy)]
    if degree > 2:
        c, d, e = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
        f, g = 0.3731763325901154, 1.445305721320277
        values += [-c * y * (3 * xx - yy), d * x * y * z, -e * y * (4 * zz - xx - yy)]
        values += [f * z * (2 * zz - 3 * xx - 3 * yy), -e * x * (4 * zz - xx - yy)]
        values += [g * z * (xx - yy), -c * x * (xx - 3 * yy)]
    return np.stack(values, axis=1)


def _turned_harmonics(sh: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """[N,K,3] coefficients of the same colours seen from directions turned by `turn` [3,3], band by band.

    A function f turned by R is f(R^T d). Each band maps onto itself, so its matrix follows from the band's values at a
    handful of directions (least squares, exact up to rounding).
    """
    degree = int(sh.shape[1] ** 0.5) - 1
    if degree == 0:
        return sh
    samples = np.random.default_rng(0).normal(size=(64, 3))
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    there, here = harmonics(samples, degree), harmonics(samples @ turn, degree)
    result = sh.copy()
    for band in range(1, degree + 1):
        part = slice(band * band, (band + 1) * (band + 1))
        matrix = np.linalg.lstsq(there[:, part], here[:, part], rcond=None)[0]  # coefficients after = matrix @ before
        result[:, part] = np.einsum("ij,njc->nic", matrix.astype(np.float32), sh[:, part])
    return result
