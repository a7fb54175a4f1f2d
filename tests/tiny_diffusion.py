"""Parts of diffusion models with random weights, in published layouts, so small that a pipeline runs in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


def tokenizer(folder: Path, pad: str = "!") -> None:
    """A CLIP tokenizer's files, of letters alone. `pad`: SD 2.1 has "!", SDXL's first tokenizer its end."""
    folder.mkdir(parents=True)
    letters = [chr(number) for number in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    told = {
        "add_prefix_space": False,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
        "do_lower_case": True,
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def vae(*, seed: int = 0, scaling: float = 0.18215) -> AutoencoderKL:
    """Eight times smaller in each direction, as published ones are."""
    torch.manual_seed(seed)
    # diffusers declares tuples of one
    down: Any = ("DownEncoderBlock2D",) * 4
    up: Any = ("UpDecoderBlock2D",) * 4
    sizes: Any = (8, 8, 8, 8)
    return AutoencoderKL(
        down_block_types=down,
        up_block_types=up,
        block_out_channels=sizes,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling,
    ).eval()


def text_encoder(
    *, width: int = 32, projected: bool = False, seed: int = 0
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """width  of its states, which the denoiser's cross-attention reads"""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=190,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=0,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def image_encoder(
    *, width: int = 32, projection: int = 32, layers: int = 3, seed: int = 0
) -> CLIPVisionModelWithProjection:
    """A CLIP vision tower of pictures of 224 pixels in patches of 32."""
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            image_size=224,
            patch_size=32,
            projection_dim=projection,
        )
    ).eval()


def image_processor(folder: Path) -> None:
    """A CLIP image processor's file, as published."""
    folder.mkdir(parents=True)
    told = {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 224},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
