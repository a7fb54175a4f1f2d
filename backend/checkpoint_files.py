"""Checkpoints: a file, published or our own, to a configuration and tensors, and tensors into a network.

Published are safetensors and files of torch.save, with the configuration inside, beside or nowhere. Our own form is one
safetensors file whose metadata holds the family and the configuration as JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from backend import checkpoint_configs
from backend.bad_input import BadInput
from backend.safe_pickle import StoredTensor
from backend.torch_files import ZIP_START, PickledFile
from blender_addon.atomic_file import replacing

Family: TypeAlias = Literal["grm", "lgm", "long_lrm", "lrm"]

# A tensor that the networks of one kind have and the others have not. The family lrm has two kinds.
SIGNATURES = {
    "grm": "visual_encoder.transformer_encoder.conv.weight",
    "lgm": "unet.conv_in.weight",
    "long_lrm": "tokenDecoder.1.weight",
    "triposr": "tokenizer.embeddings",
    "openlrm": "camera_embedder.mlp.0.weight",
}
KINDS = {"grm": ("grm",), "lgm": ("lgm",), "long_lrm": ("long_lrm",), "lrm": ("openlrm", "triposr")}
ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
MAX_HEADER = 100 * 2**20  # bytes, the safetensors library's own limit
MAX_VALUES = 10_000  # of a configuration
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    kind     of network: a key of SIGNATURES
    config   in the layout that the network's `config_from` takes
    state    tensors on the CPU, by the published names, in the precision of the file
    sha256   of the file with the tensors, hexadecimal
    """

    kind: str
    config: Mapping[str, Any]
    state: dict[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class _Read:
    """What a file holds: tensors, and the configuration where it has one. `own` is the family our own form names."""

    state: dict[str, Tensor]
    config: Mapping[str, Any] | None = None
    own: str = ""


def read_checkpoint(path: Path, family: Family) -> Checkpoint:
    """Reads a file, or the only checkpoint in a folder. Nothing in it is run. Raises BadInput.

    A configuration that is not in the file is looked for beside it: config.json, for TripoSR and Long-LRM config.yaml
    as well. NAME.json beside NAME.pth, say, is laid over either: what the file's publisher has left untold.
    """
    file = _weights_file(path)
    try:
        read = _read_safetensors(file) if _form(file) == "safetensors" else _read_pickled(file)
        kind = _kind_of(read, file, family)
        config = _config_of(kind, read, file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{file}: expected a file that can be read, found: {error.strerror or error}") from error
    return Checkpoint(kind, config, read.state, digest)


def write_checkpoint(path: Path, family: Family, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Writes our own form, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"family": family, "config": json.dumps(config)}
    with replacing(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def load_into(module: nn.Module, state: Mapping[str, Tensor], ignored: Sequence[str] = ()) -> None:
    """Puts a checkpoint's tensors into a network, in the network's precision and on its device.

    ignored    regular expressions of whole names that are dropped

    A network on the meta device takes tensors of its own instead, on the CPU. Raises BadInput that says which tensors
    are missing, unexpected or of the wrong shape, or which are not finite; then the network is as it was.
    """
    dropped = [re.compile(pattern) for pattern in ignored]
    kept = {name: tensor for name, tensor in state.items() if not any(drop.fullmatch(name) for drop in dropped)}
    wanted = module.state_dict()
    problems = [
        _listed("missing", [name for name in wanted if name not in kept]),
        _listed("unexpected", [name for name in kept if name not in wanted]),
        _listed("of the wrong shape", _misshapen(wanted, kept)),
    ]
    if any(problems):
        raise BadInput(f"weights: expected the network's own tensors, found {'; '.join(filter(None, problems))}")
    if broken := [name for name, tensor in kept.items() if not torch.isfinite(tensor).all()]:
        raise BadInput(f"weights: expected finite numbers, found {_listed('with NaN or infinite ones', broken)}")
    meta = any(tensor.is_meta for tensor in wanted.values())
    cast = {name: tensor.to(wanted[name].dtype, copy=meta) for name, tensor in kept.items()} if meta else kept
    module.load_state_dict(cast, strict=True, assign=meta)


def _misshapen(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    both = ((name, tensor.shape, found[name].shape) for name, tensor in wanted.items() if name in found)
    return [f"{name}: expected {list(left)}, found {list(right)}" for name, left, right in both if left != right]


def _listed(what: str, names: list[str]) -> str:
    """`2 tensors missing (a, b)`, or nothing."""
    if not names:
        return ""
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'} {what} ({shown})"


# ---- files


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix in ENDINGS and file.is_file())
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise BadInput(f"{path}: expected a folder with one checkpoint ({' '.join(ENDINGS)}), found {names}")
    return found[0]


def _form(file: Path) -> Literal["safetensors", "pickle"]:
    """By the file's first bytes. Raises BadInput for what is no checkpoint, saying what it seems to be."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(ZIP_START) or head[:1] == b"\x80":
        return "pickle"
    if head[8:9] == b"{":
        return "safetensors"
    found = "something else"
    if not head:
        found = "an empty file"
    elif head.lstrip()[:1] == b"<":
        found = "a web page; download the file itself, not the page about it"
    elif head.startswith(b"version https://git-lfs"):
        found = "a pointer of Git LFS; download the file it stands for"
    raise BadInput(f"{file}: expected a checkpoint (safetensors or torch.save), found {found}")


def _read_safetensors(file: Path) -> _Read:
    _check_header(file)
    try:
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}
    except safetensors.SafetensorError as error:
        raise BadInput(f"{file}: expected a safetensors file, found a damaged one ({error})") from error
    config = _parsed(f"{file}: metadata", metadata["config"], json.loads) if "config" in metadata else None
    return _Read(_without_wrapper(state), config, metadata.get("family", ""))


def _check_header(file: Path) -> None:
    """Sees that the file is as long as its first bytes promise, before memory is taken."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= min(size, MAX_HEADER) else b""
    if not header:
        raise BadInput(f"{file}: expected a whole safetensors file, found one that ends within its header")
    tensors = _parsed(f"{file}: header", header, json.loads)
    ranges = [tensor.get("data_offsets") for tensor in tensors.values() if isinstance(tensor, dict)]
    ends = [spot for offsets in ranges if isinstance(offsets, list) for spot in offsets if isinstance(spot, int)]
    promised = 8 + length + max(ends, default=0)
    if promised != size:
        raise BadInput(f"{file}: expected a safetensors file of {promised} bytes, found {size}; it may be truncated")


def _read_pickled(file: Path) -> _Read:
    with PickledFile(file) as pickled:
        stored, config = _unwrapped(pickled.content, file)
        odd = next((name for name, tensor in stored.items() if not isinstance(tensor, StoredTensor)), None)
        if odd is not None:
            raise BadInput(f"{file}: expected tensors by name, found {type(stored[odd]).__name__} at {odd!r}")
        return _Read(_without_wrapper(pickled.load(stored)), config)


def _unwrapped(content: Any, file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The tensors and the configuration in a pickled value: the published files each wrap them in their own way.

    TripoSR's is the tensors themselves; GRM and Long-LRM have them under `model`, OpenLRM 1.0 under `weights`.
    """
    if not isinstance(content, dict):
        raise BadInput(f"{file}: expected tensors by name, found {type(content).__name__}")
    config = None
    if isinstance(content.get("config"), dict) and isinstance(content.get("model"), dict):
        parts = {part: _inside(content, "config", "model_config", part, "params") for part in ("visual", "render")}
        config = checkpoint_configs.grm_published({part: told for part, told in parts.items() if told is not None})
    elif isinstance(content.get("kwargs"), dict):
        config = dict(_inside(content, "kwargs", "model") or {})
        if size := _inside(content, "kwargs", "infer", "source_size"):
            config["image_size"] = size
    for key in ("model", "weights"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    if not content or not all(isinstance(name, str) for name in content):
        raise BadInput(f"{file}: expected tensors by name, found none")
    return content, None if config is None else _plain(config, file)


def _inside(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _without_wrapper(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that torch's parallel training puts before each."""
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _plain(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A configuration as JSON would hold it. Raises BadInput for one that is too large or holds something else."""
    left = MAX_VALUES

    def plain(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or not isinstance(value, dict | list | tuple | str | int | float | None):
            found = "too many values" if left < 0 else type(value).__name__
            raise BadInput(f"{file}: expected a configuration of plain values, found {found}")
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    try:
        return plain(config)
    except RecursionError as error:
        raise BadInput(f"{file}: expected a configuration of plain values, found one without end") from error


# ---- what it is


def _kind_of(read: _Read, file: Path, family: Family) -> str:
    """The network that the tensors belong to, one of KINDS[family]."""
    kinds = [kind for kind, name in SIGNATURES.items() if name in read.state]
    right = [kind for kind in kinds if kind in KINDS[family]]
    if right and read.own in ("", family):
        return right[0]
    found = f"one of {read.own or (kinds and kinds[0])}" if read.own or kinds else "tensors of no network that is known"
    raise BadInput(f"{file}: expected a checkpoint of {family}, found {found}")


def _config_of(kind: str, read: _Read, file: Path) -> Mapping[str, Any]:
    if read.own:
        if read.config is None:
            raise BadInput(f"{file}: expected a config in the metadata, found the family {read.own!r} alone")
        return read.config
    given = read.config if read.config is not None else _beside(file, kind)
    notes = file.with_suffix(".json")
    if notes.is_file():
        given = checkpoint_configs.merged(given, _parsed(str(notes), notes.read_bytes(), json.loads))
    if given.get("family") == kind:  # the whole layout already
        return given
    match kind:
        case "grm":
            return checkpoint_configs.grm_config(read.state, given)
        case "lgm":
            return checkpoint_configs.lgm_config(read.state, given)
        case "long_lrm":
            return checkpoint_configs.long_lrm_config(read.state, given)
        case "triposr":
            return checkpoint_configs.triposr_config(read.state, given)
        case _:
            return checkpoint_configs.openlrm_config(read.state, given)


def _beside(file: Path, kind: str) -> Mapping[str, Any]:
    """The configuration beside a checkpoint; empty where there is none."""
    path = file.with_name("config.json")
    if path.is_file():
        return _parsed(str(path), path.read_bytes(), json.loads)
    path = file.with_name("config.yaml")
    if kind in ("triposr", "long_lrm") and path.is_file():
        told = _parsed(str(path), path.read_bytes(), yaml.safe_load)
        return told if kind == "triposr" else _of_the_network(told)
    return {}


def _of_the_network(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """What Long-LRM's YAML for training says of the network and the world it wants."""
    kept = {"model": trainer["model"]} if "model" in trainer else {}
    scale = _inside(trainer, "data", "scene_scale")
    return kept if scale is None else kept | {"data": {"scene_scale": scale}}


def _parsed(what: str, text: str | bytes, parse: Any) -> Mapping[str, Any]:
    try:
        value = parse(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise BadInput(f"{what}: expected JSON or YAML, found: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{what}: expected named values, found {type(value).__name__}")
    return value
