"""Checkpoints in the forms in which they are published, at the tiny sizes of the shared golden data.

Each function takes a golden folder (config.json, weights.safetensors), writes a checkpoint into another folder and
returns its path. A GRM container holds objects of a class that need not be installed; it is declared here for writing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor


def golden(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a golden folder."""
    return json.loads((folder / "config.json").read_text()), load_file(folder / "weights.safetensors")


class EasyDict(dict):
    """Behaves as easydict's does: every value is an item and an attribute."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        super().__init__()
        for key, value in (values or {}).items():
            setattr(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        nested = EasyDict(value) if isinstance(value, dict) else value
        super().__setattr__(name, nested)
        super().__setitem__(name, nested)


@contextlib.contextmanager
def as_easydict() -> Iterator[type[EasyDict]]:
    """The class under the name by which the published files ask for it, for the time of writing."""
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    before = (EasyDict.__module__, sys.modules.get("easydict"))
    EasyDict.__module__, sys.modules["easydict"] = "easydict", module
    try:
        yield EasyDict
    finally:
        EasyDict.__module__ = before[0]
        del sys.modules["easydict"]
        if before[1] is not None:
            sys.modules["easydict"] = before[1]


def write_grm(source: Path, folder: Path, **options: Any) -> Path:
    """A container of torch.save with the network under `model`, as parallel training names it, and its configuration
    as nested objects; an optimizer's state beside them. `options` are torch.save's."""
    config, state = golden(source)
    path = folder / "grm_tiny.pth"
    with as_easydict() as easydict:
        unread = {"dropout_path": "", "loss": {"lpips": 0.5}}  # the published code takes no notice of such
        model_config = {part: {"name": part, "params": config[part] | unread} for part in ("visual", "render")}
        content = {
            "model": OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()),
            "config": easydict({"model_config": model_config, "seed": 1}),
            "epoch": 3,
            "optimizer": {
                "state": {0: {"step": torch.tensor(5.0)}},
                "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.95)}],
            },
        }
        torch.save(content, path, **options)
    return path


def write_lgm(source: Path, folder: Path, *, legacy: bool = False) -> Path:
    """Half-precision safetensors without metadata. What shapes do not tell is in a JSON file of its name beside it."""
    config, state = golden(source)
    path = folder / ("model_fp16.safetensors" if legacy else "model_fp16_fixrot.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, path)
    told = {"input_size": config["input_size"]} | ({"legacy_rotation": True} if legacy else {})
    path.with_suffix(".json").write_text(json.dumps(told))
    return path


def write_long_lrm(source: Path, folder: Path) -> Path:
    """A training state, with the loss's own network among the tensors, and the trainer's YAML beside it."""
    config, state = golden(source)
    path = folder / "checkpoint_000010000.pt"
    loss = {
        "perceptual_loss.mean": torch.ones(1, 3, 1, 1),
        "perceptual_loss.blocks.0.0.0.weight": torch.ones(2, 3, 3, 3),
    }
    moments = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(4)}}
    content = {
        "model": OrderedDict(state | loss),
        "optimizer": {"state": moments, "param_groups": [{"lr": 4e-5, "params": [0]}]},
        "scheduler": {"last_epoch": 10_000, "_last_lr": [4e-5], "lr_lambdas": [None]},
        "param_update_steps_done": 10_000,
    }
    torch.save(content, path)
    trainer = {"model": config["model"], "data": {"resize_h": 540}, "training": {"lr": 4e-5}}
    (folder / "config.yaml").write_text(yaml.safe_dump(trainer))
    return path


def write_openlrm(source: Path, folder: Path) -> Path:
    """Release 1.1: safetensors and the constructor's arguments; or 1.0: a .pth that holds both.

    The published encoders' heads follow from their width; those of the tiny ones are told beside the arguments.
    """
    config, state = golden(source)
    old = config["layout_version"] == "1.0"
    heads = "num_attention_heads" if old else "num_heads"
    arguments = config["model"] | {
        "encoder_freeze": False,
        "encoder_model_name": "facebook/dino-vitb16" if old else "dinov2_vits14_reg",
        "encoder": {heads: config["encoder"][heads]},
    }
    if old:
        path = folder / "model.pth"
        infer = {"source_size": config["image_size"], "render_size": 192}
        torch.save({"weights": OrderedDict(state), "kwargs": {"model": arguments, "infer": infer}}, path)
        (folder / "config.json").write_text("{'not': JSON,}")  # as was reported of the published one
        return path
    save_file(state, folder / "model.safetensors")
    told = arguments | {"encoder_type": "dinov2", "image_size": config["image_size"]}
    (folder / "config.json").write_text(json.dumps(told))
    return folder / "model.safetensors"


def write_triposr(source: Path, folder: Path) -> Path:
    """A pickled state dict, and a YAML that names Python classes beside their numbers."""
    config, state = golden(source)
    path = folder / "model.ckpt"
    torch.save(OrderedDict(state), path)
    told: dict[str, Any] = {"cond_image_size": config["cond_image_size"]}
    for part, cls in (
        ("image_tokenizer", "tsr.models.tokenizers.image.DINOSingleImageTokenizer"),
        ("tokenizer", "tsr.models.tokenizers.triplane.Triplane1DTokenizer"),
        ("backbone", "tsr.models.transformer.transformer_1d.Transformer1D"),
        ("post_processor", "tsr.models.network_utils.TriplaneUpsampleNetwork"),
        ("decoder", "tsr.models.network_utils.NeRFMLP"),
        ("renderer", "tsr.models.nerf_renderer.TriplaneNeRFRenderer"),
    ):
        told[f"{part}_cls"] = cls
        told[part] = config[part]
    told["image_tokenizer"] = {
        "pretrained_model_name_or_path": "facebook/dino-vitb16",
        "num_attention_heads": config["image_tokenizer"]["num_attention_heads"],  # published ones follow from the width
    }
    published = ("in_channels", "num_attention_heads", "attention_head_dim", "num_layers", "cross_attention_dim")
    told["backbone"] = {key: config["backbone"][key] for key in published}
    (folder / "config.yaml").write_text(yaml.safe_dump(told))
    return path
