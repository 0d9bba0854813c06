"""Faults of workers, at every moment of a group's life, against a live server.

A case is a kind of fault at a moment, and it is passed if

- the prompt ends within bounded time, with an error on the sampler's node that names the worker,
  its device, what happened and a log file that exists; where the group was idle it may work, and
  then gives the picture of before; so it may where a worker says that it has too little memory, by
  the next plan, and then gives the picture that this plan gives;
- five seconds later no process of the broken group is left;
- the next prompt works by itself, and gives the picture of before, bit for bit.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import lab
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow, node

from . import live
from .kinds import KINDS, Kind, MissedError
from .live import Prompt, Watch
from .processes import WorkerSeen, has_mapped, left_of, wait_until, workers_of

MOMENTS = ("start", "load", "warm-up", "async", "idle")
TIMEOUT = 5  # the server's ASYNCDIFF_TIMEOUT
BOUND = TIMEOUT + 15.0  # from the fault to its error: ending a stopped process takes six seconds
START_SECONDS = 120.0
GONE_SECONDS = 5.0
ATTEMPTS = 4
STEPS = 1000  # of a prompt in whose middle something happens
MEMORY_STEPS = 24  # where it may go on afterwards, from the beginning
FILE = "tiny-sd15.safetensors"
# Pixels: so many that a layer needs more memory than the least that a worker had and what a limit
# leaves it.
SIDE = 256

# So that a limit on a worker's memory is felt in the next layer: by default the C library keeps
# what was freed, and asks the system for nothing new. Where that refuses, it goes on with what it
# has reserved for the other threads.
ENVIRONMENT = {
    "ASYNCDIFF_TIMEOUT": str(TIMEOUT),
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
    "MALLOC_ARENA_MAX": "1",
}

_seeds = itertools.count(1000)


@dataclass(frozen=True)
class Case:
    """What came of one fault.

    Attributes:
        cell: in short, for the table.
        told: what the user was told.
        problems: what should not have been; nothing, if it is passed.
    """

    kind: str
    moment: str
    cell: str
    told: str = ""
    problems: tuple[str, ...] = ()


def flow(warm_up: int = 1, **sampling: Any) -> Workflow:
    large = {"empty": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)}
    stock = {**lab.workflow("sd15", **{"steps": 4, **sampling}), **large}
    return lab.asyncdiff(stock, warm_up=warm_up)


class Faults:
    """Injects faults into the workers of a server; `watch` listens to it."""

    def __init__(self, server: ComfyServer, watch: Watch) -> None:
        self._server = server
        self._watch = watch
        self._expected = lab.latent(server, flow())

    def run(self, kind: Kind, moment: str, rank: int) -> Case:
        """Do `kind` at `moment` to worker `rank`."""
        for _ in range(ATTEMPTS):
            try:
                return self._attempt(kind, moment, rank)
            except MissedError:
                lab.latent(self._server, flow())
        problem = f"the moment was missed {ATTEMPTS} times"
        return Case(kind.name, moment, "missed", problems=(problem,))

    def _attempt(self, kind: Kind, moment: str, rank: int) -> Case:
        long = MEMORY_STEPS if kind.may_succeed else STEPS
        prompt, victim = self._reach(moment, rank, long)
        pids = [w.pid for w in workers_of(self._server.pid) if w.folder == victim.folder]
        if prompt is not None and prompt.is_over:
            raise MissedError(moment)
        injected = time.monotonic()
        try:
            kind.inject(victim)
        except OSError as error:
            raise MissedError(f"{moment}: {error}") from error
        if prompt is None:
            self._sent = flow()
            prompt = self._watch.send(lab.fresh(self._sent))
        outcome = prompt.end(START_SECONDS)
        seconds = outcome.seconds - (injected - prompt.sent)
        told = self._told_since(victim) if kind.may_succeed else ""
        if moment in ("start", "load") and prompt.steps_done and not told:
            raise MissedError(f"{moment}: it had begun to sample")
        problems = []
        if outcome.kind == "execution_success":
            cell = "works"
            if told:
                cell = f"works by another plan, {max(0.0, seconds):.1f} s"
                problems += wrong_with(told, kind, rank)
                problems += self._differs_from_its_plan(prompt)
            elif moment != "idle":
                problems.append("nothing happened")
            else:
                (result,) = lab.saved(
                    self._server, self._server.get(f"/history/{prompt.id}")[prompt.id]
                )
                if not torch.equal(result, self._expected):
                    problems.append("the picture is another one")
        else:
            cell = f"{outcome.error}, {max(0.0, seconds):.1f} s"
            if outcome.data.get("node_type") != "AsyncDiffKSampler":
                problems.append(f"the error is on node {outcome.data.get('node_type')}")
            problems += wrong_with(outcome.text, kind, rank)
            if seconds > BOUND:
                problems.append(f"the error came after {seconds:.0f} s")
        if left := left_of(pids, GONE_SECONDS):
            problems.append(f"{len(left)} processes are left after {GONE_SECONDS:g} s")
        problems += self._next_prompt()
        self._watch.forget(prompt)
        return Case(kind.name, moment, cell, str(outcome), tuple(problems))

    def _told_since(self, victim: WorkerSeen) -> str:
        """What the server knows of the trouble of a worker that is gone; "": of none."""
        errors = self._server.get("/asyncdiff/status")["last_errors"]
        texts = [str(error["text"]) for error in errors if str(victim.folder) in str(error["text"])]
        return texts[-1] if texts else ""

    def _differs_from_its_plan(self, prompt: Prompt) -> list[str]:
        """A second run is made by the plan that the first one went over to."""
        history = self._server.get(f"/history/{prompt.id}")[prompt.id]
        (result,) = lab.saved(self._server, history)
        again = lab.latent(self._server, self._sent)
        live.release(self._server)  # and with the group the plan
        return [] if torch.equal(result, again) else ["it is not the picture of the next plan"]

    def _next_prompt(self) -> list[str]:
        try:
            result = lab.latent(self._server, flow())
        except Exception as error:
            return [f"the next prompt failed: {error}"]
        return [] if torch.equal(result, self._expected) else ["the next picture is another one"]

    def _reach(self, moment: str, rank: int, long: int) -> tuple[Prompt | None, WorkerSeen]:
        """Bring a group to `moment`: the prompt that runs then, and worker `rank`.

        Args:
            moment: of MOMENTS.
            rank: of the worker.
            long: the steps of a prompt in whose middle something is to happen.
        """
        if moment == "idle":
            return None, self._worker(rank)
        if moment in ("start", "load"):
            live.release(self._server)
            self._sent = flow(seed=next(_seeds))
            prompt = self._watch.send(self._sent)
            return prompt, self._await(prompt, rank, is_loading if moment == "load" else is_there)
        warm_up = 1 if moment == "async" else long
        self._sent = flow(warm_up, seed=next(_seeds), steps=long)
        prompt = self._watch.send(self._sent)
        prompt.step(3, START_SECONDS)
        return prompt, self._worker(rank)

    def _await(
        self, prompt: Prompt, rank: int, condition: Callable[[WorkerSeen], bool]
    ) -> WorkerSeen:
        """Worker `rank`, as soon as it is as far as `condition` says."""
        found: list[WorkerSeen] = []

        def look() -> bool:
            found[:] = [w for w in workers_of(self._server.pid) if w.rank == rank and condition(w)]
            return bool(found) or prompt.is_over

        wait_until(look, START_SECONDS, 0.001)
        if not found:
            raise MissedError("the prompt was over before")
        return found[0]

    def _worker(self, rank: int) -> WorkerSeen:
        (worker,) = [w for w in workers_of(self._server.pid) if w.rank == rank]
        return worker


def is_there(worker: WorkerSeen) -> bool:
    return True


def is_loading(worker: WorkerSeen) -> bool:
    """Whether it reads the file."""
    return has_mapped(worker.pid, FILE)


def wrong_with(text: str, kind: Kind, rank: int) -> list[str]:
    """What the user should have been told, and was not."""
    problems = []
    if not any(word in text for word in kind.words):
        problems.append(f"it does not say what happened: {text}")
    worker = r"worker \d+ on cpu" if kind.blames_either else f"worker {rank} on cpu"
    if not re.search(worker, text):
        problems.append(f"it does not name worker {rank} and its device: {text}")
    log = re.search(r"Its log is (\S+\.log)", text)
    if log is None or not Path(log[1]).exists():
        problems.append(f"it does not name a log file that exists: {text}")
    return problems


def run_all(server: ComfyServer, watch: Watch, only: Sequence[str] = ()) -> Iterator[Case]:
    """Every case in turn, or those of `only` (KIND:MOMENT). The victims take turns."""
    faults = Faults(server, watch)
    for number, (kind, moment) in enumerate(itertools.product(KINDS, MOMENTS)):
        if not only or f"{kind.name}:{moment}" in only:
            yield faults.run(kind, moment, number % 2)


def table(cases: Sequence[Case]) -> str:
    """The cases as a table, a row per kind."""
    by_name = {(case.kind, case.moment): case for case in cases}
    lines = ["| | " + " | ".join(MOMENTS) + " |", "|---" * (len(MOMENTS) + 1) + "|"]
    for kind in KINDS:
        cells = []
        for moment in MOMENTS:
            case = by_name.get((kind.name, moment))
            cells.append("" if case is None else f"**{case.cell}**" if case.problems else case.cell)
        lines.append(f"| {kind.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
