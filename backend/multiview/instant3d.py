"""Instant3D as re-trained by the makers of GRM: four views of a prompt, in one picture of two rows and two columns.

The folder holds `instant3d.pth` as published: the tensors of the whole model in SDXL's first layout, of which only the
denoiser's (model.diffusion_model.) are read. Beside it lie, as in stabilityai/stable-diffusion-xl-base-1.0:
unet/config.json, and with their weights vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2 and scheduler. Where
there is no instant3d.pth, unet holds the denoiser's weights in diffusers' layout.

The denoiser is SDXL's; what makes it draw four views is where it starts: at the noised code of a white picture with a
dark blob in the middle of each quarter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor
from torch.nn.functional import avg_pool2d

from backend.bad_input import BadInput
from backend.checkpoint_files import load_into
from backend.compositing import over
from backend.monitor import Monitor
from backend.multiview import Budget, Held, Wish
from backend.multiview.grids import KeptViews, to_grid, to_views
from backend.multiview.parts import at_work, empty_network, load_network, load_setting
from backend.multiview.previews import SDXL_TO_RGB, contact_sheet, rough_views
from backend.multiview.text_towers import Prompts, Tower, encode, load_towers
from backend.safe_pickle import StoredTensor
from backend.torch_files import PickledFile
from blender_addon.front_ends import FRONT_ENDS, Rig

COLUMNS = 2
PREVIEW_EVERY = 4  # steps
WHITE = 1.0  # behind the views
BLOB = 0.1  # deviation of a blob, of a view's side
TILE = 512  # pixels
CHECKPOINT = "instant3d.pth"
DENOISER = "model.diffusion_model."
TIMES = 1000  # of the noise that the denoiser was trained on


@dataclass(frozen=True)
class Parts:
    """What a folder holds."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    towers: tuple[Tower, ...]
    scheduler: EulerDiscreteScheduler


def blobs(side: int) -> Tensor:
    """[1,3,2*side,2*side] -1..1: white, with a dark blob in the middle of each quarter."""
    away = torch.arange(2 * side) - side
    blob = torch.exp(-(away[:, None] ** 2 + away**2) / (2 * (BLOB * 2 * side) ** 2))
    half = avg_pool2d(1 - blob[None, None], 2)  # as it was trained: made large, then halved
    return (2 * half - 1).expand(1, 3, -1, -1).repeat(1, 1, COLUMNS, COLUMNS)


def times_of(steps: int) -> list[int]:
    """The times that the denoiser is asked at: evenly spaced from the last, without the first."""
    return [int(time) for time in np.linspace(TIMES - 1, 0, steps, endpoint=False)]


def load(front_end: str, folder: Path, budget: Budget) -> Instant3D:
    """The model from its folder. Raises BadInput."""
    published = (folder / CHECKPOINT).is_file()
    dtype = budget.dtype
    parts = Parts(
        unet=_published(folder, dtype) if published else load_network(UNet2DConditionModel, folder / "unet", dtype),
        # SDXL's overflows in half precision
        vae=load_network(AutoencoderKL, folder / "vae", torch.float32 if dtype is torch.float16 else dtype),
        towers=load_towers(folder, xl=True, dtype=dtype),
        scheduler=load_setting(EulerDiscreteScheduler, folder / "scheduler", "scheduler_config.json"),
    )
    if budget.slicing:
        parts.unet.set_attention_slice("max")
        _decode_in_tiles(parts.vae)
    return Instant3D(FRONT_ENDS[front_end].rig, parts, budget)


def _decode_in_tiles(vae: AutoencoderKL) -> None:
    """Has the VAE work at a quarter of the picture at a time, which else takes more memory than the denoiser."""
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // 8


def _published(folder: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The denoiser from the published file."""
    unet: Any = empty_network(UNet2DConditionModel, folder / "unet", dtype)
    path = folder / CHECKPOINT
    state = _denoiser(path, dtype)
    try:
        load_into(unet, convert_ldm_unet_checkpoint(state, unet.config))
    except (KeyError, BadInput) as error:
        raise BadInput(f"{path}: expected the tensors of SDXL's denoiser, found: {error}") from error
    return unet.eval().requires_grad_(False)


def _denoiser(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The denoiser's tensors by their published names. One is read at a time: the file may be twice as precise."""
    with PickledFile(path) as file:
        content = file.content if isinstance(file.content, dict) else {}
        content = content.get("state_dict", content)
        stored = {
            name: tensor
            for name, tensor in content.items()
            if isinstance(tensor, StoredTensor) and str(name).startswith(DENOISER)
        }
        if not stored:
            raise BadInput(f"{path}: expected tensors named {DENOISER}..., found none")
        return {name: file.load({name: tensor})[name].to(dtype) for name, tensor in stored.items()}


class Instant3D:
    """See backend.multiview.Sampler."""

    def __init__(self, rig: Rig, parts: Parts, budget: Budget) -> None:
        self.rig = rig
        self.parts = parts
        self.budget = budget

    @torch.inference_mode()
    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        chance = torch.Generator().manual_seed(wish.seed)
        prompts = self._prompts(wish)
        start = self._code(blobs(self.rig.side)).sample(chance).float() * self.parts.vae.config["scaling_factor"]
        grid = self._denoised(wish, prompts, start, chance, monitor)
        return to_views(self._decoded(grid), COLUMNS).permute(0, 2, 3, 1)

    def _prompts(self, wish: Wish) -> Prompts:
        if wish.guidance <= 1:
            return encode(self.parts.towers, [wish.prompt], self.budget)
        prompts = encode(self.parts.towers, [wish.negative_prompt, wish.prompt], self.budget)
        if prompts.whole is not None and not wish.negative_prompt:
            # without words SDXL was trained to see zeros, not the embedding of an empty prompt
            prompts.states[0], prompts.whole[0] = 0, 0
        return prompts

    def _denoised(
        self, wish: Wish, prompts: Prompts, start: Tensor, chance: torch.Generator, monitor: Monitor
    ) -> Tensor:
        """[1,4,H,W] float32, scaled as the denoiser knows them."""
        scheduler: Any = self.parts.scheduler  # diffusers declares tuples that it does not return
        scheduler.set_timesteps(timesteps=times_of(wish.steps), device=self.budget.device)
        noise = torch.randn(start.shape, generator=chance).to(start)
        kept = None if wish.held is None else KeptViews(self._known(wish.held), noise, wish.held.redo, COLUMNS)
        latents = start + scheduler.sigmas[0] * noise
        with at_work(self.parts.unet, self.budget):
            for step, time in enumerate(scheduler.timesteps):
                if kept is not None:
                    latents = kept.put_back(latents, scheduler.sigmas[step])
                towards = self._prediction(scheduler.scale_model_input(latents, time), time, prompts, wish.guidance)
                done = scheduler.step(towards, time, latents)
                latents = done.prev_sample
                monitor.progress("views", step + 1, wish.steps)
                if step % PREVIEW_EVERY == 0:
                    rough = rough_views(to_views(done.pred_original_sample, COLUMNS), SDXL_TO_RGB)
                    monitor.preview(contact_sheet(rough))
        return latents if kept is None else kept.put_back(latents, scheduler.sigmas[-1])

    def _prediction(self, latents: Tensor, time: Tensor, prompts: Prompts, guidance: float) -> Tensor:
        """[1,4,H,W] float32: the noise that the denoiser sees at a time, with guidance."""
        count, dtype, side = len(prompts.states), self.budget.dtype, COLUMNS * self.rig.side
        # sizes of the picture before and after it was cut, and where it was cut
        sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=dtype, device=latents.device)
        done: Any = self.parts.unet(
            latents.to(dtype).expand(count, -1, -1, -1),
            time,
            prompts.states,
            added_cond_kwargs={"text_embeds": prompts.whole, "time_ids": sizes.expand(count, -1)},
        )
        said = done.sample.float()
        return said if count == 1 else said[:1] + guidance * (said[1:] - said[:1])

    def _code(self, image: Tensor) -> Any:
        """The distribution of latents of a picture [1,3,H,W], -1..1, not scaled."""
        vae: Any = self.parts.vae
        with at_work(vae, self.budget):
            return vae.encode(image.to(self.budget.device, vae.dtype)).latent_dist

    def _known(self, held: Held) -> Tensor:
        """[1,4,H,W] float32, scaled as the denoiser knows them: of given views."""
        background = WHITE if self.rig.background is None else self.rig.background
        image = to_grid(over(held.images, background).permute(0, 3, 1, 2), COLUMNS) * 2 - 1
        return self._code(image).mode().float() * self.parts.vae.config["scaling_factor"]

    def _decoded(self, latents: Tensor) -> Tensor:
        """[1,3,H,W] float32, 0..1, on the CPU."""
        vae: Any = self.parts.vae
        with at_work(vae, self.budget):
            image = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
        return (image.float() / 2 + 0.5).clamp(0, 1).cpu()
