"""GroupPlanner: what workers tell before a run, and the plan that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..planning.fitting import Devices, TrunkCosts, fit
from ..planning.plan import ParallelPlan
from ..planning.planner import Choice, PlanRequest, Workload, choose
from ..wire import requests
from .assignment import relative_speeds
from .members import LOAD_SECONDS, Members
from .source import ModelSource

MAX_SHAPES = 64  # for which costs and choices are kept


class GroupPlanner:
    """Chooses plans for a group of workers.

    Args:
        members: the workers.
        source: the model.
    """

    def __init__(self, members: Members, source: ModelSource) -> None:
        self._members = members
        self._source = source
        self._costs: dict[Any, tuple[float, ...]] = {}
        self._choices: dict[Any, Choice] = {}

    @property
    def unit_costs(self) -> tuple[float, ...]:
        """What each unit costs for the inputs that were asked for first; see `costs`."""
        return next(iter(self._costs.values()), ())

    def costs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
        """What each unit costs for inputs of these shapes, see costs.py."""
        self._members.wait_until_ready()
        signature = signature_of(args, kwargs)
        if signature not in self._costs:
            asked = requests.MeasureCosts(args, kwargs)
            (answer,) = self._members.request([asked], LOAD_SECONDS)
            _keep(self._costs, signature, tuple(answer.costs))
        return self._costs[signature]

    def choose(
        self,
        request: PlanRequest,
        workload: Workload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        predicts: bool = False,
        capacities: Mapping[str, int] | None = None,
        may_stream: bool = True,
    ) -> Choice:
        """The plan and the cuts for inputs of these shapes, see planner.choose.

        They depend on the model, the shapes, the schedule, the kinds of devices and the capacities
        alone, not on measured times, so that the same workflow gives the same bits again.

        Args:
            request: what was asked for.
            workload: of the run.
            args: of an evaluation.
            kwargs: of an evaluation.
            predicts: stages work on predicted latents.
            capacities: as of fitting.Devices; None: there is room for everything.
            may_stream: as for `planner.choose`.
        """
        trunk, limits = self._trunk(args, kwargs, predicts), dict(capacities or {})
        key = request, workload, trunk, tuple(limits.items()), may_stream
        if key not in self._choices:
            devices = self._devices(limits)
            found = choose(request, workload, trunk, devices, may_stream=may_stream)
            _keep(self._choices, key, found)
        return self._choices[key]

    def keep(
        self,
        plan: ParallelPlan,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        predicts: bool = False,
    ) -> Choice:
        """`plan`, with its cuts for inputs of these shapes, if nothing is short of memory.

        Args:
            plan: of these workers.
            args: of an evaluation.
            kwargs: of an evaluation.
            predicts: stages work on predicted latents.
        """
        trunk = self._trunk(args, kwargs, predicts)
        if (plan, trunk) not in self._choices:
            cuts = fit(plan, trunk, self._devices({}))
            assert cuts is not None  # there is room for everything
            _keep(self._choices, (plan, trunk), Choice(plan, cuts, 1.0))
        return self._choices[plan, trunk]

    def _trunk(self, args: tuple[Any, ...], kwargs: dict[str, Any], predicts: bool) -> TrunkCosts:
        costs, source = self.costs(args, kwargs), self._source
        sizes = source.unit_bytes or (0,) * len(costs)
        return TrunkCosts(costs, source.nested_skips, predicts, sizes, source.shared_bytes)

    def _devices(self, capacities: Mapping[str, int]) -> Devices:
        return Devices(relative_speeds(self._members.ready()), capacities)

    def memory(self) -> dict[str, int]:
        """How many bytes the group may have of each device that has memory of its own.

        That is what is free there, and what these workers have there now.
        """
        self._members.wait_until_ready()
        asked = [requests.MeasureMemory()] * len(self._members)
        free: dict[str, int] = {}
        held: dict[str, int] = {}
        for member, answer in zip(
            self._members, self._members.request(asked, LOAD_SECONDS), strict=True
        ):
            device = member.process.device
            if answer.free_bytes or answer.held_bytes:
                free[device] = min(free.get(device, answer.free_bytes), answer.free_bytes)
                held[device] = held.get(device, 0) + answer.held_bytes
        return {device: free[device] + held[device] for device in free}


def signature_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What tells shapes of inputs apart."""
    leaves = pytree.tree_leaves((args, kwargs))
    return tuple((x.shape, x.dtype) for x in leaves if isinstance(x, torch.Tensor))


def _keep(memo: dict[Any, Any], key: Any, value: Any) -> None:
    while len(memo) >= MAX_SHAPES:
        del memo[next(iter(memo))]
    memo[key] = value
