"""Makes the extension's zips: `python build_addon.py --out dist [--platform linux-x64] [--check FOLDER_WITH_BPY]`.

Each platform gets one zip for Blender 4.2 to 5.0 (Python 3.11) and one for 5.1 and later, because Blender reads from
the wheels' file names which Pythons they fit and refuses a mixed set. The same sources give the same bytes.
`--python 3.13 --blender-min 4.3.0 --blender-max 4.4.0` makes a zip for a Blender built on another Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGES = ("blender_addon", "backend")
MANIFEST = ROOT / "blender_addon" / "blender_manifest.toml"
SKIPPED = (MANIFEST, ROOT / "blender_addon" / "wheels.txt")  # the manifest goes to the zip's root instead
INIT = '"""The root of the Gaussmith extension."""\n\nfrom .blender_addon import register, unregister  # noqa: F401\n'
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold: the clock must not change the bytes

# Blender's platform name: the wheel platform pip is asked for. Blender itself needs glibc 2.28 and macOS 11.
WHEEL_PLATFORMS = {
    "linux-x64": "manylinux_2_28_x86_64",
    "windows-x64": "win_amd64",
    "windows-arm64": "win_arm64",
    "macos-arm64": "macosx_11_0_arm64",
    "macos-x64": "macosx_11_0_x86_64",
}


@dataclass(frozen=True)
class Edition:
    """A range of Blender versions that share a Python."""

    python: str
    blender_min: str
    blender_max: str  # the first version that no longer fits; empty: none known
    platforms: tuple[str, ...] = tuple(WHEEL_PLATFORMS)

    @property
    def label(self) -> str:
        return f"blender{self.blender_min}" + (f"-before-{self.blender_max}" if self.blender_max else "-and-later")


EDITIONS = (
    Edition("3.11", "4.2.0", "5.1.0"),
    Edition("3.13", "5.1.0", "", tuple(p for p in WHEEL_PLATFORMS if p != "macos-x64")),  # 5.0 left Intel Macs behind
)


def fetch_wheel(edition: Edition, platform: str, cache: Path) -> Path:
    """The pyzmq wheel for a Python and a platform; downloaded once, checked against the hashes in wheels.txt."""
    folder = cache / f"{platform}-python{edition.python}"
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        target = ("--platform", WHEEL_PLATFORMS[platform], "--python-version", edition.python, "--implementation", "cp")
        flags = ("--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder))
        requirements = ("-r", str(ROOT / "blender_addon" / "wheels.txt"))
        subprocess.run([sys.executable, "-m", "pip", "download", *flags, *target, *requirements], check=True)
        wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"{folder}: expected one wheel, found {[wheel.name for wheel in wheels]}; delete the folder")
    return wheels[0]


def manifest(edition: Edition, platform: str, wheel: str) -> str:
    """The manifest with what belongs to one zip; new keys go before the first table, where TOML wants them."""
    added = [f'blender_version_min = "{edition.blender_min}"']
    if edition.blender_max:
        added.append(f'blender_version_max = "{edition.blender_max}"')
    added += [f"platforms = {json.dumps([platform])}", f"wheels = {json.dumps([f'./wheels/{wheel}'])}"]
    fields, permissions = MANIFEST.read_text(encoding="utf-8").split("[permissions]")
    body = fields.split("\n", 1)[1].rstrip()  # without the comment about this file
    return "\n".join([body, *added, "", "[permissions]" + permissions])


def sources() -> Iterator[Path]:
    """Every file of the two packages, without caches, in a fixed order."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden and path not in SKIPPED and path.suffix != ".pyc":
                yield path


def build(edition: Edition, platform: str, *, out: Path, cache: Path) -> Path:
    """Writes one zip and returns its path."""
    wheel = fetch_wheel(edition, platform, cache)
    files = {"__init__.py": INIT.encode(), "blender_manifest.toml": manifest(edition, platform, wheel.name).encode()}
    files |= {"LICENSE": (ROOT / "LICENSE").read_bytes(), f"wheels/{wheel.name}": wheel.read_bytes()}
    files |= {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sources()}
    target = out / f"gaussmith-{version()}-{platform}-{edition.label}.zip"
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # as if made on Unix, wherever it is made
            archive.writestr(entry, files[name])
    return target


def version() -> str:
    """The version in the manifest; a project file that names another one is a mistake to mend first."""
    found = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["version"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if found != project:
        raise SystemExit(f"{MANIFEST.name} says version {found}, pyproject.toml says {project}: make them agree")
    return found


def validators(folder: Path) -> list[Path]:
    """Blender's own checkers below a folder: a Blender, a bpy wheel or an environment that holds one."""
    found = sorted(folder.rglob("bl_pkg/cli/blender_ext.py"))
    if not found:
        raise SystemExit(f"{folder}: no bl_pkg/cli/blender_ext.py in it, so there is no bpy or Blender to check with")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the zips")
    parser.add_argument("--cache", type=Path, default=ROOT / "out" / "wheels", help="folder that keeps the wheels")
    parser.add_argument("--platform", action="append", choices=WHEEL_PLATFORMS, help="default: all; may be repeated")
    parser.add_argument("--python", help="make one zip a platform for a Blender on this Python, such as 3.14")
    parser.add_argument("--blender-min", default="4.2.0", help="with --python: the first Blender version")
    parser.add_argument("--blender-max", default="", help="with --python: the first version that no longer fits")
    parser.add_argument("--check", type=Path, help="run Blender's own checker, found below this folder, on each zip")
    options = parser.parse_args()
    named = (Edition(options.python, options.blender_min, options.blender_max),) if options.python else EDITIONS
    checkers = validators(options.check) if options.check else []
    for edition in named:
        for platform in edition.platforms:
            if options.platform and platform not in options.platform:
                continue
            target = build(edition, platform, out=options.out, cache=options.cache)
            for checker in checkers:
                subprocess.run([sys.executable, str(checker), "validate", "--valid-tags=", str(target)], check=True)
            sys.stdout.write(f"{target} {target.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
