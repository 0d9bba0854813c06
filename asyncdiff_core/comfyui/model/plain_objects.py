"""Objects in conditioning that are nothing but their attributes, which are plain data and tensors.

They cross to workers as such, and are objects of the same class again there.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree as pytree

from ...wire.plain import Reader, Writer, register

# In ComfyUI, as ``module:class``; each with the byte by which its objects cross.
_KINDS = {"comfy.ldm.minimax.model:PackedLayout": b"1"}


def _register(kind: type, tag: bytes) -> None:
    """Have objects of `kind` cross, and be compared and copied attribute by attribute."""

    def make(values: Iterable[Any], names: Iterable[str]) -> Any:
        made: Any = object.__new__(kind)
        made.__dict__.update(zip(names, values, strict=True))
        return made

    def write(writer: Writer, value: Any) -> None:
        writer.write_all(tag, [tuple(vars(value)), *vars(value).values()])

    def read(reader: Reader) -> Any:
        names, *values = reader.read_all()
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise ValueError("an object whose attributes have no names")
        return make(values, names)

    register(kind, tag, write, read)
    pytree.register_pytree_node(
        kind,
        lambda value: (list(vars(value).values()), tuple(vars(value))),
        make,
        flatten_with_keys_fn=lambda value: (
            [(pytree.GetAttrKey(name), part) for name, part in vars(value).items()],
            tuple(vars(value)),
        ),
    )


for _path, _tag in _KINDS.items():
    _module, _, _name = _path.partition(":")
    with contextlib.suppress(ImportError, AttributeError):  # a ComfyUI that has it not
        _register(getattr(importlib.import_module(_module), _name), _tag)
