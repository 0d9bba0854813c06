"""A set of patches is what it was, or it is not: nothing that changes it goes unseen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from asyncdiff_core.comfyui.patches.fingerprint import State


class Thing:
    def __init__(self) -> None:
        self.weight, self.options = 0.5, {"layers": [1, 2]}
        self.tensor = torch.ones(2)

    def method(self) -> None:
        pass


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = 1


def counter() -> tuple[Callable[[], Any], Callable[[], Any]]:
    count = 0
    log: list[int] = []

    def read() -> Any:
        return count, log

    def write() -> None:
        nonlocal count
        count += 1

    return read, write


def function(default: Any = 1, *, keyword: Any = 2) -> None:
    pass


def is_same_after(tree: Any, change: Callable[[], Any]) -> bool:
    before = State({"patches": tree})
    assert before.is_complete
    assert before.equals(State({"patches": tree}))
    change()
    return before.equals(State({"patches": tree}))


def test_new_containers_of_the_same_objects_are_the_same() -> None:
    thing, tensor = Thing(), torch.zeros(1)

    def tree() -> Any:
        return {"a": [thing, function, (tensor, 0.5)], ("b", 1): {"c": thing.method}}

    assert State(tree()).equals(State(tree()))


def test_other_objects_of_the_same_content_are_not() -> None:
    assert not State([Thing()]).equals(State([Thing()]))
    assert not State([torch.zeros(1)]).equals(State([torch.zeros(1)]))


def test_changes_are_seen() -> None:
    thing = Thing()
    assert is_same_after(thing, lambda: None)
    assert not is_same_after(thing, lambda: setattr(thing, "weight", 0.6))
    assert not is_same_after(thing, lambda: thing.options["layers"].append(3))
    assert not is_same_after(thing, lambda: setattr(thing, "tensor", torch.ones(2)))
    assert not is_same_after(thing.method, lambda: setattr(thing, "more", None))
    slotted = Slotted()
    assert not is_same_after(slotted, lambda: setattr(slotted, "value", 2))
    partial = functools.partial(function, thing)
    assert not is_same_after(partial, lambda: setattr(thing, "weight", 0.7))
    module = torch.nn.Linear(2, 2)
    assert not is_same_after(module, lambda: module.register_buffer("b", torch.ones(1)))


def test_variables_of_enclosing_functions_are_seen() -> None:
    read, write = counter()
    assert not is_same_after(read, write)
    assert not is_same_after(read, lambda: read()[1].append(1))


def test_attributes_and_defaults_of_functions_are_seen() -> None:
    def own(default: Any = [1]) -> None:  # noqa: B006 - what is tested
        pass

    assert not is_same_after(own, lambda: own.__defaults__[0].append(2))
    assert not is_same_after(own, lambda: setattr(own, "state", 1))


def test_kinds_sizes_and_orders_of_containers_count() -> None:
    trees = [[1, 2], (1, 2), [2, 1], [[1], 2], [1, [2]], [1, 2, 3], {1: 2}, {1, 2}, 1, True, 1.0]
    for tree in trees:
        assert [State(tree).equals(State(other)) for other in trees].count(True) == 1


def test_what_holds_itself_ends() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    thing = Thing()
    thing.options["self"] = thing
    assert State([ring, thing]).equals(State([ring, thing]))


def test_what_cannot_be_looked_into_is_never_the_same() -> None:
    for opaque in (np.zeros(2), iter([1]), torch.Generator()):
        state = State({"a": opaque})
        assert not state.is_complete and not state.equals(state)


def test_numbers_that_are_none_are_themselves() -> None:
    nan = float("nan")
    assert State([nan]).equals(State([nan]))
