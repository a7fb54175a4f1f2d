"""What makes splats: the fit, and the families of networks with the views that each takes. Standard library alone.

The panel, the capture and the backend all read this one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

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
            *("grm", "GRM", "One pass of the GRM network over four views around an object", 1),
            used=4,
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


def problem(name: str, views: int, *, orthographic: bool) -> str:
    """Why a family cannot take so many views, some of them `orthographic`, as a sentence; empty where it can."""
    family = FAMILIES[name]
    if views < family.least:
        return f"{family.title} needs at least {family.least} views, found {views}."
    if orthographic and not family.orthographic:
        return f"{family.title} takes perspective cameras alone, found an orthographic one."
    return ""
