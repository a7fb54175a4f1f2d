"""OpenLRM (He and Wang 2023), the open LRM (Hong 2024): one picture to a radiance field on three planes.

    picture [B,3,S,S]  ->  image tokens [B,1+P,E]  ------------------------------v
    camera [B,16]      ->  camera embedding [B,M]  ->  shift and scale of every layer norm
    learned plane tokens [B,3LL,D]  -------------->  N x (cross-attention, self-attention, MLP)  ->  [B,3LL,D]
                                                          planes [B,3,T,2L,2L]  <-  transposed convolution

TripoSR, the other LRM, is in triposr.py. Both give a backend.triplane.Triplane.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.attention import attend
from backend.cameras import BadInput, Views
from backend.config_sections import Section
from backend.framing import Canonical, drawn, frame_object, placement
from backend.gaussians import Gaussians
from backend.image_encoder import (
    DinoConfig,
    Dinov2Config,
    EncoderConfig,
    ImageEncoder,
    dino_config_from,
    dinov2_config_from,
)
from backend.ray_marching import march_importance
from backend.triplane import Reading, Triplane, build_decoder, surface_memory

MIN_VIEWS, MAX_VIEWS = 1, 1024  # the first is the picture; others only help to find out where the object stands
IGNORED: tuple[str, ...] = ()  # published keys that are dropped on loading
OBJECT_SHARE = 0.8  # of the picture's side that the object's longer side takes
WORKING_SIDE = 512  # pixels; the published demo reduces pictures to it before it brings them to the network's size
DISTANCE = 2.0  # of the camera from the object's middle
FOCAL = 0.75  # in picture widths
PLACEMENT_SAMPLES = 48  # of a ray when the object is looked at to find its place
READING = Reading(
    radius=1.0,
    axes=((0, 1), (0, 2), (2, 1)),
    density=lambda raw: F.softplus(raw - 1),
    raw=lambda density: 1 + density + math.log(-math.expm1(-density)),
    colour=lambda raw: 1.002 * torch.sigmoid(raw) - 0.001,
    level=3.0,
)


@dataclass(frozen=True)
class LrmConfig:
    """An OpenLRM network.

    layout          of the checkpoint's keys: 1.0 keeps plane tokens and upsampling within the transformer
    image_size      pixels of the picture's side
    encoder         of the picture
    width           of the plane tokens, D
    layers, heads   of the transformer over them
    plane_side      tokens along a side of a plane, L
    plane_channels  of the finished planes, T
    camera_width    of the camera embedding, M
    samples         of a ray when volumes are rendered, half of them coarse
    mlp_ratio       width within an MLP over width
    eps             of the layer norms
    decoder_layers  linear layers from features to density and colour
    decoder_width   between them
    """

    layout: Literal["1.0", "1.1"]
    image_size: int
    encoder: EncoderConfig
    width: int
    layers: int
    heads: int
    plane_channels: int
    plane_side: int = 32
    camera_width: int = 1024
    samples: int = 96
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    decoder_layers: int = 4
    decoder_width: int = 64


_DINO, _SMALL, _BASE = DinoConfig(), Dinov2Config(width=384, heads=6, hidden=1536), Dinov2Config()
PRESETS: dict[str, LrmConfig] = {
    "openlrm-small-1.1": LrmConfig("1.1", 224, _SMALL, width=512, layers=12, heads=8, plane_channels=32),
    "openlrm-base-1.1": LrmConfig("1.1", 336, _BASE, width=768, layers=12, heads=12, plane_channels=48),
    "openlrm-large-1.1": LrmConfig("1.1", 448, _BASE, width=1024, layers=16, heads=16, plane_channels=80, samples=128),
    # The size of 1.0's pictures is in its checkpoints and nowhere else; LRM's own is 512.
    "openlrm-small-1.0": LrmConfig("1.0", 512, _DINO, width=768, layers=12, heads=12, plane_channels=32),
    "openlrm-base-1.0": LrmConfig("1.0", 512, _DINO, width=1024, layers=12, heads=16, plane_channels=40),
    "openlrm-large-1.0": LrmConfig("1.0", 512, _DINO, width=1024, layers=16, heads=16, plane_channels=80, samples=128),
}


def config_from(data: Mapping[str, Any]) -> LrmConfig:
    """The configuration a config.json describes. Raises BadInput naming what is missing, wrong or not known to this
    network.
    """
    file = Section(data)
    file.expect("family", "openlrm")
    file.ignore("seed", "mesh", "tolerance_abs", "tolerance_rel")
    layout = file.choice("layout_version", ("1.0", "1.1"))
    encoder = _encoder_from(file.section("encoder"))
    config = _sizes_from(file.section("model"), layout, file.whole("image_size"), encoder)
    config = replace(config, **_transformer_from(file.section("transformer")), **_decoder_from(file.section("decoder")))
    _check_rendering(file.section("render"), config.samples)
    file.close()
    return config


def _encoder_from(section: Section) -> EncoderConfig:
    kind = section.choice("type", ("dino", "dinov2"))
    config = (dino_config_from if kind == "dino" else dinov2_config_from)(section)
    section.close()
    return config


def _sizes_from(section: Section, layout: Any, image_size: int, encoder: EncoderConfig) -> LrmConfig:
    config = LrmConfig(
        layout=layout,
        image_size=image_size,
        encoder=encoder,
        width=section.whole("transformer_dim"),
        layers=section.whole("transformer_layers"),
        heads=section.whole("transformer_heads"),
        plane_side=section.whole("triplane_low_res"),
        plane_channels=section.whole("triplane_dim"),
        camera_width=section.whole("camera_embed_dim"),
        samples=section.whole("rendering_samples_per_ray", least=6),
    )
    section.expect("triplane_high_res", 2 * config.plane_side)
    section.expect("encoder_feat_dim", encoder.width)
    section.close()
    if config.width % config.heads:
        raise BadInput(f"config: transformer_dim: expected a multiple of {config.heads} heads, found {config.width}")
    return config


def _transformer_from(section: Section) -> dict[str, float]:
    section.expect("attention_bias", False)
    section.expect("block", "cross-attention, self-attention, mlp, each after a ModLN")
    values = {"eps": section.number("layer_norm_eps"), "mlp_ratio": section.number("mlp_ratio")}
    section.close()
    return values


def _decoder_from(section: Section) -> dict[str, int]:
    section.expect("activation", "relu")
    section.expect("sigma_channel", 0)
    section.expect("rgb_channels", [1, 2, 3])
    section.expect("density", "softplus(raw - 1)")
    section.expect("rgb", "sigmoid(raw) * 1.002 - 0.001")
    values = {
        "decoder_layers": section.whole("num_linear_layers", least=2),
        "decoder_width": section.whole("hidden_dim"),
    }
    section.close()
    return values


def _check_rendering(section: Section, samples: int) -> None:
    section.ignore("num_views", "region_size", "background")  # of one call
    section.expect("box", [-1.0, 1.0])
    section.expect("samples_coarse", samples // 2)
    section.expect("samples_fine", samples // 2)
    section.close()


# ---- the network


class ModLn(nn.Module):
    """Layer norm whose result is scaled and shifted by the camera (Peebles 2023, adaLN)."""

    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(config.camera_width, 2 * config.width))

    def forward(self, tokens: Tensor, camera: Tensor) -> Tensor:
        shift, scale = self.mlp(camera)[:, None].chunk(2, dim=-1)  # [B,1,D]
        return self.norm(tokens) * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention without biases. The weights lie as torch.nn.MultiheadAttention's: in one matrix where tokens
    and context are equally wide, in three otherwise.
    """

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.fused = width == context_width
        sizes = {"in_proj_weight": (3 * width, width)} if self.fused else {}
        for name in () if self.fused else "qkv":
            sizes[f"{name}_proj_weight"] = (width, width if name == "q" else context_width)
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(nn.init.xavier_uniform_(torch.empty(size))))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """[B,N,D] for tokens [B,N,D] that look at a context [B,M,C]."""
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        if self.fused:
            to_q, to_k, to_v = self.get_parameter("in_proj_weight").chunk(3)
        else:
            to_q, to_k, to_v = (self.get_parameter(name) for name in names)
        q, k, v = F.linear(tokens, to_q), F.linear(context, to_k), F.linear(context, to_v)
        return self.out_proj(attend(q, k, v, heads=self.heads))


class Block(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.mlp_ratio * config.width)
        self.norm1, self.norm2, self.norm3 = ModLn(config), ModLn(config), ModLn(config)
        self.cross_attn = Attention(width, config.encoder.width, config.heads)
        self.self_attn = Attention(width, width, config.heads)
        # The published MLP has a dropout at place 2.
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor, image_tokens: Tensor, camera: Tensor) -> Tensor:
        tokens = tokens + self.cross_attn(self.norm1(tokens, camera), image_tokens)
        normed = self.norm2(tokens, camera)
        tokens = tokens + self.self_attn(normed, normed)
        return tokens + self.mlp(self.norm3(tokens, camera))


class PlaneTransformer(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.eps)

    def forward(self, tokens: Tensor, image_tokens: Tensor, camera: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, image_tokens, camera)
        return self.norm(tokens)


class CameraEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, camera: Tensor) -> Tensor:
        return self.mlp(camera.to(next(self.parameters()).dtype))


class _Decoder(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.net = build_decoder(3 * config.plane_channels, config.decoder_width, config.decoder_layers, "relu")


class _Synthesizer(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.decoder = _Decoder(config)


class Lrm(nn.Module):
    """OpenLRM. Its parameters bear the names of the published checkpoints of either layout."""

    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config.encoder)
        self.camera_embedder = CameraEmbedder(config.camera_width)
        self.transformer = PlaneTransformer(config)
        self.synthesizer = _Synthesizer(config)
        home, upsampler = (self.transformer, "deconv") if config.layout == "1.0" else (self, "upsampler")
        count = 3 * config.plane_side**2
        home.register_parameter("pos_embed", nn.Parameter(torch.randn(1, count, config.width) / config.width**0.5))
        home.register_module(upsampler, nn.ConvTranspose2d(config.width, config.plane_channels, 2, 2))

    def forward(self, image: Tensor, camera: Tensor) -> Tensor:
        """[B,3,T,2L,2L] planes.

        image   [B,3,S,S] sRGB on white, 0..1
        camera  [B,16], see `source_camera`
        """
        image_tokens = self.encoder(image)  # [B,1+P,E]
        embedding = self.camera_embedder(camera)  # [B,M]
        tokens = self.transformer(self.start_tokens(len(image)), image_tokens, embedding)  # [B,3LL,D]
        return self.to_planes(tokens)

    def start_tokens(self, batch: int) -> Tensor:
        """[B,3LL,D] learned, ordered by plane, row and column."""
        home = self.transformer if self.config.layout == "1.0" else self
        return home.get_parameter("pos_embed").expand(batch, -1, -1)

    def to_planes(self, tokens: Tensor) -> Tensor:
        """[B,3,T,2L,2L] from tokens [B,3LL,D]; each plane is upsampled on its own."""
        upsample = self.get_submodule("transformer.deconv" if self.config.layout == "1.0" else "upsampler")
        side = self.config.plane_side
        small = tokens.unflatten(1, (3, side, side)).flatten(0, 1).permute(0, 3, 1, 2)  # [3B,D,L,L]
        return upsample(small).unflatten(0, (-1, 3))

    def field(self, planes: Tensor) -> Triplane:
        """The radiance field on one object's planes [3,T,2L,2L], in float32 at least, in its own space."""
        dtype = torch.promote_types(planes.dtype, torch.float32)
        decoder = self.synthesizer.decoder.net
        decoder = decoder if planes.dtype == dtype else copy.deepcopy(decoder).to(dtype)
        return Triplane(planes.to(dtype), decoder, READING, torch.eye(4, dtype=torch.float64))


# ---- from views to a field and to splats


def source_camera(distance: float = DISTANCE) -> Tensor:
    """[16] the camera the network is told: 3 x 4 camera-to-world row by row, OpenGL axes, in (0, -distance, 0) looking
    along +Y with +Z up; then fx, fy, cx, cy in picture widths.
    """
    rows = [1, 0, 0, 0, 0, 0, -1, -distance, 0, 1, 0, 0]
    return torch.tensor([*rows, FOCAL, FOCAL, 0.5, 0.5], dtype=torch.float32)


def prepared(image: Tensor, size: int) -> Tensor:
    """[1,3,size,size] sRGB on white, resized as published: bicubic from corner to corner, without a filter.

    image  [H,W,4] sRGB premultiplied by alpha; larger ones are first reduced, with a filter
    """
    rgb = (image[..., :3] + (1 - image[..., 3:])).permute(2, 0, 1)[None]
    if max(image.shape[:2]) > WORKING_SIDE:
        rgb = F.interpolate(rgb, size=(WORKING_SIDE, WORKING_SIDE), mode="area")
    return F.interpolate(rgb, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)


@torch.no_grad()
def triplane(model: Lrm, views: Views, *, target: Tensor | None = None, distance: float = DISTANCE) -> Triplane:
    """The field of the object in the first view, standing in the world where that view's camera saw it.

    target    None or [3], about where the object's middle is in the world; see `framing.placement` for the rule
    distance  at which the network is to believe its camera, 1.0 to 3.5

    Raises BadInput for a view in which nothing is to be seen and a target behind the camera.
    """
    device = model.start_tokens(1).device
    framed = frame_object(views, share=OBJECT_SHARE)
    image = prepared(framed.image.to(device), model.config.image_size)
    field = model.field(model(image, source_camera(distance)[None].to(device))[0])
    canonical = Canonical((0.0, -distance, 0.0), FOCAL)
    object_drawn = drawn(field, canonical, partial(march_importance, samples=PLACEMENT_SAMPLES))
    return replace(field, world=placement(views, framed, canonical, object_drawn, target=target))


@torch.no_grad()
def reconstruct(model: Lrm, views: Views, *, target: Tensor | None = None) -> Gaussians:
    """Splats on the surface of the object in the first view, in the world, float32, on the model's device.

    Arguments and errors as `triplane`; NothingSeen where the field has no surface.
    """
    return triplane(model, views, target=target).splats(4 * model.config.plane_side)


def memory_needed(config: LrmConfig, views: int, height: int, width: int, bytes_per_number: int) -> int:
    """About the most bytes that `reconstruct` uses, weights included, for `views` of height x width pixels."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in Lrm(config).parameters())
    encoder = config.encoder
    patches = (config.image_size // encoder.patch) ** 2
    # Of a block: an MLP's values before and after its activation, or queries, keys, values, their results; the tokens.
    network = max(
        3 * config.plane_side**2 * int(config.width * (2 * config.mlp_ratio + 4)),
        patches * (2 * encoder.hidden + 4 * encoder.width),
    )
    pictures = 3 * 16 * int(max(height, width) / OBJECT_SHARE) ** 2 + 16 * views * height * width
    surface = surface_memory(4 * config.plane_side, config.decoder_width)
    return weights * bytes_per_number + max(network * bytes_per_number, surface) + pictures
