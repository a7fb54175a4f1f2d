"""The optimiser of a set of Gaussians: raw parameters, Adam's moments, and the surgery that adds and removes splats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backend.gaussians import Gaussians

BETAS = (0.9, 0.999)
EPSILON = 1e-15  # as in 3D Gaussian splatting: gradients of single splats are tiny
LARGEST_LOGIT = 9.0  # opacity 0.9999: beyond it a splat could not become transparent again


@dataclass(frozen=True)
class LearningRates:
    """Adam's step lengths for a scene of radius 1.

    means      scene radii
    log_scales natural logarithm of a standard deviation
    quats      unnormalised quaternion
    logits     logit of the opacity
    colours    constant harmonic coefficient
    harmonics  the other harmonic coefficients
    """

    means: float = 1.6e-4
    log_scales: float = 1e-2
    quats: float = 1e-3
    logits: float = 5e-2
    colours: float = 2.5e-2
    harmonics: float = 5e-4


class SplatAdam:
    """N Gaussians under optimisation (Adam, Kingma and Ba 2015), each row with moments of its own."""

    def __init__(self, start: Gaussians, rates: LearningRates) -> None:
        self.rates = rates
        self.parameters = _raw(start)
        self.first = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.steps = 0

    def __len__(self) -> int:
        return self.parameters["means"].shape[0]

    def gaussians(self) -> Gaussians:
        """The activated Gaussians; gradients flow back to the parameters."""
        raw = self.parameters
        return Gaussians(
            means=raw["means"],
            quats=F.normalize(raw["quats"], dim=1),
            scales=raw["log_scales"].exp(),
            opacities=torch.sigmoid(raw["logits"]),
            sh=torch.cat([raw["colours"], raw["harmonics"]], dim=1),
        )

    @torch.no_grad()
    def step(self, decay: float) -> None:
        """One step along the gradients of the last backward pass; `decay` 0..1 scales the rate of the means."""
        self.steps += 1
        unbias_first, unbias_second = 1 - BETAS[0] ** self.steps, 1 - BETAS[1] ** self.steps
        for name, value in self.parameters.items():
            gradient = value.grad
            if gradient is None:
                continue
            first, second = self.first[name], self.second[name]
            first.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            rate = getattr(self.rates, name) * (decay if name == "means" else 1.0)
            value.addcdiv_(first / unbias_first, (second / unbias_second).sqrt_().add_(EPSILON), value=-rate)
            value.grad = None
        self.parameters["logits"].clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Drop every splat outside `rows`, a boolean mask [N]."""
        for table in (self.parameters, self.first, self.second):
            for name in table:
                table[name] = table[name][rows]
        self._require_gradients()

    @torch.no_grad()
    def append(self, more: Gaussians) -> None:
        """Add splats, with moments of zero."""
        for name, value in _raw(more).items():
            self.parameters[name] = torch.cat([self.parameters[name], value])
            for table in (self.first, self.second):
                table[name] = torch.cat([table[name], torch.zeros_like(value)])
        self._require_gradients()

    def _require_gradients(self) -> None:
        self.parameters = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}


def _raw(gaussians: Gaussians) -> dict[str, Tensor]:
    """Leaf tensors that the optimiser may move freely, one for each field of LearningRates."""
    start = gaussians.detach()
    raw = {
        "means": start.means,
        "log_scales": start.scales.clamp_min(1e-12).log(),
        "quats": start.quats,
        "logits": torch.logit(start.opacities, eps=1e-4),
        "colours": start.sh[:, :1],
        "harmonics": start.sh[:, 1:],
    }
    return {name: value.clone().requires_grad_() for name, value in raw.items()}
