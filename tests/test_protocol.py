"""Every message survives the wire as it was; anything else is refused with a sentence and nothing worse."""

from __future__ import annotations

import json
import random
import tracemalloc
import typing
from dataclasses import fields

import numpy as np
import pytest

from blender_addon import protocol
from blender_addon.protocol import ProtocolError, decode, encode

SIZES = {"V": 2, "H": 3, "W": 4, "N": 5, "K": 9, "F": 6, "B": 7, "P": 8}
MESSAGES = typing.get_args(protocol.Message)
PLAIN = {
    str: "text",
    int: 3,
    float: 0.25,
    bool: True,
    tuple[str, ...]: ("fit", "grm"),
    dict[str, typing.Any]: {"a": [1]},
}


def example(message: type, *, optional: bool = True) -> protocol.Message:
    """A valid message of a class, its arrays full of different numbers."""
    values: dict[str, object] = {}
    for name, hint in typing.get_type_hints(message, include_extras=True).items():
        if typing.get_origin(hint) is typing.Annotated:
            spec = hint.__metadata__[0]
            shape = [SIZES[size] if isinstance(size, str) else size for size in spec.shape]
            numbers = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
            values[name] = None if spec.optional and not optional else (numbers % 251).astype(spec.dtype)
        elif typing.get_origin(hint) is typing.Literal:
            values[name] = typing.get_args(hint)[0]
        else:
            values[name] = PLAIN[hint]
    return message(**values)


def assert_equal(one: protocol.Message, other: protocol.Message) -> None:
    assert type(one) is type(other)
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b and type(a) is type(b)


def changed(message: protocol.Message, change: typing.Callable[[dict], None]) -> list:
    """The message's frames with a change made to its header."""
    header, *arrays = encode(message)
    parsed = json.loads(bytes(header))
    change(parsed)
    return [json.dumps(parsed).encode(), *arrays]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
@pytest.mark.parametrize("optional", [True, False])
def test_round_trip(message, optional):
    sent = example(message, optional=optional)
    assert_equal(decode(encode(sent)), sent)


def test_bytes_on_the_wire():
    """The format itself: a change here is a new VERSION."""
    sent = protocol.Preview("job", np.arange(8, dtype=np.uint8).reshape(1, 2, 4))
    header, pixels = encode(sent)
    assert bytes(header) == (
        b'{"type": "Preview", "version": 3, "fields": {"job_id": "job"}, '
        b'"arrays": {"image": {"dtype": "uint8", "shape": [1, 2, 4]}}}'
    )
    assert bytes(pixels) == bytes(range(8))


def test_empty_arrays_and_scattered_memory():
    empty = protocol.Splats(
        "job", *(np.zeros(shape, np.float32) for shape in [(0, 3), (0, 4), (0, 3), (0,), (0, 1, 3)])
    )
    assert_equal(decode(encode(empty)), empty)
    image = np.arange(96, dtype=np.uint8).reshape(4, 6, 4)[::2, ::-1]
    assert_equal(decode(encode(protocol.Preview("job", image))), protocol.Preview("job", image))


def test_arrays_are_not_copied():
    count = 1_000_000
    splats = protocol.Splats(
        "job", *(np.zeros(shape, np.float32) for shape in [(count, 3), (count, 4), (count, 3), (count,), (count, 1, 3)])
    )
    tracemalloc.start()
    received = decode(encode(splats))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert isinstance(received, protocol.Splats) and np.shares_memory(received.means, splats.means)
    assert not received.means.flags.writeable and splats.means.flags.writeable


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header.update(type="Reboot"), "unknown message type 'Reboot'"),
        (lambda header: header.update(type=["Preview"]), "unknown message type"),
        (lambda header: header.update(version=4), "version 4 of the protocol, this side version 3"),
        (lambda header: header.update(version=True), "version True"),
        (lambda header: header.pop("version"), "no object with a version"),
        (lambda header: header.update(extra=1), "wrong keys"),
        (lambda header: header.update(fields=[]), "must be objects"),
        (lambda header: header["fields"].update(extra=1), "expected the fields ['job_id']"),
        (lambda header: header["fields"].pop("job_id"), "expected the fields"),
        (lambda header: header["fields"].update(job_id=5), "Preview.job_id: expected str, found 5"),
        (lambda header: header["arrays"].pop("image"), "expected the arrays ['image']"),
        (lambda header: header["arrays"].update(image=None), "expected a dtype and a shape"),
        (lambda header: header["arrays"]["image"].update(dtype="float32"), "expected uint8, found 'float32'"),
        (lambda header: header["arrays"]["image"].update(dtype="object"), "expected uint8"),
        (lambda header: header["arrays"]["image"].update(shape=[3, 4]), "a shape of 3 sizes"),
        (lambda header: header["arrays"]["image"].update(shape=[3, 4, 3]), "expected size 4 for 4, found 3"),
        (lambda header: header["arrays"]["image"].update(shape=[-3, -4, 4]), "not negative"),
        (lambda header: header["arrays"]["image"].update(shape=[3.0, 4, 4]), "whole"),
        (lambda header: header["arrays"]["image"].update(shape=[2, 4, 4]), "expected 32 bytes"),
        (lambda header: header["arrays"]["image"].update(shape=[2**39, 2**39, 4]), "may have 16777216 bytes"),
    ],
)
def test_wrong_headers(change, words):
    with pytest.raises(ProtocolError) as error:
        decode(changed(example(protocol.Preview), change))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "without frames"),
        ([b""], "not the JSON"),
        ([b"\xff\xfe"], "not the JSON"),
        ([b"[" * 100_000], "not the JSON"),
        ([b"7"], "no object"),
        ([b" " * (protocol.HEADER_LIMIT + 1)], "the header may have"),
        ([b'{"version": 3, "version": 3}'], "twice"),
        ([b'{"type": "Progress", "version": 3, "fields": {"fraction": NaN}, "arrays": {}}'], "NaN is not a number"),
        ([b'{"type": "Progress", "version": 3, "fields": {"fraction": 1e999}, "arrays": {}}'], "1e999 is not a number"),
        (
            [b'{"type": "Progress", "version": 3, "fields": {"step": ' + b"9" * 5000 + b'}, "arrays": {}}'],
            "not the JSON",
        ),
    ],
)
def test_frames_that_are_no_message(frames, words):
    with pytest.raises(ProtocolError) as error:
        decode(frames)
    assert words in str(error.value) and len(str(error.value)) < 300


def test_missing_and_extra_frames():
    frames = encode(example(protocol.Splats))
    with pytest.raises(ProtocolError, match="expected 5 array frames, found 4"):
        decode(frames[:-1])
    with pytest.raises(ProtocolError, match="expected 5 array frames, found 6"):
        decode([*frames, b""])


def test_sizes_agree_within_a_message():
    def change(header: dict) -> None:
        header["arrays"]["quats"]["shape"] = [4, 4]

    with pytest.raises(ProtocolError, match=r"Splats.quats: expected size 5 for N, found 4"):
        decode(changed(example(protocol.Splats), change))


def test_a_truth_value_is_a_zero_or_a_one():
    frames = encode(example(protocol.Reconstruct))
    with pytest.raises(ProtocolError, match="one byte, 0 or 1"):
        decode([*frames[:4], b"\0\2", *frames[5:]])


def test_refusals_name_their_job():
    with pytest.raises(ProtocolError) as error:
        decode(encode(example(protocol.Reconstruct))[:-1])
    assert error.value.job_id == "text"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (protocol.Progress("job", "fit", 1, 2, float("nan")), "cannot be written as JSON"),
        (protocol.Done("job", {"psnr": float("inf")}), "cannot be written as JSON"),
        (protocol.Done("job", {"x": object()}), "cannot be written as JSON"),
        (protocol.Done("job", {"x": "y" * protocol.HEADER_LIMIT}), "the header may have"),
        (protocol.Failed("job", typing.cast("typing.Any", "tired"), ""), "Failed.kind: expected one of"),
        (protocol.Hello(typing.cast("typing.Any", "1"), ""), "Hello.version: expected int"),
        (protocol.Queued("job", 2**63), "Queued.position: expected int"),
        (protocol.Preview("job", np.zeros((2, 2, 4))), "expected uint8, found 'float64'"),
        (protocol.Preview("job", np.zeros((2, 2, 3), np.uint8)), "expected size 4"),
        (protocol.Preview("job", typing.cast("typing.Any", [1])), "expected an array, found list"),
        (protocol.Preview("job", np.zeros((4096, 4096, 4), np.uint8)), "bytes in all"),
    ],
)
def test_what_cannot_be_sent(message, words):
    with pytest.raises(ProtocolError) as error:
        encode(message)
    assert words in str(error.value)


def test_two_hundred_mutated_messages():
    """Changed bytes, lost and swapped frames: read as a whole message or refused, nothing else."""
    chance = random.Random(7)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(200):
        frames = [bytearray(frame) for frame in encode(example(chance.choice(MESSAGES)))]
        for _ in range(chance.randint(1, 4)):
            frame = chance.choice(frames)
            match chance.randrange(4):
                case 0 if frame:
                    frame[chance.randrange(len(frame))] = chance.randrange(256)
                case 1 if frame:
                    del frame[chance.randrange(len(frame)) :]
                case 2:
                    frame.extend(chance.randbytes(chance.randint(1, 9)))
                case _:
                    chance.shuffle(frames)
        try:
            decode(frames)
            outcomes["read"] += 1
        except ProtocolError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100 and sum(outcomes.values()) == 200


def test_limits_name_messages_with_arrays():
    with_arrays = {
        message.__name__
        for message in MESSAGES
        if any(
            typing.get_origin(hint) is typing.Annotated
            for hint in typing.get_type_hints(message, include_extras=True).values()
        )
    }
    assert set(protocol.ARRAY_LIMITS) == with_arrays
