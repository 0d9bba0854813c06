"""WorkerGroup: the worker processes that hold one model: start, load, evaluate, release."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from . import messages
from .errors import (
    MAX_ERROR_TEXT,
    WorkerError,
    WorkerOutOfMemoryError,
    WorkersGoneError,
    WorkerStartError,
)
from .evaluator import Call, Evaluator, Output
from .exchange import START_SECONDS, Exchange
from .inputs import InputEncoder, difference
from .log import get_logger, leave_folder, make_folder, note_workers
from .memory import total_bytes
from .partition import Stage, cut, links, units_of
from .plan import ParallelPlan, Placement
from .process import Launch, WorkerProcess, end_all, socket_mesh
from .report import RunReport, Span, WorkerReport
from .residuals import Residuals
from .schedule import AsyncSchedule, Round
from .settings import folds, timeout_seconds
from .transport import choose_backend

log = get_logger("group")

# A lane keeps messages on every worker. This much of a device's memory may be kept, and lanes that
# take no more than a few tiles of a picture do in any case.
LANE_SHARE, MIN_LANES = 1 / 8, 16
LOAD_SECONDS = 1800.0  # reading a stage's weights from a slow disk
COMPILE_SECONDS = 600.0  # torch.compile of one unit, in the evaluation that needs it

MAX_SHAPES = 64  # for which costs are kept

Cuts = tuple[tuple[Stage, ...], ...]  # the stages of each replica

_numbers = itertools.count(1)


@dataclass(frozen=True)
class ModelSource:
    """What workers build their model from.

    Attributes:
        name: the model's class, for logs and reports.
        builder: ``module:function``, called in each worker (see worker.StageModel).
        spec: plain data for the builder.
        units: names of the trunk's units, in execution order.
        skips: pairs (source, consumer) of units.
        files: what the weights are read from.
        residuals: where control residuals land; None: all of them go to every worker.
    """

    name: str
    builder: str
    spec: dict[str, Any]
    units: tuple[str, ...]
    skips: tuple[tuple[int, int], ...] = ()
    files: tuple[str, ...] = ()
    residuals: Residuals | None = None

    @property
    def nested_skips(self) -> tuple[tuple[int, int], ...]:
        """The skips by which the trunk may be folded."""
        return self.skips if folds() else ()

    def names_of(self, stage: Stage) -> tuple[tuple[str, str], ...]:
        """The names of the first and the last unit of each range of a stage."""
        return tuple((self.units[start], self.units[stop - 1]) for start, stop in stage)


@dataclass
class Member:
    """A worker, its place in the plan, and what it holds."""

    placement: Placement
    process: WorkerProcess
    stage: Stage = ()
    loaded: messages.Loaded = field(default_factory=lambda: messages.Loaded(0, 0, 0))


class WorkerGroup(Evaluator):
    """The worker processes of one model under one plan.

    A group that met an error is broken: its workers are gone, and a new one must be made. One
    thread uses a group at a time; `close`, `unload` and `look` may be called from any.

    Args:
        plan: how many workers, on which devices.
        source: the model.
        launch: how processes are started.
        folder: where logs go; a private temporary folder if None.
        timeout: seconds without progress after which a worker counts as hung.
        poll: called every POLL_SECONDS while waiting; whatever it raises ends the wait, and the
            group stays usable: all workers still finish the same evaluations.
        before_load: called before workers read the files of the model; whatever it raises stops
            them.
    """

    def __init__(
        self,
        plan: ParallelPlan,
        source: ModelSource,
        launch: Launch,
        *,
        folder: Path | None = None,
        timeout: float | None = None,
        poll: Callable[[], None] = lambda: None,
        before_load: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self.stride = plan.stride
        self.source = source
        self.id = f"g{next(_numbers)}"
        self.broken = False
        self.error: str | None = None  # by which it broke
        self.members: list[Member] = []
        self.unit_costs: tuple[float, ...] = ()  # by which the stages were cut
        self.report: RunReport | None = None  # of the run that is going on
        self.cold = True  # no evaluation has been done yet
        self._timeout = timeout or timeout_seconds()
        self._backend = choose_backend(plan.devices, os.environ.get("ASYNCDIFF_BACKEND", "auto"))
        try:
            self.folder = make_folder(folder)
        except OSError as error:
            raise WorkerStartError(
                f"The folder for the logs of workers cannot be made: {error}"
            ) from error
        self._launch = launch
        self._before_load = before_load
        self._exchange = Exchange(self._timeout, poll, self._break)
        self._cuts: Cuts = ()  # what the workers hold
        self._given_back: Cuts = ()  # what they held when `unload` was called
        self._load_going_on: tuple[Cuts, int] | None = None  # and its ticket
        self._costs: dict[Any, tuple[float, ...]] = {}
        self._imports: dict[str, bool] = {}
        self._lane_bytes = 0  # of the largest lane of the run
        self._signature: Any = None
        self._patches_uuid: str | None = None
        self._compilation: tuple[Any] | None = (None,)  # what `set_compilation` was given
        self._encoders: dict[int, InputEncoder] = {}
        self._run_tickets: set[int] = set()  # whose answers nobody wants when the run has ended

    # Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all workers at once, without waiting for them.

        Raises:
            WorkerStartError: a process cannot be started at all.
        """
        num_threads = cpu_threads_per_worker(self.plan.devices)
        requests = []
        with self._exchange.breaks(), socket_mesh(self.plan.num_workers) as mesh:
            for placement in self.plan.placements():
                rank = placement.rank
                process = WorkerProcess(
                    *(f"worker {rank}", placement.device, self._launch, num_threads),
                    log_file=self.folder / f"worker-{rank}.log",
                    peers=mesh[rank],
                )
                self.members.append(Member(placement, process))
                self._exchange.add(process)
                request = messages.Configure(
                    rank=rank,
                    name=f"worker {rank}",
                    device=process.local_device,
                    num_threads=num_threads,
                    builder=self.source.builder,
                    spec=self.source.spec,
                    backend=self._backend,
                    rendezvous=str(self.folder / "rendezvous"),
                )
                requests.append((process, request))
            note_workers(self.folder, [process.pid for process, _ in requests])
        ticket = self._exchange.post(requests)
        self._exchange.abandon({ticket})  # the processes themselves know when they are ready

    def wait_until_ready(self) -> None:
        """Wait for the workers to come up.

        Raises:
            WorkerOutOfMemoryError: there was too little memory for one of them.
            WorkerStartError: one of them did not.
        """
        self._require_whole()
        try:
            self._exchange.wait_until_ready(START_SECONDS)
        except WorkerOutOfMemoryError:
            raise
        except WorkerError as error:
            raise WorkerStartError(f"A worker did not start. {error}") from error

    def close(self) -> None:
        """End all workers. Safe to call at any time, from any thread, and more than once."""
        is_mine = self._exchange.lock.acquire(timeout=1.0)  # the other thread may wait for long
        try:
            processes = self._processes()
            self.members = []
            _tell_to_stop(processes)
            self._exchange.close()
            end_all(processes)
            leave_folder(self.folder, is_wreck=self.error is not None)
            self.broken = True
        finally:
            if is_mine:
                self._exchange.lock.release()

    def stop(self) -> None:
        """Tell all workers to end, without waiting for that; `close` must follow."""
        _tell_to_stop(self._processes())

    def _break(self, error: BaseException) -> None:
        if not self.broken:
            self.broken, self.error = True, str(error)[:MAX_ERROR_TEXT]
            self.close()

    def look(self) -> None:
        """Take in what the workers have said, unless another thread is doing so."""
        try:
            if not self.broken:
                self._exchange.look()
        except WorkerError:
            pass  # it is told by `error`, and to the next one who needs the group

    @property
    def is_running(self) -> bool:
        """Whether a sampling run is going on."""
        return self._lanes is not None

    def is_alive(self) -> bool:
        """Whether the group can be used: not broken, and all processes there."""
        return not self.broken and all(m.process.is_alive() for m in self.members)

    # Weights ---------------------------------------------------------------------------------

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have every worker hold its stage, cut for inputs of these shapes.

        The cuts depend on the model, the plan and the shapes alone, not on measured times, so that
        the same workflow gives the same bits again.
        """
        signature = _signature(args, kwargs)
        with self._exchange.lock:  # nobody else may meet trouble, and end the group, meanwhile
            self._require_whole()
            if signature == self._signature:
                return
            self.unit_costs = self.costs(args, kwargs)
            cuts = self._cut(self.unit_costs)
            if cuts != self._cuts:
                self._load(cuts)
            self._signature = signature

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the first replica, in units, once they are loaded."""
        return self._cuts[0] if self._cuts else ()

    def set_plan(self, plan: ParallelPlan) -> None:
        """Give the workers other places, on the same devices. They load anew where they must.

        A sampling run may have begun, but not have evaluated anything yet.
        """
        if plan.devices != self.plan.devices:
            raise ValueError(f"the group has workers on {self.plan.devices}, not {plan.devices}")
        if plan != self.plan:
            self.plan, self.stride = plan, plan.stride
            self._signature = None
            if self._lanes is not None:
                self.begin_lanes(self._lanes.schedule)
            for member, placement in zip(self.members, plan.placements(), strict=True):
                member.placement = placement

    def set_schedule(self, schedule: AsyncSchedule) -> None:
        """Have another schedule in the run that has begun, and has not evaluated anything yet."""
        self.begin_lanes(schedule)
        if self.report is not None:
            self.report.schedule = _plain_schedule(schedule)

    def set_patches(self, uuid: str, payload: Callable[[Stage], Any]) -> None:
        """Have the weight patches `uuid` in force; nothing is done if they are already.

        Args:
            payload: gives the patches for the units of a stage.
        """
        if uuid == self._patches_uuid:
            return
        self._patches_uuid = None  # unknown, if what follows is interrupted
        self._request([messages.Patch(payload(m.stage)) for m in self.members])
        self._patches_uuid = uuid

    def set_compilation(self, payload: Any) -> None:
        """Have the units compiled as `payload` says, or not if it is None; see messages.Compile.

        Nothing is done if they are already. It is the next evaluation that takes the time.
        """
        if self._compilation == (payload,):
            return
        self._compilation = None  # unknown, if what follows is interrupted
        self._request([messages.Compile(payload)] * len(self.members))
        self._compilation = (payload,)

    def attach(self, key: str, payload: Callable[[Stage], Any]) -> None:
        """Have every worker keep what the inputs of this run's evaluations refer to as `key`.

        Args:
            payload: gives it for the units of a stage.
        """
        self._request([messages.Attach(key, payload(m.stage)) for m in self.members])

    def unload(self, *, unless_running: bool = False) -> bool:
        """Have all workers give the memory of their weights back; whether they held any.

        A sampling run that is going on can go on after `restore`. One that begins while this waits
        has done nothing yet, and loads again.
        """
        with self._exchange.lock:
            if not (self._cuts or self._load_going_on) or (unless_running and self.is_running):
                return False
            self._given_back = self._cuts
            self._forget_loaded()
            ticket = self._post([messages.Unload()] * len(self.members))
            self._collect(ticket, self.members, LOAD_SECONDS, poll=False)
            return True

    def restore(self) -> None:
        """Have all workers hold again what they gave back in the middle of a sampling run."""
        if not self._cuts:
            self._load(self._given_back)

    def is_loaded(self) -> bool:
        """Whether the workers hold their stages."""
        return bool(self._cuts) and not self.broken

    @property
    def is_loading(self) -> bool:
        """Whether the workers are loading their stages."""
        return self._load_going_on is not None

    @property
    def num_loaded(self) -> int:
        """How many workers are done with the load that is going on."""
        return self._exchange.num_answers(self._load_going_on[1]) if self._load_going_on else 0

    def _cut(self, costs: tuple[float, ...]) -> Cuts:
        """The stages of each replica. A stage is as fast as the slowest worker that has it."""
        speeds = relative_speeds([p.ready for p in self._processes() if p.ready])
        cuts = []
        for replica in range(self.plan.replicas):
            slowest = [1.0] * self.plan.stages
            for member, speed in zip(self.members, speeds, strict=True):
                place = member.placement
                if place.replica == replica:
                    slowest[place.stage] = min(slowest[place.stage], speed)
            cuts.append(cut(costs, slowest, self.source.nested_skips))
        return tuple(cuts)

    def costs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
        """What each unit costs for inputs of these shapes, see costs.py."""
        self.wait_until_ready()
        signature = _signature(args, kwargs)
        if signature not in self._costs:
            (answer,) = self._request([messages.MeasureCosts(args, kwargs)])
            while len(self._costs) >= MAX_SHAPES:
                del self._costs[next(iter(self._costs))]
            self._costs[signature] = tuple(answer.costs)
        return self._costs[signature]

    def can_import(self, module: str, root: str, file: str) -> bool:
        """Whether workers can import a module of a node pack, see messages.Import."""
        if module not in self._imports:
            (answer,) = self._request([messages.Import(module, root, file)])
            self._imports[module] = answer.is_there
        return self._imports[module]

    def search_path(self) -> tuple[str, ...]:
        """Where workers look for Python modules; empty before they have come up."""
        return next((p.ready.search_path for p in self._processes() if p.ready), ())

    def device_memory(self) -> dict[str, int]:
        """Bytes of memory of each device that has its own."""
        return {
            p.device: p.ready.memory_bytes
            for p in self._processes()
            if p.ready and p.ready.memory_bytes
        }

    def _load(self, cuts: Cuts) -> None:
        started = time.monotonic()
        going_on, self._load_going_on = self._load_going_on, None
        if going_on is not None and going_on[0] == cuts:
            ticket = going_on[1]  # of a prompt that was canceled meanwhile
        else:
            self._before_load()
            self._forget_loaded()
            ticket = self._post([self._load_request(member, cuts) for member in self.members])
        self._load_going_on = cuts, ticket
        answers = self._collect(ticket, self.members, LOAD_SECONDS)
        self._load_going_on = None
        for member, answer in zip(self.members, answers, strict=True):
            place = member.placement
            member.stage, member.loaded = cuts[place.replica][place.stage], answer
        self._cuts = cuts
        log.info(
            "%s cut into %d stages: %s (%.1f s)",
            self.source.name,
            self.plan.stages,
            ", ".join(
                f"{m.process.device} {len(list(units_of(m.stage)))} units "
                f"{m.loaded.weight_bytes / 2**20:.0f} MiB"
                f" (process: {m.loaded.resident_bytes / 2**20:.0f} MiB resident)"
                for m in self.members
            ),
            time.monotonic() - started,
        )

    def _load_request(self, member: Member, cuts: Cuts) -> messages.Load:
        place = member.placement
        stages = cuts[place.replica]
        incoming, outgoing = [], []
        for link in links(stages, self.source.skips):
            # Copies of a stage get what it gets, and send nothing.
            if link.target == place.stage and not (link.is_fresh and place.lead):
                rank = self._ranks(place.replica, link.source)[0]
                incoming.append((rank, link.units, link.is_fresh))
            if link.source == place.stage and not place.lead:
                ranks = self._ranks(place.replica, link.target)
                outgoing += [(rank, link.units, link.is_fresh) for rank in ranks]
        return messages.Load(stages[place.stage], tuple(incoming), tuple(outgoing), place.lead)

    def _forget_loaded(self) -> None:
        self._cuts, self._signature, self._patches_uuid = (), None, None
        self._compilation = (None,)
        self._load_going_on = None
        for member in self.members:
            member.stage, member.loaded = (), messages.Loaded(0, 0, 0)

    def _ranks(self, replica: int, stage: int) -> list[int]:
        """The workers that have this stage: one, or for the last one with a stride several."""
        places = (member.placement for member in self.members)
        return [p.rank for p in places if (p.replica, p.stage) == (replica, stage)]

    # Evaluation ------------------------------------------------------------------------------

    def begin_run(self, schedule: AsyncSchedule) -> None:
        super().begin_run(schedule)
        self._lane_bytes = 0
        self.report = RunReport(
            model=self.source.name,
            plan={},
            schedule=_plain_schedule(schedule),
            start=time.perf_counter(),
            cold=self.cold,
        )

    @property
    def lane_capacity(self) -> int:
        """How many lanes the run may have.

        It follows from the shapes and the devices, not from the memory that is free now, since
        what has no lane of its own gets other bits.
        """
        has = self.device_memory()
        on_cpu = sum(device not in has for device in self.plan.devices)
        shares = [*has.values(), *([total_bytes() // on_cpu] if on_cpu else [])]
        return max(MIN_LANES, int(LANE_SHARE * min(shares)) // max(1, self._lane_bytes))

    def _run_round(self, round_: Round, call: Call) -> Sequence[Output]:
        self._require_whole()
        start = time.perf_counter()
        encoder = self._encoders.setdefault(round_.lane, InputEncoder())
        inputs = call.args, call.kwargs
        variants = [difference(inputs, call.inputs(sigma)) for sigma in round_.sigmas]
        everything = messages.Evaluate(
            lane=round_.lane,
            index=round_.index,
            evaluation=round_.evaluation,
            mode=round_.mode,
            inputs=encoder.encode(*inputs),
            variants=variants,
        )
        members = [m for m in self.members if m.placement.replica == call.replica]
        # The last stage first: its answer is what the sampler waits for.
        ticket = self._exchange.post(
            (member.process, self._for_stage(everything, member.stage))
            for member in reversed(members)
        )
        self._run_tickets.add(ticket)
        yielding = [m for m in members if m.placement.stage == self.plan.stages - 1]
        yielding = sorted(yielding, key=lambda m: -m.placement.lead)[-len(variants) :]
        return [
            functools.partial(self._output, member, ticket, round_, number, start)
            for number, member in enumerate(yielding)
        ]

    def _for_stage(self, message: messages.Evaluate, stage: Stage) -> messages.Evaluate:
        """The message without the control residuals that this stage does not need."""
        if self.source.residuals is None:
            return message
        inputs = self.source.residuals.for_stage(message.inputs, stage)
        is_cut = inputs is not message.inputs
        return dataclasses.replace(message, inputs=inputs) if is_cut else message

    def _output(self, member: Member, ticket: int, round_: Round, number: int, start: float) -> Any:
        """Wait for the output of the `number`-th evaluation of a round."""
        if number:
            start = time.perf_counter()
        is_compiled = self._compilation != (None,)
        patience = max(self._timeout, COMPILE_SECONDS) if is_compiled else self._timeout
        (result,) = self._collect(ticket, [member], patience)
        end = time.perf_counter()
        self.cold = False
        report = self.report
        assert report is not None
        report.first_step = report.first_step or end
        evaluation = round_.evaluation + number
        report.evaluations.append((evaluation, round_.lane, round_.mode, start, end))
        self._lane_bytes = max(self._lane_bytes, result.lane_bytes)
        return result.output

    def end_run(self, *, wait: bool = True) -> RunReport | None:  # type: ignore[override]
        """End the run on all workers, at the same evaluation border; what it did, as a report.

        Without `wait` the workers end it by themselves once they have finished the round that they
        are at. Whatever they are asked next comes after that.

        Returns None if the group broke during the run, or with `wait` off.
        """
        report, self.report = self.report, None
        if report is not None and self._lanes is not None:
            report.refused_stride = self._lanes.refused_stride
        super().end_run()
        workers_took_part = bool(self._encoders)
        self._encoders.clear()
        if workers_took_part and not wait and not self.broken:
            self._run_tickets.add(self._post([messages.EndRun()] * len(self.members)))
        self._exchange.abandon(self._run_tickets)
        self._run_tickets.clear()
        if report is None or self.broken or not wait:
            return None
        report.end = time.perf_counter()
        report.plan = {**dataclasses.asdict(self.plan), "devices": list(self.plan.devices)}
        if not workers_took_part:
            return report  # they may not even be up
        answers = self._request([messages.EndRun()] * len(self.members), poll=False)
        report.workers = [
            self._worker_report(m, a) for m, a in zip(self.members, answers, strict=True)
        ]
        return report

    def _worker_report(self, member: Member, answer: messages.RunEnded) -> WorkerReport:
        return WorkerReport(
            rank=member.placement.rank,
            stage=member.placement.stage,
            replica=member.placement.replica,
            device=member.process.device,
            pid=member.process.pid,
            units=member.stage,
            unit_names=self.source.names_of(member.stage),
            num_units=len(self.source.units),
            weight_bytes=member.loaded.weight_bytes,
            shared_bytes=member.loaded.shared_bytes,
            resident_bytes=answer.resident_bytes,
            activation_bytes=answer.activation_bytes,
            log_file=str(member.process.log_file),
            spans=[Span(*span) for span in answer.spans],
        )

    # Messages --------------------------------------------------------------------------------

    def _request(self, requests: Sequence[Any], *, poll: bool = True) -> list[Any]:
        """Send a request to each of the first workers, and wait for their answers."""
        members = self.members[: len(requests)]
        ticket = self._post(requests)
        self._run_tickets.add(ticket)
        patience = self._timeout if isinstance(requests[0], messages.EndRun) else LOAD_SECONDS
        return self._collect(ticket, members, patience, poll=poll)

    def _post(self, requests: Sequence[Any]) -> int:
        """Send a request to each of the first workers; the ticket of their answers."""
        self._require_whole()
        processes = self._processes()[: len(requests)]
        return self._exchange.post(zip(processes, requests, strict=True))

    def _collect(
        self, ticket: int, members: Sequence[Member], patience: float, *, poll: bool = True
    ) -> list[Any]:
        processes = [member.process for member in members]
        return self._exchange.collect(ticket, processes, patience, poll)

    def _require_whole(self) -> None:
        if self.broken:
            raise WorkersGoneError(
                f"The workers of {self.source.name} are gone. Run it again."
                + (f" They ended with: {self.error}" if self.error else "")
            )

    def _processes(self) -> list[WorkerProcess]:
        return [m.process for m in self.members]


def _plain_schedule(schedule: AsyncSchedule) -> dict[str, Any]:
    return {"warm_up": schedule.warm_up, "time_shift": schedule.time_shift}


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple((x.shape, x.dtype) for x in leaves if isinstance(x, torch.Tensor))


def _tell_to_stop(processes: Sequence[WorkerProcess]) -> None:
    for process in processes:
        try:
            process.send(messages.Stop(), 0.1)
        except WorkerError:
            pass


def cpu_threads_per_worker(devices: Sequence[str]) -> int:
    """An even share of this process's own threads for every worker."""
    return max(1, torch.get_num_threads() // len(devices))


def relative_speeds(workers: Sequence[messages.Ready]) -> list[float]:
    """How fast each worker's device is, the fastest being 1.

    Devices of the same name count as equally fast, and others in steps of an eighth, so that the
    cuts do not change with the noise of a measurement.
    """
    by_name: dict[str, float] = {}
    for worker in workers:
        by_name[worker.device_name] = max(worker.speed, by_name.get(worker.device_name, 0.0))
    fastest = max(by_name.values())
    return [max(1, round(8 * by_name[w.device_name] / fastest)) / 8 for w in workers]
