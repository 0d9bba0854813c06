"""Folded stages in the oracle, against the equations of docs/algorithm.md written out by hand."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff_core.algorithm.evaluator import Forecast, Inputs
from asyncdiff_core.algorithm.oracle import Oracle
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout
from harness.cuts import Stages, all_folds
from tests.unit.test_oracle import equal

WIDTH = 5


class U(nn.Module):
    """h = A_u (h + t b_u) on the way down, and with a skip of it on the way up; t in place."""

    layout = TrunkLayout(blocks=("down", "up"), skips=(("down", "up"),))

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(13)
        make = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2 * depth)]
        for unit in make:
            unit.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator))
        self.down, self.up = nn.ModuleList(make[:depth]), nn.ModuleList(make[depth:])
        self.register_buffer("bias", torch.randn(2 * depth, WIDTH, generator=generator))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h, skips = x, []
        for u, unit in enumerate(self.down):
            h += t * self.bias[u]
            h = unit(h)
            skips.append(h.clone())
        for u, unit in enumerate(self.up, len(self.down)):
            h += t * self.bias[u]
            h = unit(h + skips.pop())
        return h


def x_at(i: int) -> torch.Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(i))


def t_at(sigma: float) -> torch.Tensor:
    return torch.tensor(sigma / 20)


SIGMAS = [14.0, 11.0, 9.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.0]
FOLDS = [
    (((2, 6),), ((0, 2), (6, 8))),
    (((3, 5),), ((0, 3), (5, 8))),
    (((3, 5),), ((2, 3), (5, 6)), ((0, 2), (6, 8))),
    (((3, 5),), ((2, 3), (5, 6)), ((1, 2), (6, 7)), ((0, 1), (7, 8))),
]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


def by_oracle(stages: Stages, schedule: AsyncSchedule, stride: int = 1) -> list[torch.Tensor]:
    model = U()
    oracle = Oracle(StagedModel(model, Trunk.of(model, U.layout)), stages, stride)
    oracle.begin_run(schedule)
    outputs = []
    for i, sigma in enumerate(SIGMAS):

        def at(sigma: float, latent: Any = None, i: int = i) -> Inputs:
            return (x_at(i), t_at(sigma)), {}

        forecast = Forecast(sigma, tuple(SIGMAS[i + 1 :]), at)
        outputs.append(oracle.evaluate("lane", *at(sigma), forecast))
    return outputs


def by_hand(stages: Stages, warm_up: int, stride: int, is_shifted: bool) -> list[torch.Tensor]:
    """The rounds of algorithm.md: h[k] is the last message of stage k to the one around it."""
    model = U()
    last = len(stages) - 1

    def down(units: Any, h: torch.Tensor, t: torch.Tensor, skips: dict[int, Any]) -> torch.Tensor:
        for u in units:
            h = model.down[u](h + t * model.bias[u])
            skips[u] = h
        return h

    def up(units: Any, h: torch.Tensor, t: torch.Tensor, skips: dict[int, Any]) -> torch.Tensor:
        for u in units:
            h = model.up[u - 4](h + t * model.bias[u] + skips[7 - u])
        return h

    def round_(x: torch.Tensor, t: torch.Tensor, before: dict[int, Any] | None) -> dict[int, Any]:
        """One round; in an async one stage k > 0 works on what k - 1 sent in the round before."""
        skips: dict[int, Any] = {}
        h = x
        for k in range(last, 0, -1):
            h = down(range(*stages[k][0]), h, t, skips)  # fresh in every round
        start, stop = stages[0][0]
        h = down(range(start, 4), h, t, skips)
        sent = {0: up(range(4, stop), h, t, skips)}
        for k in range(1, last + 1):
            arrived = (sent if before is None else before)[k - 1]
            sent[k] = up(range(*stages[k][1]), arrived, t, skips)
        return sent

    eps: list[Any] = [None] * len(SIGMAS)
    sent: dict[int, Any] = {}
    for i in range(warm_up):
        sent = round_(x_at(i), t_at(SIGMAS[i]), None)
        eps[i] = sent[last]
    i = warm_up
    while i < len(SIGMAS):
        span = min(stride, len(SIGMAS) - i)
        before = sent
        for j in range(i, i + span):
            # The copies of the last stage run all of it, with a timestep of their own.
            t = t_at(SIGMAS[j - 1 if is_shifted else j])
            sent = round_(x_at(i), t, before)
            eps[j] = sent[last]
        i += span
    return eps


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("warm_up", [1, 3])
@pytest.mark.parametrize("stages", FOLDS, ids=str)
def test_the_oracle_is_the_equations(
    stages: Stages, warm_up: int, stride: int, is_shifted: bool
) -> None:
    ours = by_oracle(stages, AsyncSchedule(warm_up, is_shifted), stride)
    assert equal(ours, by_hand(stages, warm_up, stride, is_shifted))


def test_warm_up_is_the_plain_model_and_what_follows_is_not() -> None:
    model = U()
    plain = [model(x_at(i), t_at(sigma)) for i, sigma in enumerate(SIGMAS)]
    folds = [
        fold
        for num_stages in (2, 3, 4)
        for fold in all_folds(8, num_stages, [(u, 7 - u) for u in range(4)])
    ]
    assert len(folds) == 3 + 3 + 1
    for fold in folds:
        assert equal(by_oracle(fold, AsyncSchedule(len(SIGMAS))), plain)
        outputs = by_oracle(fold, AsyncSchedule(2))
        assert equal(outputs[:2], plain[:2])
        assert not any(map(torch.equal, outputs[2:], plain[2:]))


class Digits(nn.Module):
    """Each skip keeps a digit of its own, so a result tells which evaluations it was made from."""

    layout = TrunkLayout(blocks=("down", "up"), skips=(("down", "up"),))

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Identity() for _ in range(3))
        self.up = nn.ModuleList(nn.Identity() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.down[2](self.down[1](self.down[0](x)))
        for scale, unit in zip((1000, 100, 10), self.up, strict=True):
            h = unit((h if scale < 1000 else 0) + scale * x)
        return h


@pytest.mark.parametrize(
    ("stages", "outputs"),
    [
        # evaluations that the innermost, the middle and the outermost part were made from
        ((((0, 6),),), [0, 1110, 2220, 3330, 4440]),
        ((((2, 4),), ((0, 2), (4, 6))), [0, 110, 1220, 2330, 3440]),
        ((((1, 5),), ((0, 1), (5, 6))), [0, 10, 1120, 2230, 3340]),
        ((((2, 4),), ((1, 2), (4, 5)), ((0, 1), (5, 6))), [0, 10, 120, 1230, 2340]),
    ],
    ids=str,
)
def test_the_outer_part_is_fresh_and_each_one_within_is_an_evaluation_older(
    stages: Stages, outputs: list[int]
) -> None:
    model = Digits()
    oracle = Oracle(StagedModel(model, Trunk.of(model, Digits.layout)), stages)
    oracle.begin_run(AsyncSchedule(1))
    assert [int(oracle.evaluate(0, (torch.tensor([i]),), {})) for i in range(5)] == outputs
