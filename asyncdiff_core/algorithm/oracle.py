"""The same schedule in a single process: what the worker group must equal, bit for bit.

It holds all stages of one model and runs them one after the other. Besides being the reference of
the tests, it shows on one device what a setting does to an image.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils import _pytree as pytree

from .activations import OutputMeta, copy_output
from .evaluator import Call, Evaluator, Output
from .schedule import AsyncSchedule, Mode, Round, Work
from .stage import Neighbours, StagedModel
from .stages import Link, Stage, links_between

Message = dict[int, Any]
# Called after each round with what every stage had received in the round before, and in this one.
Observe = Callable[[Round, list[Message], list[Message]], None]


class Sent(NamedTuple):
    """What a stage has sent over one link: for the result of which round, and the activations."""

    goal: int
    message: Message


class Oracle(Evaluator):
    """Evaluates `staged`, cut into `stages`, in this process.

    Args:
        stride: evaluations per round, see schedule.py.
        observe: for whoever wants to compare stale activations with fresh ones.
    """

    def __init__(
        self,
        staged: StagedModel,
        stages: Sequence[Stage],
        stride: int = 1,
        observe: Observe | None = None,
    ) -> None:
        self.stride = stride
        self.num_stages = len(stages)
        self.is_folded = any(len(stage) > 1 for stage in stages)
        self._observe = observe
        self._staged = staged
        self._stages = tuple(stages)
        self._links = links_between(stages, staged.trunk.skips)
        # lane -> what was sent over each link in the rounds before, the last one last
        self._sent: dict[int, dict[Link, list[Sent]]] = {}
        self._metas: dict[int, list[OutputMeta]] = {}

    def begin_run(self, schedule: AsyncSchedule) -> None:
        super().begin_run(schedule)
        self._sent.clear()
        self._metas.clear()

    def _run_round(self, round_: Round, call: Call) -> Sequence[Output]:
        last = len(self._stages) - 1
        before = self._sent.setdefault(round_.lane, {link: [] for link in self._links})
        now: dict[Link, Sent] = {}

        def run(k: int, stage: Stage, work: Work | None, sends: Callable[[Link], bool]) -> Any:
            if work is None:
                return None
            incoming = [link for link in self._links if link.target == k]
            outgoing = [link for link in self._links if link.source == k and sends(link)]
            others = _Others(round_.mode, work.goal, incoming, outgoing, before, now)
            others.metas = self._metas.setdefault(round_.lane, [])
            # Models write into their inputs.
            args, kwargs = _copy_inputs(*call.inputs(work.target))
            return self._staged.run_stage(stage, args, kwargs, others)

        works = [round_.work(last - k) for k in range(len(self._stages))]
        # The way into a fold is fresh in every round, so that comes first. The stages run these
        # units once more below, for their own results.
        for k, stage in reversed(list(enumerate(self._stages))):
            if len(stage) > 1:
                enters = round_.entering if k == last else None
                run(k, stage[:1], enters or works[k], _is_inwards)
        result = [run(k, stage, works[k], _is_on) for k, stage in enumerate(self._stages)][-1]
        # The extra copies of the last stage: the same messages, earlier timesteps.
        leads = range(len(round_.targets) - 1, 0, -1)
        copies = [
            run(last, self._stages[last], round_.work(0, lead), lambda link: False)
            for lead in leads
        ]
        if self._observe is not None:
            newest = {link: sent[-1] for link, sent in before.items() if sent}
            self._observe(round_, self._received(newest), self._received(now))
        for link, sent in now.items():
            if not link.is_fresh:
                # A stage works on a message for its own goal, and that of a stage far before it
                # comes as many rounds earlier.
                before[link] = [*before[link], sent][-(link.target - link.source) :]
        results = [*copies, result] if round_.targets else []
        return [functools.partial(lambda output: output, result) for result in results]

    def _received(self, sent: Mapping[Link, Sent]) -> list[Message]:
        """What each stage has received of all that was sent, but for what is fresh anyway."""
        received: list[Message] = [{} for _ in self._stages]
        for link, (_, message) in sent.items():
            if not link.is_fresh:
                received[link.target] |= message
        return received

    def end_run(self) -> None:
        super().end_run()
        self._sent.clear()
        self._metas.clear()
        self._staged.forget_scratch()


def _is_inwards(link: Link) -> bool:
    return link.is_fresh


def _is_on(link: Link) -> bool:
    return not link.is_fresh


class _Others(Neighbours):
    """The other stages of a round, as one stage sees them that works for round `goal`."""

    def __init__(
        self,
        mode: Mode,
        goal: int,
        incoming: Sequence[Link],
        outgoing: Sequence[Link],
        before: dict[Link, list[Sent]],
        now: dict[Link, Sent],
    ) -> None:
        super().__init__()
        self._mode, self._goal, self._before, self._now = mode, goal, before, now
        self._from = {unit: link for link in incoming for unit in link.units}
        self._outgoing = outgoing
        self.consumed = self._from.keys()

    def take(self, unit: int) -> Any:
        link = self._from[unit]
        if link.is_fresh or self._mode == "sync":
            sent = self._now[link]
        else:
            for_us = (sent for sent in reversed(self._before[link]) if sent.goal == self._goal)
            sent = next(for_us, self._before[link][-1])
        return copy_output(sent.message[unit])  # a message may be needed twice

    def give(self, unit: int, output: Any) -> None:
        super().give(unit, output)
        for link in self._outgoing:
            if unit in link.units:
                sent = self._now.setdefault(link, Sent(self._goal, {}))
                sent.message[unit] = copy_output(output)


def _copy_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """New containers and tensors: models write into both. A patch may be known by its identity."""

    def copied(leaf: Any) -> Any:
        if hasattr(leaf, "clone"):
            return copy_output(leaf)
        return leaf if callable(leaf) else copy.copy(leaf)

    return pytree.tree_map(copied, (args, kwargs))
