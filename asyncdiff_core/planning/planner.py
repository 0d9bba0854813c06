"""Choose replicas and stages for the devices at hand. Pure.

The time of T evaluations in units of one evaluation of the whole model with one cond is, with
balanced stages, c (w + (T - w) / (S N)): w warm-up evaluations take their full time, the others
that of the slowest stage, and S of them share a round. c is the number of conds that one replica
has to evaluate. Replicas are exact and speed up the warm-up too, stages are neither; so where two
plans are equally fast the one with more replicas is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..algorithm.stages import Skips
from ..errors import PlanError
from .cuts import cut, slowest
from .plan import ParallelPlan, make_plan


@dataclass(frozen=True)
class PlanRequest:
    """What the user asked for. A 0 leaves the number to us.

    With `is_auto` the numbers that are left to us are chosen for each run; otherwise they are one
    replica, and all devices for its stages.

    Raises:
        PlanError: no plan fits.
    """

    devices: tuple[str, ...]
    stages: int = 0
    replicas: int = 0
    stride: int = 1
    is_auto: bool = False

    def __post_init__(self) -> None:
        self.candidates()

    def candidates(self) -> tuple[ParallelPlan, ...]:
        """The plans that fit, those with the most replicas first."""
        if not self.is_auto:
            return (self._plan(self.replicas),)
        plans = []
        for replicas in range(len(self.devices), 0, -1):
            if self.replicas in (0, replicas):
                try:
                    plans.append(self._plan(replicas))
                except PlanError:
                    continue
        return tuple(plans) or (self._plan(self.replicas),)

    def _plan(self, replicas: int) -> ParallelPlan:
        return make_plan(self.devices, stages=self.stages, replicas=replicas, stride=self.stride)


@dataclass(frozen=True)
class Choice:
    """A plan, and how much faster than one device it should be."""

    plan: ParallelPlan
    speedup: float

    def __str__(self) -> str:
        plan = self.plan
        return (
            f"{plan.replicas} replicas x {plan.stages} stages, stride {plan.stride}, on "
            f"{','.join(plan.devices)}: predicted speed-up {self.speedup:.2f}x"
        )


def predicted_speedup(
    plan: ParallelPlan,
    *,
    num_conds: int,
    steps: int,
    num_sync: int,
    costs: Sequence[float],
    skips: Skips = (),
    predicts: bool = False,
    latents: int = 0,
) -> float:
    """How much faster than one device `plan` is, with these unit costs and no other cost.

    Args:
        plan: how the model is spread.
        num_conds: conds that each step evaluates: two with classifier-free guidance, else one.
        steps: evaluations per cond.
        num_sync: of these, the synchronous ones.
        costs: what each unit costs.
        skips: as for `cuts.cut`.
        predicts: as for `cuts.cut`.
        latents: of a cond, if each is evaluated by itself: in synchronous evaluations they pass the
            stages one behind the other.
    """
    num_sync = min(num_sync, steps)
    speeds = [1.0] * plan.stages
    stages = cut(costs, speeds, skips, predicts=predicts)
    share = slowest(stages, costs, speeds, predicts=predicts) / (sum(costs) or 1.0)
    conds: float = math.ceil(num_conds / plan.replicas)
    if latents and num_conds == 1:
        conds = math.ceil(latents / plan.replicas) / latents  # replicas share the latents
    passes = max(1, conds * latents)
    sync = (1 + (passes - 1) * share) / passes
    seconds = conds * (num_sync * sync + (steps - num_sync) * share / plan.stride)
    return num_conds * steps / seconds


def choose(
    request: PlanRequest,
    *,
    num_conds: int,
    steps: int,
    num_sync: int,
    costs: Sequence[float],
    skips: Skips = (),
    predicts: bool = False,
    latents: int = 0,
    fits: Callable[[ParallelPlan], bool] = lambda plan: True,
) -> Choice:
    """The fastest plan that `request` allows.

    Of equally fast ones, that with the most replicas that have something to do, and then that with
    the most stages, which needs the least memory per device.

    Args:
        request: what was asked for.
        num_conds: conds that each step evaluates.
        steps: evaluations per cond.
        num_sync: of these, the synchronous ones.
        costs: what each unit costs.
        skips: as for `cuts.cut`.
        predicts: as for `cuts.cut`.
        latents: as for `predicted_speedup`.
        fits: whether the weights of a plan fit the memory of its devices. If none does, the one
            with the most stages is taken, which needs the least.

    Raises:
        PlanError: there are fewer units than stages.
    """
    plans = [p for p in request.candidates() if p.stages <= len(costs)] or request.candidates()[-1:]
    plans = [plan for plan in plans if fits(plan)] or plans[-1:]
    choices = [
        Choice(
            plan,
            predicted_speedup(
                plan,
                num_conds=num_conds,
                steps=steps,
                num_sync=num_sync,
                costs=costs,
                skips=skips,
                predicts=predicts,
                latents=latents,
            ),
        )
        for plan in plans
    ]

    def merit(choice: Choice) -> tuple[float, int, int]:
        plan = choice.plan
        work = num_conds if num_conds > 1 else max(1, latents)
        return round(choice.speedup, 6), min(plan.replicas, work), plan.stages

    return max(choices, key=merit)
