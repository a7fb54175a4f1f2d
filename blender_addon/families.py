"""What makes splats: the fit, the families of networks with the views that each takes, and the methods, which are the
three of these ways that most people want. Standard library alone.

The panel, the capture and the backend all read these two tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

MethodName: TypeAlias = Literal["fast", "balanced", "best"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]  # of a network's numbers
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Family:
    """One way from views to splats.

    name          what commands and messages call it
    title, tip    what the panel shows
    number        what a .blend stores; never given to another
    least         fewest views
    used          most views that it looks at; of more, it chooses. None: all
    orthographic  whether parallel projections are taken
    elevations    degrees of an orbit's cameras when the user names none; empty: as for the fit
    """

    name: str
    title: str
    tip: str
    number: int
    least: int = 1
    used: int | None = None
    orthographic: bool = True
    elevations: tuple[float, ...] = ()


FAMILIES = {
    family.name: family
    for family in (
        Family("fit", "Fit (per scene)", "Optimise the splats for exactly these views; needs no weights", 0),
        Family(
            *("grm", "GRM", "One pass of the GRM network over up to eight views around an object", 1),
            used=8,  # the published checkpoints choose four of them
            elevations=(20.0,),
        ),
        Family(
            *("lgm", "LGM", "One pass of the LGM network over four views around an object", 2),
            least=4,
            used=4,
            orthographic=False,
            elevations=(0.0,),
        ),
        Family(
            *("long_lrm", "Long-LRM", "One pass of the Long-LRM network, for whole scenes", 3),
            used=32,
            orthographic=False,
        ),
        Family(
            *("lrm", "LRM", "One pass of the LRM network over the first view, by way of a triplane", 4),
            used=1,
            orthographic=False,
            elevations=(0.0,),
        ),
    )
}
NETWORKS = tuple(name for name in FAMILIES if name != "fit")


@dataclass(frozen=True)
class Method:
    """A way to make splats that has a name of its own.

    name          what commands and scripts call it
    title, tip    what the panel shows
    number        what a .blend stores; never given to another
    model         the family, with its default checkpoint
    refine        steps of fit after a network
    """

    name: MethodName
    title: str
    tip: str
    number: int
    model: str
    refine: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """What it stands for, under the names of an Order."""
        return {"model": self.model, "weights": "", "refine": self.refine}


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("fast", "Fast", "The starter network alone: seconds, once the pictures are taken", 0, "grm"),
        Method("balanced", "Balanced", "The starter network, then a short fit to the pictures", 1, "grm", refine=100),
        Method("best", "Best", "A fit to the pictures from the beginning: minutes", 2, "fit"),
    )
}
DEFAULT_METHOD: MethodName = "fast"


def problem(name: str, views: int, *, orthographic: bool) -> str:
    """Why a family cannot take so many views, some of them `orthographic`, as a sentence; empty where it can."""
    family = FAMILIES[name]
    if views < family.least:
        return f"{family.title} needs at least {family.least} views, found {views}."
    if orthographic and not family.orthographic:
        return f"{family.title} takes perspective cameras alone, found an orthographic one."
    return ""
