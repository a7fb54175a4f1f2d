"""One press of Generate, advanced by short ticks: pictures, reconstruction, building the objects, inserting them.

    CAPTURING -> RECONSTRUCTING -> BUILDING -> INSERTING -> DONE          FAILED and CANCELLED end it from any of them
    IMAGINING ----^
            +--> CHOOSING       the end of a run that makes views to choose from; a run with the chosen ones follows

Only names and plain arrays live from one tick to the next. What must be held longer (a half-built object, a half-made
capture) is let go by `suspend` before Blender undoes or loads, and started again.
"""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import bpy
import numpy as np

from . import imagining, picture_files, result, splat_nodes
from .capture import CapturedViews, CaptureRun
from .imagining import Again
from .mesh_object import MeshBuilder
from .order import Order, cameras_of
from .placement import Spot, spot_for
from .protocol import Imagined, Splats, TexturedMesh
from .session import Job, Session, new_job_id
from .splat_object import SplatBuilder

Phase = Literal[
    "CAPTURING", "IMAGINING", "RECONSTRUCTING", "BUILDING", "INSERTING", "CHOOSING", "DONE", "FAILED", "CANCELLED"
]
ACTIVE: tuple[Phase, ...] = ("CAPTURING", "IMAGINING", "RECONSTRUCTING", "BUILDING", "INSERTING")
NAME_LENGTH = 40  # characters of a result that is named after its prompt

# A job's states and the backend's stages, as a person reads them (and the translations know them).
STAGES = {
    "starting": "Starting the backend",
    "queued": "Waiting for another job",
    "preparing": "Reading the views",
    "picture": "Cutting the object out",
    "views": "Making the views",
    "load": "Loading the weights",
    "network": "Running the network",
    "depth": "Finding depth",
    "shape": "Finding the shape",
    "fit": "Fitting the splats",
    "mesh": "Making the mesh",
    "texture": "Baking the texture",
}


def stage_label(job: Job) -> str:
    """What a job is doing, in English; a stage that has no words here is shown as the backend calls it."""
    name = job.stage or job.state
    return STAGES.get(name.lower(), name)


@dataclass(frozen=True)
class Problem:
    """What went wrong: a sentence for the panel, and what *Copy Details* copies."""

    sentence: str
    detail: str = ""


@dataclass(frozen=True)
class Made:
    """What one order added to the scene, by name, since references do not outlive an undo."""

    empty: str
    splats: str
    mesh: str


def new_name(context: bpy.types.Context, order: Order) -> str:
    """The result's name: the order's own, or after what is captured."""
    if order.name:
        return order.name
    if order.imagining is not None:
        title = order.imagining.title
        return textwrap.shorten(title, NAME_LENGTH, placeholder="") or title[:NAME_LENGTH]
    if order.transforms is not None:
        return order.transforms.resolve().parent.name or "Gaussmith"
    active = context.view_layer.objects.active
    return f"{active.name} Gaussmith" if active is not None and order.capture.source == "orbit" else "Gaussmith"


def shown_share(item: bpy.types.Object) -> float:
    """The share of an object's splats that the viewport shows; renders show all."""
    modifier = splat_nodes.modifier_of(item)
    return splat_nodes.get_input(modifier, splat_nodes.DENSITY) if modifier is not None else 1.0


class Assembly:
    """The objects of one finished job, built slice by slice and then put into the scene in one go."""

    def __init__(self, order: Order, name: str, splats: Splats | None, mesh: TexturedMesh | None) -> None:
        self._name = name
        self.shown = 1.0  # the share of the splats that the viewport shows
        wants_splats = order.output != "mesh" or mesh is None
        self._splats = SplatBuilder(splats, name + " Splats") if splats is not None and wants_splats else None
        self._mesh = MeshBuilder(name + " Mesh", mesh) if mesh is not None else None

    def step(self) -> bool:
        """Builds one slice; True when all objects are whole."""
        return all(builder.step() for builder in (self._splats, self._mesh) if builder is not None)

    def insert(self, context: bpy.types.Context, recipe: dict[str, Any], spot: Spot | None) -> Made:
        """Links the objects under one empty in one collection of the context's scene, and stands them on the spot."""
        splats = self._splats.object if self._splats else None
        mesh = self._mesh.object if self._mesh else None
        self.shown = shown_share(splats) if splats is not None else 1.0
        empty = result.assemble(context, self._name, splats, mesh, recipe, spot=spot)
        context.scene.gaussmith.last_result = empty.name
        return Made(empty.name, splats.name if splats else "", mesh.name if mesh else "")


class Generation:
    """See the head of this file. `phase`, `label`, `fraction` and `seconds_left` are what a panel shows."""

    def __init__(
        self, order: Order, session: Session, *, views: CapturedViews | None = None, again: Again | None = None
    ) -> None:
        """`views` have been chosen already; with `again` the run ends with views to choose from."""
        self.order = order
        self.again = again
        self.phase: Phase = "CAPTURING"
        self.job: Job | None = None
        self.problem: Problem | None = None
        self.made: Made | None = None
        self.shown = 1.0  # the share of the splats that the viewport shows
        self.name = ""
        self.imagined: list[Imagined] = []  # to choose from, once the phase is CHOOSING
        self._views = views
        self._spot: Spot | None = None
        self._session = session
        self._scene = ""
        self._capture: CaptureRun | None = None
        self._cameras: dict[str, Any] = {}
        self._assembly: Assembly | None = None
        self._started = time.monotonic()
        self._times: dict[str, float] = {}

    # ---- what the panel shows

    @property
    def active(self) -> bool:
        return self.phase in ACTIVE

    @property
    def label(self) -> str:
        if self.phase == "CAPTURING" and self._capture is not None:
            return "Taking pictures"
        if self.phase in ("IMAGINING", "RECONSTRUCTING") and self.job is not None:
            return stage_label(self.job)
        return "Building the objects" if self.phase in ("BUILDING", "INSERTING") else ""

    @property
    def count(self) -> str:
        """Which of how many pictures is being taken; empty outside a capture."""
        if self.phase != "CAPTURING" or self._capture is None:
            return ""
        return f"{min(self._capture.done + 1, self._capture.total)}/{self._capture.total}"

    @property
    def fraction(self) -> float:
        if self.phase == "CAPTURING" and self._capture is not None:
            return self._capture.done / max(self._capture.total, 1)
        return self.job.fraction if self.job is not None else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None while it cannot be told."""
        if self.phase == "CAPTURING" and self._capture is not None and self._capture.done:
            return (time.monotonic() - self._started) / self._capture.done * (self._capture.total - self._capture.done)
        return self.job.seconds_left if self.job is not None else None

    @property
    def preview(self) -> np.ndarray | None:
        """[H,W,4] uint8, the backend's newest picture of the views or of the result."""
        works = self.phase in ("IMAGINING", "RECONSTRUCTING")
        return self.job.preview if works and self.job is not None else None

    # ---- what moves it

    def start(self, context: bpy.types.Context) -> None:
        """Begins the capture, or reads the files. Raises CaptureError when that cannot be done."""
        self._scene = context.scene.name
        self.name = self.name or new_name(context, self.order)
        if self.order.imagining is not None:
            self._spot = spot_for(context, self.order.placing)
            self._begin_imagining(self.order.imagining)
            return
        if self.order.transforms is not None:
            self._submit(CapturedViews.load(self.order.transforms))
            return
        self._capture = CaptureRun(self.order.shots)
        self._capture.start(context)

    def tick(self, context: bpy.types.Context, deadline: float) -> None:
        """Goes on until `deadline` (of time.perf_counter) or until there is something to wait for."""
        if self.phase == "CAPTURING":
            self._take_pictures(context)
        elif self.phase in ("IMAGINING", "RECONSTRUCTING"):
            self._follow_job()
        elif self.phase == "BUILDING":
            self._build(deadline)

    def cancel(self) -> None:
        """Stops at once on Blender's side; the backend stops within a second."""
        if self._capture is not None:
            self._capture.cancel()
        if self.job is not None:
            self._session.cancel(self.job.id)
        self._capture, self._assembly = None, None
        if self.active:
            self.phase = "CANCELLED"

    def finish_early(self) -> None:
        """Asks the backend to hand over the best it has."""
        if self.phase == "RECONSTRUCTING" and self.job is not None:
            self._session.finish(self.job.id)

    def suspend(self) -> None:
        """Lets go of everything in bpy.data that an undo is about to replace; the next tick starts that part again."""
        if self._capture is not None:
            self._capture.cancel()
            self._capture = None
        self._assembly = None
        if self.phase == "INSERTING":
            self.phase = "BUILDING"

    def insert(self, context: bpy.types.Context) -> Made:
        """Puts the built objects into the scene. To be called by one operator, so that it is one undo step."""
        if self._assembly is None or self.job is None:
            raise RuntimeError("nothing is built yet")
        self._times["total_seconds"] = time.monotonic() - self._started
        recipe = self.order.recipe(self._cameras, self.job.report or {}, dict(self._times))
        self.made = self._assembly.insert(context, recipe, self._spot)
        self.shown = self._assembly.shown
        self._assembly, self.job.splats, self.job.mesh = None, None, None
        self.phase = "DONE"
        return self.made

    def scene(self) -> bpy.types.Scene | None:
        """The scene it was started in, if it is still there."""
        return bpy.data.scenes.get(self._scene)

    def fail(self, sentence: str, detail: str = "") -> None:
        self.cancel()
        self.phase, self.problem = "FAILED", Problem(sentence, detail)

    # ---- inside

    def _take_pictures(self, context: bpy.types.Context) -> None:
        if self._capture is None:  # an undo came in between
            self.start(context)
            return
        if not self._capture.tick():
            return
        run, self._capture = self._capture, None
        self._times["capture_seconds"] = time.monotonic() - self._started
        if run.error is not None:
            self.fail(str(run.error))
        elif run.result is None:
            self.phase = "CANCELLED"
        else:
            self._submit(run.result)

    def _begin_imagining(self, wanted: imagining.Imagining) -> None:
        """Asks for views of a prompt or pictures, unless some have been chosen already."""
        if self._views is not None:
            self._submit(self._views)
            return
        files, order = picture_files.read_all(wanted.pictures), self.order
        asked = imagining.request(wanted, files, device=order.device, seed=order.seed, again=self.again)
        self.job = self._session.submit(replace(asked, job_id=new_job_id()), self.name)
        self.phase = "IMAGINING"

    def _submit(self, views: CapturedViews) -> None:
        size = self._spot.size if self._spot is not None else 0.0
        request = replace(self.order.request(views, size=size), job_id=new_job_id())
        self.job = self._session.submit(request, self.name)
        self._cameras = cameras_of(views)
        self.phase = "RECONSTRUCTING"

    def _follow_job(self) -> None:
        job = self.job
        assert job is not None
        if job.state == "failed" and job.failure is not None:
            self.fail(job.failure.sentence, job.failure.detail)
        elif job.state == "cancelled":
            self.phase = "CANCELLED"
        elif job.state == "done" and self.phase == "IMAGINING":
            self._take_views(job)
        elif job.state == "done" and job.splats is None and job.mesh is None:
            self.fail("The backend finished without a result. Copy the details and report them.", str(job.report))
        elif job.state == "done":
            self._times["reconstruct_seconds"] = time.monotonic() - job.running_since
            self.phase = "BUILDING"

    def _take_views(self, job: Job) -> None:
        """Goes on with the only candidate, or ends with all of them."""
        wanted = self.order.imagining
        assert wanted is not None
        self._times["imagine_seconds"] = time.monotonic() - self._started
        if not job.imagined:
            self.fail("The backend finished without any views. Copy the details and report them.", str(job.report))
        elif wanted.candidates > 1 or self.again is not None:
            self.imagined, self.phase = job.imagined, "CHOOSING"
        else:
            self._submit(imagining.views_of(job.imagined[0]))

    def _build(self, deadline: float) -> None:
        job = self.job
        assert job is not None
        if self._assembly is None:
            self._assembly = Assembly(self.order, self.name, job.splats, job.mesh)
        while not self._assembly.step():
            if time.perf_counter() >= deadline:
                return
        self.phase = "INSERTING"
