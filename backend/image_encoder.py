"""DINO and DINOv2: the vision transformers that turn a picture into tokens for the single-picture networks.

Our own and not the `transformers` library's, because the published keys must match (its release 5 renamed them), the
position embeddings must be resized as at training time (it changed that too), and no dependency is needed then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.attention import attend
from backend.cameras import BadInput
from backend.config_sections import Section

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DinoConfig:
    """DINO's ViT (Caron 2021), by default ViT-B/16 as facebook/dino-vitb16.

    width, layers, heads  of the transformer
    hidden                width within its MLPs
    patch                 pixels of a patch's side
    native_side           pixels of a side of the pictures for which the position embeddings were learned
    eps                   of the layer norms
    offset                added to the number of patches when position embeddings are resized: shifts the places read
    antialias             whether that resizing filters
    mean, std             of the pictures' channels, which are normalised with them
    qkv_bias              whether queries, keys and values have a bias
    pooler                whether the checkpoint holds a pooling layer, of which nothing is ever used
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    native_side: int = 224
    eps: float = 1e-12
    offset: float = 0.1
    antialias: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    qkv_bias: bool = True
    pooler: bool = False


@dataclass(frozen=True)
class Dinov2Config:
    """DINOv2's ViT with registers (Oquab 2023, Darcet 2023), by default ViT-B/14; fields as in DinoConfig, and

    registers    tokens without a place that are dropped at the end
    layer_scale  whether a vector scales what each half of a block adds
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    patch: int = 14
    native_side: int = 518
    eps: float = 1e-6
    offset: float = 0.0
    antialias: bool = True
    qkv_bias: bool = True
    registers: int = 4
    layer_scale: bool = True


EncoderConfig = DinoConfig | Dinov2Config


def dino_config_from(section: Section) -> DinoConfig:
    """From the names of the `transformers` library. Raises BadInput for what this network does not have."""
    side = "native_image_size" if "native_image_size" in section else "image_size"
    section.expect("hidden_act", "gelu")
    config = DinoConfig(
        width=section.whole("hidden_size"),
        layers=section.whole("num_hidden_layers"),
        heads=section.whole("num_attention_heads"),
        hidden=section.whole("intermediate_size"),
        patch=section.whole("patch_size"),
        native_side=section.whole(side),
        eps=section.number("layer_norm_eps"),
        offset=section.number("interpolate_offset", default=0.1),
        antialias=section.flag("interpolate_antialias", default=False),
        mean=section.numbers("image_mean", 3),
        std=section.numbers("image_std", 3),
        qkv_bias=section.flag("qkv_bias", default=True),
        pooler=section.flag("has_unused_pooler", default=False),
    )
    _check(config)
    return config


def dinov2_config_from(section: Section) -> Dinov2Config:
    """From the names of Meta's release. Raises BadInput for what this network does not have."""
    width = section.whole("embed_dim")
    config = Dinov2Config(
        width=width,
        layers=section.whole("depth"),
        heads=section.whole("num_heads"),
        hidden=int(width * section.number("mlp_ratio")),
        patch=section.whole("patch_size"),
        native_side=section.whole("native_image_size"),
        eps=section.number("layer_norm_eps"),
        offset=section.number("interpolate_offset", default=0.0),
        antialias=section.flag("interpolate_antialias", default=True),
        qkv_bias=section.flag("qkv_bias", default=True),
        registers=section.whole("num_register_tokens", least=0),
        layer_scale=section.flag("layer_scale", default=True),
    )
    _check(config)
    return config


def _check(config: EncoderConfig) -> None:
    if config.width % config.heads:
        raise BadInput(f"config: encoder: expected a width that {config.heads} heads share, found {config.width}")
    if config.native_side < config.patch:
        found = f"{config.native_side} for patches of {config.patch}"
        raise BadInput(f"config: encoder: expected a native size of at least one patch, found {found}")


# ---- what both share


def patch_tokens(image: Tensor, projection: nn.Conv2d) -> tuple[Tensor, tuple[int, int]]:
    """[B,P,E] tokens of the patches, row by row, and how many rows and columns; the last part of a patch is not seen.

    image  [B,3,H,W]
    """
    patches = projection(image.to(projection.weight.dtype))  # [B,E,rows,columns]
    return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])


def positions_for(learned: Tensor, rows: int, columns: int, *, offset: float = 0.0, antialias: bool = False) -> Tensor:
    """[1,1+rows*columns,E] position embeddings, resized bicubically in float32 at least; the class token's stays.

    learned    [1,1+side*side,E], the class token's first
    offset     0 resizes to the size; otherwise by the factor (size + offset) / side, as the published networks were
               trained, which reads the embeddings at other places
    antialias  whether a reduction filters
    """
    side = math.isqrt(learned.shape[1] - 1)
    if rows == columns == side:
        return learned
    grid = learned[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # [1,E,side,side]
    size = None if offset else (rows, columns)
    factors = ((rows + offset) / side, (columns + offset) / side) if offset else None
    grid = F.interpolate(
        grid.to(torch.promote_types(grid.dtype, torch.float32)),
        size=size,
        scale_factor=factors,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    return torch.cat([learned[:, :1], grid.flatten(2).transpose(1, 2).to(learned)], dim=1)


# ---- DINO, under the key names of the `transformers` library before its release 5


class _Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dense(tokens)


class _QueryKeyValue(nn.Module):
    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width, config.qkv_bias)
        self.key = nn.Linear(config.width, config.width, config.qkv_bias)
        self.value = nn.Linear(config.width, config.width, config.qkv_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return attend(self.query(tokens), self.key(tokens), self.value(tokens), heads=self.heads)


class _DinoLayer(nn.Module):
    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width = config.width
        self.layernorm_before = nn.LayerNorm(width, config.eps)
        self.attention = nn.ModuleDict({"attention": _QueryKeyValue(config), "output": _Dense(width, width)})
        self.layernorm_after = nn.LayerNorm(width, config.eps)
        self.intermediate = _Dense(width, config.hidden)
        self.output = _Dense(config.hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        attended = self.attention["attention"](self.layernorm_before(tokens))
        tokens = tokens + self.attention["output"](attended)
        return tokens + self.output(F.gelu(self.intermediate(self.layernorm_after(tokens))))


class _DinoPatches(nn.Module):
    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, config.width, config.patch, config.patch)


class _DinoEmbeddings(nn.Module):
    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        places = 1 + (config.native_side // config.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.position_embeddings = nn.Parameter(0.02 * torch.randn(1, places, config.width))
        self.patch_embeddings = _DinoPatches(config)

    def forward(self, image: Tensor) -> Tensor:
        tokens, grid = patch_tokens(image, self.patch_embeddings.projection)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        offset, antialias = self.config.offset, self.config.antialias
        return tokens + positions_for(self.position_embeddings, *grid, offset=offset, antialias=antialias)


class _DinoLayers(nn.Module):
    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_DinoLayer(config) for _ in range(config.layers))

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layer:
            tokens = layer(tokens)
        return tokens


class Dino(nn.Module):
    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _DinoEmbeddings(config)
        self.encoder = _DinoLayers(config)
        self.layernorm = nn.LayerNorm(config.width, config.eps)
        if config.pooler:
            self.pooler = _Dense(config.width, config.width)

    def forward(self, image: Tensor) -> Tensor:
        """[B,1+P,E] tokens, the class token first, then the patches row by row.

        image  [B,3,H,W] sRGB, 0..1
        """
        mean, std = (torch.tensor(values).to(image)[:, None, None] for values in (self.config.mean, self.config.std))
        tokens = self.embeddings((image - mean) / std)
        return self.layernorm(self.encoder(tokens))


# ---- DINOv2, under the key names of Meta's release


class _Dinov2Patches(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, config.patch)


class _Dinov2Attention(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(tokens).chunk(3, dim=-1), heads=self.heads))


class _Dinov2Mlp(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class _Dinov2Block(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.attn = _Dinov2Attention(config)
        self.ls1 = _LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = _Dinov2Mlp(config)
        self.ls2 = _LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class Dinov2(nn.Module):
    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.config = config
        width, places = config.width, 1 + (config.native_side // config.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, places, width))
        if config.registers:
            self.register_tokens = nn.Parameter(0.02 * torch.randn(1, config.registers, width))
        self.patch_embed = _Dinov2Patches(config)
        self.blocks = nn.ModuleList(_Dinov2Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, config.eps)

    def forward(self, image: Tensor) -> Tensor:
        """[B,1+P,E] tokens, the class token first, then the patches row by row; the registers are dropped.

        image  [B,3,H,W] sRGB, 0..1; OpenLRM does not normalise it
        """
        config = self.config
        tokens, grid = patch_tokens(image, self.patch_embed.proj)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + positions_for(self.pos_embed, *grid, offset=config.offset, antialias=config.antialias)
        if config.registers:
            registers = self.register_tokens.expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return torch.cat([tokens[:, :1], tokens[:, 1 + config.registers :]], dim=1)


class ImageEncoder(nn.Module):
    """Either of the two, under the name `model` as the networks' checkpoints have it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.model = Dino(config) if isinstance(config, DinoConfig) else Dinov2(config)

    def forward(self, image: Tensor) -> Tensor:
        """[B,1+P,E] tokens, the class token first, then the patches row by row.

        image  [B,3,H,W] sRGB, 0..1
        """
        return self.model(image)
