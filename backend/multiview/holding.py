"""Keeping views while another is made anew: at each step what is kept is put back, as noisy as the rest is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def put_back(latents: Tensor, known: Tensor, redo: int, noised: Callable[[Tensor], Tensor]) -> Tensor:
    """Latents [V,...] with all but those of the view `redo` replaced by the known ones, [V,...] without noise.

    noised  brings latents without noise to the noise level that `latents` have
    """
    kept = noised(known).to(latents, copy=True)
    kept[redo] = latents[redo]
    return kept
