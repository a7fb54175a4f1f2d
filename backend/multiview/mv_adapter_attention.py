"""Attention of MV-Adapter (arXiv 2412.03632, sections 3.2 and 3.3): beside a layer's own, two that the adapter adds.

                 +-- own: within each view, with the base model's weights --+
    hidden ------+-- across views: a row of pixels with that row of all ----+-- sum
                 +-- to the picture: what the same layer saw of it ---------+

At elevation 0 a point of the object is in the same row of each orthographic view, so rows are enough.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class ViewAttention(nn.Module):
    """What a self-attention layer computes. The weights have the published names.

    views     of one object, that follow one another in a batch
    name      of the layer, by which what it saw of the picture is kept
    pictured  whether it looks at a picture
    slicing   whether an element of the batch is computed at a time
    """

    def __init__(self, width: int, name: str, *, views: int, pictured: bool, slicing: bool) -> None:
        super().__init__()
        self.name, self.views, self.pictured, self.slicing = name, views, pictured, slicing
        self.to_q_mv, self.to_k_mv, self.to_v_mv = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out_mv = nn.ModuleList([nn.Linear(width, width)])
        if pictured:
            self.to_q_ref, self.to_k_ref, self.to_v_ref = (nn.Linear(width, width, bias=False) for _ in range(3))
            self.to_out_ref = nn.ModuleList([nn.Linear(width, width)])

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        write: dict[str, Tensor] | None = None,
        reference: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """[B*V,N,C] of hidden states [B*V,N,C], N pixels of a square, row by row.

        write      where the layer's states are left; then the layer is as it is without the adapter
        reference  what was left there, [B,N,C] for each layer
        """
        del encoder_hidden_states, attention_mask, temb  # of other kinds of layers
        if write is not None:
            write[self.name] = hidden_states
            return self._own(attn, hidden_states)
        mixed = self._own(attn, hidden_states) + self._across_views(hidden_states, attn.heads)
        if not self.pictured:
            return mixed
        assert reference is not None, self.name
        return mixed + self._to_picture(hidden_states, reference[self.name], attn.heads)

    def _own(self, attn: Attention, hidden: Tensor) -> Tensor:
        layers: Any = attn  # diffusers declares some of its layers as modules without a call
        mixed = self._attend(layers.to_q(hidden), layers.to_k(hidden), layers.to_v(hidden), attn.heads)
        return layers.to_out[0](mixed)

    def _across_views(self, hidden: Tensor, heads: int) -> Tensor:
        pixels, width = hidden.shape[1:]
        side = math.isqrt(pixels)
        assert side**2 == pixels, pixels
        rows = hidden.view(-1, self.views, side, side, width).transpose(1, 2)  # [B,H,V,W,C]
        rows = rows.reshape(-1, self.views * side, width)  # [B*H,V*W,C]
        mixed = self._attend(self.to_q_mv(rows), self.to_k_mv(rows), self.to_v_mv(rows), heads)
        mixed = mixed.view(-1, side, self.views, side, width).transpose(1, 2)  # [B,V,H,W,C]
        return self.to_out_mv[0](mixed.reshape(hidden.shape))

    def _to_picture(self, hidden: Tensor, seen: Tensor, heads: int) -> Tensor:
        keys, values = self.to_k_ref(seen), self.to_v_ref(seen)  # once for all views
        keys, values = (part.repeat_interleave(self.views, 0) for part in (keys, values))
        return self.to_out_ref[0](self._attend(self.to_q_ref(hidden), keys, values, heads))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        """[B,N,C] of queries [B,N,C], keys and values [B,M,C]."""
        parts = [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (queries, keys, values)]
        slices = zip(*(part.split(1 if self.slicing else len(queries)) for part in parts), strict=True)
        mixed = torch.cat([scaled_dot_product_attention(*each) for each in slices])  # [B,heads,N,C/heads]
        return mixed.transpose(1, 2).flatten(2)


class PromptAttention(AttnProcessor2_0):
    """What a cross-attention layer computes: as without the adapter. It is handed what others need, and ignores it."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        write: dict[str, Tensor] | None = None,
        reference: dict[str, Tensor] | None = None,
    ) -> Tensor:
        del write, reference
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def attach(unet: UNet2DConditionModel, *, views: int, pictured: bool, slicing: bool) -> None:
    """Puts the adapter's layers, with random weights, into a denoiser."""
    processors: dict[str, Any] = {}  # diffusers declares its own kinds alone
    for name, layer in unet.named_modules():
        if not isinstance(layer, Attention):
            continue
        key = f"{name}.processor"
        if name.endswith("attn1"):
            processors[key] = ViewAttention(layer.query_dim, key, views=views, pictured=pictured, slicing=slicing)
        else:
            processors[key] = PromptAttention()
    unet.set_attn_processor(processors)
