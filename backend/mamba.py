"""Mamba-2 in plain torch: a linear recurrence along sequences of any length, done as matrix products over chunks.

Each head carries a matrix S [N,P] along the sequence (Dao and Gu 2024, "Transformers are SSMs", section 6):

    S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T        y_t = S_t^T C_t + D x_t

A chunk of Q positions sees its own past through a decaying [Q,Q] attention, and everything before through the one
matrix S at its start. That is exact for any length; time and memory grow linearly with it. Sequences are worked off in
segments of some chunks, whose intermediate values fit the processor's cache; the backward pass computes them anew.

B batch, L length, I inner width, h heads of P = I/h channels, G groups of heads that share B_t and C_t, N state size.
"""

from __future__ import annotations

import importlib
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backend.cameras import BadInput

EPSILON = 1e-5  # of every normalisation
CHUNK = 128  # positions that attend to one another directly; no effect on the result
SEGMENT = {"cpu": 256, "cuda": 8192}  # positions worked off at once: by cache on a CPU, by launches on a GPU
STEP_RANGE = (1e-3, 0.1)  # dt of a fresh layer
DECAY_RANGE = (1.0, 16.0)  # -A of a fresh layer


@dataclass(frozen=True)
class Mamba2Config:
    """The sizes of a Mamba-2 layer. Raises BadInput for sizes that do not go together.

    dim       width of the tokens
    state     N, numbers that each channel remembers
    head_dim  P, channels of a head, which decay together
    groups    sets of heads with their own B and C
    expand    inner width in terms of `dim`
    kernel    positions that the causal convolution sees
    """

    dim: int
    state: int
    head_dim: int = 64
    groups: int = 1
    expand: int = 2
    kernel: int = 4

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise BadInput(f"mamba2: {name} must be at least 1, found {getattr(self, name)}")
        if self.inner % self.head_dim or self.heads % self.groups:
            raise BadInput(
                f"mamba2: expected an inner width ({self.expand} x {self.dim}) of whole heads of {self.head_dim}, "
                f"and as many heads in each of {self.groups} groups"
            )

    @property
    def inner(self) -> int:
        return self.expand * self.dim

    @property
    def heads(self) -> int:
        return self.inner // self.head_dim

    @property
    def channels(self) -> int:
        """What the convolution mixes along the sequence: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def projected(self) -> int:
        """What the input projection makes of a token: z, (x, B, C) and dt."""
        return self.inner + self.channels + self.heads


def widened(x: Tensor) -> Tensor:
    """In float32, or float64 if it is so already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """Divide by the root mean square, times a weight; computed in float32 at least, given in the weight's type."""

    def __init__(self, dim: int, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        x = widened(x).unflatten(-1, (self.groups, -1))
        x = F.rms_norm(x, x.shape[-1:], eps=EPSILON).flatten(-2)
        return (x * widened(self.weight)).to(self.weight.dtype)


class MambaScan(nn.Module):
    """One direction of a layer, between its projections: convolution, recurrence, gate, norm."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        # Holds the parameters alone, under the published name and shape.
        self.conv1d = nn.Conv1d(config.channels, config.channels, config.kernel, groups=config.channels)
        self.dt_bias = nn.Parameter(_fresh_steps(config.heads))
        self.A_log = nn.Parameter(torch.empty(config.heads).uniform_(*DECAY_RANGE).log())
        self.D = nn.Parameter(torch.ones(config.heads))
        self.norm = RMSNorm(config.inner, config.groups)

    def scan(self, projected: Tensor, *, backwards: bool = False) -> Tensor:
        """[B,L,I] from what the input projection gave, [B,L,2I+2GN+h]; `backwards` runs from the last token on."""
        segments = projected.split(_segment_length(projected), dim=1)
        tail, state, outputs = None, None, []
        for segment in reversed(segments) if backwards else segments:
            y, tail, state = _recomputed(self._segment, segment, tail, state, backwards)
            outputs.append(y)
        return torch.cat(outputs[::-1] if backwards else outputs, dim=1)

    def _segment(
        self, projected: Tensor, tail: Tensor | None, state: Tensor | None, backwards: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One stretch of the sequence. `tail` holds the positions before it that the convolution still sees, `state`
        the matrices S at its start; None is the start of the sequence. Returns y and both for the next stretch.
        """
        config = self.config
        if backwards:
            projected = projected.flip(1)
        z, mixed, dt = projected.split([config.inner, config.channels, config.heads], dim=-1)
        mixed, tail = self._convolve(mixed, tail)
        x, B, C = mixed.split([config.inner] + 2 * [config.groups * config.state], dim=-1)
        x = x.unflatten(-1, (config.heads, config.head_dim))  # [B,L,h,P]
        B, C = (part.unflatten(-1, (config.groups, config.state)) for part in (B, C))  # [B,L,G,N]
        dt = F.softplus(widened(dt) + widened(self.dt_bias))  # [B,L,h]
        y, state = recurrence(x, dt, -widened(self.A_log).exp(), B, C, state)
        y = torch.addcmul(y, x, self.D[:, None].to(x)).flatten(-2)  # [B,L,I]
        y = self.norm(y * F.silu(z))
        return y.flip(1) if backwards else y, tail, state

    def _convolve(self, mixed: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """SiLU of the causal convolution along the sequence, channel by channel, [B,L,C], and the next `tail`.

        As sums of shifted products: faster than a grouped convolution, which wants the channels first.
        """
        length, reach = mixed.shape[1], self.config.kernel - 1
        if tail is None:
            tail = mixed.new_zeros(len(mixed), reach, mixed.shape[2])
        seen = torch.cat([tail, mixed], dim=1)  # [B,reach+L,C]
        taps, wide = widened(self.conv1d.weight[:, 0]).unbind(-1), widened(seen)
        assert self.conv1d.bias is not None
        out = widened(self.conv1d.bias).expand(len(mixed), length, -1)
        for shift, tap in enumerate(taps):
            out = torch.addcmul(out, wide[:, shift : shift + length], tap)
        return F.silu(out).to(mixed.dtype), seen[:, length:]


class Mamba2(MambaScan):
    """The public Mamba-2 layer: causal, one direction; all parameters side by side, as in the published files."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(config)
        self.in_proj = nn.Linear(config.dim, config.projected, bias=False)
        self.out_proj = nn.Linear(config.inner, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,D] to [B,L,D]; a position sees those before it."""
        return self.out_proj(self.scan(self.in_proj(x)))


class BidirectionalMamba2(nn.Module):
    """Two scans, from the first token and from the last, between shared projections; their outputs are added."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.dim, config.projected, bias=False)
        self.mamba_scans = nn.ModuleList([MambaScan(config), MambaScan(config)])
        self.out_proj = nn.Linear(config.inner, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,D] to [B,L,D]; every position sees all others."""
        projected = self.in_proj(x)
        onwards, back = (typing.cast(MambaScan, scan) for scan in self.mamba_scans)
        return self.out_proj(onwards.scan(projected) + back.scan(projected, backwards=True))


class MambaBlock(nn.Module):
    """x + mixer(norm(x)), without an MLP. The sum keeps the type of `x`, which may be finer than the weights'."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.dim)
        self.mamba = BidirectionalMamba2(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mamba(self.norm(x))


# ---- the recurrence


def recurrence(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """y [B,L,h,P] of S_t = exp(dt A) S_{t-1} + dt B x^T, y_t = S_t^T C_t, and S after the last position.

    x      [B,L,h,P]
    dt     [B,L,h] positive steps, float32 at least
    A      [h] negative rates
    B, C   [B,L,G,N]
    state  [B*G,N,h/G,P], S before the first position; None: zeros

    CUDA tensors take the kernels of `mamba_ssm` where that package is installed; they keep no state.
    """
    fast = _fast_scan(x)
    if fast is not None:
        return fast(x, dt, A, B, C, chunk_size=2 * CHUNK), None
    groups = B.shape[2]
    u, decay = (_fold(part, groups) for part in (x * dt[..., None].to(x), dt * A))  # [B*G,L,h/G,P], [B*G,L,h/G]
    B, C = (part.transpose(1, 2).flatten(0, 1) for part in (B, C))  # [B*G,L,N]
    if state is None:
        state = decay.new_zeros(len(u), B.shape[-1], *u.shape[2:])
    length, whole = u.shape[1], u.shape[1] // CHUNK * CHUNK
    outputs = []
    for start, stop in ((0, whole), (whole, length)):  # whole chunks together, then the shorter last one
        if start < stop:
            stretch = slice(start, stop)
            y, state = _chunks(u[:, stretch], decay[:, stretch], B[:, stretch], C[:, stretch], state)
            outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return y.unflatten(0, (-1, groups)).transpose(1, 2).flatten(2, 3), state


def _fold(x: Tensor, groups: int) -> Tensor:
    """[B,L,h,...] to [B*G,L,h/G,...]: groups of heads share nothing, so they are so many sequences."""
    return x.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _chunks(u: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """y [B,L,h,P] and the state after L positions, which are whole chunks or one shorter one.

    u      [B,L,h,P] inputs times their steps
    decay  [B,L,h] logarithms of what remains of S from one position to the next, at most 0
    B, C   [B,L,N]
    state  [B,N,h,P]
    """
    chunk = min(CHUNK, u.shape[1])
    u, decay, B, C = (part.unflatten(1, (-1, chunk)) for part in (u, decay, B, C))  # [B,c,Q,...]
    since_start = decay.double().cumsum(2)  # [B,c,Q,h]
    until_end = (since_start[:, :, -1:] - since_start).exp().to(u)
    gains = (B.transpose(2, 3) @ (u * until_end[..., None]).flatten(3)).to(state)  # [B,c,N,h*P]
    starts, state = _carry(state, gains.unflatten(3, u.shape[3:]), since_start[:, :, -1].exp().to(state))
    earlier = (C @ starts.flatten(3).to(C)).unflatten(3, u.shape[3:])  # [B,c,Q,h,P]
    y = torch.addcmul(_within(u, since_start, B, C), earlier, since_start.exp().to(u)[..., None])
    return y.flatten(1, 2), state


def _within(u: Tensor, since_start: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """[B,c,Q,h,P]: what positions get from those before them in their own chunk, and from themselves.

    What remains of position j at i is exp(since_start_i - since_start_j). The many differences are taken in float32,
    of rounded sums: they are exact wherever they are small, and the roundings come back as a factor of each end.
    """
    sums = since_start.to(torch.promote_types(u.dtype, torch.float32))
    rounding = (since_start - sums).detach()
    sums = sums.transpose(2, 3).contiguous()  # [B,c,h,Q]
    remains = (sums[..., :, None] - sums[..., None, :]).clamp_(max=0).exp_()  # [B,c,h,Q,Q]
    alike = (C @ B.transpose(2, 3)).tril().to(remains)  # [B,c,Q,Q]; the future counts for nothing
    attention = alike[:, :, None] * remains
    before = (u * (-rounding).exp().to(u)[..., None]).transpose(2, 3)  # [B,c,h,Q,P]
    return (attention.to(u) @ before).transpose(2, 3) * rounding.exp().to(u)[..., None]


def _carry(state: Tensor, gains: Tensor, remains: Tensor) -> tuple[Tensor, Tensor]:
    """The states [B,c,N,h,P] at the start of each chunk and the one after the last; remains [B,c,h]."""
    starts = []
    for gain, share in zip(gains.unbind(1), remains.unbind(1), strict=True):
        starts.append(state)
        state = torch.addcmul(gain, state, share[:, None, :, None])
    return torch.stack(starts, dim=1), state


# ---- helpers


def _fast_scan(x: Tensor) -> Callable[..., Tensor] | None:
    """(x, dt, A, B, C, chunk_size=...) -> y as in `recurrence`, over a whole sequence; None where there is none."""
    return _triton_scan() if x.is_cuda else None


@cache
def _triton_scan() -> Callable[..., Tensor] | None:
    """The kernels of the package `mamba_ssm`, if it is installed and loads."""
    try:
        kernels = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    except ImportError:
        return None
    return kernels.mamba_chunk_scan_combined


def _segment_length(x: Tensor) -> int:
    return SEGMENT.get(x.device.type, SEGMENT["cpu"]) if _fast_scan(x) is None else x.shape[1]


def _recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), of which only the arguments are kept for the backward pass; it runs once more there."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _fresh_steps(heads: int) -> Tensor:
    """[heads] biases whose softplus is spread evenly, in its logarithm, over STEP_RANGE."""
    low, high = (math.log(step) for step in STEP_RANGE)
    dt = torch.empty(heads).uniform_(low, high).exp()
    return dt + torch.log(-torch.expm1(-dt))
