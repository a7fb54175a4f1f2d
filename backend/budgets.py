"""How a diffusion model is run on a device, by the memory that is free there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backend.multiview import Budget

GIB = 2**30
SMALL = GIB // 4  # bytes of weights below which nothing is worth saving
USABLE = 0.9  # of what is free: the rest of the machine goes on working


@dataclass(frozen=True)
class Way:
    """One way to run a model on a card.

    offload, slicing  as in Budget
    share             of the weights that lies on the card at a time
    beside            bytes that computing takes beside them
    """

    offload: bool
    slicing: bool
    share: float
    beside: int


# From the fastest to the one that needs least, which is taken where no other fits. The largest part of a diffusion
# model, its denoiser, has about three quarters of the weights.
WAYS = (
    Way(offload=False, slicing=False, share=1.0, beside=4 * GIB),
    Way(offload=False, slicing=True, share=1.0, beside=2 * GIB),
    Way(offload=True, slicing=False, share=0.75, beside=4 * GIB),
    Way(offload=True, slicing=True, share=0.75, beside=2 * GIB),
)


def choose_budget(device: torch.device, weights: int, free: int) -> Budget:
    """The most exact and fastest way that fits.

    weights  bytes of the model's weights as they are published, mostly in half precision
    free     bytes that are free on the device

    Raises MemoryError for weights that do not fit into a processor's main memory in any precision.
    """
    if weights < SMALL:
        return Budget(device)
    usable = USABLE * free
    if device.type == "cuda":
        fitting = (way for way in WAYS if way.share * weights + way.beside <= usable)
        way = next(fitting, WAYS[-1])
        return Budget(device, torch.float16, way.offload, way.slicing)
    if 2 * weights <= usable:
        return Budget(device)
    if weights <= usable:
        return Budget(device, torch.bfloat16, slicing=True)
    raise MemoryError(
        f"memory: the front end's weights take {weights / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free; close other "
        "programs, or choose a smaller front end"
    )
