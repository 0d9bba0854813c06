"""Stages run one after the other are the plain forward, bit for bit, wherever the cuts are."""

import itertools
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from asyncdiff_core.algorithm.activations import OutputMeta, TensorMeta, copy_output
from asyncdiff_core.algorithm.stage import Neighbours, StagedModel
from asyncdiff_core.algorithm.stages import Range, Stage, links_between, units_of
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout, drop_parameters
from asyncdiff_core.errors import LayoutError, NumbersError
from asyncdiff_core.links.packing import MessageLayout, copy_into
from harness.cuts import Stages, all_chains, all_folds, chain
from harness.toys import Chain, make_inputs, make_model


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


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def staged_model(name: str, stage: Stage | None = None) -> StagedModel:
    """The toy `name`, with the weights of the units of `stage` only."""
    model = make_model(name)
    trunk = Trunk.of(model, model.layout)
    held = set(range(len(trunk.units)) if stage is None else units_of(stage))
    drop_parameters(unit.module for index, unit in enumerate(trunk.units) if index not in held)
    return StagedModel(model, trunk)


class Given(Neighbours):
    """What was sent before, and all that the stage makes."""

    def __init__(self, sent: dict[int, Any] | None = None, metas: Any = ()) -> None:
        super().__init__()
        self.sent = sent or {}
        self.consumed = self.sent
        self.metas = list(metas)
        self.given: dict[int, Any] = {}

    def take(self, unit: int) -> Any:
        return self.sent[unit]

    def give(self, unit: int, output: Any) -> None:
        super().give(unit, output)
        self.given[unit] = copy_output(output)


def run_stages(
    models: list[StagedModel], stages: Stages, inputs: Any, packed: bool
) -> torch.Tensor:
    """One evaluation, with what crosses the cuts as the only connection.

    A folded stage runs in a thread of its own, so that it can wait at its turn.
    """
    all_links = links_between(stages, models[0].trunk.skips)
    messages: dict[tuple[int, int], queue.SimpleQueue[Any]] = {
        (link.source, link.target): queue.SimpleQueue() for link in all_links
    }

    class Connected(Given):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.stage = stages[k]
            self.incoming = [link for link in all_links if link.target == k]
            self.outgoing = [link for link in all_links if link.source == k]
            self.consumed = {unit for link in self.incoming for unit in link.units}
            self.receive(before=self.stage[0][0])

        def receive(self, before: int) -> None:
            for link in self.incoming:
                if link.units[0] < before and link.units[0] not in self.sent:
                    sent, metas = messages[link.source, link.target].get(timeout=20)
                    self.sent |= sent
                    self.metas = max(self.metas, metas, key=len)

        def send(self, start: int, stop: int) -> None:
            for link in self.outgoing:
                if start <= link.units[-1] < stop:
                    message = {unit: copy_output(self.given[unit]) for unit in link.units}
                    message = through_a_buffer(message) if packed else message
                    messages[link.source, link.target].put((message, list(self.metas)))

        def turn(self) -> None:
            self.send(*self.stage[0])
            self.receive(before=self.stage[-1][0])

    def run(k: int) -> torch.Tensor | None:
        args, kwargs = pytree.tree_map(
            lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs
        )
        with torch.inference_mode():
            others = Connected(k)
            result = models[k].run_stage(stages[k], args, kwargs, others)
            assert set(others.given) == set(units_of(stages[k]))
            others.send(*stages[k][-1])
        return result

    if len(set(map(id, models))) == 1:
        results = [run(k) for k in range(len(stages))]
    else:
        with ThreadPoolExecutor(len(stages)) as pool:
            results = list(pool.map(run, range(len(stages))))
    assert all(result is None for result in results[:-1])
    return results[-1]


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
    partitions = list(all_chains(len(model.trunk.units), num_stages))
    for stages in partitions:
        result = run_stages([model] * num_stages, stages, make_inputs(name, 0), packed=False)
        assert same(result, expected), stages
    assert (
        len(partitions)
        == {
            "chain": {2: 5, 3: 10, 4: 10},
            "skipnet": {2: 12, 3: 66, 4: 220},
        }[name][num_stages]
    )


@pytest.mark.parametrize(("num_stages", "num_folds"), [(2, 12), (3, 36), (4, 48)])
def test_every_fold_equals_the_plain_forward(num_stages: int, num_folds: int) -> None:
    models = [staged_model("skipnet") for _ in range(num_stages)]
    expected = plain("skipnet", make_inputs("skipnet", 0))
    trunk = models[0].trunk
    folds = list(all_folds(len(trunk.units), num_stages, trunk.skips))
    for stages in folds:
        assert all(len(link.units) == 1 for link in links_between(stages, trunk.skips))
        result = run_stages(models, stages, make_inputs("skipnet", 0), packed=False)
        assert same(result, expected), stages
    assert len(folds) == num_folds


@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_a_stage_needs_its_own_weights_only_and_one_flat_buffer_per_link(name: str) -> None:
    expected = plain(name, make_inputs(name, 3))
    trunk = staged_model(name).trunk
    num_units = len(trunk.units)
    chains = itertools.islice(all_chains(num_units, 3), 0, None, 7)
    folds = itertools.islice(all_folds(num_units, 3, trunk.skips), 0, None, 7)
    for stages in itertools.chain(chains, folds if trunk.skips else ()):
        models = [staged_model(name, stage) for stage in stages]
        assert same(run_stages(models, stages, make_inputs(name, 3), packed=True), expected), stages


@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_outside_of_a_run_the_model_is_the_plain_one(name: str) -> None:
    staged = staged_model(name)
    args, kwargs = make_inputs(name, 1)
    result = staged._entry(*args, **kwargs)
    assert same(result, plain(name, make_inputs(name, 1)))


def test_the_model_writes_into_outputs_after_they_were_given() -> None:
    """The glue of Chain works in place, so one that keeps a reference sees other values."""
    staged = staged_model("chain")
    kept: dict[int, Any] = {}

    class Keeping(Given):
        def give(self, unit: int, output: Any) -> None:
            super().give(unit, output)
            kept[unit] = output

    args, kwargs = make_inputs("chain", 0)
    others = Keeping()
    staged.run_stage(((0, 6),), args, kwargs, others)
    (_, kept_x), (_, copied_x) = kept[2], others.given[2]
    assert torch.equal(kept_x, copied_x + kwargs["control"][2])
    assert not torch.equal(kept_x, copied_x)


def test_each_unit_of_the_stage_is_given_and_described_and_no_other() -> None:
    staged = staged_model("skipnet")
    others = Given()
    staged.run_stage(((0, 7),), *make_inputs("skipnet", 0), others)
    assert [*others.given] == [*range(7)]
    assert len(others.metas) == 7
    more = Given({6: copy_output(others.given[6])}, others.metas)
    staged.run_stage(((7, 9),), *make_inputs("skipnet", 0), more)
    assert [*more.given] == [7, 8]
    assert len(more.metas) == 9


def test_the_turn_is_between_the_two_ranges() -> None:
    """And what is known afterwards of the units in between is used from there on."""
    staged = staged_model("skipnet")
    whole = Given()
    result = staged.run_stage(((0, 13),), *make_inputs("skipnet", 0), whole)
    seen = []

    class Around(Given):
        def turn(self) -> None:
            seen.append(([*self.given], len(self.metas)))
            self.metas = whole.metas[:10]

    around = Around({9: copy_output(whole.given[9])})
    again = staged.run_stage(((0, 3), (10, 13)), *make_inputs("skipnet", 0), around)
    assert seen == [([0, 1, 2], 3)]
    assert [*around.given] == [0, 1, 2, 10, 11, 12] and len(around.metas) == 13
    assert same(again, result)


# The layout must fit -------------------------------------------------------------------------


class Shuffled(Chain):
    """Calls its blocks in an order of its own."""

    order: Sequence[int] = range(6)

    def forward(self, x: Any, t: Any, context: Any = None, control: Any = None) -> torch.Tensor:
        h, emb, side = self.embed(x), self.time(t.view(-1, 1, 1)), context
        for i in self.order:
            new_side, h = self.blocks[i](side, h, emb)
            side = side if new_side is None else new_side
        return self.head(h)


def run_shuffled(order: list[int], units: Range = (0, 6)) -> Any:
    model = Shuffled()
    model.order = order
    staged = StagedModel(model, Trunk.of(model, Chain.layout))
    args, kwargs = make_inputs("chain", 0)
    output = torch.zeros(2, 3, 16), torch.zeros(2, 5, 16)
    known = Given(metas=[OutputMeta.of(output)] * units[0])
    return staged.run_stage((units,), args, kwargs, known)


def test_the_order_of_the_layout_passes() -> None:
    assert run_shuffled([0, 1, 2, 3, 4, 5]).shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("order", "units", "culprits"),
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

    class Interrupted(Given):
        def give(self, unit: int, output: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        staged.run_stage(((0, 6),), *make_inputs("chain", 0), Interrupted())
    result = staged.run_stage(((0, 6),), *make_inputs("chain", 0), Given())
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
    stages = chain((0, 2), (2, 6))
    result = run_stages([staged] * 2, stages, make_inputs("chain", 0), packed=False)
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
    ("tensor", "stride"),
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
    first_half = Given()
    staged.run_stage(((0, first),), *make_inputs(name, 0), first_half)
    skips = {source for source, _ in staged.trunk.skips if source < first}
    sent = {unit: first_half.given[unit] for unit in skips | {first - 1}}

    def run_last() -> None:
        others = Given(copy_output(sent), first_half.metas)
        staged.run_stage(((first, num_units),), *make_inputs(name, 0), others)

    run_last()
    before = {id(tensor) for tensor in staged._scratch.values()}
    for tensor in staged._scratch.values():
        assert staged.is_scratch(tensor)
        assert staged.is_scratch(tensor[:1])
        assert not staged.is_scratch(tensor.clone())
    run_last()
    assert before and {id(tensor) for tensor in staged._scratch.values()} == before
    staged.forget_scratch()
    assert not staged._scratch
    run_last()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_checked_when_asked(value: float) -> None:
    """NaN behind any unit; infinity in the result, since masks among outputs may be infinite."""
    staged = staged_model("chain")
    everything: Stage = ((0, len(staged.trunk.units)),)
    args, kwargs = make_inputs("chain", 0)
    staged.run_stage(everything, args, kwargs, Given(), is_checked=True)
    for parameter in staged.trunk.units[0].module.parameters():
        parameter.data.fill_(value)
    staged.run_stage(everything, args, kwargs, Given())
    with pytest.raises(NumbersError, match="no finite numbers"):
        staged.run_stage(everything, args, kwargs, Given(), is_checked=True)
