"""Who may import what. The extension must load in Blender; the backend must run without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ADDON, BACKEND = ROOT / "blender_addon", ROOT / "backend"

# Standard library and numpy, and nothing of Blender: these load in any Python.
WITHOUT_BLENDER = (
    "protocol", "client", "session", "backend_process", "child", "environment", "install_packages", "axes", "ply",
    "atomic_file", "shelf",
)  # fmt: skip
BLENDER_MODULES = {"bpy", "bmesh", "mathutils", "gpu", "bpy_extras", "bl_ui", "blf", "addon_utils", "idprop"}
ONLY_HERE = {  # a package's only importers in the backend
    "zmq": {"server.py"},
    "diffusers": {path.name for path in (BACKEND / "multiview").glob("*.py")},
    "huggingface_hub": {"hub.py"},
    "gsplat": {"rendering.py", "rasterise_cuda.py"},
}


def imports_of(file: Path) -> set[str]:
    """The top-level packages a file imports anywhere, absolutely."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def files_of(package: Path) -> list[Path]:
    return [file for file in sorted(package.rglob("*.py")) if "wheels" not in file.parts]


@pytest.mark.parametrize("file", files_of(ADDON), ids=lambda file: file.name)
def test_the_extension_imports_what_blender_has(file):
    allowed = set(sys.stdlib_module_names) | BLENDER_MODULES | {"numpy", "zmq"}
    assert imports_of(file) <= allowed


@pytest.mark.parametrize("file", files_of(BACKEND), ids=lambda file: file.name)
def test_the_backend_knows_no_blender(file):
    found = imports_of(file)
    assert not found & BLENDER_MODULES
    for package, users in ONLY_HERE.items():
        assert package not in found or file.name in users


def test_nothing_pickles():
    for file in (*files_of(ADDON), *files_of(BACKEND)):
        assert not imports_of(file) & {"pickle", "shelve", "marshal", "dill"}, file


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after running some code."""
    script = f"{code}\nimport sys\nsys.stdout.write(' '.join(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", WITHOUT_BLENDER)
def test_these_load_without_blender_and_torch(module):
    loaded = loaded_by(f"import blender_addon.{module}")
    assert not loaded & (BLENDER_MODULES | {"torch", "numba", "scipy", "backend"})


def test_the_contract_needs_numpy_alone():
    assert "zmq" not in loaded_by("import blender_addon.protocol")


def test_the_server_and_the_help_are_quick_to_load():
    heavy = {"torch", "numba", "scipy", "skimage", "PIL", "trimesh"}
    assert not loaded_by("import backend.server, backend.worker") & heavy
    assert not loaded_by("from backend.__main__ import parser\nparser().format_help()") & heavy
    assert not loaded_by("import backend.weights_command") & (heavy | {"huggingface_hub", "httpx2"})
