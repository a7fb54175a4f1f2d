"""Zero123++ 1.1 and 1.2: six views of what a picture shows, in one picture of three rows and two columns.

The folder is as published in sudo-ai/zero123plus-v1.1 and -v1.2: unet, vae, text_encoder, vision_encoder, tokenizer,
scheduler, feature_extractor_clip, feature_extractor_vae and model_index.json. The versions differ by their weights and
their cameras alone.

The denoiser, Stable Diffusion 2's, sees the picture in two ways. Its CLIP embedding is added to the tokens of an empty
prompt, each with a weight of its own, the ramp. And at each step the picture's latent, as noisy as the views are, goes
through the denoiser first: what each layer of self-attention saw of it, the views then look at beside themselves. The
guidance leads away from an even grey picture without an embedding. No other prompt was ever trained, so the words of a
wish are not read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from backend.bad_input import BadInput
from backend.compositing import over
from backend.monitor import Monitor
from backend.multiview import Budget, Held, Wish
from backend.multiview.grids import KeptViews, to_grid, to_views
from backend.multiview.parts import at_work, load_network, load_setting
from backend.multiview.previews import SD_TO_RGB, contact_sheet, rough_views
from backend.multiview.reference_attention import look_at_reference
from blender_addon.front_ends import FRONT_ENDS, FrontEnd

COLUMNS = 2
PREVIEW_EVERY = 4  # steps
GREY = 0.5  # behind a picture's object where the front end does not say
ALL_HEADS = 10_000
# The denoiser was trained on latents and pictures brought closer to those of photographs.
LATENT_MEAN, LATENT_SCALE = 0.22, 0.75
CONTRAST = 0.5 / 0.8


def scale_latents(latents: Tensor) -> Tensor:
    """Latents as the denoiser knows them, of those of Stable Diffusion."""
    return (latents - LATENT_MEAN) * LATENT_SCALE


def unscale_latents(latents: Tensor) -> Tensor:
    return latents / LATENT_SCALE + LATENT_MEAN


def scale_image(image: Tensor) -> Tensor:
    """A picture -1..1 as the views are coded: with less contrast."""
    return image * CONTRAST


def unscale_image(image: Tensor) -> Tensor:
    return image / CONTRAST


@dataclass(frozen=True)
class Parts:
    """What a folder holds. `ramp` [77,1]: the weight of the picture's embedding in each token."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    vision_encoder: CLIPVisionModelWithProjection
    tokenizer: CLIPTokenizer
    scheduler: EulerAncestralDiscreteScheduler
    for_clip: CLIPImageProcessorPil
    for_vae: CLIPImageProcessorPil
    ramp: Tensor


@dataclass(frozen=True)
class Condition:
    """The picture as the denoiser sees it; first the grey one where there is guidance.

    latents  [B,4,h,w] without noise, not scaled by the VAE's factor, as it was trained
    tokens   [B,77,D]
    """

    latents: Tensor
    tokens: Tensor


def load(front_end: str, folder: Path, budget: Budget) -> Zero123Plus:
    """The model from its folder. Raises BadInput."""
    ramp = _ramp(folder / "model_index.json")
    scheduler = load_setting(EulerAncestralDiscreteScheduler, folder / "scheduler", "scheduler_config.json")
    # its publishers sample so, which the file does not say
    trailing: Any = EulerAncestralDiscreteScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    pictures = ("preprocessor_config.json",)
    parts = Parts(
        unet=load_network(UNet2DConditionModel, folder / "unet", budget.dtype),
        vae=load_network(AutoencoderKL, folder / "vae", budget.dtype),
        text_encoder=load_network(CLIPTextModel, folder / "text_encoder", budget.dtype),
        vision_encoder=load_network(CLIPVisionModelWithProjection, folder / "vision_encoder", budget.dtype),
        tokenizer=load_setting(CLIPTokenizer, folder / "tokenizer", "vocab.json", "merges.txt"),
        scheduler=trailing,
        for_clip=load_setting(CLIPImageProcessorPil, folder / "feature_extractor_clip", *pictures),
        for_vae=load_setting(CLIPImageProcessorPil, folder / "feature_extractor_vae", *pictures),
        ramp=ramp,
    )
    look_at_reference(parts.unet, heads_at_once=1 if budget.slicing else ALL_HEADS)
    return Zero123Plus(FRONT_ENDS[front_end], parts, budget)


def _ramp(path: Path) -> Tensor:
    """[T,1] weights of the picture's embedding in each token of the prompt."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        ramp = torch.tensor(told["ramping_coefficients"], dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: expected JSON with ramping_coefficients, found: {error!r}") from error
    if ramp.ndim != 1 or not ramp.isfinite().all():
        raise BadInput(f"{path}: ramping_coefficients: expected finite numbers, found {told['ramping_coefficients']}")
    return ramp[:, None]


class Zero123Plus:
    """See backend.multiview.Sampler."""

    def __init__(self, front_end: FrontEnd, parts: Parts, budget: Budget) -> None:
        self.front_end = front_end
        self.rig = front_end.rig
        self.parts = parts
        self.budget = budget

    @torch.inference_mode()
    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        if wish.picture is None:
            raise BadInput("picture: expected one, as this front end makes views of a picture, found none")
        chance = torch.Generator().manual_seed(wish.seed)
        condition = self._condition(wish.picture, chance, guided=wish.guidance > 1)
        grid = self._denoised(wish, condition, chance, monitor)
        return to_views(self._decoded(grid), COLUMNS).permute(0, 2, 3, 1)

    def _condition(self, picture: Tensor, chance: torch.Generator, *, guided: bool) -> Condition:
        grey = GREY if self.front_end.input_grey is None else self.front_end.input_grey
        image = Image.fromarray((over(picture, grey).clamp(0, 1) * 255).round().byte().numpy())
        tokens, empty = self._tokens(image)
        latents, nothing = self._latents(image, chance)
        if not guided:
            return Condition(latents, tokens)
        return Condition(torch.cat([nothing, latents]), torch.cat([empty, tokens]))

    def _tokens(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """[1,77,D] with the picture's embedding, and without."""
        parts, device = self.parts, self.budget.device
        length = parts.tokenizer.model_max_length
        ids = parts.tokenizer("", padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
        with at_work(parts.text_encoder, self.budget):
            empty = parts.text_encoder(torch.as_tensor(ids, device=device))[0]
        with at_work(parts.vision_encoder, self.budget):
            embedding = parts.vision_encoder(self._pixels(parts.for_clip, image)).image_embeds
        if parts.ramp.shape[0] != length or embedding.shape[-1] != empty.shape[-1]:
            raise BadInput(
                f"ramping_coefficients and vision_encoder: expected {length} weights and embeddings of "
                f"{empty.shape[-1]} numbers, found {parts.ramp.shape[0]} and {embedding.shape[-1]}"
            )
        return empty + embedding[:, None] * parts.ramp.to(embedding), empty

    def _latents(self, image: Image.Image, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """[1,4,h,w] of the picture, and of an even grey one."""
        vae: Any = self.parts.vae  # diffusers declares tuples that it does not return
        pixels = self._pixels(self.parts.for_vae, image)
        with at_work(vae, self.budget):
            both = vae.encode(torch.cat([pixels, torch.zeros_like(pixels)])).latent_dist.sample(chance)
        return both[:1], both[1:]

    def _pixels(self, processor: CLIPImageProcessorPil, image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"].to(self.budget.device, self.budget.dtype)

    def _denoised(self, wish: Wish, condition: Condition, chance: torch.Generator, monitor: Monitor) -> Tensor:
        """[1,4,H,W] float32, as the denoiser knows them."""
        scheduler: Any = self.parts.scheduler  # as with the VAE
        scheduler.set_timesteps(wish.steps, device=self.budget.device)
        side = self.rig.side // 8
        noise = self._noise((1, 4, len(self.rig.angles) // COLUMNS * side, COLUMNS * side), chance)
        kept = None if wish.held is None else KeptViews(self._known(wish.held), noise, wish.held.redo, COLUMNS)
        latents = noise * scheduler.init_noise_sigma
        with at_work(self.parts.unet, self.budget):
            for step, time in enumerate(scheduler.timesteps):
                if kept is not None:
                    latents = kept.put_back(latents, scheduler.sigmas[step])
                towards = self._prediction(latents, time, condition, wish.guidance, chance)
                done = scheduler.step(towards, time, latents, generator=chance)
                latents = done.prev_sample
                monitor.progress("views", step + 1, wish.steps)
                if step % PREVIEW_EVERY == 0:
                    self._show(done.pred_original_sample, monitor)
        return latents if kept is None else kept.put_back(latents, scheduler.sigmas[-1])

    def _prediction(
        self, latents: Tensor, time: Tensor, condition: Condition, guidance: float, chance: torch.Generator
    ) -> Tensor:
        """[1,4,H,W] float32: what the denoiser says of latents at a time, with guidance."""
        scheduler: Any = self.parts.scheduler
        noise = self._noise(condition.latents.shape, chance)
        reference = scheduler.scale_model_input(
            scheduler.add_noise(condition.latents.float(), noise, time.reshape(1)), time
        )
        count = len(condition.latents)
        seen: dict[str, Tensor] = {}
        self._unet(reference, time, condition.tokens, write=seen)
        scaled = scheduler.scale_model_input(latents, time).expand(count, -1, -1, -1)
        said = self._unet(scaled, time, condition.tokens, read=seen)
        return said if count == 1 else said[:1] + guidance * (said[1:] - said[:1])

    def _unet(self, latents: Tensor, time: Tensor, tokens: Tensor, **reference: dict[str, Tensor]) -> Tensor:
        dtype = self.budget.dtype
        done: Any = self.parts.unet(latents.to(dtype), time, tokens, cross_attention_kwargs=reference)
        return done.sample.float()

    def _noise(self, shape: tuple[int, ...], chance: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=chance).to(self.budget.device)

    def _known(self, held: Held) -> Tensor:
        """[1,4,H,W] float32, as the denoiser knows them: of given views."""
        vae: Any = self.parts.vae
        background = GREY if self.rig.background is None else self.rig.background
        image = to_grid(over(held.images, background).permute(0, 3, 1, 2), COLUMNS) * 2 - 1
        with at_work(vae, self.budget):
            code = vae.encode(scale_image(image).to(self.budget.device, self.budget.dtype)).latent_dist.mode()
        return scale_latents(code.float() * vae.config.scaling_factor)

    def _decoded(self, latents: Tensor) -> Tensor:
        """[1,3,H,W] float32, 0..1, on the CPU."""
        vae: Any = self.parts.vae
        code = unscale_latents(latents) / vae.config.scaling_factor
        with at_work(vae, self.budget):
            image = vae.decode(code.to(self.budget.dtype)).sample
        return (unscale_image(image.float()) / 2 + 0.5).clamp(0, 1).cpu()

    def _show(self, latents: Tensor, monitor: Monitor) -> None:
        rough = rough_views(unscale_latents(to_views(latents, COLUMNS)), SD_TO_RGB)
        monitor.preview(contact_sheet((unscale_image(rough * 2 - 1) / 2 + 0.5).clamp(0, 1)))
