"""The Gaussians that a per-scene optimisation of photographs without alpha starts from."""

from __future__ import annotations

from backend.cameras import Views
from backend.gaussians import Gaussians
from backend.monitor import Monitor


def scene_gaussians(views: Views, *, count: int, seed: int, monitor: Monitor) -> Gaussians:
    """At most `count` Gaussians (sh of degree 0) on what the views show, the same for the same seed.

    Places come from `views.depth` where given, else from plane-sweep stereo; pixels without depth become background
    behind their surroundings; where stereo finds nothing, random points fill the space that the cameras have in common.
    """
    raise NotImplementedError
