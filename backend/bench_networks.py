"""How fast the full-size networks run on this machine: seconds, peak memory, arithmetic beside what the machine can do.

Weights are random, which costs the same, but for the starter's. Each row runs in a process of its own, so that its peak
memory is its own.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from backend.cameras import Views, orbit
from backend.gaussians import Gaussians
from backend.mamba import Mamba2Config, MambaBlock
from backend.network import KINDS, load
from backend.rendering import render
from backend.weights import Family, entry_of, resolve

MATMUL_SIDE = {"cpu": 4096, "cuda": 8192}
ELEVATION, DISTANCE = math.radians(20), 2.7


@dataclass(frozen=True)
class Case:
    """A network to measure: its kind, preset and changes to that, and the views it gets.

    weights  a checkpoint's name, whose configuration it then has; empty: random ones
    """

    name: str
    kind: str
    preset: str
    views: int
    size: int
    changes: tuple[tuple[str, Any], ...] = ()
    weights: str = ""


@dataclass(frozen=True)
class Speed:
    """What was measured.

    matmul_tflops  the machine's rate for products of large matrices of this precision
    difference     of the splats' pictures from those in float32, mean over pixels and colours of the range 0..1
    """

    name: str
    views: int
    size: int
    precision: str
    device: str
    seconds: float
    peak_gib: float
    tflop: float
    matmul_tflops: float
    difference: float

    @property
    def share(self) -> float:
        """Of the machine's rate, 0..1."""
        return self.tflop / self.seconds / self.matmul_tflops


@dataclass(frozen=True)
class Length:
    """A sequence's length, and what one pass over it takes."""

    tokens: int
    seconds: float
    mib: float


STARTER = Case("the starter", "grm", "starter", 4, 256, weights="starter")
CASES = (
    STARTER,
    Case("LGM big", "lgm", "big", 4, 256),
    Case("GRM", "grm", "grm_u", 4, 256, (("input_res", 256),)),
    Case("Long-LRM", "long_lrm", "dl3dv_i540_32input_8target", 8, 256),
    Case("TripoSR", "triposr", "triposr", 1, 512),
    Case("OpenLRM base", "openlrm", "openlrm-base-1.1", 1, 336),
)
CUDA_CASES = (
    STARTER,
    Case("LGM big", "lgm", "big", 4, 256),
    Case("GRM", "grm", "grm_u", 4, 512),
    Case("Long-LRM", "long_lrm", "dl3dv_i540_32input_8target", 32, 540),
    Case("TripoSR", "triposr", "triposr", 1, 512),
)
# torch counts the products of attention on CUDA alone
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
LENGTHS = (1024, 4096, 16_384, 65_536)
SHORT = 256  # tokens of a first pass, which is not measured
SCAN_WIDTH, SCAN_STATE = 1024, 256  # of Long-LRM's blocks after the merge
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}


def network_speeds(device: str = "cpu", repeats: int = 3) -> list[Speed]:
    """A row for each case and precision; about five minutes on two cores."""
    cases = CUDA_CASES if device == "cuda" else CASES
    rows = ((case, precision) for case in cases for precision in PRECISIONS[device])
    return [Speed(**_in_a_process("network", asdict(case), precision, device, repeats)) for case, precision in rows]


def scan_lengths() -> list[Length]:
    """One Mamba-2 block of Long-LRM's width on a CPU, against the length of its sequence; about half a minute."""
    return [Length(**_in_a_process("scan", tokens)) for tokens in LENGTHS]


def exponent(rows: Sequence[Length], figure: str) -> float:
    """Of the power law through a figure against the length: 1 is linear."""
    steps = [math.log(row.tokens) for row in rows]
    values = [math.log(getattr(row, figure)) for row in rows]
    return statistics.linear_regression(steps, values).slope


def _in_a_process(what: str, *given: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "backend.bench_networks", json.dumps([what, *given])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def length_of(tokens: int) -> Length:
    """Measures one length in this process; the memory is what passes add to that of the input and the weights."""
    block = MambaBlock(Mamba2Config(SCAN_WIDTH, SCAN_STATE)).eval().requires_grad_(False)
    x = torch.randn(1, tokens, SCAN_WIDTH, generator=torch.Generator().manual_seed(0))
    block(x[:, :SHORT])
    before = psutil.Process().memory_info().rss
    held = torch.ones(max(0, _peak_bytes("cpu") - before) // 4)  # fills what loading has used and given back since
    before += 4 * held.numel()
    seconds = min(seconds_of(lambda: block(x), "cpu") for _ in range(2))
    return Length(tokens, round(seconds, 4), round(max(1, _peak_bytes("cpu") - before) / 2**20, 3))


def speed_of(case: Case, precision: str, device: str, repeats: int) -> Speed:
    """Measures one row in this process: the median of some runs after one that counts the arithmetic."""
    dtype, views = getattr(torch, precision), coloured_views(case.views, case.size)
    reconstruct = _network(case, dtype, device)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        got = reconstruct(views)
    seconds = [seconds_of(lambda: reconstruct(views), device) for _ in range(repeats)]
    peak = _peak_bytes(device)
    want = got if dtype == torch.float32 else _network(case, torch.float32, device)(views)
    return Speed(
        *(case.name, case.views, case.size, precision, device),
        seconds=round(sorted(seconds)[len(seconds) // 2], 3),
        peak_gib=round(peak / 2**30, 2),
        tflop=round(counter.get_total_flops() / 1e12, 6),
        matmul_tflops=round(matmul_rate(dtype, device), 3),
        difference=round(float((_picture(got, views) - _picture(want, views)).abs().mean()), 5),
    )


def _network(case: Case, dtype: torch.dtype, device: str) -> Callable[[Views], Gaussians]:
    """The case's network with the same weights each time, from views to Gaussians."""
    module, name = KINDS[case.kind]
    file = importlib.import_module(module)
    if case.weights:
        model = copy.deepcopy(_stored(case.weights))  # what was loaded is kept, and must not be rounded
    else:
        torch.manual_seed(0)
        model = getattr(file, name)(replace(file.PRESETS[case.preset], **dict(case.changes)))
    model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
    return lambda views: file.reconstruct(model, views)


def _stored(name: str) -> nn.Module:
    family = cast(Family, entry_of(name).family)
    path, _ = resolve(name, family)
    return load(path, family).model


def _picture(gaussians: Gaussians, views: Views) -> Tensor:
    """[1,H,W,3] what the first camera sees of them, over black; on the CPU, whose rasteriser is always there."""
    return render(gaussians.to("cpu"), views.cameras[[0]]).rgb


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
    return 2e-12 * side**3 / min(seconds_of(lambda: torch.mm(left, right), device) for _ in range(5))


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Wall clock of some work, on CUDA until it is done there."""
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
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has no such module

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description="one row, as JSON; for network_speeds and scan_lengths")
    parser.add_argument("given")
    what, first, *rest = json.loads(parser.parse_args().given)
    if what == "scan":
        row: Speed | Length = length_of(first)
    else:
        changes = tuple(tuple(change) for change in first.pop("changes"))
        row = speed_of(Case(**first, changes=changes), *rest)
    sys.stdout.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
