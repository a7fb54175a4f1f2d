"""MV-Adapter (Huang et al., arXiv 2412.03632): six orthographic views of a prompt or of a picture.

The folder of a model holds the adapter under its published name, beside its base in the layout of diffusers:

    mvadapter_t2mv_sdxl.safetensors     or mvadapter_i2mv_sdxl, mvadapter_t2mv_sd21, mvadapter_i2mv_sd21, each
                                        from huanngzh/mv-adapter
    scheduler/scheduler_config.json
    text_encoder/  tokenizer/  unet/  vae/
    text_encoder_2/  tokenizer_2/       with SDXL alone

The base is stabilityai/stable-diffusion-xl-base-1.0, whose vae/ may be that of madebyollin/sdxl-vae-fp16-fix, or a
copy of stabilityai/stable-diffusion-2-1-base. Files of half precision do as well, under the names of the full ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import interpolate

from backend.bad_input import BadInput
from backend.cameras import rig_cameras
from backend.compositing import over
from backend.monitor import Monitor
from backend.multiview import Budget, Wish
from backend.multiview.holding import put_back
from backend.multiview.mv_adapter_attention import attach
from backend.multiview.mv_adapter_base import Base, read_base, start
from backend.multiview.mv_adapter_condition import camera_maps
from backend.multiview.parts import at_work
from backend.multiview.previews import SD_TO_RGB, SDXL_TO_RGB, contact_sheet, rough_views
from backend.multiview.text_towers import Prompts, encode
from blender_addon.front_ends import FRONT_ENDS, FrontEnd

STAGE = "views"
PREVIEW_EVERY = 5  # steps
LATENT = 8  # pixels of a side of a latent's
GREY = 0.5  # behind the object where the front end does not say
# What the authors' own programs say where the user says nothing.
PROMPT = "high quality"
NEGATIVE_PROMPT = "watermark, ugly, deformed, noisy, blurry, low contrast"


@dataclass(frozen=True)
class Adapter:
    """file: its published name; xl: whether for SDXL; pictured: whether it looks at a picture."""

    file: str
    xl: bool
    pictured: bool


ADAPTERS = {  # of each front end
    "mvadapter-sdxl": Adapter("mvadapter_t2mv_sdxl.safetensors", xl=True, pictured=False),
    "mvadapter-sdxl-image": Adapter("mvadapter_i2mv_sdxl.safetensors", xl=True, pictured=True),
    "mvadapter-sd21": Adapter("mvadapter_t2mv_sd21.safetensors", xl=False, pictured=False),
    "mvadapter-sd21-image": Adapter("mvadapter_i2mv_sd21.safetensors", xl=False, pictured=True),
}


@dataclass(frozen=True)
class Told:
    """What the denoiser is told beside noise, for B batches of V views: without the wish, where that counts, and with.

    states     [B*V,77,C] of the prompts
    added      of whole prompts and sizes of pictures, for SDXL
    cameras    what the camera encoder makes of the views' cameras, for each block
    reference  what each layer saw of the picture, [B,N,C]; None where there is none
    """

    states: Tensor
    added: dict[str, Tensor] | None
    cameras: list[Tensor]
    reference: dict[str, Tensor] | None


@dataclass(frozen=True)
class Kept:
    """Views to keep while one, `redo`, is made: their latents without noise, and the noise of the run, [V,4,h,w]."""

    clean: Tensor
    noise: Tensor
    redo: int

    def put_back(self, latents: Tensor, scheduler: Any, time: Tensor) -> Tensor:
        times = time.expand(len(latents))
        return put_back(latents, self.clean, self.redo, lambda clean: scheduler.add_noise(clean, self.noise, times))


def load(front_end: str, folder: Path, budget: Budget) -> MvAdapter:
    """An adapter with its base. Raises BadInput for a missing, broken or foreign file."""
    adapter = ADAPTERS[front_end]
    base = read_base(folder, xl=adapter.xl, dtype=budget.dtype)
    chosen = FRONT_ENDS[front_end]
    with torch.device("meta"):  # the file has all of their weights
        attach(base.unet, views=len(chosen.rig.angles), pictured=adapter.pictured, slicing=budget.slicing)
        camera_encoder = make_camera_encoder(base.unet, xl=adapter.xl)
    fill_adapter(folder / adapter.file, base.unet, camera_encoder, budget.dtype)
    return MvAdapter(chosen, adapter, base, camera_encoder, budget)


@dataclass(frozen=True)
class MvAdapter:
    """A loaded model: the Sampler of its front end."""

    front_end: FrontEnd
    adapter: Adapter
    base: Base
    camera_encoder: T2IAdapter
    budget: Budget

    @property
    def views(self) -> int:
        return len(self.front_end.rig.angles)

    @torch.no_grad()
    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        """See backend.multiview.Sampler; the views are on grey."""
        chance = torch.Generator().manual_seed(wish.seed)
        side = self.front_end.rig.side // LATENT
        noise = torch.randn(self.views, 4, side, side, generator=chance).to(self.budget.device)
        told = self._told(wish, chance)
        if wish.held is None:
            return self._decoded(self._denoised(wish, None, told, noise, monitor))
        redo, views = wish.held.redo, _over(wish.held.images, self.front_end.rig.background)
        kept = Kept(self._encoded(views, None), noise, redo)
        views[redo] = self._decoded(self._denoised(wish, kept, told, noise, monitor)[redo, None])[0]
        return views

    def _told(self, wish: Wish, chance: torch.Generator) -> Told:
        texts = [wish.prompt.strip() or PROMPT]
        if wish.guidance > 1:
            texts.insert(0, wish.negative_prompt.strip() or NEGATIVE_PROMPT)
        prompts = encode(self.base.towers, texts, self.budget)
        reference = self._seen(wish.picture, prompts, chance) if self.adapter.pictured else None
        maps = camera_maps(rig_cameras(self.front_end.rig))
        with at_work(self.camera_encoder, self.budget):
            cameras: Any = self.camera_encoder(maps.to(self.budget.device, self.budget.dtype))
        return Told(
            states=prompts.states.repeat_interleave(self.views, 0),
            added=self._added(prompts.whole, self.views),
            cameras=[each.repeat(len(texts), 1, 1, 1) for each in cameras],
            reference=reference,
        )

    def _added(self, whole: Tensor | None, views: int) -> dict[str, Tensor] | None:
        """What SDXL is told of whole texts, and of its pictures: their size, their crop's corner, the size wanted."""
        if whole is None:
            return None
        side = self.front_end.rig.side
        sizes = torch.tensor([[side, side, 0, 0, side, side]]).to(whole)
        return {
            "text_embeds": whole.repeat_interleave(views, 0),
            "time_ids": sizes.expand(len(whole) * views, -1),
        }

    def _seen(self, picture: Tensor | None, prompts: Prompts, chance: torch.Generator) -> dict[str, Tensor]:
        """What each layer sees of the picture, [B,N,C]; before it nothing, where there are two prompts."""
        if picture is None:
            raise BadInput(f"picture: expected one for {self.front_end.title}, found none")
        latents = self._encoded(_over(picture[None], self.front_end.input_grey), chance)
        seen: dict[str, Tensor] = {}
        with at_work(self.base.unet, self.budget):
            self.base.unet(
                latents.to(self.budget.dtype),
                0,  # without noise
                prompts.states[-1:],
                added_cond_kwargs=self._added(None if prompts.whole is None else prompts.whole[-1:], 1),
                cross_attention_kwargs={"write": seen},
            )
        if len(prompts.states) == 1:
            return seen
        return {name: torch.cat([torch.zeros_like(each), each]) for name, each in seen.items()}

    def _denoised(self, wish: Wish, kept: Kept | None, told: Told, noise: Tensor, monitor: Monitor) -> Tensor:
        """Latents [V,4,h,w] float32 without noise."""
        scheduler = start(self.base.scheduler, wish.steps)
        total = len(scheduler.timesteps)
        monitor.progress(STAGE, 0, total)
        latents = noise * scheduler.init_noise_sigma
        with at_work(self.base.unet, self.budget):
            for step, time in enumerate(scheduler.timesteps):
                if kept is not None:
                    latents = kept.put_back(latents, scheduler, time)
                seen = scheduler.scale_model_input(latents, time)
                said = self._said(seen, time, told, wish.guidance)
                latents = scheduler.step(said, time, latents).prev_sample
                if step % PREVIEW_EVERY == 0:
                    monitor.preview(self._preview(seen, said, scheduler.alphas_cumprod[int(time)]))
                monitor.progress(STAGE, step + 1, total)
        return latents

    def _said(self, seen: Tensor, time: Tensor, told: Told, guidance: float) -> Tensor:
        """[V,4,h,w] float32: what the denoiser says of latents [V,4,h,w] at a time, with guidance."""
        count = len(told.states) // self.views
        found: Any = self.base.unet(
            seen.to(self.budget.dtype).repeat(count, 1, 1, 1),
            time,
            told.states,
            added_cond_kwargs=told.added,
            down_intrablock_additional_residuals=list(told.cameras),  # a copy: the denoiser takes from it
            cross_attention_kwargs={"reference": told.reference},
        )
        said = found.sample.float()
        if count == 1:
            return said
        without, wanted = said.chunk(2)
        return without + guidance * (wanted - without)

    def _preview(self, seen: Tensor, said: Tensor, kept: Tensor) -> np.ndarray:
        """What the views would be if the denoiser were right at once, at a step that has `kept` of their power."""
        settings: Any = self.base.scheduler.config
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        if settings.prediction_type == "v_prediction":
            clean = signal * seen - noise * said
        else:
            clean = (seen - noise * said) / signal
        return contact_sheet(rough_views(clean, SDXL_TO_RGB if self.adapter.xl else SD_TO_RGB))

    def _encoded(self, images: Tensor, chance: torch.Generator | None) -> Tensor:
        """Latents [V,4,h,w] float32 of pictures [V,H,W,3]; without chance, the likeliest."""
        vae: Any = self.base.vae
        side = self.front_end.rig.side
        fitting = interpolate(images.movedim(-1, 1), (side, side), mode="bilinear", antialias=True)
        latents = []
        with at_work(vae, self.budget):
            for image in (2 * fitting - 1).to(self.budget.device, vae.dtype).split(1):  # one at a time, for memory
                likely = vae.encode(image).latent_dist
                latents.append(likely.mode() if chance is None else likely.sample(chance))
        return torch.cat(latents).float() * vae.config.scaling_factor

    def _decoded(self, latents: Tensor) -> Tensor:
        """[V,S,S,3] of latents."""
        vae: Any = self.base.vae
        with at_work(vae, self.budget):
            parts = (latents / vae.config.scaling_factor).to(vae.dtype).split(1)
            images = [vae.decode(part).sample.float().cpu() for part in parts]
        return (torch.cat(images) / 2 + 0.5).clamp(0, 1).movedim(1, -1).contiguous()


def make_camera_encoder(unet: UNet2DConditionModel, *, xl: bool) -> T2IAdapter:
    """What makes features for the denoiser's blocks out of `camera_maps`. Its weights have the published names."""
    sizes: Any = unet.config
    widths = list(sizes.block_out_channels)
    if xl:  # SDXL has a block less than the encoder, whose last features go to its middle
        return T2IAdapter(6, [*widths, widths[-1]], 2, 16, "full_adapter_xl")
    return T2IAdapter(6, widths, sizes.layers_per_block, 8, "full_adapter")


def adapter_weights(unet: UNet2DConditionModel, camera_encoder: T2IAdapter) -> dict[str, Tensor]:
    """By their published names, the weights of both that an adapter's file holds."""
    attention = {name: weight for name, weight in unet.state_dict().items() if ".processor." in name}
    return {**attention, **camera_encoder.state_dict()}


def fill_adapter(path: Path, unet: UNet2DConditionModel, camera_encoder: T2IAdapter, dtype: torch.dtype) -> None:
    """Fills both from an adapter's file, all of which must be used. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path}: expected the adapter's published file, found none; download the model anew")
    wanted = {name: tuple(weight.shape) for name, weight in adapter_weights(unet, camera_encoder).items()}
    try:
        with safe_open(path, framework="pt") as file:
            _check({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, wanted, path)
            weights = {name: file.get_tensor(name).to(dtype) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: expected a whole safetensors file, found one that is damaged: {error}") from error
    unet.load_state_dict(weights, strict=False, assign=True)
    camera_encoder.load_state_dict({name: weights[name] for name in camera_encoder.state_dict()}, assign=True)
    for network in (unet, camera_encoder):
        network.eval().requires_grad_(False)


def _check(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], path: Path) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise BadInput(f"{path}: expected a tensor {name}, found none; this is another adapter or base model")
        if name not in wanted:
            raise BadInput(f"{path}: expected no tensor {name}, found one; this is another adapter or base model")
        if found[name] != wanted[name]:
            raise BadInput(f"{path}: expected {name} to be of shape {wanted[name]}, found {found[name]}")


def _over(images: Tensor, grey: float | None) -> Tensor:
    return over(images, GREY if grey is None else grey)
