"""Gaussmith for scripts: `generate(...)` and `capture_views(...)` block, and take the command line's words.

    from bl_ext.user_default.gaussmith.blender_addon import api
    made = api.generate(source="orbit", views=24, mesh=True)
    made.splats, made.mesh, made.report["psnr"]
    made = api.generate(prompt="a red wooden chair", seed=3, size=0.9)
    made = api.generate(image="chair.png", place="origin")

In an open Blender prefer the operator `bpy.ops.gaussmith.generate()`, which keeps the window alive.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import bpy

from . import backend_process, imagining, picture_files, preferences, splat_object, studio
from .capture import CapturedViews, CaptureError, capture
from .generation import Assembly, new_name, stage_label
from .imagining import Imagining
from .order import Order, cameras_of
from .placement import Spot, spot_for
from .protocol import Welcome
from .session import Failure, Job, Request, Session, SessionState, failure, new_job_id
from .words import CaptureWords, Words, order_as_named, order_of

OnProgress = Callable[[str, float], None]  # what is being done, and 0..1 of it


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
    return _views(context or bpy.context, order_as_named(dict(words)), objects, on_progress)


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

    objects         what to capture, or to stand the result on, instead of the selection
    backend_python  the Python of the backend's environment, instead of the one in the preferences
    timeout         seconds for the reconstruction; None: as long as it takes

    Raises CaptureError (nothing to capture or to stand on, a picture that cannot be read, a word that makes no sense),
    GenerateError (the backend failed) and TimeoutError.
    """
    context = context or bpy.context
    candidate = words.get("candidate", 1)
    order = order_of(words)
    began = time.monotonic()
    captures = order.imagining is None
    name = f"{objects[0].name} Gaussmith" if objects and captures and not order.name else new_name(context, order)
    spot = None if captures else _spot(context, order, objects)
    with session_for(backend_python) as session:
        session.start()
        if order.imagining is not None:
            views, seed = _imagined(session, order, order.imagining, candidate, on_progress, timeout)
            order = replace(order, seed=seed)
        else:
            views = _views(context, order, objects, _while_starting(session, on_progress))
        there = time.monotonic()
        job = _done(session, order.request(views, size=spot.size if spot else 0.0), name, on_progress, timeout)
    before = "capture_seconds" if captures else "imagine_seconds"
    times = {before: there - began, "reconstruct_seconds": time.monotonic() - there}
    return _insert(context, order, job, Scene(name, cameras_of(views), spot), times)


def _done(session: Session, request: Request, name: str, on_progress: OnProgress | None, timeout: float | None) -> Job:
    """The finished job of a request. Raises GenerateError."""
    job = session.submit(replace(request, job_id=new_job_id()), name)
    job = session.wait(job.id, timeout, _job_progress(on_progress))
    if job.state != "done":
        raise GenerateError(job.failure or Failure("internal", "The job was cancelled."))
    return job


def _imagined(
    session: Session,
    order: Order,
    wanted: Imagining,
    candidate: int,
    on_progress: OnProgress | None,
    timeout: float | None,
) -> tuple[CapturedViews, int]:
    """The views of the candidate that is to be used, and its seed."""
    files = picture_files.read_all(wanted.pictures)
    asked = imagining.request(wanted, files, device=order.device, seed=order.seed)
    made = _done(session, asked, wanted.title, on_progress, timeout).imagined
    if len(made) < candidate:
        raise GenerateError(failure("internal", f"expected {wanted.candidates} candidates, found {len(made)}"))
    return imagining.views_of(made[candidate - 1]), made[candidate - 1].seed


def _spot(context: bpy.types.Context, order: Order, objects: Sequence[bpy.types.Object]) -> Spot:
    with selection(context, objects):
        return spot_for(context, order.placing)


@dataclass(frozen=True)
class Scene:
    """What of the scene a result needs: its name, the cameras as JSON values, and where it stands, if not in place."""

    name: str
    cameras: dict[str, Any]
    spot: Spot | None


def _insert(context: bpy.types.Context, order: Order, job: Job, scene: Scene, times: dict[str, float]) -> Generated:
    began = time.monotonic()
    name, cameras = scene.name, scene.cameras
    assembly = Assembly(order, name, job.splats, job.mesh)
    while not assembly.step():
        pass
    report = job.report or {}
    made = assembly.insert(context, order.recipe(cameras, report, times), scene.spot)
    context.view_layer.update()
    times["insert_seconds"] = time.monotonic() - began
    empty, splats, mesh = (bpy.data.objects.get(part) for part in (made.empty, made.splats, made.mesh))
    assert empty is not None
    objects = [described(item, role) for item, role in ((splats, "splats"), (mesh, "mesh")) if item is not None]
    views = len(cameras["names"])
    summary = {"result": empty.name, "objects": objects, "psnr": report.get("psnr"), "views": views}
    way = {"method": order.method, "made_by": order.made_by(views, report), "model": order.model}
    if order.imagining is not None:
        way |= {"imagined_by": order.imagining.made_by(order.seed), "front_end": order.imagining.maker.name}
        way |= {"seed": order.seed}
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
