"""What tests of front ends share: a monitor that remembers, wishes, and rigs of small pictures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.monitor import JobCancelled
from backend.multiview import Held, Wish
from blender_addon.front_ends import FRONT_ENDS


@dataclass
class Watcher:
    """A monitor. `cancel_at`: the step at which its user has had enough; 0: never."""

    cancel_at: int = 0
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[np.ndarray] = field(default_factory=list)

    def progress(self, stage: str, step: int, total: int) -> None:
        self.steps.append((stage, step, total))
        if step == self.cancel_at:
            raise JobCancelled

    def preview(self, image: np.ndarray) -> None:
        assert image.dtype == np.uint8 and image.shape[2] == 4
        self.previews.append(image)

    def finish_early(self) -> bool:
        return False


def picture(side: int = 48) -> Tensor:
    """[S,S,4]: an opaque red square, its left half green, in the middle of nothing."""
    image = torch.zeros(side, side, 4)
    quarter = side // 4
    image[quarter:-quarter, quarter:-quarter] = torch.tensor([0.9, 0.1, 0.1, 1.0])
    image[quarter:-quarter, quarter : side // 2] = torch.tensor([0.1, 0.8, 0.1, 1.0])
    return image


def wish(
    *, prompt: str = "", seed: int = 3, steps: int = 2, guidance: float = 4.0, shown: Tensor | None = None
) -> Wish:
    return Wish(prompt, "", shown, steps, guidance, seed)


def held(front_end: str, redo: int) -> Held:
    """Different views of the front end's size, with alpha."""
    rig = FRONT_ENDS[front_end].rig
    chance = torch.Generator().manual_seed(9)
    coarse = torch.rand(len(rig.angles), 4, 4, 4, generator=chance)
    images = torch.nn.functional.interpolate(coarse, (rig.side, rig.side), mode="bilinear")
    return Held(images.permute(0, 2, 3, 1).contiguous(), redo)


def shrink(monkeypatch: pytest.MonkeyPatch, front_end: str, side: int = 64) -> None:
    """Views of a front end become this small."""
    full = FRONT_ENDS[front_end]
    monkeypatch.setitem(FRONT_ENDS, front_end, replace(full, rig=replace(full.rig, side=side)))
