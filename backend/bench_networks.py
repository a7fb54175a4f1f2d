"""How fast the full-size networks run on this machine: seconds, peak memory, arithmetic beside what the machine can do.

Weights are random, which costs the same. Each row runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from backend.cameras import Views, orbit
from backend.network import KINDS

MATMUL_SIDE = {"cpu": 4096, "cuda": 8192}
ELEVATION, DISTANCE = math.radians(20), 2.7


@dataclass(frozen=True)
class Case:
    """A network to measure: its kind, preset and changes to that, and the views it gets."""

    name: str
    kind: str
    preset: str
    views: int
    size: int
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Speed:
    """What was measured. `matmul_tflops` is the machine's rate for products of large matrices of this precision."""

    name: str
    views: int
    size: int
    precision: str
    device: str
    seconds: float
    peak_gib: float
    tflop: float
    matmul_tflops: float

    @property
    def share(self) -> float:
        """Of the machine's rate, 0..1."""
        return self.tflop / self.seconds / self.matmul_tflops


CASES = (
    Case("LGM big", "lgm", "big", 4, 256),
    Case("GRM", "grm", "grm_u", 4, 256, (("input_res", 256),)),
    Case("Long-LRM", "long_lrm", "dl3dv_i540_32input_8target", 8, 256),
    Case("TripoSR", "triposr", "triposr", 1, 512),
    Case("OpenLRM base", "openlrm", "openlrm-base-1.1", 1, 336),
)
CUDA_CASES = (
    Case("LGM big", "lgm", "big", 4, 256),
    Case("GRM", "grm", "grm_u", 4, 512),
    Case("Long-LRM", "long_lrm", "dl3dv_i540_32input_8target", 32, 540),
    Case("TripoSR", "triposr", "triposr", 1, 512),
)
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}


def network_speeds(device: str = "cpu", repeats: int = 3) -> list[Speed]:
    """A row for each case and precision; about five minutes on two cores."""
    cases = CUDA_CASES if device == "cuda" else CASES
    return [_in_a_process(case, precision, device, repeats) for case in cases for precision in PRECISIONS[device]]


def _in_a_process(case: Case, precision: str, device: str, repeats: int) -> Speed:
    given = json.dumps([asdict(case), precision, device, repeats])
    command = [sys.executable, "-m", "backend.bench_networks", given]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def speed_of(case: Case, precision: str, device: str, repeats: int) -> Speed:
    """Measures one row in this process: the median of some runs after one that counts the arithmetic."""
    dtype = getattr(torch, precision)
    module, name = KINDS[case.kind]
    file = importlib.import_module(module)
    config = replace(file.PRESETS[case.preset], **dict(case.changes))
    model = getattr(file, name)(config).eval().requires_grad_(False).to(device=device, dtype=dtype)
    views = coloured_views(case.views, case.size)
    with FlopCounterMode(display=False) as counter:
        file.reconstruct(model, views)
    seconds = [_seconds(lambda: file.reconstruct(model, views), device) for _ in range(repeats)]
    peak = _peak_bytes(device)
    return Speed(
        *(case.name, case.views, case.size, precision, device),
        seconds=round(sorted(seconds)[len(seconds) // 2], 3),
        peak_gib=round(peak / 2**30, 2),
        tflop=round(counter.get_total_flops() / 1e12, 3),
        matmul_tflops=round(matmul_rate(dtype, device), 3),
    )


def coloured_views(count: int, size: int) -> Views:
    """Pictures of a disc of noise, from all around."""
    cameras = orbit(count, target=torch.zeros(3), radius=DISTANCE, elevation=ELEVATION, fov=math.radians(50), size=size)
    generator = torch.Generator().manual_seed(0)
    place = (torch.arange(size) + 0.5) / size - 0.5
    disc = (place[:, None] ** 2 + place**2).sqrt() < 0.35
    images = torch.rand(count, size, size, 4, generator=generator)
    images[..., 3] = disc.float()
    return Views(images, cameras)


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """TFLOP a second of the product of two large square matrices, the best of five."""
    side = MATMUL_SIDE[device]
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    return 2e-12 * side**3 / min(_seconds(lambda: torch.mm(left, right), device) for _ in range(5))


def _seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description="one row, for network_speeds")
    parser.add_argument("given")
    case, precision, device, repeats = json.loads(parser.parse_args().given)
    case["changes"] = tuple(tuple(change) for change in case["changes"])
    sys.stdout.write(json.dumps(asdict(speed_of(Case(**case), precision, device, repeats))) + "\n")


if __name__ == "__main__":
    main()
