"""The catalogue, and fetching: with a transport that fails as told, and with the real library on a loopback hub."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from backend import downloads, weights
from backend.bad_input import BadInput
from backend.hub import Hub, RemoteFile, TransferError
from backend.weights import CATALOGUE, Entry, File, WeightsMissing, entry_of
from backend.worker import kind_of
from blender_addon.front_ends import FRONT_ENDS
from tests.fake_hub import COMMIT, FakeHub, serving

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("loopback_only")

CONTENTS = {"big.pth": bytes(range(256)) * 4000, "config.yaml": b"a: 1\n"}
ENTRY = Entry(
    name="toy",
    family="lrm",
    preset="",
    repository="somebody/toy",
    files=(File("deep/big.pth", 1_000_000), File("config.yaml", 10)),
    purpose="To be fetched",
    code_licence="MIT",
    weight_licence="CC BY-NC 4.0",
    commercial="no",
    memory_gib=1.0,
    cameras=None,
    config={"a": {"b": 2}},
)


def quiet(stage: str, done: int, total: int) -> None:
    del stage, done, total


@dataclass
class FakeTransport:
    """Answers from CONTENTS.

    stop     is called with a file's name and how many of its bytes are here, before each piece
    lie      bytes in the place of a file's own
    """

    contents: dict[str, bytes] = field(default_factory=lambda: dict(CONTENTS))
    stop: Callable[[str, int], None] = lambda name, have: None
    lie: bytes | None = None
    piece: int = 100_000
    sent: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)

    def describe(self, repository: str, file: str, revision: str) -> RemoteFile:
        assert repository == "somebody/toy"
        self.asked.append((file, revision))
        content = self.contents[Path(file).name]
        return RemoteFile(
            repository, file, Path(file).name, len(content), hashlib.sha256(content).hexdigest(), "c" * 40
        )

    def append(self, remote: RemoteFile, path: Path, progress: Callable[[int], None]) -> None:
        content = self.contents[remote.address] if self.lie is None else self.lie
        have = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            while have < len(content):
                self.stop(remote.address, have)
                have += file.write(content[have : have + self.piece])
                self.sent += self.piece
                file.flush()
                progress(have)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The weights' folder, and the toy in the catalogue."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setattr(weights, "CATALOGUE", (*CATALOGUE, ENTRY))
    return tmp_path / "weights"


@pytest.fixture
def accepted(folder) -> Path:
    downloads.accept(ENTRY)
    return folder / "toy"


# ---- the catalogue


def test_the_catalogue_says_all_there_is_to_know():
    names = [entry.name for entry in CATALOGUE]
    assert len(set(names)) == len(names) == 28
    for entry in CATALOGUE:
        assert entry.files and 0.5 < entry.memory_gib < 16, entry.name
        assert entry.bytes > 1e6 or not weights.tensors_of(entry).is_file(), entry.name
        assert entry.purpose and entry.code_licence and entry.weight_licence
        assert "ommercial" in entry.licence and entry.weight_licence in entry.licence
        page = entry.home or f"https://huggingface.co/{entry.repository}"
        assert entry.shipped or (entry.page == page and entry.bytes > 1e8)
        assert len({file.local for file in entry.files}) == len(entry.files)
        json.dumps(dict(entry.config))


def test_what_is_known_of_licences():
    yes = {entry.name for entry in CATALOGUE if entry.commercial == "yes"}
    own, adapters = {"starter", "starter-views"}, {name for name in FRONT_ENDS if name.startswith("mvadapter")}
    assert yes == own | adapters | {"triposr", "mvdream", "isnet-general-use"}
    no = {entry.name for entry in CATALOGUE if entry.commercial == "no"}
    assert no == {entry.name for entry in CATALOGUE if entry.name.startswith(("openlrm", "zero123plus"))} | {"long_lrm"}
    assert "Adobe" in entry_of("long_lrm").licence and "NC" in entry_of("openlrm-mix-base-1.1").licence


def test_every_family_has_a_default_and_the_checkpoints_that_were_published():
    assert {family: weights.default_of(family).name for family in ("grm", "lgm", "long_lrm", "lrm")} == {
        "grm": "starter",
        "lgm": "lgm",
        "long_lrm": "long_lrm",
        "lrm": "triposr",
    }
    assert entry_of("lgm").files == (File("model_fp16_fixrot.safetensors", 830_126_160),)
    assert entry_of("long_lrm").config["data"] == {"scene_scale": 1.35}
    assert entry_of("openlrm-obj-large-1.1").repository == "zxhezexin/openlrm-obj-large-1.1"
    assert entry_of("openlrm-large-obj-1.0").files[0].name == "model.pth"
    with pytest.raises(BadInput, match=r"expected one of starter, grm_u, .*, found 'nothing'"):
        entry_of("nothing")


def test_the_cameras_of_four_views():
    """GRM's: radius 2.7 and 50 degrees for all; Zero123++'s four lie 30, 150, 270 and 330 degrees on from 225."""
    for name in ("grm_u", "grm_r", "grm_zero123plus"):
        cameras = entry_of(name).cameras
        assert cameras is not None and (cameras.radius, cameras.fov, len(cameras.angles)) == (2.7, 50, 4)
        if name != "grm_u":
            assert [(azimuth - 225) % 360 for _, azimuth in cameras.angles] == [30, 150, 270, 330]
    assert entry_of("long_lrm").cameras is None


def test_what_ships(folder):
    """It is there without any download, small, and says where its licence is."""
    entry = entry_of("starter")
    assert {one.name for one in CATALOGUE if one.shipped} == {"starter", "starter-views"}
    path = ROOT / "backend" / "starter" / "grm.safetensors"
    assert weights.resolve("", "grm") == weights.resolve("starter", "grm") == (path, entry)
    assert entry.bytes == weights.disk_bytes(entry) == path.stat().st_size <= 30 * 2**20
    assert entry.page.startswith("file://") and entry.page.endswith("/backend/starter/LICENCE.md")
    assert "backend/starter/LICENCE.md" in entry.licence
    downloads.remove(entry)
    assert path.is_file(), "removing looks into the folder of what was fetched"
    with pytest.raises(BadInput, match="expected a checkpoint of lgm, found 'starter' of grm"):
        weights.resolve("starter", "lgm")


def test_a_shipped_file_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "STARTER", tmp_path)
    with pytest.raises(BadInput, match=r"grm\.safetensors, which ships with this program; install it again"):
        weights.resolve("", "grm")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "HOME/.local/share/gaussmith/weights"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/gaussmith/weights"),
        ("darwin", {}, "HOME/Library/Application Support/Gaussmith/weights"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/Gaussmith/weights"),
        ("linux", {"GAUSSMITH_WEIGHTS": "~/w", "XDG_DATA_HOME": "/data"}, "HOME/w"),
    ],
)
def test_the_folder(monkeypatch, tmp_path, platform, variables, expected):
    for name in ("GAUSSMITH_WEIGHTS", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(weights.sys, "platform", platform)
    assert weights.weights_folder() == Path(expected.replace("HOME", str(tmp_path)))


# ---- names and paths


def test_names_and_paths(folder, tmp_path):
    file = tmp_path / "mine.safetensors"
    file.touch()
    assert weights.resolve(str(file), "lgm") == (file, None)
    assert weights.resolve(str(tmp_path), "lgm") == (tmp_path, None)
    with pytest.raises(BadInput, match="expected a file or one of lgm, lgm_legacy, found 'lgn'"):
        weights.resolve("lgn", "lgm")
    with pytest.raises(BadInput, match="expected a checkpoint of lgm, found 'triposr' of lrm"):
        weights.resolve("triposr", "lgm")


@pytest.mark.parametrize(("name", "meant"), [("", "triposr"), ("openlrm-obj-base-1.1", "openlrm-obj-base-1.1")])
def test_what_is_not_fetched_says_how_to_get_it(folder, name, meant):
    with pytest.raises(WeightsMissing) as error:
        weights.resolve(name, "lrm")
    assert f"expected it in {folder / meant}" in str(error.value)
    assert f"python -m backend weights fetch {meant}" in str(error.value)
    assert kind_of(error.value) == "missing_weights" and kind_of(BadInput("x")) == "bad_request"


def test_what_is_fetched_is_found(accepted):
    downloads.fetch(ENTRY, FakeTransport(), quiet)
    assert weights.resolve("toy", "lrm") == (accepted / "big.pth", ENTRY)


# ---- fetching


def test_fetching_wants_the_licence_accepted(folder):
    transport = FakeTransport()
    with pytest.raises(BadInput, match=r"expected --accept-licence for toy.*CC BY-NC 4\.0.*somebody/toy"):
        downloads.fetch(ENTRY, transport, quiet)
    assert not transport.asked and not (folder / "toy").exists()
    downloads.accept(ENTRY)
    assert downloads.is_accepted(ENTRY) and not downloads.is_accepted(entry_of("lgm"))
    downloads.fetch(ENTRY, transport, quiet)


def test_another_licence_must_be_accepted_anew(accepted):
    from dataclasses import replace

    assert not downloads.is_accepted(replace(ENTRY, weight_licence="All rights reserved"))
    (accepted.parent / downloads.LICENCES).write_text("damaged")
    assert not downloads.is_accepted(ENTRY)


def test_a_fetch(accepted):
    told: list[tuple[str, int, int]] = []
    transport = FakeTransport()
    downloads.fetch(ENTRY, transport, lambda *values: told.append(values))
    assert {path.name for path in accepted.iterdir()} == {"big.pth", "config.yaml", "big.json", weights.RECORD}
    assert all((accepted / name).read_bytes() == content for name, content in CONTENTS.items())
    assert json.loads((accepted / "big.json").read_text()) == {"a": {"b": 2}}
    assert transport.asked == [("deep/big.pth", "main"), ("config.yaml", "c" * 40)], "both of one state"
    counts, total = [done for _, done, _ in told[1:]], sum(map(len, CONTENTS.values()))
    assert counts == sorted(counts) and counts[-1] == total and all(all_of == total for *_, all_of in told[1:])
    assert {"Asking the hub", "Downloading big.pth", "Downloading config.yaml"} <= {stage for stage, *_ in told}
    record = weights.record_of(ENTRY)
    assert record is not None and record["revision"] == "c" * 40
    assert record["files"]["big.pth"]["digest"] == hashlib.sha256(CONTENTS["big.pth"]).hexdigest()
    downloads.fetch(ENTRY, again := FakeTransport(), quiet)
    assert not again.asked, "what is there is not fetched again"


@pytest.mark.parametrize("links", [True, False])
def test_what_another_checkpoint_has_is_not_downloaded_again(accepted, monkeypatch, links):
    """Nor does it go with that one."""
    other = replace(ENTRY, name="other", files=(File("deep/big.pth", place="base/big.pth"), File("config.yaml")))
    monkeypatch.setattr(weights, "CATALOGUE", (*weights.CATALOGUE, other))
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    downloads.fetch(ENTRY, FakeTransport(), quiet)
    downloads.accept(other)
    contents = CONTENTS | {"config.yaml": b"a: 2\n"}
    downloads.fetch(other, transport := FakeTransport(contents, piece=5), quiet)
    assert transport.sent == 5, "what differs alone"
    downloads.remove(ENTRY)
    downloads.verify(other, quiet)
    folder = weights.folder_of(other)
    assert (folder / "base/big.pth").read_bytes() == CONTENTS["big.pth"]
    assert (folder / "config.yaml").read_bytes() == b"a: 2\n"


class Stopped(Exception):
    """As when a person cancels."""


def test_an_interrupted_fetch_goes_on(accepted):
    def stop(name: str, have: int) -> None:
        if have >= 500_000:
            raise Stopped

    with pytest.raises(Stopped):
        downloads.fetch(ENTRY, FakeTransport(stop=stop), quiet)
    assert weights.record_of(ENTRY) is None and not (accepted / "big.pth").exists()
    assert [path.stat().st_size for path in accepted.iterdir()] == [500_000]
    second = FakeTransport()
    downloads.fetch(ENTRY, second, quiet)
    assert second.sent <= 700_000 and (accepted / "big.pth").read_bytes() == CONTENTS["big.pth"]
    assert not list(accepted.glob("*.part"))


def test_a_fetch_that_was_interrupted_between_two_files(accepted):
    def stop(name: str, have: int) -> None:
        if name == "config.yaml":
            raise Stopped

    with pytest.raises(Stopped):
        downloads.fetch(ENTRY, FakeTransport(stop=stop), quiet)
    second = FakeTransport(piece=10)
    downloads.fetch(ENTRY, second, quiet)
    assert second.sent == 10 and weights.record_of(ENTRY) is not None


def test_what_the_hub_has_changed_is_not_mixed(accepted):
    """The part of the older contents is dropped."""

    def stop(name: str, have: int) -> None:
        if have >= 500_000:
            raise Stopped

    with pytest.raises(Stopped):
        downloads.fetch(ENTRY, FakeTransport(stop=stop), quiet)
    newer = CONTENTS | {"big.pth": CONTENTS["big.pth"][::-1]}
    downloads.fetch(ENTRY, FakeTransport(newer), quiet)
    assert (accepted / "big.pth").read_bytes() == newer["big.pth"] and not list(accepted.glob("*.part"))


@pytest.mark.parametrize("lie", [b"x" * 1_024_000, b"x" * 10])
def test_bytes_without_the_hubs_hash_are_thrown_away(accepted, lie):
    with pytest.raises(TransferError, match=r"expected the hub's hash \w{64}, found \w{64}") as error:
        downloads.fetch(ENTRY, FakeTransport(lie=lie), quiet)
    assert error.value.kind == "damaged" and weights.disk_bytes(ENTRY) == 0
    downloads.fetch(ENTRY, FakeTransport(), quiet)


def test_a_disk_without_space(accepted, monkeypatch):
    monkeypatch.setattr(downloads, "SPARE", 2**60)
    with pytest.raises(TransferError, match=r"toy: expected 0\.0 GiB of free space, found [\d.]+ GiB") as error:
        downloads.fetch(ENTRY, FakeTransport(), quiet)
    assert error.value.kind == "disk_full"


def test_two_at_once(accepted):
    """The second is told, and the first is not disturbed."""

    def stop(name: str, have: int) -> None:
        for act in (lambda: downloads.fetch(ENTRY, FakeTransport(), quiet), lambda: downloads.remove(ENTRY)):
            with pytest.raises(TransferError, match="toy is being fetched or removed") as error:
                act()
            assert error.value.kind == "busy"

    downloads.fetch(ENTRY, FakeTransport(stop=stop, piece=600_000), quiet)
    assert weights.record_of(ENTRY) is not None


# ---- checking and removing


def test_verify(accepted):
    with pytest.raises(BadInput, match="expected toy to be fetched, found nothing whole"):
        downloads.verify(ENTRY, quiet)
    downloads.fetch(ENTRY, FakeTransport(), quiet)
    told: list[int] = []
    downloads.verify(ENTRY, lambda stage, done, total: told.append(done))
    assert told[-1] == sum(map(len, CONTENTS.values()))
    data = bytearray(CONTENTS["big.pth"])
    data[5] ^= 1
    (accepted / "big.pth").write_bytes(data)
    with pytest.raises(TransferError, match=r"big\.pth: expected the hub's hash") as error:
        downloads.verify(ENTRY, quiet)
    assert error.value.kind == "damaged"
    (accepted / "big.pth").write_bytes(data[:-1])
    assert weights.record_of(ENTRY) is None, "a file of another length is not even listed as fetched"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"big.pth": 5}}', '{"files": {}}'])
def test_records_that_are_none(accepted, text):
    accepted.mkdir()
    (accepted / weights.RECORD).write_text(text)
    assert weights.record_of(ENTRY) is None


def test_remove(accepted):
    downloads.fetch(ENTRY, FakeTransport(), quiet)
    held = weights.disk_bytes(ENTRY)
    assert held > 1_024_000 and downloads.remove(ENTRY) == held
    assert not accepted.exists() and weights.record_of(ENTRY) is None and downloads.remove(ENTRY) == 0
    assert downloads.is_accepted(ENTRY), "what was accepted stays so"


# ---- the real library, on a hub of this machine


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving(FakeHub()) as running:
        running.put("somebody/toy", "deep/big.pth", CONTENTS["big.pth"])
        running.put("somebody/toy", "config.yaml", CONTENTS["config.yaml"], large=False)
        yield running


def test_the_hub_tells_what_a_file_is(hub):
    big = Hub(hub.address).describe("somebody/toy", "deep/big.pth", "main")
    small = Hub(hub.address).describe("somebody/toy", "config.yaml", COMMIT)
    assert (big.bytes, big.digest, big.revision) == (1_024_000, hub.digest("somebody/toy/deep/big.pth"), COMMIT)
    assert len(small.digest) == 40 and small.bytes == 5


def test_fetching_from_the_hub(hub, accepted):
    downloads.fetch(ENTRY, Hub(hub.address), quiet)
    assert all((accepted / name).read_bytes() == content for name, content in CONTENTS.items())
    downloads.verify(ENTRY, quiet)
    assert all(login == "" for *_, login in hub.requests), "no account is used"


def test_a_lost_connection_goes_on_by_itself(hub, accepted, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.breaks = 400_000
    downloads.fetch(ENTRY, Hub(hub.address), quiet)
    assert (accepted / "big.pth").read_bytes() == CONTENTS["big.pth"]
    ranges = [asked for method, name, asked, _ in hub.requests if method == "GET" and name.endswith("big.pth")]
    assert ranges[0] == "" and ranges[1] == "bytes=262144-", ranges


def test_the_next_fetch_goes_on_at_the_hub(hub, accepted):
    accepted.mkdir()
    digest = hub.digest("somebody/toy/deep/big.pth")
    (accepted / f"big.pth.{digest[:16]}.part").write_bytes(CONTENTS["big.pth"][:123_456])
    downloads.fetch(ENTRY, Hub(hub.address), quiet)
    asked = [asked for method, name, asked, _ in hub.requests if method == "GET" and name.endswith("big.pth")]
    assert asked == ["bytes=123456-"] and (accepted / "big.pth").read_bytes() == CONTENTS["big.pth"]


def test_cancelling_a_fetch_from_the_hub(hub, accepted):
    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("Downloading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        downloads.fetch(ENTRY, Hub(hub.address), stop)
    assert list(accepted.glob("*.part"))


def test_a_hub_that_lies(hub, accepted):
    hub.lies["somebody/toy/deep/big.pth"] = b"y" * 1_024_000
    with pytest.raises(TransferError) as error:
        downloads.fetch(ENTRY, Hub(hub.address), quiet)
    assert error.value.kind == "damaged"


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (404, "EntryNotFound", "gone", "somebody/toy: the hub has no deep/big.pth any more"),
        (404, "RevisionNotFound", "gone", "the hub has no deep/big.pth any more"),
        (401, "RepoNotFound", "gone", "or wants a login"),
        (403, "GatedRepo", "refused", "wants a login for it; download deep/big.pth in a browser"),
        (503, "", "failed", "answered with status 503"),
    ],
)
def test_a_hub_that_refuses(hub, accepted, status, code, kind, words):
    hub.refuses = (status, code)
    with pytest.raises(TransferError, match=words) as error:
        downloads.fetch(ENTRY, Hub(hub.address), quiet)
    assert error.value.kind == kind and "\n" not in str(error.value)


def test_no_hub_at_all(accepted):
    with pytest.raises(TransferError, match="somebody/toy: the hub cannot be reached; check the network") as error:
        downloads.fetch(ENTRY, Hub("http://127.0.0.1:9"), quiet)
    assert error.value.kind == "offline"


def test_a_full_disk_while_downloading(hub, accepted, monkeypatch):
    def full(self: object, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("backend.hub._Counted.write", full)
    with pytest.raises(TransferError, match="the disk is full") as error:
        downloads.fetch(ENTRY, Hub(hub.address), quiet)
    assert error.value.kind == "disk_full"


def test_a_hub_without_hashes(hub, accepted, monkeypatch):
    monkeypatch.setattr(FakeHub, "digest", lambda self, name: "W/weak")
    with pytest.raises(TransferError, match=r"no size or no hash of deep/big\.pth"):
        downloads.fetch(ENTRY, Hub(hub.address), quiet)
