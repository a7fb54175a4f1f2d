"""Long-LRM's sizes: the published configuration, and those of a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from backend.cameras import BadInput
from backend.mamba import Mamba2Config


def _expect(good: bool, key: str, expectation: str, found: object) -> None:
    if not good:
        raise BadInput(f"{key}: Long-LRM expects {expectation}, found {found}")


@dataclass(frozen=True)
class LongLRMConfig:
    """One Long-LRM network. Raises BadInput for values that do not fit together.

    num_layers         blocks
    block_type         their kinds, "m" Mamba-2 or "t" transformer; repeated until there are enough, or cut
    dim                width of the tokens: at first, and after each merge
    merge_layers       blocks before which every 2x2 tokens become one
    patch_size         pixels of a side of the first patches
    head_dim           of the attention
    d_state            numbers that each channel of a Mamba-2 block remembers
    num_global_tokens  learnt tokens at the head of the sequence
    sh_degree          harmonics of the colours
    scale_bias         added to the logarithms of the scales, whose most is `scale_max`
    opacity_bias       added to the logits of the opacities
    align_to_pixel     Gaussians lie on their pixels' rays; else anywhere
    max_dist           farthest distance along a ray, in the normalised world
    prune_ratio        share of the Gaussians that is left out
    random_ratio       share of the kept ones that the published training draws by lot
    scene_scale        of the normalised world, see `normalise` in long_lrm_cameras.py
    """

    num_layers: int
    block_type: str
    dim: tuple[int, ...]
    merge_layers: tuple[int, ...] = ()
    patch_size: int = 8
    head_dim: int = 64
    d_state: int = 256
    num_global_tokens: int = 2
    sh_degree: int = 3
    scale_bias: float = -6.9
    scale_max: float = -1.2
    opacity_bias: float = -2.0
    align_to_pixel: bool = True
    max_dist: float = 500.0
    prune_ratio: float = 0.0
    random_ratio: float = 0.0
    scene_scale: float = 1.35

    def __post_init__(self) -> None:
        for name in ("num_layers", "patch_size", "head_dim", "d_state", "max_dist", "scene_scale"):
            _expect(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        for name in ("num_global_tokens", "sh_degree"):
            _expect(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("prune_ratio", "random_ratio"):
            _expect(0 <= getattr(self, name) < 1, name, "a share from 0 to below 1", getattr(self, name))
        _expect(set(self.block_type) in ({"m"}, {"t"}, {"m", "t"}), "block_type", "letters m and t", self.block_type)
        merges = self.merge_layers
        good = all(0 <= index < self.num_layers for index in merges) and list(merges) == sorted(set(merges))
        _expect(good, "merge_layers", f"ascending indices of {self.num_layers} blocks", merges)
        _expect(len(self.dim) == len(merges) + 1, "dim", f"{len(merges) + 1} widths, one more than merges", self.dim)
        _expect(min(self.dim) > 0, "dim", "positive widths", self.dim)
        for width, wider in zip(self.dim, self.dim[1:], strict=False):
            _expect(wider % width == 0, "dim", "each width a multiple of the one before", self.dim)
        for kind, width in self.blocks:
            if kind == "t":
                _expect(width % self.head_dim == 0, "dim", f"whole heads of {self.head_dim} where it attends", width)
            else:
                Mamba2Config(width, self.d_state)  # says itself what does not fit

    @property
    def blocks(self) -> list[tuple[str, int]]:
        """Kind and width of every block."""
        kinds = (self.block_type * self.num_layers)[: self.num_layers]
        merged = [sum(index >= merge for merge in self.merge_layers) for index in range(self.num_layers)]
        return [(kind, self.dim[done]) for kind, done in zip(kinds, merged, strict=True)]

    @property
    def multiple(self) -> int:
        """Pixels of a side of the last patches: heights and widths are multiples of it."""
        return self.patch_size * 2 ** len(self.merge_layers)

    @property
    def channels(self) -> tuple[int, ...]:
        """Numbers a pixel: position, colour, scale, rotation, opacity."""
        return 3, 3 * (self.sh_degree + 1) ** 2, 3, 4, 1


PRESETS: dict[str, LongLRMConfig] = {
    "dl3dv_i540_32input_8target": LongLRMConfig(
        num_layers=24,
        block_type="mmmmmmmt",
        dim=(256, 1024),
        merge_layers=(8,),
        prune_ratio=0.6,
        random_ratio=0.1,
    ),
}

_SECTIONS = {  # of a config.json, with the fields that each may hold
    "model": ("num_layers", "block_type", "dim", "merge_layers", "patch_size", "num_global_tokens"),
    "model.transformer": ("head_dim",),
    "model.mamba2": ("d_state",),
    "model.gaussians": (
        *("sh_degree", "scale_bias", "scale_max", "opacity_bias", "align_to_pixel", "max_dist"),
        *("prune_ratio", "random_ratio"),
    ),
    "data": ("scene_scale",),
}
_NOT_OURS = {  # what a config.json says of the files beside it, and of rendering, which the network has no part in
    "": ("input", "seed"),
    "model.gaussians": ("near_plane", "far_plane"),
}
_KINDS = {"int": int, "float": (int, float), "bool": bool, "str": str}


def config_from(data: Mapping[str, Any]) -> LongLRMConfig:
    """The network that a config.json of the published layout describes. Raises BadInput for what it does not know."""
    values = _values(data, "")
    words = {"transformer": "t", "mamba2": "m"}
    values["block_type"] = words.get(values.get("block_type", ""), values.get("block_type"))
    for name in ("num_layers", "dim"):
        _expect(name in values, f"model.{name}", "a value", "none")
    return LongLRMConfig(**values)


def _values(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The fields in a section and those below it."""
    _expect(isinstance(section, Mapping), path or "config", "a section with fields", section)
    values = {}
    for key, value in section.items():
        name = f"{path}.{key}".lstrip(".")
        if name in _SECTIONS:
            values |= _values(value, name)
        elif key in _SECTIONS.get(path, ()):
            values[key] = _checked(key, name, value)
        elif key not in _NOT_OURS.get(path, ()):
            raise BadInput(f"{name}: Long-LRM does not know this field, whose value is {value}")
    return values


def _checked(key: str, name: str, value: Any) -> Any:
    kind = {field.name: str(field.type) for field in fields(LongLRMConfig)}[key]
    if kind.startswith("tuple"):
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        _expect(all(type(number) is int for number in value), name, "whole numbers", value)
    else:
        good = isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
        _expect(good, name, f"a value of type {kind}", repr(value))
    return value
