"""The text encoders of Stable Diffusion 2.1 and XL, in the layout of diffusers.

A folder holds tokenizer and text_encoder; that of SDXL tokenizer_2 and text_encoder_2 too, whose second encoder also
tells of the text as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from backend.multiview import Budget
from backend.multiview.parts import at_work, load_network, load_setting


@dataclass(frozen=True)
class Tower:
    """A text encoder and what cuts texts into its tokens."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class Prompts:
    """N texts as a denoiser reads them.

    states  [N,77,C]
    whole   [N,D] of the whole texts; None where the denoiser does not ask for it
    """

    states: Tensor
    whole: Tensor | None


def load_towers(folder: Path, *, xl: bool, dtype: torch.dtype) -> tuple[Tower, ...]:
    """One, or the two of SDXL, on the CPU. Raises BadInput."""
    first = _tower(folder, "", CLIPTextModel, dtype)
    return (first, _tower(folder, "_2", CLIPTextModelWithProjection, dtype)) if xl else (first,)


def encode(towers: Sequence[Tower], texts: Sequence[str], budget: Budget) -> Prompts:
    """Texts through one tower, to its last layer, or through both of SDXL, to the layer before. What is beyond 77
    tokens is not read.
    """
    states, whole = [], None
    for tower in towers:
        length = tower.tokenizer.model_max_length
        tokens: Any = tower.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)
        with at_work(tower.encoder, budget):
            ids = torch.tensor(tokens["input_ids"], device=budget.device)
            told: Any = tower.encoder(ids, output_hidden_states=True)
        states.append(told.hidden_states[-2] if len(towers) > 1 else told.last_hidden_state)
        whole = told.text_embeds if isinstance(tower.encoder, CLIPTextModelWithProjection) else None
    return Prompts(torch.cat(states, dim=-1), whole)


def _tower(
    folder: Path, number: str, kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection], dtype: torch.dtype
) -> Tower:
    tokenizer = load_setting(CLIPTokenizer, folder / f"tokenizer{number}", "vocab.json", "merges.txt")
    return Tower(tokenizer, load_network(kind, folder / f"text_encoder{number}", dtype))
