"""What a sampling run did: per evaluation and worker, when it waited and when it computed.

All clocks are `time.perf_counter`, which is one clock for all processes of a machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..algorithm.schedule import Mode
from ..algorithm.stages import Stage


@dataclass(frozen=True)
class Span:
    """One worker's part of one evaluation; of a folded stage two, one for each range of units.

    `start` and `end` are clocks, in seconds; of the time between them `wait` seconds went by
    waiting for a message (first), and `compute` computing. On a GPU all are its own times.
    """

    index: int
    lane: int
    mode: Mode
    start: float
    wait: float
    compute: float
    end: float


@dataclass(frozen=True)
class Evaluated:
    """One evaluation, as the sampler saw it: from its question to its answer.

    `error`: how far the latents that stages had worked on were from its own, relative and L2, or
    would have been if it had been async; None where that is not known.
    """

    index: int
    lane: int
    mode: Mode
    start: float
    end: float
    error: float | None = None


@dataclass
class WorkerReport:
    """One worker: who it is, what it holds, what it did."""

    rank: int
    stage: int
    replica: int
    device: str
    pid: int
    units: Stage
    unit_names: tuple[tuple[str, str], ...]
    num_units: int
    weight_bytes: int
    shared_bytes: int
    resident_bytes: int = 0
    activation_bytes: int = 0
    log_file: str = ""
    spans: list[Span] = field(default_factory=list)


@dataclass
class RunReport:
    """One sampling run, as the host saw it. Clocks are absolute until `as_dict`.

    `refused_stride`: the sampler allowed no stride, so the run went on with stride 1. `drafts`: how
    many stages were given in place of the last latent. `steps`: of the sampler, if it says how
    many.
    """

    model: str
    plan: dict[str, Any]
    schedule: dict[str, Any]
    start: float
    cold: bool
    end: float = 0.0
    first_step: float | None = None
    evaluations: list[Evaluated] = field(default_factory=list)
    workers: Sequence[WorkerReport] = ()
    refused_stride: bool = False
    drafts: int = 0
    steps: int | None = None
    prompt_id: str | None = None
    node_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; all times in seconds since the start of the run."""
        origin = self.start
        return {
            "prompt_id": self.prompt_id,
            "node_id": self.node_id,
            "model": self.model,
            "steps": self.steps,
            "plan": self.plan,
            "schedule": self.schedule,
            "seconds": self.end - origin,
            "seconds_to_first_step": None if self.first_step is None else self.first_step - origin,
            "cold": self.cold,
            "refused_stride": self.refused_stride,
            "drafts": self.drafts,
            "evaluations": [
                {**vars(one), "start": one.start - origin, "end": one.end - origin}
                for one in self.evaluations
            ],
            "workers": [
                {
                    **{k: v for k, v in vars(worker).items() if k != "spans"},
                    "units": [list(units) for units in worker.units],
                    "unit_names": [list(names) for names in worker.unit_names],
                    "spans": [
                        {**vars(s), "start": s.start - origin, "end": s.end - origin}
                        for s in worker.spans
                    ],
                }
                for worker in self.workers
            ],
        }
