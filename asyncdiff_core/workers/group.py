"""WorkerGroup: the worker processes that hold one model: start, load, evaluate, release."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..algorithm.evaluator import Call, Evaluator, Output
from ..algorithm.schedule import AsyncSchedule, Round, Work
from ..algorithm.stages import Stage
from ..log import get_logger
from ..planning.plan import ParallelPlan
from ..planning.planner import Choice
from ..reports.report import Evaluated, RunReport
from ..settings import timeout_seconds
from ..wire import requests
from ..wire.inputs import InputEncoder, difference
from .group_planner import GroupPlanner
from .holdings import Holdings
from .members import LOAD_SECONDS, Member, Members
from .memory import total_bytes
from .process import Launch
from .source import ModelSource

log = get_logger("group")

# A lane keeps messages on every worker. This much of a device's memory may be kept, and lanes that
# take no more than a few tiles of a picture do in any case.
LANE_SHARE, MIN_LANES = 1 / 8, 16
COMPILE_SECONDS = 600.0  # torch.compile of one unit, in the evaluation that needs it

_numbers = itertools.count(1)


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
        host_device: that of the process that starts them, which needs it between runs.
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
        host_device: str = "",
    ) -> None:
        self.plan = plan
        self.stride = plan.stride
        self.source = source
        self._host_device = host_device
        self.id = f"g{next(_numbers)}"
        self.report: RunReport | None = None  # of the run that is going on
        self.cold = True  # no evaluation has been done yet
        self._timeout = timeout or timeout_seconds()
        self.members = Members(plan, source, launch, folder, self._timeout, poll)
        self.holdings = Holdings(self.members, source, before_load)
        self.planner = GroupPlanner(self.members, source)
        # For its host to keep: choices that were made for this group, and how many bytes of weights
        # they may put on a device where more was too much.
        self.choices: dict[Any, Choice] = {}
        self.limits: dict[str, int] = {}
        self._imports: dict[str, bool] = {}
        self._lane_bytes = 0  # of the largest lane of the run
        self._encoders: dict[int, InputEncoder] = {}

    # Life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all workers at once, without waiting for them, see Members.start."""
        self.members.start()

    def wait_until_ready(self) -> None:
        """Wait for the workers to come up, see Members.wait_until_ready."""
        self.members.wait_until_ready()

    def close(self) -> None:
        """End all workers. Safe to call at any time, from any thread, and more than once."""
        self.members.close()

    def look(self) -> None:
        """Take in what the workers have said, unless another thread is doing so."""
        self.members.look()

    @property
    def folder(self) -> Path:
        """Where the workers' logs are."""
        return self.members.folder

    @property
    def broken(self) -> bool:
        """Whether the workers were ended."""
        return self.members.broken

    @property
    def error(self) -> str | None:
        """What ended them, if it was no wish."""
        return self.members.error

    @property
    def is_running(self) -> bool:
        """Whether a sampling run is going on."""
        return self._lanes is not None

    @property
    def num_stages(self) -> int:  # type: ignore[override]
        """Of one replica."""
        return self.plan.stages

    @property
    def is_folded(self) -> bool:  # type: ignore[override]
        """Whether stages lie around each other. Known once they are loaded."""
        return any(len(stage) > 1 for stage in self.holdings.stages)

    def is_alive(self) -> bool:
        """Whether the group can be used: not broken, and all processes there."""
        return self.members.are_alive()

    # Weights ---------------------------------------------------------------------------------

    def prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], choice: Choice | None = None
    ) -> None:
        """Have every worker hold its stage for inputs of these shapes.

        Args:
            args: of an evaluation.
            kwargs: of an evaluation.
            choice: of plan and cuts; by default the plan stays, and nothing is short of memory.
        """
        # Nobody else may meet trouble, and end the group, meanwhile.
        with self.members.exchange.lock:
            self.members.require_whole()
            if choice is None:
                choice = self.planner.keep(self.plan, args, kwargs, predicts=self.predicts)
            self.set_plan(choice.plan)
            self.holdings.load(choice)

    @property
    def predicts(self) -> bool:
        """Whether stages work on predicted latents in the run that has begun."""
        return self._lanes is not None and self._lanes.schedule.prediction

    def set_plan(self, plan: ParallelPlan) -> None:
        """Give the workers other places, on the same devices. They load anew where they must.

        A sampling run may have begun, but not have evaluated anything yet.
        """
        if plan.devices != self.plan.devices:
            raise ValueError(f"the group has workers on {self.plan.devices}, not {plan.devices}")
        if plan != self.plan:
            self.plan, self.stride = plan, plan.stride
            if self._lanes is not None:
                self.begin_lanes(self._lanes.schedule)
            for member, placement in zip(self.members, plan.placements(), strict=True):
                member.placement = placement

    def set_schedule(self, schedule: AsyncSchedule) -> None:
        """Have another schedule in the run that has begun, and has not evaluated anything yet."""
        self.begin_lanes(schedule)
        if self.report is not None:
            self.report.schedule = dataclasses.asdict(schedule)

    def keep(self, key: str, payload: Callable[[Stage], Any]) -> None:
        """Have every worker keep what the inputs of this run's evaluations refer to.

        Args:
            key: under which they do.
            payload: gives it for the units of a stage.
        """
        self.members.request(
            [requests.Keep(key, payload(m.stage)) for m in self.members], LOAD_SECONDS
        )

    def unload(self, device: str | None = None, *, unless_running: bool = False) -> int:
        """Have workers give the memory of their weights back; how many bytes they held.

        A sampling run that is going on can go on after `restore`. One that begins while this waits
        has done nothing yet, and loads again.

        Args:
            device: of workers on this one; None: of all.
            unless_running: do nothing if a sampling run is going on.
        """
        with self.members.exchange.lock:
            return 0 if unless_running and self.is_running else self.holdings.unload(device)

    def restore(self) -> None:
        """Have all workers hold again what they gave back in the middle of a sampling run."""
        self.holdings.restore()

    def can_import(self, module: str, root: str, file: str) -> bool:
        """Whether workers can import a module of a node pack, see requests.Import."""
        if module not in self._imports:
            (answer,) = self.members.request([requests.Import(module, root, file)], LOAD_SECONDS)
            self._imports[module] = answer.is_there
        return self._imports[module]

    # Evaluation ------------------------------------------------------------------------------

    def begin_run(self, schedule: AsyncSchedule) -> None:
        super().begin_run(schedule)
        self._lane_bytes = 0
        self.report = RunReport(
            model=self.source.name,
            plan={},
            schedule=dataclasses.asdict(schedule),
            start=time.perf_counter(),
            cold=self.cold,
        )

    @property
    def lane_capacity(self) -> int:
        """How many lanes the run may have.

        It follows from the shapes and the devices, not from the memory that is free now, since
        what has no lane of its own gets other bits.
        """
        has = self.members.device_memory()
        on_cpu = sum(device not in has for device in self.plan.devices)
        shares = [*has.values(), *([total_bytes() // on_cpu] if on_cpu else [])]
        return max(MIN_LANES, int(LANE_SHARE * min(shares)) // max(1, self._lane_bytes))

    def _run_round(self, round_: Round, call: Call) -> Sequence[Output]:
        self.members.require_whole()
        start = time.perf_counter()
        encoder = self._encoders.setdefault(round_.lane, InputEncoder())
        inputs = call.args, call.kwargs
        last, members = self.plan.stages - 1, []
        # What each does, and what the outermost stage of a fold does before.
        works: list[tuple[Work | None, Work | None]] = []
        for member in sorted(self.members, key=lambda m: (m.placement.stage, m.placement.lead)):
            place = member.placement
            if place.replica == call.replica:
                members.append(member)
                enters = self.is_folded and place.stage == last and not place.lead
                work = round_.work(last - place.stage, place.lead)
                works.append((work, round_.entering if enters else None))
        changes = {
            work: None if work is None else difference(inputs, call.inputs(work.target))
            for work in itertools.chain.from_iterable(works)
        }
        all_work = [round_.work(distance) for distance in range(self.plan.stages)]
        everything = requests.Evaluate(
            lane=round_.lane,
            evaluation=round_.evaluation,
            mode=round_.mode,
            inputs=encoder.encode(*inputs),
            change=None,
            entering=None,
            goals=[None if work is None else work.goal for work in all_work],
        )
        # What is the same for several workers is encoded once.
        made = {
            (work, entering): dataclasses.replace(
                everything,
                evaluation=round_.evaluation if work is None else work.evaluation,
                change=changes[work],
                entering=changes[entering],
            )
            for work, entering in works
        }
        # The last stage first: its answer is what the sampler waits for.
        ticket = self.members.exchange.post(
            (member.process, self._for_stage(made[work], member.stage))
            for member, work in reversed(list(zip(members, works, strict=True)))
        )
        self.members.tickets.add(ticket)
        yielding = [
            m
            for m in members
            if m.placement.stage == last and m.placement.lead < len(round_.targets)
        ]
        yielding.sort(key=lambda m: -m.placement.lead)
        return [
            functools.partial(self._output, member, ticket, round_, number, start)
            for number, member in enumerate(yielding)
        ]

    def _for_stage(self, request: requests.Evaluate, stage: Stage) -> requests.Evaluate:
        """The request without the control residuals that this stage does not need."""
        if self.source.residuals is None:
            return request
        inputs = self.source.residuals.for_stage(request.inputs, stage)
        is_cut = inputs is not request.inputs
        return dataclasses.replace(request, inputs=inputs) if is_cut else request

    def _output(self, member: Member, ticket: int, round_: Round, number: int, start: float) -> Any:
        """Wait for the output of the `number`-th evaluation of a round."""
        if number:
            start = time.perf_counter()
        is_compiled = self.holdings.may_be_compiled
        patience = max(self._timeout, COMPILE_SECONDS) if is_compiled else self._timeout
        (result,) = self.members.collect(ticket, [member], patience)
        end = time.perf_counter()
        self.cold = False
        report = self.report
        assert report is not None
        report.first_step = report.first_step or end
        evaluation = round_.evaluation + number
        report.evaluations.append(
            Evaluated(
                *(evaluation, round_.lane, round_.mode, start, end),
                error=None if number else round_.error,
            )
        )
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
            report.drafts = self._lanes.num_drafts
        super().end_run()
        self.members.exchange.forget_blocks()
        workers_took_part = bool(self._encoders)
        self._encoders.clear()
        if workers_took_part and not wait and not self.broken:
            self.members.tickets.add(self.members.post(self._end_requests()))
        self.members.abandon()
        if report is None or self.broken or not wait:
            return None
        report.end = time.perf_counter()
        report.plan = {**dataclasses.asdict(self.plan), "devices": list(self.plan.devices)}
        if not workers_took_part:
            return report  # they may not even be up
        answers = self.members.request(self._end_requests(), self._timeout, poll=False)
        report.workers = [
            member.report(self.source, answer)
            for member, answer in zip(self.members, answers, strict=True)
        ]
        return report

    def _end_requests(self) -> list[requests.EndRun]:
        """What ends the run; workers on the host's own device leave it what they do not need."""
        return [requests.EndRun(m.process.device == self._host_device) for m in self.members]
