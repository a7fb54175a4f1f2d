"""What a machine without a network needs to train, as one small archive: the repository's files, and beside them
`assets/` (models and material pictures), `bench/` (objects to judge by) and `wheels/` (Python packages).

Model files and wheels are zip archives; inside the archive they are not compressed a second time, so that they are
together in one stream, which is then smaller by a third. They hold the same and are read as they are.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from backend.bad_input import BadInput
from blender_addon.atomic_file import replacing

LIMIT = 64 << 20  # bytes of an archive
ZIPPED = (".npz", ".whl")
LEFT_OUT = ("docs/", "tests/blender/")  # of the repository
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold: the clock must not change the bytes


def pack(root: Path, beside: Mapping[str, Path], out: Path, *, limit: int = LIMIT) -> dict[str, int]:
    """Writes the archive, whole or not at all; the bytes of its parts before they are compressed, by name.

    beside  folders that travel too, by the names that they have in the archive
    Raises BadInput where a folder is missing, and where the archive would be larger than the limit.
    """
    sizes = {"repository": 0, **dict.fromkeys(beside, 0)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        with tarfile.open(fileobj=file, mode="w:xz", preset=9) as archive:
            for part, name, path in _files(root, beside):
                content = path.read_bytes()
                content = stored(content) if path.suffix in ZIPPED else content
                sizes[part] += len(content)
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755 if path.stat().st_mode & 0o100 else 0o644
                archive.addfile(entry, io.BytesIO(content))
        if file.tell() > limit:
            raise BadInput(f"{out}: expected at most {limit} bytes, found {file.tell()}, of these parts: {sizes}")
    return sizes


def stored(archive: bytes) -> bytes:
    """The same zip archive without any compression."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            copy = zipfile.ZipInfo(entry.filename, EPOCH)
            copy.external_attr = entry.external_attr
            new.writestr(copy, old.read(entry))
    return made.getvalue()


def _files(root: Path, beside: Mapping[str, Path]) -> Iterator[tuple[str, str, Path]]:
    """The part, the name in the archive and the path of each file; always in the same order."""
    for name in _repository(root):
        yield "repository", name, root / name
    for part, folder in beside.items():
        if not folder.is_dir():
            raise BadInput(f"{folder}: expected a folder of {part}, found none")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield part, f"{part}/{path.relative_to(folder).as_posix()}", path


def _repository(root: Path) -> list[str]:
    """What git knows and what it would add, of what is there."""
    words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"{root}: expected a git repository, found: {done.stderr.strip()}")
    names = sorted(set(filter(None, done.stdout.split("\0"))))
    return [name for name in names if not name.startswith(LEFT_OUT) and (root / name).is_file()]
