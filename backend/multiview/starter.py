"""Our own front end: four views of a simple object, with alpha, on any machine in seconds.

Its folder holds one file, views.safetensors, whose metadata tell the network's configuration.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from backend.bad_input import BadInput
from backend.monitor import Monitor
from backend.multiview import Budget, Wish
from backend.multiview.holding import put_back
from backend.multiview.previews import contact_sheet
from backend.multiview.starter_network import StarterConfig, StarterViews, config_from
from backend.multiview.words import Words

FILE = "views.safetensors"
SHOWN_EVERY = 4  # steps between two previews
FAINT = 0.04  # alpha below which a pixel shows nothing: no denoiser leaves exactly none


class StarterSampler:
    """See `backend.multiview.Sampler`."""

    def __init__(self, network: StarterViews, words: Words, budget: Budget) -> None:
        self.network, self.words = network.to(budget.device).eval(), words
        self.device = budget.device

    @torch.inference_mode()
    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        """Euler's steps from noise, x_t, at t = 1 to views at t = 0."""
        config = self.network.config
        rng = torch.Generator().manual_seed(wish.seed)
        noise = torch.randn((config.views, config.channels, config.latent_side, config.latent_side), generator=rng)
        noise = noise.to(self.device)
        known = None if wish.held is None else self._encoded(wish.held.images)
        words, picture, given = self._conditions(wish)
        latents, times = noise, torch.linspace(1, 0, wish.steps + 1)
        for step, (now, then) in enumerate(zip(times.tolist(), times[1:].tolist(), strict=False)):
            monitor.progress("views", step, wish.steps)
            if wish.held is not None and known is not None:
                latents = put_back(latents, known, wish.held.redo, lambda clean, t=now: torch.lerp(clean, noise, t))
            velocity = self._velocity(latents, now, words, picture, given, wish.guidance)
            if step % SHOWN_EVERY == SHOWN_EVERY - 1:
                monitor.preview(contact_sheet(self._decoded(latents - now * velocity)))
            latents = latents + (then - now) * velocity
        if wish.held is not None and known is not None:
            latents = put_back(latents, known, wish.held.redo, lambda clean: clean)
        monitor.progress("views", wish.steps, wish.steps)
        return self._decoded(latents)

    def _conditions(self, wish: Wish) -> tuple[Tensor, Tensor, Tensor]:
        """Words [2,W,text], picture [2,C,s,s] and whether there is one [2], of what is wished and of nothing."""
        config = self.network.config
        words = torch.zeros(2, config.words, config.text)
        if wish.prompt:
            words[0] = self.words([wish.prompt], config.words)[0]
        if wish.negative_prompt:
            words[1] = self.words([wish.negative_prompt], config.words)[0]
        picture = torch.zeros(2, config.channels, config.latent_side, config.latent_side, device=self.device)
        given = torch.tensor([wish.picture is not None, False], device=self.device)
        if wish.picture is not None:
            picture[0] = self._encoded(wish.picture[None])[0]
        return words.to(self.device), picture, given

    def _velocity(
        self, latents: Tensor, time: float, words: Tensor, picture: Tensor, given: Tensor, guidance: float
    ) -> Tensor:
        """[V,C,s,s] of what is wished, away from that of nothing (Ho and Salimans, classifier-free guidance, 2022)."""
        both = latents.expand(2, *latents.shape)
        wished, nothing = self.network.denoiser(both, torch.full((2,), time, device=self.device), words, picture, given)
        return nothing + guidance * (wished - nothing)

    def _encoded(self, images: Tensor) -> Tensor:
        """[N,C,s,s] of images [N,S,S,4], straight alpha."""
        images = images.to(self.device)
        premultiplied = torch.cat([images[..., :3] * images[..., 3:], images[..., 3:]], dim=-1)
        return self.network.autoencoder.encode(premultiplied.permute(0, 3, 1, 2))

    def _decoded(self, latents: Tensor) -> Tensor:
        """[N,S,S,4] 0..1, straight alpha, on the CPU."""
        views = self.network.autoencoder.decode(latents).clamp(0, 1).permute(0, 2, 3, 1).cpu()
        alpha = views[..., 3:] * (views[..., 3:] > FAINT)
        colours = (views[..., :3] / alpha.clamp_min(FAINT)).clamp(0, 1) * (alpha > 0)
        return torch.cat([colours, alpha], dim=-1)


def load(front_end: str, folder: Path, budget: Budget) -> StarterSampler:
    """See `backend.multiview.load`."""
    del front_end
    return StarterSampler(read_network(folder / FILE), Words(), budget)


def read_network(path: Path) -> StarterViews:
    """The network of a file. Raises BadInput for one that is missing, broken or of another network."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        network = StarterViews(config_from(json.loads(metadata["config"])))
    except FileNotFoundError as error:
        raise BadInput(
            f"{path}: expected the starter's generator, found no such file; install Gaussmith again"
        ) from error
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: expected the starter's generator, found: {error}") from error
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadInput(f"{path}: expected the weights of the configuration in it, found: {error}") from error
    return network


def described(config: StarterConfig) -> dict[str, str]:
    """The metadata that `read_network` reads."""
    return {"family": "views", "config": json.dumps(config.__dict__)}
