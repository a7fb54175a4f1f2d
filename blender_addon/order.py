"""What one press of Generate asks for, as plain values: from the panel, the command line or a script alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from . import protocol
from .families import FAMILIES, METHODS, Family, MethodName, Precision
from .imagining import Imagining, Placing
from .views import CapturedViews, CaptureError, CaptureSettings

Output = Literal["splats", "mesh", "both"]

SMALLEST_FACES, LARGEST_FACES = 100, 2_000_000
TEXTURE_SIZES = (256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Order:
    """Views in, results out.

    capture       what to render; of no use when `transforms` or `imagining` is given
    transforms    a transforms.json with pictures, instead of rendering
    imagining     a prompt or pictures of which views are made, instead of rendering
    placing       where the result of such views stands; others stand where the cameras saw them
    method        the one of METHODS that was asked for; empty: model, weights and refine were chosen one by one
    model         a family the backend offers; `fit` optimises for this scene
    weights       a checkpoint's name or path; empty: the model's default
    precision     of a network's numbers
    steps         optimisation steps of `fit`; 0: the default for the views
    refine        fit steps after a network
    max_splats    0: the default
    output        what joins the scene. A mesh is made from splats, so both cost the same
    faces         target face count of the mesh
    texture_size  pixels of the texture's side
    seed          of all chance; of several candidates the first one's
    name          of the result; empty: after the captured object
    """

    capture: CaptureSettings = field(default_factory=CaptureSettings)
    transforms: Path | None = None
    imagining: Imagining | None = None
    placing: Placing = field(default_factory=Placing)
    method: MethodName | Literal[""] = ""
    model: str = "fit"
    weights: str = ""
    precision: Precision = "auto"
    steps: int = 0
    refine: int = 0
    max_splats: int = 0
    output: Output = "splats"
    faces: int = 20_000
    texture_size: int = 1024
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        limits = {
            "steps": (self.steps, 0, 1_000_000),
            "refine": (self.refine, 0, 1_000_000),
            "splat limit": (self.max_splats, 0, 100_000_000),
            "face count": (self.faces, SMALLEST_FACES, LARGEST_FACES),
            "texture size": (self.texture_size, TEXTURE_SIZES[0], TEXTURE_SIZES[-1]),
        }
        for label, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise CaptureError(f"The {label} must lie between {low} and {high}, found {value}.")
        if self.model not in FAMILIES:
            raise CaptureError(f"The model must be one of {', '.join(FAMILIES)}, found {self.model!r}.")
        if self.method:
            self._check_method()
        if self.steps and self.model != "fit":
            raise CaptureError(f"Steps are for the fit, found {self.steps} for {self._family.title}: leave them out.")
        if self.source == "viewport" and self.capture.count < self._family.least:
            raise CaptureError(f"{self._family.title} needs at least {self._family.least} views.")
        if self.imagining is not None:
            self.imagining.check_model(self.model)

    def _check_method(self) -> None:
        if self.method not in METHODS:
            raise CaptureError(f"The method must be one of {', '.join(METHODS)}, found {self.method!r}.")
        for name, wanted in METHODS[self.method].settings.items():
            if getattr(self, name) != wanted:
                raise CaptureError(
                    f"The method {self.method} comes with {name} {wanted!r}, found {getattr(self, name)!r}: "
                    f"name either the method or the {name}."
                )

    @property
    def source(self) -> str:
        if self.imagining is not None:
            return self.imagining.source
        return "files" if self.transforms is not None else self.capture.source

    @property
    def _family(self) -> Family:
        return FAMILIES[self.model]

    @property
    def shots(self) -> CaptureSettings:
        """The capture as the model can use it: no more cameras around an object than it looks at, where it expects
        them.
        """
        if self.capture.source not in ("orbit", "viewport"):
            return self.capture
        least = 4 if self.capture.source == "orbit" else 1
        count = min(self.capture.count, max(self._family.used or self.capture.count, least))
        return replace(self.capture, count=count, elevations=self.capture.elevations or self._family.elevations)

    @property
    def wants_mesh(self) -> bool:
        return self.output != "splats"

    def request(self, views: CapturedViews, *, size: float = 0.0) -> protocol.Reconstruct:
        """The message for the backend; the session gives it its job id.

        size  longest side of the result, scene units; 0: as the views have it
        """
        return protocol.Reconstruct(
            job_id="",
            images=views.images,
            c2w=views.c2w,
            Ks=views.Ks,
            orthographic=views.orthographic,
            depth=views.depth,
            mesh=self.wants_mesh,
            size=size,
            **{name: getattr(self, name) for name in SENT},
        )

    def made_by(self, views: int, report: dict[str, Any]) -> str:
        """What made the result, such as "Balanced: starter network, 100 steps of fit, 8 views"."""
        head = METHODS[self.method].title if self.method else self._family.title
        network, steps = Path(report.get("weights") or self.weights).name, report.get("steps") or 0
        parts = [f"{network} network".strip()] if self.model != "fit" else []
        parts += [f"{steps} steps of fit"] if steps else []
        return f"{head}: {', '.join([*parts, '1 view' if views == 1 else f'{views} views'])}"

    def _imagined(self) -> dict[str, Any]:
        """What a recipe says of views that were made of a prompt or pictures."""
        if self.imagining is None:
            return {}
        told = {"imagining": self.imagining.recipe(), "placing": asdict(self.placing)}
        return told | {"imagined_by": self.imagining.made_by(self.seed)}

    def recipe(self, cameras: dict[str, Any], report: dict[str, Any], times: dict[str, float]) -> dict[str, Any]:
        """What the result remembers: enough to make it again and to say how good it is. JSON values only."""
        settings = {name: getattr(self, name) for name in SETTINGS} | {"capture": asdict(self.capture)}
        return {
            "source": self.source if self.transforms is None else str(self.transforms),
            **self._imagined(),
            "cameras": cameras,
            "method": self.method,
            "made_by": self.made_by(len(cameras["names"]), report),
            "model": self.model,
            "settings": settings,
            "seed": self.seed,
            "weight_hash": report.get("weights_sha256", ""),
            "times": times,
            "psnr": report.get("psnr"),
            "report": report,
        }


def cameras_of(views: CapturedViews) -> dict[str, Any]:
    """The views' cameras as JSON values, OpenCV axes, and the engine that rendered them."""
    return {
        "c2w": [[[round(value, 6) for value in row] for row in matrix] for matrix in views.c2w.tolist()],
        "Ks": [[[round(value, 4) for value in row] for row in matrix] for matrix in views.Ks.tolist()],
        "orthographic": views.orthographic.tolist(),
        "size": [views.width, views.height],
        "names": list(views.names),
        "engine": views.engine,
    }


SETTINGS = ("weights", "precision", "steps", "refine", "max_splats", "output", "faces", "texture_size", "device")
SENT = ("model", "weights", "precision", "steps", "refine", "max_splats", "faces", "texture_size", "device", "seed")
