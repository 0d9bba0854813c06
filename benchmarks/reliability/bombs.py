"""Plain data (wire/plain.py) that would cost its reader more than its bytes are worth."""

import struct

from asyncdiff_core.wire.plain import MAX_DEPTH, MAX_OTHER_KEYS


def nested(depth: int, around: bytes = b"l") -> bytes:
    """One container within the other."""
    return (around + struct.pack("<I", 1)) * depth + b"N"


def _count(number: int) -> bytes:
    return struct.pack("<I", number)


BOMBS = {
    "deep lists": nested(20_000),
    "deep tuples as a key": b"d" + _count(2) + nested(20_000, b"t") + b"N",
    "deep tuples in a set": b"S" + _count(1) + nested(MAX_DEPTH + 1, b"t"),
    "a long list that is not there": b"l" + _count(2**32 - 1) + b"N",
    "long bytes that are not there": b"b" + struct.pack("<Q", 2**63) + b"N",
    "a huge number": b"I\xff" + bytes(255),
    "a key that has no hash": b"d" + _count(2) + nested(1) + b"N",
    "a key without a value": b"d" + _count(1) + b"N",
    "many keys of one hash": b"S"
    + _count(MAX_OTHER_KEYS + 1)
    + b"".join(b"f" + struct.pack("<d", i) for i in range(MAX_OTHER_KEYS + 1)),
    "a tensor that is not there": b"X" + _count(4) + b"NNNN",
    "a type that is none": b"y" + struct.pack("<Q", 4) + b"load",
    "a device that is none": b"v" + struct.pack("<Q", 4) + b"a:b:",
    "nothing": b"",
    "more than one": b"NN",
}
