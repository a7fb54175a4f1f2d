"""Checkpoints in their published forms to configurations and tensors, and tensors into networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from backend.bad_input import BadInput
from backend.checkpoint_files import Checkpoint, load_into, read_checkpoint, write_checkpoint
from tests import published_files
from tests.published_files import golden


@pytest.fixture(scope="session")
def golden_folder(shared_folder: Path) -> Path:
    return shared_folder / "golden"


def check_state(found: Checkpoint, source: Path, dtype: torch.dtype | None = None) -> None:
    _, expected = golden(source)
    state = {name: tensor for name, tensor in found.state.items() if not name.startswith("perceptual_loss.")}
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor.to(dtype or tensor.dtype)), name


def check_part(found: Any, expected: Any, *, where: str = "") -> None:
    """Everything in `expected`, at least."""
    if not isinstance(expected, dict):
        assert found == expected, where
        return
    for key, value in expected.items():
        assert key in found, f"{where}.{key}"
        check_part(found[key], value, where=f"{where}.{key}")


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """A golden config without what says how the golden data was made."""
    return {name: value for name, value in config.items() if name not in names}


# ---- the published forms


@pytest.mark.parametrize("case", ["", "half_res_exp", "no_upsampler"])
@pytest.mark.parametrize("form", [{}, {"_use_new_zipfile_serialization": False}])
def test_grm(golden_folder, tmp_path, case, form):
    source = golden_folder / "grm" / case
    path = published_files.write_grm(source, tmp_path, **form)
    found = read_checkpoint(path, "grm")
    check_state(found, source)
    config, _ = golden(source)
    assert found.config == {part: config[part] for part in ("visual", "render")}
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    json.dumps(found.config)


def test_grm_with_what_its_publisher_left_untold(golden_folder, tmp_path):
    path = published_files.write_grm(golden_folder / "grm", tmp_path)
    path.with_suffix(".json").write_text('{"visual": {"first_azimuth": 255.0}}')
    (tmp_path / "config.json").write_text("of something else")
    visual = read_checkpoint(path, "grm").config["visual"]
    assert visual["first_azimuth"] == 255.0 and visual["width"] == 128


@pytest.mark.parametrize("case", ["", "half_res_exp", "no_upsampler"])
def test_grm_without_a_configuration(golden_folder, tmp_path, caplog, case):
    """Shapes tell the sizes; the rest is the paper's, and said to be assumed."""
    config, state = golden(golden_folder / "grm" / case)
    torch.save(state, tmp_path / "grm.pth")
    found = read_checkpoint(tmp_path, "grm").config["visual"]
    sizes = ("in_channels", "input_res", "patch_size", "layers", "width", "decoder_ratio", "half_res_input")
    defaults = {"decoder_ratio": 0, "half_res_input": False}
    assert {n: found[n] for n in sizes} == {n: config["visual"].get(n, defaults.get(n)) for n in sizes}
    assert found["window_size"] == 4096 and "are assumed" in caplog.text


@pytest.mark.parametrize("legacy", [False, True])
def test_lgm(golden_folder, tmp_path, legacy):
    source = golden_folder / "lgm" / "model"
    path = published_files.write_lgm(source, tmp_path, legacy=legacy)
    found = read_checkpoint(path, "lgm")
    check_state(found, source, torch.float16)
    expected, _ = golden(source)
    names = ("input_size", "down_channels", "down_attention", "mid_attention", "up_channels", "up_attention")
    names += ("splat_size", "layers_per_block", "mid_layers", "in_channels", "out_channels")
    assert {name: found.config[name] for name in names} == {name: expected[name] for name in names}
    assert found.config.get("legacy_rotation", False) is legacy


@pytest.mark.parametrize(("size", "splats"), [("big", 128), ("small", 64), ("tiny", 64)])
def test_lgm_in_full_size(golden_folder, size, splats):
    """The published shapes; the network's own table has the same numbers."""
    from backend.checkpoint_configs import lgm_config

    told = json.loads((golden_folder / "lgm" / "manifest" / f"lgm_{size}.json").read_text())["shapes"]
    config = lgm_config({name: torch.empty(shape, device="meta") for name, shape in told.items()}, {})
    downs = [32, 64, 128, 256, 512] if size == "tiny" else [64, 128, 256, 512, 1024, 1024]
    ups = {"big": [1024, 1024, 512, 256, 128], "small": [1024, 1024, 512, 256], "tiny": [512, 256, 128]}[size]
    assert config["down_channels"] == downs and config["up_channels"] == ups
    assert (config["input_size"], config["splat_size"]) == (256, splats)
    assert config["down_attention"] == [False] * (len(downs) - (1 if size == "tiny" else 3)) + [True] * (
        1 if size == "tiny" else 3
    )
    assert config["up_attention"] == [width > 256 for width in ups]


@pytest.mark.parametrize("case", ["model", "model_variant"])
def test_long_lrm(golden_folder, tmp_path, case):
    source = golden_folder / "long_lrm" / case
    path = published_files.write_long_lrm(source, tmp_path)
    found = read_checkpoint(path, "long_lrm")
    check_state(found, source)
    assert "perceptual_loss.mean" in found.state, "what is dropped is the network's to say"
    expected, _ = golden(source)
    check_part(found.config["model"], expected["model"])
    assert set(found.config) == {"model"}


def test_long_lrm_takes_the_world_from_the_trainers_yaml(golden_folder, tmp_path):
    path = published_files.write_long_lrm(golden_folder / "long_lrm" / "model", tmp_path)
    trainer = yaml.safe_load((tmp_path / "config.yaml").read_text())
    trainer["data"]["scene_scale"] = 1.5
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(trainer))
    assert read_checkpoint(path, "long_lrm").config["data"] == {"scene_scale": 1.5}


def test_long_lrm_from_shapes(golden_folder, tmp_path):
    """All but the width of a head, which the tiny network's tensors do not tell."""
    path = published_files.write_long_lrm(golden_folder / "long_lrm" / "model", tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(BadInput, match=r"model\.transformer\.head_dim: expected a number"):
        read_checkpoint(path, "long_lrm")
    path.with_suffix(".json").write_text('{"model": {"transformer": {"head_dim": 16}}}')
    model = read_checkpoint(path, "long_lrm").config["model"]
    expected = golden(golden_folder / "long_lrm" / "model")[0]["model"]
    same = ("num_layers", "patch_size", "dim", "merge_layers", "transformer", "mamba2", "num_global_tokens")
    assert {name: model[name] for name in same} == {name: expected[name] for name in same}
    assert model["block_type"] == "mmmtmmmtmmmt" and model["gaussians"]["sh_degree"] == 2


def test_long_lrm_whose_merges_cannot_be_told():
    from backend.checkpoint_configs import long_lrm_config

    shapes = {
        "tokenizer.weight": (64, 576),
        "tokenDecoder.1.weight": (59 * 256, 64),
        "processor.resize_blocks.0.weight": (64, 64),
        **{f"processor.blocks.{i}.norm1.weight": (64,) for i in range(2)},
        **{f"processor.blocks.{i}.attn.qkv.weight": (192, 64) for i in range(2)},
    }
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with pytest.raises(BadInput, match="says where its 1 token merges are, found none"):
        long_lrm_config(state, {})
    config = long_lrm_config(state, {"model": {"merge_layers": [1], "dim": [64, 64]}})["model"]
    assert config["merge_layers"] == [1] and config["gaussians"]["sh_degree"] == 3


def test_openlrm_1_1(golden_folder, tmp_path):
    source = golden_folder / "openlrm"
    found = read_checkpoint(published_files.write_openlrm(source, tmp_path), "lrm")
    check_state(found, source)
    expected, _ = golden(source)
    check_openlrm(found.config, expected)


def test_openlrm_1_0(golden_folder, tmp_path):
    """Its arguments are in the .pth; the config.json beside it is no JSON."""
    source = golden_folder / "openlrm" / "v10_dino"
    found = read_checkpoint(published_files.write_openlrm(source, tmp_path), "lrm")
    check_state(found, source)
    expected, _ = golden(source)
    check_openlrm(found.config, expected)


def check_openlrm(found: Any, expected: dict[str, Any]) -> None:
    """The whole layout, without what is of the golden data alone."""
    render = without(expected["render"], "num_views", "region_size", "background")
    assert found == without(expected, "seed", "mesh", "tolerance_abs") | {"render": render}


def test_openlrm_refuses_by_name_later(golden_folder, tmp_path):
    """An argument nobody knows is handed on to the network's configuration, which names it."""
    path = published_files.write_openlrm(golden_folder / "openlrm", tmp_path)
    told = json.loads((tmp_path / "config.json").read_text()) | {"surprise": 1}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert read_checkpoint(path, "lrm").config["model"]["surprise"] == 1


@pytest.mark.parametrize(
    ("width", "heads", "size", "samples"), [(512, 8, 224, 96), (768, 12, 336, 96), (1024, 16, 448, 128)]
)
def test_openlrm_in_full_size(width, heads, size, samples):
    """The published 1.1 shapes, with nothing told but their tensors."""
    from backend.checkpoint_configs import openlrm_config

    encoder = 384 if width == 512 else 768
    shapes = {
        "pos_embed": (1, 3072, width),
        "upsampler.weight": (width, 32, 2, 2),
        "camera_embedder.mlp.2.weight": (1024, 1024),
        **{f"transformer.layers.{i}.mlp.0.weight": (4 * width, width) for i in range(16 if width == 1024 else 12)},
        **{f"synthesizer.decoder.net.{i}.weight": (64, 64) for i in (0, 2, 4, 6)},
        "encoder.model.cls_token": (1, 1, encoder),
        "encoder.model.pos_embed": (1, 1370, encoder),
        "encoder.model.register_tokens": (1, 4, encoder),
        "encoder.model.patch_embed.proj.weight": (encoder, 3, 14, 14),
        **{f"encoder.model.blocks.{i}.mlp.fc1.weight": (4 * encoder, encoder) for i in range(12)},
        "encoder.model.blocks.0.ls1.gamma": (encoder,),
    }
    config = openlrm_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, {})
    assert (config["image_size"], config["layout_version"]) == (size, "1.1")
    assert (config["model"]["transformer_heads"], config["model"]["rendering_samples_per_ray"]) == (heads, samples)
    assert config["model"]["triplane_low_res"] == 32 and config["decoder"]["num_linear_layers"] == 4
    assert config["encoder"]["num_heads"] == encoder // 64 and config["encoder"]["native_image_size"] == 518


def test_triposr(golden_folder, tmp_path):
    source = golden_folder / "triposr"
    found = read_checkpoint(published_files.write_triposr(source, tmp_path), "lrm")
    check_state(found, source)
    expected, _ = golden(source)
    assert found.config == without(expected, "seed", "render_call", "mesh", "tolerance_abs", "tolerance_rel")


def test_heads_that_nothing_tells(golden_folder, tmp_path):
    path = published_files.write_triposr(golden_folder / "triposr", tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(BadInput, match=r"num_attention_heads: expected a number in the checkpoint's configuration"):
        read_checkpoint(path, "lrm")


# ---- our own form, and whole configurations beside a file


@pytest.mark.parametrize(
    ("family", "case"), [("grm", "grm"), ("lgm", "lgm/model"), ("long_lrm", "long_lrm/model"), ("lrm", "triposr")]
)
def test_our_own_form(golden_folder, tmp_path, family, case):
    config, state = golden(golden_folder / case)
    path = tmp_path / "own.safetensors"
    write_checkpoint(path, family, config, state)
    found = read_checkpoint(path, family)
    assert found.config == config
    check_state(found, golden_folder / case)
    with pytest.raises(BadInput, match=rf"own\.safetensors: expected a checkpoint of \w+, found one of {family}"):
        read_checkpoint(path, "grm" if family != "grm" else "lgm")


@pytest.mark.parametrize(
    ("family", "case"), [("grm", "grm"), ("lrm", "openlrm"), ("lrm", "triposr"), ("long_lrm", "long_lrm/model_variant")]
)
def test_a_whole_configuration_beside_the_file(golden_folder, family, case):
    """The golden folders themselves."""
    config, _ = golden(golden_folder / case)
    found = read_checkpoint(golden_folder / case / "weights.safetensors", family)
    check_part(found.config, without(config, "render_call"))


def test_a_family_without_its_configuration(golden_folder, tmp_path):
    _, state = golden(golden_folder / "grm")
    save_file(state, tmp_path / "own.safetensors", metadata={"family": "grm"})
    with pytest.raises(BadInput, match="expected a config in the metadata"):
        read_checkpoint(tmp_path, "grm")


# ---- what is wrong with a file


def damaged(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (damaged(b""), "an empty file"),
        (damaged(b"<!DOCTYPE html><html>"), "a web page; download the file itself"),
        (damaged(b"version https://git-lfs.github.com/spec/v1\noid sha256:00"), "a pointer of Git LFS"),
        (damaged(b"PLY format"), "found something else"),
        (damaged(b"\xff" * 7 + b"\x7f{}"), "ends within its header"),
        (damaged(b"\x02" + b"\0" * 7 + b"{]"), "header: expected JSON"),
        (lambda path: save_file({"x": torch.ones(2)}, path), "tensors of no network that is known"),
        (lambda path: torch.save([torch.ones(2)], path), "expected tensors by name, found list"),
        (lambda path: torch.save({"a": torch.ones(2), "b": 5}, path), "expected tensors by name, found int at 'b'"),
        (lambda path: torch.save({}, path), "expected tensors by name, found none"),
        (lambda path: torch.save({1: torch.ones(2)}, path), "expected tensors by name, found none"),
        (lambda path: path.mkdir(), "a folder with one checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, make, words):
    path = tmp_path / "file.ckpt"
    make(path)
    with pytest.raises(BadInput, match=rf"file\.ckpt: .*{words}|file\.ckpt: {words}"):
        read_checkpoint(path, "lgm")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"none\.pth: expected a file that can be read, found: No such file"):
        read_checkpoint(tmp_path / "none.pth", "grm")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_safetensors(golden_folder, tmp_path, share):
    path = published_files.write_lgm(golden_folder / "lgm" / "model", tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput, match=r"\.safetensors: expected a (whole )?safetensors file.*(truncated|header)"):
        read_checkpoint(path, "lgm")


def test_truncated_pickles(golden_folder, tmp_path):
    path = published_files.write_triposr(golden_folder / "triposr", tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"model\.ckpt: expected a whole file of torch\.save"):
        read_checkpoint(path, "lrm")


def test_a_checkpoint_of_another_family(golden_folder, tmp_path):
    makers = {"grm": published_files.write_grm, "long_lrm": published_files.write_long_lrm}
    makers |= {"triposr": published_files.write_triposr, "openlrm": published_files.write_openlrm}
    folders = {"long_lrm": "long_lrm/model"}
    for name, make in makers.items():
        (folder := tmp_path / name).mkdir()
        path = make(golden_folder / folders.get(name, name), folder)
        with pytest.raises(BadInput, match=rf"{path.name}: expected a checkpoint of lgm, found one of {name}"):
            read_checkpoint(path, "lgm")


def test_a_configuration_that_is_none(golden_folder, tmp_path):
    path = published_files.write_openlrm(golden_folder / "openlrm", tmp_path)
    for text, words in (("{", "expected JSON or YAML"), ("[1]", "expected named values, found list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadInput, match=rf"config\.json: {words}"):
            read_checkpoint(path, "lrm")
    (tmp_path / "config.json").write_text('{"encoder": 5}')
    with pytest.raises(BadInput, match="encoder: expected named values"):
        read_checkpoint(path, "lrm")


def test_a_configuration_without_end(golden_folder, tmp_path):
    """A pickle may hold itself; and a small one may stand for billions of values."""
    _, state = golden(golden_folder / "grm" / "no_upsampler")
    endless: dict[str, Any] = {}
    endless["again"] = endless
    many: list[Any] = []
    for _ in range(40):
        many = [many, many]
    for value in (endless, many):
        model_config = {"visual": {"params": {"width": value}}}
        torch.save({"model": state, "config": {"model_config": model_config}}, tmp_path / "grm.pth")
        with pytest.raises(BadInput, match="expected a configuration of plain values, found"):
            read_checkpoint(tmp_path / "grm.pth", "grm")


def test_tensors_that_are_missing_are_named(golden_folder, tmp_path):
    """Where their shape is what tells the configuration."""
    _, state = golden(golden_folder / "lgm" / "model")
    del state["unet.conv_out.weight"]
    save_file(state, tmp_path / "lgm.safetensors")
    with pytest.raises(BadInput, match=r"unet\.conv_out\.weight: expected a tensor .* found none of this name"):
        read_checkpoint(tmp_path, "lgm")


# ---- into a network


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.rand(t.shape, generator=generator) for name, t in Small().state_dict().items()}
    return found | {"count": torch.tensor(7)}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loading(stored, device):
    tensors = {name: t.to(stored) if t.is_floating_point() else t for name, t in state().items()}
    with torch.device(device):
        module = Small()
    load_into(module, tensors | {"loss.a.b": torch.ones(5)}, ignored=[r"loss\..*"])
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name
    assert module.inner.weight.dtype == torch.float32 and isinstance(module.inner.weight, nn.Parameter)
    tensors["inner.weight"].zero_()
    assert module.inner.weight.abs().sum() > 0, "the network has memory of its own"
    assert torch.isfinite(module.norm(module.inner(torch.ones(1, 3)))).all()


def test_what_does_not_fit_is_named_and_changes_nothing():
    module = Small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    wrong = {name: tensor for name, tensor in state().items() if not name.startswith("norm")}
    wrong |= {
        "inner.weight": torch.ones(3, 2),
        "a": torch.ones(1),
        "b": torch.ones(1),
        "c": torch.ones(1),
        "d": torch.ones(1),
    }
    with pytest.raises(BadInput) as error:
        load_into(module, wrong, ignored=["extra"])
    assert str(error.value) == (
        "weights: expected the network's own tensors, found 2 tensors missing (norm.weight, norm.bias); "
        "4 tensors unexpected (a, b, c, ...); "
        "1 tensor of the wrong shape (inner.weight: expected [2, 3], found [3, 2])"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value):
    module = Small()
    before = module.norm.bias.clone()
    broken = state()
    broken["inner.bias"][1] = value
    with pytest.raises(BadInput, match=r"1 tensor with NaN or infinite ones \(inner\.bias\)"):
        load_into(module, broken)
    assert torch.equal(module.norm.bias, before)
