"""The planner: ideal times by the formula, and the choices that follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff_core.errors import PlanError
from asyncdiff_core.planning.fitting import Devices, TrunkCosts
from asyncdiff_core.planning.plan import ParallelPlan, make_plan
from asyncdiff_core.planning.planner import (
    Choice,
    PlanRequest,
    Workload,
    choose,
    predicted_speedup,
)

EVEN = [1.0] * 24
GIB = 2**30


def speedup(devices: int, stages: int, replicas: int, stride: int, **run: int) -> float:
    plan = ParallelPlan(("cpu",) * devices, stages, replicas, stride)
    run = {"num_conds": 2, "steps": 50, "num_sync": 9, **run}
    return predicted_speedup(plan, costs=EVEN, **run)


def test_the_figures_of_the_specification() -> None:
    assert speedup(4, 2, 2, 1) == pytest.approx(3.39, abs=0.005)
    assert speedup(4, 4, 1, 1) == pytest.approx(2.60, abs=0.005)
    # Ideal time of T evaluations, one lane: w + (T - w) / (S N).
    assert speedup(4, 3, 1, 2, num_conds=1) == pytest.approx(50 / (9 + 41 / 6))


def test_one_device_and_a_warm_up_longer_than_the_run() -> None:
    assert speedup(1, 1, 1, 1) == 1.0
    assert speedup(4, 4, 1, 1, num_sync=500) == 1.0
    assert speedup(2, 1, 2, 1, num_sync=500) == 2.0
    assert speedup(2, 1, 2, 1, num_conds=1) == 1.0


def test_latents_pass_the_stages_one_behind_the_other() -> None:
    """algorithm.md: M of them on N stages take (M + N - 1) / (M N)."""
    assert speedup(2, 2, 1, 1, num_conds=1, latents=4, num_sync=500) == pytest.approx(8 / 5)
    assert speedup(2, 2, 1, 1, num_conds=2, latents=1, num_sync=500) == pytest.approx(4 / 3)
    assert speedup(4, 4, 1, 1, num_conds=2, latents=3, num_sync=500) == pytest.approx(24 / 9)
    assert speedup(2, 2, 1, 1, num_conds=1, latents=1, num_sync=500) == 1.0
    # One cond alone: replicas share its latents, as evenly as they can.
    assert speedup(2, 1, 2, 1, num_conds=1, latents=4) == pytest.approx(2.0)
    assert speedup(2, 1, 2, 1, num_conds=1, latents=3) == pytest.approx(1.5)
    assert speedup(4, 2, 2, 1, num_conds=1, latents=4, num_sync=500) == pytest.approx(2 * 4 / 3)


def auto(devices: int, num_conds: int, **request: int) -> ParallelPlan:
    wanted = PlanRequest(("cuda:0",) * devices, is_auto=True, **request)
    return chosen(wanted, num_conds=num_conds).plan


def chosen(
    request: PlanRequest,
    *,
    costs: list[float] = EVEN,
    num_conds: int = 2,
    steps: int = 20,
    num_sync: int = 3,
    **memory: object,
) -> Choice:
    """What is chosen: units of one GiB each, where `memory` says nothing else."""
    is_foreseen = bool(memory.pop("is_foreseen", False))
    streams = {"may_stream": memory.pop("may_stream")} if "may_stream" in memory else {}
    capacities = memory.pop("capacities", {})
    speeds = memory.pop("speeds", ())
    trunk = TrunkCosts(costs, **{"unit_bytes": [GIB] * len(costs), **memory})
    workload = Workload(num_conds, steps, num_sync, is_foreseen=is_foreseen)
    return choose(request, workload, trunk, Devices(speeds, capacities), **streams)


@pytest.mark.parametrize(
    ("devices", "num_conds", "expected"),
    [
        (2, 2, (1, 2, 1)),  # stages, replicas, stride
        (2, 1, (2, 1, 1)),
        (3, 2, (3, 1, 1)),
        (3, 1, (3, 1, 1)),
        (4, 2, (2, 2, 1)),
        (4, 1, (4, 1, 1)),
        (4, 4, (1, 4, 1)),
        (8, 2, (4, 2, 1)),
    ],
)
def test_replicas_first_with_two_conds(
    devices: int, num_conds: int, expected: tuple[int, int, int]
) -> None:
    plan = auto(devices, num_conds)
    assert (plan.stages, plan.replicas, plan.stride) == expected


def test_what_is_asked_for_is_kept() -> None:
    assert auto(4, 2, replicas=1).stages == 4
    assert auto(4, 2, stages=4).replicas == 1
    plan = auto(4, 2, stride=2)
    assert (plan.stages, plan.replicas, plan.stride) == (1, 2, 2)


def test_a_list_of_devices_is_one_pipeline() -> None:
    request = PlanRequest(("cpu", "cpu", "cpu", "cpu"))
    choice = chosen(request)
    assert (choice.plan.stages, choice.plan.replicas) == (4, 1)
    assert "1 replicas x 4 stages" in str(choice) and "predicted speed-up" in str(choice)


TWO = PlanRequest(("cuda:0", "cuda:1"), is_auto=True)


def test_what_fits_is_cut_as_if_there_were_no_limits() -> None:
    roomy = chosen(TWO, capacities={"cuda:0": 24 * GIB, "cuda:1": 24 * GIB})
    assert roomy == chosen(TWO)
    assert (roomy.plan.replicas, roomy.notes, roomy.budgets) == (2, (), {})


def test_replicas_that_do_not_fit_become_stages() -> None:
    choice = chosen(TWO, capacities={"cuda:0": 23 * GIB, "cuda:1": 24 * GIB})
    assert (choice.plan.replicas, choice.plan.stages) == (1, 2)
    assert choice.cuts == ((((0, 12),), ((12, 24),)),)
    assert choice.notes == (
        "2 replicas x 1 stages do not fit (cuda:0 needs 24.0 GiB and has room for 23.0 GiB)",
    )


def test_the_light_stage_goes_to_the_short_device() -> None:
    choice = chosen(TWO, capacities={"cuda:0": 9 * GIB, "cuda:1": 20 * GIB}, shared_bytes=GIB)
    assert choice.cuts == ((((0, 8),), ((8, 24),)),)
    assert choice.speedup == pytest.approx(20 / (3 + 17 * 16 / 24))  # of the cut that is loaded


def test_what_fits_nowhere_is_streamed() -> None:
    choice = chosen(TWO, capacities={"cuda:0": 5 * GIB, "cuda:1": 10 * GIB}, shared_bytes=GIB)
    assert choice.plan.stages == 2
    assert choice.cuts == ((((0, 7),), ((7, 24),)),)  # 4 and 9 GiB are for units
    assert choice.budgets == {0: 5 * GIB, 1: 10 * GIB}
    assert "2 replicas x 1 stages do not fit" in choice.notes[0]
    assert "11.0 GiB of the weights stay in the host's memory" in choice.notes[1]


def test_or_it_is_refused_with_the_ways_out() -> None:
    with pytest.raises(PlanError) as caught:
        chosen(TWO, capacities={"cuda:0": 5 * GIB, "cuda:1": 10 * GIB}, may_stream=False)
    for text in (
        "1 replicas x 2 stages",
        "cuda:0 needs 8.0 GiB and has room for 5.0 GiB",
        "cuda:1 needs 16.0 GiB and has room for 10.0 GiB",
        "smaller pictures or batches",
        "fp8",
        "--highvram",
    ):
        assert text in str(caught.value)


def test_workers_on_one_device_share_it() -> None:
    both = PlanRequest(("cuda:0", "cuda:0"), stages=2)
    assert chosen(both, capacities={"cuda:0": 24 * GIB}).budgets == {}
    assert chosen(both, capacities={"cuda:0": 20 * GIB}).budgets == {0: 10 * GIB, 1: 10 * GIB}


def test_slow_devices_get_less_and_count_as_slow() -> None:
    request = PlanRequest(("cuda:0", "cuda:1"), stages=2)
    choice = chosen(request, speeds=(1.0, 0.5), num_sync=0)
    assert choice.cuts == ((((0, 16),), ((16, 24),)),)
    assert choice.speedup == pytest.approx(1.5)
    replicas = chosen(TWO, speeds=(1.0, 0.5), num_sync=0)
    assert replicas.plan.stages == 2  # the slower replica would hold the other one up


def test_the_stage_with_few_bytes_goes_to_the_small_device() -> None:
    """The first stages of Flux have many bytes, and text encoders are on the first card."""
    sizes = [2 * GIB] * 12 + [GIB] * 12
    capacities = {"cuda:0": 13 * GIB, "cuda:1": 40 * GIB}
    choice = chosen(TWO, unit_bytes=sizes, capacities=capacities)
    assert choice.plan.order == (1, 0)
    assert choice.cuts == ((((0, 12),), ((12, 24),)),)
    assert choice.weights == {"cuda:0": 12 * GIB, "cuda:1": 24 * GIB}
    assert "on cuda:1,cuda:0:" in str(choice)
    # Not where it would be hardly faster.
    capacities = {"cuda:0": 23 * GIB, "cuda:1": 40 * GIB}
    choice = chosen(TWO, unit_bytes=sizes, capacities=capacities, num_sync=10)
    assert choice.plan.order == () and choice.cuts == ((((0, 11),), ((11, 24),)),)


def in_time(devices: int, num_conds: int, **memory: object) -> tuple[int, int, int]:
    request = PlanRequest(tuple(f"cuda:{n}" for n in range(devices)), is_auto=True)
    known = {"num_conds": num_conds, "is_foreseen": True, "predicts": True, **memory}
    plan = chosen(request, **known).plan
    return plan.stages, plan.replicas, plan.stride


def test_consecutive_evaluations_where_they_are_foreseen() -> None:
    assert in_time(2, 1) == (1, 1, 2)
    assert in_time(3, 1) == (1, 1, 3)
    assert in_time(2, 2) == (1, 2, 1)  # a cond for each device is exact
    assert in_time(4, 2) == (1, 2, 2)
    assert in_time(3, 2) == (1, 1, 3)
    # Not by latents that are not predicted, nor where the whole model has no room.
    assert in_time(2, 1, predicts=False) == (2, 1, 1)
    assert in_time(2, 1, is_foreseen=False) == (2, 1, 1)
    assert in_time(2, 1, capacities={"cuda:1": 20 * GIB}) == (2, 1, 1)


@pytest.mark.parametrize("asked", [{"stages": 2}, {"replicas": 2}, {"stride": 2}])
def test_what_is_asked_for_is_kept_where_they_are_foreseen(asked: dict[str, int]) -> None:
    request = PlanRequest(tuple(f"cuda:{n}" for n in range(4)), is_auto=True, **asked)
    plan = chosen(request, num_conds=1, is_foreseen=True, predicts=True).plan
    assert all(getattr(plan, name) == value for name, value in asked.items())
    listed = PlanRequest(("cuda:0", "cuda:1"))
    assert chosen(listed, num_conds=1, is_foreseen=True, predicts=True).plan.stages == 2


def test_a_fold_is_slower_than_evaluations_in_time() -> None:
    """On predicted latents its outer stage runs the way in twice."""
    skips = tuple((unit, 23 - unit) for unit in range(11))
    assert in_time(2, 1, skips=skips) == (1, 1, 2)


def test_of_many_devices_one_changes_its_place() -> None:
    names = tuple(f"cuda:{number}" for number in range(6))
    request = PlanRequest(names, stages=6, is_auto=True)
    sizes = [4 * GIB] * 4 + [GIB] * 4 + [4 * GIB] * 16
    choice = chosen(request, unit_bytes=sizes, capacities={"cuda:0": 4 * GIB})
    assert choice.plan.order == (1, 0, 2, 3, 4, 5)
    assert choice.cuts == (
        (((0, 4),), ((4, 8),), ((8, 12),), ((12, 16),), ((16, 20),), ((20, 24),)),
    )


def test_a_copy_of_the_last_stage_has_to_fit_too() -> None:
    request = PlanRequest(("a", "b", "c"), stages=2, stride=2)
    choice = chosen(request, capacities={"c": 8 * GIB})
    assert choice.cuts == ((((0, 16),), ((16, 24),)),)


def test_unequal_units_count() -> None:
    costs = [10.0, 1.0, 1.0]
    plan = make_plan(["cpu"] * 2, stages=2)
    found = predicted_speedup(plan, num_conds=1, steps=11, num_sync=1, costs=costs)
    assert found == pytest.approx(11 / (1 + 10 * 10 / 12))


def test_more_devices_than_units() -> None:
    request = PlanRequest(("cuda:0",) * 8, is_auto=True)
    plan = chosen(request, num_conds=1, num_sync=1, costs=[1.0] * 4).plan
    assert plan.stages <= 4


@pytest.mark.parametrize(
    "numbers",
    [{"replicas": 2}, {"stages": 2, "replicas": 2}, {"stages": 3, "stride": 2}, {"stride": 5}],
)
def test_requests_that_do_not_fit(numbers: dict[str, int]) -> None:
    with pytest.raises(PlanError):
        PlanRequest(("cpu",) * 3, **numbers)
    with pytest.raises(PlanError):
        PlanRequest(("cpu",) * 3, is_auto=True, **numbers)


@given(
    devices=st.integers(1, 8),
    num_conds=st.integers(1, 3),
    steps=st.integers(1, 60),
    num_sync=st.integers(1, 70),
)
def test_the_choice_is_never_slower_than_any_candidate(
    devices: int, num_conds: int, steps: int, num_sync: int
) -> None:
    request = PlanRequest(("cpu",) * devices, is_auto=True)
    run = {"num_conds": num_conds, "steps": steps, "num_sync": num_sync, "costs": EVEN}
    choice = chosen(request, **run)
    best = max(predicted_speedup(plan, **run) for plan in request.candidates())
    assert choice.speedup == pytest.approx(best, abs=1e-6)  # what is as good to six digits is equal
    assert 1.0 <= best <= devices + 1e-9
