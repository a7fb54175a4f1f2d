"""Files of torch.save without unpickling: equal to torch's own reading, and deaf to everything else."""

from __future__ import annotations

import argparse
import io
import os
import pickle  # noqa: TID251  to write what must be refused
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.bad_input import BadInput
from backend.safe_pickle import CONTAINERS, Malformed, StoredTensor, run
from backend.torch_files import PickledFile
from tests.published_files import as_easydict

FORMS = [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}]


def tensors() -> OrderedDict[str, torch.Tensor]:
    """Every type of number, and views that share, transpose, start late or are empty."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    state = OrderedDict((str(kind), (base * 3).to(kind)) for kind in (*kinds, torch.int8, torch.uint8, torch.bool))
    state |= {"base": base, "row": base[1], "column": base[:, 2], "turned": base.t(), "late": base[2:, 3:]}
    state |= {"empty": torch.empty(0, 3), "scalar": torch.tensor(1.5), "parameter": torch.nn.Parameter(base.clone())}
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  as Module.state_dict leaves it
    return state


def loaded(path: Path) -> dict[str, torch.Tensor]:
    with PickledFile(path) as file:
        return file.load(file.content)


def content(path: Path) -> Any:
    with PickledFile(path) as file:
        return file.content


@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_those_that_torch_reads(tmp_path, form):
    path = tmp_path / "state.pt"
    torch.save(tensors(), path, **form)
    expected = torch.load(path, weights_only=False)  # of the two readers the older: it knows protocol 4
    found = loaded(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_part_does_not_keep_the_whole(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"part": torch.zeros(1000)[:3], "one": (tied := torch.zeros(5)), "other": tied}, path)
    found = loaded(path)
    assert found["part"].untyped_storage().nbytes() == 12
    assert found["one"].data_ptr() == found["other"].data_ptr(), "tied weights stay tied"


@pytest.mark.parametrize("form", FORMS)
def test_values_beside_the_tensors(tmp_path, form):
    path = tmp_path / "state.pt"
    values = {"a": [1, 2.5, (None, True)], 3: {"x": "y" * 300, "big": -(10**30)}, "empty": [(), [], {}]}
    torch.save(values, path, **form)
    assert content(path) == values


def test_configuration_objects_become_plain_dicts(tmp_path):
    path = tmp_path / "config.pt"
    with as_easydict() as easydict:
        config = easydict({"a": {"b": [1, 2]}, "c": None})
        torch.save({"easy": config, "namespace": argparse.Namespace(lr=1e-3, deep={"x": 1})}, path)
    found = content(path)
    assert found == {"easy": {"a": {"b": [1, 2]}, "c": None}, "namespace": {"lr": 1e-3, "deep": {"x": 1}}}
    assert type(found["easy"]) is dict and type(found["easy"]["a"]) is dict
    assert ("easydict", "EasyDict") in CONTAINERS


# ---- refusals


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def attacks(target: Path) -> dict[str, Any]:
    """Objects that make `target` when a careless reader unpickles them."""
    command = f"echo > '{target}'"
    return {
        "os.system": Evil(os.system, command),
        "builtins.exec": Evil(exec, f"open({str(target)!r}, 'w')"),
        "builtins.eval": Evil(eval, f"open({str(target)!r}, 'w')"),
        "io.open": Evil(open, str(target), "w"),
        "in the state": {"model": {"weight": torch.zeros(2), "x": Evil(os.system, command)}},
        "in the config": {"model": {"weight": torch.zeros(2)}, "config": {"deep": [(Evil(os.system, command),)]}},
    }


@pytest.mark.skipif(os.name == "nt", reason="the shell of POSIX")
@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("attack", list(attacks(Path())))
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, attack, form):
    """The same file does run when it is unpickled, so the test would see it."""
    target, path = tmp_path / "ran", tmp_path / "evil.pt"
    evil = attacks(target)[attack]
    if form is None:
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, **form)
    with pytest.raises(BadInput, match=r"evil\.pt: expected tensors and plain values, found the name .*nothing of it"):
        content(path)
    assert not target.exists()
    if form is None:
        pickle.loads(path.read_bytes())  # noqa: S301  this test's own, to see that it is one that runs
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"cposix\nsystem\n.", r"the name posix\.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", r"the name posix\.system"),
        (b"(S'x'\niposix\nsystem\n.", "the instruction INST"),
        (b"(cposix\nsystem\nS'x'\no.", r"the name posix\.system"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"Pkey\n.", "the instruction PERSID"),
        (b"ctorch\nFloatTensor\n.", r"the name torch\.FloatTensor"),
        (b"ctorch\nFloatStorage\n(K\x05tR.", r"a call of torch\.FloatStorage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(tR.", "one that ends too early"),
        (b"ccollections\nOrderedDict\n(K\x05tR.", "damaged"),
        (b"ccollections\nOrderedDict\n}b.", "Name where dict belongs"),
        (b"ctorch._utils\n_rebuild_parameter\n}S'__globals__'\n}sb.", "Name where dict belongs"),
        (b"K\x05)R.", "int where Name belongs"),
        (b"]}b.", "list where dict belongs"),
        (b"(K\x05K\x06t", "ends too early"),
        (b"0.", "damaged"),
        (b"", "ends too early"),
    ],
)
def test_programs_that_are_no_plain_value(program, words):
    with pytest.raises(Malformed, match=words):
        run(io.BytesIO(program))


def test_any_bytes_are_a_value_or_malformed():
    """Broken copies of real pickles; nothing but Malformed may come out."""
    rolls = random.Random(7)
    originals = [pickle.dumps({"a": [1, (2.5, None)], "b": OrderedDict(x="y")}, protocol) for protocol in range(6)]
    for _ in range(3000):
        broken = bytearray(rolls.choice(originals))
        for _ in range(rolls.randint(1, 4)):
            broken[rolls.randrange(len(broken))] = rolls.randrange(256)
        try:
            run(io.BytesIO(bytes(broken)))
        except Malformed:
            pass


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The archive with each member's bytes changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


def replace_in_pickle(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        assert old in data
        return data.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace_in_pickle(b"FloatStorage", b"DoubleStorage"), "96 bytes where 192 belong"),
        (replace_in_pickle(b"K\x06K\x04\x86", b"K\x06K\x05\x86"), r"shape \(6, 5\)"),
        (replace_in_pickle(b"K\x06K\x04\x86", b"J\xff\xff\xff\xffK\x04\x86"), r"shape \(-1, 4\)"),
        (replace_in_pickle(b"K\x04K\x01\x86", b"K\x00K\x00\x86"), None),  # strides 0: as many numbers, all the first
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "byte order 'big'"),
        (lambda name, data: data[:-4] if "/data/" in name else data, "92 bytes where 96 belong"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(tmp_path, change, words):
    path = tmp_path / "state.pt"
    torch.save({"w": torch.arange(24.0).reshape(6, 4)}, path)
    rewritten(path, change)
    if words is None:
        assert torch.equal(loaded(path)["w"], torch.zeros(6, 4))
        return
    with pytest.raises(BadInput, match=words):
        loaded(path)


def test_a_tensor_that_grows_is_refused():
    from backend.safe_pickle import Storage

    one = Storage("0", torch.float32, 1)
    with pytest.raises(Malformed, match="repeats its 1 numbers"):
        StoredTensor(one, 0, (2**40,), (0,))
    assert StoredTensor(one, 0, (0, 7), (7, 1)).count == 0


def test_parts_that_overlap_without_end_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    base = torch.zeros(1000)
    torch.save({str(start): base[:999] for start in range(50)}, path)
    with pytest.raises(BadInput, match="199800 bytes of tensors that overlap"):
        loaded(path)


def test_archives_that_torch_has_not_written(tmp_path):
    path = tmp_path / "state.pt"
    torch.save(tensors(), path)
    rewritten(path, lambda _, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(BadInput, match="a compressed archive"):
        content(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(BadInput, match=r"state\.pt: .*a zip archive that torch\.save has not written"):
        content(path)


def test_a_damaged_number_is_seen(tmp_path):
    """The archive's own checksum."""
    path = tmp_path / "state.pt"
    torch.save({"w": torch.full((50,), 1.25)}, path)
    data = bytearray(path.read_bytes())
    spot = data.find(struct.pack("<f", 1.25) * 50)
    data[spot] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="ends too early or is damaged"):
        loaded(path)


@pytest.mark.parametrize("form", FORMS)
def test_truncated_files(tmp_path, form):
    whole = tmp_path / "whole.pt"
    torch.save(tensors(), whole, **form)
    data, path = whole.read_bytes(), tmp_path / "cut.pt"
    for share in (0.02, 0.3, 0.7, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BadInput, match=r"cut\.pt: expected a whole file of torch\.save"):
            loaded(path)


def test_a_pickle_of_something_else(tmp_path):
    path = tmp_path / "values.pkl"
    path.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(BadInput, match="another kind of pickle"):
        content(path)
