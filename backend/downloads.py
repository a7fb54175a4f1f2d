"""Fetching, checking and removing the catalogue's checkpoints, and the licences that were accepted for them.

A download that was interrupted goes on where it was. What another checkpoint has already is not downloaded again. A
file gets its name once its bytes have the hub's hash; a checkpoint counts as fetched once all of its files have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from backend.bad_input import BadInput
from backend.hub import RemoteFile, TransferError, Transport
from backend.weights import (
    RECORD,
    Entry,
    File,
    disk_bytes,
    fetched_file,
    folder_of,
    record_of,
    tensors_of,
    weights_folder,
)
from blender_addon.atomic_file import replacing

LICENCES = "licences.json"  # in the weights folder: what was accepted, by name
PIECE = 2**22  # bytes read at once
SPARE = 2**28  # bytes that stay free on the disk

Tell = Callable[[str, int, int], None]  # stage, bytes done, bytes in all


def fetch(entry: Entry, transport: Transport, tell: Tell) -> None:
    """Brings a checkpoint here. What `tell` raises ends it; the next fetch goes on from there.

    Raises BadInput when its licence is not accepted, TransferError, OSError.
    """
    if not is_accepted(entry):
        raise BadInput(
            f"weights: expected --accept-licence for {entry.name}, found that its licence was not accepted before. "
            f"{entry.licence} The publisher's page is {entry.page}"
        )
    if record_of(entry) is not None:
        return
    folder = folder_of(entry)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(entry):
        record = _fetch_files(entry, folder, transport, tell)
        if entry.config:
            _write_json(tensors_of(entry).with_suffix(".json"), dict(entry.config))
        _write_json(folder / RECORD, record)


def verify(entry: Entry, tell: Tell) -> None:
    """Compares a fetched checkpoint with the hashes that the hub told. Raises BadInput, TransferError, OSError."""
    record = record_of(entry)
    if record is None:
        raise BadInput(f"weights: expected {entry.name} to be fetched, found nothing whole in {folder_of(entry)}")
    total, done = sum(told["bytes"] for told in record["files"].values()), 0
    for name, told in record["files"].items():
        _check(folder_of(entry) / name, told["digest"], _from(tell, done, total))
        done += told["bytes"]


def remove(entry: Entry) -> int:
    """Deletes a checkpoint and what an interrupted fetch left; returns the bytes that were freed. Raises OSError."""
    folder = folder_of(entry)
    if not folder.is_dir():
        return 0
    with _alone(entry):
        freed = disk_bytes(entry)
        (folder / RECORD).unlink(missing_ok=True)  # first, so that a half-removed one never counts as fetched
        shutil.rmtree(folder)
    return freed


# ---- licences


def is_accepted(entry: Entry) -> bool:
    """Whether the licence was accepted, in the words that the catalogue has now."""
    return _licences().get(entry.name) == entry.licence


def accept(entry: Entry) -> None:
    """Notes that a person has read and accepted the licence."""
    weights_folder().mkdir(parents=True, exist_ok=True)
    _write_json(weights_folder() / LICENCES, _licences() | {entry.name: entry.licence})


def _licences() -> dict[str, Any]:
    try:
        told = json.loads((weights_folder() / LICENCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


# ---- files


def _fetch_files(entry: Entry, folder: Path, transport: Transport, tell: Tell) -> dict[str, Any]:
    """Fetches what is not there; returns the record of all."""
    revisions, remotes = dict[str, str](), dict[File, RemoteFile]()
    tell("Asking the hub", 0, entry.bytes)
    for file in entry.files:
        remotes[file] = _describe(file, file.repository or entry.repository, transport, revisions)
    total, done = sum(remote.bytes for remote in remotes.values()), 0
    here = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    absent = [remote for file, remote in remotes.items() if not (folder / file.local).is_file()]
    linked = sum(remote.bytes for remote in absent if fetched_file(remote.digest, remote.bytes))
    _check_space(folder, total - here - linked)
    for file, remote in remotes.items():
        (folder / file.local).parent.mkdir(parents=True, exist_ok=True)
        _fetch_file(folder / file.local, remote, transport, _from(tell, done, total))
        done += remote.bytes
    files = {file.local: {"bytes": remote.bytes, "digest": remote.digest} for file, remote in remotes.items()}
    own = revisions.get(entry.repository, "")
    return {"repository": entry.repository, "revision": own, "revisions": revisions, "files": files}


def _describe(file: File, repository: str, transport: Transport, revisions: dict[str, str]) -> RemoteFile:
    """What is known of a file. All files of a repository are of one state of it, which goes into `revisions`."""
    if file.address:
        return RemoteFile(file.address, file.name, file.address, file.bytes, file.sha256, "")
    remote = transport.describe(repository, file.name, revisions.get(repository, "main"))
    revisions[repository] = remote.revision
    return remote


def _from(tell: Tell, done: int, total: int) -> Tell:
    """`tell` for one file of several."""
    return lambda stage, count, _: tell(stage, done + count, total)


def _fetch_file(path: Path, remote: RemoteFile, transport: Transport, tell: Tell) -> None:
    """One file, from its part of an earlier try if that is of the same contents."""
    part = path.with_name(f"{path.name}.{remote.digest[:16]}.part")
    if not path.is_file() or path.stat().st_size != remote.bytes:
        for other in set(path.parent.glob(f"{path.name}.*.part")) - {part}:  # of contents that are there no more
            other.unlink()
        if part.is_file() and part.stat().st_size > remote.bytes:
            part.unlink()
        twin = None if part.is_file() else fetched_file(remote.digest, remote.bytes)
        if twin is not None:
            _link(twin, part)
        else:
            transport.append(remote, part, lambda count: tell(f"Downloading {path.name}", count, remote.bytes))
    else:
        path.replace(part)  # of a fetch that was interrupted after this file: checked as if new
    try:
        _check(part, remote.digest, lambda stage, *_: tell(stage, remote.bytes, remote.bytes))
    except TransferError:
        part.unlink()  # going on from it would never end well
        raise
    part.replace(path)


def _link(twin: Path, path: Path) -> None:
    """The same bytes under another name, without more room where the disk can do that."""
    try:
        path.hardlink_to(twin)
    except OSError:
        shutil.copyfile(twin, path)


def _check(path: Path, digest: str, tell: Tell) -> None:
    """Compares a file with the hub's hash: SHA-256, or with 40 digits git's, which begins with the file's length."""
    size, done = path.stat().st_size, 0
    found = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
            done += len(piece)
            tell("Checking", done, size)
    if found.hexdigest() != digest:
        raise TransferError(
            "damaged", f"{path}: expected the hub's hash {digest}, found {found.hexdigest()}; remove and fetch it again"
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise TransferError(
            "disk_full", f"{folder}: expected {needed / 2**30:.1f} GiB of free space, found {free / 2**30:.1f} GiB"
        )


@contextlib.contextmanager
def _alone(entry: Entry) -> Iterator[None]:
    """Keeps a second fetch or removal of the same checkpoint out."""
    lock = FileLock(weights_folder() / f".{entry.name}.lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise TransferError("busy", f"weights: {entry.name} is being fetched or removed by another program") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1).encode())
