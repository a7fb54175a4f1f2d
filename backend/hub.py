"""The model hub, through huggingface_hub: what a file is, and its bytes. No account is used, and nothing is sent."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

TransferKind: TypeAlias = Literal["offline", "disk_full", "refused", "gone", "damaged", "busy", "failed"]

SECONDS = 20  # for the hub's answer
PIECE = 2**18  # bytes that are written at once; the library's own 10 MB would all be lost with the connection
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class TransferError(Exception):
    """Why a checkpoint could not be fetched or is not sound, in one sentence."""

    def __init__(self, kind: TransferKind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind: TransferKind = kind


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub tells of it.

    repository, name    where it is on the hub
    address             where its bytes are; may hold for some minutes only
    bytes               its length
    digest              the hub's own: SHA-256 of a large file, git's SHA-1 of a small one; hexadecimal
    revision            the commit it is of
    """

    repository: str
    name: str
    address: str
    bytes: int
    digest: str
    revision: str


class Transport(Protocol):
    """How files come here; raises TransferError."""

    def describe(self, repository: str, file: str, revision: str) -> RemoteFile:
        """What the hub says of a file at a revision, `main` being the newest."""
        ...

    def append(self, remote: RemoteFile, path: Path, progress: Callable[[int], None]) -> None:
        """Adds to `path` what it lacks of the file, telling after each piece how many bytes it has."""
        ...


class Hub:
    """The transport of the product. `endpoint` is the hub's address; empty: the library's own or HF_ENDPOINT."""

    def __init__(self, endpoint: str = "") -> None:
        for library in ("huggingface_hub", "httpx2"):  # their failures are told by what they raise
            logging.getLogger(library).setLevel(logging.CRITICAL)
        self._endpoint = endpoint or None

    def describe(self, repository: str, file: str, revision: str) -> RemoteFile:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        with _told_plainly(repository, file):
            address = hf_hub_url(repository, file, revision=revision, endpoint=self._endpoint)
            told = get_hf_file_metadata(address, token=False, endpoint=self._endpoint, timeout=SECONDS)
        if told.size is None or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", told.etag or ""):
            raise TransferError(
                "failed", f"{repository}: the hub tells no size or no hash of {file}, so none is checked"
            )
        return RemoteFile(repository, file, told.location, told.size, told.etag or "", told.commit_hash or revision)

    def append(self, remote: RemoteFile, path: Path, progress: Callable[[int], None]) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        disable_progress_bars()
        constants.DOWNLOAD_CHUNK_SIZE = PIECE
        with _told_plainly(remote.repository, remote.name), _Counted(path, progress) as file:
            # goes on by itself after a lost connection, five times
            headers, have = build_hf_headers(token=False), file.tell()
            http_get(remote.address, file, resume_size=have, headers=headers, expected_size=remote.bytes)


class _Counted(io.FileIO):
    """A file that is added to and tells how long it is."""

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        super().__init__(path, "ab")
        self._progress = progress

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        view, done = memoryview(data), 0
        while done < len(view):
            done += super().write(view[done:])
        self._progress(self.tell())
        return done


@contextlib.contextmanager
def _told_plainly(what: str, file: str) -> Iterator[None]:
    """Every way in which the hub can fail, as a TransferError."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        sentence = f"{what}: the hub wants a login for it; download {file} in a browser and give it by path"
        raise TransferError("refused", sentence) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise TransferError("gone", f"{what}: the hub has no {file} any more, or wants a login for it") from error
    except errors.HfHubHTTPError as error:
        raise TransferError("failed", f"{what}: the hub answered with status {error.response.status_code}") from error
    except errors.OfflineModeIsEnabled as error:
        raise TransferError("offline", f"{what}: HF_HUB_OFFLINE is set, so the hub was not asked for {file}") from error
    except httpx2.HTTPError as error:
        raise TransferError(
            "offline", f"{what}: the hub cannot be reached; check the network and fetch again"
        ) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise TransferError("disk_full", f"{what}: the disk is full; free some space and fetch again") from error
        raise TransferError("failed", f"{what}: {file} did not come whole: {error}") from error
