"""Parts of a published model in a folder: read whole or refused, and on the device while they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn

from backend.bad_input import BadInput
from backend.multiview import Budget
from backend.torch_files import PickledFile

Kind = TypeVar("Kind")
Network = TypeVar("Network", bound=nn.Module)

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def load_network(kind: type[Network], folder: Path, dtype: torch.dtype) -> Network:
    """A network of diffusers or transformers from its folder, for inference, on the CPU.

    Raises BadInput for a file that is missing or broken, and for one that lacks some of the network's tensors.
    """
    _check_files(folder)
    transformers.utils.logging.disable_progress_bar()
    how = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype, "output_loading_info": True}
    network, told = _loaded(kind, folder, **how)
    missing = sorted(told["missing_keys"])
    if missing:
        raise BadInput(
            f"{folder}: expected all tensors of a {kind.__name__}, found {len(missing)} missing, as {missing[0]}"
        )
    return network.eval().requires_grad_(False)


def empty_network(kind: type[Network], folder: Path, dtype: torch.dtype) -> Network:
    """A network of diffusers without numbers, on the meta device, as its folder's config.json says. Raises BadInput."""
    check_file(folder / "config.json")
    own: Any = kind
    with torch.device("meta"), _as_published(kind, folder):
        return own.from_config(own.load_config(str(folder), local_files_only=True)).to(dtype)


def load_setting(kind: type[Kind], folder: Path, *files: str) -> Kind:
    """A scheduler, tokenizer or image processor from its folder, which must have these files. Raises BadInput."""
    for name in files:
        check_file(folder / name)
    return _loaded(kind, folder)


@contextmanager
def at_work(part: nn.Module, budget: Budget) -> Iterator[None]:
    """The part is on the device; afterwards back in main memory where the budget wants it to wait there."""
    part.to(budget.device)
    try:
        yield
    finally:
        if budget.offload:
            part.to("cpu")


def check_file(path: Path) -> None:
    """Raises BadInput where there is no such file."""
    if not path.is_file():
        raise BadInput(f"{path}: expected a file of the published model, found none")


def _loaded(kind: Any, folder: Path, **how: Any) -> Any:
    with _as_published(kind, folder):
        return kind.from_pretrained(str(folder), local_files_only=True, **how)


@contextmanager
def _as_published(kind: type, folder: Path) -> Iterator[None]:
    """What the libraries say of a folder's files becomes BadInput."""
    try:
        yield
    except UNREADABLE as error:
        found = " ".join(str(error).split())
        raise BadInput(f"{folder}: expected a {kind.__name__} as published, found: {found}") from error


def _check_files(folder: Path) -> None:
    check_file(folder / "config.json")
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise BadInput(f"{folder}: expected one of {', '.join(WEIGHTS)}, found none")
    if found.suffix == ".bin":
        with PickledFile(found):  # which refuses all but tensors
            pass
