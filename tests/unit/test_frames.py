"""Reading a frame runs no code, whoever wrote it."""

import io
import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff_core.channel import Channel
from asyncdiff_core.errors import ChannelDataError
from asyncdiff_core.frames import HEADER, MAGIC, PlainUnpickler, plain_frame, require_plain

PLAIN = {
    "numbers": (1, 2.5, 1j, True, None, b"bytes", 2**80),
    "torch": [torch.float8_e4m3fn, torch.device("cuda:1"), torch.Size([2, 3])],
    "uuid": uuid.uuid4(),
    "sets": {1, 2},
}


def test_plain_data_is_read_as_it_was() -> None:
    assert PlainUnpickler(io.BytesIO(pickle.dumps(PLAIN, protocol=5))).load() == PLAIN
    require_plain(PLAIN)


class Attack:
    """Unpickles to a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("function", [os.mkdir, eval, torch.load, torch.hub.load, getattr])
def test_a_call_is_refused_and_does_not_happen(function: Any, tmp_path: Path) -> None:
    made = tmp_path / "made"
    arguments = (
        (str(made),) if function is os.mkdir else (f"__import__('os').mkdir({str(made)!r})",)
    )
    frame = plain_frame(Attack(function, *arguments))
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    try:
        ours.send_frame([memoryview(frame)], 10)
        with pytest.raises(ChannelDataError, match="no plain data"):
            other.receive(10)
    finally:
        ours.close()
        other.close()
    assert not made.exists()


def test_what_is_not_plain_is_named() -> None:
    with pytest.raises(pickle.PickleError, match="OrderedDict"):
        require_plain({"x": __import__("collections").OrderedDict()})
    with pytest.raises(pickle.PickleError, match="lambda"):
        require_plain([lambda: None])


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
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    try:
        ours.send_frame([memoryview(frame)], 10)
        with pytest.raises(ChannelDataError):
            other.receive(10)
    finally:
        ours.close()
        other.close()
