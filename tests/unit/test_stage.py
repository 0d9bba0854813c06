"""Stages run one after the other are the plain forward, bit for bit, wherever the cuts are."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from asyncdiff_core.errors import LayoutError
from asyncdiff_core.packing import MessageLayout, copy_into
from asyncdiff_core.partition import Range, links
from asyncdiff_core.stage import OutputMeta, StagedModel, TensorMeta, copy_output
from asyncdiff_core.trunk import Trunk, TrunkLayout, drop_parameters
from tests.toys import Chain, make_inputs, make_model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many tiny layers: more threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poisoned_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders full of NaN: if one reached a result, it would show."""

    def nan_filled(self: StagedModel, meta: TensorMeta) -> torch.Tensor:
        scratch = torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype)
        return scratch.fill_(float("nan"))

    monkeypatch.setattr(StagedModel, "_scratch_tensor", nan_filled)


def all_cuts(num_units: int, num_stages: int) -> Iterator[tuple[Range, ...]]:
    for cuts in itertools.combinations(range(1, num_units), num_stages - 1):
        yield tuple(itertools.pairwise((0, *cuts, num_units)))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def staged_model(name: str, start: int = 0, stop: int | None = None) -> StagedModel:
    """The toy `name`, with the weights of its units [start, stop) only."""
    model = make_model(name)
    trunk = Trunk.of(model, model.layout)
    stop = len(trunk.units) if stop is None else stop
    drop_parameters(unit.module for unit in (*trunk.units[:start], *trunk.units[stop:]))
    return StagedModel(model, trunk)


def run_stages(
    models: list[StagedModel], ranges: tuple[Range, ...], inputs: Any, packed: bool
) -> torch.Tensor:
    """One evaluation, stage by stage, with what crosses the cuts as the only connection."""
    all_links = links(ranges, models[0].trunk.skips)
    messages: dict[tuple[int, int], dict[int, Any]] = {
        (li.source, li.target): {} for li in all_links
    }
    metas: list[OutputMeta] = []
    result = None
    for k, (model, units) in enumerate(zip(models, ranges, strict=True)):
        stored = {}
        for (_, target), message in messages.items():
            stored.update(message if target == k else {})
        outgoing = [li for li in all_links if li.source == k]

        def sink(unit: int, output: Any, outgoing: Any = outgoing) -> None:
            for link in outgoing:
                if unit in link.units:
                    messages[link.source, link.target][unit] = copy_output(output)

        args, kwargs = pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs
        )
        result, executed = model.run_stage(
            *(units, args, kwargs),
            stored=stored,
            metas=metas,
            produced={unit for li in outgoing for unit in li.units},
            sink=sink,
            record=True,
        )
        assert (result is None) == (k < len(ranges) - 1)
        assert len(executed) == units[1] - units[0]
        metas += executed
        for li in outgoing if packed else ():
            messages[li.source, li.target] = through_a_buffer(messages[li.source, li.target])
    return result


def through_a_buffer(message: dict[int, Any]) -> dict[int, Any]:
    layout = MessageLayout({unit: OutputMeta.of(output) for unit, output in message.items()})
    views = layout.views(torch.empty(layout.nbytes, dtype=torch.uint8))
    for unit, output in message.items():
        copy_into(views[unit], output)
    return views


def plain(name: str, inputs: Any) -> torch.Tensor:
    args, kwargs = inputs
    return make_model(name)(*args, **kwargs)


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_every_partition_equals_the_plain_forward(name: str, num_stages: int) -> None:
    model = staged_model(name)
    expected = plain(name, make_inputs(name, 0))
    partitions = list(all_cuts(len(model.trunk.units), num_stages))
    for ranges in partitions:
        result = run_stages([model] * num_stages, ranges, make_inputs(name, 0), packed=False)
        assert same(result, expected), ranges
    assert (
        len(partitions)
        == {
            "chain": {2: 5, 3: 10, 4: 10},
            "skipnet": {2: 12, 3: 66, 4: 220},
        }[name][num_stages]
    )


@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_a_stage_needs_its_own_weights_only_and_one_flat_buffer_per_link(name: str) -> None:
    expected = plain(name, make_inputs(name, 3))
    num_units = len(staged_model(name).trunk.units)
    for ranges in itertools.islice(all_cuts(num_units, 3), 0, None, 7):
        models = [staged_model(name, *units) for units in ranges]
        assert same(run_stages(models, ranges, make_inputs(name, 3), packed=True), expected), ranges


@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_outside_of_a_run_the_model_is_the_plain_one(name: str) -> None:
    staged = staged_model(name)
    args, kwargs = make_inputs(name, 1)
    result = staged._entry(*args, **kwargs)
    assert same(result, plain(name, make_inputs(name, 1)))


def test_it_counts_the_units_that_it_ran() -> None:
    staged = staged_model("chain")
    args, kwargs = make_inputs("chain", 0)
    staged.run_stage((0, 2), args, kwargs, stored={}, metas=[], produced=(), sink=lambda u, o: None)
    assert staged.num_units_run == 2


def test_the_model_writes_into_outputs_after_the_sink_had_them() -> None:
    """The glue of Chain works in place, so a sink that keeps a reference sees other values."""
    staged = staged_model("chain")
    kept: dict[int, Any] = {}
    copied: dict[int, Any] = {}

    def sink(unit: int, output: Any) -> None:
        kept[unit], copied[unit] = output, copy_output(output)

    args, kwargs = make_inputs("chain", 0)
    staged.run_stage((0, 6), args, kwargs, stored={}, metas=[], produced={2}, sink=sink)
    (_, kept_x), (_, copied_x) = kept[2], copied[2]
    assert torch.equal(kept_x, copied_x + kwargs["control"][2])
    assert not torch.equal(kept_x, copied_x)


def test_the_sink_gets_what_is_produced_and_nothing_else() -> None:
    staged = staged_model("skipnet")
    seen = []
    args, kwargs = make_inputs("skipnet", 0)
    staged.run_stage(
        *((0, 7), args, kwargs),
        stored={},
        metas=[],
        produced={2, 6},
        sink=lambda unit, output: seen.append(unit),
    )
    assert seen == [2, 6]


# The layout must fit -------------------------------------------------------------------------


class Shuffled(Chain):
    """Calls its blocks in an order of its own."""

    order = [0, 1, 2, 3, 4, 5]

    def forward(self, x: Any, t: Any, context: Any = None, control: Any = None) -> torch.Tensor:
        h, emb, side = self.embed(x), self.time(t.view(-1, 1, 1)), context
        for i in self.order:
            new_side, h = self.blocks[i](side, h, emb)
            side = side if new_side is None else new_side
        return self.head(h)


def run_shuffled(order: list[int], units: Range = (0, 6)) -> torch.Tensor:
    model = Shuffled()
    model.order = order
    staged = StagedModel(model, Trunk.of(model, Chain.layout))
    args, kwargs = make_inputs("chain", 0)
    output = torch.zeros(2, 3, 16), torch.zeros(2, 5, 16)
    return staged.run_stage(
        *(units, args, kwargs),
        stored={},
        metas=[OutputMeta.of(output)] * units[0],
        produced=(),
        sink=lambda unit, output: None,
    )[0]


def test_the_order_of_the_layout_passes() -> None:
    assert run_shuffled([0, 1, 2, 3, 4, 5]).shape == (2, 5, 4)


@pytest.mark.parametrize(
    "order, units, culprits",
    [
        ([0, 2, 1, 3, 4, 5], (0, 6), ("blocks.2", "blocks.1 was due")),  # wrong order
        ([0, 1, 3, 4, 5], (0, 6), ("blocks.3", "blocks.2 was due")),  # one skipped
        ([0, 1, 3, 4, 5], (3, 6), ("blocks.3", "blocks.2 was due")),  # in an earlier stage's part
        ([0, 1, 1, 2, 3, 4, 5], (0, 6), ("blocks.1", "blocks.2 was due")),  # one called twice
        ([1, 2, 3, 4, 5], (0, 3), ("blocks.1", "blocks.0 was due")),  # the first one skipped
        ([0, 1, 2, 3, 4], (0, 6), ("called 5 of the 6 units", "blocks.5")),  # the last skipped
        ([0, 1], (0, 4), ("called 2 of the 4 units", "blocks.2")),
        ([], (0, 6), ("called 0 of the 6 units", "blocks.0")),
        ([0, 1, 2, 3, 4, 5, 5], (0, 6), ("Shuffled called", "blocks.5")),  # the last one twice
        ([0, 1, 2, 3, 4, 5, 0], (3, 6), ("Shuffled called", "blocks.0")),
    ],
)
def test_a_trunk_that_runs_otherwise_is_refused_by_name(
    order: list[int], units: Range, culprits: tuple[str, ...]
) -> None:
    with pytest.raises(LayoutError) as caught:
        run_shuffled(order, units)
    assert "Shuffled" in str(caught.value)
    for culprit in culprits:
        assert culprit in str(caught.value)


def test_a_failed_run_leaves_the_model_usable() -> None:
    staged = staged_model("chain")
    args, kwargs = make_inputs("chain", 0)

    def sink(unit: int, output: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        staged.run_stage((0, 6), args, kwargs, stored={}, metas=[], produced={1}, sink=sink)
    args, kwargs = make_inputs("chain", 0)
    result, _ = staged.run_stage(
        (0, 6), args, kwargs, stored={}, metas=[], produced=(), sink=lambda unit, output: None
    )
    assert same(result, plain("chain", make_inputs("chain", 0)))


def test_another_entry_than_forward() -> None:
    class Wrapped(Chain):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            raise AssertionError("not the entry")

        def inner(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return Chain.forward(self, *args, **kwargs)

    model = Wrapped()
    model.load_state_dict(make_model("chain").state_dict())
    model.requires_grad_(False)
    staged = StagedModel(model, Trunk.of(model, TrunkLayout(("blocks",))), entry="inner")
    ranges = ((0, 2), (2, 6))
    result = run_stages([staged] * 2, ranges, make_inputs("chain", 0), packed=False)
    assert same(result, plain("chain", make_inputs("chain", 0)))


# What describes an output --------------------------------------------------------------------


def test_metas_describe_nested_outputs_with_none_and_plain_leaves() -> None:
    output = (None, {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": [torch.zeros(4), 7]})
    meta = OutputMeta.of(output)
    assert meta.tensors == [
        TensorMeta(torch.bfloat16, (2, 3), (3, 1)),
        TensorMeta(torch.float32, (4,), (1,)),
    ]
    assert [t.nbytes for t in meta.tensors] == [12, 16]
    built = meta.build(lambda t: torch.ones(t.shape, dtype=t.dtype))
    assert built[0] is None and built[1]["b"][1] == 7
    assert built[1]["a"].shape == (2, 3) and built[1]["a"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "tensor, stride",
    [
        (torch.zeros(2, 3, 4, 5), (60, 20, 5, 1)),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), (60, 1, 15, 3)),
        (torch.zeros(3, 5).t(), (1, 5)),
        (torch.zeros(()), ()),
        (torch.zeros(0, 4), (4, 1)),
    ],
)
def test_metas_keep_the_memory_format(tensor: torch.Tensor, stride: tuple[int, ...]) -> None:
    assert TensorMeta.of(tensor).stride == stride


@pytest.mark.parametrize(
    "view",
    [torch.zeros(4, 1).expand(4, 6), torch.zeros(8, 8)[::2, ::2], torch.zeros(9)[3:7]],
    ids=["expanded", "with gaps", "offset"],
)
def test_a_view_is_described_as_the_dense_tensor_that_a_copy_of_it_would_be(
    view: torch.Tensor,
) -> None:
    meta = TensorMeta.of(view)
    dense = torch.empty_strided(meta.shape, meta.stride)
    assert dense.untyped_storage().nbytes() == meta.nbytes == view.numel() * 4


def test_copies_share_nothing_and_keep_the_format() -> None:
    image = torch.rand(1, 2, 3, 3).to(memory_format=torch.channels_last)
    copied = copy_output((None, image, 5))
    assert copied[0] is None and copied[2] == 5
    assert same(copied[1], image)
    image.zero_()
    assert copied[1].abs().sum() > 0


@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_scratch_is_reused_and_can_be_forgotten(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real scratch
    staged = staged_model(name)
    first, num_units = 4, len(staged.trunk.units)
    args, kwargs = make_inputs(name, 0)
    _, metas = staged.run_stage(
        *((0, first), args, kwargs),
        stored={},
        metas=[],
        produced=(),
        sink=lambda unit, output: None,
        record=True,
    )
    outputs = [meta.build(lambda t: torch.zeros(t.shape)) for meta in metas]
    skips = {source for source, _ in staged.trunk.skips if source < first}
    stored = {unit: outputs[unit] for unit in skips | {first - 1}}

    def run_last() -> None:
        args, kwargs = make_inputs(name, 0)
        staged.run_stage(
            *((first, num_units), args, kwargs),
            stored=stored,
            metas=metas,
            produced=(),
            sink=lambda unit, output: None,
        )

    run_last()
    before = {id(tensor) for tensor in staged._scratch.values()}
    run_last()
    assert before and {id(tensor) for tensor in staged._scratch.values()} == before
    staged.forget_scratch()
    assert not staged._scratch
    run_last()
