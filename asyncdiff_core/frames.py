"""What a message looks like on a control channel. Needs nothing but the standard library.

A frame is a header, the sizes of its tensors, a pickle of plain data, and the raw bytes of every
tensor. Nothing in a pickle may name a class or a function but the few of `_PLAIN`, so that reading
a frame runs no code, whoever wrote it.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

HEADER = struct.Struct("<4sIQ")  # magic, number of tensors, bytes of the pickle
SIZE = struct.Struct("<Q")  # bytes of a tensor
MAGIC = b"ADC1"

# Beyond these a header is not one of ours.
MAX_TENSORS = 2**20
MAX_PICKLE = 2**30
MAX_TENSOR = 2**44

_PLAIN = {
    ("builtins", "complex"),
    ("torch", "Size"),
    ("torch", "device"),
    ("uuid", "UUID"),
    ("uuid", "SafeUUID"),
}


class PlainUnpickler(pickle.Unpickler):
    """Reads plain data only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        if module == "torch":
            import torch

            value = getattr(torch, name, None)
            if isinstance(value, torch.dtype):
                return value
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data")


def require_plain(value: Any) -> None:
    """Raise pickle.PicklingError or UnpicklingError, naming the culprit, unless `value` is plain.

    Tensors are not plain; they cross beside the pickle.
    """
    try:
        data = pickle.dumps(value, protocol=5)
    except (AttributeError, TypeError) as error:
        raise pickle.PicklingError(str(error)) from error
    PlainUnpickler(io.BytesIO(data)).load()


def plain_frame(message: Any) -> bytes:
    """The frame of a message without tensors."""
    data = pickle.dumps(message, protocol=5)
    return HEADER.pack(MAGIC, 0, len(data)) + data
