"""From Gaussians in the world to splats on the picture plane and back: one fused pass over the Gaussians, forward and
backward.

The maths is that of EWA splatting (Zwicker et al. 2002) as 3D Gaussian splatting uses it (Kerbl et al. 2023, section
4): covariance in the plane = J W R S S^T R^T W^T J^T + low pass. `rasterise_reference.py` says the same in a few lines
of torch. Arithmetic is in float64: it costs scalar code nothing and keeps thin and distant Gaussians exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from backend import spherical_harmonics
from backend.cameras import Cameras

# Constants of gsplat's classic mode. One differs: gsplat clamps alpha at 0.999, the rasteriser that LGM and GRM were
# trained with at 0.99; the published networks' pictures decide.
LOW_PASS = 0.3  # px^2, added to the diagonal of the covariance in the plane
ALPHA_MIN = 1 / 255  # weaker contributions are left out
ALPHA_MAX = 0.99
TRANSMITTANCE_STOP = 1e-4  # a pixel is done before its transmittance falls under this
NEAR = 0.01  # scene units
TAN_MARGIN = 0.3  # how far outside the picture, in half widths, the Jacobian still follows the Gaussian

# The blend's exp() takes alpha's logarithm shifted by this, so that its range [ln(1/255), 0] lies around zero.
LOG_CENTRE = math.log(255) / 2

# Columns of a splat: centre in pixels, conic (inverse covariance [[A, B], [B, C]]), shifted logarithm of the opacity,
# colour, camera z, half extents in pixels of the ellipse where alpha is at least ALPHA_MIN. Its gradient has the first
# ten.
MEAN_X, MEAN_Y, CONIC_A, CONIC_B, CONIC_C, LOG_OPACITY, RED, GREEN, BLUE, DEPTH, EXTENT_X, EXTENT_Y = range(12)
SPLAT_COLUMNS, GRADIENT_COLUMNS = 12, 10

HIDDEN = np.inf  # sorting depth of a Gaussian that the camera does not see


class Scene(NamedTuple):
    """Gaussians as contiguous float32 arrays: the fields and shapes of `backend.gaussians.Gaussians`, or their
    gradients.
    """

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    sh: np.ndarray


class Lens(NamedTuple):
    """One camera.

    viewmat   [4,4] float64 world to camera; centre [3] float64 in the world
    fx ... cy pixels (see Cameras.Ks)
    tangents  [4] float64: lowest and highest x/z, then y/z, at which the Jacobian still follows a Gaussian
    """

    viewmat: np.ndarray
    centre: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float
    tangents: np.ndarray
    width: int
    height: int
    orthographic: bool


def lenses(cameras: Cameras) -> list[Lens]:
    """The cameras as the kernels take them."""
    viewmats, Ks = cameras.viewmats.detach().double().cpu().numpy(), cameras.Ks.detach().double().cpu().numpy()
    centres = cameras.centres.detach().double().cpu().numpy()
    return [
        _lens(
            np.ascontiguousarray(viewmats[view]),
            np.ascontiguousarray(centres[view]),
            Ks[view],
            (cameras.width, cameras.height),
            bool(cameras.orthographic[view]),
        )
        for view in range(len(cameras))
    ]


def _lens(viewmat: np.ndarray, centre: np.ndarray, K: np.ndarray, size: tuple[int, int], orthographic: bool) -> Lens:
    width, height = size
    fx, fy, cx, cy = float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])
    margin_x, margin_y = TAN_MARGIN * 0.5 * width / fx, TAN_MARGIN * 0.5 * height / fy
    low_x, high_x = -cx / fx - margin_x, (width - cx) / fx + margin_x
    low_y, high_y = -cy / fy - margin_y, (height - cy) / fy + margin_y
    tangents = np.array([low_x, high_x, low_y, high_y])
    return Lens(viewmat, centre, fx, fy, cx, cy, tangents, width, height, orthographic)


@njit(cache=True, inline="always", error_model="numpy")
def _to_camera(viewmat, means, i):
    """Camera-space position of Gaussian i."""
    x, y, z = means[i, 0], means[i, 1], means[i, 2]
    return (
        viewmat[0, 0] * x + viewmat[0, 1] * y + viewmat[0, 2] * z + viewmat[0, 3],
        viewmat[1, 0] * x + viewmat[1, 1] * y + viewmat[1, 2] * z + viewmat[1, 3],
        viewmat[2, 0] * x + viewmat[2, 1] * y + viewmat[2, 2] * z + viewmat[2, 3],
    )


@njit(cache=True, inline="always", error_model="numpy")
def _unit_quat(quats, i):
    """Quaternion i at unit length, and one over the length it had."""
    w, x, y, z = float(quats[i, 0]), float(quats[i, 1]), float(quats[i, 2]), float(quats[i, 3])
    square = w * w + x * x + y * y + z * z
    inverse = 1 / math.sqrt(square) if square > 0 else math.nan
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@njit(cache=True, inline="always", error_model="numpy")
def _rotation(w, x, y, z):
    """Rows of the rotation of a unit quaternion."""
    return (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )


@njit(cache=True, inline="always", error_model="numpy")
def _held_tangents(lens, ratio_x, ratio_y):
    """x/z and y/z held near the picture, where a linear approximation of the perspective still means something."""
    low_x, high_x, low_y, high_y = lens.tangents[0], lens.tangents[1], lens.tangents[2], lens.tangents[3]
    return min(max(ratio_x, low_x), high_x), min(max(ratio_y, low_y), high_y)


@njit(cache=True, inline="always", error_model="numpy")
def _plane_axes(lens, x, y, z):
    """Rows of J W [2,3]: how the position on the picture moves with a step in the world, at a camera-space position."""
    v = lens.viewmat
    if lens.orthographic:
        a, b, tan_x, tan_y = lens.fx, lens.fy, 0.0, 0.0
    else:
        a, b = lens.fx / z, lens.fy / z
        tan_x, tan_y = _held_tangents(lens, x / z, y / z)
    return (
        (a * (v[0, 0] - tan_x * v[2, 0]), a * (v[0, 1] - tan_x * v[2, 1]), a * (v[0, 2] - tan_x * v[2, 2])),
        (b * (v[1, 0] - tan_y * v[2, 0]), b * (v[1, 1] - tan_y * v[2, 1]), b * (v[1, 2] - tan_y * v[2, 2])),
    )


@njit(cache=True, inline="always", error_model="numpy")
def _times_rotation(row, rotation):
    return (
        row[0] * rotation[0][0] + row[1] * rotation[1][0] + row[2] * rotation[2][0],
        row[0] * rotation[0][1] + row[1] * rotation[1][1] + row[2] * rotation[2][1],
        row[0] * rotation[0][2] + row[1] * rotation[1][2] + row[2] * rotation[2][2],
    )


@njit(cache=True, inline="always", error_model="numpy")
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, inline="always", error_model="numpy")
def _view_direction(lens, means, i):
    """Unit direction from the camera to Gaussian i, and one over the distance; an orthographic camera looks the same
    way everywhere.
    """
    if lens.orthographic:
        return lens.viewmat[2, 0], lens.viewmat[2, 1], lens.viewmat[2, 2], 0.0
    x, y, z = means[i, 0] - lens.centre[0], means[i, 1] - lens.centre[1], means[i, 2] - lens.centre[2]
    inverse = 1 / max(math.sqrt(x * x + y * y + z * z), 1e-12)
    return x * inverse, y * inverse, z * inverse, inverse


@njit(cache=True, error_model="numpy")
def _project_one(scene, lens, i, harmonics, splat):
    """Fill `splat` for Gaussian i and return its camera z, or HIDDEN where it cannot touch a pixel or is not finite."""
    x, y, z = _to_camera(lens.viewmat, scene.means, i)
    opacity = float(scene.opacities[i])
    if not (z > NEAR and z < np.inf and opacity > ALPHA_MIN and opacity < np.inf):
        return HIDDEN
    w, qx, qy, qz, _ = _unit_quat(scene.quats, i)
    rotation = _rotation(w, qx, qy, qz)
    row_x, row_y = _plane_axes(lens, x, y, z)
    local_x, local_y = _times_rotation(row_x, rotation), _times_rotation(row_y, rotation)
    s0, s1, s2 = float(scene.scales[i, 0]), float(scene.scales[i, 1]), float(scene.scales[i, 2])
    mx = (local_x[0] * s0, local_x[1] * s1, local_x[2] * s2)
    my = (local_y[0] * s0, local_y[1] * s1, local_y[2] * s2)
    a, b, c = _dot(mx, mx) + LOW_PASS, _dot(mx, my), _dot(my, my) + LOW_PASS
    determinant = a * c - b * b
    if lens.orthographic:
        u, v = lens.fx * x + lens.cx, lens.fy * y + lens.cy
    else:
        u, v = lens.fx * x / z + lens.cx, lens.fy * y / z + lens.cy
    reach = 2 * math.log(opacity / ALPHA_MIN)
    extent_x, extent_y = math.sqrt(reach * a), math.sqrt(reach * c)
    on_picture = u + extent_x > 0 and u - extent_x < lens.width and v + extent_y > 0 and v - extent_y < lens.height
    if not (on_picture and determinant > 0 and extent_x < 1e9 and extent_y < 1e9):
        return HIDDEN
    splat[MEAN_X], splat[MEAN_Y] = u, v
    splat[CONIC_A], splat[CONIC_B], splat[CONIC_C] = c / determinant, -b / determinant, a / determinant
    splat[LOG_OPACITY] = math.log(opacity) + LOG_CENTRE
    splat[DEPTH], splat[EXTENT_X], splat[EXTENT_Y] = z, extent_x, extent_y
    return z if _colour(scene, lens, i, harmonics, splat) else HIDDEN


@njit(cache=True, error_model="numpy")
def _colour(scene, lens, i, harmonics, splat):
    """Fill the colour of Gaussian i as seen by the camera; whether it is finite."""
    dx, dy, dz, _ = _view_direction(lens, scene.means, i)
    bases = scene.sh.shape[1]
    spherical_harmonics.evaluate(bases, dx, dy, dz, harmonics)
    total = 0.0
    for channel in range(3):
        value = 0.5
        for k in range(bases):
            value += harmonics[k] * scene.sh[i, k, channel]
        total += value
        splat[RED + channel] = max(value, 0.0)
    return math.isfinite(total)


@njit(cache=True, parallel=True, error_model="numpy")
def project(scene, lens, workers, splats, depths):
    """Fill `splats` [N,SPLAT_COLUMNS] and `depths` [N] (camera z, or HIDDEN and the splat is undefined) for one
    camera.
    """
    count = scene.means.shape[0]
    for worker in prange(workers):
        harmonics = np.empty(16, np.float64)
        for i in range(worker * count // workers, (worker + 1) * count // workers):
            depths[i] = _project_one(scene, lens, i, harmonics, splats[i])


@njit(cache=True, error_model="numpy")
def _colour_backward(scene, lens, i, splat, grad, harmonics, grads):
    """Add a splat's colour gradient to Gaussian i's coefficients; return what it means for the Gaussian's position."""
    dx, dy, dz, inverse = _view_direction(lens, scene.means, i)
    bases = scene.sh.shape[1]
    spherical_harmonics.evaluate(bases, dx, dy, dz, harmonics)
    g0 = grad[RED] if splat[RED] > 0 else 0.0
    g1 = grad[GREEN] if splat[GREEN] > 0 else 0.0
    g2 = grad[BLUE] if splat[BLUE] > 0 else 0.0
    for k in range(bases):
        value = harmonics[k]
        grads.sh[i, k, 0] += value * g0
        grads.sh[i, k, 1] += value * g1
        grads.sh[i, k, 2] += value * g2
        harmonics[k] = scene.sh[i, k, 0] * g0 + scene.sh[i, k, 1] * g1 + scene.sh[i, k, 2] * g2
    if bases == 1:
        return 0.0, 0.0, 0.0
    gx, gy, gz = spherical_harmonics.gradient(bases, harmonics, dx, dy, dz)
    along = gx * dx + gy * dy + gz * dz  # normalising the direction removes this part
    return inverse * (gx - along * dx), inverse * (gy - along * dy), inverse * (gz - along * dz)


@njit(cache=True, inline="always", error_model="numpy")
def _quat_backward(w, x, y, z, inverse, g):
    """Gradient by the unnormalised quaternion from that by its rotation's entries, `g` as three rows."""
    gw = 2 * (x * (g[2][1] - g[1][2]) + y * (g[0][2] - g[2][0]) + z * (g[1][0] - g[0][1]))
    gx = 2 * (y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) + w * (g[2][1] - g[1][2]) - 2 * x * (g[1][1] + g[2][2]))
    gy = 2 * (x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) + w * (g[0][2] - g[2][0]) - 2 * y * (g[0][0] + g[2][2]))
    gz = 2 * (x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) + w * (g[1][0] - g[0][1]) - 2 * z * (g[0][0] + g[1][1]))
    along = gw * w + gx * x + gy * y + gz * z
    return (
        inverse * (gw - along * w),
        inverse * (gx - along * x),
        inverse * (gy - along * y),
        inverse * (gz - along * z),
    )


@njit(cache=True, inline="always", error_model="numpy")
def _covariance_backward(splat, grad):
    """Gradient by the covariance in the plane (aa, ab, bb as a symmetric matrix) from that by its inverse: -Q G Q."""
    a, b, c = float(splat[CONIC_A]), float(splat[CONIC_B]), float(splat[CONIC_C])
    ga, gb, gc = float(grad[CONIC_A]), 0.5 * grad[CONIC_B], float(grad[CONIC_C])
    p, q, r, s = a * ga + b * gb, a * gb + b * gc, b * ga + c * gb, b * gb + c * gc  # Q G
    return -(p * a + q * b), -(p * b + q * c), -(r * b + s * c)


@njit(cache=True, inline="always", error_model="numpy")
def _position_backward(lens, x, y, z, grad, gp_x, gp_y):
    """Gradient by the camera-space position, from the splat's centre and depth and from the rows of J W, `gp_x` and
    `gp_y`.
    """
    if lens.orthographic:
        return lens.fx * grad[MEAN_X], lens.fy * grad[MEAN_Y], float(grad[DEPTH])
    v = lens.viewmat
    a, b, ratio_x, ratio_y = lens.fx / z, lens.fy / z, x / z, y / z
    tan_x, tan_y = _held_tangents(lens, ratio_x, ratio_y)
    forward = (v[2, 0], v[2, 1], v[2, 2])
    forward_x, forward_y = _dot(gp_x, forward), _dot(gp_y, forward)
    scale_x = _dot(gp_x, (v[0, 0], v[0, 1], v[0, 2])) - tan_x * forward_x  # by a
    scale_y = _dot(gp_y, (v[1, 0], v[1, 1], v[1, 2])) - tan_y * forward_y  # by b
    tangent_x = -a * forward_x if tan_x == ratio_x else 0.0
    tangent_y = -b * forward_y if tan_y == ratio_y else 0.0
    ratio_gx, ratio_gy = lens.fx * grad[MEAN_X] + tangent_x, lens.fy * grad[MEAN_Y] + tangent_y
    along_z = ratio_gx * ratio_x + ratio_gy * ratio_y + scale_x * a + scale_y * b
    return ratio_gx / z, ratio_gy / z, grad[DEPTH] - along_z / z


@njit(cache=True, inline="always", error_model="numpy")
def _axis_backward(scale, axis_x, axis_y, gaa, gab, gbb):
    """Gradients by one axis' scale and by its two unscaled picture components, from that by the covariance in the
    plane.
    """
    gx, gy = 2 * scale * (gaa * axis_x + gab * axis_y), 2 * scale * (gab * axis_x + gbb * axis_y)
    return gx * axis_x + gy * axis_y, scale * gx, scale * gy


@njit(cache=True, inline="always", error_model="numpy")
def _outer_sum(row_x, row_y, gl_x, gl_y, j):
    """Row j of the gradient by the rotation: P^T G for P the rows of J W."""
    return (
        row_x[j] * gl_x[0] + row_y[j] * gl_y[0],
        row_x[j] * gl_x[1] + row_y[j] * gl_y[1],
        row_x[j] * gl_x[2] + row_y[j] * gl_y[2],
    )


@njit(cache=True, error_model="numpy")
def _project_one_backward(scene, lens, i, splat, grad, harmonics, grads):
    """Add to `grads` what the gradient of one splat means for Gaussian i."""
    x, y, z = _to_camera(lens.viewmat, scene.means, i)
    w, qx, qy, qz, inverse = _unit_quat(scene.quats, i)
    rotation = _rotation(w, qx, qy, qz)
    row_x, row_y = _plane_axes(lens, x, y, z)
    local_x, local_y = _times_rotation(row_x, rotation), _times_rotation(row_y, rotation)
    gaa, gab, gbb = _covariance_backward(splat, grad)
    gs0, gx0, gy0 = _axis_backward(float(scene.scales[i, 0]), local_x[0], local_y[0], gaa, gab, gbb)
    gs1, gx1, gy1 = _axis_backward(float(scene.scales[i, 1]), local_x[1], local_y[1], gaa, gab, gbb)
    gs2, gx2, gy2 = _axis_backward(float(scene.scales[i, 2]), local_x[2], local_y[2], gaa, gab, gbb)
    grads.scales[i, 0] += gs0
    grads.scales[i, 1] += gs1
    grads.scales[i, 2] += gs2
    gl_x, gl_y = (gx0, gx1, gx2), (gy0, gy1, gy2)
    rotation_rows = (
        _outer_sum(row_x, row_y, gl_x, gl_y, 0),
        _outer_sum(row_x, row_y, gl_x, gl_y, 1),
        _outer_sum(row_x, row_y, gl_x, gl_y, 2),
    )
    gw, gqx, gqy, gqz = _quat_backward(w, qx, qy, qz, inverse, rotation_rows)
    grads.quats[i, 0] += gw
    grads.quats[i, 1] += gqx
    grads.quats[i, 2] += gqy
    grads.quats[i, 3] += gqz
    gp_x = (_dot(gl_x, rotation[0]), _dot(gl_x, rotation[1]), _dot(gl_x, rotation[2]))
    gp_y = (_dot(gl_y, rotation[0]), _dot(gl_y, rotation[1]), _dot(gl_y, rotation[2]))
    px, py, pz = _position_backward(lens, x, y, z, grad, gp_x, gp_y)
    colour = _colour_backward(scene, lens, i, splat, grad, harmonics, grads)
    v = lens.viewmat
    for k in range(3):
        grads.means[i, k] += v[0, k] * px + v[1, k] * py + v[2, k] * pz + colour[k]
    grads.opacities[i] += grad[LOG_OPACITY] / scene.opacities[i]


@njit(cache=True, parallel=True, error_model="numpy")
def project_backward(scene, lens, workers, splats, depths, splat_grads, grads):
    """Add to the Scene `grads` what `splat_grads` [N,GRADIENT_COLUMNS] mean; `splats` and `depths` are what `project`
    filled.
    """
    count = scene.means.shape[0]
    for worker in prange(workers):
        harmonics = np.empty(16, np.float64)
        for i in range(worker * count // workers, (worker + 1) * count // workers):
            if depths[i] < HIDDEN:
                _project_one_backward(scene, lens, i, splats[i], splat_grads[i], harmonics, grads)
