"""Attention that also looks at a reference: what the layers of a denoiser saw of another picture.

The denoiser is run on the reference first, with `write`, and then on what it shall denoise, with `read`:

    seen = {}
    unet(reference, time, context, cross_attention_kwargs={"write": seen})
    unet(latents, time, context, cross_attention_kwargs={"read": seen})
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class ReferenceAttention:
    """Computes one attention layer of Stable Diffusion's denoiser, in which neither masks nor norms are.

    name           the layer's
    heads_at_once  how many heads are computed together: fewer need less memory
    """

    def __init__(self, name: str, heads_at_once: int) -> None:
        self.name = name
        self.heads_at_once = heads_at_once

    def __call__(
        self,
        attn: Any,  # diffusers' Attention, which declares layers that may be missing
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *_: object,
        write: dict[str, Tensor] | None = None,
        read: dict[str, Tensor] | None = None,
        **others: object,
    ) -> Tensor:
        """[B,T,C] of states [B,T,C], which look at [B,S,D] or, where that is None, at themselves and at the reference.

        write  gets what this layer's states look at, by the layer's name
        read   has what they look at besides, of the same B
        """
        seen = hidden_states
        if encoder_hidden_states is not None:
            seen = encoder_hidden_states
        elif write is not None:
            write[self.name] = hidden_states
        elif read is not None:
            seen = torch.cat([hidden_states, read[self.name]], 1)
        query, key, value = (
            layer(states).unflatten(2, (attn.heads, -1)).transpose(1, 2).split(self.heads_at_once, 1)
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, seen), (attn.to_v, seen))
        )
        mixed = torch.cat([scaled_dot_product_attention(*part) for part in zip(query, key, value, strict=True)], 1)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))


def look_at_reference(unet: UNet2DConditionModel, heads_at_once: int) -> None:
    """Has all attention layers of a denoiser computed so that those of self-attention can write and read."""
    processors: Any = {name: ReferenceAttention(name, heads_at_once) for name in unet.attn_processors}
    unet.set_attn_processor(processors)
