"""A worker's device: what it computes and copies in which order, and when.

On a GPU the host only says what is to be done. A moment is a point in that work; other work can be
put behind it, and it is known when it was reached. On the CPU all is done where it is said.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import torch

from ..log import get_logger

log = get_logger("links")


class Moment(Protocol):
    """A point in the work of a device."""

    def synchronize(self) -> None:
        """Wait until it is reached."""

    def query(self) -> bool:
        """Whether it is reached."""


class Engine:
    """The CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def begin(self) -> None:
        """A sampling run begins: `clock` tells of moments from now on."""

    def here(self) -> Moment:
        """Where the computing of this thread is now."""
        return Reached()

    def clock(self, moment: Moment) -> float:
        """When `moment`, which is reached, was: `time.perf_counter`."""
        return cast(Reached, moment).clock

    def finish(self) -> None:
        """Wait until what this thread has computed so far is done."""

    def follow(self, moment: Moment) -> None:
        """What this thread computes from now on comes behind `moment`."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Sequence[Moment]) -> Moment:
        """Copy between host and device, beside the computing and behind `after`; when it is done.

        Any thread may ask for it.
        """
        target.copy_(source)
        return self.here()

    def pin(self, memory: torch.Tensor) -> Callable[[], None]:
        """Have copies from and to memory of the host run beside it, if the system can; the end."""
        return lambda: None


class Reached:
    """A moment that is past."""

    def __init__(self) -> None:
        self.clock = time.perf_counter()

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def query(self) -> bool:
        """It is."""
        return True


class OtherEngine(Engine):
    """A device of which no more is known than how to wait for it. Clocks are the host's."""

    def finish(self) -> None:
        getattr(torch, self.device.type).synchronize()

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Sequence[Moment]) -> Moment:
        self.finish()
        target.copy_(source)
        self.finish()
        return self.here()


class CudaEngine(Engine):
    """A GPU. Copies have streams of their own, one in each direction."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._to_host, self._from_host = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.begin()

    def begin(self) -> None:
        # Nothing tells when a moment was, only how long after another one.
        self._first = cast(torch.cuda.Event, self.here())
        self._first.synchronize()
        self._first_clock = time.perf_counter()

    def here(self) -> Moment:
        return self._event(torch.cuda.current_stream(self.device))

    def clock(self, moment: Moment) -> float:
        milliseconds = float(self._first.elapsed_time(cast(torch.cuda.Event, moment)))
        return self._first_clock + milliseconds / 1000

    def finish(self) -> None:
        # Not all streams of the device: messages of the next round may be on their way in others,
        # and come only when another worker has done its part.
        torch.cuda.current_stream(self.device).synchronize()

    def follow(self, moment: Moment) -> None:
        torch.cuda.current_stream(self.device).wait_event(cast(torch.cuda.Event, moment))

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Sequence[Moment]) -> Moment:
        stream = self._to_host if target.device.type == "cpu" else self._from_host
        with torch.cuda.stream(stream):
            for moment in after:
                stream.wait_event(cast(torch.cuda.Event, moment))
            target.copy_(source, non_blocking=True)
        return self._event(stream)

    def _event(self, stream: torch.cuda.Stream) -> Moment:
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def pin(self, memory: torch.Tensor) -> Callable[[], None]:
        if memory.is_pinned():
            return lambda: None
        cudart, address = torch.cuda.cudart(), memory.data_ptr()
        result = int(cudart.cudaHostRegister(address, memory.nbytes, 0))
        if result != 0:
            log.warning(
                "%d bytes of shared memory cannot be locked (CUDA error %d); copies are slower.",
                *(memory.nbytes, result),
            )
            return lambda: None
        return lambda: cudart.cudaHostUnregister(address)


def engine_for(device: torch.device) -> Engine:
    """What drives `device`."""
    if device.type == "cpu":
        return Engine(device)
    return (CudaEngine if device.type == "cuda" else OtherEngine)(device)


class Progress:
    """How many units a device has computed: not how many it was told to compute."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._behind: deque[Moment] = deque()
        self._count = 0

    def told(self) -> None:
        """The device was told to compute a unit."""
        self._behind.append(self._engine.here())

    def count(self) -> int:
        """Only one thread may ask."""
        while self._behind and self._behind[0].query():
            self._behind.popleft()
            self._count += 1
        return self._count


class Waits:
    """When a worker waited for another one.

    Attributes:
        is_on: it does so now.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._moments: list[tuple[Moment, Moment]] = []
        self._start: Moment | None = None

    @property
    def is_on(self) -> bool:
        return self._start is not None

    def __enter__(self) -> None:
        # On a GPU it is reached when that has nothing more to do, be the host as early as it may.
        self._start = self._engine.here()

    def __exit__(self, *_: object) -> None:
        assert self._start is not None
        self._moments.append((self._start, self._engine.here()))
        self._start = None

    @property
    def number(self) -> int:
        """How many there were in this run."""
        return len(self._moments)

    def seconds(self, first: int, stop: int) -> float:
        """How long those with these numbers took, all of which are over."""
        clock = self._engine.clock
        return sum(clock(end) - clock(start) for start, end in self._moments[first:stop])

    def clear(self) -> None:
        """A run has ended."""
        self._moments.clear()
