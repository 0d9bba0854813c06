"""Inputs on their way: what did not change stays at home, and nothing that did is missed."""

import uuid
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from asyncdiff_core.errors import UnsupportedPatchError
from asyncdiff_core.wire.inputs import UNCHANGED, InputDecoder, InputEncoder
from asyncdiff_core.wire.strides import duplicate, place_of


class Wire:
    """Both ends of a lane; remembers what travelled."""

    def __init__(self) -> None:
        self.encoder = InputEncoder()
        self.decoder = InputDecoder(torch.device("cpu"))
        self.num_sent = 0

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tree = self.encoder.encode(args, kwargs)
        self.num_sent = sum(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(tree))
        # As over the channel: the worker has tensors of its own.
        copied = pytree.tree_map(lambda x: duplicate(x) if isinstance(x, torch.Tensor) else x, tree)
        return self.decoder.decode(copied)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def test_strides_are_those_of_the_sampler(wire: Wire) -> None:
    """Twice: once as it came, once as it is remembered."""
    packed = torch.rand(2, 261)[:, :256].view(2, 16, 16)
    expanded = torch.rand(1, 7, 8).expand(2, 7, 8)
    for _ in range(2):
        received = wire(packed, expanded)[0]
        assert [t.stride() for t in received] == [packed.stride(), expanded.stride()]
        assert torch.equal(received[0], packed) and torch.equal(received[1], expanded)


def test_a_tensor_that_comes_twice_is_one(wire: Wire) -> None:
    """So that a frame has it once; what the model writes into one of them is not in the other."""
    frame = torch.rand(1, 4, 3, 8)
    for step in range(3):
        tree = InputEncoder().encode((frame, [frame, frame[:, :2]]), {})
        first, (second, part) = tree[0]
        assert first is second and first is not frame and part is not first
        one, (other, part) = wire(frame, [frame, frame[:, :2]])[0]
        assert torch.equal(one, frame) and torch.equal(part, frame[:, :2])
        one.zero_()
        assert torch.equal(other, frame)
        if step:
            frame = frame + 1


def test_what_shows_the_same_memory_otherwise_is_another_one(wire: Wire) -> None:
    number = torch.rand(3, 4, dtype=torch.complex64)
    one, other = wire(number, number.conj())[0]
    assert torch.equal(one, number) and torch.equal(other, number.conj())
    assert not torch.equal(one, other)
    few, more = torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, device="meta")
    assert place_of(few) == place_of(few) != place_of(more)  # neither tells of its memory


def test_an_unchanged_tensor_is_sent_once(wire: Wire) -> None:
    context = torch.rand(2, 77, 8)
    for step in range(4):
        x = torch.rand(2, 4)
        args, kwargs = wire(x, context=context.clone(), transformer_options={"step": step})
        assert_same(args[0], x)
        assert_same(kwargs["context"], context)
        assert kwargs["transformer_options"] == {"step": step}
        assert wire.num_sent == (2 if step == 0 else 1)


def test_what_changes_back_is_sent_again(wire: Wire) -> None:
    a, b = torch.zeros(3), torch.ones(3)
    for value, sent in ((a, 1), (b, 1), (a, 1), (a, 0)):
        assert_same(wire(value)[0][0], value)
        assert wire.num_sent == sent


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_sign_of_zero_is_a_change(wire: Wire, dtype: torch.dtype) -> None:
    for value in (0.0, -0.0, 0.0):
        tensor = torch.tensor([1.0, value]).to(dtype)
        assert_same(wire(tensor)[0][0], tensor)
        assert wire.num_sent == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_the_sign_of_a_complex_zero_is_a_change(wire: Wire, dtype: torch.dtype) -> None:
    for value in (complex(0.0, 0.0), complex(0.0, -0.0), complex(-0.0, 0.0)):
        tensor = torch.tensor([value], dtype=dtype)
        assert_same(wire(tensor)[0][0], tensor)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_is_no_change(wire: Wire, dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, float("nan")]).to(dtype)
    wire(tensor)
    assert_same(wire(tensor.clone())[0][0], tensor)
    assert wire.num_sent == 0


def test_another_nan_is_a_change(wire: Wire) -> None:
    quiet = torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32)
    other = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    wire(quiet)
    assert_same(wire(other)[0][0], other)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(4), torch.ones(2, 2)),
        (torch.zeros(1), torch.zeros(())),
        (torch.zeros(0, 2), torch.zeros(0, 3)),
        (torch.ones(4, dtype=torch.int32), torch.ones(4)),
        (torch.zeros(4), torch.zeros(4, dtype=torch.int32)),  # the same bits
        (torch.ones(1, dtype=torch.uint8), torch.ones(1, dtype=torch.bool)),
    ],
    ids=["dtype", "shape", "0-dim", "empty", "int to float", "float to int", "bool"],
)
def test_another_dtype_or_shape_is_a_change(
    wire: Wire, first: torch.Tensor, second: torch.Tensor
) -> None:
    wire(first)
    assert_same(wire(second)[0][0], second)
    assert wire.num_sent == 1


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16],
    ids=str,
)
def test_whole_numbers(wire: Wire, dtype: torch.dtype) -> None:
    for value, sent in ((0, 1), (0, 0), (1, 1)):
        tensor = torch.tensor([value, 1]).to(dtype)
        assert_same(wire(tensor)[0][0], tensor)
        assert wire.num_sent == sent


def test_another_memory_format_is_a_change(wire: Wire) -> None:
    """It decides which kernels work on the tensor, and with them the bits of the result."""
    image = torch.rand(2, 3, 4, 5)
    wire(image)
    (received,), _ = wire(image.to(memory_format=torch.channels_last))
    assert wire.num_sent == 1
    assert received.is_contiguous(memory_format=torch.channels_last)
    (received,), _ = wire(image.to(memory_format=torch.channels_last))
    assert wire.num_sent == 0
    assert received.is_contiguous(memory_format=torch.channels_last)


def test_an_expanded_tensor_is_recognised(wire: Wire) -> None:
    row = torch.rand(1, 5)
    wire(row.expand(4, 5))
    assert_same(wire(row.expand(4, 5))[0][0], row.expand(4, 5))
    assert wire.num_sent == 0


def test_the_structure_changes(wire: Wire) -> None:
    a, b = torch.zeros(2), torch.ones(2)
    for kwargs in (
        {"context": a, "y": b},
        {"context": a},
        {"y": a, "context": b},
        {"context": [a, {"deep": b}]},
        {"context": (a, {"deep": b})},
        {"context": a, "y": b},
    ):
        _, received = wire(**kwargs)
        assert pytree.tree_structure(received) == pytree.tree_structure(kwargs)
        pairs = zip(pytree.tree_leaves(received), pytree.tree_leaves(kwargs), strict=True)
        for mine, original in pairs:
            assert_same(mine, original)


def test_a_tensor_comes_and_goes_in_the_same_place(wire: Wire) -> None:
    control = torch.rand(3)
    for value in (control, None, control, 0.5, torch.rand(2), None, control):
        _, kwargs = wire(control=value)
        if isinstance(value, torch.Tensor):
            assert_same(kwargs["control"], value)
        else:
            assert kwargs["control"] == value


def test_the_host_writes_into_its_tensor_afterwards(wire: Wire) -> None:
    x = torch.zeros(3)
    wire(x)
    x.add_(1.0)
    assert_same(wire(x)[0][0], torch.ones(3))
    assert wire.num_sent == 1


def test_what_was_encoded_does_not_follow_the_host() -> None:
    """The frame is made later than the tree."""
    x = torch.zeros(3)
    (args, _) = InputEncoder().encode((x,), {})
    x.add_(1.0)
    assert_same(args[0], torch.zeros(3))


def test_the_model_writes_into_its_inputs(wire: Wire) -> None:
    context = torch.ones(3)
    for _ in range(3):
        _, kwargs = wire(context=context)
        assert_same(kwargs["context"], context)
        kwargs["context"] *= 1.5  # as Chain does


def test_two_places_of_one_tensor_are_two_tensors(wire: Wire) -> None:
    x = torch.zeros(2)
    for _ in range(2):
        (a, b), _ = wire(x, x)
        a.add_(1.0)
        assert_same(b, torch.zeros(2))


def test_plain_data_passes(wire: Wire) -> None:
    options = {
        "sigmas": torch.rand(3),
        "cond_or_uncond": [0, 1],
        "uuids": [uuid.uuid4()],
        "flags": (True, None, 1.5, 2 + 3j, "text", b"bytes"),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "shape": torch.Size([2, 3]),
        "empty": {},
        "order": [],
    }
    _, kwargs = wire(transformer_options=options)
    received = kwargs["transformer_options"]
    assert_same(received.pop("sigmas"), options.pop("sigmas"))
    assert received == options


VALUES = st.sampled_from([0.0, -0.0, float("nan"), 1.0, float("inf")])
LEAVES = st.one_of(
    st.lists(VALUES, max_size=3).map(torch.tensor),
    st.sampled_from([None, 3, "text"]),
)
TREES = st.fixed_dictionaries({"a": LEAVES}, optional={"b": LEAVES, "c": st.tuples(LEAVES, LEAVES)})


@given(steps=st.lists(TREES, max_size=8))
def test_whatever_the_sampler_does_the_worker_sees_it(steps: list[dict[str, Any]]) -> None:
    wire = Wire()
    for step in steps:
        _, received = wire(**step)
        leaves, structure = pytree.tree_flatten(received)
        expected, expected_structure = pytree.tree_flatten(step)
        assert structure == expected_structure
        for mine, original in zip(leaves, expected, strict=True):
            if isinstance(original, torch.Tensor):
                assert_same(mine, original)
            else:
                assert mine == original


# What cannot be sent -------------------------------------------------------------------------


class Handle:
    """Something that only makes sense in the process that made it."""


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((torch.zeros(1), Handle()), {}, "[1]"),
        ((), {"control": Handle()}, "['control']"),
        ((), {"options": {"patches": {"attn1": [torch.zeros(1), Handle()]}}}, "['attn1'][1]"),
    ],
    ids=["argument", "keyword", "deep"],
)
def test_a_refusal_names_the_path_and_the_type(
    wire: Wire, args: tuple[Any, ...], kwargs: dict[str, Any], path: str
) -> None:
    with pytest.raises(UnsupportedPatchError) as caught:
        wire(*args, **kwargs)
    assert f"{path} is a " in str(caught.value)
    assert f"{Handle.__module__}.Handle" in str(caught.value)


def test_a_function_is_refused_too(wire: Wire) -> None:
    with pytest.raises(UnsupportedPatchError, match=r"\['patch'\] is a builtins.function"):
        wire(patch=lambda x: x)


def test_after_a_refusal_nothing_counts_as_sent(wire: Wire) -> None:
    """The tree that was refused never travelled, nor did the tensors in it."""
    a, b = torch.zeros(2), torch.ones(2)
    wire(a, None)
    with pytest.raises(UnsupportedPatchError):
        wire(b, Handle())
    assert_same(wire(b, None)[0][0], b)


def test_the_mark_of_the_unchanged_is_no_text_that_a_prompt_could_hold() -> None:
    assert UNCHANGED.startswith("\0")
