"""Stride and time shift: the oracle against algorithm.md's rounds, written out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from asyncdiff_core.algorithm.evaluator import Forecast, Inputs
from asyncdiff_core.algorithm.lanes import Lane, Lanes
from asyncdiff_core.algorithm.oracle import Oracle
from asyncdiff_core.algorithm.schedule import HERE, AsyncSchedule, Target
from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.trunk import Trunk
from harness.cuts import chain
from tests.unit.test_oracle import CUTS, Line, equal

SIGMAS = [14.0, 9.0, 6.0, 4.0, 2.5, 1.5, 0.9, 0.5, 0.3, 0.1]


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.inference_mode():
        yield


def x_at(i: int) -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(i))


def t_at(sigma: float) -> torch.Tensor:
    return torch.tensor(sigma / 20)


def forecast(i: int, sigmas: list[float]) -> Forecast:
    def at(sigma: float, latent: Any) -> Inputs:
        return (x_at(i), t_at(sigma)), {}

    return Forecast(sigmas[i], tuple(sigmas[i + 1 :]), at)


def by_oracle(ranges: Any, sigmas: list[float], schedule: AsyncSchedule, stride: int) -> list:
    line = Line(ranges[-1][1])
    oracle = Oracle(StagedModel(line, Trunk.of(line, Line.layout)), chain(*ranges), stride)
    oracle.begin_run(schedule)
    return [
        oracle.evaluate("lane", (x_at(i), t_at(sigma)), {}, forecast(i, sigmas))
        for i, sigma in enumerate(sigmas)
    ]


def by_hand(ranges: Any, sigmas: list[float], warm_up: int, stride: int, shift: bool) -> list:
    """The rounds of algorithm.md: h[k] is stage k's last message, k from 1."""
    line = Line(ranges[-1][1])
    num_stages, num = len(ranges), len(sigmas)

    def stage(k: int, h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        for u in range(*ranges[k - 1]):
            h = line.units[u](h + t * line.bias[u])
        return h

    def t_of(j: int) -> torch.Tensor:
        return t_at(sigmas[j - 1 if shift else j])

    eps: list[Any] = [None] * num
    h: dict[int, torch.Tensor] = {}
    for i in range(min(warm_up, num)):
        h[0] = x_at(i)
        for k in range(1, num_stages + 1):
            h[k] = stage(k, h[k - 1], t_at(sigmas[i]))
        eps[i] = h[num_stages]
    i = warm_up
    while i < num:
        span = min(stride, num - i)  # the last round is cut short
        before = {**h, 0: x_at(i)}
        for k in range(1, num_stages + 1):
            h[k] = stage(k, before[k - 1], t_of(i + span - 1))
        eps[i + span - 1] = h[num_stages]
        for j in range(i, i + span - 1):  # the extra copies of the last stage
            eps[j] = stage(num_stages, before[num_stages - 1], t_of(j))
        i += span
    return eps


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("warm_up", [1, 2, 3])
@pytest.mark.parametrize("ranges", [((0, 4),), *CUTS], ids=str)
def test_the_oracle_is_the_equations(ranges: Any, warm_up: int, stride: int, shift: bool) -> None:
    for num in (7, 10):
        sigmas = SIGMAS[:num]
        ours = by_oracle(ranges, sigmas, AsyncSchedule(warm_up, shift), stride)
        assert equal(ours, by_hand(ranges, sigmas, warm_up, stride, shift))


def test_every_eps_of_a_round_is_another_one() -> None:
    """What the reference code does with an even warm-up, and this one must not: repeat an eps."""
    for warm_up in (1, 2, 3, 4):
        outputs = by_oracle(CUTS[2], SIGMAS, AsyncSchedule(warm_up), stride=2)
        for a, b in itertools.pairwise(outputs):
            assert not torch.equal(a, b)


def rounds(sigmas: list[float], listed: list[float], stride: int, warm_up: int = 1) -> list[Any]:
    """(first evaluation, mode, number of outputs) of each round for these evaluated sigmas."""
    lane = Lane(0, AsyncSchedule(warm_up), stride)
    found = []
    for sigma in sigmas:
        if lane.take_held(sigma) is not None:
            continue
        at = listed.index(sigma) + 1 if sigma in listed else None
        coming = None if at is None else tuple(listed[at:])
        round_ = lane.next_round(sigma, coming)
        found.append((round_.evaluation, round_.mode, len(round_.targets)))
        lane.hold([object()] * (len(round_.targets) - 1), coming or ())
    return [*found, lane.refused_stride]


def test_rounds_begin_right_after_warm_up_and_the_last_is_cut_short() -> None:
    five = SIGMAS[:5]
    assert rounds(five, five, 2, 1) == [
        *((0, "sync", 1), (1, "async", 2), (3, "async", 2)),
        False,
    ]
    assert rounds(five, five, 2, 2) == [
        *((0, "sync", 1), (1, "sync", 1), (2, "async", 2), (4, "async", 1)),
        False,
    ]
    assert rounds(five, five, 3, 1) == [
        *((0, "sync", 1), (1, "async", 3), (4, "async", 1)),
        False,
    ]


def test_a_sigma_that_was_not_foreseen_ends_the_stride() -> None:
    """dpm_2 and its kin: a second evaluation between the steps."""
    listed = [14.0, 9.0, 6.0, 4.0]
    assert rounds([14.0, 9.0, 7.3, 6.0, 4.9, 4.0], listed, 2) == [
        (0, "sync", 1),
        (1, "async", 2),  # foresees 6.0
        (2, "async", 1),  # 7.3 comes, and so the sampler allows no stride
        (3, "async", 1),
        (4, "async", 1),
        (5, "async", 1),
        True,
    ]


def test_the_same_sigma_twice_allows_no_stride() -> None:
    """heun: the corrector of a step and the predictor of the next are at the same sigma."""
    listed = [14.0, 9.0, 6.0]
    found = rounds([14.0, 9.0, 9.0, 6.0, 6.0], listed, 2)
    assert found[-1] is True
    assert [size for _, _, size in found[3:-1]] == [1] * len(found[3:-1])


def test_sigmas_outside_of_the_list_allow_no_stride() -> None:
    assert rounds([14.0, 13.0, 12.0], [14.0, 9.0], 2) == [
        *((0, "sync", 1), (1, "async", 1), (2, "async", 1)),
        True,
    ]


def test_a_jump_up_synchronises_and_keeps_the_stride() -> None:
    """A restart: noise is added, so what the stages have stored is of another image."""
    listed = [14.0, 9.0, 6.0, 4.0, 2.5]
    assert rounds([14.0, 9.0, 6.0, 9.0, 6.0, 4.0, 2.5], listed, 2) == [
        (0, "sync", 1),
        (1, "async", 2),
        (3, "sync", 1),
        (4, "async", 2),
        (6, "async", 1),
        False,
    ]


def test_a_stride_needs_a_forecast() -> None:
    lane = Lanes(AsyncSchedule(1), stride=3).lane("a")
    lane.next_round(None, None)
    assert lane.next_round(None, None).targets == (HERE,)
    assert lane.refused_stride


def test_time_shift_uses_the_timestep_before() -> None:
    lane = Lane(0, AsyncSchedule(1, time_shift=True), stride=3)
    assert lane.next_round(9.0, (6.0, 4.0, 2.0)).targets == (HERE,)
    assert lane.next_round(6.0, (4.0, 2.0, 1.0)).targets == (Target(9.0), HERE, Target(4.0))
