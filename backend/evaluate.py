"""How good a reconstruction is: objects with input views and held-out test views, and a table of scores over them.

A data set is a folder of objects: folders with `transforms_input.json`, `transforms_test.json` and their pictures. Its
`surface.npz` (`points` [P,3], and which of them can be seen from outside, `visible` [P]) is for meshes alone.

Whatever makes pictures of test views out of input views can be judged: a Reconstructor is a function. Pictures are
judged as the 8-bit files that they would be, on white.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import trimesh
import trimesh.sample

from backend.bad_input import BadInput
from backend.cameras import Cameras, Views
from backend.compositing import over
from backend.lpips import Lpips
from backend.metrics import alpha_iou, closeness, object_box, psnr, ssim
from backend.rendering import straight_rgba
from backend.texturing import TexturedMesh, render_textured
from backend.transforms import read_views

log = logging.getLogger(__name__)

INPUT, TEST, SURFACE = "transforms_input.json", "transforms_test.json", "surface.npz"
WHITE = 1.0
SURFACE_SAMPLES = 20_000  # points on a mesh
SURFACE_LIMIT = 0.02  # of the F-score, scene units: the objects are about 2 wide
FAILED = (ValueError, MemoryError, RuntimeError)  # what an object may fail of: bad views, nothing seen, no memory


@dataclass(frozen=True)
class Entry:
    """One object.

    inputs   what a reconstruction may look at
    tests    what it is judged by: views with straight alpha
    surface  None or [P,3], points of the true surface that can be seen from outside
    """

    name: str
    inputs: Views
    tests: Views
    surface: np.ndarray | None = None


@dataclass(frozen=True)
class Failure:
    """An object without scores, and why, in a sentence."""

    name: str
    reason: str


@dataclass(frozen=True)
class Guess:
    """What a reconstruction shows.

    images   [V,H,W,4] uint8 sRGB, straight alpha: the test views
    seconds  that it took from the input views to what the pictures are taken of
    mesh     None, or the mesh that it has beside
    problem  why there is no mesh where one was wanted
    """

    images: np.ndarray
    seconds: float
    mesh: TexturedMesh | None = None
    problem: str = ""


Reconstructor: TypeAlias = Callable[[Views, Cameras], Guess]  # input views, test cameras


@dataclass(frozen=True)
class Scores:
    """Of one object, or the means over several; None where it was not measured.

    psnr, boxpsnr            dB on white: whole pictures, and the smallest rectangles with the true object in
    ssim                     of whole pictures on white
    iou                      of the masks
    lpips                    of whole pictures on white; lower is better
    mesh_psnr, mesh_boxpsnr  of pictures of the mesh
    chamfer                  thousandths of a scene unit, between the mesh and the visible surface
    f1                       of the same at 0.02 scene units
    seconds                  of making it
    """

    psnr: float
    boxpsnr: float
    ssim: float
    iou: float
    lpips: float | None
    mesh_psnr: float | None
    mesh_boxpsnr: float | None
    chamfer: float | None
    f1: float | None
    seconds: float


@dataclass(frozen=True)
class Table:
    """The scores of one method by the objects' names, and the objects, or meshes, that it failed at."""

    method: str
    scores: Mapping[str, Scores]
    failures: tuple[Failure, ...]

    def mean(self) -> Scores | None:
        """Over the objects that have the score."""
        return mean_scores(list(self.scores.values()))


def evaluate(
    entries: Iterable[Entry | Failure],
    reconstructor: Reconstructor,
    *,
    method: str = "",
    lpips: Lpips | None = None,
) -> Table:
    """Judges a way of reconstruction by objects, or by the Failures that stand for those which could not be read.

    An object that it fails at is told in the table, and the others go on.
    """
    scores, failures = dict[str, Scores](), list[Failure]()
    for entry in entries:
        if isinstance(entry, Failure):
            failures.append(entry)
            continue
        try:
            guess = reconstructor(entry.inputs, entry.tests.cameras)
            scores[entry.name] = judge(guess, entry, lpips)
        except FAILED as error:
            unforeseen = not isinstance(error, ValueError | MemoryError)
            log.warning("%s failed at %s: %s", method, entry.name, error, exc_info=unforeseen)
            failures.append(Failure(entry.name, str(error) or type(error).__name__))
            continue
        if guess.problem:
            failures.append(Failure(entry.name, guess.problem))
    return Table(method, scores, tuple(failures))


def judge(guess: Guess, entry: Entry, lpips: Lpips | None = None) -> Scores:
    """Raises ValueError for pictures of another number or size than the test views."""
    seen = _judge_pictures(guess.images, entry.tests, lpips)
    mesh = chamfer = f1 = None
    if guess.mesh is not None:
        images = straight_rgba(render_textured(guess.mesh, entry.tests.cameras))
        mesh = _judge_pictures(images, entry.tests, None)
        if entry.surface is not None:
            close = closeness(surface_points(guess.mesh), entry.surface, limit=SURFACE_LIMIT)
            chamfer, f1 = 1000 * close.chamfer, close.f1
    return Scores(
        *seen,
        mesh_psnr=None if mesh is None else mesh.psnr,
        mesh_boxpsnr=None if mesh is None else mesh.boxpsnr,
        chamfer=chamfer,
        f1=f1,
        seconds=guess.seconds,
    )


def mean_scores(scores: Sequence[Scores]) -> Scores | None:
    """The mean of each score over those that have it; None for no scores at all."""
    if not scores:
        return None
    means = {}
    for field in fields(Scores):
        values = [value for one in scores if (value := getattr(one, field.name)) is not None]
        means[field.name] = float(np.mean(values)) if values else None
    return Scores(**means)


# ---- pictures and surfaces


class _Pictures(NamedTuple):
    """Scores of an object's pictures, as in Scores."""

    psnr: float
    boxpsnr: float
    ssim: float
    iou: float
    lpips: float | None


def _judge_pictures(images: np.ndarray, tests: Views, lpips: Lpips | None) -> _Pictures:
    wanted = (len(tests), tests.cameras.height, tests.cameras.width, 4)
    if images.shape != wanted or images.dtype != np.uint8:
        raise ValueError(f"pictures: expected uint8 of shape {wanted}, found {images.dtype} of {images.shape}")
    rows = []
    for image, want in zip(torch.from_numpy(images).double() / 255, tests.images.cpu().double(), strict=True):
        got_rgb, want_rgb = over(image, WHITE), over(want, WHITE)
        box = object_box(want[..., 3])
        row = [psnr(got_rgb, want_rgb), psnr(got_rgb[box], want_rgb[box]), ssim(got_rgb, want_rgb)]
        row.append(alpha_iou(image[..., 3], want[..., 3]))
        if lpips is not None:
            row.append(_perceived(lpips, got_rgb[None].float(), want_rgb[None].float()))
        rows.append([float(value) for value in row])
    means = np.mean(rows, axis=0).tolist()
    return _Pictures(*means[:4], lpips=None if lpips is None else means[4])


def _perceived(lpips: Lpips, got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    device = lpips.weights[0].device
    with torch.no_grad():
        return lpips(got.to(device), want.to(device))[0]


def surface_points(mesh: TexturedMesh) -> np.ndarray:
    """[P,3] points drawn evenly over the mesh's area, the same each time."""
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return np.asarray(trimesh.sample.sample_surface(shape, SURFACE_SAMPLES, seed=0)[0])


# ---- data sets


def find_objects(dataset: Path) -> list[Path]:
    """The folders of a data set's objects by name; a folder that is an object itself is a data set of one.

    Raises BadInput for what is not a folder of objects.
    """
    if not dataset.is_dir():
        raise BadInput(f"{dataset}: expected a folder of objects, found {'a file' if dataset.exists() else 'nothing'}")
    if _is_object(dataset):
        return [dataset]
    found = sorted(folder for folder in dataset.iterdir() if _is_object(folder))
    if not found:
        raise BadInput(f"{dataset}: expected folders with {INPUT} and {TEST}, found none")
    return found


def _is_object(folder: Path) -> bool:
    return (folder / INPUT).is_file() and (folder / TEST).is_file()


def read_entries(folders: Sequence[Path]) -> Iterator[Entry | Failure]:
    """One object after another, a Failure in place of one that cannot be read."""
    for folder in folders:
        try:
            yield read_entry(folder)
        except BadInput as error:
            yield Failure(folder.resolve().name, str(error))


def read_entry(folder: Path) -> Entry:
    """The object in a folder. Raises BadInput naming the file."""
    surface = folder / SURFACE
    return Entry(
        folder.resolve().name,
        read_views(folder / INPUT),
        read_views(folder / TEST),
        _read_surface(surface) if surface.exists() else None,
    )


def _read_surface(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as data:
            points, visible = data["points"].astype(np.float64), data["visible"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: expected .npz with the keys 'points' and 'visible', found: {error}") from error
    if points.ndim != 2 or points.shape[1] != 3 or visible.shape != points.shape[:1] or visible.dtype != bool:
        raise BadInput(
            f"{path}: expected points [P,3] and visible [P] of truth values, "
            f"found {points.shape} and {visible.dtype} {visible.shape}"
        )
    if not visible.any() or not np.isfinite(points).all():
        raise BadInput(f"{path}: expected finite points, some of them visible, found others")
    return points[visible]
