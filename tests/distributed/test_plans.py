"""Strides, time shift and replicas on real workers, against the oracle, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from asyncdiff_core.algorithm.evaluator import Call, Forecast, Inputs
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.trunk import Trunk
from asyncdiff_core.planning.plan import make_plan
from asyncdiff_core.workers.group import WorkerGroup
from asyncdiff_core.workers.source import ModelSource
from harness.groups import LAUNCH, oracles, placed_group
from harness.toys import make_inputs, make_model

# (stages, stride, replicas)
PLANS = [(2, 1, 1), (2, 2, 1), (3, 2, 1), (2, 3, 1), (1, 1, 2), (2, 1, 2), (2, 2, 2)]


def inputs(name: str, step: int, sigma: float) -> Inputs:
    (x, _), kwargs = make_inputs(name, step)
    return (x, torch.full((2,), sigma)), kwargs


def call(name: str, step: int, sigmas: list[float], i: int, replica: int) -> Call:
    """Evaluation `i` of the replica's lane."""
    noise = step + 100 * replica
    forecast = Forecast(
        sigmas[i], tuple(sigmas[i + 1 :]), lambda sigma, _: inputs(name, noise, sigma)
    )
    return Call(f"cond {replica}", *inputs(name, noise, sigmas[i]), forecast, replica)


@pytest.fixture(scope="module", params=itertools.product(("chain", "skipnet"), PLANS), ids=str)
def placed(request: pytest.FixtureRequest) -> Iterator[tuple[str, WorkerGroup]]:
    name, (stages, stride, replicas) = request.param
    with placed_group(name, stages, stride, replicas) as group:
        yield name, group


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("time_shift", [False, True])
@pytest.mark.parametrize("warm_up", [1, 2, 3])
def test_group_equals_oracle(
    placed: tuple[str, WorkerGroup], warm_up: int, time_shift: bool, steps: int
) -> None:
    name, group = placed
    schedule = AsyncSchedule(warm_up, time_shift)
    sigmas = [1 - i / steps for i in range(steps)]
    with torch.inference_mode():
        references = oracles(name, group)
        for evaluator in (group, *references):
            evaluator.begin_run(schedule)
        for i in range(steps):
            calls = [call(name, i, sigmas, i, r) for r in range(group.plan.replicas)]
            outputs = group.evaluate_all(calls)
            for reference, one, output in zip(references, calls, outputs, strict=True):
                again = call(name, i, sigmas, i, one.replica)
                (expected,) = reference.evaluate_all([again])
                assert torch.equal(output, expected), (i, one.replica)
        report = group.end_run()
    assert report is not None and not report.refused_stride
    assert len(report.evaluations) == steps * group.plan.replicas


def test_a_sampler_that_allows_no_stride(placed: tuple[str, WorkerGroup]) -> None:
    """Every second evaluation is between the steps; then sigma jumps up once."""
    name, group = placed
    listed = [1.0, 0.8, 0.6, 0.4, 0.2]
    evaluated = [1.0, 0.9, 0.8, 0.7, 0.6, 0.8, 0.6, 0.5, 0.4, 0.2]

    def at(i: int) -> Call:
        sigma = evaluated[i]
        coming = tuple(listed[listed.index(sigma) + 1 :]) if sigma in listed else None
        forecast = Forecast(sigma, coming, lambda other, _: inputs(name, i, other))
        return Call("lane", *inputs(name, i, sigma), forecast)

    with torch.inference_mode():
        reference = oracles(name, group)[0]
        for evaluator in (group, reference):
            evaluator.begin_run(AsyncSchedule(1))
        for i in range(len(evaluated)):
            (ours,), (expected,) = group.evaluate_all([at(i)]), reference.evaluate_all([at(i)])
            assert torch.equal(ours, expected), i
        report: Any = group.end_run()
    assert report.refused_stride == (group.plan.stride > 1)
    modes = [one.mode for one in report.evaluations]
    assert [i for i, mode in enumerate(modes) if mode == "sync"] == [0, 5]


def test_another_plan_on_the_same_workers() -> None:
    """The planner gives the workers new places; nothing is started anew."""
    model = make_model("chain")
    trunk = Trunk.of(model, model.layout)
    units = tuple(unit.name for unit in trunk.units)
    source = ModelSource("chain", "harness.toys:build", {"model": "chain"}, units, trunk.skips)
    devices = ["cpu", "cpu"]
    sigmas = [1 - i / 6 for i in range(6)]
    group = WorkerGroup(make_plan(devices), source, LAUNCH)
    try:
        group.start()
        with torch.inference_mode():
            for stages, replicas, order in (
                *((2, 1, ()), (1, 2, ()), (2, 1, ())),
                (2, 1, (1, 0)),  # the first stage on the second device
            ):
                group.begin_run(AsyncSchedule(1))
                plan = make_plan(devices, stages=stages, replicas=replicas)
                group.set_plan(dataclasses.replace(plan, order=order))
                group.prepare(*make_inputs("chain", 0))
                (reference, *_) = oracles("chain", group)
                reference.begin_run(AsyncSchedule(1))
                for i in range(6):
                    one = call("chain", i, sigmas, i, 0)
                    (expected,) = reference.evaluate_all([call("chain", i, sigmas, i, 0)])
                    assert torch.equal(group.evaluate_all([one])[0], expected)
                group.end_run()
                assert len(group.holdings.stages) == stages
                assert [m.placement.stage for m in group.members] == (
                    [0, 0] if replicas == 2 else list(order) or [0, 1]
                )
    finally:
        group.close()
