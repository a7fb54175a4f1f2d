"""Our networks on golden values:  python tests/golden.py FAMILY DIR OUT.safetensors

Builds the network of DIR/config.json, loads DIR/weights.safetensors, runs DIR/input.safetensors and writes every tensor
of DIR/output.safetensors, under its name there, to OUT.safetensors. Exit status 2, with one sentence, for bad input.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    "grm": ("golden_grm", "run"),
    "lgm": ("golden_lgm", "run"),
    "long_lrm": ("golden_long_lrm", "run"),
    "mamba2": ("golden_long_lrm", "run_mamba2"),
    "bimamba2": ("golden_long_lrm", "run_bimamba2"),
    "mvdream": ("golden_mvdream", "run"),
    "openlrm": ("golden_lrm", "run_openlrm"),
    "triposr": ("golden_lrm", "run_triposr"),
}
NEEDED = ("config.json", "weights.safetensors", "input.safetensors")


def run_of(family: str) -> Callable[[Path], dict[str, torch.Tensor]]:
    module, function = RUNS[family]
    return getattr(importlib.import_module(f"tests.{module}"), function)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 3 or arguments[0] not in RUNS:
        sys.stderr.write(f"usage: golden.py FAMILY DIR OUT.safetensors, FAMILY being one of {', '.join(RUNS)}\n")
        return 2
    family, folder, out = arguments[0], Path(arguments[1]), Path(arguments[2])
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        sys.stderr.write(f"error: {folder}: expected {', '.join(NEEDED)}, found no {missing[0]}\n")
        return 2
    try:
        made = run_of(family)(folder)
    except ValueError as error:  # BadInput among them
        sys.stderr.write(f"error: {folder}: {error}\n")
        return 2
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in made.items()}
    safetensors.torch.save_file(tensors, out)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
