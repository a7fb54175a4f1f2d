"""Mamba-2: the chunked scan against the recurrence step by step, the layers against golden values and their laws."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from backend import mamba
from backend.cameras import BadInput
from backend.mamba import BidirectionalMamba2, Mamba2, Mamba2Config, MambaBlock, MambaScan, recurrence
from tests.golden_long_lrm import run_bimamba2, run_mamba2
from tests.peak_memory import PeakMemory

NAMES = ("x", "dt", "A", "B", "C", "state")


def step_by_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The slow twin of `recurrence`: one position after the other, as the formula says."""
    batch, length, heads, width = x.shape
    groups = B.shape[2]
    if state is None:
        state = x.new_zeros(batch * groups, B.shape[3], heads // groups, width)
    S = state.unflatten(0, (batch, groups)).transpose(2, 3).flatten(1, 2)  # [B,h,N,P]
    B, C = (part.repeat_interleave(heads // groups, dim=2) for part in (B, C))  # [B,L,h,N]
    outputs = []
    for t in range(length):
        remains = (dt[:, t] * A).exp()[..., None, None]
        S = remains * S + (dt[:, t, :, None] * B[:, t])[..., None] * x[:, t, :, None]
        outputs.append((C[:, t, :, None] @ S)[..., 0, :])
    S = S.unflatten(1, (groups, -1)).flatten(0, 1).transpose(1, 2)
    return torch.stack(outputs, 1), S


def signals(
    length: int, *, heads: int = 4, groups: int = 1, N: int = 8, P: int = 5, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """x, dt, A, B, C, state, the decays from hardly any to almost all within a step."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, heads, P), (2, length, heads), (heads,)] + 2 * [(2, length, groups, N)]
    shapes.append((2 * groups, N, heads // groups, P))
    x, dt, A, B, C, state = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [part.to(dtype) for part in (x, F.softplus(dt - 2), -(2 * A).exp(), B, C, state)]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 256, 300])
def test_the_chunked_scan_is_the_recurrence(length: int, groups: int) -> None:
    given = signals(length, groups=groups)
    expected, last = step_by_step(*(part.double() for part in given))
    y, state = recurrence(*given)
    assert state is not None
    torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(state.double(), last, atol=2e-5, rtol=2e-5)
    exact, _ = recurrence(*(part.double() for part in given))
    torch.testing.assert_close(exact, expected, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("groups", [1, 2])
def test_its_gradients_are_the_recurrences(groups: int) -> None:
    given = signals(150, groups=groups)
    weights = torch.randn(2, 150, 4, 5, generator=torch.Generator().manual_seed(1)).double()

    def gradients(scan: Callable[..., tuple[Tensor, Tensor | None]], dtype: torch.dtype) -> list[Tensor]:
        leaves = [part.to(dtype).requires_grad_() for part in given]
        y, state = scan(*leaves)
        assert state is not None
        ((y * weights.to(dtype)).sum() + state.square().sum()).backward()
        return [leaf.grad.double() for leaf in leaves if leaf.grad is not None]

    expected = gradients(step_by_step, torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        for name, ours, slow in zip(NAMES, gradients(recurrence, dtype), expected, strict=True):
            error = (ours - slow).abs().max() / slow.abs().max()
            assert error < tolerance, f"{name} {dtype}: {float(error)}"


def test_the_sum_of_many_large_decays_costs_no_precision() -> None:
    x, _, A, B, C, _ = signals(128, heads=1)
    dt = torch.full((2, 128, 1), 1e-4)
    dt[:, :64] = 30  # with A of -16, the logarithms add up to -30720 before the part that matters starts
    A = torch.full_like(A, -16)
    y, _ = recurrence(x, dt, A, B, C, None)
    expected, _ = step_by_step(x.double(), dt.double(), A.double(), B.double(), C.double(), None)
    error = (y - expected)[:, 64:].abs().max() / expected[:, 64:].abs().max()
    assert error < 1e-5, float(error)


def test_a_sequence_may_be_cut_anywhere() -> None:
    x, dt, A, B, C, start = signals(200, dtype=torch.float64)
    whole, last = recurrence(x, dt, A, B, C, start)
    first, between = recurrence(x[:, :77], dt[:, :77], A, B[:, :77], C[:, :77], start)
    second, end = recurrence(x[:, 77:], dt[:, 77:], A, B[:, 77:], C[:, 77:], between)
    assert last is not None and end is not None
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


# ---- the layers


def literal_layer(layer: MambaScan, projected: Tensor) -> Tensor:
    """The slow twin of MambaScan.scan."""
    c = layer.config
    z, mixed, dt = projected.split([c.inner, c.channels, c.heads], -1)
    convolved = layer.conv1d(F.pad(mixed.transpose(1, 2), (c.kernel - 1, 0))).transpose(1, 2)
    x, B, C = F.silu(convolved).split([c.inner, c.groups * c.state, c.groups * c.state], -1)
    x, B, C = x.unflatten(-1, (c.heads, -1)), B.unflatten(-1, (c.groups, -1)), C.unflatten(-1, (c.groups, -1))
    y, _ = step_by_step(x, F.softplus(dt + layer.dt_bias), -layer.A_log.exp(), B, C, None)
    y = (y + layer.D[:, None] * x).flatten(-2) * F.silu(z)
    parts = y.unflatten(-1, (c.groups, -1))
    parts = parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return parts.flatten(-2) * layer.norm.weight


ODD = Mamba2Config(dim=12, state=5, head_dim=6, groups=3, expand=3, kernel=3)


def scrambled(module: torch.nn.Module) -> None:
    """Parameters whose every part matters, also those that start out as zeros or ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


@pytest.mark.parametrize("length", [1, 2, 3, 40, 150])
def test_a_layer_of_unusual_sizes_is_what_the_formulas_say(length: int) -> None:
    layer = Mamba2(ODD).double()
    scrambled(layer)
    u = torch.randn(2, length, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected = layer.in_proj(u)
    torch.testing.assert_close(layer(u), layer.out_proj(literal_layer(layer, projected)), atol=1e-10, rtol=1e-10)


def test_segments_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = BidirectionalMamba2(ODD).double()
    scrambled(layer)
    u = torch.randn(2, 100, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def value_and_gradients() -> list[Tensor]:
        y = layer(u)
        return [y, *torch.autograd.grad(y.square().sum(), [u, *layer.parameters()])]

    expected = value_and_gradients()
    monkeypatch.setattr(mamba, "CHUNK", 8)
    for segment in (1, 2, 37, 99):  # shorter than the convolution's reach, with and without a shorter last one
        monkeypatch.setattr(mamba, "SEGMENT", {"cpu": segment})
        torch.testing.assert_close(value_and_gradients(), expected, atol=1e-10, rtol=1e-9)


def test_the_second_direction_is_the_first_on_the_reversed_sequence() -> None:
    layer, mirrored = BidirectionalMamba2(ODD).double(), BidirectionalMamba2(ODD).double()
    scrambled(layer)
    other = {"0": "1", "1": "0"}
    swapped = {
        ".".join(other.get(part, part) for part in name.split(".")): value for name, value in layer.state_dict().items()
    }
    mirrored.load_state_dict(swapped)
    u = torch.randn(1, 300, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mirrored(u.flip(1)).flip(1), layer(u))
    assert (layer(u) - layer(u.flip(1)).flip(1)).abs().max() > 1e-3, "the two directions must differ"


def test_the_public_layer_sees_the_past_alone_and_all_of_it() -> None:
    layer = Mamba2(Mamba2Config(dim=16, state=8, head_dim=8))
    with torch.no_grad():
        layer.A_log.fill_(-7)  # a memory of a thousand positions
        u = torch.randn(1, 700, 16, generator=torch.Generator().manual_seed(0))
        later, earlier = u.clone(), u.clone()
        later[:, 600] += 1
        earlier[:, 0] += 10
        y = layer(u)
        assert torch.equal(layer(later)[:, :600], y[:, :600])
        assert (layer(later)[:, 600] - y[:, 600]).abs().max() > 1e-3
        assert (layer(earlier)[:, 650:] - y[:, 650:]).abs().max() > 1e-6, "over several segments"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    block = MambaBlock(Mamba2Config(dim=32, state=16, head_dim=16))
    x = torch.randn(2, 300, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = block(x) - x
        block.to(dtype)
        branch = block(x) - x
    assert branch.dtype == torch.float32, "the sum along the blocks keeps its type"
    assert (branch - expected).abs().max() / expected.abs().max() < 0.02


def test_a_fresh_layer_starts_in_the_published_ranges() -> None:
    scan = MambaScan(Mamba2Config(dim=512, state=4, head_dim=1))
    step, rate = F.softplus(scan.dt_bias), scan.A_log.exp()
    assert 0.001 < step.min() < 0.0015 and 0.07 < step.max() < 0.1
    assert abs(step.log().median() - torch.tensor(0.01).log()) < 0.3, "even in its logarithm"
    assert 1 < rate.min() < 1.2 and 15.8 < rate.max() < 16
    assert torch.equal(scan.D, torch.ones(1024))


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(BadInput, match="whole heads of 64"):
        Mamba2Config(dim=48, state=8)
    with pytest.raises(BadInput, match="3 groups"):
        Mamba2Config(dim=64, state=8, groups=3)
    with pytest.raises(BadInput, match="state must be at least 1, found 0"):
        Mamba2Config(dim=64, state=0)


# ---- time and memory


@pytest.mark.parametrize("training", [False, True])
def test_memory_grows_in_step_with_the_length(training: bool) -> None:
    block = MambaBlock(Mamba2Config(dim=32, state=16))

    def peak(length: int) -> int:
        x = torch.randn(1, length, 32)
        with torch.set_grad_enabled(training), PeakMemory() as memory:
            y = block(x)
            if training:
                y.sum().backward()
        return memory.peak

    short, middle, long = peak(1024), peak(2048), peak(4096)
    assert long - middle == pytest.approx(2 * (middle - short), rel=0.1)
    numbers = (long - middle) / 2048 / 4
    assert numbers < (1500 if training else 600), f"{numbers} numbers a position; an inner vector has 64"


def test_the_scan_is_three_times_faster_than_step_by_step() -> None:
    given = signals(256, heads=32, N=256, P=64)[:5]
    given = [part[:1] if part.ndim > 1 else part for part in given]  # one sequence of a layer 1024 wide

    def seconds(scan: Callable[..., object]) -> float:
        start = time.process_time()
        scan(*given, None)
        return time.process_time() - start

    with torch.no_grad():
        seconds(recurrence)
        assert 3 * min(seconds(recurrence) for _ in range(3)) < seconds(step_by_step)


# ---- the kernels of mamba_ssm


def published_kernel(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Tensor:
    """What mamba_chunk_scan_combined does with these arguments."""
    assert chunk_size > 0 and x.stride(-1) == B.stride(-1) == C.stride(-1) == 1
    return step_by_step(x, dt, A, B, C, None)[0]


def test_kernels_get_the_whole_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = BidirectionalMamba2(ODD).double()
    scrambled(layer)
    u = torch.randn(2, 300, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = layer(u)
    monkeypatch.setattr(mamba, "_fast_scan", lambda x: published_kernel)
    torch.testing.assert_close(layer(u), expected, atol=1e-10, rtol=1e-9)


@pytest.mark.cuda
def test_the_kernels_of_mamba_ssm_agree() -> None:
    pytest.importorskip("mamba_ssm", reason="the package mamba_ssm is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, dt, A, B, C, _ = given = [part.cuda().requires_grad_() for part in signals(700, groups=2, N=16, P=64)]
    ours = [part.detach().double().requires_grad_() for part in given]
    y, _ = recurrence(x, dt, A, B, C, None)
    expected, _ = step_by_step(ours[0], ours[1], ours[2], ours[3], ours[4], None)
    y.square().sum().backward()
    expected.square().sum().backward()
    for name, fast, slow in zip(("y", *NAMES[:5]), [y, *given[:5]], [expected, *ours[:5]], strict=True):
        a, b = (fast, slow) if name == "y" else (fast.grad, slow.grad)
        assert a is not None and b is not None
        assert (a - b).abs().max() / b.abs().max() < 5e-3, name  # the kernels multiply in TF32


# ---- golden values


@pytest.mark.parametrize(("folder", "run"), [("mamba2_mixer", run_mamba2), ("bimamba2_block", run_bimamba2)])
def test_golden_layers(shared_folder: Path, folder: str, run: Callable[[Path], dict[str, Tensor]]) -> None:
    path = shared_folder / "golden" / "long_lrm" / folder
    found, expected = run(path), load_file(path / "output.safetensors")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
