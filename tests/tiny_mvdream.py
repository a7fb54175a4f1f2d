"""MVDream and ImageDream with tiny random weights, in the layout in which they are published."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.multiview.mvdream_config import config_from
from backend.multiview.mvdream_unet import MultiViewUNet
from tests import tiny_diffusion

UNET = {  # the fields that the published config.json has
    "_class_name": "MultiViewUNetModel",
    "_diffusers_version": "0.25.0",
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "transformer_depth": 1,
    "context_dim": 32,
    "use_checkpoint": True,
    "camera_dim": 16,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.25.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
INDEX = {
    "_class_name": "MVDreamPipeline",
    "_diffusers_version": "0.25.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["mv_unet", "MultiViewUNetModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_folder(folder: Path, *, sees: bool) -> Path:
    """A model as it is published: its denoiser in half precision, CLIP's tensors by their names of then."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    tiny_diffusion.tokenizer(folder / "tokenizer")
    tiny_diffusion.vae().save_pretrained(folder / "vae")
    tiny_diffusion.text_encoder().save_pretrained(folder / "text_encoder")
    rename(folder / "text_encoder", "text_model.", {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    config = UNET | ({"ip_dim": 4} if sees else {})
    if sees:
        tiny_diffusion.image_encoder(width=48).vision_model.save_pretrained(folder / "image_encoder")
        rename(folder / "image_encoder", "vision_model.", {})
        tiny_diffusion.image_processor(folder / "feature_extractor")
    torch.manual_seed(1)
    tensors = MultiViewUNet(config_from(config, 48)).half().state_dict()
    (folder / "unet").mkdir()
    (folder / "unet/config.json").write_text(json.dumps(config))
    (folder / "unet/mv_unet.py").write_text("raise SystemExit('remote code was run')")
    save_file(tensors, folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


def rename(folder: Path, before: str, more: dict[str, Tensor]) -> None:
    """Tensors get what older versions of transformers put before their names, and others beside them."""
    file = folder / "model.safetensors"
    tensors = {before + name: tensor for name, tensor in load_file(file).items()} | more
    save_file(tensors, file, {"format": "pt"})
