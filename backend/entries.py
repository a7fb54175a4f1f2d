"""What is known of a checkpoint that has a name: where it is published, of which files, under which licences.

Imports no torch, so that listing is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Family: TypeAlias = Literal["grm", "lgm", "long_lrm", "lrm"]
Purpose: TypeAlias = Family | Literal["views", "matting"]  # `views`: of a front end

STARTER = Path(__file__).resolve().parent / "starter"  # what ships, and LICENCE.md about it


@dataclass(frozen=True)
class File:
    """A file that is fetched.

    name        in its repository
    bytes       as published or counted from the network's shapes, 0 where unknown; the hub knows better. A file that
                ships is there to be asked
    repository  where it is not the checkpoint's own
    place       in the checkpoint's folder on this machine; empty: there, under its name without folders
    address     where it is published outside of the hub, with the SHA-256 of its bytes
    sha256      of what the address gives
    """

    name: str
    bytes: int = 0
    repository: str = ""
    place: str = ""
    address: str = ""
    sha256: str = ""

    @property
    def local(self) -> str:
        """Its path in the checkpoint's folder on this machine."""
        return self.place or self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class CameraSetUp:
    """The cameras a checkpoint expects, in its family's own frame. They look at the origin.

    angles    elevation and azimuth of each view, degrees
    radius    distance from the origin
    fov       opening angle across the picture, degrees
    """

    angles: tuple[tuple[float, float], ...]
    radius: float
    fov: float


@dataclass(frozen=True)
class Entry:
    """A checkpoint that has a name.

    name            what --weights and the panel call it
    family          the networks it is of, or what else it is for
    preset          its family's name for its configuration
    repository      on the hub (huggingface.co); empty: it ships, in STARTER, unless its files have addresses
    files           what is fetched, the tensors first
    purpose         one line
    code_licence    of the published code, which nothing here is taken from
    weight_licence  of the weights, in plain words
    commercial      whether the weights may be used commercially
    memory_gib      peak in float32 on a processor, or as its publishers tell of a card, gibibytes, weights included
    cameras         None: any posed views; or those of the front end
    config          what its files do not tell, in the layout that its family's `config_from` takes
    home            the publisher's page, where it is not the repository's
    """

    name: str
    family: Purpose
    preset: str
    repository: str
    files: tuple[File, ...]
    purpose: str
    code_licence: str
    weight_licence: str
    commercial: Literal["yes", "no", "unclear"]
    memory_gib: float
    cameras: CameraSetUp | None
    config: Mapping[str, Any] = field(default_factory=dict)
    home: str = ""

    @property
    def shipped(self) -> bool:
        """Whether it is a part of this program, and so neither fetched nor removed."""
        return not self.repository and not self.home

    @property
    def bytes(self) -> int:
        if not self.shipped:
            return sum(file.bytes for file in self.files)
        there = [STARTER / file.local for file in self.files]
        return sum(file.stat().st_size for file in there if file.is_file())

    @property
    def page(self) -> str:
        """Where the publisher's own words are."""
        if self.shipped:
            return (STARTER / "LICENCE.md").as_uri()
        return self.home or f"https://huggingface.co/{self.repository}"

    @property
    def licence(self) -> str:
        """What is shown and accepted before a download."""
        use = {
            "yes": "Commercial use is allowed.",
            "no": "Commercial use is not allowed.",
            "unclear": "Whether commercial use is allowed is unclear.",
        }
        return f"Weights: {self.weight_licence}. {use[self.commercial]} Published code: {self.code_licence}."
