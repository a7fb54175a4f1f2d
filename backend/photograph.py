"""Pictures of objects as Blender's Cycles makes them in a uniform white world, made by rasterising.

Every pixel has 2x2 samples. The surroundings have strength 1, the view transform is "Standard" (plain sRGB), the film
is transparent. A material with an alpha between 0 and 1 covers as many of a pixel's samples as its alpha says: what is
half see-through is so in the picture, and every layer has its depth, without any sorting.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend import ambient, triangles
from backend.assets import Asset
from backend.cameras import Cameras
from backend.shading import Materials, encode_srgb, in_white_world, materials_on
from backend.triangles import Mesh

FINE = 2  # samples along a pixel's side
THRESHOLDS = ((0.125, 0.625), (0.875, 0.375))  # alpha from which a material covers a sample, by its place in the pixel
LAYERS = 8  # see-through surfaces before one another, at most
SAMPLES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 25}  # on a CPU, what the caches hold
PLACE, NORMAL, UV = slice(0, 3), slice(3, 6), slice(6, 8)  # columns of a corner's values


@dataclass(frozen=True)
class Photographs:
    """What V cameras see.

    images   [V,H,W,4] float32, 0..1, sRGB, straight alpha; colour 0 where alpha is 0
    depth    [V,H,W] float32, planar, scene units: of the nearest of a pixel's samples, moved on its triangle to the
             pixel's centre; 0 where the pixel has none
    normals  [V,H,W,3] float32, world, unit, of the same place, on the side of the camera; 0 where the pixel has none
    """

    images: Tensor
    depth: Tensor
    normals: Tensor


@dataclass(frozen=True)
class Models:
    """B assets on a device, with the light on their surfaces. Faces and materials are numbered through all of them.

    meshes    B, whose faces have the corner opposite their shortest side first
    values    [24,F] float32: place, normal and uv of the first corner, of the second and of the third
    material  [F] int64
    texels    [2,F] float32: texels that the face covers in its texture, and its least height there in texels
    """

    meshes: tuple[Mesh, ...]
    values: Tensor
    material: Tensor
    texels: Tensor
    materials: Materials
    openness: ambient.Openness


@dataclass(frozen=True)
class _Shot:
    """Models before V cameras, whose pictures have the samples as pixels."""

    models: Models
    cameras: Cameras
    outlines: triangles.Outlines
    table: Tensor  # of triangles.weight_table


@dataclass(frozen=True)
class _Spots:
    """S places in the pictures: x, y, views, faces, pairs [S]; weights [3,S]; values [8,S] as at a corner."""

    x: Tensor
    y: Tensor
    views: Tensor
    faces: Tensor
    pairs: Tensor
    weights: Tensor
    values: Tensor


def photograph(asset: Asset, cameras: Cameras, device: torch.device | str = "cpu") -> Photographs:
    """Pictures of an asset, on the device. The same asset looks the same in every call: nothing here is random."""
    return photograph_all([asset], [cameras], device)[0]


def photograph_all(
    assets: Sequence[Asset], cameras: Sequence[Cameras], device: torch.device | str = "cpu"
) -> list[Photographs]:
    """Pictures of each asset by its own cameras, on the device; all of one size. A GPU takes several at once."""
    limit = SAMPLES_AT_ONCE[torch.device(device).type]
    results, group, total = [], [], 0
    for asset, own in zip(assets, cameras, strict=True):
        samples = len(own) * own.width * own.height * FINE**2
        if group and total + samples > limit:
            results += _photograph_group(group, device, limit)
            group, total = [], 0
        group.append((asset, own.to(device)))
        total += samples
    return results + (_photograph_group(group, device, limit) if group else [])


def _photograph_group(
    group: Sequence[tuple[Asset, Cameras]], device: torch.device | str, limit: int
) -> list[Photographs]:
    models = prepare([asset for asset, _ in group], device)
    first = group[0][1]
    step = max(1, limit // (first.width * first.height * FINE**2))  # with several assets, more than each has cameras
    parts = [
        _shoot(models, [own[start : start + step] for _, own in group])
        for start in range(0, max(len(own) for _, own in group), step)
    ]
    return [
        Photographs(
            images=torch.cat([part[number].images for part in parts]),
            depth=torch.cat([part[number].depth for part in parts]),
            normals=torch.cat([part[number].normals for part in parts]),
        )
        for number in range(len(group))
    ]


def prepare(assets: Sequence[Asset], device: torch.device | str = "cpu") -> Models:
    """Assets on the device, with the light on their surfaces."""
    parts = [_mesh(asset, device) for asset in assets]
    meshes, corners = tuple(mesh for mesh, _ in parts), torch.cat([values for _, values in parts])  # [F,3,8]
    firsts = itertools.accumulate([len(asset.materials) for asset in assets], initial=0)
    numbers = [asset.face_material + first for asset, first in zip(assets, firsts, strict=False)]
    material = torch.from_numpy(np.concatenate(numbers)).to(device).long()
    materials = materials_on(device, [material for asset in assets for material in asset.materials])
    texels = _in_texture(corners[..., UV] * materials.levels[[2, 1], :, 0].T[material][:, None])
    u, v = corners[..., UV].mean(1).unbind(1)
    solid = materials.colour(material, u, v, 0.5 * texels[0].clamp_min(1).log2())[3] >= 0.5  # on the whole
    chosen = solid.split([len(mesh.faces) for mesh in meshes])
    occluders = [Mesh(mesh.vertices, mesh.faces[mask]) for mesh, mask in zip(meshes, chosen, strict=True)]
    values = corners.flatten(1).T.contiguous()
    return Models(meshes, values, material, texels, materials, ambient.openness(meshes, occluders))


def _mesh(asset: Asset, device: torch.device | str) -> tuple[Mesh, Tensor]:
    """The asset's mesh and the values [F,3,8] of its corners."""
    vertices, faces = torch.from_numpy(asset.vertices), torch.from_numpy(asset.faces).long()
    values = torch.cat([vertices[faces], torch.from_numpy(asset.normals), torch.from_numpy(asset.uvs)], dim=-1)
    turn = (ambient.apex_first(vertices[faces])[:, None] + torch.arange(3)) % 3  # [F,3]
    values = values.gather(1, turn[..., None].expand(-1, -1, 8))
    return Mesh(vertices.to(device), faces.gather(1, turn).to(device)), values.to(device)


def _in_texture(places: Tensor) -> Tensor:
    """[2,F] area and least height of triangles [F,3,2] in texels."""
    a, b = places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]
    area = 0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()
    longest = torch.stack([a, b, a - b]).square().sum(-1).amax(0).sqrt()
    return torch.stack([area, 2 * area / longest.clamp_min(1e-6)])


def _shoot(models: Models, cameras: Sequence[Cameras]) -> list[Photographs]:
    """Pictures of each model by its cameras."""
    joined = Cameras(
        c2w=torch.cat([own.c2w for own in cameras]),
        Ks=torch.cat([own.Ks for own in cameras]),
        orthographic=torch.cat([own.orthographic for own in cameras]),
        width=cameras[0].width,
        height=cameras[0].height,
    ).resized(cameras[0].width * FINE, cameras[0].height * FINE)
    outlines = triangles.outline(models.meshes, [joined[part] for part in _slices([len(own) for own in cameras])])
    shot = _Shot(models, joined, outlines, triangles.weight_table(outlines))
    hits = triangles.nearest(outlines)
    if models.materials.see_through:
        hits = _without_gaps(shot, hits)
    depth, normals = _geometry(shot, hits)
    images = _images(shot, hits)
    return [Photographs(images[part], depth[part], normals[part]) for part in _slices([len(own) for own in cameras])]


def _slices(counts: Sequence[int]) -> list[slice]:
    return [slice(a, b) for a, b in itertools.pairwise(itertools.accumulate(counts, initial=0))]


# ---- colour


def _images(shot: _Shot, hits: triangles.Hits) -> Tensor:
    """[V,H,W,4] sRGB, straight alpha: means over the samples of linear light."""
    spots, where = _spots(shot, hits.faces)
    light = torch.zeros(hits.faces.numel(), 4, device=where.device)
    light.index_copy_(0, where, torch.cat([_light(shot, spots), torch.ones_like(spots.weights[:1])]).T.contiguous())
    light = light.view(-1, FINE, shot.cameras.width // FINE, FINE * 4)  # [V*H,2,W,2*4]
    light = light[:, 0] + light[:, 1]
    light = (light[..., :4] + light[..., 4:]) / FINE**2
    alpha = light[..., 3:]
    images = torch.cat([encode_srgb(light[..., :3] / alpha.clamp_min(1e-6)), alpha], dim=-1)
    return images.view(len(shot.cameras), -1, *images.shape[1:])


def _light(shot: _Shot, spots: _Spots) -> Tensor:
    """[3,S] linear light that comes from the spots."""
    models = shot.models
    inner = _seen_from_inside(shot, spots)
    normals, towards = spots.values[NORMAL], _towards(shot.cameras, spots)
    cosine = (normals * towards).sum(0) * (normals.square().sum(0) * towards.square().sum(0)).clamp_min(1e-20).rsqrt()
    return in_white_world(
        _colour(shot, spots)[:3],
        models.materials.gloss.index_select(1, models.material.index_select(0, spots.faces)),
        torch.where(inner, -cosine, cosine).clamp(0, 1),
        models.openness.at(spots.faces, spots.weights, inner.long()),
    )


def _colour(shot: _Shot, spots: _Spots) -> Tensor:
    """[4,S] the materials' linear colours, straight alpha, filtered over a sample.

    But never over more than the face is high in its texture: many textures are palettes of unrelated colours.
    """
    pixels = shot.outlines.areas.index_select(0, spots.pairs).abs().clamp_min(1e-6)
    texels, height = shot.models.texels.index_select(1, spots.faces)
    level = torch.minimum(0.5 * (texels / pixels).clamp_min(1).log2(), height.clamp_min(1).log2())
    material = shot.models.material.index_select(0, spots.faces)
    return shot.models.materials.colour(material, spots.values[6], spots.values[7], level)


def _towards(cameras: Cameras, spots: _Spots) -> Tensor:
    """[3,S] directions to the cameras, of any length."""
    centres, backward = (part.T.index_select(1, spots.views) for part in (cameras.centres, -cameras.c2w[:, :3, 2]))
    return torch.where(cameras.orthographic.index_select(0, spots.views), backward, centres - spots.values[PLACE])


def _seen_from_inside(shot: _Shot, spots: _Spots) -> Tensor:
    """[S] bool."""
    return shot.outlines.areas.index_select(0, spots.pairs) > 0


def _without_gaps(shot: _Shot, hits: triangles.Hits) -> triangles.Hits:
    """Hits that lie behind what is see-through at a sample."""
    thresholds = torch.tensor(THRESHOLDS, device=hits.depth.device).flatten()
    width = shot.cameras.width
    for _ in range(LAYERS):
        spots, where = _spots(shot, hits.faces)
        threshold = thresholds.take(where // width % FINE * FINE + where % FINE)
        gaps = where[_colour(shot, spots)[3] < threshold]
        if len(gaps) == 0:
            break
        beyond = torch.full_like(hits.depth, torch.inf)
        beyond.view(-1)[gaps] = hits.depth.view(-1)[gaps]
        behind = triangles.nearest(shot.outlines, beyond=beyond)
        through = beyond < torch.inf
        hits = triangles.Hits(
            torch.where(through, behind.faces, hits.faces), torch.where(through, behind.depth, hits.depth)
        )
    return hits


# ---- geometry


def _geometry(shot: _Shot, hits: triangles.Hits) -> tuple[Tensor, Tensor]:
    """Depth [V,H,W] and normals [V,H,W,3] at the pixels' centres, of the face of each pixel's nearest sample.

    That face's plane can be steep: the depth stays between those of the pixel's samples.
    """
    least, most, faces = torch.where(hits.faces >= 0, hits.depth, torch.inf), hits.depth, hits.faces
    for across in (1, 2):  # of two neighbours each time, first in the rows, then in the columns
        first, second = ((slice(None), *((slice(None),) * (2 - across)), slice(start, None, 2)) for start in (0, 1))
        faces = torch.where(least[second] < least[first], faces[second], faces[first])
        least, most = torch.minimum(least[first], least[second]), torch.maximum(most[first], most[second])
    spots, where = _spots(shot, faces)
    plane = triangles.plane_depth(shot.outlines, spots.pairs, spots.x, spots.y)
    bounds = (part.flatten().index_select(0, where) for part in (least, most))
    depth = torch.zeros_like(least).flatten().index_copy_(0, where, plane.clamp(*bounds)).view(faces.shape)
    normals = spots.values[NORMAL] * spots.values[NORMAL].square().sum(0).clamp_min(1e-20).rsqrt()
    normals = torch.where(_seen_from_inside(shot, spots), -normals, normals)
    everywhere = normals.new_zeros(faces.numel(), 3).index_copy_(0, where, normals.T.contiguous())
    return depth, everywhere.view(*faces.shape, 3)


def _spots(shot: _Shot, faces: Tensor) -> tuple[_Spots, Tensor]:
    """The middles of the filled cells of a grid of faces [V,H,W] laid over the pictures, and the cells' numbers [S]."""
    _, height, width = faces.shape
    size = shot.cameras.width / width  # samples of a cell's side
    flat = faces.flatten()
    where = (flat >= 0).nonzero()[:, 0]
    chosen, view, cell = flat.index_select(0, where).long(), where // (height * width), where % (height * width)
    x, y = (cell % width + 0.5) * size, (cell // width + 0.5) * size
    pairs = chosen + shot.outlines.offsets.index_select(0, view)
    weights = triangles.weights(shot.table, pairs, x, y)
    corners = shot.models.values.index_select(1, chosen).view(3, 8, -1)
    values = corners[0] * weights[0] + corners[1] * weights[1] + corners[2] * weights[2]
    return _Spots(x, y, view, chosen, pairs, weights, values), where
