"""Which evaluations are sync besides the warm-up, and what is known of the error of the others."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from asyncdiff_core.algorithm.lanes import Lane
from asyncdiff_core.algorithm.prediction import distance
from asyncdiff_core.algorithm.schedule import AsyncSchedule, Round
from asyncdiff_core.errors import ScheduleError

STEPS = 12
SIGMAS = [1.0 - i / STEPS for i in range(STEPS)]


def noise(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def latent(i: int, roughness: float = 0.0) -> torch.Tensor:
    """On a smooth way, or beside it."""
    return noise(1) + math.cos(SIGMAS[i]) * noise(2) + roughness * noise(10 + i)


def rounds(
    schedule: AsyncSchedule, stages: int = 2, stride: int = 1, roughness: float = 0.0
) -> list[Round]:
    """Those of a run, with the ones that prepare others."""
    lane, done = Lane(0, schedule, stride, stages), []
    for i, sigma in enumerate(SIGMAS):
        coming = SIGMAS[i + 1 :]
        lane.see(sigma, (latent(i, roughness),), coming)
        if lane.take_held(sigma) is None:
            done.append(lane.next_round(sigma, coming, steps_left=len(coming)))
            lane.hold([i] * (len(done[-1].targets) - 1), coming)
            done += lane.preparing(done[-1], coming)
    return done


def yielding(done: list[Round]) -> list[Round]:
    return [one for one in done if one.targets]


def modes(done: list[Round]) -> str:
    """A letter for each evaluation: s or a."""
    return "".join(one.mode[0] * len(one.targets) for one in done)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("prediction", [False, True])
@pytest.mark.parametrize(("warm_up", "cool_down"), [(1, 0), (2, 1), (3, 4), (1, 11), (1, 40)])
def test_the_last_steps_are_sync(
    warm_up: int, cool_down: int, prediction: bool, stride: int
) -> None:
    schedule = AsyncSchedule(warm_up, prediction=prediction, cool_down=cool_down)
    done = rounds(schedule, stages=3, stride=stride)
    between = max(0, STEPS - warm_up - cool_down)
    assert modes(done) == "s" * warm_up + "a" * between + "s" * (STEPS - warm_up - between)
    # Nothing is made for what is sync.
    goals = {one.index: one.mode for one in yielding(done)}
    works = [work for one in done for work in one.ahead if work is not None]
    assert all(goals[work.goal] == "async" for work in works)


def test_without_a_list_of_sigmas_there_is_no_cool_down() -> None:
    lane = Lane(0, AsyncSchedule(1, cool_down=5), num_stages=2)
    assert [lane.next_round(s, None).mode for s in SIGMAS[:3]] == ["sync", "async", "async"]


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("warm_up", [1, 3])
def test_the_error_of_stale_latents(stages: int, warm_up: int) -> None:
    """What stage k worked on is N - k evaluations old, but no older than the last sync one."""
    for i, one in enumerate(rounds(AsyncSchedule(warm_up), stages, roughness=0.3)):
        oldest = max(0, i - (stages - 1), warm_up - 1 if i >= warm_up else i - 1)
        if i < warm_up and i > 0:
            oldest = i - 1
        ages = range(oldest, i)
        expected = [distance((latent(old, 0.3),), (latent(i, 0.3),)) for old in ages]
        assert one.error == (max(expected) if expected else None), i


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("roughness", [0.0, 0.01, 1.0])
def test_the_error_is_that_of_what_stages_were_given(stages: int, roughness: float) -> None:
    done = rounds(AsyncSchedule(3, prediction=True), stages, roughness=roughness)
    given: dict[int, list[torch.Tensor]] = {}
    used_drafts = 0
    for one in done:
        i = one.evaluation
        if one.mode == "sync" and one.targets:
            given = {}
        if one.targets and i >= 3:
            here = (latent(i, roughness),)
            assert one.error == max(distance((x,), here) for x in given[one.index])
        if not one.targets:
            work = next(w for w in one.ahead if w)
            assert work.target.latent is not None
            given[work.goal] = [work.target.latent[0]]
            continue
        for number in range(1, stages):
            work = one.work(number) if one.ahead else None
            drafted = None if work is None else work.target.latent
            used_drafts += drafted is not None
            x = latent(i, roughness) if drafted is None else drafted[0]
            given.setdefault(one.index + number, []).append(x)
    assert used_drafts > 0 or roughness


@pytest.mark.parametrize(("stages", "stride"), [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("prediction", [False, True])
@pytest.mark.parametrize("roughness", [0.0, 0.1])
def test_what_is_beyond_the_tolerance_is_sync(
    stages: int, stride: int, prediction: bool, roughness: float
) -> None:
    found = {}
    for tolerance in (1e-6, 0.01, 0.03, 0.1, 100.0):
        schedule = AsyncSchedule(1, prediction=prediction, tolerance=tolerance)
        done = yielding(rounds(schedule, stages, stride, roughness))
        for one in done[1:]:
            assert one.error is not None
            assert (one.mode == "async") == (one.error <= tolerance)
        found[tolerance] = modes(done).count("s")
    assert found[1e-6] == STEPS and found[100.0] == 1
    assert all(a >= b for a, b in itertools.pairwise(found.values()))


def test_what_is_not_known_is_beyond_the_tolerance() -> None:
    lane = Lane(0, AsyncSchedule(1, tolerance=0.5), num_stages=2)
    for i, sigma in enumerate(SIGMAS[:5]):
        if i != 2:  # nobody tells the latent
            lane.see(sigma, (latent(i),), SIGMAS[i + 1 :])
        expected = "sync" if i in (0, 2, 3) else "async"
        assert lane.next_round(sigma, SIGMAS[i + 1 :]).mode == expected


def test_drafts_need_fewer_sync_evaluations() -> None:
    def number(prediction: bool) -> int:
        schedule = AsyncSchedule(1, prediction=prediction, tolerance=0.02)
        return modes(rounds(schedule, 3)).count("s")

    assert number(True) < number(False) / 2


def test_with_a_tolerance_the_warm_up_follows_from_it() -> None:
    assert AsyncSchedule(0, tolerance=0.1).for_steps(30).warm_up == 1
    assert AsyncSchedule(4, tolerance=0.1).for_steps(30).warm_up == 4


@pytest.mark.parametrize("value", [-1, 1.5, "2", None])
def test_a_wrong_cool_down_is_refused(value: object) -> None:
    with pytest.raises(ScheduleError, match=r"cool_down must be a whole number of at least 0"):
        AsyncSchedule(1, cool_down=value)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_wrong_tolerance_is_refused(value: float) -> None:
    with pytest.raises(ScheduleError, match=r"tolerance must be a number of at least 0"):
        AsyncSchedule(1, tolerance=value)
