"""Folders of MVDream and ImageDream that are not as published: one sentence that names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend.bad_input import BadInput
from backend.multiview import Budget
from backend.multiview import mvdream as subject
from tests import tiny_diffusion
from tests.tiny_mvdream import UNET, write_folder

CPU = Budget(torch.device("cpu"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: write_folder(root / name, sees=name == "imagedream") for name in ("mvdream", "imagedream")}


@pytest.mark.parametrize(
    "missing",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "image_encoder/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file(missing: str, published: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(published["imagedream"], tmp_path / "imagedream")
    (folder / missing).unlink()
    with pytest.raises(BadInput, match=missing.split("/")[0]):
        subject.load("imagedream", folder, CPU)


def test_a_denoiser_that_is_half_downloaded(published: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(published["mvdream"], tmp_path / "mvdream")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BadInput, match=r"unet.diffusion_pytorch_model.safetensors: expected a whole"):
        subject.load("mvdream", folder, CPU)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["out.2.bias"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["label_emb.weight"] = torch.zeros(2)


def spoil(tensors: dict[str, Tensor]) -> None:
    tensors["out.2.bias"][0] = torch.nan


@pytest.mark.parametrize(("change", "named"), [(drop, "missing"), (add, "unexpected"), (spoil, "finite")])
def test_a_denoiser_of_other_tensors(
    change: Callable[[dict[str, Tensor]], None], named: str, published: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(published["mvdream"], tmp_path / "mvdream")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(BadInput, match=named):
        subject.load("mvdream", folder, CPU)


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("unet/config.json", "{", "unet.config.json: expected JSON"),
        ("unet/config.json", "[]", "unet.config.json: config"),
        ("unet/config.json", json.dumps(UNET | {"dims": 3}), "unet.config.json: config: dims"),
        ("unet/config.json", json.dumps(UNET | {"ip_dim": 4}), "expected ip_dim 0"),
        ("scheduler/scheduler_config.json", "{", "scheduler"),
    ],
)
def test_a_broken_setting(file: str, text: str, named: str, published: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(published["mvdream"], tmp_path / "mvdream")
    (folder / file).write_text(text)
    with pytest.raises(BadInput, match=named):
        subject.load("mvdream", folder, CPU)


def test_a_folder_of_the_other_model(published: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="image_encoder"):
        subject.load("imagedream", published["mvdream"], CPU)
    with pytest.raises(BadInput, match="expected ip_dim 0, as MVDream has it, found 4"):
        subject.load("mvdream", published["imagedream"], CPU)
    folder = shutil.copytree(published["mvdream"], tmp_path / "mvdream")
    shutil.rmtree(folder / "text_encoder")
    tiny_diffusion.text_encoder(width=16).save_pretrained(folder / "text_encoder")
    with pytest.raises(BadInput, match="text encoder of width 32, as unet has it, found 16"):
        subject.load("mvdream", folder, CPU)
