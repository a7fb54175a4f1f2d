"""Multi-head attention over tokens that are already projected."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, heads: int) -> Tensor:
    """[B,N,E] softmax(q k^T / sqrt(E / heads)) v, head by head (Vaswani 2017, eq. 1).

    queries       [B,N,E]
    keys, values  [B,M,E]
    heads         parts of E that attend on their own
    """
    q, k, v = (tokens.unflatten(-1, (heads, -1)).transpose(1, 2) for tokens in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
