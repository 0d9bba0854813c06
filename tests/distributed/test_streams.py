"""What the worker's loop would take on GPUs, by the semantics of streams.

Real workers run on the CPU and note what they would tell a GPU (harness/recording.py); the times
follow from that (harness/stream_time.py). What a GPU does beyond that order is not shown here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.stages import Stage
from asyncdiff_core.algorithm.trunk import Trunk
from asyncdiff_core.planning.plan import make_plan
from asyncdiff_core.workers.group import WorkerGroup
from asyncdiff_core.workers.source import ModelSource
from harness.groups import LAUNCH, batched, evaluate_all, unbatched
from harness.stream_time import (
    Machine,
    StreamTime,
    StuckError,
    slowest_stage,
    step_seconds,
)
from harness.toys import make_model

NUM_COSTS = 8
PUBLISHED = AsyncSchedule(2)
SHARE = 0.007  # of a message in the time of an evaluation: SDXL's on a gaming GPU


class Noted(NamedTuple):
    """A run: what its workers noted, their stages, and what units cost."""

    traces: list[list[Any]]
    stages: tuple[Stage, ...]
    costs: list[float]
    num_async: int

    def step(self, machine: Machine) -> float:
        """An async round, against the slowest stage."""
        times = StreamTime(self.traces, self.costs, machine)
        slowest = slowest_stage([list(stage) for stage in self.stages], self.costs)
        return step_seconds(times.results, self.num_async - 3) / slowest


Record = Callable[..., Noted]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Record]:
    groups: dict[tuple[str, int], tuple[WorkerGroup, Path, list[int]]] = {}
    draw = random.Random(5)
    # By the number of latents in a batch, so that a group can be asked for all of them.
    costs = {
        name: {
            str(batch): [draw.uniform(0.3, 1.0) for _ in Trunk.of(model, model.layout).units]
            for batch in range(1, NUM_COSTS + 1)
        }
        for name in ("chain", "skipnet")
        for model in [make_model(name)]
    }

    def make(name: str, num_workers: int) -> tuple[WorkerGroup, Path, list[int]]:
        folder = tmp_path_factory.mktemp("noted")
        model = make_model(name)
        trunk = Trunk.of(model, model.layout)
        spec = {"model": name, "traces": str(folder), "costs": costs[name]}
        units = tuple(unit.name for unit in trunk.units)
        source = ModelSource(name, "harness.recording:build", spec, units, trunk.skips)
        group = WorkerGroup(make_plan(("cpu",) * num_workers), source, LAUNCH, folder=folder)
        group.start()
        return group, folder, [0]

    def get(
        name: str,
        *,
        stages: int,
        stride: int = 1,
        schedule: AsyncSchedule = PUBLISHED,
        batch: int = 1,
        guidance: bool = False,
        num_async: int = 8,
    ) -> Noted:
        num_workers = stages + stride - 1
        if (name, num_workers) not in groups:
            groups[name, num_workers] = make(name, num_workers)
        group, folder, num_runs = groups[name, num_workers]
        group.set_plan(make_plan(("cpu",) * num_workers, stages=stages, stride=stride, replicas=1))
        number = 2 + num_async
        calls = unbatched(name, number) if guidance else batched(name, number, batch)
        group.prepare(calls[0].args, calls[0].kwargs)
        evaluate_all(group, schedule, calls)
        num_runs[0] += 1
        traces = [
            json.loads((folder / f"run-{num_runs[0]}-worker-{rank}.json").read_text())
            for rank in range(num_workers)
        ]
        found = [group.holdings.stages[min(rank, stages - 1)] for rank in range(num_workers)]
        return Noted(traces, tuple(found), costs[name][str(batch)], num_async)

    yield get
    for group, *_ in groups.values():
        group.close()


# A step is as long as its slowest stage ------------------------------------------------------


@pytest.mark.parametrize("links", ["ring", "nccl"])
@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_a_step_takes_its_slowest_stage(record: Record, name: str, stages: int, links: Any) -> None:
    for batch in range(1, NUM_COSTS + 1):
        noted = record(name, stages=stages, batch=batch)
        transfer = SHARE * sum(noted.costs)
        assert noted.step(Machine(links)) < 1.0 + 1e-9
        assert noted.step(Machine(links, transfer=transfer)) < 1.1


@pytest.mark.parametrize("stages", [3, 4])
def test_waiting_for_the_whole_device_costs_the_third_gpu(record: Record, stages: int) -> None:
    """What the end of a stage once waited for: the message that comes when its neighbour is done.

    This shows that the times here would tell.
    """
    found = [
        record("skipnet", stages=stages, batch=batch).step(Machine("nccl", "device"))
        for batch in range(1, NUM_COSTS + 1)
    ]
    assert max(found) > 1.3 and sum(found) / len(found) > 1.1


# Random runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_random_runs_end(record: Record, seed: int) -> None:
    """Sends and receives match, nobody waits in a circle, and no message is early."""
    draw = random.Random(seed)
    stages = draw.randint(2, 4)
    stride = draw.randint(1, 5 - stages)
    schedule = AsyncSchedule(
        draw.randint(1, 3),
        prediction=draw.random() < 0.5,
        cool_down=draw.randint(0, 2),
    )
    noted = record(
        draw.choice(["chain", "skipnet"]),
        stages=stages,
        stride=stride,
        schedule=schedule,
        batch=draw.randint(1, NUM_COSTS),
        guidance=draw.random() < 0.3,
    )
    ends: Any
    for ends in (("ring", "stream"), ("nccl", "stream")):
        times = StreamTime(noted.traces, noted.costs, Machine(*ends, transfer=0.01))
        results = times.results
        assert results == sorted(results) and results[0] > 0


# Each rule counts ----------------------------------------------------------------------------


def changed(noted: Noted, change: Callable[[list[Any]], list[Any]]) -> Noted:
    return noted._replace(traces=[change(trace) for trace in noted.traces])


def without(noted: Noted, what: str) -> Noted:
    """One of the calls left out, in the middle of the first trace that has it."""
    traces = [list(trace) for trace in noted.traces]
    trace = next(trace for trace in traces if any(event[0] == what for event in trace))
    where = [index for index, event in enumerate(trace) if event[0] == what]
    del trace[where[len(where) // 2]]
    return noted._replace(traces=traces)


@pytest.mark.parametrize("links", ["ring", "nccl"])
@pytest.mark.parametrize("what", ["send", "post"])
def test_a_message_without_its_other_end(record: Record, what: str, links: Any) -> None:
    noted = without(record("chain", stages=3), what)
    with pytest.raises(StuckError):
        StreamTime(noted.traces, noted.costs, Machine(links))


def test_another_order_in_nccls_queue(record: Record) -> None:
    """Of two workers around each other one receives first and the other one, too."""

    def late_sends(trace: list[Any]) -> list[Any]:
        found = list(trace)
        for index in range(len(found) - 1):
            if found[index][0] == "send" and found[index + 1][0] == "post":
                found[index], found[index + 1] = found[index + 1], found[index]
        return found

    noted = record("skipnet", stages=2)
    StreamTime(noted.traces, noted.costs, Machine("nccl"))
    swapped = changed(noted, late_sends)
    with pytest.raises(StuckError):
        StreamTime(swapped.traces, swapped.costs, Machine("nccl"))


def test_a_wait_for_the_message_of_the_same_round(record: Record) -> None:
    """Then stages work one behind the other: an async round is as long as a sync one."""

    def newest(trace: list[Any]) -> list[Any]:
        last: dict[Any, int] = {}
        found = []
        for event in trace:
            if event[0] == "post":
                last[tuple(event[1])] = event[2]
            found.append(
                [event[0], event[1], last[tuple(event[1])]] if event[0] == "wait" else event
            )
        return found

    noted = record("chain", stages=3)
    assert changed(noted, newest).step(Machine()) > 1.5 > 1.1 > noted.step(Machine())
