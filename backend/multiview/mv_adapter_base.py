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

from backend.bad_input import BadInput
from backend.multiview.mv_adapter_condition import SNR_SHIFT, shifted_betas
from backend.multiview.parts import load_network, load_setting
from backend.multiview.text_towers import Tower, load_towers

Scheduler: TypeAlias = DDIMScheduler | EulerDiscreteScheduler | PNDMScheduler

SCHEDULERS = {  # whose steps have no chance in them
    "DDIMScheduler": DDIMScheduler,
    "EulerDiscreteScheduler": EulerDiscreteScheduler,  # SDXL's
    "PNDMScheduler": PNDMScheduler,  # that of SD 2.1
}


@dataclass(frozen=True)
class Base:
    """A base model; SDXL has two towers."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    towers: tuple[Tower, ...]
    scheduler: Scheduler


def read_base(folder: Path, *, xl: bool, dtype: torch.dtype) -> Base:
    """A base model on the CPU. Raises BadInput for what is missing, broken or foreign in its folder."""
    scheduler = read_scheduler(folder / "scheduler" / "scheduler_config.json")
    towers = load_towers(folder, xl=xl, dtype=dtype)
    vae: Any = load_network(AutoencoderKL, folder / "vae", torch.float32)
    if not vae.config.force_upcast:  # which says that half precision overflows
        vae = vae.to(dtype)
    unet: Any = load_network(UNet2DConditionModel, folder / "unet", dtype)
    width = sum(tower.encoder.config.hidden_size for tower in towers)
    if unet.config.cross_attention_dim != width:
        wanted = unet.config.cross_attention_dim
        raise BadInput(f"{folder / 'unet'}: expected one for texts of {width} numbers, found one for {wanted}")
    return Base(unet, vae, towers, scheduler)


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
