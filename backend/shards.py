"""A large file as numbered parts that small channels carry, and back. Needs the standard library alone.

FOLDER/best.safetensors.00, .01, ...    at most PART bytes each
FOLDER/best.safetensors.json            {"name", "bytes", "sha256", "parts": [{"name", "bytes", "sha256"}, ...]}
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from backend.bad_input import BadInput
from blender_addon.atomic_file import replacing

PART = 15 << 20  # bytes


def split(file: Path, folder: Path, *, part: int = PART) -> list[Path]:
    """Writes a file's parts, each whole or not at all, and last what they must be; the paths of all of that."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, paths, whole = [], [], hashlib.sha256()
    with file.open("rb") as source:
        while content := source.read(part):
            whole.update(content)
            paths.append(folder / f"{file.name}.{len(paths):02d}")
            with replacing(paths[-1]) as target:
                target.write(content)
            parts.append({"name": paths[-1].name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    told = {"name": file.name, "bytes": file.stat().st_size, "sha256": whole.hexdigest(), "parts": parts}
    manifest = folder / f"{file.name}.json"
    with replacing(manifest) as target:
        target.write(json.dumps(told, indent=1).encode())
    for old in set(folder.glob(f"{file.name}.[0-9][0-9]")) - set(paths):
        old.unlink()
    return [*paths, manifest]


def join(manifest: Path, out: Path) -> None:
    """Writes the file of which a manifest tells, its parts lying beside it. Raises BadInput unless all is as told."""
    told = _read(manifest)
    whole = hashlib.sha256()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as target:
        for part in told["parts"]:
            content = _part(manifest.parent / part["name"], part)
            whole.update(content)
            target.write(content)
        if whole.hexdigest() != told["sha256"]:
            raise BadInput(f"{manifest}: expected parts whose sum is {told['sha256']}, found {whole.hexdigest()}")


def _part(path: Path, told: dict[str, Any]) -> bytes:
    if not path.is_file():
        raise BadInput(f"{path}: expected a part of {told['bytes']} bytes, found no such file")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != told["sha256"]:
        raise BadInput(f"{path}: expected the sum {told['sha256']}, found {found} of {len(content)} bytes")
    return content


def _read(manifest: Path) -> dict[str, Any]:
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        whole = bool(told["sha256"]) and all({"name", "bytes", "sha256"} <= part.keys() for part in told["parts"])
        inside = all(Path(part["name"]).name == part["name"] for part in told["parts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{manifest}: expected a manifest of parts, found: {error!r}") from error
    if not (whole and inside):
        raise BadInput(f"{manifest}: expected a manifest of parts beside it, found something else")
    return told
