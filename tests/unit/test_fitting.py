"""What fits, on devices of any capacity."""

from __future__ import annotations

from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from asyncdiff_core.algorithm.stages import units_of
from asyncdiff_core.planning.fitting import (
    Cuts,
    Devices,
    TrunkCosts,
    fit,
    lacks,
    squeeze,
    weights_on,
)
from asyncdiff_core.planning.plan import ParallelPlan
from harness.cuts import all_chains

NAMES = ("cuda:0", "cuda:1", "cuda:2", "cpu")


@st.composite
def problems(draw: st.DrawFn) -> tuple[ParallelPlan, TrunkCosts, Devices]:
    stages, replicas, stride = (draw(st.integers(1, most)) for most in (3, 2, 2))
    number = replicas * (stages + stride - 1)
    names = draw(st.lists(st.sampled_from(NAMES), min_size=number, max_size=number))
    num_units = draw(st.integers(stages, 8))
    costs = draw(st.lists(st.integers(1, 50).map(float), min_size=num_units, max_size=num_units))
    sizes = draw(st.lists(st.integers(0, 50), min_size=num_units, max_size=num_units))
    speeds = draw(st.lists(st.sampled_from([0.5, 1.0]), min_size=number, max_size=number))
    capacities = draw(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 600)))
    trunk = TrunkCosts(costs, unit_bytes=sizes, shared_bytes=draw(st.integers(0, 20)))
    plan = ParallelPlan(tuple(names), stages, replicas, stride)
    return plan, trunk, Devices(speeds, capacities)


def by_hand(plan: ParallelPlan, cuts: Cuts, trunk: TrunkCosts) -> Counter[str]:
    need: Counter[str] = Counter()
    for place in plan.placements():
        units = units_of(cuts[place.replica][place.stage])
        need[place.device] += trunk.shared_bytes + sum(trunk.unit_bytes[unit] for unit in units)
    return need


@given(problem=problems())
def test_what_fits_does(problem: tuple[ParallelPlan, TrunkCosts, Devices]) -> None:
    plan, trunk, devices = problem
    cuts = fit(plan, trunk, devices)
    if cuts is not None:
        need = by_hand(plan, cuts, trunk)
        assert need == weights_on(plan, cuts, trunk)
        assert all(need[name] <= most for name, most in devices.capacities.items())
        assert lacks(plan, cuts, trunk, devices) == {}


@given(problem=problems())
def test_where_each_worker_has_a_device_of_its_own_all_that_fits_is_found(
    problem: tuple[ParallelPlan, TrunkCosts, Devices],
) -> None:
    plan, trunk, devices = problem
    assume(len(set(plan.devices)) == len(plan.devices) and plan.replicas == 1)
    every = [(chain,) for chain in all_chains(len(trunk.costs), plan.stages)]
    fitting = [cuts for cuts in every if not lacks(plan, cuts, trunk, devices)]
    assert (fit(plan, trunk, devices) is not None) == bool(fitting)


@given(problem=problems())
def test_room_for_all_changes_nothing(problem: tuple[ParallelPlan, TrunkCosts, Devices]) -> None:
    plan, trunk, devices = problem
    free = Devices(devices.speeds)
    roomy = Devices(devices.speeds, dict.fromkeys(NAMES, 10**6))
    assert fit(plan, trunk, roomy) == fit(plan, trunk, free) is not None


@given(problem=problems())
def test_what_is_squeezed_is_all_there(
    problem: tuple[ParallelPlan, TrunkCosts, Devices],
) -> None:
    plan, trunk, devices = problem
    for stages in squeeze(plan, trunk, devices):
        held = sorted(unit for stage in stages for unit in units_of(stage))
        assert held == list(range(len(trunk.costs))) and len(stages) == plan.stages
