"""Every request and answer survives the way, as plain data."""

import dataclasses
import math
import pickle
import pickletools
import types
import typing
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from asyncdiff_core.errors import ChannelDataError
from asyncdiff_core.wire import requests
from asyncdiff_core.wire.channel import Channel
from asyncdiff_core.wire.requests import from_wire, to_wire

EXAMPLES = [
    requests.Configure(
        rank=1,
        name="stage 1",
        device="cuda:0",
        num_threads=2,
        builder="package.module:build",
        spec={"loader": ("load", ("model.safetensors",), 0), "dtype": torch.bfloat16},
        rendezvous="/tmp/somewhere/rendezvous",
    ),
    requests.Connect("ring", 2),
    requests.Connected("no message within 20 s"),
    requests.MeasureCosts((torch.rand(2, 3), None), {"context": torch.rand(2, 7, 4), "n": 3}),
    requests.Import("/packs/one.nodes.attention", "/packs/one", "/packs/one/__init__.py"),
    requests.Load(
        ((2, 5), (7, 9)),
        1,
        ((0, 2, (0, 1), False),),
        ((2, 0, (4,), True), (3, 0, (2, 4), False)),
        lead=1,
        budget=1 << 33,
    ),
    requests.Unload(waits=True),
    requests.Unloaded(5),
    requests.MeasureMemory(),
    requests.Memory(1 << 34, 5),
    requests.Patch({"strength": 0.5, "up": [torch.rand(3, 2)]}),
    requests.Compile(b"settings"),
    requests.Keep("0", (b"code", [torch.rand(2)])),
    requests.Evaluate(
        1, 7, "async", ((torch.rand(2),), {"y": 3}), {1: torch.rand(1)}, {0: 1}, [4, None]
    ),
    requests.EndRun(gives_back=True),
    requests.Stop(),
    requests.Ready(1234, "cpu x1", 1.5e10, 1 << 36, ("/ComfyUI", "/lib")),
    requests.Costs((1.0, 2.0)),
    requests.Imported(True),
    requests.Loaded(1 << 33, 12, 1 << 34, 1 << 32),
    requests.Done(),
    requests.Result((torch.rand(2, 2), None), 1 << 20),
    requests.RunEnded([(0, 0, "sync", 1.0, 0.5, 0.25, 2.0)], 1 << 20, 1 << 33),
    requests.Beat(12, "computing", 1 << 33),
    requests.Failed("ValueError: no", kind="memory", traceback="Traceback ..."),
]


def assert_same(a: Any, b: Any) -> None:
    leaves, structure = pytree.tree_flatten(a)
    expected, expected_structure = pytree.tree_flatten(b)
    assert structure == expected_structure
    for mine, original in zip(leaves, expected, strict=True):
        if isinstance(original, torch.Tensor):
            assert torch.equal(mine, original)
        else:
            assert mine == original and type(mine) is type(original)


def test_there_is_an_example_of_every_request_and_answer() -> None:
    known = {
        value for value in vars(requests).values()
        if dataclasses.is_dataclass(value) and value.__module__ == requests.__name__
    }  # fmt: skip
    assert {type(example) for example in EXAMPLES} == known


@pytest.mark.parametrize("sent", EXAMPLES, ids=lambda m: type(m).__name__)
def test_round_trip_over_a_channel(sent: Any) -> None:
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    try:
        ours.send(to_wire(sent, ticket=41), 10.0)
        received, ticket = from_wire(other.receive(10.0))
    finally:
        ours.close()
        other.close()
    assert ticket == 41
    assert type(received) is type(sent)
    for field in dataclasses.fields(sent):
        assert_same(getattr(received, field.name), getattr(sent, field.name))


@pytest.mark.parametrize("sent", EXAMPLES, ids=lambda m: type(m).__name__)
def test_no_class_of_the_pack_travels(sent: Any) -> None:
    """In ComfyUI the pack's modules have other names than in a worker."""
    strings = [
        argument
        for _, argument, _ in pickletools.genops(pickle.dumps(to_wire(sent)))
        if isinstance(argument, str)
    ]
    assert type(sent).__name__ in strings  # the strings are seen at all
    assert not [text for text in strings if "asyncdiff" in text]


def test_a_request_without_a_ticket_has_ticket_0() -> None:
    assert from_wire(to_wire(requests.Stop())) == (requests.Stop(), 0)


def test_they_are_frozen_and_their_fields_have_types() -> None:
    for example in EXAMPLES:
        assert set(typing.get_type_hints(type(example))) == {
            field.name for field in dataclasses.fields(example)
        }
        assert type(example).__dataclass_params__.frozen


# For each kind of field something that it cannot be.
WRONG = {
    int: "4",
    float: math.nan,
    str: 5,
    bool: 1,
    dict: [("a", 1)],
    list: {},
    tuple: 3,
    typing.Literal: "nonsense",
    types.UnionType: "neither",
    typing.Union: "neither",
}


def checked_fields() -> typing.Iterator[tuple[Any, str, Any]]:
    """Every field that cannot be just anything: a request, its name, and a wrong value."""
    for example in EXAMPLES:
        hints = typing.get_type_hints(type(example), include_extras=True)
        for name, hint in hints.items():
            if hint is Any:
                continue
            if typing.get_origin(hint) is typing.Annotated:
                hint = typing.get_args(hint)[0]
            yield example, name, WRONG[typing.get_origin(hint) or hint]


@pytest.mark.parametrize(
    ("sent", "name", "wrong"),
    list(checked_fields()),
    ids=[f"{type(m).__name__}.{name}" for m, name, _ in checked_fields()],
)
def test_a_wrong_field_is_named(sent: Any, name: str, wrong: Any) -> None:
    kind, ticket, values = to_wire(sent, 3)
    index = [field.name for field in dataclasses.fields(sent)].index(name)
    values = (*values[:index], wrong, *values[index + 1 :])
    with pytest.raises(ChannelDataError, match=f"{kind}.{name} "):
        from_wire((kind, ticket, values))


@pytest.mark.parametrize(
    ("sent", "change"),
    [
        (requests.Evaluate, {"mode": "nonsense"}),
        (requests.Evaluate, {"mode": "Async"}),
        (requests.Evaluate, {"lane": -1}),
        (requests.Evaluate, {"change": {"1": 0}}),
        (requests.Evaluate, {"change": {-1: 0}}),
        (requests.Evaluate, {"change": [{}]}),
        (requests.Evaluate, {"goals": [4, -1]}),
        (requests.Evaluate, {"goals": [4, False]}),
        (requests.Evaluate, {"goals": None}),
        (requests.Evaluate, {"inputs": (1, 2)}),
        (requests.Evaluate, {"evaluation": 2**70}),
        (requests.Evaluate, {"evaluation": True}),
        (requests.Load, {"stage": ((5, 2),)}),
        (requests.Load, {"stage": ((1, 2, 3),)}),
        (requests.Load, {"incoming": ((0, (1,), True),)}),
        (requests.Load, {"outgoing": ((0, 0, (1,), 1),)}),
        (requests.Load, {"lead": -1}),
        (requests.Configure, {"num_threads": 0}),
        (requests.Connect, {"backend": "gloo"}),
        (requests.Connect, {"attempt": -1}),
        (requests.Ready, {"speed": -1.0}),
        (requests.Ready, {"speed": math.inf}),
        (requests.Ready, {"search_path": ("a", 1)}),
        (requests.Costs, {"costs": (1.0, "2")}),
        (requests.RunEnded, {"spans": [(0, 0, "both", 1.0, 0.5, 0.25, 2.0)]}),
        (requests.RunEnded, {"spans": [(0, 0, "sync", 1.0, 0.5, 0.25)]}),
        (requests.Beat, {"doing": "sleeping"}),
        (requests.Failed, {"text": "x" * 2**21}),
    ],
)
def test_a_field_that_there_cannot_be_is_named(sent: Any, change: dict[str, Any]) -> None:
    (example,) = (one for one in EXAMPLES if type(one) is sent)
    with pytest.raises(ChannelDataError, match=f"{sent.__name__}.{next(iter(change))} "):
        from_wire(to_wire(dataclasses.replace(example, **change)))


@pytest.mark.parametrize("ticket", [-1, 1.0, None, "3", True, 2**70])
def test_a_wrong_ticket(ticket: Any) -> None:
    with pytest.raises(ChannelDataError, match="ticket"):
        from_wire(to_wire(requests.Stop(), ticket))


def test_a_traceback_does_not_fill_the_log() -> None:
    assert "Traceback" not in repr(requests.Failed("text", traceback="Traceback ..."))
