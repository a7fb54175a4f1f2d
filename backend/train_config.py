"""What a training run is: one frozen configuration, read from JSON so that all it says is honoured or refused by name.

{"family": "grm", "network": "starter", "data": {"seed": 1}, "steps": 20000,
 "stages": [{"until": 0.3, "size": 64, "weights": {"rgb": 0, "perceptual": 0}}, {"size": 128}]}
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from backend.bad_input import BadInput
from backend.data import DataConfig
from backend.recipes import recipe_of

Config = TypeVar("Config")
MAY_CHANGE = ("micro_batch", "workers", "checkpoint_seconds")  # between the parts of one run: not what it computes


@dataclass(frozen=True)
class Stage:
    """One part of a run, for a curriculum: small pictures first, say, or geometry first and rendering after.

    until    share of the run at which it ends; the last one's is 1
    size     pixels of a side of the pictures
    views    fewest and most views of an object, all of which supervise
    inputs   fewest and most of them that are given to the network
    weights  of the recipe's terms, where others than the recipe's own
    """

    until: float = 1.0
    size: int = 128
    views: tuple[int, int] = (8, 8)
    inputs: tuple[int, int] = (4, 4)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """One run. The same configuration computes the same, on any number of processes, and after any number of kills.

    family              of the network: one of backend.recipes.RECIPES
    network             a preset's name, or a configuration in the form of the family's config.json
    data                where the samples come from; a stage sets their size and views
    stages              one after the other
    steps               of the optimiser; or
    minutes             of training, set-up included, over which rate and stages are laid out. One of the two is 0
    batch               objects a step, by all processes together
    micro_batch         objects that are in memory at once; divides `batch`
    rate                largest learning rate
    warm_up             share of the run over which the rate rises; then it falls to 0 as a cosine
    weight_decay        of matrices; vectors (biases, norms) have none
    clip                longest gradient
    outlier             a step is skipped whose gradient is longer than so many medians of the last ones, or not finite
    patience            the run ends after so many skipped steps in a row
    average             decay of the moving average of the weights, which is what is judged and exported
    precision           of the network's products; weights, optimiser, geometry and rendering are float32
    seed                of the first weights and of the recipe's chance; the data have their own
    start               a checkpoint of the family whose weights the run begins with; empty: random ones
    validations         times that held-out objects are judged, evenly over the run; 0: never
    validation_objects  how many; with as many views as the last stage's most
    validation_inputs   of those views, given to the network; 0: as the last stage's most
    workers             processes that make data; 0: the training process makes them, on the device that trains
    checkpoint_seconds  between checkpoints; each validation makes one too
    """

    family: str
    network: str | Mapping[str, Any]
    data: DataConfig = field(default_factory=DataConfig)
    stages: tuple[Stage, ...] = (Stage(),)
    steps: int = 0
    minutes: float = 0.0
    batch: int = 8
    micro_batch: int = 8
    rate: float = 4e-4
    warm_up: float = 0.02
    weight_decay: float = 0.05
    clip: float = 1.0
    outlier: float = 10.0
    patience: int = 50
    average: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    start: str = ""
    validations: int = 20
    validation_objects: int = 8
    validation_inputs: int = 0
    workers: int = 0
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        _expect(
            (self.steps > 0) != (self.minutes > 0), "steps", "a number above 0, or else minutes above 0", self.steps
        )
        for name in ("batch", "micro_batch", "rate", "clip", "patience", "validation_objects"):
            _expect(getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        for name in ("weight_decay", "validations", "validation_inputs", "workers", "checkpoint_seconds", "seed"):
            _expect(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("warm_up", "average"):
            _expect(0 <= getattr(self, name) < 1, name, "a share from 0 to below 1", getattr(self, name))
        _expect(self.outlier > 1, "outlier", "a number above 1", self.outlier)
        _expect(self.batch % self.micro_batch == 0, "micro_batch", f"a divisor of {self.batch}", self.micro_batch)
        self._check_stages()

    def _check_stages(self) -> None:
        known = tuple(recipe_of(self.family).WEIGHTS)
        ends = [stage.until for stage in self.stages]
        rising = ends == sorted(set(ends)) and ends[:1] > [0.0] and ends[-1:] == [1.0]
        _expect(rising, "stages", "shares that rise, the last one 1", ends)
        most = self.stages[-1].views[1]
        _expect(self.validation_inputs <= most, "validation_inputs", f"at most {most}", self.validation_inputs)
        for number, stage in enumerate(self.stages):
            path = f"stages.{number}"
            _expect(stage.size > 0, f"{path}.size", "a number above 0", stage.size)
            (least, most), (fewest, inputs) = stage.views, stage.inputs
            _expect(1 <= least <= most, f"{path}.views", "fewest and most views", stage.views)
            _expect(1 <= fewest <= inputs <= least, f"{path}.inputs", f"from 1 to {least}", stage.inputs)
            for name in stage.weights:
                _expect(name in known, f"{path}.weights.{name}", f"one of {', '.join(known)}", "another term")

    def stage_at(self, share: float) -> int:
        """Number of the stage at a share of the run."""
        return next((n for n, stage in enumerate(self.stages) if share < stage.until), len(self.stages) - 1)


def read_json(path: Path) -> Any:
    """What a configuration's file holds. Raises BadInput."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: expected a configuration as JSON, found: {error}") from error


def read_config(path: Path, *, minutes: float = 0.0) -> TrainConfig:
    """The run that a JSON file describes; `minutes` above 0 take the place of its steps or minutes. Raises BadInput."""
    data = read_json(path)
    if minutes and isinstance(data, dict):
        data = data | {"steps": 0, "minutes": minutes}
    return config_from(data)


def config_from(data: Any) -> TrainConfig:
    """The run that plain values describe. Raises BadInput naming what is unknown, missing or of the wrong kind."""
    return read_as(TrainConfig, data)


def read_as(kind: type[Config], data: Any) -> Config:
    """A frozen dataclass of plain values. Raises BadInput naming what is unknown, missing or of the wrong kind."""
    return _read(kind, data, "")


def config_data(config: TrainConfig) -> dict[str, Any]:
    """Plain values, which `config_from` reads back; JSON can hold them."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first field in which two runs are not the same, with both values; empty where they compute the same."""
    for name in {**new, **old}:
        if name not in MAY_CHANGE and old.get(name) != new.get(name):
            return f"{name} was {json.dumps(old.get(name))} and is {json.dumps(new.get(name))}"
    return ""


# ---- plain values as the kinds that a dataclass's fields have


def _read(kind: Any, value: Any, path: str) -> Any:
    if is_dataclass(kind):
        return _read_fields(kind, value, path)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_one_of(inner, value, path)
    if origin is Literal:
        _expect(value in inner, path, " or ".join(map(str, inner)), value)
        return value
    if origin is tuple:
        _expect(isinstance(value, list | tuple), path, "a list", value)
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        _expect(len(value) == len(kinds), path, f"{len(kinds)} values", value)
        return tuple(_read(one, item, f"{path}.{n}") for n, (one, item) in enumerate(zip(kinds, value, strict=True)))
    if kind is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        _expect(isinstance(value, Mapping), path, "names and values", value)
        return {str(key): _read(inner[1], item, f"{path}.{key}") for key, item in value.items()}
    return _read_plain(kind, value, path)


def _read_fields(kind: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, Mapping), path or "config", "names and values", value)
    hints, known = typing.get_type_hints(kind), {one.name: one for one in fields(kind)}
    for name in value:
        _expect(name in known, _joined(path, name), f"one of {', '.join(known)}", "a name that is not known")
    for name, one in known.items():
        needed = one.default is MISSING and one.default_factory is MISSING
        _expect(name in value or not needed, _joined(path, name), "a value", "none")
    return kind(**{name: _read(hints[name], item, _joined(path, name)) for name, item in value.items()})


def _read_one_of(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """As the first of some kinds that it can be."""
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return _read(kind, value, path)
        except BadInput:
            continue
    return _read(others[-1], value, path)


def _read_plain(kind: Any, value: Any, path: str) -> Any:
    if kind is Any:
        return value
    if kind is Path:
        _expect(isinstance(value, str | Path), path, "a path", value)
        return Path(value)
    allowed = (int, float) if kind is float else (kind,)
    good = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
    good = good and not (isinstance(value, float) and not math.isfinite(value))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    _expect(good, path, names.get(kind, str(kind)), value)
    return kind(value)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _expect(good: bool, name: str, expected: str, found: object) -> None:
    if not good:
        raise BadInput(f"config: {name}: expected {expected}, found {found}")
