"""The checkpoints: what each is, what its licences say, and where it lies on this machine.

Nothing of the project needs a download: `fit` works without, the starter ships, and any checkpoint can be given by
path. The others are published: their sizes, licences and figures are the publishers' and our own measurements, as far
as each is known; `commercial` is "unclear" wherever no statement was found or seen.

What is fetched lies in one folder of the user, outside the extension's, which is replaced on update. GAUSSMITH_WEIGHTS
names another folder. Imports no torch, so that listing is quick.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from backend.bad_input import BadInput
from backend.entries import STARTER, CameraSetUp, Entry, Family, File
from backend.front_end_weights import FRONT_END_ENTRIES, STARTER_VIEWS
from blender_addon.front_ends import FRONT_ENDS

FOLDER_VARIABLE = "GAUSSMITH_WEIGHTS"
RECORD = "fetched.json"  # in a checkpoint's folder: what was fetched, with the hub's hashes
TENSOR_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


class WeightsMissing(BadInput):
    """A checkpoint of the catalogue is not on this machine; the text says how to get it."""


GIB = 2**30
GRM_CODE = "no licence is stated"
GRM_WEIGHTS = "no licence is stated; ask the authors before any use beyond research"
LGM_CODE = "MIT, one file under Apache-2.0"
LGM_WEIGHTS = (
    "MIT as far as is known; read the publisher's page. Trained on Objaverse, whose objects have licences each"
)
OPENLRM_CODE = "Apache-2.0; its renderer under an NVIDIA licence for non-commercial use"
OPENLRM_WEIGHTS = "CC BY-NC 4.0, for research and other non-commercial use"

GRM_CAMERAS = CameraSetUp(((20, 225), (20, 315), (20, 45), (20, 135)), radius=2.7, fov=50)
LGM_CAMERAS = CameraSetUp(((0, 0), (0, 90), (0, 180), (0, 270)), radius=1.5, fov=49.1)
OPENLRM_CAMERAS = CameraSetUp(((0, 0),), radius=2.0, fov=67.4)
TRIPOSR_CAMERAS = CameraSetUp(((0, 0),), radius=1.9, fov=40)  # of its previews: the network is told no camera

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        name="starter",
        family="grm",
        preset="starter",
        repository="",
        files=(File("grm.safetensors"),),
        purpose="One to eight views around an object, cut out of their background, to splats",
        code_licence="GPL-3.0-or-later",
        weight_licence="GPL-3.0-or-later; backend/starter/LICENCE.md says how they were made, and whom to credit",
        commercial="yes",
        memory_gib=0.9,  # with eight views
        cameras=None,
    ),
    Entry(
        name="grm_u",
        family="grm",
        preset="grm_u",
        repository="justimyhxu/GRM",
        files=(File("grm_u.pth", 715_401_216),),
        purpose="Four views of 512x512 around an object, 20 degrees above it, to a million splats",
        code_licence=GRM_CODE,
        weight_licence=GRM_WEIGHTS,
        commercial="unclear",
        memory_gib=5.1,
        cameras=GRM_CAMERAS,
    ),
    Entry(
        name="grm_r",
        family="grm",
        preset="grm_r",
        repository="justimyhxu/GRM",
        files=(File("grm_r.pth", 715_401_216),),
        purpose="As grm_u, for the four views that Zero123++ 1.2 makes of one picture",
        code_licence=GRM_CODE,
        weight_licence=GRM_WEIGHTS,
        commercial="unclear",
        memory_gib=5.1,
        cameras=CameraSetUp(((20, 255), (20, 15), (20, 135), (-10, 195)), radius=2.7, fov=50),
        config={"visual": {"first_azimuth": 255.0}},
    ),
    Entry(
        name="grm_zero123plus",
        family="grm",
        preset="grm_zero123plus",
        repository="justimyhxu/GRM",
        files=(File("grm_zero123plus.pth", 715_401_216),),
        purpose="As grm_u, for the four views that Zero123++ 1.1 makes of one picture",
        code_licence=GRM_CODE,
        weight_licence=GRM_WEIGHTS,
        commercial="unclear",
        memory_gib=5.1,
        cameras=CameraSetUp(((30, 255), (30, 15), (30, 135), (-20, 195)), radius=2.7, fov=50),
        config={"visual": {"first_azimuth": 255.0}},
    ),
    Entry(
        name="lgm",
        family="lgm",
        preset="big",
        repository="ashawkey/LGM",
        files=(File("model_fp16_fixrot.safetensors", 830_126_160),),
        purpose="Four views of 256x256 around an object to 65 thousand splats",
        code_licence=LGM_CODE,
        weight_licence=LGM_WEIGHTS,
        commercial="unclear",
        memory_gib=2.9,
        cameras=LGM_CAMERAS,
    ),
    Entry(
        name="lgm_legacy",
        family="lgm",
        preset="big_legacy",
        repository="ashawkey/LGM",
        files=(File("model_fp16.safetensors", 830_126_160),),
        purpose="The first LGM, trained with a fault in its rotations; to repeat older results",
        code_licence=LGM_CODE,
        weight_licence=LGM_WEIGHTS,
        commercial="unclear",
        memory_gib=2.9,
        cameras=LGM_CAMERAS,
        config={"legacy_rotation": True},
    ),
    Entry(
        name="long_lrm",
        family="long_lrm",
        preset="dl3dv_i540_32input_8target",
        repository="arthurhero/llrm_checkpoints",
        files=(File("dl3dv_i540_32input_8target/checkpoint_000010000.pt", 1_860_000_000),),
        purpose="Photos of a whole place, 32 of 960x540 in its training, to millions of splats",
        code_licence="Apache-2.0",
        weight_licence="Adobe Research License, which is understood to allow non-commercial research alone",
        commercial="no",
        memory_gib=1.9,  # with 32 views of 256x256; it grows with the pixels
        cameras=None,
        config={"model": {"gaussians": {"prune_ratio": 0.6, "random_ratio": 0.1}}, "data": {"scene_scale": 1.35}},
    ),
    Entry(
        name="triposr",
        family="lrm",
        preset="triposr",
        repository="stabilityai/TripoSR",
        files=(File("model.ckpt", 1_677_102_512), File("config.yaml", 1_000)),
        purpose="One picture of an object on grey to a mesh or splats",
        code_licence="MIT",
        weight_licence="MIT",
        commercial="yes",
        memory_gib=2.3,
        cameras=TRIPOSR_CAMERAS,
    ),
    *(
        Entry(
            name=f"openlrm-{data}-{size}-1.1",
            family="lrm",
            preset=f"openlrm-{size}-1.1",
            repository=f"zxhezexin/openlrm-{data}-{size}-1.1",
            files=(File("model.safetensors", total), File("config.json", 500)),
            purpose=f"One picture of an object to a mesh or splats; {size}, trained on {trained}",
            code_licence=OPENLRM_CODE,
            weight_licence=OPENLRM_WEIGHTS,
            commercial="no",
            memory_gib=memory,
            cameras=OPENLRM_CAMERAS,
        )
        for data, trained in (("mix", "Objaverse and MVImgNet"), ("obj", "Objaverse"))
        for size, total, memory in (
            ("base", 1_040_807_888, 1.5),
            ("small", 445_563_792, 0.9),  # this and the next: the weights, and what base needs beside its own
            ("large", 1_808_552_016, 2.2),
        )
    ),
    *(
        Entry(
            name=f"openlrm-{size}-obj-1.0",
            family="lrm",
            preset=f"openlrm-{size}-1.0",
            repository=f"zxhezexin/openlrm-{size}-obj-1.0",
            files=(File("model.pth", total),),
            purpose=f"The first OpenLRM: one picture of an object to a mesh or splats; {size}, trained on Objaverse",
            code_licence=OPENLRM_CODE,
            weight_licence=OPENLRM_WEIGHTS,
            commercial="no",
            memory_gib=memory,
            cameras=OPENLRM_CAMERAS,
        )
        for size, total, memory in (
            ("small", 1_037_462_416, 1.5),
            ("base", 1_443_740_592, 1.9),
            ("large", 1_805_415_504, 2.2),
        )
    ),
    *FRONT_END_ENTRIES,
)


def entry_of(name: str) -> Entry:
    """The entry of a name. Raises BadInput that lists the names there are."""
    found = next((entry for entry in CATALOGUE if entry.name == name), None)
    if found is None:
        raise BadInput(f"weights: expected one of {', '.join(entry.name for entry in CATALOGUE)}, found {name!r}")
    return found


def default_of(family: str) -> Entry:
    """The checkpoint of a family that is meant when none is named: its first in the catalogue."""
    return next(entry for entry in CATALOGUE if entry.family == family)


# ---- on this machine


def weights_folder() -> Path:
    """Where fetched checkpoints lie, each in a folder of its own name."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "Gaussmith" / "weights"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "Gaussmith" / "weights"
    return Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "gaussmith" / "weights"


def folder_of(entry: Entry) -> Path:
    """Where a checkpoint is fetched to."""
    return weights_folder() / entry.name


def record_of(entry: Entry) -> dict[str, Any] | None:
    """What was fetched, as downloads.py wrote it; None unless every file is there with its size.

    The record tells sizes and hashes; which files those are of, and where they lie, the catalogue alone says.
    """
    folder = folder_of(entry)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = record["files"]
        same = set(files) == {file.local for file in entry.files}
        whole = same and all((folder / name).stat().st_size == told["bytes"] for name, told in files.items())
        return record if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def tensors_of(entry: Entry) -> Path:
    """The file with the tensors. What it does not tell lies beside it, see `checkpoint_files.read_checkpoint`."""
    return (STARTER if entry.shipped else folder_of(entry)) / entry.files[0].local


def fetched_file(digest: str, size: int) -> Path | None:
    """A file of these contents that came with any checkpoint, several of which stand on one base model."""
    for entry in CATALOGUE:
        record = record_of(entry)
        for name, told in record["files"].items() if record is not None else ():
            if (told["digest"], told["bytes"]) == (digest, size):
                return folder_of(entry) / name
    return None


def disk_bytes(entry: Entry) -> int:
    """What a checkpoint takes on the disk, the beginning of an interrupted download too."""
    if entry.shipped:
        return entry.bytes
    return sum(file.stat().st_size for file in folder_of(entry).rglob("*") if file.is_file())


def is_here(family: str) -> bool:
    """Whether a family can run with what is on this machine: the fit, or one whose default checkpoint is here."""
    return family == "fit" or default_of(family).shipped or record_of(default_of(family)) is not None


def resolve(name_or_path: str, family: Family) -> tuple[Path, Entry | None]:
    """The file of a checkpoint by its name or path, and its entry if it has one; empty: the family's default.

    Raises WeightsMissing for one that is not fetched, BadInput for one of another family or one that does not exist.
    """
    entry = next((entry for entry in CATALOGUE if entry.name == name_or_path), None)
    entry = default_of(family) if not name_or_path else entry
    if entry is None:
        path = Path(name_or_path).expanduser()
        if path.exists():
            return path, None
        names = ", ".join(entry.name for entry in CATALOGUE if entry.family == family)
        raise BadInput(f"weights: expected a file or one of {names}, found {name_or_path!r}")
    if entry.family != family:
        raise BadInput(f"weights: expected a checkpoint of {family}, found {entry.name!r} of {entry.family}")
    if entry.shipped:
        if not tensors_of(entry).is_file():
            raise BadInput(f"weights: expected {tensors_of(entry)}, which ships with this program; install it again")
    elif record_of(entry) is None:
        raise _missing(entry)
    return tensors_of(entry), entry


def _missing(entry: Entry) -> WeightsMissing:
    state = "here only in part" if disk_bytes(entry) else "not on this machine"
    return WeightsMissing(
        f"weights: {entry.name} is {state}; expected it in {folder_of(entry)}. "
        f"Run: python -m backend weights fetch {entry.name}"
    )


# ---- of the front ends


def entry_of_front_end(name: str) -> Entry:
    """The entry of a front end's weights; the starter's own name is that of the network that makes splats."""
    return STARTER_VIEWS if name == "starter" else entry_of(name)


def front_end_folder(name: str, given: str = "") -> Path:
    """The folder with a front end's weights: the given one, or where the catalogue's lie.

    Raises WeightsMissing for weights that are not here, BadInput for a given path that is no folder.
    """
    if given:
        folder = Path(given).expanduser()
        if not folder.is_dir():
            raise BadInput(f"weights: expected the folder of a {FRONT_ENDS[name].title} model, found {given!r}")
        return folder
    entry = entry_of_front_end(name)
    if entry.shipped:
        if not tensors_of(entry).is_file():
            raise WeightsMissing(
                f"weights: expected {tensors_of(entry)}, which ships with this program; install it again"
            )
        return STARTER
    if record_of(entry) is None:
        raise _missing(entry)
    return folder_of(entry)


def front_ends_here() -> tuple[str, ...]:
    """The front ends whose weights are on this machine."""
    entries = {name: entry_of_front_end(name) for name in FRONT_ENDS}
    return tuple(
        name
        for name, entry in entries.items()
        if (tensors_of(entry).is_file() if entry.shipped else record_of(entry) is not None)
    )


def tensor_bytes(folder: Path) -> int:
    """What the tensors in a folder and below take."""
    files = (file for file in folder.rglob("*") if file.suffix in TENSOR_ENDINGS)
    return sum(file.stat().st_size for file in files if file.is_file())
