"""The image encoders against slow twins: attention by sums, blocks step by step, position embeddings by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backend.attention import attend
from backend.cameras import BadInput
from backend.config_sections import Section
from backend.image_encoder import (
    Dino,
    DinoConfig,
    Dinov2,
    Dinov2Config,
    EncoderConfig,
    ImageEncoder,
    dino_config_from,
    dinov2_config_from,
    positions_for,
)

DINO = DinoConfig(width=12, layers=2, heads=3, hidden=20, patch=8, native_side=32)
DINOV2 = Dinov2Config(width=12, layers=2, heads=3, hidden=20, patch=7, native_side=28)


def picture(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def random_encoder(config: EncoderConfig) -> nn.Module:
    """All parameters random, those that start at 0 or 1 too."""
    model = ImageEncoder(config).model
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model


# ---- attention


def attend_slowly(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    batch, length, width = q.shape
    size, result = width // heads, torch.zeros_like(q)
    for b in range(batch):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for n in range(length):
                weights = torch.exp(k[b, :, part] @ q[b, n, part] / size**0.5)
                result[b, n, part] = (weights / weights.sum()) @ v[b, :, part]
    return result


def test_attention_is_a_weighted_mean_head_by_head() -> None:
    q, k, v = (torch.randn(2, count, 12, dtype=torch.float64) for count in (5, 7, 7))
    torch.testing.assert_close(attend(q, k, v, heads=3), attend_slowly(q, k, v, 3))


# ---- whole encoders, step by step, from the state dict


def norm(tokens: Tensor, state: dict[str, Tensor], name: str, eps: float) -> Tensor:
    mean, var = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, correction=0)
    return (tokens - mean) / (var + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def dense(tokens: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def patches(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Token of each whole patch, row by row."""
    size, tokens = weight.shape[-1], []
    for row in range(image.shape[2] // size):
        for column in range(image.shape[3] // size):
            part = image[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
            tokens.append(part.flatten(1) @ weight.flatten(1).T + bias)
    return torch.stack(tokens, dim=1)


def dino_slowly(image: Tensor, state: dict[str, Tensor], config: DinoConfig, positions: Tensor) -> Tensor:
    image = torch.stack([(image[:, c] - config.mean[c]) / config.std[c] for c in range(3)], dim=1)
    name = "embeddings.patch_embeddings.projection"
    tokens = patches(image, state[f"{name}.weight"], state[f"{name}.bias"])
    tokens = torch.cat([state["embeddings.cls_token"].expand(len(image), 1, -1), tokens], dim=1) + positions
    for index in range(config.layers):
        layer = f"encoder.layer.{index}"
        normed = norm(tokens, state, f"{layer}.layernorm_before", config.eps)
        q, k, v = (dense(normed, state, f"{layer}.attention.attention.{part}") for part in ("query", "key", "value"))
        tokens = tokens + dense(attend_slowly(q, k, v, config.heads), state, f"{layer}.attention.output.dense")
        normed = norm(tokens, state, f"{layer}.layernorm_after", config.eps)
        hidden = gelu(dense(normed, state, f"{layer}.intermediate.dense"))
        tokens = tokens + dense(hidden, state, f"{layer}.output.dense")
    return norm(tokens, state, "layernorm", config.eps)


def dinov2_slowly(image: Tensor, state: dict[str, Tensor], config: Dinov2Config, positions: Tensor) -> Tensor:
    tokens = patches(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
    tokens = torch.cat([state["cls_token"].expand(len(image), 1, -1), tokens], dim=1) + positions
    registers = state["register_tokens"].expand(len(image), -1, -1)
    tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    for index in range(config.layers):
        block = f"blocks.{index}"
        q, k, v = dense(norm(tokens, state, f"{block}.norm1", config.eps), state, f"{block}.attn.qkv").split(12, dim=-1)
        attended = dense(attend_slowly(q, k, v, config.heads), state, f"{block}.attn.proj")
        tokens = tokens + state[f"{block}.ls1.gamma"] * attended
        hidden = gelu(dense(norm(tokens, state, f"{block}.norm2", config.eps), state, f"{block}.mlp.fc1"))
        tokens = tokens + state[f"{block}.ls2.gamma"] * dense(hidden, state, f"{block}.mlp.fc2")
    tokens = norm(tokens, state, "norm", config.eps)
    return torch.cat([tokens[:, :1], tokens[:, 5:]], dim=1)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (37, 30)])
def test_dino_step_by_step(size: tuple[int, int]) -> None:
    model, image = random_encoder(DINO), picture(*size)
    state = model.state_dict()
    rows, columns = size[0] // 8, size[1] // 8
    positions = positions_for(state["embeddings.position_embeddings"], rows, columns, offset=0.1)
    expected = dino_slowly(image, state, DINO, positions)
    assert expected.shape == (2, 1 + rows * columns, 12)
    torch.testing.assert_close(model(image), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("size", [(28, 28), (21, 35)])
def test_dinov2_step_by_step(size: tuple[int, int]) -> None:
    model, image = random_encoder(DINOV2), picture(*size)
    state = model.state_dict()
    positions = positions_for(state["pos_embed"], size[0] // 7, size[1] // 7, antialias=True)
    torch.testing.assert_close(model(image), dinov2_slowly(image, state, DINOV2, positions), atol=2e-4, rtol=0)


# ---- positions


def ramp(side: int) -> Tensor:
    """[1,1+side*side,2] whose class token is (-5, -7), and whose patches say their own column and row."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2).float()
    return torch.cat([torch.tensor([[[-5.0, -7.0]]]), grid], dim=1)


def test_positions_of_the_native_size_are_the_learned_ones() -> None:
    torch.testing.assert_close(positions_for(ramp(6), 6, 6, offset=0.1, antialias=True), ramp(6), atol=0, rtol=0)


def cubic(place: float, side: int) -> float:
    """A ramp 0, 1, ... side-1 read by cubic convolution (Keys 1981, a = -0.75), which bends it a little."""
    total, start = 0.0, math.floor(place) - 1
    for index in range(start, start + 4):
        t, a = abs(place - index), -0.75
        near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
        total += min(max(index, 0), side - 1) * (near if t <= 1 else far)
    return total


@pytest.mark.parametrize(("offset", "factor"), [(0.0, 12 / 8), (0.1, 12.1 / 8)])
def test_positions_are_read_where_the_published_networks_read_them(offset: float, factor: float) -> None:
    found = positions_for(ramp(8), 12, 12, offset=offset)
    torch.testing.assert_close(found[:, 0], ramp(8)[:, 0])
    expected = torch.tensor([cubic((index + 0.5) / factor - 0.5, 8) for index in range(12)])
    columns, rows = found[0, 1:].unflatten(0, (12, 12)).unbind(-1)
    torch.testing.assert_close(columns[6], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(rows[:, 6], expected, atol=1e-4, rtol=0)


def test_antialiasing_averages_where_the_grid_shrinks() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 1 + 24 * 24, 3, generator=generator)
    plain, smooth = (positions_for(noise, 6, 6, antialias=flag)[:, 1:].std() for flag in (False, True))
    assert smooth < 0.5 * plain


def test_rows_and_columns_are_not_mixed_up() -> None:
    found = positions_for(ramp(8), 4, 16)[0, 1:].unflatten(0, (4, 16))
    assert (found[:, 1:, 0] > found[:, :-1, 0]).all() and (found[1:, :, 1] > found[:-1, :, 1]).all()


def test_positions_keep_the_checkpoints_precision() -> None:
    found = positions_for(ramp(8).to(torch.bfloat16), 5, 5, offset=0.1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, positions_for(ramp(8), 5, 5, offset=0.1).to(torch.bfloat16))


# ---- what configurations change


def keys(config: EncoderConfig) -> set[str]:
    with torch.device("meta"):
        return set(ImageEncoder(config).model.state_dict())


def test_configurations_change_the_keys() -> None:
    assert keys(replace(DINO, pooler=True)) - keys(DINO) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert keys(DINO) - keys(replace(DINO, qkv_bias=False)) == {
        f"encoder.layer.{index}.attention.attention.{part}.bias"
        for index in range(2)
        for part in ("query", "key", "value")
    }
    assert keys(DINOV2) - keys(replace(DINOV2, registers=0)) == {"register_tokens"}
    scales = {f"blocks.{index}.ls{half}.gamma" for index in range(2) for half in (1, 2)}
    assert keys(DINOV2) - keys(replace(DINOV2, layer_scale=False)) == scales


def test_the_pooler_changes_nothing() -> None:
    plain, pooled = Dino(DINO), Dino(replace(DINO, pooler=True))
    pooled.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(pooled(picture(32, 32)), plain(picture(32, 32)))


def test_registers_are_dropped_but_heard() -> None:
    model, image = Dinov2(DINOV2), picture(28, 28)
    before = model(image)
    assert before.shape == (2, 17, 12)
    with torch.no_grad():
        model.register_tokens.mul_(30)
    assert (model(image) - before).abs().max() > 1e-3


def test_dino_normalises_its_picture() -> None:
    image, model = torch.tensor(DINO.mean)[:, None, None].expand(1, 3, 32, 32), Dino(DINO)
    plain = Dino(replace(DINO, mean=(0, 0, 0), std=(1, 1, 1)))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(image), plain(torch.zeros_like(image)), atol=1e-5, rtol=0)
    assert (model(image) - plain(image)).abs().max() > 1e-3


@pytest.mark.parametrize("config", [DINO, DINOV2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_all_precisions(config: EncoderConfig, dtype: torch.dtype, tolerance: float) -> None:
    model, image = ImageEncoder(config), picture(40, 40)
    expected = model(image)
    found = model.to(dtype)(image)
    assert found.dtype == dtype
    assert F.mse_loss(found.float(), expected).sqrt() < tolerance


# ---- configurations from files

DINO_FILE = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "patch_size": 8,
    "image_size": 32,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
DINOV2_FILE = {
    "patch_size": 7,
    "native_image_size": 28,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 20 / 12,
    "num_register_tokens": 4,
    "layer_norm_eps": 1e-6,
}


def test_configurations_are_read() -> None:
    assert dino_config_from(Section(DINO_FILE, "encoder")) == DINO
    assert dinov2_config_from(Section(DINOV2_FILE, "encoder")) == DINOV2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "5 heads"),
        ({"image_size": 4}, "native size"),
        ({"hidden_act": "relu"}, r"encoder\.hidden_act: expected 'gelu', found 'relu'"),
        ({"hidden_size": "12"}, r"encoder\.hidden_size: expected a whole number of at least 1, found '12'"),
        ({"hidden_size": True}, "hidden_size"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps: expected a finite number"),
        ({"image_std": [1, 2, "3"]}, "image_std"),
        ({"qkv_bias": 1}, "qkv_bias: expected true or false"),
    ],
)
def test_bad_configurations_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        dino_config_from(Section(DINO_FILE | change, "encoder"))


def test_a_section_refuses_what_nobody_took() -> None:
    section = Section(DINO_FILE | {"novelty": 1}, "encoder")
    dino_config_from(section)
    with pytest.raises(BadInput, match=r"encoder\.novelty"):
        section.close()
    with pytest.raises(BadInput, match="encoder: expected an object, found 3"):
        Section({"encoder": 3}).section("encoder")
