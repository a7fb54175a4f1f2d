"""Per-scene optimisation: Gaussians that look like the given views, from depth, masks, a network's guess or nothing."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend import losses
from backend.cameras import Cameras, Views
from backend.compositing import over, premultiplied, straight
from backend.densify import Growth, GrowthConfig, grow, is_due
from backend.gaussians import Gaussians
from backend.hull import NothingSeen
from backend.metrics import psnr
from backend.monitor import Monitor, Silent
from backend.rendering import render
from backend.splat_adam import LearningRates, SplatAdam
from backend.starts import Start, Wishes, choose_start

__all__ = ["FitConfig", "FitResult", "NothingSeen", "fit"]

PREVIEW_SECONDS = 1.0
OFFER_EVERY = 20  # steps between two looks at whether the Gaussians are the best so far
GROWTH_ROOM = {
    "depth": 1.3,
    "hull": 1.2,
    "gaussians": 1.3,
    "plane_sweep": 1.7,
    "random": 3.0,
}  # times the start's splats


@dataclass(frozen=True)
class FitConfig:
    """How Gaussians are fitted. The defaults suit every kind of view; 0 lets the views decide.

    steps          optimisation steps, one picture each; 0: by the start and the number of views
    max_splats     most Gaussians at any time; 0: by the start
    sh_degree      harmonics of the colour: -1: 0 for a few views, 1 from `harmonics_from` on
    seed           of every random choice
    longest_side   pictures are reduced to this many pixels along their longest side, for memory and time
    harmonics_from views from which colour may depend on the direction
    rates          Adam's rates
    means_last     the rate of the means falls to this share of itself over the fit
    ssim_share     share of SSIM in the photometric loss
    coverage       weight of the alpha loss
    oversize       weight of splats above `largest_splat` scene radii
    needles        weight of splats more than `needle_ratio` times as long as wide
    dreamed        weight of the pictures that the start shows from between and behind the inputs
    dreamed_every  one step in so many looks at one of those instead of an input
    prune_opacity  splats below this are removed
    prune_every    steps between removals
    growth         when and how far the set of splats grows
    """

    steps: int = 0
    max_splats: int = 0
    sh_degree: int = -1
    seed: int = 0
    longest_side: int = 640
    harmonics_from: int = 16
    rates: LearningRates = field(default_factory=LearningRates)
    means_last: float = 0.05
    ssim_share: float = 0.2
    coverage: float = 0.5
    oversize: float = 0.1
    largest_splat: float = 0.1
    needles: float = 0.02
    needle_ratio: float = 4.0
    dreamed: float = 1.0
    dreamed_every: int = 2
    prune_opacity: float = 0.01
    prune_every: int = 100
    growth: GrowthConfig = field(default_factory=GrowthConfig)


@dataclass(frozen=True)
class FitResult:
    """What fitting made.

    gaussians      the best Gaussians, in the world of the views
    psnr           mean over the inputs, dB; over white
    steps          steps done
    stopped_early  whether the monitor asked to finish before the last step
    start          "depth", "hull", "gaussians", "plane_sweep" or "random"
    size           (width, height) of the pictures that were fitted: the views' own or reduced
    seconds        wall clock of each stage
    """

    gaussians: Gaussians
    psnr: float
    steps: int
    stopped_early: bool
    start: str
    size: tuple[int, int] = (0, 0)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """The similarity that makes a scene's radius 1 and puts its middle at the origin."""

    middle: Tensor
    radius: float

    def inward(self, gaussians: Gaussians) -> Gaussians:
        return replace(
            gaussians, means=(gaussians.means - self.middle) / self.radius, scales=gaussians.scales / self.radius
        )

    def outward(self, gaussians: Gaussians) -> Gaussians:
        return replace(
            gaussians, means=gaussians.means * self.radius + self.middle, scales=gaussians.scales * self.radius
        )

    def cameras(self, cameras: Cameras) -> Cameras:
        c2w, Ks = cameras.c2w.clone(), cameras.Ks.clone()
        c2w[:, :3, 3] = (c2w[:, :3, 3] - self.middle) / self.radius
        Ks[cameras.orthographic, :2, :2] *= self.radius  # pixels per unit
        return replace(cameras, c2w=c2w, Ks=Ks)

    def views(self, views: Views) -> Views:
        depth = None if views.depth is None else views.depth / self.radius
        return replace(views, cameras=self.cameras(views.cameras), depth=depth)


def fit(
    views: Views,
    config: FitConfig = FitConfig(),
    *,
    initial: Gaussians | None = None,
    monitor: Monitor = Silent(),  # noqa: B008 (stateless)
) -> FitResult:
    """Gaussians that look like the views.

    It starts from `initial` if given, else from the views' depth, else from their masks, else from depth by plane
    sweep, else from random points where the cameras look. The same views and config give the same Gaussians.

    Raises NothingSeen (a ValueError) where the views show nothing, or no common object; ValueError where pixels, depth
    or cameras are not finite; JobCancelled from the monitor.
    """
    check(views)
    clock = time.perf_counter()
    reduced = reduce_views(views, config.longest_side)
    degree = config.sh_degree if config.sh_degree >= 0 else int(len(views) >= config.harmonics_from)
    start = choose_start(reduced, initial, Wishes(config.max_splats, degree, config.seed), monitor)
    started = time.perf_counter()
    frame = frame_of(start.gaussians)
    run = _Run(frame.views(reduced), start, frame, config)
    stopped = run.optimise(monitor)
    best = run.best.gaussians
    assert best is not None
    result = frame.outward(best)
    quality = mean_psnr(best, run.views)
    return FitResult(
        gaussians=result,
        psnr=quality,
        steps=run.done,
        stopped_early=stopped,
        start=start.kind,
        size=(reduced.cameras.width, reduced.cameras.height),
        seconds={"start": started - clock, "optimise": time.perf_counter() - started},
    )


def check(views: Views) -> None:
    """Raise ValueError where the views cannot be fitted at all."""
    if len(views) == 0:
        raise ValueError("views: at least one view is needed")
    cameras = views.cameras
    fields = {"pixels": views.images, "camera matrices": cameras.c2w, "camera intrinsics": cameras.Ks}
    if views.depth is not None:
        fields["depth"] = views.depth
    for name, values in fields.items():
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"views: the {name} must be finite, found NaN or infinity")
    if bool((cameras.Ks[:, 0, 0] <= 0).any() or (cameras.Ks[:, 1, 1] <= 0).any()):
        raise ValueError("views: focal lengths must be positive")


def reduce_views(views: Views, longest_side: int) -> Views:
    """The views with pictures of at most `longest_side` pixels a side; depth takes the middle pixel."""
    height, width = views.cameras.height, views.cameras.width
    if max(height, width) <= longest_side:
        return views
    shrink = longest_side / max(height, width)
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    images = torch.stack([_reduced_image(image, size) for image in views.images])
    depth = None if views.depth is None else F.interpolate(views.depth[:, None], size, mode="nearest-exact")[:, 0]
    return Views(images, views.cameras.resized(size[1], size[0]), depth, views.names)


def _reduced_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[H,W,4] straight alpha, averaged premultiplied, to [*size,4]."""
    small = F.adaptive_avg_pool2d(premultiplied(image).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)
    return straight(small)


def frame_of(gaussians: Gaussians) -> Frame:
    """The frame in which nine tenths of the Gaussians lie within distance 1 of the origin."""
    middle = gaussians.means.median(dim=0).values
    distance = torch.linalg.vector_norm(gaussians.means - middle, dim=1)
    radius = float(torch.quantile(distance[:: max(1, len(distance) // 100_000)], 0.9))
    if radius <= 0:
        radius = float(gaussians.scales.max())
    return Frame(middle, radius)


def mean_psnr(gaussians: Gaussians, views: Views) -> float:
    """[dB] mean over the views; over white."""
    with torch.no_grad():
        values = [
            psnr(render(gaussians, views.cameras[[v]], torch.ones(3)).rgb[0].clamp(0, 1), over(views.images[v], 1.0))
            for v in range(len(views))
        ]
    return float(torch.stack(values).mean())


class _Best:
    """The best Gaussians so far, by the mean of each view's latest loss."""

    def __init__(self, start: Gaussians, views: int) -> None:
        self.gaussians = start
        self.loss = math.inf
        self._latest = torch.full((views,), math.inf)

    def saw(self, view: int, loss: float) -> None:
        self._latest[view] = loss

    def offer(self, gaussians: Gaussians) -> None:
        loss = float(self._latest.mean())
        if loss < self.loss:
            self.loss, self.gaussians = (
                loss,
                Gaussians(
                    *(
                        getattr(gaussians, name).detach().clone()
                        for name in ("means", "quats", "scales", "opacities", "sh")
                    )
                ),
            )


class _Run:
    """One optimisation, in the normalised frame."""

    def __init__(self, views: Views, start: Start, frame: Frame, config: FitConfig) -> None:
        self.views, self.config = views, config
        self.dreamed = tuple(frame.views(group) for group in start.dreamed)
        inside = frame.inward(start.gaussians)
        self.adam = SplatAdam(inside, config.rates)
        self.best = _Best(inside, len(views))
        self.total = config.steps or default_steps(start.kind, len(views))
        self.done = 0
        self.generator = torch.Generator().manual_seed(config.seed)
        self.limit = config.max_splats or round(GROWTH_ROOM[start.kind] * len(inside))
        self.growth = Growth(len(inside))

    def optimise(self, monitor: Monitor) -> bool:
        """Run all steps; whether the monitor ended it early."""
        order: list[int] = []
        previewed = time.monotonic()
        while self.done < self.total:
            if monitor.finish_early():
                return True
            if not order:
                order = torch.randperm(len(self.views), generator=self.generator).tolist()
            if self.dreamed and self.done % self.config.dreamed_every == 1:
                self._dream_step()
            else:
                self._step(order.pop())
            self.done += 1
            if self.done % self.config.prune_every == 0:
                self._prune()
            if is_due(self.done, self.total, self.config.growth):
                self.growth = grow(self.adam, self.growth, self.config.growth, self.limit, self.generator)
            if self.done % OFFER_EVERY == 0 or self.done == self.total:
                self.best.offer(self.adam.gaussians())
            monitor.progress("fit", self.done, self.total)
            if time.monotonic() - previewed > PREVIEW_SECONDS:
                monitor.preview(preview(self.adam.gaussians().detach(), self.views.cameras[[0]]))
                previewed = time.monotonic()
        return False

    def _step(self, view: int) -> None:
        cameras = self.views.cameras
        offsets = torch.zeros(1, len(self.adam), 2, requires_grad=True)
        loss = self._image_loss(self.views.images[view], cameras[[view]], offsets)
        (loss + self._regularisers()).backward()
        self.growth.observe(offsets, cameras.width, cameras.height)
        self.best.saw(view, float(loss.detach()))
        self._descend()

    def _dream_step(self) -> None:
        group = self.dreamed[int(torch.randint(len(self.dreamed), (1,), generator=self.generator))]
        view = int(torch.randint(len(group), (1,), generator=self.generator))
        loss = self.config.dreamed * self._image_loss(group.images[view], group.cameras[[view]])
        (loss + self._regularisers()).backward()
        self._descend()

    def _image_loss(self, image: Tensor, cameras: Cameras, offsets: Tensor | None = None) -> Tensor:
        background = torch.rand(3, generator=self.generator)  # only what is opaque in front of any colour is opaque
        seen = render(self.adam.gaussians(), cameras, background, screen_offsets=offsets)
        loss = losses.photometric(seen.rgb[0], over(image, background), self.config.ssim_share)
        if self.views.has_alpha:
            loss = loss + self.config.coverage * losses.coverage(seen.alpha[0], image[..., 3])
        return loss

    def _regularisers(self) -> Tensor:
        config, splats = self.config, self.adam.gaussians()
        total = config.oversize * losses.oversize(splats.scales, config.largest_splat)
        return total + config.needles * losses.needles(splats.scales, config.needle_ratio)

    def _descend(self) -> None:
        progress = self.done / max(1, self.total)
        self.adam.step(self.config.means_last**progress)

    def _prune(self) -> None:
        solid = self.adam.gaussians().opacities.detach() > self.config.prune_opacity
        if bool(solid.any()) and not bool(solid.all()):
            self.adam.keep(solid)
            self.growth.keep(solid)


def default_steps(kind: str, views: int) -> int:
    """Steps that bring the starts to where more of them gain little."""
    if kind == "hull":
        return 300
    if kind in ("depth", "gaussians"):
        return min(1200, max(300, 30 * views))
    return min(4000, max(600, 100 * views))


def preview(gaussians: Gaussians, camera: Cameras) -> np.ndarray:
    """[H,W,4] uint8 straight alpha: what one camera sees now."""
    with torch.no_grad():
        seen = render(gaussians, camera)
    alpha = seen.alpha[0][..., None]
    image = torch.cat([seen.rgb[0] / alpha.clamp_min(1e-6), alpha], dim=-1)
    return (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
