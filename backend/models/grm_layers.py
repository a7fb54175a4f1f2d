"""The parts of GRM's transformer: pre-norm blocks with global or windowed attention, and the step that doubles a
token grid. Module and parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backend.attention import attend_heads

HEAD_SIZE = 64  # numbers a head, everywhere
SLOPE = 1.702  # of the sigmoid that stands for the Gaussian's integral in GELU
CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**26}  # most numbers of a hidden layer at once: what caches and the heap like


def chunk_numbers(device: torch.device) -> int:
    return CHUNK_NUMBERS.get(device.type, CHUNK_NUMBERS["cpu"])


class Attention(nn.Module):
    """Self-attention inside each sequence of a batch; `width` / 64 heads.

    qk_norm  divides queries and keys by their root mean square, head by head, which keeps training stable
    """

    def __init__(self, width: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows: queries, keys, values
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(HEAD_SIZE, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(HEAD_SIZE, eps=1e-6) if qk_norm else nn.Identity()
        nn.init.trunc_normal_(self.in_proj_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x [S,T,C] -> [S,T,C]"""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, -1, HEAD_SIZE)).permute(2, 0, 3, 1, 4)  # each [S,heads,T,64], views of qkv
        mixed = attend_heads(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers, the hidden one four times as wide; z sigmoid(1.702 z) between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [...,C] -> [...,C]

        s z sigmoid(s z) is SiLU(s z): with both factors s inside the matrix products, the wide hidden layer is
        passed over once instead of three times.
        """
        rows = x.flatten(0, -2)
        hidden = torch.addmm(self.c_fc.bias, rows, self.c_fc.weight.T, beta=SLOPE, alpha=SLOPE)
        mixed = torch.addmm(self.c_proj.bias, F.silu(hidden), self.c_proj.weight.T, alpha=1 / SLOPE)
        return mixed.view_as(x)


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)).

    window   tokens that see each other: each run of so many along the sequence; None: all of it. A sequence of at most
             this length is one window
    shifted  the runs begin half a window earlier, so that the first joins the sequence's end with its beginning
             (paper 3.2; unmasked as published)
    """

    def __init__(self, width: int, *, window: int | None, shifted: bool, qk_norm: bool, checkpointing: bool) -> None:
        super().__init__()
        self.window, self.shift, self.checkpointing = window, window // 2 if window and shifted else 0, checkpointing
        self.attn = Attention(width, qk_norm=qk_norm)
        self.layernorm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.layernorm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,L,C] -> [B,L,C], L a multiple of the window or at most as long.

        Windows do not depend on each other, so a few at a time go through the whole block: memory beyond the result is
        bounded whatever L is.
        """
        window = self.window
        if window is None or x.shape[1] <= window:
            return self._run(x)
        shifted = x.roll(self.shift, 1) if self.shift else x
        windows = shifted.reshape(-1, window, x.shape[-1])
        at_once = max(1, chunk_numbers(x.device) // (4 * window * x.shape[-1]))
        done = torch.cat([self._run(part) for part in windows.split(at_once)]).view_as(x)
        return done.roll(-self.shift, 1) if self.shift else done

    def _run(self, windows: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._residual, windows, use_reentrant=False)  # type: ignore[return-value]
        return self._residual(windows)

    def _residual(self, windows: Tensor) -> Tensor:
        """[S,T,C] -> [S,T,C]"""
        windows = windows + self.attn(self.layernorm1(windows))
        return windows + self.mlp(self.layernorm2(windows))


class Blocks(nn.Module):
    """Blocks one after the other; every second one is shifted."""

    def __init__(self, count: int, width: int, *, window: int | None, qk_norm: bool, checkpointing: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            Block(width, window=window, shifted=i % 2 == 1, qk_norm=qk_norm, checkpointing=checkpointing)
            for i in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B,L,C] -> [B,L,C]"""
        for block in self.resblocks:
            x = block(x)
        return x


class Upscale(nn.Module):
    """Every token becomes a 2x2 square of tokens of another width (paper eq. 3-4).

    layout  "joint": all views' tokens together are read as one square grid, as published, which swaps rows 4r+1 and
            4r+2 of each view and needs a square number of tokens; "views": each view is a square grid of its own
    """

    def __init__(self, old_width: int, width: int, *, layout: Literal["joint", "views"]) -> None:
        super().__init__()
        self.width, self.layout = width, layout
        self.residual_fc = nn.Linear(old_width, 4 * width)

    def forward(self, x: Tensor, views: int) -> Tensor:
        """x [B,V*n,C'] -> [B,V*4n,C]

        The layer's rows are numbered (channel, dy, dx) as in a pixel shuffle; they are put as (dy, dx, channel) before
        the product, so that whole tokens move afterwards, not single numbers.
        """
        weight = self.residual_fc.weight.unflatten(0, (self.width, 4)).transpose(0, 1).flatten(0, 1)
        bias = self.residual_fc.bias.view(self.width, 4).T.flatten()
        grids = 1 if self.layout == "joint" else views
        side = math.isqrt(x.shape[1] // grids)
        children = F.linear(x, weight, bias).view(x.shape[0], grids, side, side, 2, 2, self.width)
        return children.transpose(3, 4).reshape(x.shape[0], -1, self.width)  # [B, grid row dy column dx, C]
