"""A published checkpoint's configuration and its tensors' shapes to the layout that each family's `config_from` takes.

The published files carry little: LGM and Long-LRM nothing, OpenLRM its constructor's arguments, TripoSR a YAML file.
The functions here add what shapes tell, and the published models' constants for what nothing tells. Whatever a
configuration says wins over both.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from backend.bad_input import BadInput
from backend.models.grm_config import known_part

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]
Config = dict[str, Any]

HEAD_WIDTH = 64  # of every attention in the published networks except LGM's
GRM_READ = {
    "visual": (
        *("in_channels", "input_res", "patch_size", "layers", "width", "window_size", "bwindow_size", "checkpointing"),
        *("depth_std", "decoder_ratio", "scaling_activation_type", "half_res_input", "scale_offset", "scale_max"),
        "num_input_views",
    ),
    "render": (
        *("render_type", "img_height", "img_width", "patch_size", "sh_degree", "scaling_activation_type"),
        *("scale_min_act", "scale_max_act", "scale_multi_act"),
    ),
}
OPENLRM_PARTS = ("image_size", "encoder", "transformer", "decoder")  # of the layout, beside the constructor's arguments
# Width of a published 1.1 model to pixels of its picture's side; 1.0 tells it in its files, and LRM's own is 512.
OPENLRM_SIZES = {512: 224, 768: 336, 1024: 448}
# The tensors say which encoder it is, and inference does not ask whether its training froze it.
ENCODER_ARGUMENTS = ("encoder_type", "encoder_model_name", "encoder_freeze")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Config:
    """`base` with the values of `over`, table by table."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merged(inner, value)
        result[key] = value
    return result


def grm_published(told: Mapping[str, Any]) -> Config:
    """What GRM's own code reads of the configuration in its checkpoints; it takes no notice of the rest."""
    read = {
        part: {key: value for key, value in _table(told, part).items() if key in GRM_READ[part]} for part in GRM_READ
    }
    unread = [f"{part}.{key}" for part in GRM_READ for key in _table(told, part) if key not in read[part]]
    if unread:
        log.info("of the checkpoint's configuration %s mean nothing to its network", ", ".join(unread))
    return {part: values for part, values in read.items() if part in told}


def grm_config(state: State, given: Mapping[str, Any]) -> Config:
    """GRM's layout. A checkpoint without its own configuration gets the paper's windows and scales, with a warning."""
    if "visual" in given and "render" in given:
        known, dropped = known_part(given)
        if dropped:
            log.warning("the checkpoint's configuration says more than the network needs: %s", ", ".join(dropped))
        return {name: known.get(name, value) for name, value in given.items() if name not in dropped}
    log.warning("the checkpoint has no configuration: windows of 4096 tokens and scales from 0.005 to 0.02 are assumed")
    encoder = "visual_encoder.transformer_encoder"
    patch, tokens = _size(state, f"{encoder}.conv.weight", 2), _size(state, f"{encoder}.positional_embedding", 1)
    steps = _count(state, r"visual_encoder\.gaussian_upsampler\.upsampler_(\d+)\.")
    shuffle = math.isqrt(_size(state, "visual_encoder.out_layer_depth.weight"))
    halved = shuffle * 2**steps == 2 * patch
    told = {
        "visual": {
            "in_channels": _size(state, f"{encoder}.conv.weight", 1) - 6,  # beside the rays'
            "input_res": math.isqrt(tokens) * patch * (2 if halved else 1),
            "patch_size": patch,
            "layers": _count(state, rf"{re.escape(encoder)}\.transformer\.resblocks\.(\d+)\."),
            "width": _size(state, f"{encoder}.conv.weight"),
            "window_size": 4096,
            "decoder_ratio": steps,
            "half_res_input": halved,
            "num_input_views": 4,
        },
        "render": {"scaling_activation_type": "sigmoid", "scale_min_act": 0.005, "scale_max_act": 0.02},
    }
    return merged(told, given)


def lgm_config(state: State, given: Mapping[str, Any]) -> Config:
    """LGM's layout. Shapes do not tell the pictures' size, which the network does not depend on: 256 as published."""
    downs, ups = (_count(state, rf"unet\.{side}_blocks\.(\d+)\.") for side in ("down", "up"))
    size = given["input_size"] if isinstance(given.get("input_size"), int) else 256
    told = {
        "input_size": size,
        "down_channels": [_size(state, f"unet.down_blocks.{i}.nets.0.conv1.weight") for i in range(downs)],
        "down_attention": [f"unet.down_blocks.{i}.attns.0.norm.weight" in state for i in range(downs)],
        "mid_attention": "unet.mid_block.attns.0.norm.weight" in state,
        "up_channels": [_size(state, f"unet.up_blocks.{i}.nets.0.conv1.weight") for i in range(ups)],
        "up_attention": [f"unet.up_blocks.{i}.attns.0.norm.weight" in state for i in range(ups)],
        "splat_size": size // 2 ** max(downs - ups, 0),
        "layers_per_block": _count(state, r"unet\.down_blocks\.0\.nets\.(\d+)\."),
        "mid_layers": _count(state, r"unet\.mid_block\.nets\.(\d+)\.") - 1,
        "in_channels": _size(state, "unet.conv_in.weight", 1),
        "out_channels": _size(state, "unet.conv_out.weight"),
    }
    return merged(told, given)


def long_lrm_config(state: State, given: Mapping[str, Any]) -> Config:
    """Long-LRM's layout; the constants of its head are those of the released 960x540 model."""
    depth = _count(state, r"processor\.blocks\.(\d+)\.")
    merges = _count(state, r"processor\.resize_blocks\.(\d+)\.")
    blocks = [f"processor.blocks.{i}" for i in range(depth)]
    attends = [f"{block}.attn.qkv.weight" in state for block in blocks]
    widths = [_size(state, f"{b}.{'norm1' if a else 'norm'}.weight") for b, a in zip(blocks, attends, strict=True)]
    grows = [i for i in range(1, depth) if widths[i] != widths[i - 1]]
    if len(grows) != merges and "merge_layers" not in _table(given, "model"):
        raise BadInput(
            f"long_lrm: expected a config.json beside the checkpoint that says where its {merges} token merges are, "
            f"found none; its widths change {len(grows)} times"
        )
    patch = math.isqrt(_size(state, "tokenizer.weight", 1) // 9)
    channels = _size(state, "tokenDecoder.1.weight") // (patch * 2**merges) ** 2
    model = {
        "num_layers": depth,
        "patch_size": patch,
        "dim": [widths[i] for i in (0, *grows)],
        "block_type": "".join("t" if attention else "m" for attention in attends),
        "merge_layers": grows,
        "transformer": {"head_dim": _head_width(widths, attends, given)},
        "mamba2": {"d_state": _mamba_states(state, blocks, attends)},
        "num_global_tokens": _size(state, "global_token_init", 1) if "global_token_init" in state else 0,
        "gaussians": {
            "sh_degree": math.isqrt(max(channels - 11, 0) // 3) - 1,
            "near_plane": 0.01,
            "far_plane": 1e6,
            "scale_bias": -6.9,
            "scale_max": -1.2,
            "opacity_bias": -2.0,
            "align_to_pixel": True,
            "max_dist": 500.0,
        },
    }
    return merged({"model": model}, given)


def _head_width(widths: list[int], attends: list[bool], given: Mapping[str, Any]) -> Any:
    told = _table(_table(given, "model"), "transformer").get("head_dim")
    narrow = [width for width, attention in zip(widths, attends, strict=True) if attention and width % HEAD_WIDTH]
    if told is None and narrow:
        _heads(narrow[0], "model.transformer.head_dim", None)
    return HEAD_WIDTH if told is None else told


def _mamba_states(state: State, blocks: list[str], attends: list[bool]) -> int:
    """Numbers of a state a channel: in_proj has 4 D + 2 N + D/32 rows for width D. A model without Mamba has 256."""
    for block, attention in zip(blocks, attends, strict=True):
        if not attention:
            rows, width = (_size(state, f"{block}.mamba.in_proj.weight", axis) for axis in (0, 1))
            return (rows - 4 * width - width // 32) // 2
    return 256


def openlrm_config(state: State, given: Mapping[str, Any]) -> Config:
    """OpenLRM's layout, of release 1.0 or 1.1.

    `given` holds the arguments of the model's constructor, as a published config.json or `kwargs.model` of a .pth does,
    and perhaps parts of the layout itself (OPENLRM_PARTS).
    """
    parts = {key: value for key, value in given.items() if key in OPENLRM_PARTS}
    arguments = {key: value for key, value in given.items() if key not in (*OPENLRM_PARTS, *ENCODER_ARGUMENTS)}
    old = "transformer.pos_embed" in state
    table = "transformer.pos_embed" if old else "pos_embed"
    planes = "transformer.deconv.weight" if old else "upsampler.weight"
    width, side = _size(state, table, 2), math.isqrt(_size(state, table, 1) // 3)
    layers = _count(state, r"transformer\.layers\.(\d+)\.")
    encoder = _encoder_of(state, "encoder.model.", _table(parts, "encoder"))
    model = {
        "camera_embed_dim": _size(state, "camera_embedder.mlp.2.weight"),
        "rendering_samples_per_ray": 128 if layers > 12 else 96,
        "transformer_dim": width,
        "transformer_layers": layers,
        "transformer_heads": _heads(width, "transformer_heads", arguments.get("transformer_heads")),
        "triplane_low_res": side,
        "triplane_high_res": 2 * side,
        "triplane_dim": _size(state, planes, 1),
        "encoder_feat_dim": encoder["hidden_size" if encoder["type"] == "dino" else "embed_dim"],
    }
    model = merged(model, arguments)
    samples = model["rendering_samples_per_ray"]
    half = samples // 2 if isinstance(samples, int) else samples
    told = {
        "family": "openlrm",
        "layout_version": "1.0" if old else "1.1",
        "image_size": 512 if old else OPENLRM_SIZES.get(width, 16 * encoder["patch_size"]),
        "model": model,
        "encoder": encoder,
        "transformer": {
            "layer_norm_eps": 1e-6,
            "mlp_ratio": _size(state, "transformer.layers.0.mlp.0.weight") // width,
            "attention_bias": False,
            "block": "cross-attention, self-attention, mlp, each after a ModLN",
        },
        "decoder": {
            "num_linear_layers": _count(state, r"synthesizer\.decoder\.net\.(\d+)\.weight"),
            "hidden_dim": _size(state, "synthesizer.decoder.net.0.weight"),
            "activation": "relu",
            "sigma_channel": 0,
            "rgb_channels": [1, 2, 3],
            "density": "softplus(raw - 1)",
            "rgb": "sigmoid(raw) * 1.002 - 0.001",
        },
        "render": {"box": [-1.0, 1.0], "samples_coarse": half, "samples_fine": half},
    }
    return merged(told, parts)


def triposr_config(state: State, given: Mapping[str, Any]) -> Config:
    """TripoSR's layout; `given` is the published config.yaml, whose names of Python classes are dropped."""
    numbers = {key: value for key, value in given.items() if not key.endswith("_cls")}
    tokenizer = dict(_table(numbers, "image_tokenizer"))
    tokenizer.pop("pretrained_model_name_or_path", None)  # the tensors say what it is
    encoder = _dino_of(state, "image_tokenizer.model.", tokenizer)
    encoder["has_unused_pooler"] = "image_tokenizer.model.pooler.dense.weight" in state
    del encoder["type"], encoder["native_image_size"], encoder["interpolate_antialias"]
    encoder["image_size"] = _native_size(state, "image_tokenizer.model.", encoder["patch_size"])
    width = _size(state, "tokenizer.embeddings", 1)
    inner, backbone = _size(state, "backbone.proj_in.weight"), _table(numbers, "backbone")
    told = {
        "family": "triposr",
        "cond_image_size": 512,
        "image_tokenizer": encoder,
        "tokenizer": {"plane_size": _size(state, "tokenizer.embeddings", 2), "num_channels": width},
        "backbone": {
            "in_channels": width,
            "num_attention_heads": _heads(inner, "backbone.num_attention_heads", backbone.get("num_attention_heads")),
            "attention_head_dim": HEAD_WIDTH,
            "num_layers": _count(state, r"backbone\.transformer_blocks\.(\d+)\."),
            "cross_attention_dim": encoder["hidden_size"],
            "norm_num_groups": 32,
            "group_norm_eps": 1e-6,
            "layer_norm_eps": 1e-5,
            "activation_fn": "geglu",
            "attention_bias": False,
        },
        "post_processor": {"in_channels": width, "out_channels": _size(state, "post_processor.upsample.weight", 1)},
        "decoder": {
            "in_channels": _size(state, "decoder.layers.0.weight", 1),
            "n_neurons": _size(state, "decoder.layers.0.weight"),
            "n_hidden_layers": _count(state, r"decoder\.layers\.(\d+)\.weight") - 1,
            "activation": "silu",
        },
        "renderer": {
            "radius": 0.87,
            "feature_reduction": "concat",
            "density_activation": "exp",
            "density_bias": -1.0,
            "num_samples_per_ray": 128,
        },
    }
    return merged(told, numbers | {"image_tokenizer": tokenizer})


# ---- image encoders


def _encoder_of(state: State, prefix: str, given: Mapping[str, Any]) -> Config:
    if f"{prefix}embeddings.cls_token" in state:
        return _dino_of(state, prefix, given)
    return _dinov2_of(state, prefix, given)


def _dino_of(state: State, prefix: str, given: Mapping[str, Any]) -> Config:
    """DINO as the transformers library named its modules up to release 4; the constants are ViT-B/16's."""
    width = _size(state, f"{prefix}embeddings.cls_token", 2)
    patch = _size(state, f"{prefix}embeddings.patch_embeddings.projection.weight", 2)
    return {
        "type": "dino",
        "patch_size": patch,
        "native_image_size": _native_size(state, prefix, patch),
        "hidden_size": width,
        "num_hidden_layers": _count(state, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\."),
        "num_attention_heads": _heads(width, f"{prefix}num_attention_heads", given.get("num_attention_heads")),
        "intermediate_size": _size(state, f"{prefix}encoder.layer.0.intermediate.dense.weight"),
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "qkv_bias": True,
        **IMAGENET,
        "interpolate_offset": 0.1,
        "interpolate_antialias": False,
    }


def _native_size(state: State, prefix: str, patch: int) -> int:
    return patch * math.isqrt(_size(state, f"{prefix}embeddings.position_embeddings", 1) - 1)


def _dinov2_of(state: State, prefix: str, given: Mapping[str, Any]) -> Config:
    """DINOv2 as its authors named its modules, with or without register tokens."""
    width = _size(state, f"{prefix}cls_token", 2)
    patch = _size(state, f"{prefix}patch_embed.proj.weight", 2)
    registers = f"{prefix}register_tokens"
    return {
        "type": "dinov2",
        "patch_size": patch,
        "native_image_size": patch * math.isqrt(_size(state, f"{prefix}pos_embed", 1) - 1),
        "embed_dim": width,
        "depth": _count(state, rf"{re.escape(prefix)}blocks\.(\d+)\."),
        "num_heads": _heads(width, f"{prefix}num_heads", given.get("num_heads")),
        "mlp_ratio": _size(state, f"{prefix}blocks.0.mlp.fc1.weight") // width,
        "num_register_tokens": _size(state, registers, 1) if registers in state else 0,
        "layer_scale": f"{prefix}blocks.0.ls1.gamma" in state,
        "layer_norm_eps": 1e-6,
        "interpolate_antialias": True,
        "interpolate_offset": 0.0,
    }


# ---- shapes and values


def _table(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, Mapping):
        raise BadInput(f"{key}: expected named values in the checkpoint's configuration, found {value!r}")
    return value


def _heads(width: int, name: str, told: Any) -> Any:
    """Heads of an attention: what a configuration has told of `name`, else 64 channels a head as published."""
    if told is None and width % HEAD_WIDTH:
        raise BadInput(
            f"{name}: expected a number in the checkpoint's configuration, found none; "
            f"a width of {width} does not tell it"
        )
    return width // HEAD_WIDTH if told is None else told


def _size(state: State, name: str, axis: int = 0) -> int:
    tensor = state.get(name)
    if tensor is None or tensor.dim() <= axis:
        raise BadInput(
            f"{name}: expected a tensor with at least {axis + 1} dimensions in the checkpoint, found "
            + ("none of this name" if tensor is None else f"shape {list(tensor.shape)}")
        )
    return tensor.shape[axis]


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers stand where the pattern's group is."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})
