"""render(): the one way from Gaussians to pictures. On CUDA through gsplat where that is built, else on the CPU."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.cameras import Cameras
from backend.gaussians import Gaussians, colours_seen
from backend.projection import LOW_PASS, NEAR
from backend.rasterise_cpu import rasterise, rasterise_median_depth

log = logging.getLogger(__name__)
GSPLAT_TILE = 16


@dataclass(frozen=True)
class Rendering:
    """V pictures.

    rgb    [V,H,W,3] sRGB, premultiplied by alpha unless a background was given, then composited over it
    alpha  [V,H,W]   0..1
    depth  [V,H,W]   sum of weight times camera z, not divided by alpha
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    background: Tensor | None = None,
    *,
    screen_offsets: Tensor | None = None,
) -> Rendering:
    """Differentiable pictures of the Gaussians from every camera, over `background` [3] or [V,3] if given.

    screen_offsets  None or [V,N,2] pixels, added to the projected centres: zeros that require a gradient receive, after
                    backward(), the gradient by the centres in the picture plane (the statistic that densification
                    uses).
    Gaussians with a value that is not finite are left out. Raises MemoryError when a view needs too much memory.
    """
    device = gaussians.means.device
    if device.type == "cuda" and _usable_gsplat():
        image = _rasterise_cuda(gaussians, cameras.to(device), screen_offsets)
    else:
        offsets = None if screen_offsets is None else screen_offsets.cpu()
        image = rasterise(gaussians.to("cpu"), cameras.to("cpu"), offsets).to(device)
    rgb, depth, alpha = image[..., :3], image[..., 3], image[..., 4]
    if background is not None:
        rgb = rgb + (1 - alpha[..., None]) * background.to(device).expand(len(cameras), 3)[:, None, None]
    return Rendering(rgb=rgb, alpha=alpha, depth=depth)


def median_depth(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """[V,H,W] camera z at which a pixel's transmittance falls to one half, 0 where it stays above: not differentiable.

    At the edge of a surface it is one surface's depth, where the mean is a mixture of both; surfaces are fused from it.
    """
    device = gaussians.means.device
    return rasterise_median_depth(gaussians.detach().to("cpu"), cameras.to("cpu")).to(device)


def cuda_problem() -> str:
    """Why torch has no CUDA here, as a sentence; empty where it has."""
    return "" if torch.cuda.is_available() else "No NVIDIA GPU is available to torch."


def gsplat_problem() -> str:
    """Why gsplat cannot rasterise here, as a sentence; empty when it can. Compiles nothing."""
    if problem := cuda_problem():
        return problem
    folder = _gsplat_folder()
    if folder is None:
        return "The package gsplat is not installed."
    if _prebuilt_extension(folder) or _compiled_extension():
        return ""
    return (
        "The package gsplat is installed without its compiled CUDA extension; install a wheel that has it, "
        'or compile it once with: python -c "from gsplat.cuda import _backend" '
        "(needs the CUDA toolkit and a C++ compiler)."
    )


def _gsplat_folder() -> Path | None:
    """Where the package gsplat lies, found without importing it."""
    package = importlib.util.find_spec("gsplat")
    folders = None if package is None else package.submodule_search_locations
    return Path(folders[0]) if folders else None


def _prebuilt_extension(package: Path) -> Path | None:
    """The extension inside gsplat's folder, as wheels with binaries have it."""
    names = (package / f"csrc{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((name for name in names if name.is_file()), None)


def _compiled_extension() -> Path | None:
    """The extension that gsplat compiled earlier on this machine, in torch's folder for such things."""
    from torch.utils import cpp_extension

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    versioned = f"py{sys.version_info.major}{sys.version_info.minor}_cu{(torch.version.cuda or '').replace('.', '')}"
    folders = [root, *root.glob(f"{versioned}*")]
    names = (folder / "gsplat_cuda" / f"gsplat_cuda{suffix}" for folder in folders for suffix in (".so", ".pyd"))
    return next((name for name in names if name.is_file()), None)


@cache
def _usable_gsplat() -> bool:
    """Whether gsplat can be used; says once why not.

    gsplat compiles on first use unless it finds its prebuilt extension, so one that it compiled earlier is loaded here
    under the name of the prebuilt one.
    """
    problem = gsplat_problem()
    if problem:
        log.warning("Rendering on the CPU, which is slower. %s", problem)
        return False
    compiled = None if _prebuilt_extension(_gsplat_folder() or Path()) else _compiled_extension()
    if compiled is not None:
        loader = importlib.machinery.ExtensionFileLoader("gsplat_cuda", str(compiled))
        spec = importlib.machinery.ModuleSpec("gsplat_cuda", loader, origin=str(compiled))
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        sys.modules["gsplat.csrc"] = module
    return True


def _rasterise_cuda(gaussians: Gaussians, cameras: Cameras, screen_offsets: Tensor | None) -> Tensor:
    """[V,H,W,5] as `rasterise_cpu.rasterise` gives it. gsplat clamps alpha at 0.999 instead of 0.99; all else is the
    same.
    """
    finite = gaussians.finite
    gaussians = gaussians[finite]
    if len(gaussians) == 0 or len(cameras) == 0:
        return gaussians.means.new_zeros(len(cameras), cameras.height, cameras.width, 5)
    offsets = [None] * len(cameras) if screen_offsets is None else screen_offsets[:, finite]
    return torch.stack(
        [_rasterise_cuda_view(gaussians, cameras[[view]], offsets[view]) for view in range(len(cameras))]
    )


def _rasterise_cuda_view(gaussians: Gaussians, camera: Cameras, offsets: Tensor | None) -> Tensor:
    import gsplat  # type: ignore[import-not-found]  # an optional package, see gsplat_problem

    width, height = camera.width, camera.height
    radii, means2d, depths, conics, _ = gsplat.fully_fused_projection(
        *(gaussians.means, None, gaussians.quats, gaussians.scales),
        *(camera.viewmats, camera.Ks, width, height),
        eps2d=LOW_PASS,
        near_plane=NEAR,
        camera_model="ortho" if camera.orthographic[0] else "pinhole",
        opacities=gaussians.opacities,
    )
    if offsets is not None:
        means2d = means2d + offsets
    columns, rows = -(-width // GSPLAT_TILE), -(-height // GSPLAT_TILE)
    _, tile_ids, members = gsplat.isect_tiles(means2d, radii, depths, GSPLAT_TILE, columns, rows)
    starts = gsplat.isect_offset_encode(tile_ids, 1, columns, rows)
    colours = torch.cat([colours_seen(gaussians, camera), depths[0, :, None]], 1)
    image, alpha = gsplat.rasterize_to_pixels(
        *(means2d, conics, colours[None], gaussians.opacities[None]),
        *(width, height, GSPLAT_TILE, starts.reshape(1, rows, columns), members),
    )
    return torch.cat([image, alpha], -1)[0]


def straight_rgba(rendering: Rendering) -> np.ndarray:
    """[V,H,W,4] uint8, straight alpha, of premultiplied pictures; colour is 0 where nothing is."""
    alpha = rendering.alpha[..., None]
    rgb = torch.where(alpha > 1e-6, rendering.rgb / alpha.clamp(min=1e-6), 0.0)
    rgba = torch.cat([rgb, alpha], dim=-1).clamp(0, 1)
    return (rgba * 255).round().to(torch.uint8).cpu().numpy()
