"""The readers and the networks agree: full sizes told from shapes are the presets, and published files load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import checkpoint_configs
from backend.checkpoint_files import load_into, read_checkpoint
from backend.weights import CATALOGUE, Entry
from blender_addon.families import NETWORKS as NETWORK_FAMILIES
from tests import published_files

grm = pytest.importorskip("backend.models.grm")
lgm = pytest.importorskip("backend.models.lgm")
long_lrm = pytest.importorskip("backend.models.long_lrm")
lrm = pytest.importorskip("backend.models.lrm")
triposr = pytest.importorskip("backend.models.triposr")

# By what a checkpoint is: its module, its network, and what tells its configuration.
NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "grm": (grm, grm.GRM, checkpoint_configs.grm_config),
    "lgm": (lgm, lgm.LGM, checkpoint_configs.lgm_config),
    "long_lrm": (long_lrm, long_lrm.LongLRM, checkpoint_configs.long_lrm_config),
    "openlrm": (lrm, lrm.Lrm, checkpoint_configs.openlrm_config),
    "triposr": (triposr, triposr.TripoSr, checkpoint_configs.triposr_config),
}


def kind_of(entry: Entry) -> str:
    return entry.preset.split("-")[0] if entry.family == "lrm" else entry.family


@pytest.mark.parametrize(
    "entry",
    [entry for entry in CATALOGUE if entry.family in NETWORK_FAMILIES and not entry.shipped],
    ids=lambda entry: entry.name,
)
def test_a_full_size_is_told_from_shapes(entry: Entry) -> None:
    module, network, told = NETWORKS[kind_of(entry)]
    preset = module.PRESETS[entry.preset]
    with torch.device("meta"):
        state = network(preset).state_dict()
    found = module.config_from(checkpoint_configs.merged(told(state, entry.config), entry.config))
    if entry.family == "long_lrm":  # the same blocks, written out
        assert found.blocks == preset.blocks
        found = found.__class__(**{**vars(found), "block_type": preset.block_type})
    assert found == preset


@pytest.mark.parametrize(
    ("kind", "family", "write", "case"),
    [
        ("grm", "grm", published_files.write_grm, "grm"),
        ("grm", "grm", published_files.write_grm, "grm/half_res_exp"),
        ("grm", "grm", published_files.write_grm, "grm/no_upsampler"),
        ("lgm", "lgm", published_files.write_lgm, "lgm/model"),
        ("long_lrm", "long_lrm", published_files.write_long_lrm, "long_lrm/model"),
        ("long_lrm", "long_lrm", published_files.write_long_lrm, "long_lrm/model_variant"),
        ("openlrm", "lrm", published_files.write_openlrm, "openlrm"),
        ("openlrm", "lrm", published_files.write_openlrm, "openlrm/v10_dino"),
        ("triposr", "lrm", published_files.write_triposr, "triposr"),
    ],
)
def test_a_published_file_loads(
    shared_folder: Path, tmp_path: Path, kind: str, family: Any, write: Any, case: str
) -> None:
    source = shared_folder / "golden" / case
    found = read_checkpoint(write(source, tmp_path), family)
    module, network, _ = NETWORKS[kind]
    config = module.config_from(found.config)
    assert config == module.config_from(json.loads((source / "config.json").read_text()))
    load_into(network(config), found.state, module.IGNORED)
