"""MVDream and ImageDream: four views around an object, of a prompt or of a picture.

Both are Stable Diffusion 2.1 with a denoiser of their own, mvdream_unet.py, and share this pipeline. A folder is laid
out as the repositories ashawkey/mvdream-sd2.1-diffusers and ashawkey/imagedream-ipmv-diffusers are: unet, vae,
text_encoder, tokenizer and scheduler, and for ImageDream image_encoder and feature_extractor. Nothing of the Python
that is published with them is run.

ImageDream sees its picture in two ways: the denoiser's cross-attention reads tokens of it, and its latent, free of
noise, stands as a fifth frame among the views. The guidance leads away from a picture whose tokens and latent are zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from backend.bad_input import BadInput
from backend.cameras import orbit
from backend.checkpoint_files import load_into
from backend.compositing import over
from backend.monitor import Monitor
from backend.multiview import Budget, Held, Wish
from backend.multiview.holding import put_back
from backend.multiview.mvdream_config import config_from
from backend.multiview.mvdream_unet import Context, MultiViewUNet
from backend.multiview.parts import at_work, load_network, load_setting
from backend.multiview.previews import SD_TO_RGB, contact_sheet, rough_views
from blender_addon.front_ends import FRONT_ENDS, FrontEnd

# The denoiser's frame k stands at azimuth 90 k, and the objects it makes face azimuth 90. Our views begin at the front
# and go round in the same direction, so this is the frame of each.
FRAMES = [1, 2, 3, 0]
PREVIEW_EVERY = 4  # steps


@dataclass(frozen=True)
class Seeing:
    """What ImageDream has more than MVDream: CLIP's image encoder, and how that wants its pictures."""

    encoder: CLIPVisionModel
    processor: CLIPImageProcessorPil


@dataclass(frozen=True)
class Parts:
    """What a folder holds. The scheduler is kept for its configuration alone: it keeps the state of a run."""

    unet: MultiViewUNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    seeing: Seeing | None


@dataclass(frozen=True)
class Told:
    """What the denoiser is told in one half of the guidance.

    text          [1,77,E] tokens of the prompt
    image_tokens  [1,I,E] of the picture; None for MVDream
    image_latent  [1,C,h,w] of the picture; None for MVDream
    """

    text: Tensor
    image_tokens: Tensor | None = None
    image_latent: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """Frames that are known while another is made.

    latents  [V,C,h,w] without noise
    noise    [V,C,h,w] that the sampling starts from
    redo     number of the frame to make
    """

    latents: Tensor
    noise: Tensor
    redo: int


def load(front_end: str, folder: Path, budget: Budget) -> MVDream:
    """MVDream or ImageDream from its folder. Raises BadInput."""
    entry = FRONT_ENDS[front_end]
    seeing = _seeing(folder, budget) if "picture" in entry.takes else None
    parts = Parts(
        unet=_unet(folder / "unet", budget, seeing),
        vae=load_network(AutoencoderKL, folder / "vae", budget.dtype),
        text_encoder=load_network(CLIPTextModel, folder / "text_encoder", budget.dtype),
        tokenizer=load_setting(CLIPTokenizer, folder / "tokenizer", "vocab.json", "merges.txt"),
        scheduler=load_setting(DDIMScheduler, folder / "scheduler", "scheduler_config.json"),
        seeing=seeing,
    )
    wanted, found = parts.unet.config.context_dim, parts.text_encoder.config.hidden_size
    if wanted != found:
        raise BadInput(f"{folder}: expected a text encoder of width {wanted}, as unet has it, found {found}")
    if budget.slicing:
        parts.vae.enable_slicing()
    return MVDream(entry, parts, budget)


class MVDream:
    """The Sampler of both."""

    def __init__(self, front_end: FrontEnd, parts: Parts, budget: Budget) -> None:
        self._front_end, self._parts, self._budget = front_end, parts, budget

    @torch.no_grad()
    def sample(self, wish: Wish, monitor: Monitor) -> Tensor:
        """[4,S,S,3] on the rig's background; what is held as it was given, on that background too."""
        scheduler = scheduler_for(self._parts.scheduler, wish.steps)
        chance = torch.Generator().manual_seed(wish.seed)
        noise = torch.randn(self._latent_shape(), generator=chance).to(self._budget.device)
        halves = self._told(wish, chance)
        if wish.held is None:
            return self._decoded(self._denoised(noise, halves, scheduler, wish.guidance, monitor))
        held = over(wish.held.images, grey_or_white(self._front_end.rig.background))
        kept = self._kept(wish.held, held, noise)
        views = self._decoded(self._denoised(noise, halves, scheduler, wish.guidance, monitor, kept))
        return put_back(views, held, wish.held.redo, lambda known: known)

    # ---- from noise to views

    def _denoised(
        self,
        latents: Tensor,
        halves: list[Told],
        scheduler: DDIMScheduler,
        guidance: float,
        monitor: Monitor,
        kept: Kept | None = None,
    ) -> Tensor:
        """[V,C,h,w] float32 latents of the frames, without noise."""
        with at_work(self._parts.unet, self._budget):
            for step, timestep in enumerate(scheduler.timesteps, start=1):
                if kept is not None:
                    latents = put_back(latents, kept.latents, kept.redo, noising(scheduler, kept.noise, timestep))
                noise = guided(self._noises(latents, timestep, halves), guidance)
                latents = scheduler.step(noise, int(timestep), latents, return_dict=False)[0]
                if step % PREVIEW_EVERY == 0:
                    monitor.preview(contact_sheet(rough_views(latents[FRAMES], SD_TO_RGB)))
                monitor.progress("views", step, len(scheduler.timesteps))
        return latents

    def _noises(self, latents: Tensor, timestep: Tensor, halves: list[Told]) -> list[Tensor]:
        """What each half takes for the noise in latents [V,C,h,w]; with slicing one half after the other."""
        if not self._budget.slicing:
            return self._noises_at_once(latents, timestep, halves)
        return [self._noises_at_once(latents, timestep, [half])[0] for half in halves]

    def _noises_at_once(self, latents: Tensor, timestep: Tensor, halves: list[Told]) -> list[Tensor]:
        device, dtype = self._budget.device, self._budget.dtype
        x = torch.cat([part for half in halves for part in (latents, half.image_latent) if part is not None])
        frames = len(x) // len(halves)
        context = Context(
            text=torch.cat([half.text.expand(frames, -1, -1) for half in halves]),
            image=_together([half.image_tokens for half in halves], frames),
            frames=frames,
        )
        camera = camera_vectors(len(latents), pictures=frames - len(latents)).repeat(len(halves), 1)
        timesteps = timestep.to(device).expand(len(x))
        noise = self._parts.unet(x.to(dtype), timesteps, camera.to(device, dtype), context).float()
        return [half[: len(latents)] for half in noise.chunk(len(halves))]

    def _decoded(self, latents: Tensor) -> Tensor:
        """[V,S,S,3] float32, 0..1, on the CPU: views in the rig's order of latents in the frames'."""
        vae: Any = self._parts.vae  # declared to give tuples too
        with at_work(vae, self._budget):
            pictures = vae.decode((latents[FRAMES] / vae.config.scaling_factor).to(vae.dtype)).sample
        return (pictures.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()

    # ---- what the denoiser is told

    def _told(self, wish: Wish, chance: torch.Generator) -> list[Told]:
        """Of the half that the guidance leads away from, where it leads at all, and of the half with the wish."""
        texts = self._text([wish.negative_prompt, wish.prompt] if wish.guidance > 1 else [wish.prompt])
        if self._parts.seeing is None:
            return [Told(text) for text in texts]
        assert wish.picture is not None, "ImageDream needs a picture"
        picture = over(wish.picture, grey_or_white(self._front_end.input_grey)).movedim(-1, 0)[None]  # [1,3,H,W]
        unseen, seen = self._image_tokens(picture, self._parts.seeing)
        latent = self._image_latent(picture, chance)
        told = [Told(texts[-1], seen, latent)]
        return told if len(texts) == 1 else [Told(texts[0], unseen, torch.zeros_like(latent)), *told]

    def _text(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """[1,77,E] of each prompt; what is beyond 77 tokens is not read."""
        encoder = self._parts.text_encoder
        length = encoder.config.max_position_embeddings
        tokens: Any = self._parts.tokenizer(prompts, padding="max_length", max_length=length, truncation=True)
        with at_work(encoder, self._budget):
            ids = torch.tensor(tokens["input_ids"], device=self._budget.device)
            return encoder(ids).last_hidden_state.split(1)

    def _image_tokens(self, picture: Tensor, seeing: Seeing) -> tuple[Tensor, Tensor]:
        """[1,I,E] of no picture, and of a picture [1,3,H,W], 0..1."""
        pixels = (picture[0] * 255).round().byte().cpu().numpy()
        ready = seeing.processor(pixels, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
        with at_work(seeing.encoder, self._budget):
            ready = ready.to(self._budget.device, self._budget.dtype)
            states = seeing.encoder(ready, output_hidden_states=True).hidden_states[-2]  # before the last layer
        resampler = self._parts.unet.image_embed
        with at_work(resampler, self._budget):
            unseen, seen = resampler(torch.cat([torch.zeros_like(states), states])).split(1)
        return unseen, seen

    def _image_latent(self, picture: Tensor, chance: torch.Generator) -> Tensor:
        """[1,C,h,w] of a picture [1,3,H,W], 0..1: by chance one of those that the VAE thinks likely."""
        side = self._front_end.rig.side
        # unlike the published code with a filter: without one, most pixels of a large picture would not be seen
        small = F.interpolate(picture, (side, side), mode="bilinear", antialias=True)
        return self._latents(small, lambda likely: likely.sample(chance))

    # ---- latents

    def _latent_shape(self) -> tuple[int, int, int, int]:
        rig = self._front_end.rig
        config: Any = self._parts.vae.config  # declared without its fields
        side = rig.side // 2 ** (len(config.block_out_channels) - 1)
        return len(rig.angles), config.latent_channels, side, side

    def _latents(self, pictures: Tensor, choose: Callable[[Any], Tensor]) -> Tensor:
        """[V,C,h,w] float32 of pictures [V,3,S,S], 0..1; `choose` takes one of the VAE's distribution for each."""
        vae: Any = self._parts.vae  # declared to give tuples too
        with at_work(vae, self._budget):
            likely = vae.encode((2 * pictures - 1).to(self._budget.device, vae.dtype)).latent_dist
        return choose(likely).float() * vae.config.scaling_factor

    def _kept(self, held: Held, pictures: Tensor, noise: Tensor) -> Kept:
        """Of views [V,S,S,3], 0..1, in the rig's order."""
        latents = torch.empty_like(noise)
        latents[FRAMES] = self._latents(pictures.movedim(-1, 1), lambda likely: likely.mode())
        return Kept(latents, noise, FRAMES[held.redo])


def scheduler_for(scheduler: DDIMScheduler, steps: int) -> DDIMScheduler:
    """A scheduler of the same configuration at the start of a run. Raises BadInput where it has not so many steps."""
    fresh: Any = DDIMScheduler.from_config(scheduler.config)  # declared as a tuple
    most = fresh.config.num_train_timesteps - fresh.config.steps_offset
    if steps > most:
        raise BadInput(f"steps: expected at most {most}, found {steps}")
    fresh.set_timesteps(steps)
    return fresh


def noising(scheduler: DDIMScheduler, noise: Tensor, timestep: Tensor) -> Callable[[Tensor], Tensor]:
    """What brings latents [V,C,h,w] without noise to the noise level of a timestep."""
    levels: Any = timestep.expand(len(noise))  # declared as whole numbers of a narrower type
    return lambda clean: scheduler.add_noise(clean, noise, levels)


def guided(noises: list[Tensor], guidance: float) -> Tensor:
    """From the noise as it is without the wish past that with it (Ho and Salimans 2022, "Classifier-free guidance")."""
    if len(noises) == 1:
        return noises[0]
    without, with_it = noises
    return without + guidance * (with_it - without)


def camera_vectors(count: int, *, pictures: int = 0) -> Tensor:
    """[count + pictures,16] what the denoiser is told of each frame's camera: its camera to world, row by row, with
    OpenGL's axes in a world whose Z is up. They stand on a level circle of radius 1, from -Y over +X; zeros for
    frames that are pictures themselves."""
    around = orbit(count, target=torch.zeros(3), radius=1.0, elevation=0.0, fov=1.0, size=1)
    opengl = around.c2w * torch.tensor([1.0, -1.0, -1.0, 1.0])  # the camera's Y is up there, its Z backwards
    return torch.cat([opengl.flatten(1), torch.zeros(pictures, 16)])


def grey_or_white(grey: float | None) -> float:
    return 1.0 if grey is None else grey


def _together(tokens: list[Tensor | None], frames: int) -> Tensor | None:
    """[halves x frames,I,E] of tokens [1,I,E] of each half; None where they have none."""
    found = [part.expand(frames, -1, -1) for part in tokens if part is not None]
    return torch.cat(found) if found else None


# ---- from a folder


def _seeing(folder: Path, budget: Budget) -> Seeing:
    encoder = load_network(CLIPVisionModel, folder / "image_encoder", budget.dtype)
    processor = load_setting(CLIPImageProcessorPil, folder / "feature_extractor", "preprocessor_config.json")
    return Seeing(encoder, processor)


def _unet(folder: Path, budget: Budget, seeing: Seeing | None) -> MultiViewUNet:
    told, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    sizes = {} if seeing is None else {"image_width": seeing.encoder.config.hidden_size}
    try:
        config = config_from(_json(told), **sizes)
    except BadInput as error:
        raise BadInput(f"{told}: {error}") from error
    if (config.ip_dim > 0) != (seeing is not None):
        expected = "ip_dim above 0, as ImageDream has it" if seeing else "ip_dim 0, as MVDream has it"
        raise BadInput(f"{told}: expected {expected}, found {config.ip_dim}")
    with torch.device("meta"):
        unet = MultiViewUNet(config).to(budget.dtype)
    try:
        load_into(unet, load_file(weights))
    except BadInput as error:
        raise BadInput(f"{weights}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{weights}: expected a whole safetensors file, found: {error}") from error
    return unet.eval().requires_grad_(False)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: expected JSON, found: {error}") from error
