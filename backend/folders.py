"""Training samples from folders of posed pictures that users have, of any form that datasets.py reads: objects in the
middle of the world, as large as those that are made up, and large in their pictures.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.bad_input import BadInput
from backend.cameras import Cameras, Views, best_spread
from backend.compositing import premultiplied, straight
from backend.datasets import cameras_of, frame_of, object_folders, read_object
from backend.fit import Frame
from backend.hull import NothingSeen
from backend.models.grm_cameras import Window
from backend.sample import Sample, is_held_out

Roots = tuple[Path, ...]
FRAMED_BY = 12  # views, from all over the folder, whose masks tell where an object is
ROOM = 1.1  # least side of a picture, in those of the square around what it shows
KNOWN = 4096  # objects that are remembered


@dataclass(frozen=True)
class Wish:
    """What a sample is to show.

    size    pixels of a picture's side
    views   pictures
    inputs  how many of them, the first, are to stand evenly around the object
    room    multiples of the least side, fewest and most, one for all pictures
    """

    size: int
    views: int
    inputs: int
    room: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class _Posed:
    """All cameras of an object, in the middle of the world, and how it got there."""

    cameras: Cameras
    frame: Frame


@functools.lru_cache(maxsize=4)
def objects_in(roots: Roots) -> tuple[tuple[str, Path], ...]:
    """The objects' names, which are their places below a root, and folders. Raises BadInput for a root without any."""
    found: list[tuple[str, Path]] = []
    for root in roots:
        places = list(object_folders(root))
        if not places:
            raise BadInput(f"folders: expected objects with posed pictures in {root}, found none")
        found += [(_name(root, place), place) for place in places]
    return tuple(found)


def _name(root: Path, place: Path) -> str:
    return root.resolve().name if place == root else place.relative_to(root).as_posix()


@functools.lru_cache(maxsize=4)
def _choice(roots: Roots, held_out: bool) -> list[tuple[str, Path]]:
    return [(name, place) for name, place in objects_in(roots) if is_held_out(name) == held_out]


def check(roots: Roots) -> None:
    """Looks at each object once: all its cameras, that its pictures are there, and some of them.

    Raises BadInput that names the first object of no use, or says that none is left for training.
    """
    found = objects_in(roots)
    if found and all(is_held_out(name) for name, _ in found):
        names = ", ".join(name for name, _ in found)
        raise BadInput(f"folders: expected objects to train on, found only those that their names hold out: {names}")
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(_posed, (place for _, place in found)):
            pass


def pictured(roots: Roots, wish: Wish, rng: np.random.Generator, *, held_out: bool) -> Sample | None:
    """A sample of an object that is, or is not, held out; None where there is no such object. Raises BadInput."""
    choice = _choice(roots, held_out)
    if not choice:
        return None
    name, place = choice[rng.integers(len(choice))]
    posed = _posed(place)
    chosen = spread_views(posed.cameras, wish, rng)
    seen = read_object(place, chosen)
    views = replace(posed.frame.views(seen.views), cameras=posed.cameras[chosen])
    room = ROOM * float(rng.uniform(*wish.room))
    return replace(_close_up(replace(seen, views=views), wish.size, room), name=name)


def spread_views(cameras: Cameras, wish: Wish, rng: np.random.Generator) -> list[int]:
    """Numbers of views: the inputs stand around the origin as evenly as the cameras allow, the first being any; the
    others are any. Where there are too few, some come again.
    """
    order = rng.permutation(len(cameras)).tolist()
    places = best_spread(cameras[order], torch.zeros(3), min(wish.inputs, len(order)))
    inputs = [order[place] for place in places]
    others = [view for view in order if view not in inputs] or order
    again = (itertools.islice(itertools.cycle(inputs), wish.inputs), itertools.cycle(others))
    return list(itertools.islice(itertools.chain(*again), wish.views))


@functools.lru_cache(maxsize=KNOWN)
def _posed(place: Path) -> _Posed:
    cameras = cameras_of(place)
    some = np.linspace(0, len(cameras) - 1, min(FRAMED_BY, len(cameras))).round().astype(int).tolist()
    views = read_object(place, some).views
    if not views.has_alpha:
        raise BadInput(f"{place}: expected pictures that are transparent around the object, found opaque ones")
    try:
        frame = frame_of(views)
    except NothingSeen as error:
        raise BadInput(f"{place}: expected pictures of one object: {error}") from error
    return _Posed(frame.cameras(cameras), frame)


# ---- pictures of one size


def _close_up(sample: Sample, size: int, room: float) -> Sample:
    """Square pictures, so many pixels wide, of what each shows of the object, which is as large as `room` lets it."""
    views, rows, Ks = sample.views, [], []
    depth = torch.zeros(views.images.shape[:3]) if views.depth is None else views.depth
    for image, own_depth, normals, K in zip(views.images, depth, sample.normals, views.cameras.Ks, strict=True):
        window = _window(image[..., 3], room)
        ink = premultiplied(image).permute(2, 0, 1)
        surface = torch.cat([own_depth[None], normals.permute(2, 0, 1)])
        cut = window.cut(ink, size, "smooth").clamp(0, 1).permute(1, 2, 0)
        rows.append((straight(cut), window.cut(surface, size, "nearest")))
        Ks.append(window.intrinsics(K, size))
    images, surfaces = (torch.stack(parts) for parts in zip(*rows, strict=True))
    cameras = replace(views.cameras, Ks=torch.stack(Ks), width=size, height=size)
    close = Views(images, cameras, None if views.depth is None else surfaces[:, 0], views.names)
    return replace(sample, views=close, normals=surfaces[:, 1:].permute(0, 2, 3, 1))


def _window(alpha: Tensor, room: float) -> Window:
    """The square around what is seen in alpha [H,W]; a view that shows nothing is shown whole.

    It stays in the picture if it can: beyond that lies no emptiness, but what was not taken.
    """
    height, width = alpha.shape
    top, bottom = _ends((alpha > 0.5).any(1))
    left, right = _ends((alpha > 0.5).any(0))
    side = min(max(1, round(room * max(bottom - top, right - left))), max(height, width))
    return Window(_kept((left + right - side) // 2, side, width), _kept((top + bottom - side) // 2, side, height), side)


def _ends(seen: Tensor) -> tuple[int, int]:
    """First place of those [L] where something is seen, and one past the last; all of them where nothing is."""
    places = seen.nonzero()[:, 0]
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(seen))


def _kept(start: int, size: int, length: int) -> int:
    """The start nearest to this one of a stretch of `size` within 0..length, where it fits; else in its middle."""
    return (length - size) // 2 if size > length else min(max(start, 0), length - size)
