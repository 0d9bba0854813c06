"""Groups of real workers that hold toys, and what they must give."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from asyncdiff_core.algorithm.evaluator import Evaluator, Forecast
from asyncdiff_core.algorithm.oracle import Oracle
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.stages import Stage
from asyncdiff_core.algorithm.trunk import Trunk
from asyncdiff_core.planning.plan import make_plan
from asyncdiff_core.reports.report import RunReport
from asyncdiff_core.wire.residuals import Residuals
from asyncdiff_core.workers.group import WorkerGroup
from asyncdiff_core.workers.process import Launch
from asyncdiff_core.workers.source import ModelSource

from .toys import make_inputs, make_model

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = Launch(python_path=(str(ROOT),), cwd=str(ROOT))


class Call(NamedTuple):
    """One evaluation: its lane, the model's inputs, and what is known about its time."""

    lane: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    forecast: Forecast | None = None


def call(name: str, lane: str, step: int, batch: int = 1) -> Call:
    """Evaluation `step` of `lane`; no two lanes have the same noise or conditioning."""
    args, kwargs = make_inputs(name, step, batch)
    shift = sum(map(ord, lane)) / 1000
    x, t = args
    return Call(lane, (x + shift, t), {**kwargs, "context": kwargs["context"] + shift})


def batched(name: str, steps: int, batch: int = 2) -> list[Call]:
    """Classifier-free guidance as one lane."""
    return [call(name, "both", i, batch) for i in range(steps)]


def unbatched(name: str, steps: int) -> list[Call]:
    """Classifier-free guidance as two lanes, which take turns."""
    return [call(name, lane, i) for i in range(steps) for lane in ("cond", "uncond")]


def evaluate_all(
    evaluator: Evaluator, schedule: AsyncSchedule, calls: Iterable[Call]
) -> tuple[list[torch.Tensor], RunReport | None]:
    """A sampling run: the results, and the report if there is one."""
    evaluator.begin_run(schedule)
    try:
        outputs = [evaluator.evaluate(*one) for one in calls]
    finally:
        report = evaluator.end_run()
    return outputs, report


def run(
    group: WorkerGroup, schedule: AsyncSchedule, calls: Sequence[Call]
) -> tuple[list[torch.Tensor], RunReport]:
    """A sampling run on a group, cut for the first call's shapes."""
    group.prepare(calls[0].args, calls[0].kwargs)
    outputs, report = evaluate_all(group, schedule, calls)
    assert report is not None
    return outputs, report


def stages_of(report: RunReport) -> tuple[Stage, ...]:
    return tuple(worker.units for worker in report.workers)


def by_oracle(
    name: str,
    stages: Sequence[Stage],
    schedule: AsyncSchedule,
    calls: Sequence[Call],
    add: float = 0.0,
) -> list[torch.Tensor]:
    """The results that a group with these cuts must give; `add` is the toy's patch."""
    model = make_model(name)
    trunk = Trunk.of(model, model.layout)
    with torch.inference_mode():
        for unit in trunk.units if add else ():
            for parameter in unit.module.parameters():
                parameter.data = parameter.data + add
        oracle = Oracle(StagedModel(model, trunk), stages)
        return evaluate_all(oracle, schedule, calls)[0]


def plain(name: str, calls: Sequence[Call]) -> list[torch.Tensor]:
    """The model as it is. Chain writes into its context, so that is copied."""
    model = make_model(name)
    with torch.inference_mode():
        return [
            model(*args, **{**kwargs, "context": kwargs["context"].clone()})
            for _, args, kwargs, _ in calls
        ]


def equal(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def make_group(name: str, num_stages: int, folder: Path, **options: Any) -> WorkerGroup:
    """A group that is not started. Options that WorkerGroup does not know go to the toy."""
    own = {k: options.pop(k) for k in ("timeout", "poll", "launch") if k in options}
    model = make_model(name)
    trunk = Trunk.of(model, model.layout)
    source = ModelSource(
        name=type(model).__name__,
        builder=options.pop("builder", "harness.toys:build"),
        spec={"model": name, **options},
        units=tuple(unit.name for unit in trunk.units),
        skips=trunk.skips,
        residuals=Residuals.of(trunk, 3),
    )
    plan = make_plan(("cpu",) * num_stages)
    return WorkerGroup(plan, source, own.pop("launch", LAUNCH), folder=folder, **own)


@contextlib.contextmanager
def placed_group(name: str, stages: int, stride: int, replicas: int) -> Iterator[WorkerGroup]:
    """A group of the toy that has started and holds its weights, with a plan of this kind."""
    model = make_model(name)
    trunk = Trunk.of(model, model.layout)
    units = tuple(unit.name for unit in trunk.units)
    source = ModelSource(name, "harness.toys:build", {"model": name}, units, trunk.skips)
    devices = ["cpu"] * (replicas * (stages + stride - 1))
    plan = make_plan(devices, stages=stages, stride=stride, replicas=replicas)
    group = WorkerGroup(plan, source, LAUNCH)
    try:
        group.start()
        with torch.inference_mode():
            group.prepare(*make_inputs(name, 0))
        yield group
    finally:
        group.close()


def oracles(name: str, group: WorkerGroup) -> list[Oracle]:
    """One for each replica of the group."""
    found = []
    for _ in range(group.plan.replicas):
        model = make_model(name)
        staged = StagedModel(model, Trunk.of(model, model.layout))
        found.append(Oracle(staged, group.holdings.stages, group.plan.stride))
    return found


# Processes -----------------------------------------------------------------------------------


def pids_of(group: WorkerGroup) -> list[int]:
    return [member.process.pid for member in group.members]


def exists(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Cancelled(BaseException):
    """As ComfyUI's InterruptProcessingException, which is no Exception either."""


class Gate:
    """Where workers wait, see toys.ToyStageModel, and a `poll` that acts once one of them does.

    Attributes:
        then: called by `poll`, once, when a worker waits.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.then: Callable[[], None] | None = None

    def close(self, name: str) -> None:
        assert wait_until(lambda: not self.is_waited_at(), 30)  # of an earlier time
        (self.folder / name).touch()

    def open(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def is_waited_at(self) -> bool:
        return any(self.folder.glob("waiting-*"))

    def poll(self) -> None:
        if self.then is not None and self.is_waited_at():
            then, self.then = self.then, None
            then()

    def cancel_at(self, name: str) -> None:
        """Cancel as soon as a worker waits at `name`, which then lets it pass."""

        def cancel() -> None:
            self.open(name)
            raise Cancelled

        self.close(name)
        self.then = cancel
