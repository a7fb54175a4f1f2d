"""Long-LRM: many posed pictures of a scene to one Gaussian for every pixel, of which the most opaque are kept.

Ziwen et al., "Long-LRM: Long-sequence Large Reconstruction Model for Wide-coverage Gaussian Splats", arXiv 2410.12781.
All patches of all pictures make one sequence. Mamba-2 blocks (see backend/mamba.py) run along it in linear time, a few
transformer blocks look at all of it at once, and on the way every 2x2 tokens are merged into a wider one.
There is no positional encoding: rays, order and convolutions tell where a token is. Names of modules are those of the
published checkpoint, which loads as it is. Weights may be of any type; rays, distances, the head and the sum along the
blocks are float32 at least.

    images [B,V,3,H,W], rays -> patches [B,T,9pp] -> tokens [B,G+T,D] -> blocks, merged on the way -> one token for
    P x P pixels -> raw [B,V,H,W,C] -> PixelGaussians [B,VHW] -> pruned, activated, in the world: Gaussians

B batch, V views, G global tokens, T = V H/p W/p, p patch, P = p 2^merges, C = 11 + 3 (degree+1)^2 numbers a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.attention import attend
from backend.cameras import BadInput, Cameras, Views, rays
from backend.full_precision import full_precision
from backend.gaussians import Gaussians, transform
from backend.mamba import CHUNK, EPSILON, SEGMENT, Mamba2Config, MambaBlock, widened
from backend.models.long_lrm_cameras import set_up
from backend.models.long_lrm_config import PRESETS as PRESETS
from backend.models.long_lrm_config import LongLRMConfig
from backend.models.long_lrm_config import config_from as config_from

RAY_CHANNELS = 9  # RGB, moment and direction of the pixel's ray
MLP_RATIO = 4
MAX_SH_DEGREE = 3  # of Gaussians outside the network
MIN_VIEWS = 1
MAX_VIEWS = 32  # of more views, those that stand best around the scene are used; the published weights saw 32
LONGEST_SIDE = 960  # pixels; larger pictures are reduced. The published weights saw 960x544
SIDE_MULTIPLE = 16  # pixels, of the published model; other pictures are resized a little and cropped
IGNORED = (r"perceptual_loss\..*", r"depth_anything\..*")  # networks of the training losses, which some files hold
FAINT = 0.001  # opacity up to which the published code leaves Gaussians out of files


# ---- blocks


class LayerNorm(nn.Module):
    """Without bias; computed in float32 at least, given in the weight's type."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(widened(x), x.shape[-1:], widened(self.weight), eps=EPSILON)
        return x.to(self.weight.dtype)


class Attention(nn.Module):
    """Every token attends to all others."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, heads=q.shape[-1] // self.head_dim))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim, bias=False)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.attn = Attention(dim, head_dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Processor(nn.Module):
    """All blocks, and the merges between them."""

    def __init__(self, config: LongLRMConfig) -> None:
        super().__init__()
        self.merges, self.globals = config.merge_layers, config.num_global_tokens
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.head_dim) if kind == "t" else MambaBlock(Mamba2Config(width, config.d_state))
            for kind, width in config.blocks
        )
        if self.merges:
            steps = list(zip(config.dim, config.dim[1:], strict=False))
            self.resize_blocks = nn.ModuleList(nn.Linear(width, wider) for width, wider in steps)
            self.merge_blocks = nn.ModuleList(
                nn.Conv2d(width, wider, kernel_size=2, stride=2, groups=width) for width, wider in steps
            )

    def forward(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """tokens [B,G+V*rows*cols,D] of a grid (V, rows, cols) to as many fewer as there are merges."""
        for index, block in enumerate(self.blocks):
            if index in self.merges:
                tokens, grid = self._merge(tokens, grid, self.merges.index(index))
            tokens = block(tokens)
        return tokens

    def _merge(self, tokens: Tensor, grid: tuple[int, int, int], step: int) -> tuple[Tensor, tuple[int, int, int]]:
        """Every 2x2 image tokens become one by a convolution in which each channel widens by itself."""
        views, rows, cols = grid
        resize, convolve = self.resize_blocks[step], self.merge_blocks[step]
        cast = tokens.to(next(convolve.parameters()).dtype)
        first, image = cast[:, : self.globals], cast[:, self.globals :]
        image = image.unflatten(1, grid).flatten(0, 1).permute(0, 3, 1, 2)  # [B*V,D,rows,cols]
        image = convolve(image).unflatten(0, (-1, views)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        merged = torch.cat([resize(first), image], dim=1).to(tokens.dtype)
        return merged, (views, rows // 2, cols // 2)


class TokenDecoder(nn.Sequential):
    """Norm and projection in float32 at least, whatever the weights' type: a distance hangs on the third digit of its
    logit.
    """

    def __init__(self, dim: int, numbers: int) -> None:
        super().__init__(LayerNorm(dim), nn.Linear(dim, numbers, bias=False))

    def forward(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """[...,D] to [...,numbers], or those of the numbers that `rows` says."""
        norm, project = (widened(weight) for weight in self.parameters())
        with full_precision(tokens.device):
            tokens = F.layer_norm(widened(tokens), tokens.shape[-1:], norm, eps=EPSILON)
            return F.linear(tokens, project[rows])


# ---- the network


@dataclass(frozen=True)
class PixelGaussians:
    """What the network says, before activation; N = V*H*W, by view, row and column.

    means           [B,N,3] normalised world
    log_scales      [B,N,3]
    quats           [B,N,4] wxyz, of any length
    opacity_logits  [B,N]
    sh              [B,N,K,3]
    """

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    opacity_logits: Tensor
    sh: Tensor

    def activated(self, item: int, chosen: Tensor | slice = slice(None)) -> Gaussians:
        """The chosen Gaussians of one item of the batch."""
        return Gaussians(
            means=self.means[item, chosen],
            quats=F.normalize(self.quats[item, chosen], dim=-1),
            scales=self.log_scales[item, chosen].exp(),
            opacities=self.opacity_logits[item, chosen].sigmoid(),
            sh=self.sh[item, chosen],
        )


class LongLRM(nn.Module):
    def __init__(self, config: LongLRMConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.dim[0], config.dim[-1]
        if config.num_global_tokens:
            self.global_token_init = nn.Parameter(torch.empty(1, config.num_global_tokens, first))
        self.tokenizer = nn.Linear(RAY_CHANNELS * config.patch_size**2, first, bias=False)
        self.input_layernorm = LayerNorm(first)
        self.processor = Processor(config)
        self.tokenDecoder = TokenDecoder(last, sum(config.channels) * config.multiple**2)
        self._initialise()

    def _initialise(self) -> None:
        """As in training; Mamba-2 blocks have initialised themselves."""
        attending = [block for block in self.processor.blocks if isinstance(block, TransformerBlock)]
        for part in (self.tokenizer, self.tokenDecoder, *attending):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        if self.config.num_global_tokens:
            nn.init.trunc_normal_(self.global_token_init, std=0.02)

    def forward(self, images: Tensor, c2w: Tensor, intrinsics: Tensor) -> PixelGaussians:
        """One Gaussian a pixel.

        images      [B,V,3,H,W] 0..1, H and W multiples of `config.multiple`
        c2w         [B,V,4,4] OpenCV, normalised world
        intrinsics  [B,V,4] fx, fy, cx, cy in pixels
        """
        rays_o, rays_d = self.rays(c2w, intrinsics, images.shape[-2:])  # [B,V,H,W,3] each
        tokens = self.encode(images, rays_o, rays_d)  # [B,V*H/P*W/P,D]
        return self.decode(tokens, rays_o, rays_d)

    def rays(self, c2w: Tensor, intrinsics: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Origins and unit directions [B,V,H,W,3] in the normalised world, in float32 at least."""
        wide = torch.promote_types(self.tokenizer.weight.dtype, torch.float32)
        c2w, intrinsics = c2w.to(wide), intrinsics.to(wide)
        Ks = torch.eye(3, dtype=wide, device=c2w.device).repeat(*c2w.shape[:2], 1, 1)
        Ks[..., [0, 1], [0, 1]], Ks[..., :2, 2] = intrinsics[..., :2], intrinsics[..., 2:]
        flat = torch.zeros(Ks.shape[:2].numel(), dtype=torch.bool, device=c2w.device)
        cameras = Cameras(c2w.flatten(0, 1), Ks.flatten(0, 1), flat, height=size[0], width=size[1])
        with full_precision(c2w.device):
            rays_o, rays_d = rays(cameras)
        return rays_o.unflatten(0, c2w.shape[:2]), rays_d.unflatten(0, c2w.shape[:2])

    def encode(self, images: Tensor, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """[B,V*H/P*W/P,D] tokens, by view, row and column, from pictures and their rays."""
        patches = self._patches(images, rays_o, rays_d)  # [B,V*rows*cols,9pp]
        tokens = self.tokenizer(patches.to(self.tokenizer.weight.dtype))
        if self.config.num_global_tokens:
            tokens = torch.cat([self.global_token_init.expand(len(tokens), -1, -1).to(tokens), tokens], dim=1)
        tokens = widened(self.input_layernorm(tokens))  # [B,G+V*rows*cols,D]
        grid = (images.shape[1], *(side // self.config.patch_size for side in images.shape[-2:]))
        return self.processor(tokens, grid)[:, self.config.num_global_tokens :]

    def _patches(self, images: Tensor, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """[B,V*rows*cols,9pp]: the pixels of a patch by row and column, each with its nine channels together."""
        rgb = 2 * images.to(rays_d).permute(0, 1, 3, 4, 2) - 1
        pixels = torch.cat([rgb, torch.linalg.cross(rays_o, rays_d), rays_d], dim=-1)  # [B,V,H,W,9]
        p = self.config.patch_size
        pixels = pixels.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B,V,rows,p,cols,p,9]
        return pixels.transpose(3, 4).flatten(4).flatten(1, 3)

    def decode(self, tokens: Tensor, rays_o: Tensor, rays_d: Tensor) -> PixelGaussians:
        """tokens [B,V*H/P*W/P,D] and their pixels' rays [B,V,H,W,3]; views may be decoded a few at a time."""
        raw = self.pixels(self.tokenDecoder(tokens), rays_d.shape[1:4])  # [B,V,H,W,C]
        return self.unpack(raw.flatten(1, 3), rays_o.flatten(1, 3), rays_d.flatten(1, 3))

    def opacity_logits(self, tokens: Tensor, size: tuple[int, ...]) -> Tensor:
        """[B,V*H*W], without the rest of the head; size (V, H, W)."""
        last, count = sum(self.config.channels) - 1, sum(self.config.channels)
        raw = self.pixels(self.tokenDecoder(tokens, slice(last, None, count)), size)
        return raw.flatten(1) + self.config.opacity_bias

    def pixels(self, decoded: Tensor, size: tuple[int, ...]) -> Tensor:
        """[B,T,PPC] of patches to [B,V,H,W,C]; size (V, H, W)."""
        P = self.config.multiple
        views, height, width = size
        patches = decoded.unflatten(2, (P, P, -1)).unflatten(1, (views, height // P, width // P))
        return patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def unpack(self, raw: Tensor, rays_o: Tensor, rays_d: Tensor) -> PixelGaussians:
        """raw [B,N,C] and rays [B,N,3] to Gaussians. Distances are taken along the ray."""
        config = self.config
        position, colour, scale, quats, opacity = raw.split(config.channels, dim=-1)
        if config.align_to_pixel:
            distance = config.max_dist * position.mean(-1, keepdim=True).sigmoid()
            position = rays_o + distance * rays_d
        return PixelGaussians(
            means=position,
            log_scales=(scale + config.scale_bias).clamp(max=config.scale_max),
            quats=quats,
            opacity_logits=opacity[..., 0] + config.opacity_bias,
            sh=colour.unflatten(-1, (-1, 3)),
        )


# ---- from views to Gaussians in their world


@dataclass(frozen=True)
class Pruning:
    """Which of N Gaussians are kept: the most opaque.

    drop         share that is left out. Published: 0.6
    lot          share of the kept ones that is drawn by lot from all but the most opaque. Published: 0.1
    min_opacity  those fainter are left out as well
    seed         of the lot
    """

    drop: float = 0.0
    lot: float = 0.0
    min_opacity: float = FAINT
    seed: int = 0

    def choose(self, opacity_logits: Tensor) -> Tensor:
        """Indices into [N], the most opaque first, those drawn by lot last."""
        count, kept = len(opacity_logits), 1 - self.drop
        drawn = kept * self.lot
        ranked = opacity_logits.argsort(descending=True)
        best, rest = ranked.tensor_split([int(count * (kept - drawn))])
        lots = torch.rand(count, generator=torch.Generator().manual_seed(self.seed)).to(ranked.device)
        lucky = rest[lots[rest].topk(int(count * drawn)).indices]
        chosen = torch.cat([best, lucky])
        return chosen[opacity_logits[chosen].sigmoid() >= self.min_opacity]


@torch.no_grad()
def reconstruct(
    model: LongLRM,
    views: Views,
    *,
    pruning: Pruning | None = None,
    most_views: int = MAX_VIEWS,
    longest_side: int = LONGEST_SIDE,
) -> Gaussians:
    """Gaussians in the world of the views, float32, on the model's device.

    views         any number of perspective views, of any size: over white, resized and cropped to whole patches
    pruning       None: the published rule with the model's own shares
    most_views    of more, those that stand best around the scene are used
    longest_side  pixels; larger pictures are reduced
    Raises BadInput for views that the network cannot take.
    """
    config = model.config
    if config.sh_degree > MAX_SH_DEGREE:
        raise BadInput(f"sh_degree: expected at most {MAX_SH_DEGREE}, found {config.sh_degree}")
    if len(views) < MIN_VIEWS or most_views < MIN_VIEWS:
        raise BadInput(f"views: Long-LRM expects at least {MIN_VIEWS}, found {min(len(views), most_views)}")
    if pruning is None:
        pruning = Pruning(config.prune_ratio, config.random_ratio)
    ready = set_up(
        views.to(model.tokenizer.weight.device),
        multiple=config.multiple,
        scene_scale=config.scene_scale,
        most_views=most_views,
        longest_side=longest_side,
    )
    K = ready.cameras.Ks
    intrinsics = torch.cat([K[:, [0, 1], [0, 1]], K[:, :2, 2]], dim=-1)
    rays_o, rays_d = model.rays(ready.cameras.c2w[None], intrinsics[None], ready.images.shape[-2:])
    tokens = model.encode(ready.images[None], rays_o, rays_d)
    count, height, width = rays_d.shape[1:4]
    kept = torch.zeros(count * height * width, dtype=torch.bool, device=tokens.device)
    kept[pruning.choose(model.opacity_logits(tokens, (count, height, width))[0])] = True
    parts = []
    # View by view: most of what the head says is left out, and so it is never all there at once.
    for view, chosen in enumerate(kept.unflatten(0, (count, -1))):
        own = slice(view, view + 1)
        pixels = model.decode(tokens.unflatten(1, (count, -1))[:, view], rays_o[:, own], rays_d[:, own])
        parts.append(transform(pixels.activated(0, chosen), ready.to_world))
    return _joined(parts)


def _joined(parts: list[Gaussians]) -> Gaussians:
    """All parts, which are of one degree, as one, in float32."""
    return Gaussians(*(torch.cat([getattr(part, field.name) for part in parts]).float() for field in fields(Gaussians)))


def memory_needed(config: LongLRMConfig, views: int, height: int, width: int, bytes_per_number: int) -> int:
    """Bytes at the peak of `reconstruct`, weights included, about; for views of the size that the network gets.

    On a CPU; CUDA takes up to 1 GiB more, for scans of longer segments at once.
    """
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in LongLRM(config).parameters()) * bytes_per_number
    wide, pixels, numbers = max(4, bytes_per_number), views * height * width, sum(config.channels)
    kept = 9 * pixels * wide  # pictures and rays
    making_rays = 20 * pixels * wide
    patches = 3 * RAY_CHANNELS * pixels * wide
    trunk = max(_block_memory(config, index, pixels, bytes_per_number) for index in range(config.num_layers))
    ranking = 12 * pixels * wide
    gaussians = int(2 * (1 - config.prune_ratio) * pixels * numbers * wide)
    one_view = (3 * height * width + config.multiple**2 * config.dim[-1]) * numbers * wide
    return weights + kept + max(making_rays, patches, trunk, ranking, gaussians + one_view)


def _block_memory(config: LongLRMConfig, index: int, pixels: int, narrow: int) -> int:
    """Bytes at the peak of one block; the longest of its values count, each as often as it is there at a time."""
    kind, width = config.blocks[index]
    merges = sum(index >= merge for merge in config.merge_layers)
    tokens = pixels // (config.patch_size * 2**merges) ** 2 + config.num_global_tokens
    wide = max(4, narrow)
    if kind == "t":
        return tokens * width * (2 * wide + (2 + 2 * MLP_RATIO) * narrow)
    mixer = Mamba2Config(width, config.d_state)
    segment = min(tokens, SEGMENT["cpu"])
    scan = segment * (3 * mixer.heads * CHUNK + 8 * mixer.channels) + 6 * mixer.state * mixer.inner
    return tokens * (2 * width * wide + (width + mixer.projected + 3 * mixer.inner) * narrow) + scan * wide
