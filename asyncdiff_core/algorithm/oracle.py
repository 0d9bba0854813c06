"""The same schedule in a single process: what the worker group must equal, bit for bit.

It holds all stages of one model and runs them one after the other. Besides being the reference of
the tests, it shows on one device what a setting does to an image.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from .activations import OutputMeta, copy_output
from .evaluator import Call, Evaluator, Output
from .schedule import AsyncSchedule, Round
from .stage import Neighbours, StagedModel
from .stages import Link, Stage, links_between

Message = dict[int, Any]
# Called after each round with what every stage had received in the round before, and in this one.
Observe = Callable[[Round, list[Message], list[Message]], None]


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
        self._observe = observe
        self._staged = staged
        self._stages = tuple(stages)
        self._links = links_between(stages, staged.trunk.skips)
        # lane -> target stage -> what it received in the last round, by unit
        self._messages: dict[int, list[Message]] = {}
        self._metas: dict[int, list[OutputMeta]] = {}

    def begin_run(self, schedule: AsyncSchedule) -> None:
        super().begin_run(schedule)
        self._messages.clear()
        self._metas.clear()

    def _run_round(self, round_: Round, call: Call) -> Sequence[Output]:
        last = len(self._stages) - 1
        received: list[Message] = [{} for _ in self._stages]
        before = self._messages.get(round_.lane, received)

        def run(k: int, stage: Stage, sigma: float | None, *, sends: bool = True) -> Any:
            own = [link for link in self._links if link.target == k or (sends and link.source == k)]
            others = _Others(k, own, before, received, is_sync=round_.mode == "sync")
            others.metas = self._metas.setdefault(round_.lane, [])
            # Models write into their inputs.
            args, kwargs = _copy_inputs(*call.inputs(sigma))
            return self._staged.run_stage(stage, args, kwargs, others)

        sigma = round_.sigmas[-1]
        # The way into a fold is fresh in every round, so that comes first. The stages run these
        # units once more below, and get the same bits.
        for k, stage in reversed(list(enumerate(self._stages))):
            if len(stage) > 1:
                run(k, stage[:1], sigma)
        result = [run(k, stage, sigma) for k, stage in enumerate(self._stages)][-1]
        # The extra copies of the last stage: the same messages, earlier timesteps.
        copies = [run(last, self._stages[last], s, sends=False) for s in round_.sigmas[:-1]]
        results = [*copies, result]
        for link in self._links:
            if link.is_fresh:
                received[link.target].pop(link.units[0])  # no later round works on it
        if self._observe is not None:
            self._observe(round_, before, received)
        self._messages[round_.lane] = received
        return [functools.partial(lambda output: output, result) for result in results]

    def end_run(self) -> None:
        super().end_run()
        self._messages.clear()
        self._metas.clear()
        self._staged.forget_scratch()


class _Others(Neighbours):
    """The other stages of a round, as stage k sees them."""

    def __init__(
        self,
        k: int,
        own: Sequence[Link],
        before: list[Message],
        received: list[Message],
        *,
        is_sync: bool,
    ) -> None:
        super().__init__()
        self._outgoing = [link for link in own if link.source == k]
        self._received = received
        self._stored = {
            unit: (received if link.is_fresh or is_sync else before)[k]
            for link in own
            if link.target == k
            for unit in link.units
        }
        self.consumed = self._stored.keys()

    def take(self, unit: int) -> Any:
        return copy_output(self._stored[unit][unit])  # a message may be needed twice

    def give(self, unit: int, output: Any) -> None:
        super().give(unit, output)
        for link in self._outgoing:
            if unit in link.units:
                self._received[link.target][unit] = copy_output(output)


def _copy_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """New containers and tensors: models write into both."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    leaves = [copy_output(leaf) if hasattr(leaf, "clone") else copy.copy(leaf) for leaf in leaves]
    return pytree.tree_unflatten(leaves, spec)
