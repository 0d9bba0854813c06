"""The workers of a group: they are started, asked and ended together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch

from ..algorithm.stages import Stage
from ..errors import (
    MAX_ERROR_TEXT,
    WorkerError,
    WorkerLinkError,
    WorkerOutOfMemoryError,
    WorkersGoneError,
    WorkerStartError,
)
from ..links.transport import backends_for
from ..log import get_logger, leave_folder, make_folder, note_workers
from ..planning.plan import ParallelPlan, Placement
from ..reports.report import Span, WorkerReport
from ..settings import Backend, backend
from ..wire.requests import Configure, Connect, Loaded, Ready, RunEnded, Stop
from .exchange import START_SECONDS, Exchange
from .process import Launch, WorkerProcess, end_all, socket_mesh
from .source import ModelSource

log = get_logger("group")

LOAD_SECONDS = 1800.0  # reading a stage's weights from a slow disk
CONNECT_SECONDS = 120.0  # NCCL takes some seconds for its start, and the test has its own limit
LOCK_SECONDS = 1.0  # for another thread, which may wait for its workers for long


@dataclass
class Member:
    """A worker, its place in the plan, and what it holds."""

    placement: Placement
    process: WorkerProcess
    stage: Stage = ()
    loaded: Loaded = field(default_factory=lambda: Loaded(0, 0, 0))
    in_force: dict[str, Any] = field(default_factory=dict)  # on its stage; nothing as loaded
    waiting_bytes: int = 0  # of weights that it gave back, and still has in the host's memory

    def forget(self) -> None:
        """It holds nothing."""
        self.stage, self.loaded, self.in_force = (), Loaded(0, 0, 0), {}
        self.waiting_bytes = 0

    def report(self, source: ModelSource, answer: RunEnded) -> WorkerReport:
        """What it is, and what it did in a sampling run that has ended."""
        return WorkerReport(
            rank=self.placement.rank,
            stage=self.placement.stage,
            replica=self.placement.replica,
            device=self.process.device,
            pid=self.process.pid,
            units=self.stage,
            unit_names=source.names_of(self.stage),
            num_units=len(source.units),
            weight_bytes=self.loaded.weight_bytes,
            shared_bytes=self.loaded.shared_bytes,
            resident_bytes=answer.resident_bytes,
            activation_bytes=answer.activation_bytes,
            log_file=str(self.process.log_file),
            spans=[Span(*span) for span in answer.spans],
        )


class Members(Sequence[Member]):
    """All workers of a group, by rank; none before the start and after the end.

    If one is in trouble, all are ended.

    Args:
        plan: how many workers, on which devices, and their first places.
        source: the model.
        launch: how processes are started.
        folder: where the folder for logs is made; a private temporary one if None.
        timeout, poll: see Exchange.

    Attributes:
        links: the backend that connects them; None as long as they are not connected.
        broken: they were ended, or are about to be.
        error: by which they broke.
        folder: of their logs.
        tickets: of the answers that are wanted as long as the sampling run goes on.

    Raises:
        PlanError: the backend that is asked for cannot serve these devices.
        WorkerStartError: the folder cannot be made.
    """

    def __init__(
        self,
        plan: ParallelPlan,
        source: ModelSource,
        launch: Launch,
        folder: Path | None,
        timeout: float,
        poll: Callable[[], None],
    ) -> None:
        self._members: list[Member] = []
        self.tickets: set[int] = set()
        self.broken = False
        self.error: str | None = None
        self._plan = plan
        self._source = source
        self._launch = launch
        self._backends = backends_for(plan.devices, backend())
        self._num_attempts = 0
        self.links: Backend | None = None
        try:
            self.folder = make_folder(folder)
        except OSError as error:
            raise WorkerStartError(
                f"The folder for the logs of workers cannot be made: {error}"
            ) from error
        self.exchange = Exchange(timeout, poll, self._break)

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, rank: int) -> Member: ...
    @overload
    def __getitem__(self, rank: slice) -> list[Member]: ...
    def __getitem__(self, rank: int | slice) -> Member | list[Member]:
        return self._members[rank]

    def __iter__(self) -> Iterator[Member]:
        # Another thread may end all of them meanwhile; these are those that there were.
        return iter(self._members)

    def start(self) -> None:
        """Start all workers at once, without waiting for them.

        Raises:
            WorkerOutOfMemoryError: there was too little memory for one of them.
            WorkerStartError: a process cannot be started at all, or has ended already.
        """
        num_threads = cpu_threads_per_worker(self._plan.devices)
        requests = []
        with self.exchange.breaks(), socket_mesh(self._plan.num_workers) as mesh:
            for placement in self._plan.placements():
                rank = placement.rank
                process = WorkerProcess(
                    f"worker {rank}",
                    placement.device,
                    self._launch,
                    num_threads,
                    log_file=self.folder / f"worker-{rank}.log",
                    peers=mesh[rank],
                )
                self._members.append(Member(placement, process))
                self.exchange.add(process)
                request = Configure(
                    rank=rank,
                    name=f"worker {rank}",
                    device=process.local_device,
                    num_threads=num_threads,
                    builder=self._source.builder,
                    spec=self._source.spec,
                    rendezvous=str(self.folder / "rendezvous"),
                )
                requests.append((process, request))
            note_workers(self.folder, [process.pid for process, _ in requests])
        with _starting():
            ticket = self.exchange.post(requests)
        self.exchange.abandon({ticket})  # the processes themselves know when they are ready

    def wait_until_ready(self) -> list[Ready]:
        """Wait for the workers to come up; what each says of itself.

        Raises:
            WorkerOutOfMemoryError: there was too little memory for one of them.
            WorkerStartError: one of them did not.
        """
        self.require_whole()
        with _starting():
            self.exchange.wait_until_ready(START_SECONDS)
        return self.ready()

    def ready(self) -> list[Ready]:
        """What each worker that has come up says of itself."""
        return [m.process.ready for m in self if m.process.ready]

    def connect(self) -> None:
        """Have workers connect with each other by the best backend that passes its test.

        Raises:
            WorkerLinkError: none does.
        """
        if self.links is not None:
            return
        troubles = []
        for one in self._backends:
            self._num_attempts += 1
            request = Connect(one, self._num_attempts)
            answers = self.request([request] * len(self), CONNECT_SECONDS)
            found = [
                (member, answer.trouble)
                for member, answer in zip(self, answers, strict=True)
                if answer.trouble
            ]
            if not found:
                self.links = one
                if len(self) > 1:
                    log.info("%s: workers are connected by %s", self._source.name, one)
                return
            member, trouble = found[0]
            troubles.append(f"{one}: {trouble}")
            log.warning(
                "%s: workers cannot be connected by %s (%s)",
                *(self._source.name, troubles[-1], member.process),
            )
        with self.exchange.breaks():
            raise member.process.failed(
                "the workers cannot be connected with each other ("
                + "; ".join(troubles)
                + "). Use fewer devices, or another ASYNCDIFF_BACKEND.",
                WorkerLinkError,
            )

    def close(self) -> None:
        """End all workers, see `close_all`."""
        close_all([self])

    def _break(self, error: BaseException) -> None:
        if not self.broken:
            self.broken, self.error = True, str(error)[:MAX_ERROR_TEXT]
            self.close()

    def look(self) -> None:
        """Take in what the workers have said, unless another thread is doing so."""
        try:
            if not self.broken:
                self.exchange.look()
        except WorkerError:
            pass  # it is told by `error`, and to the next one who needs the group

    def are_alive(self) -> bool:
        """Whether they can be used: not broken, and all processes there."""
        return not self.broken and all(m.process.is_alive() for m in self)

    def require_whole(self) -> None:
        """See that nothing has ended them.

        Raises:
            WorkersGoneError: something has.
        """
        if self.broken:
            raise WorkersGoneError(
                f"The workers of {self._source.name} are gone. Run it again."
                + (f" They ended with: {self.error}" if self.error else "")
            )

    def request(self, requests: Sequence[Any], patience: float, *, poll: bool = True) -> list[Any]:
        """Send a request to each of the first workers, and wait for their answers."""
        return self.ask(self[: len(requests)], requests, patience, poll=poll)

    def ask(
        self,
        members: Sequence[Member],
        requests: Sequence[Any],
        patience: float,
        *,
        poll: bool = True,
    ) -> list[Any]:
        """Send a request to each of these, and wait for their answers."""
        ticket = self.post(requests, members)
        self.tickets.add(ticket)
        return self.collect(ticket, members, patience, poll=poll)

    def abandon(self) -> None:
        """Let no answer be wanted any more that this run has asked for."""
        self.exchange.abandon(self.tickets)
        self.tickets.clear()

    def search_path(self) -> tuple[str, ...]:
        """Where workers look for Python modules; empty before they have come up."""
        return next((ready.search_path for ready in self.ready()), ())

    def device_memory(self) -> dict[str, int]:
        """Bytes of memory of each device that has its own."""
        return {
            m.process.device: m.process.ready.memory_bytes
            for m in self
            if m.process.ready and m.process.ready.memory_bytes
        }

    def post(self, requests: Sequence[Any], members: Sequence[Member] | None = None) -> int:
        """Send a request to each of these, or of the first workers; the answers' ticket."""
        self.require_whole()
        members = self[: len(requests)] if members is None else members
        processes = [member.process for member in members]
        return self.exchange.post(zip(processes, requests, strict=True))

    def collect(
        self, ticket: int, members: Sequence[Member], patience: float, *, poll: bool = True
    ) -> list[Any]:
        """The answers of `members` to the request `ticket`, see Exchange.collect."""
        processes = [member.process for member in members]
        return self.exchange.collect(ticket, processes, patience, poll)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Tell a worker's end as that of a start, unless there was too little memory for it."""
    try:
        yield
    except WorkerOutOfMemoryError:
        raise
    except WorkerError as error:
        raise WorkerStartError(f"A worker did not start. {error}") from error


def close_all(groups: Sequence[Members]) -> None:
    """End the workers of all groups, with one deadline for all of them, see process.end_all.

    Safe to call at any time, from any thread, and more than once.
    """
    until = time.monotonic() + LOCK_SECONDS
    with contextlib.ExitStack() as locks:
        processes = []
        for group in groups:
            if group.exchange.lock.acquire(timeout=max(0.0, until - time.monotonic())):
                locks.callback(group.exchange.lock.release)
            members, group._members = group._members, []
            own = [member.process for member in members]
            _tell_to_stop(own)
            group.exchange.close()
            processes += own
        end_all(processes)
        for group in groups:
            leave_folder(group.folder, is_wreck=group.error is not None)
            group.broken = True


def _tell_to_stop(processes: Sequence[WorkerProcess]) -> None:
    for process in processes:
        with contextlib.suppress(WorkerError):
            process.send(Stop(), 0.1)


def cpu_threads_per_worker(devices: Sequence[str]) -> int:
    """An even share of this process's own threads for every worker."""
    return max(1, torch.get_num_threads() // len(devices))
