"""Telling an object from the background of its picture, and putting it into the middle of a square.

Pictures are [H,W,4] float32, 0..1, sRGB, straight alpha.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from backend import plain_background
from backend.bad_input import BadInput
from backend.weights import WeightsMissing, weights_folder
from blender_addon.protocol import Cut

# Networks that tell objects from backgrounds, as rembg names them, the best first. The weights of each lie in a folder
# of its name, as NAME.onnx. All may be used commercially.
NETWORKS = ("birefnet-general-lite", "isnet-general-use", "u2netp")
ADVISED_NETWORK = "isnet-general-use"
FETCH = f"python -m backend weights fetch {ADVISED_NETWORK}"

HAS_ALPHA = 0.001  # share of a picture's pixels that are transparent, from which its alpha is meant
FAINT = 0.02  # alpha below this is none
SPECK = 0.002  # share of the largest part's area below which a part is dirt
LEAST_SEEN = 0.0003  # share of the picture that an object covers at least
UNIFORM = 0.02  # range of colours of a picture that shows nothing
WHITE = 0.9  # a background as light as this is white
STATED = 0.15  # distance of colours up to which a background is the one that was stated


# ---- cutting out


def cut_out(picture: Tensor, cut: Cut, name: str) -> Tensor:
    """[H,W,4] the picture's object alone: alpha 0 in what is background. `name` is for sentences.

    Raises BadInput where nothing is to be seen or nothing tells the object from the background, WeightsMissing where
    the network that is asked for is not on this machine.
    """
    match cut:
        case "none":
            return picture
        case "alpha":
            if not _has_alpha(picture):
                raise BadInput(f"{name}: expected a picture with transparency, found one without")
            found = picture
        case "network":
            found = _cut_by_network(picture, _network_file(), name)
        case "plain":
            found = _cut_from_plain(picture, name)
        case "auto":
            found = _cut_somehow(picture, name)
    return _cleaned(found, name)


def cut_views(views: Tensor, background: float) -> Tensor:
    """[V,H,W,4] generated views [V,H,W,3] without the grey they were made on, each in its place and at its scale.

    background  the grey, 0..1; where the views' borders are of another colour, that counts

    White inside the object stays on a white background, for many an object has some; of another background, what shows
    through holes goes. A view with nothing in it is transparent.
    """
    pictures = views.detach().float().cpu().numpy()
    at_borders = np.concatenate([plain_background.border_of(picture)[0] for picture in pictures])
    colour, stated = np.median(at_borders, axis=0), np.full(3, background)
    if np.linalg.norm(colour - stated) < STATED:
        colour = stated
    return torch.stack([torch.from_numpy(_cut_view(picture, colour)) for picture in pictures])


def _cut_view(rgb: np.ndarray, colour: np.ndarray) -> np.ndarray:
    backdrop = plain_background.fitted(rgb, colour)
    if backdrop is None or np.linalg.norm(backdrop.colours.mean((0, 1)) - colour) > STATED:
        backdrop = plain_background.flat(rgb, colour)
    background = plain_background.background_of(rgb, backdrop)
    if colour.mean() < WHITE:
        background |= plain_background.holes_of(rgb, backdrop, background)
    return _without_specks(plain_background.cut(rgb, backdrop, background))


def _cut_somehow(picture: Tensor, name: str) -> Tensor:
    if _has_alpha(picture):
        return picture
    if file := _found_network():
        return _cut_by_network(picture, file, name)
    return _cut_from_plain(picture, name)


def _has_alpha(picture: Tensor) -> bool:
    return float((picture[..., 3] < 0.5).float().mean()) > HAS_ALPHA


def _cut_from_plain(picture: Tensor, name: str) -> Tensor:
    rgb = _solid_colours(picture, name)
    backdrop = plain_background.fitted(rgb, np.median(plain_background.border_of(rgb)[0], axis=0))
    if backdrop is None:
        raise BadInput(
            f"{name}: expected a plain background or transparency, found a border of many colours; take a picture "
            f"before something plain, cut the object out in a paint program, or fetch a network that does it: {FETCH}"
        )
    background = plain_background.background_of(rgb, backdrop)
    background |= plain_background.holes_of(rgb, backdrop, background)
    return torch.from_numpy(plain_background.cut(rgb, backdrop, background))


def _solid_colours(picture: Tensor, name: str) -> np.ndarray:
    """[H,W,3] the picture on white. Raises BadInput where it is all of one colour."""
    alpha = picture[..., 3:]
    rgb = (picture[..., :3] * alpha + 1 - alpha).numpy()
    if float(np.ptp(rgb, axis=(0, 1)).max()) < UNIFORM:
        raise _nothing(name, "it has one colour all over")
    return rgb


def _cleaned(cut: Tensor, name: str) -> Tensor:
    """Without specks. Raises BadInput where nothing is left."""
    clean = torch.from_numpy(_without_specks(cut.numpy()))
    if float(clean[..., 3].mean()) < LEAST_SEEN:
        raise _nothing(name, "all of it is background")
    return clean


def _without_specks(cut: np.ndarray) -> np.ndarray:
    alpha = np.where(cut[..., 3] < FAINT, 0, cut[..., 3])
    parts = np.zeros(alpha.shape, np.int32)
    ndimage.label(alpha > 0, np.ones((3, 3)), output=parts)
    areas = np.bincount(parts.ravel(), alpha.ravel())
    kept = areas > max(areas[1:].max(initial=0) * SPECK, 1.0)
    return np.concatenate([cut[..., :3], (alpha * kept[parts])[..., None]], axis=2)


def _nothing(name: str, found: str) -> BadInput:
    return BadInput(f"nothing is to be seen in {name}: expected an object before a background, found that {found}")


# ---- a network


def _network_file_of(network: str) -> Path:
    return weights_folder() / network / f"{network}.onnx"


def _found_network() -> Path | None:
    return next((file for file in map(_network_file_of, NETWORKS) if file.is_file()), None)


def _network_file() -> Path:
    if (file := _found_network()) is None:
        raise WeightsMissing(
            f"weights: a network that cuts objects out is not on this machine; "
            f"expected {_network_file_of(ADVISED_NETWORK)}. Run: {FETCH}"
        )
    return file


def _cut_by_network(picture: Tensor, file: Path, name: str) -> Tensor:
    rgb = _solid_colours(picture, name)
    alpha = _mask_by(file, rgb)
    alpha = np.clip((alpha - 0.05) / 0.9, 0, 1)
    sure = alpha > 0.95
    if not sure.any():
        raise _nothing(name, "the network sees none")
    colours = np.where(sure[..., None], rgb, plain_background.inner_colours(rgb, sure))
    return torch.from_numpy(np.concatenate([colours, alpha[..., None]], axis=2).astype(np.float32))


def _mask_by(file: Path, rgb: np.ndarray) -> np.ndarray:
    """[H,W] 0..1: where the network in a file sees the object of a picture [H,W,3].

    Raises BadInput for a file that is no such network.
    """
    import onnxruntime  # here: neither is needed where no network is, and both are slow to load
    from PIL import Image
    from rembg.sessions import sessions

    published: Any = sessions[file.stem]

    class Local(published):
        @classmethod
        def download_models(cls, *args: object, **kwargs: object) -> str:
            """Where the file is. What this overrides would fetch one."""
            return str(file)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    image = Image.fromarray((rgb * 255).round().astype(np.uint8))
    try:
        session = Local(file.stem, options, providers=["CPUExecutionProvider"])
        mask = session.predict(image)[0]
    except _refusals() as error:
        raise BadInput(f"{file}: expected the network {file.stem}, found a file that is broken or another") from error
    return np.asarray(mask, np.float32) / 255


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises for a file it cannot run."""
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    return (state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.Fail, state.NotImplemented)


# ---- in the middle


def recentred(cut: Tensor, side: int, fill: float) -> Tensor:
    """[side,side,4] a cut-out picture's object, its longest side `fill` of the picture's, in the middle.

    Raises BadInput where all is transparent.
    """
    box = _object_in(cut)
    height, width = box.shape[:2]
    longest = max(1, int(side * fill))
    return _in_middle(box, _share(longest, height, width), _share(longest, width, height), side)


def recentre_all(cuts: Sequence[Tensor], side: int, fill: float) -> list[Tensor]:
    """Pictures of one object from several sides, each [side,side,4]: at one scale, on one level, in the middle.

    Seen from its sides, an object is equally high in all pictures. The longest of all heights and widths becomes
    `fill` of the picture's side. Raises BadInput where all of one is transparent.
    """
    boxes = [_object_in(cut) for cut in cuts]
    widest = max(box.shape[1] / box.shape[0] for box in boxes)
    height = max(1, int(side * fill / max(widest, 1)))
    return [_in_middle(box, height, max(1, round(height * box.shape[1] / box.shape[0])), side) for box in boxes]


def _object_in(cut: Tensor) -> Tensor:
    """The part of a picture that has some alpha."""
    seen = cut[..., 3] > 0
    if not bool(seen.any()):
        raise _nothing("a picture", "all of it is transparent")
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    return cut[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def _share(longest: int, length: int, other: int) -> int:
    """Of the longest side's new length, what a side of some length gets beside another."""
    return max(1, longest * length // max(length, other))


def _in_middle(box: Tensor, height: int, width: int, side: int) -> Tensor:
    """[side,side,4] a picture [h,w,4] resized and put into the middle; smaller than `side` or as large."""
    square = torch.zeros(side, side, 4)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = _resized(box, height, width)
    return square


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    """[height,width,4] each pixel the mean of the area it covers, in premultiplied colours."""
    if picture.shape[:2] == (height, width):
        return picture
    alpha = picture[..., 3:]
    premultiplied = torch.cat([picture[..., :3] * alpha, alpha], dim=-1)
    rows, columns = _overlaps(height, picture.shape[0]), _overlaps(width, picture.shape[1])
    smaller = torch.einsum("yh,hwc,xw->yxc", rows, premultiplied, columns)
    return torch.cat([smaller[..., :3] / smaller[..., 3:].clamp_min(1e-6), smaller[..., 3:]], dim=-1).clamp(0, 1)


def _overlaps(count: int, old: int) -> Tensor:
    """[count,old] how much of each of `count` new pixels each of `old` old ones covers along one axis."""
    edges = torch.arange(count + 1, dtype=torch.float64)[:, None] * (old / count)
    start = torch.arange(old, dtype=torch.float64)
    common = torch.minimum(edges[1:], start + 1) - torch.maximum(edges[:-1], start)
    return (common.clamp_min(0) * (count / old)).float()
