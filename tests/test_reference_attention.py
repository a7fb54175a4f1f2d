"""Attention that looks at a reference, against one token after the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from backend.multiview.reference_attention import ReferenceAttention


def slow_attention(layer: Any, states: Tensor, seen: Tensor) -> Tensor:
    """One head and one token after the other."""
    query, key, value = layer.to_q(states), layer.to_k(seen), layer.to_v(seen)
    size = query.shape[2] // layer.heads
    mixed = torch.zeros_like(query)
    for picture_number in range(len(states)):
        for head in range(layer.heads):
            part = slice(head * size, (head + 1) * size)
            for token in range(states.shape[1]):
                scores = key[picture_number, :, part] @ query[picture_number, token, part] / math.sqrt(size)
                mixed[picture_number, token, part] = scores.softmax(0) @ value[picture_number, :, part]
    return layer.to_out[0](mixed)


@pytest.mark.parametrize("heads_at_once", [1, 2, 100])
def test_attention_looks_at_the_reference_too(heads_at_once: int) -> None:
    torch.manual_seed(2)
    layer: Any = Attention(query_dim=12, heads=3, dim_head=4)
    layer.set_processor(ReferenceAttention("here", heads_at_once))
    reference, states = torch.randn(2, 7, 12), torch.randn(2, 5, 12)
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        wrote = layer(reference, write=seen)
        read = layer(states, read=seen)
        assert torch.allclose(wrote, slow_attention(layer, reference, reference), atol=1e-6)
        assert torch.allclose(read, slow_attention(layer, states, torch.cat([states, reference], 1)), atol=1e-6)


def test_cross_attention_looks_at_the_prompt_alone() -> None:
    torch.manual_seed(2)
    layer: Any = Attention(query_dim=12, cross_attention_dim=6, heads=3, dim_head=4)
    layer.set_processor(ReferenceAttention("here", 3))
    states, tokens = torch.randn(2, 5, 12), torch.randn(2, 4, 6)
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        found = layer(states, tokens, write=seen)
        assert torch.allclose(found, slow_attention(layer, states, tokens), atol=1e-6)
    assert not seen
