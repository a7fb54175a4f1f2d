"""The denoiser of MVDream and ImageDream: a latent diffusion UNet whose self-attention sees all views at once.

MVDream (Shi et al. 2023) adds to Stable Diffusion 2.1 an embedding of each view's camera, and lets a token attend to
the tokens of every view. ImageDream (Wang and Shi 2023) adds a picture: as tokens beside the text's, and as one view
more, whose latent is that of the picture itself. Names of tensors are those of the published files.

    x [R,4,S,S], R = samples x frames, the frame fastest
        input_blocks   S -> S/2 -> S/4 -> S/8, each block's result kept
        middle_block
        output_blocks  S/8 -> ... -> S, each block with the kept result of the same size beside its input
        out            [R,4,S,S]: the noise in x
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.attention import attend
from backend.multiview.mvdream_config import GROUPS, UNetConfig

TRANSFORMER_EPS = 1e-6  # of the transformers' group norm; the others have torch's
SLOWEST = 10_000.0  # the time embedding's longest wave, in steps / (2 pi)
RESAMPLER_DEPTH, RESAMPLER_HEADS, RESAMPLER_HEAD_WIDTH = 4, 12, 64


@dataclass(frozen=True)
class Context:
    """What the transformers attend to beside the views themselves.

    text    [R,T,E] text tokens of each row
    image   [R,I,E] tokens that MultiViewUNet.image_embed has made of a picture; None for MVDream
    frames  views of a sample, R / samples
    """

    text: Tensor
    image: Tensor | None
    frames: int


class MultiViewUNet(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, embedding = config.model_channels, 4 * config.model_channels
        self.time_embed = _mlp(width, embedding)
        self.camera_embed = _mlp(config.camera_dim, embedding)
        if config.ip_dim:
            self.image_embed = Resampler(config.image_width, config.context_dim, config.ip_dim)
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(config.in_channels, width, 3, padding=1))])
        self.output_blocks = nn.ModuleList()
        kept, now, last = [width], width, len(config.channel_mult) - 1
        for level, factor in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(Stage(*_blocks(config, now, factor * width, level)))
                now = factor * width
                kept.append(now)
            if level < last:
                self.input_blocks.append(Stage(Downsample(now)))
                kept.append(now)
        self.middle_block = Stage(_res_block(config, now, now), Transformer(config, now), _res_block(config, now, now))
        for level, factor in reversed(list(enumerate(config.channel_mult))):
            for number in range(config.num_res_blocks + 1):
                blocks = _blocks(config, now + kept.pop(), factor * width, level)
                now = factor * width
                grows = level > 0 and number == config.num_res_blocks
                self.output_blocks.append(Stage(*blocks, *([Upsample(now)] if grows else [])))
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, now), nn.SiLU(), nn.Conv2d(now, config.out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, timesteps: Tensor, camera: Tensor, context: Context) -> Tensor:
        """[R,out_channels,S,S] the noise in x.

        x          [R,in_channels,S,S] noisy latents
        timesteps  [R] of the noise schedule, 0..1000
        camera     [R,camera_dim] camera to world, row by row; zeros for a view that is a picture itself
        """
        waves = timestep_embedding(timesteps, self.config.model_channels)
        embedding = self.time_embed(waves.to(x.dtype)) + self.camera_embed(camera)
        kept = []
        for block in self.input_blocks:
            x = block(x, embedding, context)
            kept.append(x)
        x = self.middle_block(x, embedding, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), embedding, context)
        return self.out(x)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """[R,width] float32: cosines, then sines, of the steps [R] at width / 2 frequencies from 1 down, evenly in their
    logarithm (Vaswani 2017, section 3.5)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=timesteps.device) * (-math.log(SLOWEST) / half))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


# ---- convolutions


class Stage(nn.Sequential):
    """Blocks in a row; each is given what its kind needs."""

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        for block in self:
            match block:
                case ResBlock():
                    x = block(x, embedding)
                case Transformer():
                    x = block(x, context)
                case _:
                    x = block(x)
        return x


class ResBlock(nn.Module):
    """Two convolutions beside a short cut; the embedding of time and camera is added between them."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, after))
        # the third is a dropout where the network is trained
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, after), nn.SiLU(), nn.Identity(), nn.Conv2d(after, after, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        inner = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(inner)


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


# ---- transformers


class Transformer(nn.Module):
    """Pixels as tokens, through blocks that attend to all views of the sample and to the context."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, eps=TRANSFORMER_EPS)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(config, width) for _ in range(config.transformer_depth)
        )
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        tokens = self.proj_in(self.norm(x).flatten(2).mT)  # [R,H*W,C]
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).mT.reshape(x.shape)


class TransformerBlock(nn.Module):
    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = SelfAttention(width, width // config.num_head_channels)
        kind = ContextAndImageAttention if config.ip_dim else ContextAttention
        self.attn2 = kind(config, width)
        self.ff = FeedForward(width)

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """tokens [R,N,C]"""
        together = self.norm1(tokens).unflatten(0, (-1, context.frames)).flatten(1, 2)  # [B,F*N,C]
        tokens = tokens + self.attn1(together).reshape(tokens.shape)
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        attended = attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), heads=self.heads)
        return self.to_out(attended)


class ContextAttention(nn.Module):
    """Each view by itself attends to the text."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.heads = width // config.num_head_channels
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(config.context_dim, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        return self.to_out(self.attend_text(self.to_q(tokens), context))

    def attend_text(self, queries: Tensor, context: Context) -> Tensor:
        return attend(queries, self.to_k(context.text), self.to_v(context.text), heads=self.heads)


class ContextAndImageAttention(ContextAttention):
    """The same queries attend to the picture's tokens too, in a softmax of their own."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__(config, width)
        self.weight = config.ip_weight
        self.to_k_ip, self.to_v_ip = (nn.Linear(config.context_dim, width, bias=False) for _ in range(2))

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        assert context.image is not None, "an ImageDream needs a picture's tokens"
        queries = self.to_q(tokens)
        seen = attend(queries, self.to_k_ip(context.image), self.to_v_ip(context.image), heads=self.heads)
        return self.to_out(self.attend_text(queries, context) + self.weight * seen)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # the second is a dropout where the network is trained
        self.net = nn.Sequential(GatedGELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class GatedGELU(nn.Module):
    """value * GELU(gate) (Shazeer 2020, GEGLU)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Linear(before, 2 * after)

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * F.gelu(gate)


# ---- a picture's tokens


class Resampler(nn.Module):
    """An image encoder's many tokens to a few, by learned queries (Alayrac et al. 2022, "Flamingo")."""

    def __init__(self, before: int, width: int, count: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, count, width) / math.sqrt(width))
        self.proj_in = nn.Linear(before, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width), _resampler_mlp(width)]) for _ in range(RESAMPLER_DEPTH)
        )
        self.proj_out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[R,count,width] of an image encoder's tokens [R,N,before]."""
        tokens = self.proj_in(tokens)
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            attention, mlp = layer.children()
            latents = latents + attention(tokens, latents)
            latents = latents + mlp(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = RESAMPLER_HEADS * RESAMPLER_HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        seen = torch.cat([self.norm1(tokens), latents], dim=1)
        keys, values = self.to_kv(seen).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(latents), keys, values, heads=RESAMPLER_HEADS))


# ---- building blocks


def _mlp(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(before, after), nn.SiLU(), nn.Linear(after, after))


def _resampler_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )


def _res_block(config: UNetConfig, before: int, after: int) -> ResBlock:
    return ResBlock(before, after, 4 * config.model_channels)


def _blocks(config: UNetConfig, before: int, after: int, level: int) -> list[nn.Module]:
    blocks: list[nn.Module] = [_res_block(config, before, after)]
    if 2**level in config.attention_resolutions:
        blocks.append(Transformer(config, after))
    return blocks
