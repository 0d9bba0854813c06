"""Reading a frame runs no code and takes no longer than its bytes, whoever wrote it."""

import collections
import contextlib
import os
import pickle
import random
import time
import uuid
from typing import Any

import pytest
import torch

from asyncdiff_core.errors import AsyncDiffError, ChannelDataError, NotPlainError
from asyncdiff_core.wire.channel import Channel, encode_frame
from asyncdiff_core.wire.frames import HEADER, MAGIC, plain_frame
from asyncdiff_core.wire.plain import Reader, Writer, require_plain
from asyncdiff_core.wire.requests import from_wire, to_wire
from benchmarks.reliability.bombs import BOMBS

PLAIN = {
    "numbers": (1, 2.5, 1j, True, None, b"bytes", 2**80, -(2**80), -(2**63), 2**63, float("inf")),
    "torch": [torch.float8_e4m3fn, torch.device("cuda:1"), torch.Size([2, 3])],
    "uuid": uuid.uuid4(),
    "sets": {1, 2},
    "more": [frozenset({"a"}), bytearray(b"x"), {(1, "a"): {}}, "\udc80 \N{GRINNING FACE}", [], ()],
}


def written(value: Any) -> bytes:
    writer = Writer()
    writer.write(value)
    return bytes(writer.data)


def test_plain_data_is_read_as_it_was() -> None:
    there = Reader(written(PLAIN)).read_whole()
    assert there == PLAIN
    assert repr(there) == repr(PLAIN)  # the types too
    require_plain(PLAIN)


def received(frame: bytes) -> Any:
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    try:
        ours.send_frame([memoryview(frame)], 10)
        return other.receive(10)
    finally:
        ours.close()
        other.close()


@pytest.mark.parametrize("function", [os.mkdir, eval, torch.load, torch.hub.load, getattr])
def test_what_names_code_cannot_be_written(function: Any) -> None:
    with pytest.raises(NotPlainError, match="no plain data"):
        plain_frame(("Beat", 0, (1, function)))


def test_a_pickle_is_no_frame() -> None:
    data = pickle.dumps(("Beat", 0, (1, "computing")))
    with pytest.raises(ChannelDataError):
        received(HEADER.pack(MAGIC, 0, len(data)) + data)


def test_what_is_not_plain_is_named() -> None:
    with pytest.raises(NotPlainError, match="OrderedDict"):
        require_plain({"x": collections.OrderedDict()})
    with pytest.raises(NotPlainError, match="lambda"):
        require_plain([lambda: None])
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotPlainError, match="deeper"):
        require_plain(loop)
    with pytest.raises(NotPlainError, match="too large"):
        require_plain(10**4300)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_at_once(name: str) -> None:
    data = BOMBS[name]
    with pytest.raises(ChannelDataError) as caught:
        received(HEADER.pack(MAGIC, 0, len(data)) + data)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "wire",
    [
        ("Beat", 0, ((((("x",) * 10,) * 10,) * 10,) * 10, "computing")),
        ("Beat", 0, (2**80, "computing")),
        ("Beat", 2**80, (1, "computing")),
        ("Beat", 0, (1, "computing", True)),
        ("x" * 10**6, 0, ()),
        ("Loaded", 0, (1, 2.5, 3)),
        ("Costs", 0, ((1.0, float("nan")),)),
        ("RunEnded", 0, ([(0, 0, "sync", 0.0, 0.0, 0.0)], 5, 6)),
        ("RunEnded", 0, ([(0, 0, "neither", 0.0, 0.0, 0.0, 0.0)], 5, 6)),
        ("Failed", 0, ("x" * 2**21,)),
        ("Ready", 0, (1, "cpu", 1.0, 0, (1, 2))),
        (["Beat"], 0, ()),
    ],
)
def test_what_is_no_message_is_refused_without_being_shown(wire: Any) -> None:
    with pytest.raises(ChannelDataError) as caught:
        from_wire(wire)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(b"HTTP", 0, 4) + b"GET ",
        HEADER.pack(MAGIC, 2**31, 4) + bytes(64),
        HEADER.pack(MAGIC, 0, 2**60) + bytes(64),
        HEADER.pack(MAGIC, 1, 4) + b"\xff" * 8 + bytes(64),
        HEADER.pack(MAGIC, 1, 4) + (2**43).to_bytes(8, "little") + bytes(64),
        HEADER.pack(MAGIC, 0, 4) + b"\x80\x05K.",
        HEADER.pack(MAGIC, 0, 3) + b"abc",
    ],
)
def test_what_is_no_frame_is_refused_at_once(frame: bytes) -> None:
    with pytest.raises(ChannelDataError):
        received(frame)


def test_damaged_frames_are_messages_or_errors() -> None:
    """Ten thousand of them, some damaged where it matters, in a few seconds."""
    chance = random.Random(3)
    whole = written(("Evaluate", 3, ({"a": [1, (2.5, "x")], (1, 2): {b"y"}}, torch.float16, 2**70)))
    start = time.perf_counter()
    for _ in range(10_000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[at] = chance.randrange(256)
            else:
                data[at:at] = chance.choice([b"t\x02\x00\x00\x00", b"d\xff\xff\x00\x00", b"I\xff"])
        with contextlib.suppress(AsyncDiffError):
            Reader(data).read_whole()
    assert time.perf_counter() - start < 60


def test_a_tensor_crosses_beside_the_data() -> None:
    x = torch.arange(6.0).view(2, 3).t()
    frame = b"".join(bytes(part) for part in encode_frame(to_wire_of(x)))
    message, ticket = from_wire(received(frame))
    assert torch.equal(message.output, x) and message.output.stride() == x.stride()
    assert ticket == 4


def to_wire_of(x: torch.Tensor) -> Any:
    from asyncdiff_core.wire.requests import Result

    return to_wire(Result(x), 4)
