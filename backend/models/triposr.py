"""TripoSR (Tochilkin 2024): one picture to a radiance field on three planes, without a camera.

picture [B,3,S,S]  ->  DINO tokens [B,1+P,E]  ------------------v
learned plane tokens [B,C,3LL]  ->  group norm, projection  ->  N x (self-attention, cross-attention, GEGLU MLP)
        v                                                        v
       sum  <-----------------------------------------------  projection
        v
transposed convolution  ->  planes [B,3,T,2L,2L]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.attention import attend
from backend.cameras import BadInput, Views
from backend.config_sections import Section
from backend.framing import Canonical, drawn, frame_object, placement
from backend.gaussians import Gaussians
from backend.image_encoder import DinoConfig, ImageEncoder, dino_config_from
from backend.ray_marching import march_uniform
from backend.triplane import Reading, Triplane, build_decoder, surface_memory

MIN_VIEWS, MAX_VIEWS = 1, 1024  # the first is the picture; others only help to find out where the object stands
IGNORED: tuple[str, ...] = ()  # published keys that are dropped on loading
OBJECT_SHARE = 0.85  # of the picture's side that the object's longer side takes
GREY = 0.5  # behind the object
LEVEL = 25.0  # density at which the surface lies
PLACEMENT_SAMPLES = 48  # of a ray when the object is looked at to find its place
# The network is told no camera. Its pictures were rendered like this, with the object's front towards +X.
CANONICAL = Canonical(position=(1.9, 0.0, 0.0), focal=0.5 / math.tan(math.radians(40) / 2))


@dataclass(frozen=True)
class TripoSrConfig:
    """A TripoSR network; the defaults are the published one's.

    image_size         pixels of the picture's side
    encoder            of the picture
    plane_side         tokens along a side of a plane, L
    channels           of the plane tokens outside the transformer, C
    heads, head_width  of the transformer, which is heads * head_width wide
    layers             of the transformer
    norm_groups        of the group norm before it
    group_eps, eps     of the group norm and of the layer norms
    plane_channels     of the finished planes, T
    decoder_hidden     hidden layers from features to density and colour
    decoder_width      of them
    activation         after them, "silu" or "relu"
    radius             half a side of the cube that the field fills
    density_bias       added to the raw density before the exponential
    samples            of a ray when volumes are rendered
    """

    image_size: int = 512
    encoder: DinoConfig = field(default_factory=lambda: DinoConfig(pooler=True))
    plane_side: int = 32
    channels: int = 1024
    heads: int = 16
    head_width: int = 64
    layers: int = 16
    norm_groups: int = 32
    group_eps: float = 1e-6
    eps: float = 1e-5
    plane_channels: int = 40
    decoder_hidden: int = 9
    decoder_width: int = 64
    activation: str = "silu"
    radius: float = 0.87
    density_bias: float = -1.0
    samples: int = 128

    @property
    def width(self) -> int:
        return self.heads * self.head_width


PRESETS: dict[str, TripoSrConfig] = {"triposr": TripoSrConfig()}


def config_from(data: Mapping[str, Any]) -> TripoSrConfig:
    """The configuration a config.json describes. Raises BadInput naming what is missing, wrong or not known to this
    network.
    """
    file = Section(data)
    file.expect("family", "triposr")
    file.ignore("seed", "render_call", "mesh", "tolerance_abs", "tolerance_rel")
    image_tokenizer, tokenizer = file.section("image_tokenizer"), file.section("tokenizer")
    config = TripoSrConfig(
        image_size=file.whole("cond_image_size"),
        encoder=dino_config_from(image_tokenizer),
        plane_side=tokenizer.whole("plane_size"),
        channels=tokenizer.whole("num_channels"),
    )
    image_tokenizer.close()
    tokenizer.close()
    config = _with_backbone(config, file.section("backbone"))
    config = _with_decoder(config, file.section("post_processor"), file.section("decoder"))
    config = _with_renderer(config, file.section("renderer"))
    file.close()
    return config


def _with_backbone(config: TripoSrConfig, section: Section) -> TripoSrConfig:
    section.expect("in_channels", config.channels)
    section.expect("cross_attention_dim", config.encoder.width)
    section.expect("activation_fn", "geglu")
    section.expect("attention_bias", False)
    config = replace(
        config,
        heads=section.whole("num_attention_heads"),
        head_width=section.whole("attention_head_dim"),
        layers=section.whole("num_layers"),
        norm_groups=section.whole("norm_num_groups"),
        group_eps=section.number("group_norm_eps"),
        eps=section.number("layer_norm_eps"),
    )
    section.close()
    if config.channels % config.norm_groups:
        expected = f"a multiple of {config.norm_groups} groups"
        raise BadInput(f"config: tokenizer.num_channels: expected {expected}, found {config.channels}")
    return config


def _with_decoder(config: TripoSrConfig, post_processor: Section, decoder: Section) -> TripoSrConfig:
    post_processor.expect("in_channels", config.channels)
    config = replace(
        config,
        plane_channels=post_processor.whole("out_channels"),
        decoder_hidden=decoder.whole("n_hidden_layers"),
        decoder_width=decoder.whole("n_neurons"),
        activation=decoder.choice("activation", ("silu", "relu")),
    )
    decoder.expect("in_channels", 3 * config.plane_channels)
    post_processor.close()
    decoder.close()
    return config


def _with_renderer(config: TripoSrConfig, section: Section) -> TripoSrConfig:
    section.expect("feature_reduction", "concat")
    section.expect("density_activation", "exp")
    config = replace(
        config,
        radius=section.number("radius"),
        density_bias=section.number("density_bias"),
        samples=section.whole("num_samples_per_ray"),
    )
    section.close()
    return config


# ---- the network


class Attention(nn.Module):
    """Multi-head attention; only its last projection has a bias."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """[B,N,D] for tokens [B,N,D] that look at a context [B,M,E]."""
        attended = attend(self.to_q(tokens), self.to_k(context), self.to_v(context), heads=self.heads)
        return self.to_out[0](attended)


class _Gate(nn.Module):
    """GEGLU (Shazeer 2020): the first half of a projection times the GELU of the second."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The published one has a dropout at place 1.
        self.net = nn.Sequential(_Gate(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class Block(nn.Module):
    def __init__(self, config: TripoSrConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, config.eps) for _ in range(3))
        self.attn1 = Attention(width, width, config.heads)
        self.attn2 = Attention(width, config.encoder.width, config.heads)
        self.ff = _FeedForward(width)

    def forward(self, tokens: Tensor, image_tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attn1(normed, normed)
        tokens = tokens + self.attn2(self.norm2(tokens), image_tokens)
        return tokens + self.ff(self.norm3(tokens))


class Backbone(nn.Module):
    def __init__(self, config: TripoSrConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, config.channels, config.group_eps)
        self.proj_in = nn.Linear(config.channels, config.width)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.proj_out = nn.Linear(config.width, config.channels)

    def forward(self, start: Tensor, image_tokens: Tensor) -> Tensor:
        """[B,C,3LL] from plane tokens [B,C,3LL] and image tokens [B,1+P,E]."""
        tokens = self.proj_in(self.norm(start).transpose(1, 2))  # [B,3LL,D]
        for block in self.transformer_blocks:
            tokens = block(tokens, image_tokens)
        return start + self.proj_out(tokens).transpose(1, 2)


class _Tokenizer(nn.Module):
    def __init__(self, config: TripoSrConfig) -> None:
        super().__init__()
        size = (3, config.channels, config.plane_side, config.plane_side)
        self.embeddings = nn.Parameter(torch.randn(size) / config.channels**0.5)


class _PostProcessor(nn.Module):
    def __init__(self, config: TripoSrConfig) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(config.channels, config.plane_channels, 2, 2)


class _Decoder(nn.Module):
    def __init__(self, config: TripoSrConfig) -> None:
        super().__init__()
        features, linear_layers = 3 * config.plane_channels, config.decoder_hidden + 1
        self.layers = build_decoder(features, config.decoder_width, linear_layers, config.activation)


class TripoSr(nn.Module):
    """TripoSR. Its parameters bear the names of the published checkpoint."""

    def __init__(self, config: TripoSrConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tokenizer = ImageEncoder(config.encoder)
        self.tokenizer = _Tokenizer(config)
        self.backbone = Backbone(config)
        self.post_processor = _PostProcessor(config)
        self.decoder = _Decoder(config)

    def forward(self, image: Tensor) -> Tensor:
        """[B,3,T,2L,2L] planes.

        image  [B,3,S,S] sRGB on grey, 0..1
        """
        image_tokens = self.image_tokenizer(image)  # [B,1+P,E]
        tokens = self.backbone(self.start_tokens(len(image)), image_tokens)  # [B,C,3LL]
        return self.to_planes(self.low_planes(tokens))

    def start_tokens(self, batch: int) -> Tensor:
        """[B,C,3LL] learned, ordered by plane, row and column."""
        return self.tokenizer.embeddings.transpose(0, 1).flatten(1).expand(batch, -1, -1)

    def low_planes(self, tokens: Tensor) -> Tensor:
        """[B,3,C,L,L] from tokens [B,C,3LL]."""
        side = self.config.plane_side
        return tokens.unflatten(2, (3, side, side)).transpose(1, 2)

    def to_planes(self, low: Tensor) -> Tensor:
        """[B,3,T,2L,2L]; each plane is upsampled on its own."""
        return self.post_processor.upsample(low.flatten(0, 1)).unflatten(0, (-1, 3))

    @property
    def reading(self) -> Reading:
        bias = self.config.density_bias
        return Reading(
            radius=self.config.radius,
            axes=((0, 1), (0, 2), (1, 2)),
            density=lambda raw: torch.exp(raw + bias),
            raw=lambda density: math.log(density) - bias,
            colour=torch.sigmoid,
            level=LEVEL,
        )

    def field(self, planes: Tensor) -> Triplane:
        """The radiance field on one object's planes [3,T,2L,2L], in float32 at least, in its own space."""
        dtype = torch.promote_types(planes.dtype, torch.float32)
        decoder = self.decoder.layers if planes.dtype == dtype else copy.deepcopy(self.decoder.layers).to(dtype)
        return Triplane(planes.to(dtype), decoder, self.reading, torch.eye(4, dtype=torch.float64))


# ---- from views to a field and to splats


def on_grey(image: Tensor) -> Tensor:
    """[H,W,3] sRGB of a picture [H,W,4] premultiplied by alpha."""
    return image[..., :3] + GREY * (1 - image[..., 3:])


def prepared(rgb: Tensor, size: int) -> Tensor:
    """[1,3,size,size] the picture [H,W,3] resized as published: bilinear, with a filter where it shrinks."""
    picture = rgb.permute(2, 0, 1)[None]
    return F.interpolate(picture, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


@torch.no_grad()
def triplane(model: TripoSr, views: Views, *, target: Tensor | None = None) -> Triplane:
    """The field of the object in the first view, standing in the world where that view's camera saw it.

    target  None or [3], about where the object's middle is in the world; see `framing.placement` for the rule

    Raises BadInput for a view in which nothing is to be seen and a target behind the camera.
    """
    framed = frame_object(views, share=OBJECT_SHARE)
    image = prepared(on_grey(framed.image).to(model.tokenizer.embeddings.device), model.config.image_size)
    field = model.field(model(image)[0])
    object_drawn = drawn(field, CANONICAL, partial(march_uniform, samples=PLACEMENT_SAMPLES))
    return replace(field, world=placement(views, framed, CANONICAL, object_drawn, target=target))


@torch.no_grad()
def reconstruct(model: TripoSr, views: Views, *, target: Tensor | None = None) -> Gaussians:
    """Splats on the surface of the object in the first view, in the world, float32, on the model's device.

    Arguments and errors as `triplane`; NothingSeen where the field has no surface.
    """
    return triplane(model, views, target=target).splats(4 * model.config.plane_side)


def memory_needed(config: TripoSrConfig, views: int, height: int, width: int, bytes_per_number: int) -> int:
    """About the most bytes that `reconstruct` uses, weights included, for `views` of height x width pixels."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in TripoSr(config).parameters())
    encoder = config.encoder
    patches = (config.image_size // encoder.patch) ** 2
    # Of a block: the gated MLP's projection, GELU and product; the tokens and what is normed of them.
    network = max(
        3 * config.plane_side**2 * config.width * (8 + 4 + 4 + 3),
        patches * (2 * encoder.hidden + 4 * encoder.width),
    )
    pictures = 3 * 16 * int(max(height, width) / OBJECT_SHARE) ** 2 + 16 * views * height * width
    surface = surface_memory(4 * config.plane_side, config.decoder_width)
    return weights * bytes_per_number + max(network * bytes_per_number, surface) + pictures
