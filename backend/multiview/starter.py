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
from backend.compositing import premultiplied, straight
from backend.monitor import Monitor
from backend.multiview import Budget, Wish
from backend.multiview.holding import put_back
from backend.multiview.previews import contact_sheet
from backend.multiview.starter_network import StarterConfig, StarterViews, config_from, shifted
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
        shape = (1, config.channels, config.latent_side, config.latent_side)
        latents = torch.randn(shape, generator=rng).to(self.device)
        conditions, times = self._conditions(wish), shifted(torch.linspace(1, 0, wish.steps + 1))
        for step, (now, then) in enumerate(zip(times.tolist(), times[1:].tolist(), strict=False)):
            monitor.progress("views", step, wish.steps)
            clean = self._clean(latents, now, conditions, wish)
            if step % SHOWN_EVERY == SHOWN_EVERY - 1:
                monitor.preview(contact_sheet(shown(self._decoded(clean))))
            latents = clean + then / now * (latents - clean)  # on the line from the noise to what it seems to be
        monitor.progress("views", wish.steps, wish.steps)
        views = shown(self._decoded(latents))
        return views if wish.held is None else put_back(views, wish.held.images, wish.held.redo, lambda known: known)

    def _clean(self, latents: Tensor, time: float, conditions: tuple[Tensor, Tensor, Tensor], wish: Wish) -> Tensor:
        """[1,C,s,s] what the latents seem to be without noise; of views that are held, what those are."""
        clean = latents - time * self._velocity(latents, time, *conditions, wish.guidance)
        if wish.held is None:
            return clean
        kept = self._premultiplied(wish.held.images)
        views = put_back(self._decoded(clean), kept, wish.held.redo, lambda known: known)
        return self.network.autoencoder.encode(views[None])

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
            everywhere = self._premultiplied(wish.picture[None]).expand(config.views, -1, -1, -1)
            picture[0] = self.network.autoencoder.encode(everywhere[None])[0]
        return words.to(self.device), picture, given

    def _velocity(
        self, latents: Tensor, time: float, words: Tensor, picture: Tensor, given: Tensor, guidance: float
    ) -> Tensor:
        """[1,C,s,s] of what is wished, away from that of nothing (Ho and Salimans, classifier-free guidance, 2022)."""
        both = latents.expand(2, -1, -1, -1)
        wished, nothing = self.network.denoiser(both, torch.full((2,), time, device=self.device), words, picture, given)
        return (nothing + guidance * (wished - nothing))[None]

    def _premultiplied(self, images: Tensor) -> Tensor:
        """[N,4,S,S] of images [N,S,S,4], straight alpha."""
        return premultiplied(images.to(self.device)).permute(0, 3, 1, 2)

    def _decoded(self, latents: Tensor) -> Tensor:
        """[V,4,S,S] 0..1, premultiplied."""
        return self.network.autoencoder.decode(latents)[0].clamp(0, 1)


def shown(views: Tensor) -> Tensor:
    """[V,S,S,4] with straight alpha, on the CPU, of views [V,4,S,S] premultiplied."""
    return straight((views * (views[:, 3:] > FAINT)).permute(0, 2, 3, 1).cpu())


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
