"""Attention against a slow twin in float64 that writes the equation out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backend.attention import attend, attend_heads

SHAPES = [(1, 1, 1, 1, 16), (2, 3, 77, 77, 32), (1, 1, 530, 301, 64), (1, 2, 65, 700, 128), (1, 2, 1030, 1030, 64)]
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # |v| up to about 4


def slow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head and one query at a time: weights of the keys, then the weighted mean of the values."""
    q, k, v = q.double(), k.double(), v.double()
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    for b, head, n in ((b, h, n) for b in range(q.shape[0]) for h in range(q.shape[1]) for n in range(q.shape[2])):
        weights = (k[b, head] @ q[b, head, n] / q.shape[-1] ** 0.5).exp()
        out[b, head, n] = weights @ v[b, head] / weights.sum()
    return out


def heads_of(batch: int, heads: int, queries: int, keys: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    q = 2 * torch.randn(batch, heads, queries, size, generator=random)  # far from the mean of all values
    k, v = torch.randn(2, batch, heads, keys, size, generator=random)
    return q, k, v


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_heads_are_the_slow_twin(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in heads_of(*shape))
    found = attend_heads(q, k, v)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), slow(q, k, v), atol=ROUNDING[dtype], rtol=0)


def test_tokens_are_split_into_heads_in_order() -> None:
    q, k, v = heads_of(2, 3, 9, 14, 16)
    q, k, v = q.double(), k.double(), v.double()
    joined = [torch.cat(list(x.unbind(1)), dim=-1) for x in (q, k, v)]  # head 0's numbers first
    want = torch.cat(list(slow(q, k, v).unbind(1)), dim=-1)
    torch.testing.assert_close(attend(*joined, heads=3), want)


def test_gradients_are_those_of_the_equation() -> None:
    q, k, v = (x.double().requires_grad_() for x in heads_of(1, 2, 5, 7, 16))
    assert torch.autograd.gradcheck(attend_heads, (q, k, v))
