"""The speed tables of this machine: the rasteriser beside the slow reference, and the networks (bench_networks.py)."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numba
import torch
from rich.console import Console
from rich.table import Table

from backend import bench_networks
from backend.bench_networks import Length, Speed, seconds_of
from backend.cameras import Cameras
from backend.gaussians import Gaussians
from backend.rasterise_cpu import rasterise
from backend.rasterise_reference import rasterise_reference
from backend.rendering import gsplat_problem, render

DISTANCE, FIELD_OF_VIEW = 2.7, math.radians(50)


@dataclass(frozen=True)
class Scene:
    """A row to measure: Gaussians on the unit sphere, seen in a square picture."""

    name: str
    count: int
    size: int
    repeats: int


@dataclass(frozen=True)
class Row:
    """What was measured: medians in milliseconds; `ratio` is backward over forward. `note` says why there are no
    numbers.
    """

    name: str
    count: int
    size: int
    forward_ms: float | None = None
    backward_ms: float | None = None
    ratio: float | None = None
    note: str = ""


CPU_SCENES = (
    Scene("CPU, fit", 20_000, 256, 15),
    Scene("CPU", 65_536, 512, 9),
    Scene("CPU", 1_048_576, 512, 3),
)
SLOW_SCENES = (Scene("slow reference", 1024, 64, 5),)
SAME_SIZE_SCENES = (Scene("CPU, small", 1024, 64, 25),)
CUDA_SCENES = (Scene("CUDA, gsplat", 65_536, 512, 15), Scene("CUDA, gsplat", 1_048_576, 512, 9))


def sphere_shell(count: int, size: int, *, seed: int = 0) -> tuple[Gaussians, Cameras]:
    """`count` Gaussians on a sphere of radius 1, standard deviations of 1 to 3 pixels at its centre, opacities 0.3 to
    0.95, and the camera that sees it from 2.7 at 50 degrees in a picture of size x size."""
    generator = torch.Generator().manual_seed(seed)
    focal = size / 2 / math.tan(FIELD_OF_VIEW / 2)
    gaussians = Gaussians(
        means=torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1),
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=(1 + 2 * torch.rand(count, 3, generator=generator)) * DISTANCE / focal,
        opacities=0.3 + 0.65 * torch.rand(count, generator=generator),
        sh=torch.randn(count, 1, 3, generator=generator),
    )
    c2w = torch.eye(4)
    c2w[2, 3] = -DISTANCE
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return gaussians, Cameras(c2w[None], K[None], torch.zeros(1, dtype=torch.bool), size, size)


def measure(scene: Scene, picture: Callable[[Gaussians, Cameras], torch.Tensor], device: str = "cpu") -> Row:
    """Time `picture` on the scene forward without gradients, and then its backward pass."""
    gaussians, cameras = sphere_shell(scene.count, scene.size)
    gaussians, cameras = gaussians.to(device), cameras.to(device)
    leaves = Gaussians(*(field.requires_grad_() for field in vars(gaussians.detach()).values()))
    picture(leaves, cameras).sum().backward()  # compiles, or loads what an earlier run compiled
    forward, backward = [], []
    for _ in range(scene.repeats):
        with torch.no_grad():
            forward.append(1000 * seconds_of(lambda: picture(leaves, cameras), device))
        image = picture(leaves, cameras)
        gradient = torch.ones_like(image)
        backward.append(1000 * seconds_of(lambda image=image, gradient=gradient: image.backward(gradient), device))
    fast, slow = sorted(forward)[len(forward) // 2], sorted(backward)[len(backward) // 2]
    return Row(scene.name, scene.count, scene.size, round(fast, 2), round(slow, 2), round(slow / fast, 2))


def _gsplat_picture(gaussians: Gaussians, cameras: Cameras) -> torch.Tensor:
    seen = render(gaussians, cameras)
    return torch.cat([seen.rgb, seen.depth[..., None], seen.alpha[..., None]], -1)


def run_bench() -> list[Row]:
    """All rows of the table; about half a minute on two cores."""
    rows = [measure(scene, rasterise) for scene in CPU_SCENES + SAME_SIZE_SCENES]
    rows += [measure(scene, rasterise_reference) for scene in SLOW_SCENES]
    problem = gsplat_problem()
    if problem:
        return [
            *rows,
            *(Row(scene.name, scene.count, scene.size, note=f"not available: {problem}") for scene in CUDA_SCENES),
        ]
    return rows + [measure(scene, _gsplat_picture, "cuda") for scene in CUDA_SCENES]


def machine() -> dict[str, str | int]:
    """What the numbers were taken on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
        "threads": numba.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def print_table(rows: list[Row]) -> None:
    """Write the rows to the standard output."""
    threads = numba.get_num_threads()
    table = Table(title=f"Rasteriser, projection and sorting included, median of several runs, {threads} threads")
    for heading in ("what", "Gaussians", "picture", "forward ms", "backward ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        numbers = (row.forward_ms, row.backward_ms, row.ratio)
        cells = ["" if number is None else f"{number:.2f}" for number in numbers]
        table.add_row(row.name, f"{row.count:,}", f"{row.size}x{row.size}", *cells)
    console = Console(file=sys.stdout)
    console.print(table)
    for note in sorted({f"{row.name}: {row.note}" for row in rows if row.note}):
        console.print(note)


def print_networks(speeds: Sequence[Speed], lengths: Sequence[Length]) -> None:
    """Write the networks' rows to the standard output."""
    table = Table(title="Networks at full size, one pass from views to Gaussians")
    for heading in ("what", "views", "precision", "s", "peak GiB", "TFLOP/s", "of matrix products", "difference"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in speeds:
        rate = row.tflop / row.seconds
        what = (row.name, f"{row.views} of {row.size}x{row.size}", row.precision)
        took = (f"{row.seconds:.2f}", f"{row.peak_gib:.2f}", f"{rate:.3f}", f"{row.share:.0%}")
        table.add_row(*what, *took, f"{row.difference:.4f}")
    console = Console(file=sys.stdout)
    console.print(table)
    table = Table(title="A Mamba-2 block of width 1024, float32")
    for heading in ("tokens", "s", "MiB"):
        table.add_column(heading, justify="right")
    for row in lengths:
        table.add_row(f"{row.tokens:,}", f"{row.seconds:.3f}", f"{row.mib:.0f}")
    console.print(table)
    powers = (bench_networks.exponent(lengths, figure) for figure in ("seconds", "mib"))
    console.print("time grows with length to the power {:.2f}, memory to the power {:.2f}".format(*powers))


def bench(json_path: Path | None) -> int:
    """Measure, print the table, and write it to `json_path` if given. Returns the exit status."""
    rows = run_bench()
    print_table(rows)
    speeds = bench_networks.network_speeds("cuda" if torch.cuda.is_available() else "cpu")
    lengths = bench_networks.scan_lengths()
    print_networks(speeds, lengths)
    if json_path is not None:
        tables = {"rows": rows, "networks": speeds, "scan": lengths}
        text = json.dumps(
            {"machine": machine()} | {name: [asdict(row) for row in table] for name, table in tables.items()}, indent=2
        )
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(text + "\n", encoding="utf-8")
    return 0
