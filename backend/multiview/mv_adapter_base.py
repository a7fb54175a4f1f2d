"""The models that MV-Adapter is laid on: Stable Diffusion XL and 2.1, in the layout of diffusers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from backend.bad_input import BadInput
from backend.multiview.mv_adapter_condition import SNR_SHIFT, shifted_betas
from backend.multiview.parts import load_network, load_setting

Scheduler: TypeAlias = DDIMScheduler | EulerDiscreteScheduler | PNDMScheduler

SCHEDULERS = {  # whose steps have no chance in them
    "DDIMScheduler": DDIMScheduler,
    "EulerDiscreteScheduler": EulerDiscreteScheduler,  # SDXL's
    "PNDMScheduler": PNDMScheduler,  # that of SD 2.1
}


@dataclass(frozen=True)
class Tower:
    """A text encoder and what cuts texts into its tokens."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class Prompt:
    """A text as the denoiser reads it.

    states  [1,77,C]
    whole   [1,D] of the whole text; None where the denoiser does not ask for it
    """

    states: Tensor
    whole: Tensor | None


@dataclass(frozen=True)
class Base:
    """A base model. Without `xl` it has one tower; with it two, of which the second tells of whole texts too."""

    xl: bool
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    towers: tuple[Tower, ...]
    scheduler: Scheduler


def read_base(folder: Path, *, xl: bool, dtype: torch.dtype) -> Base:
    """A base model on the CPU. Raises BadInput for what is missing, broken or foreign in its folder."""
    scheduler = read_scheduler(folder / "scheduler" / "scheduler_config.json")
    towers = [_tower(folder, "", CLIPTextModel, dtype)]
    if xl:
        towers.append(_tower(folder, "_2", CLIPTextModelWithProjection, dtype))
    vae: Any = load_network(AutoencoderKL, folder / "vae", torch.float32)
    if not vae.config.force_upcast:  # which says that half precision overflows
        vae = vae.to(dtype)
    unet: Any = load_network(UNet2DConditionModel, folder / "unet", dtype)
    width = sum(tower.encoder.config.hidden_size for tower in towers)
    if unet.config.cross_attention_dim != width:
        wanted = unet.config.cross_attention_dim
        raise BadInput(f"{folder / 'unet'}: expected one for texts of {width} numbers, found one for {wanted}")
    return Base(xl, unet, vae, tuple(towers), scheduler)


def read_scheduler(path: Path) -> Scheduler:
    """The base's own sampler, with the noise of MV-Adapter. Raises BadInput."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        kind = SCHEDULERS.get(told["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: expected JSON with _class_name, found: {error!r}") from error
    if kind is None:
        raise BadInput(f"{path}: expected _class_name one of {', '.join(SCHEDULERS)}, found {told['_class_name']!r}")
    plain: Any = load_setting(kind, path.parent, path.name)
    return with_betas(plain, shifted_betas(plain.alphas_cumprod, SNR_SHIFT))


def with_betas(scheduler: Scheduler, betas: Tensor) -> Scheduler:
    """A new sampler like a given one, with the noise [T] added at each training step."""
    own: Any = type(scheduler)
    return own.from_config(scheduler.config, trained_betas=betas.tolist())


def start(scheduler: Scheduler, steps: int) -> Any:
    """A new sampler like a given one, at the beginning of a run: it keeps the run's state."""
    own: Any = type(scheduler)
    new = own.from_config(scheduler.config)
    new.set_timesteps(steps)
    return new


def encode(base: Base, text: str, device: torch.device) -> Prompt:
    """A text through the base's towers, which are on the device. What is beyond 77 tokens is not read."""
    states, whole = [], None
    for tower in base.towers:
        length = tower.tokenizer.model_max_length
        tokens: Any = tower.tokenizer(text, padding="max_length", max_length=length, truncation=True)
        told: Any = tower.encoder(torch.tensor([tokens["input_ids"]], device=device), output_hidden_states=True)
        states.append(told.hidden_states[-2] if base.xl else told.last_hidden_state)
        whole = told.text_embeds if isinstance(tower.encoder, CLIPTextModelWithProjection) else None
    return Prompt(torch.cat(states, dim=-1), whole)


def _tower(
    folder: Path, number: str, kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection], dtype: torch.dtype
) -> Tower:
    tokenizer = load_setting(CLIPTokenizer, folder / f"tokenizer{number}", "vocab.json", "merges.txt")
    return Tower(tokenizer, load_network(kind, folder / f"text_encoder{number}", dtype))
