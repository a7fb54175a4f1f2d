"""Sets of views to choose from before they become splats: plain arrays and icons, no part of it in a .blend.

An undo does not touch them; another file, another set or switching the extension off drops them.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

import numpy as np

from .imagining import Again, Imagining, with_view
from .order import Order
from .preview import PreviewIcon, contact_sheet
from .protocol import Imagined

SHEET = 384  # pixels of a contact sheet's side
SEEDS = 1_000_000  # new seeds are drawn from so many, so that a person can read and note one


def new_seed() -> int:
    return secrets.randbelow(SEEDS)


@dataclass
class Candidate:
    """number  its name in the panel; never given to another of the same Candidates"""

    number: int
    seed: int
    imagined: Imagined
    changed: tuple[int, ...] = ()  # views that were made anew or replaced
    icon: PreviewIcon = field(default_factory=lambda: PreviewIcon(SHEET))

    def show(self) -> None:
        """Draws its contact sheet."""
        self.icon.show(contact_sheet(self.imagined.images, SHEET))


class Candidates:
    """What the newest order has brought. Public attributes are for reading.

    order    that they are answers to; None while there are none
    items    in the order they came
    version  grows with each change, so that a redraw can be told apart
    """

    def __init__(self) -> None:
        self.order: Order | None = None
        self.items: list[Candidate] = []
        self.version = 0
        self._next = 1

    def find(self, number: int) -> Candidate | None:
        return next((item for item in self.items if item.number == number), None)

    def take(self, order: Order, imagined: list[Imagined], again: Again | None) -> None:
        """Takes in what a run has brought: a first set in place of all, a further candidate, or a changed one."""
        if again is None:
            self.clear()
            self.order = order
        if again is not None and again.candidate >= 0:
            self._change(again, imagined)
        else:
            for views in imagined:
                self._add(views)
        self.version += 1

    def wanted(self, item: Candidate) -> Imagining:
        """What the candidate was made of, as a recipe should say it."""
        assert self.order is not None and self.order.imagining is not None
        return replace(self.order.imagining, candidates=1, changed=item.changed)

    def more(self) -> tuple[Order, Again]:
        """The order of a further candidate, with the next seed."""
        assert self.order is not None and self.order.imagining is not None
        seeds = [self.order.seed, *(item.seed for item in self.items)]
        one = replace(self.order.imagining, candidates=1)
        return replace(self.order, imagining=one, seed=max(seeds) + 1), Again()

    def redo(self, item: Candidate, view: int) -> tuple[Order, Again]:
        """The order of one view anew, with another seed."""
        assert self.order is not None
        order = replace(self.order, imagining=self.wanted(item), seed=new_seed())
        return order, Again(item.number, item.imagined.images, view)

    def replace_view(self, item: Candidate, view: int, image: np.ndarray) -> None:
        """Puts an image [H,W,4] uint8 of the views' size in a view's place."""
        self._renew(item, with_view(item.imagined, view, image), view)
        self.version += 1

    def discard(self, number: int) -> None:
        for item in [item for item in self.items if item.number == number]:
            item.icon.close()
            self.items.remove(item)
        self.order = self.order if self.items else None
        self.version += 1

    def clear(self) -> None:
        for item in self.items:
            item.icon.close()
        self.order, self.items, self.version = None, [], self.version + 1

    def _add(self, views: Imagined) -> None:
        item = Candidate(self._next, views.seed, views)
        item.show()
        self.items.append(item)
        self._next += 1

    def _change(self, again: Again, imagined: list[Imagined]) -> None:
        item = self.find(again.candidate)
        if item is not None and imagined:  # it may have been discarded meanwhile
            self._renew(item, imagined[0], again.redo)

    def _renew(self, item: Candidate, imagined: Imagined, view: int) -> None:
        item.imagined, item.changed = imagined, tuple(sorted({*item.changed, view}))
        item.show()
