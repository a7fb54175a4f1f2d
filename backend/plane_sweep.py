"""Depth of posed photographs by plane-sweep stereo (Collins 1996), on the CPU."""

from __future__ import annotations

from torch import Tensor

from backend.cameras import Views
from backend.monitor import Monitor


def sweep_depth(
    views: Views, *, planes: int = 96, neighbours: int = 4, side: int = 240, monitor: Monitor
) -> tuple[Tensor, Tensor]:
    """Depth of every view against its `neighbours` best neighbours over `planes` planes of even inverse depth.

    planes      depth hypotheses between the nearest and farthest distances that the cameras themselves suggest
    neighbours  views that each view is matched against
    side        pixels of the longer side at which the matching is done
    Returns depth [V,H,W] float32, planar, scene units, 0 where nothing was found, at the views' own size, and
    confidence [V,H,W] float32, 0..1: 0 where no other view agrees. All zeros where the cameras have no parallax.
    """
    raise NotImplementedError
