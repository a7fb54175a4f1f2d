"""LGM: four posed pictures of an object to one Gaussian for every pixel of four smaller pictures.

Tang et al., "LGM: Large Multi-View Gaussian Model for High-Resolution 3D Content Creation", arXiv 2402.05054.
One U-Net sees all views: its convolutions look at each picture alone, its attention at the tokens of all pictures at
once. It goes up fewer levels than it went down, so the Gaussians are fewer than the pixels. Names of modules are those
of the published checkpoints, which load as they are.

    pictures [V,3,S,S], rays [V,6,S,S] -> network_input -> LGM -> raw [V,14,s,s] -> decode -> Gaussians (V s s)
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from backend.attention import attend
from backend.cameras import BadInput, Cameras, Views
from backend.full_precision import full_precision
from backend.gaussians import Gaussians, rgb_to_sh, rotation_matrices, transform
from backend.models.lgm_cameras import Lens, pluecker, set_up, standard_cameras

IN_CHANNELS = 9  # RGB, moment and direction of the pixel's ray
OUT_CHANNELS = 14  # position 3, opacity 1, scale 3, rotation 4, colour 3
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in the paper's code
SCALE_UNIT = 0.1  # softplus of a scale channel is multiplied by this, in LGM's units

MIN_VIEWS = 4
MAX_VIEWS = 1024  # of more than the model takes, those that stand best around the object are used
SIDE_MULTIPLE = 1  # pictures of any size and shape are resampled
IGNORED = (r"lpips_loss\..*",)  # the training loss's own network, which some files still hold
PROVENANCE = ("seed", "weights_stored_as", "compute_dtype")  # a config.json tells how its files were made


def _expect(good: bool, key: str, expectation: str, found: object) -> None:
    if not good:
        raise BadInput(f"{key}: LGM expects {expectation}, found {found}")


@dataclass(frozen=True)
class LGMConfig:
    """One LGM network and the cameras it was trained on. Raises BadInput for values that do not fit together.

    input_size       pixels of a side of the pictures that the network sees
    down_channels    width of each level, from fine to coarse
    down_attention   whether the level's layers attend across the views
    up_channels      widths on the way up, from coarse to fine; the same as those of the levels they come back to
    up_attention     as down_attention, on the way up
    splat_size       pixels of a side of the pictures of Gaussians
    mid_attention    whether the layers between the two ways attend
    layers_per_block residual blocks a level on the way down; one more on the way up
    mid_layers       residual blocks between the two ways, after a first one
    attention_heads  heads of each attention
    norm_groups      groups of each normalisation
    norm_eps         added to variances
    skip_scale       every residual sum is multiplied by this, sqrt(1/2) to keep its variance
    num_input_views  pictures of an object
    fovy             degrees across the picture
    cam_radius       distance of the cameras from the object, LGM's units
    azimuths         degrees, of the cameras behind the pictures that LGM's own first stage makes
    elevation        degrees, of the same; positive is below the object
    legacy_rotation  for checkpoints from before April 2024, which were trained with quaternions normalised over all
                     Gaussians of an object instead of each by itself
    """

    input_size: int
    down_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_channels: tuple[int, ...]
    up_attention: tuple[bool, ...]
    splat_size: int
    mid_attention: bool = True
    layers_per_block: int = 2
    mid_layers: int = 1
    attention_heads: int = 16
    norm_groups: int = 32
    norm_eps: float = 1e-5
    skip_scale: float = math.sqrt(0.5)
    num_input_views: int = 4
    fovy: float = 49.1
    cam_radius: float = 1.5
    azimuths: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0)
    elevation: float = 0.0
    legacy_rotation: bool = False

    def __post_init__(self) -> None:
        downs, ups = len(self.down_channels), len(self.up_channels)
        _expect(0 < ups <= downs, "up_channels", f"from 1 to {downs} levels, as down_channels has", ups)
        levels = self.down_channels[::-1][:ups]
        _expect(self.up_channels == levels, "up_channels", f"{levels}, down_channels from its end", self.up_channels)
        for name, count in (("down_attention", downs), ("up_attention", ups), ("azimuths", self.num_input_views)):
            _expect(len(getattr(self, name)) == count, name, f"{count} values", len(getattr(self, name)))
        for name in ("layers_per_block", "attention_heads", "norm_groups", "num_input_views", "norm_eps", "cam_radius"):
            _expect(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        _expect(self.mid_layers >= 0, "mid_layers", "at least 0", self.mid_layers)
        _expect(0 < self.fovy < 180, "fovy", "an angle between 0 and 180 degrees", self.fovy)
        size, step = self.input_size, 2 ** (downs - 1)
        _expect(size > 0 and size % step == 0, "input_size", f"a multiple of {step}", size)
        side = size // 2 ** (downs - ups)
        _expect(self.splat_size == side, "splat_size", f"{side} for {downs} levels down and {ups} up", self.splat_size)
        groups, heads = self.norm_groups, self.attention_heads
        for width in self.down_channels:
            _expect(width > 0 and width % groups == 0, "down_channels", f"multiples of norm_groups, {groups}", width)
        flags = (*self.down_attention, self.mid_attention, *self.up_attention)
        for width, attention in zip((*self.down_channels, levels[0], *levels), flags, strict=True):
            _expect(not attention or width % heads == 0, "attention_heads", f"a divisor of the width {width}", heads)

    @property
    def lens(self) -> Lens:
        """What every camera is brought to."""
        return Lens(self.input_size, math.radians(self.fovy), self.cam_radius)

    @property
    def cameras(self) -> Cameras:
        """The cameras of the pictures that LGM's own first stage makes, in LGM's world."""
        return standard_cameras(self.lens, azimuths=self.azimuths, elevation=self.elevation)


_BIG = LGMConfig(
    input_size=256,
    down_channels=(64, 128, 256, 512, 1024, 1024),
    down_attention=(False, False, False, True, True, True),
    up_channels=(1024, 1024, 512, 256, 128),
    up_attention=(True, True, True, False, False),
    splat_size=128,
)
PRESETS: dict[str, LGMConfig] = {
    "big": _BIG,
    "big_legacy": replace(_BIG, legacy_rotation=True),
    "small": replace(_BIG, up_channels=(1024, 1024, 512, 256), up_attention=(True, True, True, False), splat_size=64),
    "tiny": LGMConfig(
        input_size=256,
        down_channels=(32, 64, 128, 256, 512),
        down_attention=(False, False, False, False, True),
        up_channels=(512, 256, 128),
        up_attention=(True, False, False),
        splat_size=64,
    ),
}


def config_from(data: Mapping[str, Any]) -> LGMConfig:
    """The configuration that a config.json tells. Raises BadInput naming the key that is unknown, missing or wrong."""
    data = {key: value for key, value in data.items() if key not in PROVENANCE}
    for key, only in (("in_channels", IN_CHANNELS), ("out_channels", OUT_CHANNELS)):
        found = data.pop(key, only)
        _expect(found == only, key, str(only), found)
    hints = typing.get_type_hints(LGMConfig)
    for key in data:
        _expect(key in hints, key, f"one of {', '.join(hints)}", "a key that LGM does not know")
    for field in fields(LGMConfig):
        _expect(field.name in data or field.default is not MISSING, field.name, "a value", "none")
    values = {key: _read(key, value, hints[key]) for key, value in data.items()}
    if "up_channels" in values:  # the published "tiny" has a flag too many, which its code never reads
        values["up_attention"] = values["up_attention"][: len(values["up_channels"])]
    return LGMConfig(**values)


def _read(key: str, value: Any, hint: Any) -> Any:
    """A JSON value as its field's type: bool, int, float or a tuple of one of them."""
    if listed := typing.get_origin(hint) is tuple:
        _expect(isinstance(value, (list, tuple)), key, "a list", value)
    kind = typing.get_args(hint)[0] if listed else hint
    items = value if listed else [value]
    for item in items:
        numeric = isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)
        good = isinstance(item, bool) if kind is bool else numeric and kind(item) == item
        _expect(good, key, {bool: "true or false", int: "whole numbers", float: "numbers"}[kind], item)
    return tuple(kind(item) for item in items) if listed else kind(value)


# ---- the network; pictures are [B V, C, H, W] inside, views of an object one after the other


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut, widths in -> out."""

    def __init__(self, width_in: int, width_out: int, config: LGMConfig) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, config)
        self.conv1 = _convolution(width_in, width_out)
        self.norm2 = _norm(width_out, config)
        self.conv2 = _convolution(width_out, width_out)
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)
        self.skip_scale = config.skip_scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        h += self.shortcut(x)  # in place: a new picture costs more than the sum
        h *= self.skip_scale
        return h


class CrossViewAttention(nn.Module):
    """Every pixel attends to all pixels of all views of its object, without positions."""

    def __init__(self, width: int, config: LGMConfig) -> None:
        super().__init__()
        self.norm = _norm(width, config)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=False), "proj": nn.Linear(width, width)})
        self.heads, self.skip_scale = config.attention_heads, config.skip_scale

    def forward(self, x: Tensor, views: int) -> Tensor:
        _, width, height, columns = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(-1, views * height * columns, width)  # [B, V H W, C]
        mixed = self.attn["proj"](attend(*self.attn["qkv"](tokens).chunk(3, dim=-1), heads=self.heads))
        y = mixed.reshape(-1, height, columns, width).permute(0, 3, 1, 2) + x
        y *= self.skip_scale
        return y


def _norm(width: int, config: LGMConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, width, eps=config.norm_eps)


def _convolution(width_in: int, width_out: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1)


def _attentions(attention: bool, width: int, count: int, config: LGMConfig) -> nn.ModuleList:
    """One for each of `count` residual blocks, or none at all."""
    return nn.ModuleList(CrossViewAttention(width, config) for _ in range(count if attention else 0))


class DownBlock(nn.Module):
    """One level on the way down."""

    def __init__(self, width_in: int, width: int, config: LGMConfig, *, attention: bool, last: bool) -> None:
        super().__init__()
        count = config.layers_per_block
        self.nets = nn.ModuleList(ResBlock(width if i else width_in, width, config) for i in range(count))
        self.attns = _attentions(attention, width, count, config)
        self.downsample = nn.Identity() if last else _convolution(width, width, stride=2)

    def forward(self, x: Tensor, views: int) -> tuple[Tensor, list[Tensor]]:
        """The picture for the next level, and what the way up will want: the picture before and after each layer."""
        states = [x]
        for index, net in enumerate(self.nets):
            x = net(x)
            if self.attns:
                x = self.attns[index](x, views)
            states.append(x)
        return self.downsample(x), states


class MidBlock(nn.Module):
    """At the coarsest level, between the two ways."""

    def __init__(self, width: int, config: LGMConfig) -> None:
        super().__init__()
        self.nets = nn.ModuleList(ResBlock(width, width, config) for _ in range(config.mid_layers + 1))
        self.attns = _attentions(config.mid_attention, width, config.mid_layers, config)

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.nets[0](x)
        for index, net in enumerate(self.nets[1:]):
            if self.attns:
                x = self.attns[index](x, views)
            x = net(x)
        return x


class UpBlock(nn.Module):
    """One level on the way up: each layer sees the picture of the same size from the way down, the latest first."""

    def __init__(self, below: int, width: int, entry: int, config: LGMConfig, *, attention: bool, last: bool) -> None:
        """Widths of what comes from the level below, of this level, and of what entered it on the way down."""
        super().__init__()
        count = config.layers_per_block + 1
        running = [below] + [width] * (count - 1)
        skips = [width] * (count - 1) + [entry]
        self.nets = nn.ModuleList(ResBlock(a + b, width, config) for a, b in zip(running, skips, strict=True))
        self.attns = _attentions(attention, width, count, config)
        self.upsample = nn.Identity() if last else _convolution(width, width)
        self.last = last

    def forward(self, x: Tensor, states: list[Tensor], views: int) -> Tensor:
        """Takes what it uses off the end of `states`."""
        for index, net in enumerate(self.nets):
            x = net(torch.cat([x, states.pop()], dim=1))
            if self.attns:
                x = self.attns[index](x, views)
        return x if self.last else self.upsample(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(nn.Module):
    """Pictures [B V, 9, S, S] to raw pictures [B V, 14, s, s]; the last steps are float32 or finer always."""

    def __init__(self, config: LGMConfig) -> None:
        super().__init__()
        down, up = config.down_channels, config.up_channels
        entries = (down[0], *down[:-1])  # width of what enters each level
        self.conv_in = _convolution(IN_CHANNELS, down[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(entries[i], down[i], config, attention=config.down_attention[i], last=i == len(down) - 1)
            for i in range(len(down))
        )
        self.mid_block = MidBlock(down[-1], config)
        self.up_blocks = nn.ModuleList(
            UpBlock(below, up[i], entries[-1 - i], config, attention=config.up_attention[i], last=i == len(up) - 1)
            for i, below in enumerate((up[0], *up[:-1]))
        )
        self.norm_out = _norm(up[-1], config)
        self.conv_out = _convolution(up[-1], OUT_CHANNELS)

    def forward(self, x: Tensor, views: int) -> Tensor:
        x = self.conv_in(x)  # [B V, C0, S, S]
        finest = len(self.down_blocks) - len(self.up_blocks)  # the way up ends at this level
        states: list[Tensor] = []
        for level, block in enumerate(self.down_blocks):
            x, seen = block(x, views)  # half as many pixels a side, but after the last
            states += seen if level >= finest else []
        x = self.mid_block(x, views)
        for block in self.up_blocks:
            x = block(x, states, views)  # twice as many, but after the last: [B V, C, s, s]
        x, norm = _wide(x), self.norm_out
        with full_precision(x.device):
            x = F.group_norm(x, norm.num_groups, norm.weight.to(x), norm.bias.to(x), norm.eps)
        return _wide_convolution(self.conv_out, F.silu(x))  # [B V, 14, s, s]


class LGM(nn.Module):
    """The network. Its state_dict has the keys and shapes of the published checkpoints."""

    def __init__(self, config: LGMConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config)
        self.conv = nn.Conv2d(OUT_CHANNELS, OUT_CHANNELS, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Raw pictures of Gaussians [B,V,14,s,s], float32 or float64, of inputs [B,V,9,S,S] of any float type, as
        `network_input` makes them.
        """
        x = inputs.flatten(0, 1).to(self.conv.weight.dtype)
        x = self.unet(x.contiguous(memory_format=torch.channels_last), inputs.shape[1])
        return _wide_convolution(self.conv, x).unflatten(0, inputs.shape[:2])


def _wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is so already: positions in half precision would be steps as wide as a pixel."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _wide_convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    with full_precision(x.device):
        return F.conv2d(x, layer.weight.to(x), layer.bias.to(x), padding=layer.padding)


# ---- what goes in and what comes out


def network_input(rgb: Tensor, cameras: Cameras) -> Tensor:
    """[V,9,S,S] float32 of pictures [V,3,S,S] in 0..1 over white and their cameras in LGM's world.

    Colours are normalised; the rays are Pluecker coordinates, moment before direction (the paper's equation 1).
    """
    mean, std = (torch.tensor(values, device=rgb.device)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return torch.cat([(rgb - mean) / std, pluecker(cameras)], dim=1)


def decode(raw: Tensor, *, legacy_rotation: bool = False) -> Gaussians:
    """Gaussians in LGM's world of one object's raw pictures [V,14,s,s]; order: view, row, column.

    Positions are LGM's own, in the cube -1..1, not relative to the pixel's ray.
    """
    rows = _wide(raw.permute(0, 2, 3, 1).reshape(-1, OUT_CHANNELS))
    position, opacity, scale, rotation, colour = rows.split([3, 1, 3, 4, 3], dim=-1)
    scales = SCALE_UNIT * F.softplus(scale)
    quats = F.normalize(rotation, dim=-1)
    if legacy_rotation:
        quats, scales = as_drawn(legacy_rotations(rotation), scales)
    colours = 0.5 * torch.tanh(colour) + 0.5
    return Gaussians(position.clamp(-1, 1), quats, scales, opacity[:, 0].sigmoid(), rgb_to_sh(colours)[:, None])


def legacy_rotations(rotation: Tensor) -> Tensor:
    """[N,4] wxyz as old checkpoints were trained with them: each column has length 1 over all Gaussians."""
    return F.normalize(rotation, dim=0)


def as_drawn(quats: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Unit quaternions and scales of what a rasteriser draws that takes quaternions of any length at their word.

    With n = |q|^2 its "rotation" is the matrix (1 - n) 1 + n R, which shears; the ellipsoid that comes out is a plain
    one again, whose axes a singular value decomposition finds. Not differentiable.
    """
    square = quats.square().sum(-1)[:, None, None]
    sheared = (1 - square) * torch.eye(3).to(quats) + square * rotation_matrices(quats)
    axes, lengths, _ = torch.linalg.svd((sheared * scales[:, None]).detach().double().cpu())
    axes = axes * torch.linalg.det(axes)[:, None, None]  # a mirrored set of axes, turned about
    turned = torch.from_numpy(Rotation.from_matrix(axes.numpy()).as_quat(scalar_first=True))
    return turned.to(quats), lengths.to(scales)


@torch.no_grad()
def reconstruct(model: LGM, views: Views) -> Gaussians:
    """Gaussians in the views' world, float32, of an object that at least `num_input_views` pinhole views look at.

    Pictures of any size; over white where they are transparent. Of more views than the model takes, the first and
    those that stand best around the object with it are used. Raises BadInput for views that LGM's cameras cannot be
    made of, and for weights that give no numbers.
    """
    config = model.config
    ready = set_up(views.to(model.conv.weight.device), config.lens, count=config.num_input_views)
    raw = model(network_input(ready.rgb, ready.cameras)[None])[0].float()
    if not bool(raw.isfinite().all()):
        raise BadInput(
            "weights: LGM expects finite numbers, found a result that is not; try float32, or fetch them anew"
        )
    gaussians = decode(raw, legacy_rotation=config.legacy_rotation)
    return transform(gaussians, ready.to_world)


def memory_needed(config: LGMConfig, views: int, height: int, width: int, bytes_per_number: int) -> int:
    """Bytes at the worst moment of `reconstruct`, with the weights and `views` pictures of height x width pixels."""
    with torch.device("meta"):
        sizes = [parameter.numel() for parameter in LGM(config).parameters()]
    numbers = sum(sizes) + 2 * max(sizes) + _most_at_work(config)  # a convolution reorders its weights, twice on a CPU
    pictures = 16 * height * width * (views + 3 * config.num_input_views)  # as given; chosen, differenced, shrunk
    return numbers * bytes_per_number + pictures


def _most_at_work(config: LGMConfig) -> int:
    """Numbers alive at once in the forward pass: what waits for the way up, and the widest residual block's own."""
    down, up = config.down_channels, config.up_channels
    pixels = [config.num_input_views * (config.input_size >> level) ** 2 for level in range(len(down))]
    kept = [entry + config.layers_per_block * width for entry, width in zip((down[0], *down[:-1]), down, strict=True)]
    states = [area * channels for area, channels in zip(pixels, kept, strict=True)]
    finest = len(down) - len(up)
    most = 0
    for level, width in enumerate(down):
        alive = sum(states[finest:level]) + states[level]
        most = max(most, alive + 2 * pixels[level] * width)  # normalised and convolved
    for index, width in enumerate(up):
        level = len(down) - 1 - index
        below = up[max(index - 1, 0)]
        joined = below + width  # as joined with the waiting picture, and normalised
        most = max(most, sum(states[finest : level + 1]) + pixels[level] * (below + 2 * joined + width))
    return most
