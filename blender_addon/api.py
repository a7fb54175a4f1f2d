"""Gaussmith for scripts: `generate(...)` and `capture_views(...)` block, and take the command line's words.

    from bl_ext.user_default.gaussmith.blender_addon import api
    made = api.generate(source="orbit", views=24, mesh=True)
    made.splats, made.mesh, made.report["psnr"]

In an open Blender prefer the operator `bpy.ops.gaussmith.generate()`, which keeps the window alive.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import bpy

from . import backend_process, preferences, splat_object, studio
from .capture import CapturedViews, CaptureError, CaptureSettings, capture
from .families import DEFAULT_METHOD, METHODS, MethodName, Precision
from .generation import Assembly, new_name, stage_label
from .order import Order, Output, cameras_of
from .protocol import Welcome
from .session import Failure, Job, Session, SessionState, new_job_id

OnProgress = Callable[[str, float], None]  # what is being done, and 0..1 of it


class CaptureWords(TypedDict, total=False):
    """What to capture. Left out: the default of CaptureSettings."""

    source: Literal["orbit", "cameras", "animation", "viewport", "views"]  # views: the pictures of `transforms`
    views: int
    elevations: Sequence[float]
    distance: float
    lens: float
    resolution: int
    quality: Literal["preview", "standard", "final"]
    depth: bool
    cameras: Literal["all", "selected"]
    selected_only: bool
    others: Literal["holdout", "hidden"]
    frames: tuple[int, int, int]
    transforms: Path | str


class Words(CaptureWords, total=False):
    """What to make of it. Left out: the default of Order. `mesh=True` is short for output="both".

    A method stands for a model, its default weights and a refinement. Without one of these four words it is "fast".
    """

    method: MethodName
    model: str
    weights: str
    precision: Precision
    steps: int
    refine: int
    max_splats: int
    output: Output
    mesh: bool
    faces: int
    texture_size: int
    device: Literal["auto", "cpu", "cuda"]
    seed: int
    name: str


RENAMED = {"views": "count"}  # CaptureSettings' name for the word
OF_METHOD = frozenset({"model", "weights", "refine"})  # the words that a method stands for
OF_CAPTURE = frozenset(CaptureSettings.__dataclass_fields__) | frozenset(RENAMED)


class GenerateError(Exception):
    """The backend could not do it: `failure` has the kind, a sentence and details."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


@dataclass(frozen=True)
class Generated:
    """What joined the scene: the empty that holds the result, and its faces. `report` holds JSON values."""

    empty: bpy.types.Object
    splats: bpy.types.Object | None
    mesh: bpy.types.Object | None
    report: dict[str, Any]


def order_of(words: Words) -> Order:
    """The words as an Order. Raises CaptureError for values out of range or words that do not go together."""
    given: dict[str, Any] = dict(words)
    method = given.get("method", "" if OF_METHOD & given.keys() else DEFAULT_METHOD)
    meant = METHODS.get(method or DEFAULT_METHOD)
    return _order({**(meant.settings if meant is not None else {}), "method": method, **given})


def _order(given: dict[str, Any]) -> Order:
    """The words as they are, without a method that nobody has named."""
    transforms = given.pop("transforms", None)
    if given.get("source") == "views":
        del given["source"]
        if transforms is None:
            raise CaptureError("The source 'views' needs a transforms.json: name it with transforms.")
    elif transforms is not None and "source" in given:
        raise CaptureError(f"A transforms.json brings its own views: leave out the source, found {given['source']!r}.")
    if given.pop("mesh", False):
        given.setdefault("output", "both")
    if "elevations" in given:
        given["elevations"] = tuple(given["elevations"])
    taken = {RENAMED.get(name, name): given.pop(name) for name in list(given) if name in OF_CAPTURE}
    return Order(
        capture=CaptureSettings(**taken), transforms=Path(transforms) if transforms is not None else None, **given
    )


def capture_views(
    context: bpy.types.Context | None = None,
    *,
    objects: Sequence[bpy.types.Object] = (),
    on_progress: OnProgress | None = None,
    **words: Unpack[CaptureWords],
) -> CapturedViews:
    """Pictures, cameras and depth as the backend would get them; `.save(folder)` writes them as transforms.json.

    objects      what to capture instead of the selection

    Raises CaptureError, with a sentence, when there is nothing to capture or a word makes no sense.
    """
    return _views(context or bpy.context, _order(dict(words)), objects, on_progress)


def generate(
    context: bpy.types.Context | None = None,
    *,
    objects: Sequence[bpy.types.Object] = (),
    backend_python: Path | str | None = None,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
    **words: Unpack[Words],
) -> Generated:
    """Captures, reconstructs and puts the result into the context's scene.

    objects         what to capture instead of the selection
    backend_python  the Python of the backend's environment, instead of the one in the preferences
    timeout         seconds for the reconstruction; None: as long as it takes

    Raises CaptureError (nothing to capture, a word that makes no sense), GenerateError (the backend failed) and
    TimeoutError.
    """
    context = context or bpy.context
    order = order_of(words)
    began = time.monotonic()
    name = new_name(context, order) if not objects or order.name else f"{objects[0].name} Gaussmith"
    with session_for(backend_python) as session:
        session.start()
        views = _views(context, order, objects, _while_starting(session, on_progress))
        captured = time.monotonic()
        job = session.submit(replace(order.request(views), job_id=new_job_id()), name)
        job = session.wait(job.id, timeout, _job_progress(on_progress))
    if job.state != "done":
        raise GenerateError(job.failure or Failure("internal", "The job was cancelled."))
    times = {"capture_seconds": captured - began, "reconstruct_seconds": time.monotonic() - captured}
    return _insert(context, order, name, job, cameras_of(views), times)


def _insert(
    context: bpy.types.Context, order: Order, name: str, job: Job, cameras: dict[str, Any], times: dict[str, float]
) -> Generated:
    began = time.monotonic()
    assembly = Assembly(order, name, job.splats, job.mesh)
    while not assembly.step():
        pass
    report = job.report or {}
    made = assembly.insert(context, order.recipe(cameras, report, times))
    context.view_layer.update()
    times["insert_seconds"] = time.monotonic() - began
    empty, splats, mesh = (bpy.data.objects.get(part) for part in (made.empty, made.splats, made.mesh))
    assert empty is not None
    objects = [described(item, role) for item, role in ((splats, "splats"), (mesh, "mesh")) if item is not None]
    views = len(cameras["names"])
    summary = {"result": empty.name, "objects": objects, "psnr": report.get("psnr"), "views": views}
    way = {"method": order.method, "made_by": order.made_by(views, report), "model": order.model}
    return Generated(empty, splats, mesh, {**summary, **way, "times": times, "backend": report})


def described(item: bpy.types.Object, role: str) -> dict[str, Any]:
    """An object's name, role, size and bounding box in the world, scene units."""
    low, high = splat_object.world_bounds(item)
    count = len(item.data.polygons) if role == "mesh" else len(item.data.attributes["position"].data)
    box = {"bbox_min": [float(value) for value in low], "bbox_max": [float(value) for value in high]}
    return {"name": item.name, "role": role, "faces" if role == "mesh" else "splats": count, **box}


@contextlib.contextmanager
def session_for(backend_python: Path | str | None) -> Iterator[Session]:
    """The running extension's session, or one of its own for a named Python, ended afterwards."""
    if backend_python is None:
        yield studio.current().session
        return
    python = Path(backend_python)
    if not python.is_file():
        raise CaptureError(f"The backend's Python must be a file, found nothing at {python}.")
    session = Session(
        lambda: backend_process.start_backend(
            python, log=preferences.log_path(), cache=preferences.user_folder("cache")
        ),
        lambda _job: None,
    )
    try:
        yield session
    finally:
        session.close()


def answered(session: Session, seconds: float) -> Welcome | None:
    """Starts the backend and waits for its answer; None when it failed (see `session.failure`) or took too long."""
    session.start()
    deadline = time.monotonic() + seconds
    while session.welcome is None and session.state is not SessionState.FAILED and time.monotonic() < deadline:
        time.sleep(session.pump())
    return session.welcome


@contextlib.contextmanager
def selection(context: bpy.types.Context, objects: Sequence[bpy.types.Object]) -> Iterator[None]:
    """Selects exactly these objects, and afterwards what was selected before. No objects: leaves all as it is."""
    if not objects:
        yield
        return
    layer = context.view_layer
    layer.update()  # until then a script's removed objects stand in its list as None
    before = [item.name for item in layer.objects if item.select_get()]
    active = layer.objects.active.name if layer.objects.active is not None else ""
    try:
        _select(layer, [item.name for item in objects], objects[0].name)
        yield
    finally:
        _select(layer, before, active)


def _select(layer: bpy.types.ViewLayer, names: Sequence[str], active: str) -> None:
    for item in layer.objects:
        item.select_set(item.name in names)
    layer.objects.active = layer.objects.get(active) if active else None


def _views(
    context: bpy.types.Context, order: Order, objects: Sequence[bpy.types.Object], on_progress: OnProgress | None
) -> CapturedViews:
    if order.transforms is not None:
        return CapturedViews.load(order.transforms)

    def tell(done: int, total: int, _label: str) -> None:
        if on_progress is not None:
            on_progress("Taking pictures", done / max(total, 1))

    with selection(context, objects):
        return capture(context, order.shots, tell)


def _while_starting(session: Session, on_progress: OnProgress | None) -> OnProgress:
    """Lets the backend's start go on between two pictures."""

    def tell(label: str, fraction: float) -> None:
        session.pump()
        if on_progress is not None:
            on_progress(label, fraction)

    return tell


def _job_progress(on_progress: OnProgress | None) -> Callable[[Job], None] | None:
    if on_progress is None:
        return None
    return lambda job: on_progress(stage_label(job), job.fraction)


__all__ = ["CaptureError", "GenerateError", "Generated", "capture_views", "described", "generate"]
