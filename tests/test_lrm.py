"""OpenLRM and TripoSR against their published implementations' values, keys and file formats, and in the world."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial import KDTree
from torch import Tensor

from backend.cameras import BadInput, Cameras, Views, look_at
from backend.framing import Canonical, frame_object, object_window
from backend.gaussians import Gaussians, transform
from backend.image_encoder import DinoConfig
from backend.models import lrm, triposr
from backend.ray_marching import march_importance, march_uniform
from backend.rendering import render
from tests.ellipsoids import KnownLrm, KnownTripoSr
from tests.golden_lrm import load_openlrm, load_triposr, run_openlrm, run_triposr

FOLDERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "openlrm": run_openlrm,
    "openlrm/v10_dino": run_openlrm,
    "triposr": run_triposr,
}
LOADERS = {"openlrm": load_openlrm, "openlrm/v10_dino": load_openlrm, "triposr": load_triposr}
KNOWN = {"openlrm": KnownLrm, "triposr": KnownTripoSr}
FAMILIES: dict[str, ModuleType] = {"openlrm": lrm, "triposr": triposr}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def family_of(name: str) -> ModuleType:
    return FAMILIES[name.split("/")[0]]


# ---- the published implementations' values


@pytest.mark.parametrize("name", FOLDERS)
def test_parity(shared_folder: Path, name: str) -> None:
    folder = shared_folder / "golden" / name
    config, expected = config_of(folder), load_file(folder / "output.safetensors")
    output, worst = FOLDERS[name](folder), dict[str, float]()
    for key, value in expected.items():
        assert output[key].shape == value.shape, key
        error = (output[key] - value).abs()
        if key == "images_depth":  # of nothing there is no depth
            error = error[expected["images_weight"] > 0.01]
        relative = key in config.get("tolerance_rel", {})
        worst[key] = float((error / value.abs()).max() if relative else error.max())
        tolerance = config["tolerance_rel"][key] if relative else config["tolerance_abs"][key]
        assert worst[key] <= tolerance, f"{key}: {worst[key]:.2e} above {tolerance:.0e}"
    assert set(config["tolerance_abs"]) <= set(worst)


@pytest.mark.parametrize("name", FOLDERS)
def test_meshes_are_the_published_ones(shared_folder: Path, name: str) -> None:
    folder = shared_folder / "golden" / name
    config, expected = config_of(folder)["mesh"], load_file(folder / "mesh.safetensors")
    model, output = LOADERS[name](folder), FOLDERS[name](folder)
    mesh, colours = model.field(output["planes"][0]).mesh(16, level=config["threshold"])
    # The published mesher of TripoSR does not weld all vertices; one a crossing edge is what remains.
    assert len(mesh.vertices) == config["n_sign_change_edges"]
    assert len(mesh.faces) == config["n_faces"]
    vertices = expected["vertices"].numpy()
    nearest = KDTree(mesh.vertices).query(vertices)
    assert nearest[0].max() < 2e-4 and KDTree(vertices).query(mesh.vertices)[0].max() < 2e-4
    assert np.abs(colours[nearest[1]] - expected["colors"].numpy().clip(0, 1)).max() < 1e-3
    corner = mesh.vertices.astype(np.float64)[mesh.faces]
    cross = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    assert np.linalg.norm(cross, axis=1).sum() / 2 == pytest.approx(config["area"], rel=2e-3)
    theirs = vertices.astype(np.float64)[expected["faces"].numpy()]
    expected_volume = (np.cross(theirs[:, 0], theirs[:, 1]) * theirs[:, 2]).sum()
    assert (np.cross(corner[:, 0], corner[:, 1]) * corner[:, 2]).sum() == pytest.approx(expected_volume, rel=0.05)


def rgba(picture: Tensor) -> Tensor:
    """[H,W,4] premultiplied, of 8 bits with straight alpha."""
    straight = picture.float() / 255
    return torch.cat([straight[..., :3] * straight[..., 3:], straight[..., 3:]], dim=-1)


def test_openlrm_pictures_are_prepared_as_published(shared_folder: Path) -> None:
    golden = load_file(shared_folder / "golden/openlrm/preprocess.safetensors")
    image = lrm.prepared(rgba(golden["rgba_u8"]), golden["image"].shape[-1])
    torch.testing.assert_close(image, golden["image"], atol=2e-5, rtol=0)


def test_triposr_pictures_are_prepared_as_published(shared_folder: Path) -> None:
    golden = load_file(shared_folder / "golden/triposr/preprocess.safetensors")
    share, square = round(float(golden["foreground_ratio"]), 4), golden["foreground_rgba_u8"]
    grey = 255 * triposr.on_grey(rgba(square))
    assert (grey.to(torch.uint8).int() - golden["rgb_u8"].int()).abs().max() <= 1
    image = triposr.prepared(golden["rgb_u8"].float() / 255, 96)
    torch.testing.assert_close(image.permute(0, 2, 3, 1), golden["cond_image_96"], atol=1e-5, rtol=0)

    # A camera that looks straight at the middle of the window need not turn: the picture is cut out as it is.
    image = golden["rgba_u8"].float() / 255
    (x, y), _ = object_window(image[..., 3], share=share)
    height, width = image.shape[:2]
    K = torch.tensor([[200, 0, x], [0, 200, y], [0, 0, 1.0]])
    views = Views(image[None], Cameras(torch.eye(4)[None], K[None], torch.tensor([False]), width, height))
    framed = frame_object(views, share=share).image
    assert framed.shape == square.shape
    kept = square[..., 3].amax(1).nonzero().max() + 1, square[..., 3].amax(0).nonzero().max() + 1
    framed[kept[0]], framed[:, kept[1]] = 0, 0  # the object's last row and column, which the published code loses
    torch.testing.assert_close(framed, rgba(square), atol=1e-3, rtol=0)


# ---- the published checkpoints' keys


def dossier_keys(file: Path, columns: int) -> list[tuple[str, list[str]]]:
    """Rows of the tables of keys: a pattern with N for a layer's number, and the shape in each column."""
    rows = []
    for line in file.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        match = re.match(r"`([\w.]+\.(?:weight|bias|gamma)|[\w.]*(?:token\w*|embed\w*|_weight))`", cells[0])
        if match and len(cells) == columns + 1 and all(re.fullmatch(r"\[[\d, ]+\]|same|-", cell) for cell in cells[1:]):
            rows.append((match[1], cells[1:]))
    return rows


def dossier_shapes(rows: list[tuple[str, list[str]]], column: int, layers: dict[str, int]) -> dict[str, list[int]]:
    """layers: how many there are, by the beginning of the key."""
    shapes = {}
    for pattern, cells in rows:
        cell = cells[column]
        while cell == "same":
            column_left = cells.index("same") - 1
            cell = cells[column_left]
        if cell == "-":
            continue
        count = next((number for start, number in layers.items() if pattern.startswith(start)), 1)
        for index in range(count if ".N." in pattern else 1):
            shapes[pattern.replace(".N.", f".{index}.")] = json.loads(cell)
    return shapes


def shapes_of(network: type[torch.nn.Module], config: Any) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in network(config).state_dict().items()}


COUNTS = {
    "openlrm-small-1.1": 111_390_948,
    "openlrm-base-1.1": 260_201_972,
    "openlrm-large-1.1": 452_138_004,
    "openlrm-small-1.0": 259_365_604,
    "openlrm-base-1.0": 360_935_148,
    "openlrm-large-1.0": 451_353_876,
}


@pytest.mark.parametrize("name", COUNTS)
def test_openlrm_has_the_published_keys(shared_folder: Path, name: str) -> None:
    config = lrm.PRESETS[name]
    rows = dossier_keys(shared_folder / "dossiers/openlrm.md", 3)
    split = next(index for index, row in enumerate(rows) if row[0] == "encoder.model.embeddings.cls_token")
    layers = {"encoder": config.encoder.layers, "transformer": config.layers}
    version = rows[:split] if config.layout == "1.1" else rows[split:]
    column = ("small", "base", "large").index(name.split("-")[1])
    expected, found = dossier_shapes(version, column, layers), shapes_of(lrm.Lrm, config)
    assert found == expected
    assert sum(math.prod(shape) for shape in found.values()) == COUNTS[name]


def test_triposr_has_the_published_keys(shared_folder: Path) -> None:
    rows = dossier_keys(shared_folder / "dossiers/triposr.md", 1)
    config = triposr.PRESETS["triposr"]
    layers = {"image_tokenizer": config.encoder.layers, "backbone": config.layers}
    expected, found = dossier_shapes(rows, 0, layers), shapes_of(triposr.TripoSr, config)
    assert found == expected
    assert len(found) == 549
    assert sum(math.prod(shape) for shape in found.values()) == 419_275_628


# ---- configurations


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(config))
    *outer, last = path.split(".")
    part = config
    for key in outer:
        part = part[key]
    part[last] = value
    return config


REFUSED = [
    ("openlrm", "family", "lgm"),
    ("openlrm", "layout_version", "2.0"),
    ("openlrm", "novelty", 1),
    ("openlrm", "model.novelty", 1),
    ("openlrm", "model.transformer_heads", 5),
    ("openlrm", "model.transformer_dim", 48.5),
    ("openlrm", "model.transformer_layers", 0),
    ("openlrm", "model.triplane_high_res", 24),
    ("openlrm", "model.encoder_feat_dim", 25),
    ("openlrm", "encoder.type", "clip"),
    ("openlrm", "encoder.num_heads", 5),
    ("openlrm", "encoder.layer_scale", "yes"),
    ("openlrm", "transformer.attention_bias", True),
    ("openlrm", "transformer.block", "mlp first"),
    ("openlrm", "decoder.activation", "silu"),
    ("openlrm", "decoder.density", "exp(raw)"),
    ("openlrm", "render.box", [-2.0, 2.0]),
    ("openlrm", "render.samples_fine", 13),
    ("openlrm/v10_dino", "encoder.hidden_act", "relu"),
    ("openlrm/v10_dino", "encoder.image_mean", [0.5, 0.5]),
    ("triposr", "image_tokenizer.hidden_act", "gelu_new"),
    ("triposr", "backbone.activation_fn", "relu"),
    ("triposr", "backbone.cross_attention_dim", 32),
    ("triposr", "backbone.norm_num_groups", 31),
    ("triposr", "post_processor.in_channels", 32),
    ("triposr", "decoder.activation", "tanh"),
    ("triposr", "decoder.in_channels", 25),
    ("triposr", "renderer.feature_reduction", "mean"),
    ("triposr", "renderer.density_activation", "softplus"),
    ("triposr", "renderer.radius", "wide"),
]


@pytest.mark.parametrize(("name", "path", "value"), REFUSED)
def test_what_a_config_says_and_we_have_not_is_refused_by_name(
    shared_folder: Path, name: str, path: str, value: Any
) -> None:
    config = config_of(shared_folder / "golden" / name)
    family_of(name).config_from(config)
    # Some contradict another field; the sentence names either by its last word.
    words = {"model.transformer_heads": "transformer_dim", "encoder.num_heads": "encoder"}
    words |= {"backbone.norm_num_groups": "num_channels"}
    with pytest.raises(BadInput, match=words.get(path, path.split(".")[-1])):
        family_of(name).config_from(changed(config, path, value))


@pytest.mark.parametrize("name", FOLDERS)
def test_what_a_config_lacks_is_named(shared_folder: Path, name: str) -> None:
    config = config_of(shared_folder / "golden" / name)
    for section in ("model", "encoder", "decoder") if name != "triposr" else ("tokenizer", "backbone", "renderer"):
        with pytest.raises(BadInput, match=section):
            family_of(name).config_from({key: value for key, value in config.items() if key != section})


VARIANTS = [
    ("openlrm", {"encoder.num_register_tokens": 0, "encoder.layer_scale": False, "encoder.interpolate_offset": 0.1}),
    ("openlrm", {"layout_version": "1.0", "encoder.interpolate_antialias": False, "encoder.mlp_ratio": 3}),
    ("openlrm", {"model.transformer_dim": 24, "decoder.num_linear_layers": 2, "decoder.hidden_dim": 7}),
    ("openlrm", {"model.triplane_low_res": 3, "model.triplane_high_res": 6, "transformer.mlp_ratio": 2}),
    ("openlrm/v10_dino", {"layout_version": "1.1", "encoder.patch_size": 14, "encoder.qkv_bias": False}),
    ("openlrm/v10_dino", {"image_size": 120, "encoder.intermediate_size": 40, "model.camera_embed_dim": 5}),
    ("triposr", {"backbone.attention_head_dim": 8, "backbone.norm_num_groups": 4, "decoder.activation": "relu"}),
    ("triposr", {"image_tokenizer.has_unused_pooler": False, "tokenizer.plane_size": 5, "cond_image_size": 64}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_other_configurations_work(shared_folder: Path, name: str, changes: dict[str, Any]) -> None:
    data = config_of(shared_folder / "golden" / name)
    for path, value in changes.items():
        data = changed(data, path, value)
    family = family_of(name)
    config = family.config_from(data)
    model = (lrm.Lrm if family is lrm else triposr.TripoSr)(config)
    image = torch.rand(1, 3, config.image_size, config.image_size)
    planes = model(image, lrm.source_camera()[None]) if family is lrm else model(image)
    assert planes.shape == (1, 3, config.plane_channels, 2 * config.plane_side, 2 * config.plane_side)
    density, colour = model.field(planes[0]).query(torch.zeros(5, 3))
    assert density.shape == (5,) and colour.shape == (5, 3) and bool(density.isfinite().all())


# ---- precision


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.4)])
def test_all_precisions(shared_folder: Path, name: str, dtype: torch.dtype, tolerance: float) -> None:
    folder = shared_folder / "golden" / name
    expected = load_file(folder / "output.safetensors")["planes"]
    given = load_file(folder / "input.safetensors")
    model = LOADERS[name](folder).to(dtype)
    with torch.no_grad():
        if name == "triposr":
            planes = model(triposr.prepared(given["image_hwc"], model.config.image_size))
        else:
            planes = model(given["image"], given["source_camera"])
        field = model.field(planes[0])
        density, colour = field.query(given["points"].reshape(-1, 3))
    assert planes.dtype == dtype
    assert (planes.float() - expected).abs().max() < tolerance * expected.abs().max()
    assert density.dtype == colour.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    splats = family_of(name).reconstruct(model, asymmetric_views())
    assert all(getattr(splats, field).dtype == torch.float32 for field in ("means", "quats", "scales", "sh"))
    assert bool(splats.finite.all()) and len(splats) > 100


# ---- in the world


def asymmetric_views(count: int = 1, *, size: int = 40) -> Views:
    """A letter L, red at its foot, from cameras that look at (0.3, 0.2, 0)."""
    image = torch.zeros(size, size, 4)
    part = size // 20
    image[4 * part : 16 * part, 5 * part : 8 * part] = torch.tensor([0.2, 0.4, 0.9, 1.0])
    image[13 * part : 16 * part, 5 * part : 14 * part] = torch.tensor([0.9, 0.2, 0.1, 1.0])
    angles = torch.arange(count) * 1.3
    centres = torch.stack([3 * angles.sin(), -3 * angles.cos(), 0.5 + 0.3 * angles], dim=-1)
    K = torch.tensor([[1.2 * size, 0, size / 2], [0, 1.2 * size, size / 2], [0, 0, 1]]).expand(count, 3, 3)
    c2w = look_at(centres, torch.tensor([0.3, 0.2, 0.0]))
    images = torch.stack([image * torch.tensor([1, 1 - 0.3 * index, 1, 1]) for index in range(count)])
    return Views(images, Cameras(c2w, K.clone(), torch.zeros(count, dtype=torch.bool), size, size))


def similarity() -> Tensor:
    turn = look_at(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), torch.zeros(3, dtype=torch.float64))[0]
    turn[:3, :3] *= 2.5
    turn[:3, 3] = torch.tensor([10.0, -20.0, 5.0])
    return turn


def moved(views: Views, matrix: Tensor) -> Views:
    c2w = matrix @ views.cameras.c2w.double()
    c2w[:, :3, :3] /= matrix[:3, 0].norm()
    return replace(views, cameras=replace(views.cameras, c2w=c2w.float()))


def assert_same(found: Gaussians, expected: Gaussians) -> None:
    assert len(found) == len(expected)
    torch.testing.assert_close(found.means, expected.means, atol=2e-4, rtol=0)
    torch.testing.assert_close(found.scales, expected.scales, atol=1e-4, rtol=2e-2)
    torch.testing.assert_close(found.opacities, expected.opacities)
    torch.testing.assert_close(found.sh, expected.sh, atol=1e-3, rtol=0)
    spread = (found.covariances - expected.covariances).flatten(1).norm(dim=1)
    assert (spread < 0.02 * expected.covariances.flatten(1).norm(dim=1)).float().mean() > 0.99


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", FOLDERS)
def test_the_result_moves_with_the_world(shared_folder: Path, name: str, views: int) -> None:
    """Of one view the target says how far away, of three they do themselves."""
    model, given, matrix = LOADERS[name](shared_folder / "golden" / name), asymmetric_views(views), similarity()
    target = torch.tensor([0.3, 0.2, 0.0]) if views == 1 else None
    away = None if target is None else (matrix[:3, :3] @ target.double() + matrix[:3, 3]).float()
    here = family_of(name).reconstruct(model, given, target=target)
    there = family_of(name).reconstruct(model, moved(given, matrix), target=away)
    assert_same(there, transform(here, matrix))


@pytest.mark.parametrize("name", FOLDERS)
def test_pictures_matter(shared_folder: Path, name: str) -> None:
    """The first picture makes the object: a mirrored one, or another first one, makes another."""
    model, views = LOADERS[name](shared_folder / "golden" / name), asymmetric_views(2)
    density = family_of(name).triplane(model, views).density_grid(12)
    for other in (
        replace(views, images=views.images.flip(2)),
        replace(views, images=views.images.flip(0)),
    ):
        found = family_of(name).triplane(model, other).density_grid(12)
        assert (found - density).abs().max() > 1e-2 * density.abs().max()
    second = replace(views, images=torch.stack([views.images[0], 0.5 * views.images[1]]))
    torch.testing.assert_close(family_of(name).triplane(model, second).density_grid(12), density)


@functools.cache
def canonical_picture(name: str, size: int) -> Tensor:
    """[size,size,4] straight alpha, of a known object as its network believes to see it."""
    model = KNOWN[name](middle=(0.0, 0.0, 0.0), size=1.2)
    canonical = Canonical((0.0, -lrm.DISTANCE, 0.0), lrm.FOCAL) if name == "openlrm" else triposr.CANONICAL
    march = march_importance if name == "openlrm" else march_uniform
    with torch.no_grad():
        field = model.field(model.get_buffer("known"))
        picture = march(field, *canonical.rays(size), samples=48, background=0.0)
    rgb = picture.rgb / picture.alpha.clamp_min(1e-3)[:, None]
    alpha = torch.where(picture.alpha > 0.02, picture.alpha, 0.0)
    return torch.cat([rgb, alpha[:, None]], dim=1).reshape(size, size, 4).clamp(0, 1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("corner", [(10, 20), (70, 60)])
@pytest.mark.parametrize("name", KNOWN)
def test_the_object_stands_where_the_camera_sees_it(name: str, corner: tuple[int, int], flat: bool) -> None:
    """What the network believes to see is pasted into a view; the splats, seen through that view's camera, cover it."""
    model = KNOWN[name](middle=(0.0, 0.0, 0.0), size=1.2)
    picture, height, width = canonical_picture(name, 128), 200, 210
    image = torch.zeros(height, width, 4)
    place = slice(corner[1], corner[1] + 128), slice(corner[0], corner[0] + 128)
    image[place] = picture
    focal = 110.0 if flat else 250.0
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    middle = torch.tensor([1.0, 0.5, 0.3])
    c2w = look_at(torch.tensor([[4.0, 1.0, 2.0]]), middle)
    views = Views(image[None], Cameras(c2w, K[None], torch.tensor([flat]), width, height))
    splats = FAMILIES[name].reconstruct(model, views, target=middle)
    seen = render(splats, views.cameras)
    expected, found = image[..., 3] > 0.5, seen.alpha[0] > 0.5
    assert (expected & found).sum() / (expected | found).sum() > 0.77
    for axis in (0, 1):  # splats are soft: a pixel or two more on each side
        ends, seen_ends = (mask.any(axis).nonzero()[[0, -1], 0] for mask in (expected, found))
        assert (ends - seen_ends).abs().max() <= 4, (ends, seen_ends)
    both, rgb = expected & found, seen.rgb[0] / seen.alpha[0].clamp_min(1e-3)[..., None]
    assert (rgb - image[..., :3])[both].abs().mean() < 0.03, "the same colours at the same places"
    for axis in (0, 1):
        image[place] = picture.flip(axis)
        assert (rgb - image[..., :3])[both].abs().mean() > 0.06, "and not at mirrored ones"
    away = (splats.means.mean(0) - middle).norm()
    assert float(away) < 0.3 * float((c2w[0, :3, 3] - middle).norm()), "about where the target is"


@pytest.mark.parametrize(("name", "grey", "share"), [("openlrm", 1.0, 0.8), ("triposr", 0.5, 0.85)])
def test_the_network_sees_the_object_as_published(name: str, grey: float, share: float) -> None:
    """On its background, in the middle, with its margin."""
    model, seen = KNOWN[name](), list[Tensor]()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    model.config = replace(model.config, image_size=100)
    FAMILIES[name].triplane(model, asymmetric_views(size=80))
    image = seen[0]
    assert image.shape == (3, 100, 100)
    torch.testing.assert_close(image[:, 0], torch.full((3, 100), grey))
    rows, columns = ((image - grey).abs().amax(0) > 0.1).nonzero(as_tuple=True)
    height, width = (int(part.max() - part.min()) + 1 for part in (rows, columns))
    assert height / 100 == pytest.approx(share, abs=0.05), "the letter is taller than wide"
    assert width / 100 == pytest.approx(0.75 * share, abs=0.05)
    assert int(rows.max() + rows.min()) / 2 == pytest.approx(49.5, abs=2)
    foot = image[:, int(rows.max()) - 4, int(columns.max()) - 4]
    assert foot[0] > 0.8 and foot[2] < 0.2, "its foot is red and to the right"


@pytest.mark.parametrize("name", KNOWN)
def test_a_mesh_stands_there_too(name: str) -> None:
    model, views = KNOWN[name](), asymmetric_views()
    field = FAMILIES[name].triplane(model, views)
    splats = FAMILIES[name].reconstruct(model, views)
    mesh, colours = field.mesh(64)
    assert KDTree(mesh.vertices).query(splats.means.numpy())[0].max() < 0.1
    assert colours.shape == mesh.vertices.shape


def test_the_camera_told_can_be_chosen(shared_folder: Path) -> None:
    model, views = load_openlrm(shared_folder / "golden/openlrm"), asymmetric_views()
    near, far = (lrm.triplane(model, views, distance=distance) for distance in (1.5, 3.0))
    assert (near.planes - far.planes).abs().max() > 1e-3
    assert lrm.source_camera(1.5).tolist() == [1, 0, 0, 0, 0, 0, -1, -1.5, 0, 1, 0, 0, 0.75, 0.75, 0.5, 0.5]


@pytest.mark.parametrize("name", KNOWN)
def test_views_that_show_nothing_are_refused(name: str) -> None:
    views = asymmetric_views()
    with pytest.raises(BadInput, match="see-through"):
        FAMILIES[name].reconstruct(KNOWN[name](), replace(views, images=0 * views.images))
    with pytest.raises(BadInput, match="target"):
        FAMILIES[name].reconstruct(KNOWN[name](), views, target=torch.tensor([0.0, -9.0, 0.0]))


# ---- memory


MEASURED = """
import sys, torch
from pathlib import Path
from backend.cameras import Cameras, Views
from backend.models import lrm
from tests.test_lrm import MEDIUM
def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])
torch.set_num_threads(1)
K = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])
views = Views(torch.rand(1, 64, 64, 4), Cameras(torch.eye(4)[None], K[None], torch.tensor([False]), 64, 64))
before = kilobytes("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
lrm.reconstruct(lrm.Lrm(MEDIUM), views)
sys.stdout.write(str(kilobytes("VmHWM:") - before))
"""
MEDIUM = lrm.LrmConfig("1.1", 64, DinoConfig(width=128, layers=1, heads=2, hidden=512), 768, 2, 8, 16, plane_side=12)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux' /proc")
def test_memory_is_foreseen() -> None:
    run = [sys.executable, "-c", MEASURED]
    measured = 1024 * int(subprocess.run(run, cwd=Path(__file__).parents[1], check=True, capture_output=True).stdout)
    expected = lrm.memory_needed(MEDIUM, 1, 64, 64, 4)
    assert 0.6 * measured < expected < 1.7 * measured, f"{expected / 1e6:.0f} MB foreseen, {measured / 1e6:.0f} used"


def test_memory_of_the_presets() -> None:
    """Weights alone, and what the dossiers measured with them: 1.5 GiB for base's planes, 2.3 GiB for TripoSR."""
    base, sr = lrm.PRESETS["openlrm-base-1.1"], triposr.PRESETS["triposr"]
    assert 1.0e9 < lrm.memory_needed(base, 1, 512, 512, 4) < 1.5 * 2**30
    assert 1.7e9 < triposr.memory_needed(sr, 1, 512, 512, 4) < 2.3 * 2**30
    assert triposr.memory_needed(sr, 1, 512, 512, 2) < 0.6 * triposr.memory_needed(sr, 1, 512, 512, 4)
    assert lrm.memory_needed(base, 1, 4096, 4096, 4) > lrm.memory_needed(base, 1, 512, 512, 4) + 16 * 4096**2
