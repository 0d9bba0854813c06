"""Messages in one flat buffer: layout, alignment, memory formats."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from asyncdiff_core.algorithm.activations import OutputMeta
from asyncdiff_core.links.packing import ALIGNMENT, MessageLayout, copy_into

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.int64]
DTYPES += [torch.float8_e4m3fn]


def layout_of(outputs: dict[int, Any]) -> MessageLayout:
    return MessageLayout({unit: OutputMeta.of(output) for unit, output in outputs.items()})


def buffer_for(layout: MessageLayout) -> torch.Tensor:
    return torch.full((layout.nbytes,), 0xA5, dtype=torch.uint8)


def random_tensor(shape: list[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2, shape, generator=generator)
    return values.to(dtype)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def outputs(draw: Any) -> dict[int, Any]:
    """Outputs of some units: tensors, tuples with None, dicts, plain leaves."""
    shapes = st.lists(st.integers(0, 4), max_size=4)
    leaf = st.one_of(
        st.none(),
        st.builds(random_tensor, shapes, st.sampled_from(DTYPES), st.integers(0, 99)),
        st.builds(
            lambda shape, seed: random_tensor(shape, torch.float32, seed).transpose(0, -1),
            st.lists(st.integers(1, 4), min_size=2, max_size=4),
            st.integers(0, 99),
        ),
    )
    output = st.one_of(leaf, st.tuples(leaf, leaf), st.fixed_dictionaries({"a": leaf, "b": leaf}))
    return draw(st.dictionaries(st.integers(0, 30), output, max_size=4))


@given(message=outputs())
def test_what_is_packed_comes_out_the_same(message: dict[int, Any]) -> None:
    layout = layout_of(message)
    buffer = buffer_for(layout)
    views = layout.views(buffer)
    for unit, output in message.items():
        copy_into(views[unit], output)
    assert list(views) == list(message)
    for unit, output in message.items():
        assert pytree.tree_structure(views[unit]) == pytree.tree_structure(output)
        for view, original in zip(tensors_of(views[unit]), tensors_of(output), strict=True):
            assert view.dtype == original.dtype and view.shape == original.shape
            assert view.stride() == torch.empty_like(original).stride()
            assert bits(view) == bits(original)


@given(message=outputs())
def test_no_two_tensors_overlap_and_each_is_aligned(message: dict[int, Any]) -> None:
    layout = layout_of(message)
    buffer = buffer_for(layout)
    start = buffer.data_ptr()
    taken: list[tuple[int, int]] = []
    for view in tensors_of(layout.views(buffer)):
        offset = view.data_ptr() - start
        if view.numel():
            assert offset % ALIGNMENT == 0
            taken.append((offset, offset + view.nbytes))
    assert taken == sorted(taken)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(taken))
    assert not taken or taken[-1][1] <= layout.nbytes
    assert layout.nbytes % ALIGNMENT == 0


def test_the_buffer_itself_is_aligned() -> None:
    """The offsets alone would not help."""
    for nbytes in (64, 192, 4096, 1 << 20):
        assert torch.empty(nbytes, dtype=torch.uint8).data_ptr() % ALIGNMENT == 0


def test_channels_last_stays_channels_last() -> None:
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    layout = layout_of({7: image})
    views = layout.views(buffer_for(layout))
    copy_into(views[7], image)
    assert views[7].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(views[7], image)


def test_an_expanded_or_gappy_tensor_travels_dense() -> None:
    tensor = torch.rand(4, 1).expand(4, 50)
    assert layout_of({0: tensor}).nbytes == 832  # 4 x 50 x 4 bytes, padded
    gappy = torch.rand(64, 64)[::8, ::8]
    assert layout_of({0: gappy}).nbytes == 256


def test_zero_dimensional_and_empty_tensors_and_none() -> None:
    message = {1: (torch.tensor(2.5), None, torch.zeros(0, 3)), 2: None, 5: torch.zeros(0)}
    layout = layout_of(message)
    assert layout.nbytes == ALIGNMENT
    views = layout.views(buffer_for(layout))
    for unit, output in message.items():
        copy_into(views[unit], output)
    assert views[1][0].item() == 2.5 and views[1][0].ndim == 0
    assert views[1][1] is None and views[2] is None
    assert views[1][2].shape == (0, 3) and views[5].shape == (0,)


def test_nothing_at_all() -> None:
    layout = layout_of({})
    assert layout.nbytes == 0
    assert layout.views(torch.empty(0, dtype=torch.uint8)) == {}


def test_views_of_one_buffer_are_the_same_memory() -> None:
    layout = layout_of({0: torch.zeros(3), 1: (torch.zeros(2, 2), None)})
    buffer = buffer_for(layout)
    first, second = layout.views(buffer), layout.views(buffer)
    first[1][0].fill_(4.0)
    assert torch.equal(second[1][0], torch.full((2, 2), 4.0))


def test_a_copy_of_the_buffer_is_a_copy_of_the_message() -> None:
    """What a synchronous evaluation works on; the original may be needed once more."""
    layout = layout_of({0: torch.zeros(3)})
    buffer = buffer_for(layout)
    copy_into(layout.views(buffer)[0], torch.tensor([1.0, 2.0, 3.0]))
    copied = layout.views(buffer.clone())
    copied[0].zero_()
    assert torch.equal(layout.views(buffer)[0], torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2, 3), torch.zeros(1, 3)),  # copy_ alone would broadcast
        (torch.zeros(2, 3), torch.zeros(())),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),  # copy_ alone would convert
        ((torch.zeros(2), None), torch.zeros(2)),
        ((torch.zeros(2), torch.zeros(2)), [torch.zeros(2), torch.zeros(2)]),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}),
        ((torch.zeros(2),), (torch.zeros(2), torch.zeros(2))),
        # The receiver would go on with the tensor of an earlier evaluation.
        ((torch.zeros(2), torch.zeros(2)), (None, torch.zeros(2))),
        ((None, torch.zeros(2)), (torch.zeros(2), torch.zeros(2))),
        ((3, torch.zeros(2)), (4, torch.zeros(2))),
    ],
    ids=[
        *("shape", "broadcast", "scalar", "dtype", "structure", "container", "key", "length"),
        *("tensor became None", "None became tensor", "plain value"),
    ],
)
def test_an_output_that_changed_is_refused(target: Any, source: Any) -> None:
    with pytest.raises(ValueError, match="changed"):
        copy_into(target, source)


def test_the_same_plain_leaves_are_fine() -> None:
    target = (None, 3, "name", torch.zeros(2))
    copy_into(target, (None, 3, "name", torch.ones(2)))
    assert torch.equal(target[3], torch.ones(2))
