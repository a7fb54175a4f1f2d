"""Colours of surfaces in a uniform white world: filtered textures, and what diffuse, glossy and metal surfaces return.

All colours here are linear. In white surroundings a surface's colour is its albedo, dimmed where others stand before
the surroundings and lit again by what those return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backend.assets import Material

LEVELS = 13  # halvings of the largest texture, 4096, down to one texel
DIELECTRIC = 0.04  # reflectance straight on, of a refractive index of 1.5


@dataclass(frozen=True)
class Materials:
    """M materials on a device.

    base_color   [4,M] linear, alpha
    gloss        [2,M] roughness, metallic
    texels       [4,L] float32, linear, premultiplied: every texture and its halvings, one after another
    levels       [3,M,LEVELS] int64, first texel, height and width of each level; the last level is repeated
    see_through  whether any texel or colour has an alpha below 1
    """

    base_color: Tensor
    gloss: Tensor
    texels: Tensor
    levels: Tensor
    see_through: bool

    def colour(self, material: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """[4,S] linear colour, straight alpha, of materials [S] at u, v [S], filtered over 2^level [S] texels."""
        level = level.round().clamp(0, LEVELS - 1).long()
        start, height, width = self.levels.flatten(1).index_select(1, material * LEVELS + level)
        x, y = u * width - 0.5, (1 - v) * height - 0.5
        left, top = x.floor(), y.floor()
        left_column, right_column = ((left + step).long().remainder(width) for step in (0, 1))
        upper_row, lower_row = (start + (top + step).long().remainder(height) * width for step in (0, 1))
        above, below = (
            torch.lerp(self._texels(row + left_column), self._texels(row + right_column), x - left)
            for row in (upper_row, lower_row)
        )
        texel = torch.lerp(above, below, y - top)
        texel[:3] /= texel[3].clamp_min(1e-6)
        return texel * self.base_color.index_select(1, material)

    def _texels(self, numbers: Tensor) -> Tensor:
        return self.texels.index_select(1, numbers)


def materials_on(device: torch.device | str, materials: Sequence[Material]) -> Materials:
    """The materials with their textures' halvings; a texture that several share is stored once."""
    places: dict[int, list[tuple[int, int, int]]] = {}  # by identity of the texture
    texels, length = [], 0
    for material in materials:
        if id(material.texture) in places:
            continue
        levels = _halvings(_linear(material.texture, device))
        places[id(material.texture)] = []
        for level in levels:
            places[id(material.texture)].append((length, level.shape[1], level.shape[2]))
            length += level[0].numel()
        texels += [level.flatten(1) for level in levels]
    tables = [places[id(material.texture)] for material in materials]
    tables = [[table[min(level, len(table) - 1)] for level in range(LEVELS)] for table in tables]
    colours = torch.tensor([material.base_color for material in materials], dtype=torch.float32, device=device)
    gloss = torch.tensor([(material.roughness, material.metallic) for material in materials], device=device)
    all_texels = torch.cat(texels, dim=1)
    return Materials(
        base_color=colours.T.contiguous(),
        gloss=gloss.T.contiguous(),
        texels=all_texels,
        levels=torch.tensor(tables, device=device).permute(2, 0, 1).contiguous(),
        see_through=bool((all_texels[3] < 0.999).any() or (colours[:, 3] < 1).any()),
    )


def _linear(texture: np.ndarray | None, device: torch.device | str) -> Tensor:
    """[4,h,w] float32 linear, premultiplied, of a uint8 sRGB texture [h,w,3|4]; one white texel for none."""
    if texture is None:
        return torch.ones(4, 1, 1, device=device)
    bytes_ = torch.tensor(texture, device=device).permute(2, 0, 1).long().contiguous()
    table = torch.arange(256, device=device) / 255
    linear = torch.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    alpha = bytes_[3:] / 255 if len(bytes_) == 4 else torch.ones_like(bytes_[:1], dtype=torch.float32)
    return torch.cat([linear.take(bytes_[:3]) * alpha, alpha])


def _halvings(texture: Tensor) -> list[Tensor]:
    levels = [texture]
    while max(levels[-1].shape[1:]) > 1:
        height, width = (max(1, side // 2) for side in levels[-1].shape[1:])
        levels.append(F.interpolate(levels[-1][None], size=(height, width), mode="area")[0])
    return levels


def encode_srgb(linear: Tensor) -> Tensor:
    """Linear 0..1 to sRGB 0..1."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def in_white_world(base: Tensor, gloss: Tensor, cosine: Tensor, openness: Tensor) -> Tensor:
    """[3,S] light that surfaces return.

    base      [3,S] albedo, or a metal's reflectance straight on
    gloss     [2,S] roughness and metallic
    cosine    [S] between the normal and the direction to the camera, 0..1
    openness  [S] cosine-weighted share of the white surroundings that is seen, 0..1
    """
    roughness, metallic = gloss
    coat = _mirrored(torch.full_like(base[:1], DIELECTRIC), roughness, cosine)
    shown = torch.lerp(base * (1 - coat) + coat, _mirrored(base, roughness, cosine), metallic)
    return shown * with_bounces(openness, base)


def _mirrored(straight: Tensor, roughness: Tensor, cosine: Tensor) -> Tensor:
    """[C,S] share of white surroundings that a rough surface mirrors, several times between its facets included.

    straight  [C,S] the share that it mirrors straight on

    A fit of the share for one reflection by Karis ("Physically based shading on mobile", 2014); the rest as Fdez-Agüera
    ("A multiple-scattering microfacet model for real-time image-based lighting", 2019).
    """
    rest = 1 - roughness
    sharp = torch.minimum(rest.square(), torch.exp2(-9.28 * cosine)) * rest + 0.0425 - 0.0275 * roughness
    scale = 1.04 - 0.572 * roughness - 1.04 * sharp
    bias = (1.04 * sharp + 0.022 * roughness - 0.04).clamp_min(0)
    whole = (scale + bias).clamp(1e-3, 1)
    return ((straight * scale + bias) * (1 + straight * (1 / whole - 1))).clamp(0, 1)


def with_bounces(openness: Tensor, albedo: Tensor) -> Tensor:
    """The light that arrives where a share of white surroundings is seen and the rest has this albedo.

    A fit by Jimenez et al. ("Practical realtime strategies for accurate indirect occlusion", 2016).
    """
    a, b, c = 2.0404 * albedo - 0.3324, 0.6417 - 4.7951 * albedo, 2.7552 * albedo + 0.6903
    return torch.maximum(openness, ((openness * a + b) * openness + c) * openness).clamp_max(1)
