"""The front ends' checkpoints: folders with sub-folders, of several repositories, or from outside of the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend import downloads, weights
from backend.hub import Hub, TransferError
from backend.weights import CATALOGUE, Entry, File, WeightsMissing, entry_of
from blender_addon.front_ends import FRONT_ENDS
from tests.fake_hub import COMMIT, FakeHub, serving

pytestmark = pytest.mark.usefixtures("loopback_only")


def quiet(stage: str, done: int, total: int) -> None:
    del stage, done, total


def test_every_front_end_has_its_weights_in_folders_of_its_own():
    """Under the names that loaders look for, and each place once."""
    for name in FRONT_ENDS:
        entry = weights.entry_of_front_end(name)
        places = [file.local for file in entry.files]
        assert entry.family == "views" and entry.purpose == FRONT_ENDS[name].tip
        assert len(set(places)) == len(places) and not any(".fp16." in place for place in places)
        assert all(not Path(place).is_absolute() and ".." not in Path(place).parts for place in places)
        if name != "starter":
            assert {"unet/config.json", "tokenizer/vocab.json", "vae/config.json"} <= set(places), name
    adapter = entry_of("mvadapter-sdxl-image")
    assert adapter.files[0] == File(
        "mvadapter_i2mv_sdxl.safetensors", 3_600_000_000, "", "mvadapter_i2mv_sdxl.safetensors"
    )
    assert {file.repository for file in adapter.files} == {"", "stabilityai/stable-diffusion-xl-base-1.0"}
    half = next(file for file in adapter.files if file.local == "unet/diffusion_pytorch_model.safetensors")
    assert half.name == "unet/diffusion_pytorch_model.fp16.safetensors" and half.bytes == 5_135_149_760


PARTS = {
    "unet/model.safetensors": b"u" * 300_000,
    "vae/model.safetensors": b"v" * 200_000,
    "base/config.json": b"{}",
}
VIEWS = Entry(
    name="mvdream",
    family="views",
    preset="",
    repository="somebody/views",
    files=(
        File("unet/model.safetensors", 300_000, place="unet/model.safetensors"),
        File("vae/model.fp16.safetensors", 200_000, place="vae/model.safetensors"),
        File("base/config.json", 2, "else/base", "base/config.json"),
    ),
    purpose="To be fetched",
    code_licence="MIT",
    weight_licence="MIT",
    commercial="yes",
    memory_gib=1.0,
    cameras=None,
)


@pytest.fixture
def views(tmp_path, monkeypatch) -> Iterator[tuple[Path, FakeHub]]:
    """The toy's folder with sub-folders, whose files come from two repositories of a hub."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(weights, "CATALOGUE", (VIEWS, *(entry for entry in CATALOGUE if entry.name != "mvdream")))
    downloads.accept(VIEWS)
    hub = FakeHub()
    hub.put("somebody/views", "unet/model.safetensors", PARTS["unet/model.safetensors"])
    hub.put("somebody/views", "vae/model.fp16.safetensors", PARTS["vae/model.safetensors"])
    hub.put("else/base", "base/config.json", PARTS["base/config.json"], large=False)
    with serving(hub):
        yield tmp_path / "mvdream", hub


def test_folders_within_and_two_repositories(views):
    place, hub = views
    assert "mvdream" not in weights.front_ends_here()
    downloads.fetch(VIEWS, Hub(hub.address), quiet)
    found = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    record = json.loads(found.pop(weights.RECORD))
    assert found == PARTS and record["revisions"] == {"somebody/views": COMMIT, "else/base": COMMIT}
    assert "mvdream" in weights.front_ends_here() and weights.front_end_folder("mvdream") == place
    assert weights.tensor_bytes(place) == 500_000
    downloads.verify(VIEWS, quiet)
    (place / "vae" / "model.safetensors").write_bytes(b"w" * 200_000)
    with pytest.raises(TransferError, match=r"vae/model\.safetensors: expected the hub's hash"):
        downloads.verify(VIEWS, quiet)
    (place / "vae" / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="mvdream is here only in part"):
        weights.front_end_folder("mvdream")
    downloads.remove(VIEWS)
    with pytest.raises(WeightsMissing, match="mvdream is not on this machine"):
        weights.front_end_folder("mvdream")


def test_a_fetch_of_folders_that_was_interrupted_goes_on(views):
    place, hub = views

    def stop(stage: str, done: int, total: int) -> None:
        if done > 300_000:
            raise Stopped

    with pytest.raises(Stopped):
        downloads.fetch(VIEWS, Hub(hub.address), stop)
    assert (place / "unet" / "model.safetensors").is_file() and list(place.rglob("*.part"))
    assert "mvdream" not in weights.front_ends_here()
    del hub.requests[:]
    downloads.fetch(VIEWS, Hub(hub.address), quiet)
    assert not any(method == "GET" and "unet" in name for method, name, *_ in hub.requests)
    assert not list(place.rglob("*.part")) and weights.record_of(VIEWS) is not None


def test_what_a_record_calls_a_file_is_not_believed(views):
    place, hub = views
    downloads.fetch(VIEWS, Hub(hub.address), quiet)
    record = json.loads((place / weights.RECORD).read_text())
    secret = place.parent / "secret"
    secret.write_bytes(b"12")
    record["files"]["../secret"] = record["files"].pop("base/config.json")
    (place / weights.RECORD).write_text(json.dumps(record))
    assert weights.record_of(VIEWS) is None


class Stopped(Exception):
    """As when a person cancels."""


def test_a_file_that_lies_outside_of_the_hub(tmp_path, monkeypatch):
    """It comes from its own address, and only with the hash that the catalogue knows."""
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path))
    content = bytes(range(256)) * 100
    hub = FakeHub()
    hub.put("somebody/net", "net.onnx", content)
    with serving(hub):
        address = f"{hub.address}/somebody/net/resolve/main/net.onnx"
        sha256 = hashlib.sha256(content).hexdigest()
        file = File("net.onnx", len(content), address=address, sha256=sha256)
        entry = replace(VIEWS, name="toy", repository="", home="https://example.org", files=(file,))
        downloads.accept(entry)
        with pytest.raises(TransferError, match="expected the hub's hash"):
            downloads.fetch(replace(entry, files=(replace(file, sha256="0" * 64),)), Hub(hub.address), quiet)
        downloads.fetch(entry, Hub(hub.address), quiet)
    assert (tmp_path / "toy" / "net.onnx").read_bytes() == content and not entry.shipped
    assert entry.page == "https://example.org" and all(login == "" for *_, login in hub.requests)
