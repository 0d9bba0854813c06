"""How the structure of a unit's output is written for another worker: JSON of a few known forms.

Whoever wrote it, reading it makes lists, tuples, dicts, plain values and descriptions of tensors,
of bounded depth and size, or raises a LinkError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .dtypes import DTYPES, NAMES
from .errors import LayoutError, LinkError

MAX_DEPTH = 16
MAX_PARTS = 10_000
MAX_DIMENSIONS = 16
MAX_SIZE = 2**44  # elements of a tensor; also bounds each stride

# Makes a description of a tensor of dtype, shape and stride.
Make = Callable[[torch.dtype, tuple[int, ...], tuple[int, ...]], Any]


def to_plain(structure: Any, kind: type) -> Any:
    """`structure`, in which instances of `kind` describe tensors.

    Raises:
        LayoutError: it has a part that has no form here.
    """
    if isinstance(structure, kind):
        described: Any = structure
        shape, stride = list(described.shape), list(described.stride)
        return {"tensor": [NAMES[described.dtype], shape, stride]}
    if structure is None or type(structure) in (bool, int, float, str):
        return {"value": structure}
    if type(structure) in (list, tuple):
        return {type(structure).__name__: [to_plain(part, kind) for part in structure]}
    if type(structure) is dict and all(isinstance(key, str | int) for key in structure):
        return {"dict": [[key, to_plain(part, kind)] for key, part in structure.items()]}
    raise LayoutError(
        f"A unit's output has a part of type {type(structure).__qualname__}, which cannot cross to "
        "another stage."
    )


def from_plain(plain: Any, make: Make) -> Any:
    """What `to_plain` made plain.

    Raises:
        LinkError: it is nothing of the kind.
    """
    return _Reader(make).read(plain, 0)


class _Reader:
    def __init__(self, make: Make) -> None:
        self._make = make
        self._num_parts = 0

    def read(self, plain: Any, depth: int) -> Any:
        self._num_parts += 1
        if depth > MAX_DEPTH or self._num_parts > MAX_PARTS:
            raise _wrong("is nested too deep, or has too many parts")
        if not isinstance(plain, dict) or len(plain) != 1:
            raise _wrong("has a part of no known form")
        ((form, content),) = plain.items()
        if form == "value":
            if content is None or type(content) in (bool, int, float, str):
                return content
        elif isinstance(content, list):
            if form == "tensor":
                return self._tensor(content)
            if form == "list":
                return [self.read(part, depth + 1) for part in content]
            if form == "tuple":
                return tuple(self.read(part, depth + 1) for part in content)
            if form == "dict":
                return dict(self._item(item, depth) for item in content)
        raise _wrong("has a part of no known form")

    def _item(self, item: Any, depth: int) -> tuple[str | int, Any]:
        if not (isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int)):
            raise _wrong("has an item of no known form")
        return item[0], self.read(item[1], depth + 1)

    def _tensor(self, content: list[Any]) -> Any:
        if len(content) != 3 or not isinstance(content[0], str) or content[0] not in DTYPES:
            raise _wrong("has a tensor of no known type")
        name, *sizes = content
        for numbers in sizes:
            if not isinstance(numbers, list) or len(numbers) != len(sizes[0]):
                raise _wrong("has a tensor of no possible shape")
            if any(type(n) is not int or not 0 <= n <= MAX_SIZE for n in numbers):
                raise _wrong("has a tensor of no possible shape")
        if len(sizes[0]) > MAX_DIMENSIONS or math.prod(sizes[0]) > MAX_SIZE:
            raise _wrong("has a tensor of no possible shape")
        return self._make(DTYPES[name], tuple(sizes[0]), tuple(sizes[1]))


def _wrong(how: str) -> LinkError:
    return LinkError(f"what another worker says of its messages {how}.")
