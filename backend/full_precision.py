"""Where a network's numbers must stay as exact as they are, whatever runs around it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast, if it is on, does nothing; on any device, "meta" too, which knows no autocast."""
    known = torch.amp.autocast_mode.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
