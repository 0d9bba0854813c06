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

from .evaluator import Call, Evaluator, Inputs, Output
from .partition import Range, links
from .schedule import AsyncSchedule, Round
from .stage import OutputMeta, StagedModel, copy_output

Message = dict[int, Any]
# Called after each round with what every stage had received in the round before, and in this one.
Observe = Callable[[Round, list[Message], list[Message]], None]


class Oracle(Evaluator):
    """Evaluates `staged`, cut into `ranges`, in this process.

    Args:
        stride: evaluations per round, see schedule.py.
        observe: for whoever wants to compare stale activations with fresh ones.
    """

    def __init__(
        self,
        staged: StagedModel,
        ranges: Sequence[Range],
        stride: int = 1,
        observe: Observe | None = None,
    ) -> None:
        self.stride = stride
        self._observe = observe
        self._staged = staged
        self._ranges = tuple(ranges)
        self._links = links(ranges, staged.trunk.skips)
        # lane -> target stage -> what it received in the last round, by unit
        self._messages: dict[int, list[Message]] = {}
        self._metas: dict[int, list[OutputMeta]] = {}

    def begin_run(self, schedule: AsyncSchedule) -> None:
        super().begin_run(schedule)
        self._messages.clear()
        self._metas.clear()

    def _run_round(self, round_: Round, call: Call) -> Sequence[Output]:
        num_stages = len(self._ranges)
        received: list[Message] = [{} for _ in range(num_stages)]
        before = self._messages.get(round_.lane, received)
        result = None
        for k in range(num_stages):
            stored = received[k] if round_.mode == "sync" else before[k]
            inputs = call.inputs(round_.sigmas[-1])
            result = self._run_stage(k, round_, inputs, stored, received)
        results = [
            # The extra copies of the last stage: the same messages, earlier timesteps.
            self._run_stage(num_stages - 1, round_, call.inputs(sigma), before[-1], received)
            for sigma in round_.sigmas[:-1]
        ]
        results.append(result)
        if self._observe is not None:
            self._observe(round_, before, received)
        self._messages[round_.lane] = received
        return [functools.partial(lambda output: output, result) for result in results]

    def _run_stage(
        self, k: int, round_: Round, inputs: Inputs, stored: Message, received: list[Message]
    ) -> Any:
        outgoing = {link.target: link.units for link in self._links if link.source == k}

        def sink(unit: int, output: Any) -> None:
            for target, units in outgoing.items():
                if unit in units:
                    received[target][unit] = copy_output(output)

        metas = self._metas.setdefault(round_.lane, [])
        # Models write into their inputs, and a message may be needed twice.
        args, kwargs = _copy_inputs(*inputs)
        result, executed = self._staged.run_stage(
            *(self._ranges[k], args, kwargs),
            stored={unit: copy_output(output) for unit, output in stored.items()},
            metas=metas,
            produced=frozenset().union(*outgoing.values()),
            sink=sink,
            record=round_.index == 0,
        )
        metas += executed
        return result

    def end_run(self) -> None:
        super().end_run()
        self._messages.clear()
        self._metas.clear()
        self._staged.forget_scratch()


def _copy_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """New containers and tensors: models write into both."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    leaves = [copy_output(leaf) if hasattr(leaf, "clone") else copy.copy(leaf) for leaf in leaves]
    return pytree.tree_unflatten(leaves, spec)
