"""The zips: what is in them, the same bytes each time, and that Blender's own rules accept their wheels."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import build_addon
from build_addon import EDITIONS, WHEEL_PLATFORMS, Edition, build

ROOT = Path(__file__).resolve().parents[1]
WHEELS = {  # what pip picks; the file's bytes are of no interest here
    "3.11": "pyzmq-27.3.0-cp311-cp311-{}.whl",
    "3.13": "pyzmq-27.3.0-cp312-abi3-{}.whl",
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A wheel cache that is full, so that nothing is downloaded."""
    for edition in EDITIONS:
        for platform in edition.platforms:
            folder = tmp_path / "cache" / f"{platform}-python{edition.python}"
            folder.mkdir(parents=True)
            (folder / WHEELS[edition.python].format(WHEEL_PLATFORMS[platform])).write_bytes(b"wheel")
    return tmp_path / "cache"


@pytest.mark.parametrize("edition", EDITIONS, ids=lambda edition: edition.label)
def test_the_zip_has_the_repositorys_shape(tmp_path: Path, cache: Path, edition: Edition) -> None:
    path = build(edition, "linux-x64", out=tmp_path, cache=cache)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        manifest = tomllib.loads(archive.read("blender_manifest.toml").decode())
        assert archive.read("__init__.py").decode().count("\n") <= 3
    assert {
        "LICENSE",
        "blender_addon/protocol.py",
        "backend/__main__.py",
        "backend/starter/grm.safetensors",
        "backend/requirements/linux-cpu.txt",
    } <= names
    assert "blender_addon/blender_manifest.toml" not in names, "one manifest, at the root"
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or name.startswith("tests")]
    assert manifest["platforms"] == ["linux-x64"]
    assert manifest["blender_version_min"] == edition.blender_min
    assert manifest.get("blender_version_max", "") == edition.blender_max
    assert [name for name in names if name.startswith("wheels/")] == [wheel[2:] for wheel in manifest["wheels"]]
    assert set(manifest["permissions"]) == {"network", "files"}
    assert all(len(reason) <= 64 for reason in [manifest["tagline"], *manifest["permissions"].values()])


def test_building_twice_gives_the_same_bytes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tree"
    for name in ("blender_addon", "backend"):  # a copy, which nobody edits between the two builds
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text("")
    for name in ("LICENSE", "pyproject.toml"):
        (package / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(build_addon, "ROOT", package)
    first = build(EDITIONS[0], "windows-x64", out=tmp_path / "first", cache=cache)
    (package / "backend" / "__init__.py").touch()  # a new time of change
    second = build(EDITIONS[0], "windows-x64", out=tmp_path / "second", cache=cache)
    assert first.read_bytes() == second.read_bytes()
    (package / "backend" / "__init__.py").write_text("changed = True")
    third = build(EDITIONS[0], "windows-x64", out=tmp_path / "third", cache=cache)
    assert first.read_bytes() != third.read_bytes()


def test_a_named_python_gets_its_range(tmp_path: Path, cache: Path) -> None:
    path = build(Edition("3.13", "4.3.0", "4.4.0"), "linux-x64", out=tmp_path, cache=cache)
    with zipfile.ZipFile(path) as archive:
        manifest = tomllib.loads(archive.read("blender_manifest.toml").decode())
    assert (manifest["blender_version_min"], manifest["blender_version_max"]) == ("4.3.0", "4.4.0")


def test_two_wheels_in_a_cache_folder_are_refused(tmp_path: Path, cache: Path) -> None:
    (cache / "linux-x64-python3.11" / "pyzmq-1.0-cp311-cp311-linux_x86_64.whl").touch()
    with pytest.raises(SystemExit, match="expected one wheel"):
        build(EDITIONS[0], "linux-x64", out=tmp_path, cache=cache)


def test_versions_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "blender_manifest.toml"
    manifest.write_text('version = "9.9.9"')
    monkeypatch.setattr(build_addon, "MANIFEST", manifest)
    with pytest.raises(SystemExit, match=r"9\.9\.9"):
        build_addon.version()


def test_every_wheel_is_pinned_by_its_hash() -> None:
    lines = (ROOT / "blender_addon" / "wheels.txt").read_text().splitlines()
    hashes = [line for line in lines if "--hash=sha256:" in line]
    assert len(hashes) == len(set(hashes)) == 8, "two Pythons for Linux, Windows on two processors, and macOS"


def checker() -> ModuleType:
    """Blender's own file, from a bpy wheel in this Python or in an environment of `make test-blender`."""
    places = [Path(sys.prefix), *ROOT.glob(".venv-bpy-*")]
    found = [path for place in places for path in place.rglob("bl_pkg/cli/blender_ext.py")]
    for path in sorted(found, reverse=True):
        spec = importlib.util.spec_from_file_location("blender_ext", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["blender_ext"] = module  # its dataclasses look their module up
        spec.loader.exec_module(module)
        if hasattr(module, "python_versions_from_wheels"):
            return module
    pytest.skip("no bpy wheel with Blender's checker in this environment")


def test_blenders_filter_accepts_the_wheels() -> None:
    """The failure this guards against: a mixed set of wheels is read as "Python 3.11 only" by Blender 5.1 and later."""
    blender = checker()
    for edition in EDITIONS:
        major, minor = map(int, edition.python.split("."))
        for platform in edition.platforms:
            wheel = WHEELS[edition.python].format(WHEEL_PLATFORMS[platform])
            versions = blender.python_versions_from_wheels([wheel])
            assert (major, minor) in versions or (major,) in versions
            assert blender.blender_platform_compatible_with_wheel_platform_from_filepath(platform, wheel)
    mixed = blender.python_versions_from_wheels([wheel.format("win_amd64") for wheel in WHEELS.values()])
    assert mixed == {(3, 11)}, "Blender now reads mixed sets otherwise: one zip a platform may do"
