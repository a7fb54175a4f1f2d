"""What is kept of a run, so that it goes on after a kill as if nothing had happened; and what of it ships.

A checkpoint is one safetensors file: weights, the optimiser's moments and the weights' moving average by name, all else
as JSON in its metadata. There is no state of random numbers in it: every sample, background and distortion is a
function of a seed and its own number. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from backend.bad_input import BadInput
from blender_addon.atomic_file import replacing

log = logging.getLogger(__name__)

KEPT = 2  # checkpoints; the older one for the case that the newer cannot be read
BEST = "best.safetensors"
BETAS = (0.9, 0.95)
WEIGHT, AVERAGE = "weight", "average"  # before a tensor's name; other tensors are the optimiser's


class AveragingAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) that also keeps a moving average of each weight, as its state `average`.

    The average forgets faster at first, so that the random weights of the beginning are soon out of it.
    """

    def __init__(self, model: nn.Module, *, weight_decay: float, average: float) -> None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": weight_decay},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        super().__init__([group for group in groups if group["params"]], betas=BETAS, fused=True)
        self.average = average

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                state = self.state[weight]
                if AVERAGE not in state:
                    state[AVERAGE] = weight.detach().clone()
                steps = float(state["step"])
                keep = min(self.average, (1 + steps) / (10 + steps))
                state[AVERAGE].lerp_(weight.detach(), 1 - keep)
        return result


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    config   plain values, see `train_config.config_data`
    network  the network's configuration in its file form
    step     steps done, skipped ones included
    samples  objects seen: the next one's number
    seconds  of training in all parts of the run
    norms    lengths of the last gradients, oldest first
    skipped  steps skipped in a row
    scores   step and PSNR of each validation
    """

    config: Mapping[str, Any]
    network: Mapping[str, Any]
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    norms: tuple[float, ...] = ()
    skipped: int = 0
    scores: tuple[tuple[int, float], ...] = ()

    @property
    def best(self) -> float:
        return max((score for _, score in self.scores), default=float("-inf"))


# ---- tensors by name, wherever their parts lie


def gathered(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of a run, whole, by `weight/NAME` or `KEY/NAME` of the optimiser's state.

    All processes must call it where the weights are in parts.
    """
    tensors = {f"{WEIGHT}/{name}": whole(tensor) for name, tensor in model.state_dict().items()}
    for name, weight in model.named_parameters():
        tensors |= {f"{key}/{name}": whole(value) for key, value in optimizer.state.get(weight, {}).items()}
    return tensors


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `gathered` gave, in the parts and on the devices of the model's weights."""
    states: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        key, name = path.split("/", 1)
        states.setdefault(name, {})[key] = tensor
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(_like(tensor, states[name].pop(WEIGHT)))
    for name, weight in model.named_parameters():
        if states[name]:
            count = {"step": states[name].pop("step").clone()}  # AdamW wants it on the CPU
            rest = {key: _like(weight, value) for key, value in states[name].items()}
            optimizer.state[weight] = count | rest


def averages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights' moving averages by the network's names; what was never trained as it is."""
    names = [path.removeprefix(f"{WEIGHT}/") for path in tensors if path.startswith(f"{WEIGHT}/")]
    return {name: tensors.get(f"{AVERAGE}/{name}", tensors[f"{WEIGHT}/{name}"]) for name in names}


def whole(tensor: Tensor) -> Tensor:
    """A tensor whose parts may lie in several processes, all of which must call this then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(part: Tensor, full: Tensor) -> Tensor:
    """A copy where `part` is, in parts if that is."""
    full = full.to(part.device, copy=True)
    return distribute_tensor(full, part.device_mesh, part.placements) if isinstance(part, DTensor) else full


# ---- checkpoints


def save(folder: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint, whole or not at all, and removes all but the last KEPT."""
    folder.mkdir(parents=True, exist_ok=True)
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = json.dumps(asdict(progress), allow_nan=False)
    path = folder / f"step_{progress.step:09d}.safetensors"
    with replacing(path) as file:
        file.write(safetensors.torch.save(cpu, {"progress": told, "check": _check_of(told, cpu)}))
    for old in _checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def load_latest(folder: Path) -> tuple[Progress, dict[str, Tensor]] | None:
    """The newest checkpoint of a folder that is whole; None where there is none. Removes what a kill left unfinished.

    Raises BadInput where there are checkpoints and none of them can be read.
    """
    for unfinished in folder.glob(".*.part"):
        unfinished.unlink(missing_ok=True)
    found = _checkpoints(folder)
    for path in reversed(found):
        try:
            return _load(path)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged and left out: %s", path, error)
    if found:
        raise BadInput(f"{folder}: expected a checkpoint that can be read, found {len(found)} damaged")
    return None


def _load(path: Path) -> tuple[Progress, dict[str, Tensor]]:
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if metadata["check"] != _check_of(metadata["progress"], tensors):
        raise ValueError("its content is not what was written")
    told = json.loads(metadata["progress"])
    scores = tuple((int(step), float(score)) for step, score in told.pop("scores"))
    return Progress(**told | {"scores": scores, "norms": tuple(told["norms"])}), tensors


def _check_of(told: str, tensors: Mapping[str, Tensor]) -> str:
    """A checksum: a file may have its length and yet not its content, after a power cut, say."""
    check = zlib.crc32(told.encode())
    for name in sorted(tensors):
        check = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, zlib.crc32(name.encode(), check))
    return f"{check:08x}"


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("step_*.safetensors"))


# ---- what ships


def write_weights(path: Path, family: str, progress: Progress, state: Mapping[str, Tensor]) -> None:
    """Writes a network as `checkpoint_files.read_checkpoint` loads it; beside its configuration, how it was made."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as file:
        file.write(safetensors.torch.save(tensors, _metadata(family, progress)))


def _metadata(family: str, progress: Progress) -> dict[str, str]:
    kept = ("config", "step", "samples", "seconds")
    told = {key: value for key, value in asdict(progress).items() if key in kept}
    made = told | ({"psnr": progress.scores[-1][1]} if progress.scores else {})
    return {"family": family, "config": json.dumps(progress.network), "training": json.dumps(made)}


def export(run: Path, out: Path) -> None:
    """Writes the best network of a run in float16: the one that scored best, or the last one of a run without scores.

    Raises BadInput where the folder holds no run.
    """
    best = run / BEST
    if best.is_file():
        with safetensors.safe_open(best, "pt") as file:
            metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    else:
        loaded = load_latest(run / "checkpoints")
        if loaded is None:
            raise BadInput(f"{run}: expected the folder of a training run, found no checkpoint in it")
        progress, tensors = loaded
        metadata, state = _metadata(progress.config["family"], progress), averages(tensors)
    halved = {name: _halved(tensor) for name, tensor in state.items()}
    with replacing(out) as file:
        file.write(safetensors.torch.save(halved, _without_folders(metadata)))


def _without_folders(metadata: Mapping[str, str]) -> dict[str, str]:
    """For others to read: of a run's paths only the names, for where they lay is nobody's business."""
    made = json.loads(metadata["training"])
    data = made["config"].get("data", {})
    named = {"assets": data["assets"] and Path(data["assets"]).name} if "assets" in data else {}
    named |= {"folders": [Path(folder).name for folder in data["folders"]]} if "folders" in data else {}
    start = {"start": Path(made["config"]["start"]).name} if "start" in made["config"] else {}
    config = made["config"] | start | ({"data": data | named} if data else {})
    return {**metadata, "training": json.dumps(made | {"config": config})}


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
