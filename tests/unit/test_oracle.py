"""The oracle against docs/algorithm.md, whose equations are written out here by hand."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff_core.algorithm.oracle import Oracle
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.stages import Range
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout
from harness.cuts import chain
from harness.toys import make_inputs, make_model


class Line(nn.Module):
    """Linear units with a time embedding before each, added in place: h = A_u (h + t b_u)."""

    layout = TrunkLayout(blocks=("units",))

    def __init__(self, num_units: int, width: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)
        self.units = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(num_units))
        for unit in self.units:
            unit.weight.copy_(torch.randn(width, width, generator=generator))
        self.register_buffer("bias", torch.randn(num_units, width, generator=generator))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = x
        for u, unit in enumerate(self.units):
            h += t * self.bias[u]
            h = unit(h)
        return h


def x_and_t(i: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(i)
    return torch.randn(batch, 5, generator=generator), torch.tensor(1.0 - i / 20)


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.inference_mode():
        yield


def by_hand_2(ranges: tuple[Range, ...], num: int, warm_up: int) -> list[torch.Tensor]:
    """algorithm.md, stride 1, N = 2, literally."""
    line = Line(ranges[-1][1])

    def stage(k: int, h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # C_k, k from 1
        for u in range(*ranges[k - 1]):
            h = line.units[u](h + t * line.bias[u])
        return h

    h1: dict[int, torch.Tensor] = {}
    eps = []
    for i in range(num):
        x, t = x_and_t(i)
        h1[i] = stage(1, x, t)
        if i < warm_up:
            eps.append(stage(2, h1[i], t))
        else:
            eps.append(stage(2, h1[i - 1], t))
    return eps


def by_hand(ranges: tuple[Range, ...], num: int, warm_up: int) -> list[torch.Tensor]:
    """algorithm.md, stride 1, any N: h[k, i] with k from 1."""
    line = Line(ranges[-1][1])
    num_stages = len(ranges)

    def stage(k: int, h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for u in range(*ranges[k - 1]):
            h = line.units[u](h + t * line.bias[u])
        return h

    h: dict[tuple[int, int], torch.Tensor] = {}
    for i in range(num):
        x, t = x_and_t(i)
        h[1, i] = stage(1, x, t)
        for k in range(2, num_stages + 1):
            h[k, i] = stage(k, h[k - 1, i if i < warm_up else i - 1], t)
    return [h[num_stages, i] for i in range(num)]


def by_oracle(ranges: tuple[Range, ...], num: int, warm_up: int) -> list[torch.Tensor]:
    line = Line(ranges[-1][1])
    oracle = Oracle(StagedModel(line, Trunk.of(line, Line.layout)), chain(*ranges))
    oracle.begin_run(AsyncSchedule(warm_up))
    outputs = [oracle.evaluate("lane", x_and_t(i), {}) for i in range(num)]
    oracle.end_run()
    return outputs


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


CUTS = [
    ((0, 3), (3, 6)),
    ((0, 1), (1, 6)),
    ((0, 2), (2, 3), (3, 6)),
    ((0, 1), (1, 2), (2, 5), (5, 6)),
]


@pytest.mark.parametrize("warm_up", [1, 2, 3, 5])
@pytest.mark.parametrize("ranges", CUTS, ids=str)
def test_the_oracle_is_the_equations(ranges: tuple[Range, ...], warm_up: int) -> None:
    assert equal(by_oracle(ranges, 9, warm_up), by_hand(ranges, 9, warm_up))


@pytest.mark.parametrize("warm_up", [1, 3])
def test_two_stages_once_more_without_indices(warm_up: int) -> None:
    ranges = ((0, 2), (2, 6))
    assert equal(by_oracle(ranges, 8, warm_up), by_hand_2(ranges, 8, warm_up))


@pytest.mark.parametrize("ranges", CUTS, ids=str)
def test_warm_up_is_the_plain_model_and_what_follows_is_not(ranges: tuple[Range, ...]) -> None:
    line = Line(6)
    plain = [line(*x_and_t(i)) for i in range(8)]
    assert equal(by_oracle(ranges, 8, warm_up=8), plain)
    assert equal(by_oracle(ranges, 8, warm_up=100), plain)
    outputs = by_oracle(ranges, 8, warm_up=3)
    assert equal(outputs[:3], plain[:3])
    assert not any(torch.equal(a, b) for a, b in zip(outputs[3:], plain[3:], strict=True))


class Pass(nn.Module):
    """Units that change nothing: eps(i) shows which x it was made from."""

    layout = TrunkLayout(blocks=("units",))

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(nn.Identity() for _ in range(num_units))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.units:
            x = unit(x)
        return x


@pytest.mark.parametrize(
    ("num_stages", "warm_up", "ages"),
    [
        # which evaluation's x is in eps(0), eps(1), ..
        (1, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, 1, [0, 0, 1, 2, 3, 4, 5, 6]),
        (3, 1, [0, 0, 0, 1, 2, 3, 4, 5]),
        (4, 1, [0, 0, 0, 0, 1, 2, 3, 4]),
        (2, 3, [0, 1, 2, 2, 3, 4, 5, 6]),
        (3, 3, [0, 1, 2, 2, 2, 3, 4, 5]),
        (4, 3, [0, 1, 2, 2, 2, 2, 3, 4]),
    ],
)
def test_x_is_stages_minus_1_evaluations_old(
    num_stages: int, warm_up: int, ages: list[int]
) -> None:
    model = Pass(num_stages)
    ranges = [(k, k + 1) for k in range(num_stages)]
    oracle = Oracle(StagedModel(model, Trunk.of(model, Pass.layout)), chain(*ranges))
    oracle.begin_run(AsyncSchedule(warm_up))
    found = [int(oracle.evaluate("lane", (torch.tensor([i]),), {})) for i in range(8)]
    assert found == ages
    assert [i - age for i, age in enumerate(ages)][-1] == num_stages - 1


class Skips(nn.Module):
    """Unit 0's output meets the trunk again before unit 2; each keeps its own digit."""

    layout = TrunkLayout(blocks=("down", "middle", "up"), skips=(("down", "up"),))

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Identity()])
        self.middle = nn.Identity()
        self.up = nn.ModuleList([nn.Identity()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down[0](x)
        h = self.middle(skip)
        return self.up[0](h * 100 + skip)


@pytest.mark.parametrize(
    ("ranges", "outputs"),
    [
        # trunk state * 100 + skip, as evaluations; x(i) = i
        (((0, 2), (2, 3)), [0, 0, 101, 202, 303]),  # both cross one cut: both of i-1
        (((0, 1), (1, 3)), [0, 0, 101, 202, 303]),
        # The skip goes from stage 1 straight to stage 3, so it is younger than the trunk state.
        (((0, 1), (1, 2), (2, 3)), [0, 0, 1, 102, 203]),
    ],
    ids=str,
)
def test_a_skip_tensor_is_one_evaluation_old_however_far_it_goes(
    ranges: tuple[Range, ...], outputs: list[int]
) -> None:
    model = Skips()
    oracle = Oracle(StagedModel(model, Trunk.of(model, Skips.layout)), chain(*ranges))
    oracle.begin_run(AsyncSchedule(warm_up=1))
    assert [int(oracle.evaluate(0, (torch.tensor([i]),), {})) for i in range(5)] == outputs


# Lanes, runs and inputs ------------------------------------------------------------------------


def toy_oracle(name: str, num_stages: int) -> Oracle:
    model = make_model(name)
    trunk = Trunk.of(model, model.layout)
    step = len(trunk.units) // num_stages
    cuts = [k * step for k in range(num_stages)] + [len(trunk.units)]
    ranges = list(itertools.pairwise(cuts))
    return Oracle(StagedModel(model, trunk), chain(*ranges))


@pytest.mark.parametrize("name", ["chain", "skipnet"])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_full_warm_up_is_the_plain_model(name: str, num_stages: int) -> None:
    oracle = toy_oracle(name, num_stages)
    oracle.begin_run(AsyncSchedule(warm_up=3))
    for i in range(3):
        args, kwargs = make_inputs(name, i)
        plain = make_model(name)(*args, **kwargs)
        assert torch.equal(oracle.evaluate("lane", *make_inputs(name, i)), plain)


@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_lanes_do_not_touch_each_other(name: str) -> None:
    oracle = toy_oracle(name, 3)

    def run(lanes: list[str]) -> dict[str, list[torch.Tensor]]:
        oracle.begin_run(AsyncSchedule(warm_up=2))
        outputs: dict[str, list[torch.Tensor]] = {}
        for lane in lanes:
            mine = outputs.setdefault(lane, [])
            # Lane "b" has another batch size, "c" other noise.
            inputs = make_inputs(name, len(mine) + 30 * (lane == "c"), batch=1 + (lane == "b"))
            mine.append(oracle.evaluate(lane, *inputs))
        oracle.end_run()
        return outputs

    together = run(list("aabcabcbccaabb"))
    for lane in "abc":
        assert equal(run([lane] * len(together[lane]))[lane], together[lane])


def test_nothing_is_left_of_a_run() -> None:
    oracle = toy_oracle("skipnet", 3)

    def run() -> list[torch.Tensor]:
        oracle.begin_run(AsyncSchedule(warm_up=1))
        outputs = [oracle.evaluate("lane", *make_inputs("skipnet", i)) for i in range(4)]
        oracle.end_run()
        return outputs

    first = run()
    assert equal(run(), first)
    assert not oracle._sent and not oracle._metas


def test_the_inputs_are_left_alone() -> None:
    """Chain writes into its context; every stage must see the caller's."""
    oracle = toy_oracle("chain", 3)
    oracle.begin_run(AsyncSchedule(warm_up=1))
    args, kwargs = make_inputs("chain", 0)
    before = kwargs["context"].clone()
    control = list(kwargs["control"])
    for _ in range(2):
        oracle.evaluate("lane", args, kwargs)
        assert torch.equal(kwargs["context"], before)
        assert kwargs["control"] == control


def test_evaluations_outside_of_a_run_are_refused() -> None:
    oracle = toy_oracle("chain", 2)
    with pytest.raises(RuntimeError, match="outside of a sampling run"):
        oracle.evaluate("lane", *make_inputs("chain", 0))
    oracle.begin_run(AsyncSchedule())
    oracle.end_run()
    with pytest.raises(RuntimeError, match="outside of a sampling run"):
        oracle.evaluate("lane", *make_inputs("chain", 0))
