"""Plans: what fits, what does not, and whether the error says how to make it fit."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff_core.errors import PlanError
from asyncdiff_core.planning.plan import (
    MAX_WORKERS,
    ParallelPlan,
    Placement,
    make_plan,
    parse_devices,
)

GPUS = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


def test_placements_go_replica_by_replica_stage_by_stage() -> None:
    plan = ParallelPlan(GPUS, stages=2, replicas=2)
    assert plan.placements() == (
        Placement(0, "cuda:0", replica=0, stage=0),
        Placement(1, "cuda:1", replica=0, stage=1),
        Placement(2, "cuda:2", replica=1, stage=0),
        Placement(3, "cuda:3", replica=1, stage=1),
    )


def test_a_stride_adds_copies_of_the_last_stage() -> None:
    plan = ParallelPlan(GPUS, stages=2, stride=3)
    assert [(p.stage, p.lead) for p in plan.placements()] == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_stages_in_another_order_of_devices() -> None:
    plan = ParallelPlan(GPUS, stages=2, stride=3, order=(3, 1, 0, 2))
    assert plan.placements() == (
        Placement(0, "cuda:0", replica=0, stage=1, lead=1),
        Placement(1, "cuda:1", replica=0, stage=1),
        Placement(2, "cuda:2", replica=0, stage=1, lead=2),
        Placement(3, "cuda:3", replica=0, stage=0),
    )


@pytest.mark.parametrize("order", [(0,), (0, 1, 2, 2), (1, 2, 3, 4)])
def test_an_order_names_each_worker_once(order: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="order has to name each worker once"):
        ParallelPlan(GPUS, stages=4, order=order)


@given(
    stages=st.integers(1, 6), replicas=st.integers(1, 4), stride=st.integers(1, 4), data=st.data()
)
def test_a_plan_that_fits_places_every_stage_of_every_replica(stages, replicas, stride, data):
    devices = tuple(f"cuda:{i}" for i in range(replicas * (stages + stride - 1)))
    plan = ParallelPlan(devices, stages, replicas, stride)
    placements = plan.placements()
    assert [p.rank for p in placements] == list(range(plan.num_workers))
    assert tuple(p.device for p in placements) == devices
    expected = {(r, s, 0) for r in range(replicas) for s in range(stages)}
    expected |= {(r, stages - 1, lead) for r in range(replicas) for lead in range(stride)}
    assert {(p.replica, p.stage, p.lead) for p in placements} == expected

    wrong = data.draw(st.integers(0, 30).filter(lambda n: n != len(devices)))
    with pytest.raises(PlanError, match=f"need {len(devices)} devices, but {wrong} are listed"):
        ParallelPlan(tuple(f"cuda:{i}" for i in range(wrong)), stages, replicas, stride)


@given(
    num=st.integers(1, 12), stages=st.integers(1, 9), replicas=st.integers(1, 9),
    stride=st.integers(1, 4),
)  # fmt: skip
def test_every_way_out_that_the_error_names_works(num, stages, replicas, stride):
    devices = tuple(f"cuda:{i}" for i in range(num))
    try:
        ParallelPlan(devices, stages, replicas, stride)
    except PlanError as error:
        text = str(error)
    else:
        return
    assert ",".join(devices) in text
    if "set " in text:
        for fit in text.partition("set ")[2].rstrip(".").split(" or "):
            values = {k: int(v) for k, v in (pair.split("=") for pair in fit.split(", "))}
            assert ParallelPlan(devices, **values).num_workers == num


@pytest.mark.parametrize("name", ["stages", "replicas", "stride"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_numbers_out_of_range_are_named(name, value) -> None:
    with pytest.raises(PlanError, match=f"{name} must be a whole number.*{value!r}"):
        ParallelPlan(GPUS, **{"stages": 4, name: value})


def test_too_many_workers() -> None:
    with pytest.raises(PlanError, match=f"at most {MAX_WORKERS}"):
        ParallelPlan(("cpu",) * (MAX_WORKERS + 1), stages=MAX_WORKERS + 1)


def test_a_plan_is_frozen_and_hashable() -> None:
    plan = ParallelPlan(("cpu", "cpu"), stages=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.stages = 3  # type: ignore[misc]
    assert hash(plan) == hash(ParallelPlan(("cpu", "cpu"), stages=2))


def test_make_plan_chooses_stages() -> None:
    assert make_plan(GPUS) == ParallelPlan(GPUS, stages=4)
    assert make_plan(GPUS, replicas=2) == ParallelPlan(GPUS, stages=2, replicas=2)
    assert make_plan(GPUS, stride=2) == ParallelPlan(GPUS, stages=3, stride=2)
    assert make_plan(["cpu", "cpu"], stages=2) == ParallelPlan(("cpu", "cpu"), stages=2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"stages": -1}, "stages must be at least 0, but is -1"),
        ({"replicas": -2}, "replicas must be at least 0, but is -2"),
        ({"stride": 0}, "stride must be at least 1, but is 0"),
        ({"stages": 3}, "need 3 devices, but 4 are listed"),
        ({"replicas": 3}, "but 4 are listed"),
        ({"stride": 9}, "but 4 are listed"),
    ],
)
def test_make_plan_refuses(arguments, text) -> None:
    with pytest.raises(PlanError, match=text):
        make_plan(GPUS, **arguments)


@pytest.mark.parametrize(
    ("text", "available", "devices"),
    [
        ("auto", GPUS[:2], ("cuda:0", "cuda:1")),
        ("auto", ["cuda:0", "cpu"], ("cuda:0",)),
        ("auto", [], ("cpu", "cpu")),
        ("AUTO", ["cpu"], ("cpu", "cpu")),
        ("cpu,cpu,cpu", [], ("cpu", "cpu", "cpu")),
        (" cuda:1 , CPU", GPUS, ("cuda:1", "cpu")),
        ("cuda,cuda:0", GPUS, ("cuda:0", "cuda:0")),
    ],
)
def test_parse_devices(text, available, devices) -> None:
    assert parse_devices(text, available) == devices


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", "''"),
        ("cpu,", "''"),
        ("cuda:7", "'cuda:7'"),
        ("cuda:0,gpu1", "'gpu1'"),
        ("auto,cpu", "'auto'"),
        ("cuda:0 cuda:1", "'cuda:0 cuda:1'"),
        ("mps", "'mps'"),
    ],
)
def test_parse_devices_names_what_it_does_not_know(text, culprit) -> None:
    with pytest.raises(PlanError) as caught:
        parse_devices(text, GPUS)
    assert f"unknown device {culprit}" in str(caught.value)
    assert ", ".join(sorted({*GPUS, "cpu"})) in str(caught.value)
