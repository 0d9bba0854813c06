"""Predicted latents: the group against the oracle, with drafts and where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from asyncdiff_core.algorithm.evaluator import Call, Forecast, Inputs
from asyncdiff_core.algorithm.prediction import Latent
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.workers.group import WorkerGroup
from harness.groups import oracles, placed_group
from harness.toys import make_inputs, make_model

STEPS = 12
SIGMAS = [1 - i / STEPS for i in range(STEPS)]
# model, whether its stages are folded, (stages, stride, replicas)
PLACES = [
    *(("chain", False, plan) for plan in ((1, 2, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1))),
    *(("chain", False, plan) for plan in ((3, 2, 1), (2, 3, 1), (2, 2, 2))),
    *(("skipnet", False, plan) for plan in ((2, 1, 1), (4, 1, 1), (3, 2, 1))),
    *(("skipnet", True, plan) for plan in ((2, 1, 1), (2, 2, 1), (2, 1, 2), (3, 1, 1))),
]


def latent_at(name: str, sigma: float, lane: int, noise: float) -> torch.Tensor:
    """On a smooth way, or beside it."""
    a, b = (make_inputs(name, 100 + lane + n)[0][0] for n in (0, 50))
    off = make_inputs(name, round(1000 * sigma) + lane)[0][0]
    return a * sigma + b * math.cos(sigma) + noise * off


def call(name: str, i: int, lane: int, noise: float, sigmas: list[float] | None = None) -> Call:
    sigmas = sigmas or SIGMAS
    sigma = sigmas[i]
    x = latent_at(name, sigma, lane, noise)

    def at(other: float, latent: Latent | None = None) -> Inputs:
        (_, _), kwargs = make_inputs(name, lane)
        return (x.clone() if latent is None else latent[0], torch.full((2,), other)), kwargs

    coming = tuple(SIGMAS[SIGMAS.index(sigma) + 1 :]) if sigma in SIGMAS else None
    left = sum(one < sigma for one in SIGMAS)
    return Call(
        f"cond {lane}", *at(sigma), Forecast(sigma, coming, at, (x,), steps_left=left), lane
    )


@pytest.fixture(scope="module", params=PLACES, ids=str)
def placed(request: pytest.FixtureRequest) -> Iterator[tuple[str, WorkerGroup]]:
    name, folds, (stages, stride, replicas) = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYNCDIFF_FOLD", str(int(folds)))
        with placed_group(name, stages, stride, replicas) as group:
            assert group.is_folded == folds
            yield name, group


def is_deep_fold(group: WorkerGroup) -> bool:
    return group.is_folded and group.plan.stages > 2


def both(
    placed: tuple[str, WorkerGroup], schedule: AsyncSchedule, noise: float, evaluated: list[float]
) -> tuple[list[torch.Tensor], Any]:
    """The outputs of the group for the first replica, which are those of the oracle."""
    name, group = placed
    references = oracles(name, group)
    outputs = []
    with torch.inference_mode():
        for evaluator in (group, *references):
            evaluator.begin_run(schedule)
        for i in range(len(evaluated)):
            calls = [call(name, i, r, noise, evaluated) for r in range(group.plan.replicas)]
            found = group.evaluate_all(calls)
            for reference, one, output in zip(references, calls, found, strict=True):
                again = call(name, i, one.replica, noise, evaluated)
                (expected,) = reference.evaluate_all([again])
                assert torch.equal(output, expected), (i, one.replica)
            outputs.append(found[0])
        return outputs, group.end_run()


@pytest.mark.parametrize("noise", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("warm_up", [1, 2, 4])
def test_group_equals_oracle(placed: tuple[str, WorkerGroup], warm_up: int, noise: float) -> None:
    outputs, report = both(placed, AsyncSchedule(warm_up, prediction=True), noise, SIGMAS)
    assert len(report.evaluations) == STEPS * placed[1].plan.replicas
    plain, _ = both(placed, AsyncSchedule(warm_up), noise, SIGMAS)
    is_same = all(map(torch.equal, outputs, plain))
    # Nothing is predicted in folds of more than two stages, and nothing that cannot be foreseen.
    assert is_same == (is_deep_fold(placed[1]) or (noise == 1.0 and is_same))


@pytest.mark.parametrize("prediction", [False, True])
@pytest.mark.parametrize(("cool_down", "tolerance"), [(1, 0.0), (3, 0.0), (0, 0.05), (2, 0.3)])
def test_cool_down_and_tolerance(
    placed: tuple[str, WorkerGroup], prediction: bool, cool_down: int, tolerance: float
) -> None:
    schedule = AsyncSchedule(1, False, prediction, cool_down, tolerance)
    _, report = both(placed, schedule, 0.02, SIGMAS)
    stride = placed[1].plan.stride
    for one in report.evaluations:
        if one.index == 0 or one.index >= STEPS - cool_down:
            assert one.mode == "sync"
        elif tolerance and one.error is not None:
            assert (one.mode == "async") == (one.error <= tolerance)
        elif stride == 1 and placed[1].plan.stages > 1:
            assert one.mode == "async" and one.error is not None


def test_the_error_is_that_of_the_draft(placed: tuple[str, WorkerGroup]) -> None:
    """On a smooth way drafts are good, and so are results."""
    name, group = placed
    model = make_model(name)

    def error(schedule: AsyncSchedule) -> float:
        outputs, _ = both(placed, schedule, 0.0, SIGMAS)
        with torch.inference_mode():
            calls = [call(name, i, 0, 0.0) for i in range(STEPS)]
            exact = [model(*each.args, **each.kwargs) for each in calls]
        return max(float((a - b).norm() / b.norm()) for a, b in zip(outputs, exact, strict=True))

    predicted, stale = error(AsyncSchedule(3, prediction=True)), error(AsyncSchedule(3))
    if is_deep_fold(group):
        assert predicted == stale
    else:
        assert predicted < (0.5 if group.plan.stride < 3 else 1.0) * stale


def test_another_order_of_evaluations(placed: tuple[str, WorkerGroup]) -> None:
    """Between the steps, up again, the same one twice, and one more after the last one."""
    s = SIGMAS
    between = [s[0], (s[0] + s[1]) / 2, *s[1:5], s[2], s[3], s[4], s[4], *s[5:], s[-1], 0.01]
    both(placed, AsyncSchedule(2, prediction=True), 0.0, between)


def test_a_canceled_run_leaves_nothing(placed: tuple[str, WorkerGroup]) -> None:
    name, group = placed
    first, _ = both(placed, AsyncSchedule(2, prediction=True), 0.0, SIGMAS)
    for stop in (1, 2, 3, 6):
        with torch.inference_mode():
            group.begin_run(AsyncSchedule(2, prediction=True))
            for i in range(stop):
                group.evaluate_all([call(name, i, r, 0.0) for r in range(group.plan.replicas)])
            group.end_run(wait=stop % 2 == 0)
    again, _ = both(placed, AsyncSchedule(2, prediction=True), 0.0, SIGMAS)
    assert all(map(torch.equal, first, again))


def test_a_group_that_loads_when_the_run_has_begun() -> None:
    """As in ComfyUI: only then it is known that the stages are folded."""
    name = "skipnet"
    with placed_group(name, 3, 1, 1) as group, torch.inference_mode():
        assert group.is_folded
        group.holdings.unload()
        outputs: list[list[torch.Tensor]] = []
        for prediction in (False, True):
            group.begin_run(AsyncSchedule(2, prediction=prediction))
            group.prepare(*make_inputs(name, 0))
            outputs.append([group.evaluate_all([call(name, i, 0, 0.0)])[0] for i in range(STEPS)])
            group.end_run()
            group.holdings.unload()
        assert all(map(torch.equal, *outputs))
