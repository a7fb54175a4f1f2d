"""GRM (Xu et al., "Large Gaussian Reconstruction Model for Efficient 3D Reconstruction and Generation", 2024): posed
pictures of an object to one Gaussian a pixel.

    pictures, cameras -> RGB + ray channels -> patches -> transformer over all views' tokens -> transformer upsampler
                      -> one token for each pixel or few -> depth, colour, opacity, scale, rotation -> Gaussians

Two settings of this one design are chosen by the configuration's fields: *released* is the published network with all
its quirks, which its weights have learnt; *own* is what this project trains. That one is guided: it gets the pictures
cut out around the object, sees a surface that a few steps of fitting found inside the masks' hull, and says only how
the true one differs from it, and the Gaussians from the pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.cameras import BadInput, Cameras, Views, best_spread
from backend.full_precision import full_precision
from backend.gaussians import Gaussians, transform
from backend.hull import meeting_point
from backend.models.grm_backdrop import FIRST_CHANGE, Backdrop
from backend.models.grm_cameras import FIELD_OF_VIEW, cut_out, frame, place, plucker, poses
from backend.models.grm_config import PRESETS, GRMConfig, config_from
from backend.models.grm_gaussians import HEADS, RawGaussians, activate, guided, published
from backend.models.grm_guide import CHANNELS, guide_of
from backend.models.grm_layers import Blocks, Upscale, chunk_numbers
from backend.projection import ALPHA_MIN

__all__ = [
    "GRM",
    "IGNORED",
    "MAX_VIEWS",
    "MIN_VIEWS",
    "PRESETS",
    "SIDE_MULTIPLE",
    "GRMConfig",
    "config_from",
    "memory_needed",
    "reconstruct",
    "view_counts",
]

MIN_VIEWS, MAX_VIEWS = 1, 16  # `view_counts` says which of these a configuration takes
MOST_GUIDED = 8  # views that `reconstruct` gives to a guided network: more say little and cost as much again
SIDE_MULTIPLE = 1  # pictures of any size are framed and resized
IGNORED: tuple[str, ...] = ()  # no published key is dropped on loading
MOST_BACKDROP = 130 * 2**20  # bytes for what is told and made of some 70,000 voxels, the most that a grid shows
ALLOCATOR = 1.2  # what allocators and kernels keep beside the tensors


class Encoder(nn.Module):
    """Patches of all views become tokens that all see each other (or their windows)."""

    def __init__(self, config: GRMConfig) -> None:
        super().__init__()
        width, channels = config.width, _channels(config)
        self.conv = nn.Conv2d(channels, width, config.patch_size, config.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(1, config.grid**2, width))  # all views share it
        self.layernorm1 = nn.LayerNorm(width)
        self.transformer = Blocks(
            config.layers,
            width,
            window=config.bwindow_size,
            qk_norm=config.qk_norm,
            checkpointing=config.checkpointing,
        )
        self.layernorm2 = nn.LayerNorm(width)
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)

    def forward(self, picture: Tensor, rays: Tensor, seen: Tensor | None = None) -> Tensor:
        """picture [B,V,C,A,A], rays [B,V,6,A,A] -> tokens [B,V*n,D]; `seen` [B,V*n] bool: the others are left out."""
        patches = patches_of(picture, rays, self.conv, math.isqrt(self.positional_embedding.shape[1]))  # [B*V,D,s,s]
        tokens = patches.flatten(2).transpose(1, 2) + self.positional_embedding  # [B*V,n,D]
        tokens = self.layernorm1(tokens).unflatten(0, picture.shape[:2]).flatten(1, 2)  # [B,V*n,D]
        mixed = self.transformer(tokens) if seen is None else self._mixed(tokens, seen)
        return self.layernorm2(mixed)

    def _mixed(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """[B,L,D]: the seen tokens after they saw each other, an object at a time for their numbers differ."""
        rows = []
        for row, kept in zip(tokens, seen, strict=True):
            place = kept.nonzero()[:, 0]
            rows.append(row.index_copy(0, place, self.transformer(row[None, place])[0].to(row.dtype)))
        return torch.stack(rows)


def patches_of(picture: Tensor, rays: Tensor, conv: nn.Conv2d, grid: int) -> Tensor:
    """picture [B,V,C,A,A], rays [B,V,6,A,A] -> [B*V,D,grid,grid], whatever A is: a picture of half the side is seen as
    one of the full side would be of which each pixel is there four times.
    """
    seen = torch.cat([picture, rays], dim=2).flatten(0, 1).to(conv.weight.dtype)
    side = seen.shape[-1] // grid
    weight = F.avg_pool2d(conv.weight, conv.kernel_size[0] // side) * (conv.kernel_size[0] // side) ** 2
    return F.conv2d(seen, weight, stride=side)


def _channels(config: GRMConfig) -> int:
    """Of what the network sees: a picture, its rays, and the guide."""
    return config.in_channels + 6 + (CHANNELS if config.guided else 0)


class Upsampler(nn.Module):
    """Steps that double the side of every view's grid, each followed by two blocks with windows (paper eq. 3-5)."""

    def __init__(self, config: GRMConfig) -> None:
        super().__init__()
        self.levels, old = config.decoder_ratio, config.width
        for level, width in enumerate(config.widths):
            self.add_module(f"upsampler_{level}", Upscale(old, width, layout=config.shuffle))
            blocks = Blocks(
                2, width, window=config.window_size, qk_norm=config.qk_norm, checkpointing=config.checkpointing
            )
            self.add_module(f"attention_{level}", blocks)
            old = width
        if self.levels:
            self.layernorm2 = nn.LayerNorm(old)

    def forward(self, tokens: Tensor, views: int) -> Tensor:
        """tokens [B,V*n,D] -> [B,V*n*4^levels,C]"""
        for level in range(self.levels):
            tokens = self.get_submodule(f"upsampler_{level}")(tokens, views)
            tokens = self.get_submodule(f"attention_{level}")(tokens)
        return self.layernorm2(tokens) if self.levels else tokens


class GRM(nn.Module):
    """The network. `state_dict()` has the published checkpoints' keys and shapes."""

    def __init__(self, config: GRMConfig) -> None:
        super().__init__()
        self.config = config
        width, area = (config.width, *config.widths)[-1], config.shuffle_left**2
        parts: dict[str, nn.Module] = {"transformer_encoder": Encoder(config), "gaussian_upsampler": Upsampler(config)}
        for name, numbers in HEADS.items():
            parts[f"out_layer_{name}"] = nn.Conv2d(width, numbers * area, 1, bias=False)
        if config.guided:  # the pixels themselves, past all the tokens
            side = config.shuffle_left
            parts["shortcut"] = nn.Conv2d(_channels(config), width, side, side, bias=False)
            parts["backdrop"] = Backdrop()
        self.visual_encoder = nn.ModuleDict(parts)
        nn.init.normal_(self.head_weight("depth"), std=config.depth_std)  # all start near the plane through the origin
        nn.init.normal_(self.head_weight("scaling"), std=0.02)
        if config.guided:  # it starts from what the guide and the pixels say
            for name in HEADS:
                nn.init.normal_(self.head_weight(name), std=FIRST_CHANGE)

    def forward(
        self,
        images: Tensor,
        c2w: Tensor,
        Ks: Tensor,
        orthographic: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> RawGaussians:
        """Raw Gaussians of a batch of B objects, seen in V views each.

        images        [B,V,C,R,R] -1..1, RGB over white, and alpha where C is 4. A guided network also takes pictures
                      whose side is R divided by 2, 4, ... as far as a token's pixels allow: with the same weights it
                      does the same, coarser, for less
        c2w, Ks       [B,V,4,4], [B,V,3,3] in pixels of R; see `place` for the world that the network is used to
        orthographic  [B,V] bool; None: all pinhole, the only ones that the grid "corners" knows
        depth         [B,V,R,R] along the view axes, where it is known, 0 elsewhere: there a guided network's Gaussians
                      are. None: nowhere
        """
        self._check(images)
        config, views, side = self.config, images.shape[1], images.shape[-1]
        cameras = poses(c2w, Ks, orthographic, side)
        guide = guide_of(images, Ks, cameras, depth) if config.guided else None
        picture = F.avg_pool2d(images.flatten(0, 1), 2).unflatten(0, (-1, views)) if config.half_res_input else images
        picture = torch.cat([picture, guide.channels], dim=2) if guide else picture
        rays = plucker(cameras, picture.shape[-1], config.pixel_grid)  # [B,V,6,A,A]
        seen = self.seen(images) if guide else None
        tokens = self.visual_encoder["transformer_encoder"](picture, rays, seen)  # [B,V*n,D]
        tokens = self.visual_encoder["gaussian_upsampler"](tokens, views)  # [B,V*n*4^levels,C]
        tokens = tokens + self.shortcut(picture, rays) if guide else tokens
        maps = self.head_maps(tokens, views, config.input_res // side)
        raw = {name: self.pixels(numbers, side) for name, numbers in maps.items()}  # [B,V,R,R,numbers]
        if guide is None:
            return published(raw, cameras, config)
        backdrop = self.visual_encoder["backdrop"]
        made = tuple(None if voxels is None else backdrop(voxels) for voxels in guide.voxels)
        return replace(guided(raw, guide, images, cameras, config), backdrop=made)

    def seen(self, images: Tensor) -> Tensor:
        """[B,V*n] bool: the patches that show anything of the object."""
        alpha = F.max_pool2d(images[:, :, 3], images.shape[-1] // self.config.grid)  # [B,V,s,s] -1..1
        return (alpha > -1).flatten(1)

    def shortcut(self, picture: Tensor, rays: Tensor) -> Tensor:
        """picture [B,V,C,A,A], rays [B,V,6,A,A] -> [B,V*h*w,C'], patches as small as the last tokens."""
        conv = self.visual_encoder.get_submodule("shortcut")
        maps = patches_of(picture, rays, cast(nn.Conv2d, conv), self.config.grid * 2**self.config.decoder_ratio)
        return maps.flatten(2).transpose(1, 2).reshape(len(picture), -1, maps.shape[1])

    def head_weight(self, name: str) -> Tensor:
        """[numbers*q*q, C, 1, 1] of one of HEADS."""
        return self.visual_encoder.get_submodule(f"out_layer_{name}").get_parameter("weight")

    def head_maps(self, tokens: Tensor, views: int, coarser: int = 1) -> dict[str, Tensor]:
        """tokens [B,V*h*w,C] -> for each of HEADS [B,V,h,w,numbers*q*q], at least float32: depths need the digits.

        coarser  pixels of a side of which the mean is wanted; q is so much smaller
        """
        side = self.config.shuffle_left
        weight = torch.cat([self.head_weight(name).unflatten(0, (-1, side, side)).flatten(3) for name in HEADS])
        weight = F.avg_pool2d(weight.movedim(-1, 1), coarser).movedim(1, -1) if coarser > 1 else weight
        rows = weight.flatten(0, 2)  # one product for all five
        with full_precision(tokens.device):
            kind = torch.promote_types(tokens.dtype, torch.float32)
            maps = F.linear(tokens.to(kind), rows.to(kind))
        grid, area = math.isqrt(tokens.shape[1] // views), (side // coarser) ** 2
        maps = maps.view(tokens.shape[0], views, grid, grid, -1)
        return dict(zip(HEADS, maps.split([numbers * area for numbers in HEADS.values()], dim=-1), strict=True))

    @staticmethod
    def pixels(maps: Tensor, side: int) -> Tensor:
        """[B,V,h,w,numbers*q*q] -> [B,V,side,side,numbers]: each token's numbers become q x q pixels."""
        ratio = side // maps.shape[2]
        parts = maps.unflatten(-1, (-1, ratio, ratio)).permute(0, 1, 2, 5, 3, 6, 4)  # [B,V,h,dy,w,dx,numbers]
        return parts.reshape(*maps.shape[:2], side, side, -1)

    def _check(self, images: Tensor) -> None:
        config = self.config
        sides = config.sides
        if images.ndim != 5 or tuple(images.shape[2:]) not in [(config.in_channels, side, side) for side in sides]:
            wanted = f"[batch, views, {config.in_channels}, side, side], side {' or '.join(map(str, sides))}"
            raise BadInput(f"images: expected {wanted}, found {list(images.shape)}")
        if not takes(config, images.shape[1]):
            raise BadInput(_wrong_count(config, images.shape[1]))


def takes(config: GRMConfig, views: int) -> bool:
    """Whether the tokens of so many views fill the joint grid and whole windows."""
    tokens = views * config.grid**2
    if config.shuffle == "joint" and config.decoder_ratio and math.isqrt(tokens) ** 2 != tokens:
        return False
    lengths = [(tokens * 4 ** (level + 1), config.window_size) for level in range(config.decoder_ratio)]
    lengths.append((tokens, config.bwindow_size))
    return all(window is None or length <= window or length % window == 0 for length, window in lengths)


def view_counts(config: GRMConfig) -> tuple[int, ...]:
    """The numbers of views that `reconstruct` takes, from MIN_VIEWS to MAX_VIEWS."""
    return tuple(views for views in range(MIN_VIEWS, MAX_VIEWS + 1) if takes(config, views))


def _wrong_count(config: GRMConfig, found: int) -> str:
    counts = ", ".join(map(str, view_counts(config))) or f"more than {MAX_VIEWS}"
    return f"views: expected {counts} views (it was trained with {config.num_input_views}), found {found}"


# ---- reconstruction


def chosen_views(views: Views, config: GRMConfig) -> Views:
    """All views; of more than *released* was trained with or *own* is made for, those that stand best around."""
    most = config.num_input_views if config.shuffle == "joint" else MOST_GUIDED if config.guided else MAX_VIEWS
    count = min(len(views), most)
    if count < MIN_VIEWS or not takes(config, count):
        raise BadInput(_wrong_count(config, len(views)))
    if count == len(views):
        return views
    return views[best_spread(views.cameras, meeting_point(views.cameras).to(views.images.device), count)]


@torch.no_grad()
def reconstruct(model: GRM, views: Views, *, target: Tensor | None = None) -> Gaussians:
    """One Gaussian for each of R x R pixels of each view, in the world of the views, float32, on the model's device.

    views   any size, scale and orientation; composited over white. See `place` and `frame` for how they are brought
            into the network's world. *Released* takes pinhole cameras alone
    target  [3] world, the object's middle, where the views do not look at it
    Of more views than the network takes, the first and those that stand best around the object with it are used.
    Raises BadInput for too few views, a kind that the network cannot take, views that do not say where the object is,
    or for a guided network pictures without a mask.
    """
    config, device = model.config, next(model.parameters()).device
    views = chosen_views(views, config)
    if config.guided and not views.has_alpha:
        raise BadInput(
            "images: expected pictures that are clear around the object, found opaque ones; "
            "cut it out, or use the fit, which needs no mask"
        )
    if config.in_channels not in (3, 4):
        raise BadInput(f"config: in_channels: expected 3 (RGB) or 4 (RGB and alpha), found {config.in_channels}")
    if config.placement == "distance":
        pictures, cameras, outward = _as_published(views, config, target)
        depth = None
    else:
        pictures, cameras, outward, depth = placed_object(views, config.input_res, target)
    given = (2 * pictures[:, : config.in_channels] - 1, cameras.c2w, cameras.Ks, cameras.orthographic)
    given = [x[None].to(device) for x in (*given, depth) if x is not None]
    gaussians = activate(model(*given), config)[0]
    gaussians = Gaussians(*(x.float() for x in vars(gaussians).values()))
    seen = gaussians.opacities >= ALPHA_MIN if config.guided else slice(None)
    return transform(gaussians[seen], outward)


def _as_published(views: Views, config: GRMConfig, target: Tensor | None) -> tuple[Tensor, Cameras, Tensor]:
    """Pictures [V,4,R,R], their cameras in the network's world, and the way [4,4] out of it."""
    if bool(views.cameras.orthographic.any()):
        raise BadInput("views: this checkpoint takes perspective cameras, found an orthographic one")
    placement = place(views, rule="distance", azimuth=math.radians(config.first_azimuth), target=target)
    pictures, Ks = frame(views, config.input_res, FIELD_OF_VIEW)
    side = config.input_res
    cameras = replace(placement.inward(views.cameras), Ks=Ks, width=side, height=side)
    return pictures, cameras, placement.outward


def placed_object(
    views: Views, side: int, target: Tensor | None = None
) -> tuple[Tensor, Cameras, Tensor, Tensor | None]:
    """The same for a guided network, which gets the object alone and as large as fits; the first camera is at -Y. And
    the views' depth [V,side,side], where they have one, in the network's units.
    """
    pictures, cameras, depth = cut_out(views, side)
    around = Views(pictures.permute(0, 2, 3, 1), cameras, depth)
    placement = place(around, rule="object", azimuth=-math.pi / 2, target=target)
    depth = None if depth is None else placement.scale * depth
    return pictures, placement.inward(cameras), placement.outward, depth


def memory_needed(
    config: GRMConfig, views: int, height: int, width: int, bytes_per_number: int, *, device: str = "cpu"
) -> int:
    """Peak bytes of `reconstruct` with its weights, for pictures of this size; what the views themselves hold not
    counted. An estimate: it counts the tensors that live at once in the widest stage.
    """
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in GRM(config).parameters())
    tokens, pixels = views * config.grid**2, views * config.input_res**2
    chunk = chunk_numbers(torch.device(device))
    stages = [_block_numbers(tokens, config.width, config.bwindow_size, chunk)]
    for level, numbers in enumerate(config.widths):
        stages.append(_block_numbers(tokens * 4 ** (level + 1), numbers, config.window_size, chunk))
    last = (config.width, *config.widths)[-1]
    copied = last * (tokens * 4**config.decoder_ratio + sum(HEADS.values()) * config.shuffle_left**2)
    heads = copied * (bytes_per_number + 4) + 4 * 60 * pixels  # tokens and weights twice; Gaussians four times
    held = 4 * 3 * CHANNELS * pixels + MOST_BACKDROP if config.guided else 0  # the guide, and twice beside the pictures
    framing = 4 * 4 * views * (4 * max(height, width) ** 2 + 3 * config.input_res**2)
    return bytes_per_number * weights + int(ALLOCATOR * (held + max(bytes_per_number * max(stages), heads, framing)))


def _block_numbers(tokens: int, width: int, window: int | None, chunk: int) -> int:
    """Most numbers alive inside a block: its stream of tokens several times, and twelve times what runs at once."""
    stream = tokens * width
    if window is None or tokens <= window:
        return 14 * stream
    return 5 * stream + 12 * min(stream, max(window * width, chunk // 4))
