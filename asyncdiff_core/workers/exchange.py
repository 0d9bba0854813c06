"""Exchange: requests to the workers of one group, and the wait for their answers.

Every wait has a deadline, and watches all workers of the group, not only those whose answer is
waited for: one that dies, hangs or fails ends it with an error that names the culprit.
"""

from __future__ import annotations

import selectors
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import (
    WorkerDiedError,
    WorkerError,
    WorkerFailedError,
    WorkerLinkError,
    WorkerOutOfMemoryError,
    WorkerRefusedError,
    WorkersGoneError,
)
from ..wire.blocks import Lender
from ..wire.channel import lend_frame
from ..wire.requests import Beat, Failed, Failure, to_wire
from .process import WorkerProcess

POLL_SECONDS = 0.05
START_SECONDS = 300.0  # importing torch and ComfyUI from a cold disk
CULPRIT_SECONDS = 2.0  # until the process whose end broke a link is seen to have ended

_ERRORS: dict[Failure, type[WorkerError]] = {
    "error": WorkerFailedError,
    "memory": WorkerOutOfMemoryError,
    "link": WorkerLinkError,
    "refused": WorkerRefusedError,
}


class Exchange:
    """The control channels of all workers of a group.

    Several threads may use it, one at a time: a thread that waits for an answer keeps others out.

    Args:
        timeout: seconds of silence after which a worker counts as hung.
        poll: called every POLL_SECONDS while waiting; whatever it raises ends the wait, and breaks
            nothing: answers that come later are kept until they are abandoned.
        on_break: called with the error of a worker in trouble, before it is raised.
    """

    def __init__(
        self,
        timeout: float,
        poll: Callable[[], None],
        on_break: Callable[[BaseException], None],
    ) -> None:
        self.processes: list[WorkerProcess] = []
        self.lock = threading.RLock()
        self._timeout = timeout
        self._poll = poll
        self._on_break = on_break
        self._selector = selectors.DefaultSelector()
        self._cells: dict[WorkerProcess, int] = {}  # the number of each among receivers
        self._lender: Lender | None = None  # once all workers are there
        self._ticket = 0
        self._awaited: dict[int, int] = {}  # how many workers have yet to answer a request
        self._answers: dict[tuple[WorkerProcess, int], Any] = {}

    def add(self, process: WorkerProcess) -> None:
        """Watch one more worker."""
        self._cells[process] = len(self._cells)
        self.processes.append(process)
        self._selector.register(process.channel, selectors.EVENT_READ, process)

    def close(self) -> None:
        """Close all channels, at which the workers end, even busy ones. More than once is fine."""
        for process in self.processes:
            self._selector.unregister(process.channel)
            process.close()
        self.processes = []
        self._selector.close()

    def post(self, requests: Iterable[tuple[WorkerProcess, Any]]) -> int:
        """Send a request to each of several workers; the ticket under which they will answer.

        What cannot be sent raises before anything is sent. A request that goes to several workers
        is encoded once.
        """
        with self.lock:
            self._ticket += 1
            ticket = self._ticket
            requests = list(requests)
            # Each request once, with the cells of all that get it.
            receivers: dict[int, tuple[Any, list[int]]] = {}
            for process, request in requests:
                receivers.setdefault(id(request), (request, []))[1].append(self._cells[process])
            lender = self._lender = self._lender or Lender(len(self._cells))
            frames = {
                key: lend_frame(to_wire(request, ticket), lender, cells)
                for key, (request, cells) in receivers.items()
            }
            self._awaited[ticket] = len(requests)
            with self.breaks():
                now = time.monotonic()
                for process, request in requests:
                    process.asked(now)
                    frame, loan = frames[id(request)]
                    try:
                        process.send_frame(frame, self._timeout, loan)
                    except WorkerDiedError as error:
                        raise self._last_words(process) or error from None
        return ticket

    def collect(
        self, ticket: int, processes: Sequence[WorkerProcess], patience: float, poll: bool = True
    ) -> list[Any]:
        """The answers of `processes` to the request `ticket`, each of which can be had once.

        Raises:
            WorkerError: any worker of the group died, failed, gave no sign of life for the
                timeout, or none made progress for `patience` seconds.
        """
        with self.lock:
            while missing := [p for p in processes if (p, ticket) not in self._answers]:
                # What is raised in here breaks the group; what `poll` raises does not.
                with self.breaks():
                    self._receive(POLL_SECONDS)
                    self._look_for_hangs(missing, patience)
                if poll and any((p, ticket) not in self._answers for p in missing):
                    self._poll()
            return [self._answers.pop((process, ticket)) for process in processes]

    def wait_until_ready(self, patience: float) -> None:
        """Wait until all workers have come up, see `collect`."""
        with self.lock:
            while missing := [p for p in self.processes if p.ready is None]:
                with self.breaks():
                    self._receive(POLL_SECONDS)
                    self._look_for_hangs(missing, patience)
                self._poll()

    def forget_blocks(self) -> None:
        """A sampling run has ended: the next request tells workers to give shared memory back."""
        with self.lock:
            if self._lender is not None:
                self._lender.forget()

    def num_answers(self, ticket: int) -> int:
        """How many answers to the request `ticket` have come and were not collected yet."""
        return sum(number == ticket for _, number in list(self._answers))

    def abandon(self, tickets: Collection[int]) -> None:
        """Let no answer to the requests `tickets` be wanted any more."""
        with self.lock:
            for ticket in tickets:
                self._awaited.pop(ticket, None)
            self._answers = {k: v for k, v in self._answers.items() if k[1] not in tickets}

    def look(self) -> None:
        """Take in what has arrived, without waiting, unless another thread is waiting."""
        if self.lock.acquire(blocking=False):
            try:
                with self.breaks():
                    self._receive(0)
            finally:
                self.lock.release()

    @contextmanager
    def breaks(self) -> Iterator[None]:
        """Whatever is raised in this context breaks the group."""
        try:
            yield
        except BaseException as error:
            self._on_break(error)
            raise

    def _receive(self, seconds: float) -> None:
        """Take in what has arrived, after waiting a moment; raises for a worker in trouble."""
        if not self.processes:
            raise WorkersGoneError("The workers were released.")
        for key, _ in self._selector.select(seconds):
            process: WorkerProcess = key.data
            answer, ticket = process.receive(self._timeout)
            if isinstance(answer, Failed):
                raise self._failure(process, answer)
            if ticket in self._awaited and not isinstance(answer, Beat):
                self._answers[process, ticket] = answer
                self._awaited[ticket] -= 1
                if not self._awaited[ticket]:
                    del self._awaited[ticket]

    def _last_words(self, process: WorkerProcess) -> WorkerError | None:
        """The failure that a worker which is gone told before its end, if it told one."""
        with suppress(WorkerDiedError):
            while True:
                answer, _ = process.receive(self._timeout)
                if isinstance(answer, Failed):
                    return self._failure(process, answer)
        return None

    def _failure(self, process: WorkerProcess, answer: Failed) -> WorkerError:
        """What a worker told; where a link broke, the error of the process whose end broke it."""
        error = process.failed(answer.text, _ERRORS[answer.kind])
        deadline = time.monotonic() + CULPRIT_SECONDS
        while isinstance(error, WorkerLinkError) and time.monotonic() < deadline:
            for process in self.processes:
                if not process.is_alive():
                    return process.died()
            time.sleep(POLL_SECONDS)
        return error

    def _look_for_hangs(self, missing: Iterable[WorkerProcess], patience: float) -> None:
        now = time.monotonic()
        for process in missing:
            silence = now - process.last_sign
            if silence > self._timeout:
                raise process.hangs(silence)
            if process.ready is None:
                patience = max(patience, START_SECONDS)
        stuck = min((now - p.last_progress for p in self.processes), default=0.0)
        if stuck > patience:
            raise min(self.processes, key=_suspicion).hangs(stuck)


def _suspicion(process: WorkerProcess) -> tuple[int, float]:
    """Sorts the worker first that most likely holds up the others, when none makes progress."""
    # One that was asked and says nothing stands still; one that waits is held up itself.
    return (None, "computing", "waiting", "nothing").index(process.doing), process.last_sign
