"""Whether objects with code in them are what they were: without pickling them again.

Patches are the same functions and objects in every evaluation, in new dicts and lists. But some
have a state that code in ComfyUI's process changes between evaluations, in attributes, containers
or variables of an enclosing function. A `State` has all of that.
"""

from __future__ import annotations

import functools
import itertools
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, uuid.UUID)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_FIXED = (type, types.ModuleType, types.BuiltinFunctionType, torch.Tensor)
_HEAP_TYPE = 1 << 9  # a class made by a class statement


class State:
    """What `tree` and all that can be reached from it consist of now.

    It is seen which objects there are and what they hold, and the plain values that code finds in
    the globals of its module. Not seen is what is written into a tensor in place.

    Args:
        is_elsewhere: tells the objects that are not looked into.

    Attributes:
        is_complete: whether nothing was met that cannot be looked into (objects of C code).
    """

    def __init__(self, tree: Any, is_elsewhere: Callable[[Any], bool] = lambda _: False) -> None:
        self._is_elsewhere = is_elsewhere
        self._parts: list[Any] = []  # they are kept, so that no other object gets their identity
        self._seen: dict[int, int] = {}
        self.is_complete = True
        self._add(tree)

    def equals(self, other: State) -> bool:
        """Whether both are complete, and of the same objects with the same content."""
        return (
            self.is_complete
            and other.is_complete
            and len(self._parts) == len(other._parts)
            and all(map(_same, self._parts, other._parts))
        )

    def _add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self._parts.append(value)
            return
        if id(value) in self._seen:
            self._parts.append(self._seen[id(value)])
            return
        self._seen[id(value)] = len(self._seen)
        if isinstance(value, _FIXED) or self._is_elsewhere(value):
            self._parts.append(value)
        elif isinstance(value, types.FunctionType):
            self._parts += value.__code__, value.__globals__
            self._parts += plain_globals(value).values()
            self._add(value.__defaults__)
            self._add(value.__kwdefaults__)
            self._add(value.__dict__)
            for cell in value.__closure__ or ():
                self._add(None if is_empty(cell) else cell.cell_contents)
        elif isinstance(value, types.MethodType):
            self._add(value.__func__)
            self._add(value.__self__)
        elif isinstance(value, functools.partial):
            self._add((value.func, value.args, value.keywords))
        else:
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        kind = type(value)
        is_container = kind is dict or kind in _SEQUENCES
        self._parts.append(kind if is_container else value)
        if isinstance(value, dict):
            self._parts.append(len(value))
            for part in itertools.chain.from_iterable(value.items()):
                self._add(part)
        elif isinstance(value, _SEQUENCES):
            self._parts.append(len(value))
            for part in value:
                self._add(part)
        elif not all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__):
            self.is_complete = False
        if not is_container:
            for attributes in _attributes(value):
                self._add(attributes)


def plain_globals(function: types.FunctionType) -> dict[str, Any]:
    """The globals with plain values that the code of `function` names."""
    names, found = function.__code__.co_names, function.__globals__
    return {n: found[n] for n in names if n in found and isinstance(found[n], PLAIN)}


def is_empty(cell: types.CellType) -> bool:
    """Whether nothing was assigned yet to this variable of an enclosing function."""
    try:
        cell.cell_contents  # noqa: B018 - raises for an empty one
    except ValueError:
        return True
    return False


def _attributes(value: Any) -> Iterator[Any]:
    yield getattr(value, "__dict__", None)
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                yield getattr(value, name, None)


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, PLAIN) and bool(a == b))
