"""Workers that write down what they tell their devices and links, for harness/stream_time.py.

`build` is the builder of such a worker. The worker's own loop runs, on the CPU and with real
links; every call that would order work on a GPU is noted, in the order in which the host makes it:

- ``["evaluate"]``, ``["result"]``: a request of the host begins; its result is taken;
- ``["compute", unit]``;
- ``["free" | "send" | "post" | "wait", link, number]``: see link.Sender and link.Receiver;
  a link is ``[from rank, to rank, how many were opened there before, how many messages are kept]``;
- ``["finish"]``: the host waits for the device.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import torch

from asyncdiff_core.links.engines import Engine
from asyncdiff_core.links.transport import Transport
from asyncdiff_core.workers import worker

from .toys import ToyStageModel

Event = list[Any]


class RecordingEngine(Engine):
    """The CPU, which waits for nothing, and says where a GPU would."""

    def __init__(self, device: torch.device, trace: list[Event]) -> None:
        super().__init__(device)
        self._trace = trace

    def finish(self) -> None:
        self._trace.append(["finish"])


class RecordingEnd:
    """One end of a link."""

    def __init__(self, end: Any, link: Event, trace: list[Event]) -> None:
        self._end, self._link, self._trace = end, link, trace
        self.slots, self.drain = end.slots, end.drain

    def __getattr__(self, name: str) -> Any:
        do = getattr(self._end, name)
        if name == "num_kept":
            return do

        def noted(number: int) -> None:
            self._trace.append([name, self._link, number])
            do(number)

        return noted


class RecordingTransport(Transport):
    """Notes what its links are told."""

    trace: list[Event]

    def __init__(self, rank: int, *args: Any, **options: Any) -> None:
        super().__init__(rank, *args, **options)
        self._rank = rank
        self._opened: collections.Counter[tuple[int, int]] = collections.Counter()

    def _link(self, source: int, target: int, num_kept: int) -> Event:
        self._opened[source, target] += 1
        return [source, target, self._opened[source, target], num_kept]

    def open(self, rank: int, nbytes: int, num_kept: int, told: Any) -> Any:
        end = super().open(rank, nbytes, num_kept, told)
        return RecordingEnd(end, self._link(self._rank, rank, num_kept), self.trace)

    def accept(self, rank: int, num_kept: int) -> Any:
        end, *rest = super().accept(rank, num_kept)
        return RecordingEnd(end, self._link(rank, self._rank, num_kept), self.trace), *rest


def build(spec: dict[str, Any], device: torch.device) -> ToyStageModel:
    """A toy's model. `spec` has `traces` too: the folder for what is noted, by run and worker."""
    trace: list[Event] = []
    folder = Path(spec["traces"])
    evaluate, end_run = worker.Worker._evaluate, worker.Worker._end_run
    connect = worker.Worker._connect
    num_runs = 0

    def noted_evaluate(self: Any, request: Any) -> None:
        trace.append(["evaluate"])
        evaluate(self, request)

    def noted_end(self: Any, request: Any) -> Any:
        nonlocal num_runs
        answer = end_run(self, request)
        num_runs += 1
        path = folder / f"run-{num_runs}-worker-{self._config.rank}.json"
        path.write_text(json.dumps(trace))
        trace.clear()
        return answer

    def noted_connect(self: Any, request: Any) -> Any:
        answer = connect(self, request)
        trace.clear()  # of the test of links
        return answer

    def result(*args: Any) -> Any:
        trace.append(["result"])
        return make_result(*args)

    make_result = worker.requests.Result
    worker.engine_for = lambda device: RecordingEngine(device, trace)  # type: ignore[assignment]
    RecordingTransport.trace = trace
    worker.Transport = RecordingTransport  # type: ignore[misc]
    worker.Worker._evaluate = noted_evaluate  # type: ignore[method-assign]
    worker.Worker._connect = noted_connect  # type: ignore[method-assign]
    worker.Worker._end_run = noted_end  # type: ignore[method-assign]
    worker.requests.Result = result  # type: ignore[misc, assignment]
    return RecordingModel(spec, device, trace)


class RecordingModel(ToyStageModel):
    """Notes which units are computed."""

    def __init__(self, spec: dict[str, Any], device: torch.device, trace: list[Event]) -> None:
        super().__init__(spec, device)
        self._trace = trace

    def _with_options(self, index: int, forward: Any) -> Any:
        inner = super()._with_options(index, forward)

        def unit_forward(*args: Any) -> Any:
            self._trace.append(["compute", index])
            return inner(*args)

        return unit_forward
