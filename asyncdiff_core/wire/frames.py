"""What crosses a control channel. Needs nothing but the standard library.

A frame is a header, the sizes of its tensors, plain data (plain.py), and the raw bytes of every
tensor.
"""

from __future__ import annotations

import struct
from typing import Any

from .plain import Writer

HEADER = struct.Struct("<4sIQ")  # magic, number of tensors, bytes of plain data
SIZE = struct.Struct("<Q")  # bytes of a tensor
MAGIC = b"ADC2"
# Before the header of a frame whose tensors lie in a block of shared memory (blocks.py) in place of
# following it: the block's number, or 0; the oldest block that is in use; how many receivers it
# has; and how often it was used.
BLOCK = struct.Struct("<4sIIIq")
BLOCK_MAGIC = b"ADB1"

# Beyond these a header is not one of ours.
MAX_TENSORS = 2**20
MAX_PLAIN = 2**30
MAX_TENSOR = 2**44


def plain_frame(value: Any) -> bytes:
    """The frame of a value without tensors."""
    writer = Writer()
    writer.write(value)
    return HEADER.pack(MAGIC, 0, len(writer.data)) + writer.data
