"""One function a job, readable from top to bottom: views in, Gaussians and a textured mesh out."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from backend import meshing, placing, texturing
from backend.cameras import BadInput, Cameras, Views
from backend.fit import FitConfig, fit, mean_psnr, reduce_views
from backend.gaussians import Gaussians
from backend.monitor import Monitor
from backend.rendering import cuda_problem, gsplat_problem
from backend.texturing import TexturedMesh
from blender_addon import protocol
from blender_addon.families import FAMILIES, Precision

log = logging.getLogger(__name__)

MODELS = tuple(FAMILIES)
MAX_SIDE = 8192
MAX_VIEWS = 1024
MAX_PIXELS = 2**28  # of all views together: 4 GiB as float32 RGBA
RIGID = 1e-3  # how far a camera's axes may be from orthonormal
LIMITS = {  # lowest and highest value of an option
    "steps": (0, 1_000_000),
    "refine": (0, 1_000_000),
    "max_splats": (0, 16_000_000),
    "faces": (4, 10_000_000),
    "texture_size": (16, 16_384),
    "size": (0.0, 1e6),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class ReconstructOptions:
    """What to make of some views. Raises BadInput for a value outside its limits.

    model         family that makes the splats
    weights       a checkpoint's name or path; empty: the model's default
    precision     of a network's numbers; auto: the most exact that fits into the memory
    steps         optimisation steps of `fit`, 0: the default for the views
    refine        steps of fit that start from the model's result
    max_splats    0: the default
    faces         most faces of the mesh
    texture_size  pixels of a side
    size          longest side of the result, scene units, which then stands on the world's origin; 0: left as it is
    """

    model: str = "fit"
    weights: str = ""
    precision: Precision = "auto"
    steps: int = 0
    refine: int = 0
    max_splats: int = 0
    mesh: bool = False
    faces: int = 20_000
    texture_size: int = 1024
    size: float = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise BadInput(f"model: expected {' or '.join(MODELS)}, found {self.model!r}")
        if self.weights and self.model == "fit":
            raise BadInput(f"weights: the model 'fit' has none, found {self.weights!r}")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise BadInput(f"{name}: expected a number from {low} to {high}, found {value}")


@dataclass(frozen=True)
class Reconstruction:
    """Gaussians in the world, on the CPU; the mesh if one was wanted and could be made; a report that JSON can hold."""

    gaussians: Gaussians
    mesh: TexturedMesh | None
    report: dict[str, Any]


@dataclass
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def reconstruct(views: Views, options: ReconstructOptions, monitor: Monitor) -> Reconstruction:
    """Splats, and a textured mesh if wanted, of some views.

    A mesh that cannot be made is no failure: the report's `problems` says why, and the splats are there.
    Raises BadInput for views that make no sense, NothingSeen when they show no common object, JobCancelled.
    """
    check_views(views)
    device, clock, problems = choose_device(options.device, options.model), _Clock(), list[str]()
    views = views.to(device)
    with clock.stage("splats"):
        made = _splats(views, options, device, monitor)
    gaussians, mesh, mesh_report = made.gaussians.detach(), None, None
    if options.mesh:
        try:
            mesh, mesh_report = _mesh(made, views, options, monitor, clock)
        except ValueError as error:  # no surface could be found; the splats are worth having all the same
            log.warning("no mesh could be made", exc_info=True)
            problems.append(f"no mesh: {error}")
    placed = None
    if options.size:
        placed = placing.stand(gaussians, mesh, options.size)
        gaussians, mesh = placed.gaussians, placed.mesh
    clock.seconds["total"] = round(sum(clock.seconds.values()), 3)
    report = {
        "model": options.model,
        "weights": made.weights,
        "weights_sha256": made.sha256,
        "precision": made.precision,
        "device": str(device),
        "device_name": device_name(device),
        "seed": options.seed,
        "views": len(views),
        "width": views.cameras.width,
        "height": views.cameras.height,
        "splats": len(gaussians),
        "sh_degree": gaussians.sh_degree,
        "steps": made.steps,
        "stopped_early": made.stopped_early,
        "start": made.start,
        "fitted_size": list(made.size),
        "psnr": _number(made.psnr),
        "mesh": mesh_report,
        "placed": None if placed is None else placed.report,
        "problems": problems,
        "seconds": clock.seconds,
        "versions": versions(),
    }
    return Reconstruction(gaussians.to("cpu"), mesh, report)


@dataclass(frozen=True)
class _Made:
    """Splats and how they came to be; fields as in FitResult and network.Outcome."""

    gaussians: Gaussians
    psnr: float
    start: str
    steps: int = 0
    stopped_early: bool = False
    size: tuple[int, int] = (0, 0)
    weights: str = ""
    sha256: str = ""
    precision: str = ""
    surface: meshing.Mesh | None = None


def _splats(views: Views, options: ReconstructOptions, device: torch.device, monitor: Monitor) -> _Made:
    made = _fitted(views, options, monitor) if options.model == "fit" else _passed(views, options, device, monitor)
    if not options.refine or made.stopped_early:
        return made
    config = FitConfig(steps=options.refine, max_splats=options.max_splats, seed=options.seed)
    refined = fit(views, config, initial=made.gaussians, monitor=monitor)
    return replace(
        made,
        gaussians=refined.gaussians,
        psnr=refined.psnr,
        start=refined.start,
        steps=refined.steps,
        stopped_early=refined.stopped_early,
        size=refined.size,
        surface=None,  # the network's own is not where the splats are now
    )


def _fitted(views: Views, options: ReconstructOptions, monitor: Monitor) -> _Made:
    config = FitConfig(steps=options.steps, max_splats=options.max_splats, seed=options.seed)
    result = fit(views, config, monitor=monitor)
    return _Made(result.gaussians, result.psnr, result.start, result.steps, result.stopped_early, result.size)


def _passed(views: Views, options: ReconstructOptions, device: torch.device, monitor: Monitor) -> _Made:
    """One pass of a network. The networks are imported where one is used: `fit` starts without them."""
    from backend import network

    outcome = network.reconstruct(
        options.model,
        views,
        checkpoint=options.weights,
        precision=options.precision,
        device=device,
        mesh=options.mesh and not options.refine,
        monitor=monitor,
    )
    gaussians = outcome.gaussians
    if 0 < options.max_splats < len(gaussians):
        gaussians = gaussians[gaussians.opacities.argsort(descending=True)[: options.max_splats]]
    shown = reduce_views(views, FitConfig().longest_side)
    return _Made(
        gaussians,
        mean_psnr(gaussians, shown),
        start="network",
        size=(shown.cameras.width, shown.cameras.height),
        weights=outcome.weights,
        sha256=outcome.sha256,
        precision=outcome.precision,
        surface=outcome.surface,
    )


def _mesh(
    made: _Made, views: Views, options: ReconstructOptions, monitor: Monitor, clock: _Clock
) -> tuple[TexturedMesh, dict[str, Any]]:
    gaussians = made.gaussians.detach()
    with clock.stage("mesh"):
        if made.surface is not None:
            mesh = meshing.simplified(made.surface, options.faces)
        else:
            mesh = meshing.extract_mesh(gaussians, views, faces=options.faces, monitor=monitor)
    with clock.stage("texture"):
        textured = texturing.bake(mesh, views, gaussians, size=options.texture_size, monitor=monitor)
    return textured, meshing.mesh_report(mesh)


def _number(value: float) -> float | None:
    """JSON has no infinity: a picture without any error has no PSNR to tell."""
    return round(float(value), 3) if math.isfinite(value) else None


# ---- the boundary


def read_request(request: protocol.Reconstruct) -> tuple[Views, ReconstructOptions]:
    """Views and options of a message. Raises BadInput naming the field."""
    if not request.images.size:
        raise BadInput(f"images: expected at least one view of at least one pixel, found shape {request.images.shape}")
    options = ReconstructOptions(
        **{
            name: getattr(request, name) for name in ReconstructOptions.__dataclass_fields__
        }  # the same names on the wire
    )
    height, width = request.images.shape[1:3]
    check_size(len(request.images), width, height)
    cameras = Cameras(
        torch.tensor(request.c2w), torch.tensor(request.Ks), torch.tensor(request.orthographic), width, height
    )
    images = torch.tensor(request.images).float().div_(255)
    depth = None if request.depth is None else torch.tensor(request.depth)
    return Views(images, cameras, depth), options


def check_size(views: int, width: int, height: int) -> None:
    """Raises BadInput for more pixels than this program is made for."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise BadInput(f"images: expected from 1 to {MAX_SIDE} pixels a side, found {width}x{height}")
    if not 1 <= views <= MAX_VIEWS:
        raise BadInput(f"images: expected from 1 to {MAX_VIEWS} views, found {views}")
    if views * width * height > MAX_PIXELS:
        raise BadInput(
            f"images: expected at most {MAX_PIXELS} pixels in all views together, found {views} of {width}x{height}; "
            "use fewer or smaller views"
        )


def check_views(views: Views) -> None:
    """Raises BadInput naming the field and view when pixels, depths or cameras make no sense."""
    cameras = views.cameras
    check_size(len(views), cameras.width, cameras.height)
    _each(views.images.isfinite().flatten(1).all(1), "images: expected finite pixels")
    _each(((views.images >= 0) & (views.images <= 1)).flatten(1).all(1), "images: expected pixels from 0 to 1")
    if views.depth is not None:
        good = views.depth.isfinite() & (views.depth >= 0)
        _each(good.flatten(1).all(1), "depth: expected finite depths of at least 0")
    _each(cameras.c2w.isfinite().flatten(1).all(1), "c2w: expected finite numbers")
    _each(cameras.Ks.isfinite().flatten(1).all(1), "Ks: expected finite numbers")
    rotation = cameras.c2w[:, :3, :3].double()
    identity = torch.eye(3, dtype=torch.float64, device=rotation.device)
    error = (rotation.transpose(1, 2) @ rotation - identity).flatten(1).abs().amax(1)
    _each(error < RIGID, "c2w: expected orthonormal axes, that is, no scale and no shear")
    _each(torch.linalg.det(rotation) > 0, "c2w: expected a rotation, found a mirrored camera")
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], device=cameras.c2w.device)
    _each((cameras.c2w[:, 3] == last).all(1), "c2w: expected the last row 0 0 0 1")
    Ks = cameras.Ks
    _each((Ks[:, 0, 0] > 0) & (Ks[:, 1, 1] > 0), "Ks: expected positive focal lengths")
    zero = torch.stack([Ks[:, 0, 1], Ks[:, 1, 0], Ks[:, 2, 0], Ks[:, 2, 1], Ks[:, 2, 2] - 1], dim=1)
    _each((zero == 0).all(1), "Ks: expected the form (fx 0 cx; 0 fy cy; 0 0 1)")


def _each(good: torch.Tensor, expectation: str) -> None:
    """good [V] bool; raises BadInput for the first view where it is False."""
    if not bool(good.all()):
        bad = (~good).nonzero()[:, 0].tolist()
        raise BadInput(f"{expectation}; view {bad[0]} ({len(bad)} of {len(good)} views) is not so")


def choose_device(wanted: Literal["auto", "cpu", "cuda"], model: str) -> torch.device:
    """`auto` is CUDA where it can be used. For the fit that takes its rasteriser, gsplat; the networks need none."""
    problem = "" if wanted == "cpu" else gsplat_problem() if model == "fit" else cuda_problem()
    if wanted == "cuda" and problem:
        raise BadInput(f"device: 'cuda' cannot be used: {problem} Use 'auto' or 'cpu'")
    return torch.device("cpu" if wanted == "cpu" or problem else "cuda")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of what made a result."""
    packages = ("torch", "numpy", "numba")
    return {
        "protocol": str(protocol.VERSION),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
