"""The rasteriser in plain torch: every Gaussian at every pixel, any float type, autograd. The yardstick of tests and of
`bench`.

It states the same maths as the numba kernels without tiles, bounds, or approximations; time and memory grow with
Gaussians times pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.cameras import Cameras
from backend.gaussians import Gaussians, colours_seen, rotation_matrices
from backend.projection import ALPHA_MAX, ALPHA_MIN, LOW_PASS, NEAR, TAN_MARGIN, TRANSMITTANCE_STOP


def rasterise_reference(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """[V,H,W,5]: premultiplied colour, depth (sum of weight times z), alpha, in the type of `gaussians.means`."""
    return torch.stack([_rasterise_view(gaussians, cameras[[view]]) for view in range(len(cameras))])


def project_reference(gaussians: Gaussians, camera: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Centres in pixels [N,2], covariances in the plane with low pass [N,2,2] and z [N], for one camera."""
    viewmat, K = camera.viewmats[0].to(gaussians.means), camera.Ks[0].to(gaussians.means)
    focal, centre = K.diagonal()[:2], K[:2, 2]
    size = torch.tensor([camera.width, camera.height]).to(focal)
    in_camera = gaussians.means @ viewmat[:3, :3].T + viewmat[:3, 3]
    plane, z = in_camera[:, :2], in_camera[:, 2]
    jacobian = torch.zeros(len(gaussians), 2, 3).to(focal)
    if camera.orthographic[0]:
        means2d = plane * focal + centre
        jacobian = jacobian + torch.cat([torch.diag(focal), torch.zeros(2, 1).to(focal)], 1)
    else:
        means2d = plane / z[:, None] * focal + centre
        margin = TAN_MARGIN * 0.5 * size / focal
        tangent = torch.minimum(
            torch.maximum(plane / z[:, None], -centre / focal - margin), (size - centre) / focal + margin
        )
        diagonal = torch.diag_embed(focal / z[:, None])
        jacobian = torch.cat([diagonal, (-focal * tangent / z[:, None])[..., None]], -1)
    axes = jacobian @ viewmat[:3, :3] @ rotation_matrices(gaussians.quats) * gaussians.scales[:, None]
    return means2d, axes @ axes.transpose(1, 2) + LOW_PASS * torch.eye(2).to(focal), z


def _rasterise_view(gaussians: Gaussians, camera: Cameras) -> Tensor:
    means2d, covariances, z = project_reference(gaussians, camera)
    colours = torch.cat([colours_seen(gaussians, camera), z[:, None], torch.ones_like(z)[:, None]], 1)
    order = torch.argsort(z, stable=True)
    order = order[z[order] > NEAR]
    y, x = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 1, 2).to(z) + 0.5
    offsets = pixels - means2d[order]
    squares = torch.einsum("pni,nij,pnj->pn", offsets, torch.linalg.inv(covariances[order]), offsets)
    alphas = gaussians.opacities[order] * torch.exp(-0.5 * squares)
    alphas = torch.where(alphas >= ALPHA_MIN, torch.clamp(alphas, max=ALPHA_MAX), 0)
    after = torch.cumprod(1 - alphas, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    weights = torch.where(after >= TRANSMITTANCE_STOP, before * alphas, 0)
    return (weights @ colours[order]).reshape(camera.height, camera.width, 5)
