"""How long a run would take on GPUs: what workers noted (recording.py), under stream semantics.

Each worker has a host, which says what is to be done, and a stream that computes; what links copy
goes beside both. Times follow from costs of units and of messages that are given; nothing is
measured. What can never happen, since two wait for each other or a message is sent that nobody
receives, is an error.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from asyncdiff_core.links.over_socket import NUM_SLOTS
from asyncdiff_core.links.ring import NUM_COMING

from .recording import Event

Key = tuple[Any, ...]
Process = Iterator[Key]


class StuckError(Exception):
    """Nothing can go on."""


@dataclass(frozen=True)
class Machine:
    """How a device and its links behave.

    Attributes:
        links: ``ring``: by memory of the host, copied beside everything; ``nccl``: each two workers
            have one queue for both directions, in which a message waits for the one before it.
        finish: what the host waits for at the end of a stage: the ``stream`` that computes, or all
            that the ``device`` was told to do, what it is to receive among it.
        transfer: seconds of a message.
    """

    links: Literal["ring", "nccl"] = "ring"
    finish: Literal["stream", "device"] = "stream"
    transfer: float = 0.0


@dataclass
class _Worker:
    rank: int
    host: float = 0.0
    stream: float = 0.0
    told: list[Key] = field(default_factory=list)  # what else the device does, by when it is done


class StreamTime:
    """The moments of a run, of which `results` are told.

    Args:
        traces: of all workers, by rank.
        costs: seconds of each unit.

    Raises:
        StuckError: it would never end.
    """

    def __init__(
        self, traces: Sequence[Sequence[Event]], costs: Sequence[float], machine: Machine
    ) -> None:
        self._costs, self._machine = costs, machine
        self._at: dict[Key, float] = {}
        # By worker and other end: the messages either way, in the order of NCCL's queue.
        self._queues: dict[tuple[int, int], list[Key]] = collections.defaultdict(list)
        # By request: the workers that give a result.
        self._yields: dict[int, list[int]] = collections.defaultdict(list)
        for rank, trace in enumerate(traces):
            for number, events in enumerate(_rounds(trace)):
                if ["result"] in events:
                    self._yields[number].append(rank)
        waiting: dict[Process, Key] = {}
        processes: list[Process] = [
            self._run(_Worker(rank), trace) for rank, trace in enumerate(traces)
        ]
        self._new: list[Process] = processes
        while self._new or waiting:
            ready, self._new = self._new, []
            ready += [process for process, key in waiting.items() if key in self._at]
            if not ready:
                raise StuckError(f"these wait for ever: {sorted(map(str, waiting.values()))}")
            for process in ready:
                waiting.pop(process, None)
                key = self._advance(process)
                if key is not None:
                    waiting[process] = key
        if machine.links == "nccl":
            self._require_matching_queues()

    def _advance(self, process: Process) -> Key | None:
        """Let a process go on; what it waits for, or None at its end."""
        for key in process:
            if key not in self._at:
                return key
        return None

    @property
    def results(self) -> list[float]:
        """When each evaluation had its result."""
        return [self._result(number) for number in sorted(self._yields)]

    def _result(self, number: int) -> float:
        return max(self._at["result", number, rank] for rank in self._yields[number])

    # The host of a worker ----------------------------------------------------------------------

    def _run(self, worker: _Worker, trace: Sequence[Event]) -> Process:
        for number, events in enumerate(_rounds(trace)):
            before = max((n for n in self._yields if n < number), default=None)
            if before is not None:  # ComfyUI asks when it has the results of the round before
                for rank in self._yields[before]:
                    yield "result", before, rank
                worker.host = max(worker.host, self._result(before))
            for what, *about in events:
                if what == "result":
                    worker.host = max(worker.host, worker.stream)
                    self._at["result", number, worker.rank] = worker.host
                else:
                    yield from getattr(self, f"_{what}")(worker, *about)

    def _compute(self, worker: _Worker, unit: int) -> Process:
        worker.stream = max(worker.stream, worker.host) + self._costs[unit]
        return iter(())

    def _finish(self, worker: _Worker) -> Process:
        worker.host = max(worker.host, worker.stream)
        for key in worker.told if self._machine.finish == "device" else ():
            yield key
            worker.host = max(worker.host, self._at[key])

    def _free(self, worker: _Worker, link: Event, number: int) -> Process:
        if number >= NUM_SLOTS:
            key = "sent", *link, number - NUM_SLOTS
            yield key
            if self._machine.links == "ring":
                worker.host = max(worker.host, self._at[key])
            else:
                worker.stream = max(worker.stream, self._at[key])

    def _send(self, worker: _Worker, link: Event, number: int) -> Process:
        written = max(worker.stream, worker.host)
        if self._machine.links == "ring":
            self._new.append(self._ring_send(link, number, written))
        else:
            self._enqueue(worker, link[1], "sent", link, number, written)
        return iter(())

    def _post(self, worker: _Worker, link: Event, number: int) -> Process:
        if self._machine.links == "ring":
            self._new.append(self._ring_receive(worker, link, number, worker.host, worker.stream))
        else:
            self._enqueue(worker, link[0], "there", link, number, worker.host)
        return iter(())

    def _wait(self, worker: _Worker, link: Event, number: int) -> Process:
        key = "there", *link, number
        yield key
        worker.stream = max(worker.stream, worker.host, self._at[key])
        if self._machine.links == "ring":
            worker.host = max(worker.host, self._at[key])

    # Links -------------------------------------------------------------------------------------

    def _ring_send(self, link: Event, number: int, written: float) -> Process:
        start = written
        keys: list[Key] = [("sent", *link, number - 1)] if number else []
        num_slots = link[3] + NUM_COMING
        keys += [("given back", *link, number - num_slots)] if number >= num_slots else []
        for key in keys:
            yield key
            start = max(start, self._at[key])
        self._at[("sent", *link, number)] = start + self._machine.transfer

    def _ring_receive(
        self, worker: _Worker, link: Event, number: int, posted: float, past: float
    ) -> Process:
        start = posted
        if number:
            yield "there", *link, number - 1
            start = max(start, self._at[("there", *link, number - 1)])
        if number > link[3]:
            self._at[("given back", *link, number - link[3] - 1)] = start
        yield "sent", *link, number
        start = max(start, past, self._at[("sent", *link, number)])
        self._at[("there", *link, number)] = start + self._machine.transfer
        worker.told.append(("there", *link, number))

    def _enqueue(
        self, worker: _Worker, other: int, what: str, link: Event, number: int, said: float
    ) -> None:
        """Put a message into NCCL's queue of a pair of workers."""
        queue = self._queues[worker.rank, other]
        before = queue[-1] if queue else None
        key = what, *link, number
        queue.append(key)
        worker.told.append(key)
        self._new.append(self._nccl(key, before, said))

    def _nccl(self, key: Key, before: Key | None, said: float) -> Process:
        what, *message = key
        start = said
        if before is not None:
            yield before
            start = max(start, self._at[before])
        self._at[("begun", *key)] = start
        other = "begun", "there" if what == "sent" else "sent", *message
        yield other
        self._at[key] = max(start, self._at[other]) + self._machine.transfer

    def _require_matching_queues(self) -> None:
        for (one, other), queue in self._queues.items():
            if [key[1:] for key in queue] != [key[1:] for key in self._queues[other, one]]:
                raise StuckError(f"workers {one} and {other} queue their messages in other orders")


def _rounds(trace: Sequence[Event]) -> Iterator[list[Event]]:
    """What belongs to each request."""
    events: list[Event] = []
    for event in trace:
        if event == ["evaluate"]:
            if events:
                yield events[1:]
            events = []
        events.append(event)
    if events:
        yield events[1:]


def step_seconds(results: Sequence[float], num_last: int) -> float:
    """The mean time from one result to the next, of the last ones."""
    return (results[-1] - results[-1 - num_last]) / num_last


def slowest_stage(stages: Sequence[Sequence[tuple[int, int]]], costs: Sequence[float]) -> float:
    """Seconds of the stage that takes longest."""
    return max(sum(sum(costs[start:stop]) for start, stop in stage) for stage in stages)
