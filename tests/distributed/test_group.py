"""A group of real workers gives the oracle's bits, whatever is asked of it between two runs."""

import dataclasses
import ipaddress
import logging
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff_core.algorithm.evaluator import Forecast
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.stages import Stage, units_of
from asyncdiff_core.algorithm.trunk import Trunk, parameter_bytes
from asyncdiff_core.errors import AsyncDiffError, UnsupportedPatchError, WorkerLinkError
from asyncdiff_core.wire import requests
from asyncdiff_core.wire.requests import Ready
from asyncdiff_core.workers.group import WorkerGroup
from asyncdiff_core.workers.process import WorkerProcess
from harness.cuts import chain
from harness.groups import (
    Cancelled,
    Gate,
    batched,
    by_oracle,
    call,
    equal,
    evaluate_all,
    pids_of,
    plain,
    run,
    stages_of,
    unbatched,
    wait_until,
)
from harness.toys import make_model

MODELS = ("chain", "skipnet")


def assert_is_oracle(
    group: WorkerGroup, name: str, schedule: AsyncSchedule, calls: list[Any], **patch: float
) -> list[torch.Tensor]:
    outputs, report = run(group, schedule, calls)
    assert equal(outputs, by_oracle(name, stages_of(report), schedule, calls, **patch))
    return outputs


# The same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [batched, unbatched])
@pytest.mark.parametrize("warm_up", [1, 3])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_a_group_equals_the_oracle(
    shared_group: Any, name: str, num_stages: int, warm_up: int, guidance: Any
) -> None:
    calls = guidance(name, 8)
    group = shared_group(name, num_stages)
    outputs = assert_is_oracle(group, name, AsyncSchedule(warm_up), calls)

    synchronous = plain(name, calls)
    num_sync = warm_up * len({one.lane for one in calls})
    assert equal(outputs[:num_sync], synchronous[:num_sync])
    stale = zip(outputs[num_sync:], synchronous[num_sync:], strict=True)
    assert not any(torch.equal(a, b) for a, b in stale)  # it really was asynchronous


@pytest.mark.parametrize("name", MODELS)
def test_over_sockets(own_group: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As where no memory can be shared."""
    monkeypatch.setenv("ASYNCDIFF_BACKEND", "socket")
    group = own_group(name, 3)
    for guidance in (batched, unbatched):
        assert_is_oracle(group, name, AsyncSchedule(2), guidance(name, 8))
    assert group.members.links == "socket"


@pytest.mark.usefixtures("every_backend")
@pytest.mark.parametrize(
    ("bad", "text", "links"),
    [
        ("corrupt", "ring: what came from worker 1 is not what it sent", "socket"),
        ("silent", "ring: no message within 1 s", "socket"),
        ("none", None, "ring"),  # link by link, which each worker's log says
    ],
)
def test_links_that_do_not_work(
    own_group: Any, caplog: pytest.LogCaptureFixture, bad: str, text: str | None, links: str
) -> None:
    """The next backend serves, which the log says once, and the bits are the same."""
    group = own_group("skipnet", 3, bad=bad, builder="harness.bad_links:build")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert_is_oracle(group, "skipnet", AsyncSchedule(2), batched("skipnet", 6))
    assert group.members.links == links
    assert caplog.text.count("cannot be connected") == (text is not None)
    assert caplog.text.count(f"workers are connected by {links}") == 1
    assert text is None or text in caplog.text


@pytest.mark.usefixtures("every_backend")
def test_no_links_that_work(own_group: Any) -> None:
    group = own_group("chain", 2, bad="all", builder="harness.bad_links:build")
    with pytest.raises(WorkerLinkError, match=r"ring: what came .*; socket: what came .* ASYNC"):
        run(group, AsyncSchedule(1), batched("chain", 3))
    assert group.broken


def test_a_unet_folded_and_not(own_group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both equal the oracle, and the plain model at full warm-up; stale, they are two results."""
    group = own_group("skipnet", 3)
    calls = batched("skipnet", 6)
    found = []
    for wanted, num_ranges in (("1", [1, 2, 2]), ("0", [1, 1, 1])):
        monkeypatch.setenv("ASYNCDIFF_FOLD", wanted)
        group.unload()
        found.append(assert_is_oracle(group, "skipnet", AsyncSchedule(2), calls))
        assert [len(stage) for stage in group.holdings.stages] == num_ranges
        assert equal(run(group, AsyncSchedule(6), calls)[0], plain("skipnet", calls))
    assert not any(torch.equal(a, b) for a, b in zip(*(o[2:] for o in found), strict=True))


@pytest.mark.parametrize("guidance", [batched, unbatched])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_full_warm_up_equals_the_plain_model(
    shared_group: Any, name: str, num_stages: int, guidance: Any
) -> None:
    calls = guidance(name, 4)
    outputs, _ = run(shared_group(name, num_stages), AsyncSchedule(warm_up=4), calls)
    assert equal(outputs, plain(name, calls))


@pytest.mark.parametrize("name", MODELS)
def test_ten_repeats_give_identical_bits(shared_group: Any, name: str) -> None:
    group = shared_group(name, 3)
    calls = unbatched(name, 10)
    first, _ = run(group, AsyncSchedule(warm_up=1), calls)
    for _ in range(9):
        assert equal(run(group, AsyncSchedule(warm_up=1), calls)[0], first)


@pytest.mark.parametrize("num_stages", [2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_modes_may_alternate(shared_group: Any, name: str, num_stages: int) -> None:
    """Where sigma jumps up, a lane goes back to a synchronous evaluation."""
    sigmas = (9.0, 8.0, 7.0, 8.0, 9.0, 1.0, 2.0, 1.0, 0.5, 0.8, 0.3, 0.1)
    calls = [
        one._replace(forecast=Forecast(sigmas[i // 2], (), lambda *_: ((), {})))
        for i, one in enumerate(unbatched(name, 12))
    ]
    outputs, report = run(shared_group(name, num_stages), AsyncSchedule(), calls)
    assert equal(outputs, by_oracle(name, stages_of(report), AsyncSchedule(), calls))
    synchronous = plain(name, calls)
    found = {i // 2 for i in range(24) if torch.equal(outputs[i], synchronous[i])}
    assert found == {0, 3, 4, 6, 9}
    assert {one.index for one in report.evaluations if one.mode == "sync"} == found


@pytest.mark.parametrize("name", MODELS)
def test_lanes_come_late_rest_and_differ_in_size(shared_group: Any, name: str) -> None:
    order = "aabacbbcaaacccb"
    calls = [call(name, lane, i, batch="abc".index(lane) + 1) for i, lane in enumerate(order)]
    assert_is_oracle(shared_group(name, 3), name, AsyncSchedule(warm_up=2), calls)


def test_activations_beyond_every_buffer(shared_group: Any) -> None:
    """10 MB a message: what is sent cannot just wait in the kernel until somebody takes it."""
    calls = batched("chain", 6, batch=20_000)
    assert_is_oracle(shared_group("chain", 3), "chain", AsyncSchedule(warm_up=2), calls)


def test_several_runs_on_one_group(shared_group: Any) -> None:
    group = shared_group("skipnet", 2)
    for warm_up, guidance, steps in ((1, batched, 5), (3, unbatched, 4), (9, batched, 2)):
        calls = guidance("skipnet", steps)
        assert_is_oracle(group, "skipnet", AsyncSchedule(warm_up), calls)


def test_runs_of_any_length_end_cleanly(shared_group: Any) -> None:
    """However many messages are on their way when a run ends."""
    group = shared_group("chain", 3)
    calls = batched("chain", 8)
    expected, _ = run(group, AsyncSchedule(warm_up=2), calls)
    for steps in range(1, 8):
        outputs, _ = run(group, AsyncSchedule(warm_up=2), calls[:steps])
        assert equal(outputs, expected[:steps])


def test_a_run_without_an_evaluation(own_group: Any) -> None:
    group = own_group("chain", 2)
    calls = batched("chain", 3)
    for cold in (True, False):
        group.begin_run(AsyncSchedule())
        group.end_run()
        outputs, report = run(group, AsyncSchedule(), calls)
        assert equal(outputs, by_oracle("chain", stages_of(report), AsyncSchedule(), calls))
        assert report.cold is cold


def test_the_group_leaves_the_inputs_alone(shared_group: Any) -> None:
    (one,) = batched("chain", 1)
    before = one.kwargs["context"].clone(), one.args[0].clone()
    run(shared_group("chain", 2), AsyncSchedule(), [one])
    assert torch.equal(one.kwargs["context"], before[0]) and torch.equal(one.args[0], before[1])


def test_unchanged_conditioning_is_not_sent_again(shared_group: Any) -> None:
    group = shared_group("chain", 2)
    calls = batched("chain", 3)
    for i, one in enumerate(calls):  # new tensors of the same content, as from a sampler
        calls[i] = one._replace(kwargs={**one.kwargs, "context": torch.ones(2, 1000, 16)})
    group.prepare(calls[0].args, calls[0].kwargs)
    group.begin_run(AsyncSchedule())
    sent = []
    for one in calls:
        before = [member.process.bytes_sent for member in group.members]
        group.evaluate(*one)
        after = [member.process.bytes_sent for member in group.members]
        sent += [b - a for a, b in zip(before, after, strict=True)]
    group.end_run()
    assert all(size > 128_000 for size in sent[:2])
    assert all(size < 10_000 for size in sent[2:]) and len(sent) == 6


# Cuts ----------------------------------------------------------------------------------------

# Other costs for other batch sizes: the cut moves from unit 4 to unit 2.
COSTS = {"1": [1.0, 1, 1, 1, 2, 2], "2": [2.0, 2, 1, 1, 1, 1], "3": [1.0, 1, 1, 1, 2, 2]}


def cuts_logged(caplog: pytest.LogCaptureFixture) -> int:
    return sum("cut into" in record.getMessage() for record in caplog.records)


def test_other_shapes_are_cut_otherwise(
    shared_group: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="asyncdiff")
    group = shared_group("chain", 2, costs=COSTS)
    schedule = AsyncSchedule(warm_up=2)
    first: dict[int, Any] = {}
    for batch, units, num_loads in (
        (1, ((0, 4), (4, 6)), 1),
        (2, ((0, 2), (2, 6)), 2),
        (1, ((0, 4), (4, 6)), 3),
        (3, ((0, 4), (4, 6)), 3),  # other shapes, but the same cut: the workers keep their units
        (1, ((0, 4), (4, 6)), 3),
        (1, ((0, 4), (4, 6)), 3),
    ):
        calls = batched("chain", 5, batch)
        outputs, report = run(group, schedule, calls)
        assert stages_of(report) == chain(*units)
        assert equal(outputs, by_oracle("chain", chain(*units), schedule, calls))
        assert equal(first.setdefault(batch, outputs), outputs)
        assert cuts_logged(caplog) == num_loads


def test_patches_come_back_after_another_cut(shared_group: Any) -> None:
    group = shared_group("chain", 2, costs=COSTS)
    schedule = AsyncSchedule()
    for batch in (1, 2, 1):
        calls = batched("chain", 4, batch)
        group.prepare(calls[0].args, calls[0].kwargs)
        group.holdings.set_patches("the same", lambda stage: {"add": 0.03})
        assert_is_oracle(group, "chain", schedule, calls, add=0.03)
    group.holdings.set_patches("none", lambda stage: None)
    for batch in (1, 2):
        calls = batched("chain", 4, batch)
        group.prepare(calls[0].args, calls[0].kwargs)
        group.holdings.set_patches("none", lambda stage: None)
        assert_is_oracle(group, "chain", schedule, calls)


# Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_patches_set_and_removed(shared_group: Any, name: str) -> None:
    group = shared_group(name, 3)
    calls = batched(name, 4)
    schedule = AsyncSchedule(warm_up=2)
    asked: list[Stage] = []

    def payload(add: float | None) -> Any:
        def of_units(stage: Stage) -> Any:
            asked.append(stage)
            return None if add is None else {"add": add}

        return of_units

    group.prepare(calls[0].args, calls[0].kwargs)
    group.holdings.set_patches("none", payload(None))
    asked.clear()
    before = assert_is_oracle(group, name, schedule, calls)

    group.holdings.set_patches("a", payload(0.01))
    with_a = assert_is_oracle(group, name, schedule, calls, add=0.01)
    assert not any(torch.equal(x, y) for x, y in zip(with_a, before, strict=True))
    group.holdings.set_patches("a", payload(0.5))  # the same name: nothing to do
    assert equal(run(group, schedule, calls)[0], with_a)
    group.holdings.set_patches("b", payload(0.7))  # in place of "a", not on top of it
    assert_is_oracle(group, name, schedule, calls, add=0.7)
    group.holdings.set_patches("none", payload(None))
    after, report = run(group, schedule, calls)
    assert equal(after, before)
    assert asked == [*stages_of(report)] * 3


def test_unload_and_evaluate_again(shared_group: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="asyncdiff")
    group = shared_group("skipnet", 3)
    calls = unbatched("skipnet", 4)
    before, _ = run(group, AsyncSchedule(), calls)
    assert group.holdings.are_loaded
    caplog.clear()
    for _ in range(2):
        group.unload()
        group.unload()
        assert not group.holdings.are_loaded and group.is_alive()
        assert equal(run(group, AsyncSchedule(), calls)[0], before)
        assert group.holdings.are_loaded
    assert cuts_logged(caplog) == 2


def test_unload_in_the_middle_of_a_run(shared_group: Any) -> None:
    """As ComfyUI does when something else in the prompt runs out of memory."""
    group = shared_group("chain", 3)
    calls = batched("chain", 4)
    expected, _ = run(group, AsyncSchedule(), calls)
    group.begin_run(AsyncSchedule())
    assert equal([group.evaluate(*one) for one in calls[:2]], expected[:2])
    group.unload()
    assert group.is_alive() and not group.holdings.are_loaded
    # The stored activations are still there, so that the run can go on once they load again.
    group.restore()
    assert equal([group.evaluate(*one) for one in calls[2:]], expected[2:])
    group.unload()
    group.end_run()
    assert group.is_alive() and not group.holdings.are_loaded
    assert equal(run(group, AsyncSchedule(), calls)[0], expected)


def test_what_one_device_gives_back_the_others_keep(
    shared_group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three workers, as if each had a card of its own."""
    group = shared_group("chain", 3)
    calls = batched("chain", 4)
    expected, _ = run(group, AsyncSchedule(), calls)
    group.holdings.set_patches("a", lambda stage: {"add": 0.01})
    patched, _ = run(group, AsyncSchedule(), calls)
    for rank, member in enumerate(group.members):
        monkeypatch.setattr(member.process, "device", f"cuda:{rank}")
    asked: list[tuple[str, int]] = []
    post = group.members.exchange.post

    def counted(requests: Any) -> int:
        requests = list(requests)
        for process, request in requests:
            asked.append((type(request).__name__, int(process.device[-1])))
        return int(post(requests))

    monkeypatch.setattr(group.members.exchange, "post", counted)
    taken = group.holdings.bytes_on("cuda:1")
    assert group.unload("cuda:1") == taken > 0
    assert group.unload("cuda:1") == group.unload("cuda:7") == 0
    assert not group.holdings.are_loaded and not group.holdings.are_on("cuda:1")
    assert group.holdings.are_on("cuda:0") and group.holdings.are_on("cuda:2")
    assert asked == [("Unload", 1)]
    assert group.members[1].waiting_bytes == 7  # they may wait where they are at hand

    # It alone loads again, and is patched again.
    asked.clear()
    group.restore()
    group.holdings.set_patches("a", lambda stage: {"add": 0.01})
    assert asked == [("Load", 1), ("Patch", 1)]
    again, _ = run(group, AsyncSchedule(), calls)
    assert equal(again, patched) and not equal(again, expected)
    # In the middle of a run as well.
    group.begin_run(AsyncSchedule())
    assert equal([group.evaluate(*one) for one in calls[:2]], patched[:2])
    assert group.unload("cuda:0") and group.unload("cuda:2")
    group.restore()
    group.holdings.set_patches("a", lambda stage: {"add": 0.01})
    assert equal([group.evaluate(*one) for one in calls[2:]], patched[2:])
    assert group.unload("cuda:1")
    group.end_run()
    # What waits is given back as well where everything is.
    asked.clear()
    assert group.unload() and [rank for _, rank in asked] == [0, 1, 2]
    assert not any(member.waiting_bytes for member in group.members)
    group.restore()
    group.holdings.set_patches("none", lambda stage: None)


def test_no_worker_holds_more_than_its_stage(shared_group: Any) -> None:
    model = make_model("skipnet")
    units = [unit.module for unit in Trunk.of(model, model.layout).units]
    shared = parameter_bytes([model]) - parameter_bytes(units)
    _, report = run(shared_group("skipnet", 4), AsyncSchedule(), batched("skipnet", 2))
    for worker in report.workers:
        held = [units[index] for index in units_of(worker.units)]
        assert worker.weight_bytes == parameter_bytes(held) > 0
        assert worker.shared_bytes == shared
    assert sum(worker.weight_bytes for worker in report.workers) == parameter_bytes(units)


# Cancel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_cancelled_runs_leave_the_group_usable(own_group: Any, gate: Gate, name: str) -> None:
    group = own_group(name, 3, gate=str(gate.folder), poll=gate.poll)
    calls = unbatched(name, 6)
    schedule = AsyncSchedule(warm_up=2)
    expected, report = run(group, schedule, calls)
    stages = stages_of(report)
    assert equal(expected, by_oracle(name, stages, schedule, calls))
    num_units = len(group.source.units)
    rng = random.Random(5)
    moments = [(i, rng.randrange(num_units)) for i in rng.sample(range(12), 7)]
    num_cancelled = 0
    for index, unit in [(0, 0), (1, num_units - 1), (11, num_units - 1), *moments]:
        seen = []
        group.begin_run(schedule)
        try:
            for i, one in enumerate(calls):
                if i == index:
                    gate.cancel_at(f"unit-{unit}")
                seen.append(group.evaluate(*one))
        except Cancelled:
            num_cancelled += 1
            assert index <= len(seen) < 12
        else:
            # The last result is there before the other stages have done the evaluation.
            assert unit not in units_of(stages[-1])
            gate.open(f"unit-{unit}")
        report = group.end_run()
        assert equal(seen, expected[: len(seen)])
        assert len(report.evaluations) == len(seen)
        # Every worker finished the evaluation that was cancelled, and none went on.
        spans = min(len(seen) + 1, 12)
        for worker in report.workers:
            assert len(worker.spans) == spans * len(worker.units)
        assert group.is_alive()
        if (index + unit) % 2:  # otherwise the next cancelled run comes right after this one
            assert equal(run(group, schedule, calls)[0], expected)
    assert num_cancelled >= 7
    assert equal(run(group, schedule, calls)[0], expected)


def test_a_cancelled_run_is_not_waited_for(own_group: Any, gate: Gate) -> None:
    """The workers finish the round by themselves, and what they are asked next comes after it."""
    group = own_group("chain", 3, gate=str(gate.folder), poll=gate.poll)
    calls = batched("chain", 5)
    schedule = AsyncSchedule(2)
    expected, report = run(group, schedule, calls)
    gated = f"unit-{stages_of(report)[-1][0][0]}"  # of the last stage, whose result is waited for
    for number in (1, 3):  # sync, async
        group.begin_run(schedule)
        assert equal([group.evaluate(*one) for one in calls[:number]], expected[:number])
        gate.close(gated)

        def cancel() -> None:
            raise Cancelled

        gate.then = cancel
        with pytest.raises(Cancelled):
            group.evaluate(*calls[number])
        assert group.end_run(wait=False) is None
        assert gate.is_waited_at() and group.is_alive()  # the last worker is at it still
        gate.open(gated)
        assert equal(run(group, schedule, calls)[0], expected)


def test_cancelled_while_loading(own_group: Any, gate: Gate) -> None:
    group = own_group("chain", 2, gate=str(gate.folder), poll=gate.poll)
    calls = batched("chain", 4)
    gate.cancel_at("loading")
    with pytest.raises(Cancelled):
        group.prepare(calls[0].args, calls[0].kwargs)
    assert not group.holdings.are_loaded and group.holdings.are_loading and group.is_alive()
    # The workers went on with it, and a second load, which would wait here, is not asked for.
    assert wait_until(lambda: not gate.is_waited_at(), 30)
    gate.close("loading")
    group.prepare(calls[0].args, calls[0].kwargs)
    gate.open("loading")
    assert_is_oracle(group, "chain", AsyncSchedule(), calls)


def test_cancelled_while_loading_and_unloaded(own_group: Any, gate: Gate) -> None:
    group = own_group("chain", 2, gate=str(gate.folder), poll=gate.poll)
    calls = batched("chain", 4)
    gate.cancel_at("loading")
    with pytest.raises(Cancelled):
        group.prepare(calls[0].args, calls[0].kwargs)
    assert group.unload() and not group.holdings.are_loading
    assert_is_oracle(group, "chain", AsyncSchedule(), calls)


def test_cancelled_while_starting(
    own_group: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is up already, the other one not yet: neither may be forgotten."""
    gate.close("starting")
    received: list[Any] = []
    receive = WorkerProcess.receive

    def listening(self: WorkerProcess, timeout: float) -> Any:
        received.append(receive(self, timeout))
        return received[-1]

    monkeypatch.setattr(WorkerProcess, "receive", listening)

    def poll() -> None:
        if (gate.folder / "starting").exists():
            if gate.is_waited_at() and any(isinstance(m, Ready) for m, _ in received):
                gate.open("starting")
                raise Cancelled
        elif sum(isinstance(m, Ready) for m, _ in received) == 2:
            polls.append(1)
            assert len(polls) < 200, "all workers are up, and it still waits"

    polls: list[int] = []
    group = own_group("chain", 2, gate=str(gate.folder), poll=poll)
    with pytest.raises(Cancelled):
        group.wait_until_ready()
    assert_is_oracle(group, "chain", AsyncSchedule(), batched("chain", 3))


def test_a_run_that_is_cancelled_while_the_workers_start(own_group: Any, gate: Gate) -> None:
    gate.close("starting")

    def poll() -> None:
        if (gate.folder / "starting").exists():
            gate.open("starting")
            raise Cancelled

    group = own_group("chain", 2, gate=str(gate.folder), poll=poll)
    calls = batched("chain", 3)
    group.begin_run(AsyncSchedule())
    with pytest.raises(Cancelled):
        group.prepare(calls[0].args, calls[0].kwargs)
    group.end_run()
    assert group.is_alive()
    assert_is_oracle(group, "chain", AsyncSchedule(), calls)


# Refusals ------------------------------------------------------------------------------------


def test_an_input_that_cannot_be_sent_does_not_break_the_group(shared_group: Any) -> None:
    group = shared_group("chain", 2)
    calls = batched("chain", 6)
    group.prepare(calls[0].args, calls[0].kwargs)
    group.begin_run(AsyncSchedule())
    outputs = [group.evaluate(*one) for one in calls[:3]]
    lane, args, kwargs, _ = calls[3]
    with pytest.raises(UnsupportedPatchError, match=r"\['hook'\] is a .*Gate"):
        group.evaluate(lane, args, {**kwargs, "hook": Gate(Path())})
    group.end_run()
    assert equal(outputs, run(group, AsyncSchedule(), calls)[0][:3])


def test_a_refused_evaluation_does_not_count(shared_group: Any) -> None:
    """Nothing was computed, so the lane goes on where it was."""
    group = shared_group("chain", 2)
    calls = batched("chain", 6)
    expected, _ = run(group, AsyncSchedule(), calls)
    group.begin_run(AsyncSchedule())
    outputs = [group.evaluate(*one) for one in calls[:3]]
    lane, args, kwargs, _ = calls[3]
    with pytest.raises(UnsupportedPatchError):
        group.evaluate(lane, args, {**kwargs, "hook": Gate(Path())})
    outputs += [group.evaluate(*one) for one in calls[3:]]
    group.end_run()
    assert equal(outputs, expected)


def test_a_closed_group_says_so(own_group: Any) -> None:
    group = own_group("chain", 2)
    calls = batched("chain", 1)
    run(group, AsyncSchedule(), calls)
    group.begin_run(AsyncSchedule())
    group.close()
    assert not group.is_alive() and not group.holdings.are_loaded
    with pytest.raises(AsyncDiffError):
        group.evaluate(*calls[0])
    assert group.end_run() is None


def test_the_end_of_a_run_leaves_the_answers_to_others_alone(own_group: Any) -> None:
    """Another thread has the weights given back at that moment, and waits for the answer."""
    group = own_group("chain", 2)
    calls = batched("chain", 2)
    run(group, AsyncSchedule(), calls)
    group.begin_run(AsyncSchedule())
    group.evaluate(*calls[0])
    ticket = group.members.post([requests.Unload()] * 2)
    group.end_run()
    assert len(group.members.collect(ticket, group.members, 10.0, poll=False)) == 2
    assert not group.members.exchange._awaited and not group.members.exchange._answers


def test_the_weights_of_a_run_stay(own_group: Any) -> None:
    """Who frees memory looked before the run began."""
    group = own_group("chain", 2)
    calls = batched("chain", 2)
    expected, _ = run(group, AsyncSchedule(), calls)
    group.begin_run(AsyncSchedule())
    assert not group.unload(unless_running=True)
    outputs = [group.evaluate(*call) for call in calls]
    group.end_run()
    assert equal(outputs, expected)
    assert group.unload(unless_running=True)


# Nobody else gets in ---------------------------------------------------------------------------

LISTEN = "0A"


def listening_addresses(pid: int) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses at which process `pid` accepts connections or datagrams."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:
            continue  # that by which the folder was read
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[9] in inodes and (table.startswith("udp") or fields[3] == LISTEN):
                words = bytes.fromhex(fields[1].partition(":")[0])
                # Each word of four bytes stands in the byte order of the machine.
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                yield ipaddress.ip_address(packed)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
def test_workers_listen_nowhere(shared_group: Any) -> None:
    """Nobody can connect to a link: its sockets are pairs that the host hands out."""
    with socket.create_server(("127.0.0.1", 0)):
        assert list(listening_addresses(os.getpid()))  # the search finds what there is
    group = shared_group("skipnet", 3)
    run(group, AsyncSchedule(), batched("skipnet", 2))
    assert [address for pid in pids_of(group) for address in listening_addresses(pid)] == []


# The report ----------------------------------------------------------------------------------


def test_the_report_says_what_was_done(shared_group: Any) -> None:
    group = shared_group("chain", 2)
    calls = unbatched("chain", 3)
    run(group, AsyncSchedule(), calls)
    _, report = run(group, AsyncSchedule(warm_up=2), calls)
    assert report.model == "Chain" and not report.cold
    plan = {"devices": ["cpu", "cpu"], "stages": 2, "replicas": 1, "stride": 1, "order": ()}
    assert report.plan == plan
    assert report.schedule == dataclasses.asdict(AsyncSchedule(warm_up=2))
    done = [(0, 0, "sync"), (0, 1, "sync"), (1, 0, "sync"), (1, 1, "sync")]
    done += [(2, 0, "async"), (2, 1, "async")]
    assert [(one.index, one.lane, one.mode) for one in report.evaluations] == done
    moments = [
        report.start,
        *(clock for one in report.evaluations for clock in (one.start, one.end)),
        report.end,
    ]
    assert moments == sorted(moments)
    assert report.first_step == report.evaluations[0].end
    for rank, worker in enumerate(report.workers):
        assert (worker.rank, worker.stage, worker.replica, worker.device) == (rank, rank, 0, "cpu")
        assert [(s.index, s.lane, s.mode) for s in worker.spans] == done
        for span in worker.spans:
            assert report.start <= span.start <= span.end
            assert span.wait >= 0 and span.compute >= 0
            assert span.wait + span.compute <= span.end - span.start + 1e-9
        assert worker.resident_bytes > 1 << 20
        assert 0 < worker.activation_bytes < worker.resident_bytes
        assert Path(worker.log_file).exists()
    names = [(("blocks.0", "blocks.2"),), (("blocks.3", "blocks.5"),)]
    assert [w.unit_names for w in report.workers] == names


def test_a_run_that_raises_still_ends(shared_group: Any) -> None:
    group = shared_group("chain", 2)
    calls = batched("chain", 3)
    group.prepare(calls[0].args, calls[0].kwargs)

    def failing() -> Any:
        yield calls[0]
        raise KeyError("somewhere in a sampler")

    with pytest.raises(KeyError):
        evaluate_all(group, AsyncSchedule(), failing())
    assert_is_oracle(group, "chain", AsyncSchedule(), calls)
