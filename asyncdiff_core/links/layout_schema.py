"""How the structure of a unit's output is written for another worker: JSON of a few known forms.

Whoever wrote it, reading it makes lists, tuples, dicts, plain values and descriptions of tensors,
of bounded depth and size, or raises a LinkError.
"""

from __future__ import annotations

import math
from typing import Any

from torch.utils import _pytree as pytree

from ..algorithm.activations import OutputMeta, TensorMeta
from ..errors import LayoutError, LinkError
from ..wire.dtypes import DTYPES, NAMES

MAX_DEPTH = 16
MAX_PARTS = 10_000
MAX_DIMENSIONS = 16
MAX_SIZE = 2**44  # elements of a tensor; also bounds each stride


def to_plain(meta: OutputMeta) -> Any:
    """The structure of an output as JSON can hold it.

    Raises:
        LayoutError: the output has a part that is neither a tensor nor plain.
    """
    return _plain(meta.build(lambda tensor: tensor))


def from_plain(plain: Any) -> OutputMeta:
    """What `to_plain` made plain.

    Raises:
        LinkError: it is nothing of the kind.
    """
    structure = _Reader().read(plain, 0)
    leaves, spec = pytree.tree_flatten(structure, lambda x: isinstance(x, TensorMeta))
    return OutputMeta(spec, tuple(leaves))


def _plain(structure: Any) -> Any:
    """`structure`, whose tensors are TensorMetas, as a few known forms."""
    if isinstance(structure, TensorMeta):
        name = NAMES[structure.dtype]
        return {"tensor": [name, list(structure.shape), list(structure.stride)]}
    if structure is None or type(structure) in (bool, int, float, str):
        return {"value": structure}
    if type(structure) in (list, tuple):
        return {type(structure).__name__: [_plain(part) for part in structure]}
    if type(structure) is dict and all(isinstance(key, str | int) for key in structure):
        return {"dict": [[key, _plain(part)] for key, part in structure.items()]}
    raise LayoutError(
        f"A unit's output has a part of type {type(structure).__qualname__}, which cannot cross to "
        "another stage."
    )


class _Reader:
    def __init__(self) -> None:
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

    def _tensor(self, content: list[Any]) -> TensorMeta:
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
        return TensorMeta(DTYPES[name], tuple(sizes[0]), tuple(sizes[1]))


def _wrong(how: str) -> LinkError:
    return LinkError(f"what another worker says of its messages {how}.")
