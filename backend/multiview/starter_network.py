"""The network of our own front end: four views of a simple object, of a prompt or a picture, by rectified flow.

    views --encode--> latents   x_t = (1 - t) x_0 + t e,  e ~ N(0, 1);   the denoiser tells v = e - x_0   (Liu et al.,
    views <--decode-- latents   "Flow Straight and Fast", 2023)

All four views become latents together, as if they were one picture of sixteen channels: the cameras are level with one
another, so that what is at one height in one view is so in all, and views agree because they come of the same numbers.
A square of 16 x 16 such pixels becomes one latent: its principal components, the strong ones larger than the weak, so
that noise hides details first. A small convolutional decoder adds what the components leave out. The denoiser is a
transformer over the latents that looks at the words of the prompt and at the picture's latents (as Chen et al.,
"PixArt-alpha", 2023). Its blocks, and the decoder, are diffusers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from torch import Tensor, nn

FREQUENCIES = 256  # numbers that tell a time
GROUP = 8  # channels that are normalised together
SHIFT = 2.0
LARGEST = 4096  # any number of a configuration
TIMES = 1000.0  # what a time of 1 is to the sinusoids


@dataclass(frozen=True)
class StarterConfig:
    """
    side      pixels of a view's side
    views     of an object
    square    pixels of a side of what becomes one latent
    channels  of a latent
    fold      pixels of a side that the decoder's last layer makes at once
    features  channels of the decoder's layers
    decoder   blocks of the decoder's stages, each with twice the side of the one before
    patch     latents of a side of what is one token
    width, layers, heads  of the denoiser
    words     most tokens of a prompt
    text      numbers of a token's state
    """

    side: int = 128
    views: int = 4
    square: int = 16
    channels: int = 32
    fold: int = 4
    features: int = 96
    decoder: tuple[int, ...] = (2, 2, 1)
    patch: int = 2
    width: int = 320
    layers: int = 6
    heads: int = 5
    words: int = 24
    text: int = 384

    @property
    def latent_side(self) -> int:
        return self.side // self.square

    @property
    def tokens(self) -> int:
        return (self.latent_side // self.patch) ** 2


def config_from(data: Mapping[str, Any]) -> StarterConfig:
    """The configuration of its file form. Raises TypeError or ValueError for one that no network has."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    config = StarterConfig(**values)
    numbers = [number for value in vars(config).values() for number in (value if isinstance(value, tuple) else [value])]
    if not all(isinstance(number, int) and 0 < number <= LARGEST for number in numbers):
        raise ValueError(f"expected numbers from 1 to {LARGEST}, found {numbers}")
    if config.square != config.fold * 2 ** (len(config.decoder) - 1):
        raise ValueError(f"expected a decoder from squares of {config.square} pixels, found {config.decoder}")
    return config


def shifted(times: Tensor) -> Tensor:
    """Times 0..1 that come nearer to 1: what an object is, and which colour, is settled while there is mostly noise
    (Esser et al., "Scaling Rectified Flow Transformers", 2024, equation 23).
    """
    return SHIFT * times / (1 + (SHIFT - 1) * times)


class Autoencoder(nn.Module):
    """Views [B,V,4,S,S], colours premultiplied by alpha, 0..1, to latents [B,C,s,s], and back.

    middle      [4V,q,q], the mean square
    components  [C,4V,q,q], orthonormal
    scale       [C], what a latent of 1 is in components
    """

    middle: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self, config: StarterConfig) -> None:
        super().__init__()
        self.views, self.square, self.fold, self.repeats = config.views, config.square, config.fold, config.latent_side
        planes, square = 4 * config.views, config.square
        self.details = Details(config)
        self.register_buffer("middle", torch.zeros(planes, square, square))
        self.register_buffer("components", torch.zeros(config.channels, planes, square, square))
        self.register_buffer("scale", torch.ones(config.channels))

    def encode(self, views: Tensor) -> Tensor:
        apart = F.conv2d(views.flatten(1, 2) - self._middle(), self.components, stride=self.square)
        return apart / self.scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Not clamped: whoever shows them clamps them."""
        plain = F.conv_transpose2d(latents * self.scale[:, None, None], self.components, stride=self.square)
        details = F.pixel_shuffle(self.details(latents), self.fold)
        return (self._middle() + plain + details).unflatten(1, (self.views, 4))

    @torch.no_grad()
    def learn_components(self, views: Tensor) -> None:
        """Takes the strongest principal components of the squares of views [B,V,4,S,S]. A latent's channels spread as
        the square roots of theirs, and by 1 on the whole.
        """
        squares = F.unfold(views.flatten(1, 2), self.square, stride=self.square).transpose(1, 2).flatten(0, 1)
        middle = squares.mean(0)
        variances, axes = torch.linalg.eigh((squares - middle).T @ (squares - middle) / len(squares))
        strongest = variances.argsort(descending=True)[: len(self.scale)]
        spread = variances[strongest].clamp_min(1e-12).sqrt()  # more channels than there is to tell have none
        self.middle.copy_(middle.view_as(self.middle))
        self.components.copy_(axes.T[strongest].view_as(self.components))
        self.scale.copy_((spread * spread.mean()).sqrt())

    def _middle(self) -> Tensor:
        return self.middle.repeat(1, self.repeats, self.repeats)


class Details(nn.Sequential):
    """What the components leave out: [B,4*V*f*f,S/f,S/f] of latents [B,C,s,s]; nothing before it is trained."""

    def __init__(self, config: StarterConfig) -> None:
        width, groups = config.features, max(1, config.features // GROUP)
        last = nn.Conv2d(width, 4 * config.views * config.fold**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast(Tensor, last.bias))
        stages = [
            UpDecoderBlock2D(width, width, num_layers=layers, resnet_groups=groups, add_upsample=number > 0)
            for number, layers in reversed(list(enumerate(reversed(config.decoder))))
        ]
        super().__init__(
            nn.Conv2d(config.channels, width, 3, padding=1), *stages, nn.GroupNorm(groups, width), nn.SiLU(), last
        )


class Denoiser(nn.Module):
    """Velocities of noisy latents.

    latents  [B,C,s,s]
    times    [B], 0..1, 1 is noise alone
    words    [B,W,text] states of the prompt's tokens, 0 where there are none
    picture  [B,C,s,s] latents of a picture, taken for all the views; any where there is none, and `given` [B] is False
    Returns [B,C,s,s].
    """

    def __init__(self, config: StarterConfig) -> None:
        super().__init__()
        self.config = config
        width, token = config.width, config.channels * config.patch**2
        self.latents_in, self.picture_in = nn.Linear(token, width), nn.Linear(token, width)
        self.words_in = nn.Sequential(nn.Linear(config.text, width), nn.GELU(), nn.Linear(width, width))
        self.place, self.picture_place = (nn.Parameter(0.02 * torch.randn(config.tokens, width)) for _ in range(2))
        self.order = nn.Parameter(0.02 * torch.randn(config.words, width))
        self.no_picture = nn.Parameter(torch.zeros(1, width))
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(FREQUENCIES, width)
        self.gist = nn.Linear(config.text, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                width,
                config.heads,
                width // config.heads,
                cross_attention_dim=width,
                attention_bias=True,
                activation_fn="gelu-approximate",
                norm_type="ada_norm_single",
                norm_elementwise_affine=False,
                norm_eps=1e-6,
            )
            for _ in range(config.layers)
        )
        self.last_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.latents_out = nn.Linear(width, token)
        nn.init.zeros_(self.latents_out.weight)
        nn.init.zeros_(self.latents_out.bias)

    def forward(self, latents: Tensor, times: Tensor, words: Tensor, picture: Tensor, given: Tensor) -> Tensor:
        shown = self.picture_in(self._patches(picture)) + self.picture_place
        shown = torch.where(given[:, None, None], shown, self.no_picture.expand_as(shown))
        told = torch.cat([shown, self.words_in(words) + self.order], dim=1)
        there = (words != 0).any(-1, keepdim=True)
        gist = (words * there).sum(1) / there.sum(1).clamp_min(1)
        moment = self.time(self.frequencies(TIMES * times).to(told.dtype)) + self.gist(gist)
        modulation = self.modulation(moment)
        tokens = self.latents_in(self._patches(latents)) + self.place
        for block in self.blocks:
            tokens = block(tokens, encoder_hidden_states=told, timestep=modulation)
        shift, scale = (self.last_table + moment[:, None]).chunk(2, dim=1)
        tokens = F.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale) + shift
        return self._latents(self.latents_out(tokens))

    def _patches(self, latents: Tensor) -> Tensor:
        """[B,T,C*p*p] of [B,C,s,s]."""
        return F.pixel_unshuffle(latents, self.config.patch).flatten(2).transpose(1, 2)

    def _latents(self, patches: Tensor) -> Tensor:
        side = self.config.latent_side // self.config.patch
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (side, side)), self.config.patch)


class StarterViews(nn.Module):
    """What ships: autoencoder and denoiser."""

    def __init__(self, config: StarterConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder, self.denoiser = Autoencoder(config), Denoiser(config)
