"""Choose replicas and stages for the devices at hand. Pure.

The time of T evaluations in units of one evaluation of the whole model with one cond is, with
balanced stages, c (w + (T - w) / (S N)): w warm-up evaluations take their full time, the others
that of the slowest stage, and S of them share a round. c is the number of conds that one replica
has to evaluate. Replicas are exact and speed up the warm-up too, stages are neither; so where two
plans are equally fast the one with more replicas is better.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..algorithm.stages import Skips, units_of
from ..errors import PlanError
from .cuts import slowest
from .fitting import Cuts, Devices, TrunkCosts, fit, lacks, squeeze, weights_on
from .plan import ParallelPlan, make_plan

# How many workers may be in every order; of more, only one changes its place.
MOST_PERMUTED = 4
# How much of the speed it may cost that what else is on a device stays there.
WORTH = 0.9
# How much faster another order has to be than that in which devices are listed.
WORTH_AN_ORDER = 1.05


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

    def in_time(self) -> tuple[ParallelPlan, ...]:
        """Plans whose devices all hold the whole model, and take consecutive evaluations.

        They are a stride without stages: all but the first of a round work on predicted latents.
        """
        number = len(self.devices)
        if not self.is_auto or self.stride > 1 or self.stages > 1:
            return ()
        return tuple(
            make_plan(self.devices, stages=1, replicas=replicas, stride=number // replicas)
            for replicas in range(number // 2, 0, -1)
            if not number % replicas and self.replicas in (0, replicas)
        )

    def _plan(self, replicas: int) -> ParallelPlan:
        return make_plan(self.devices, stages=self.stages, replicas=replicas, stride=self.stride)


@dataclass(frozen=True)
class Choice:
    """A plan with its cuts, and how much faster than one device it should be.

    Attributes:
        plan: how the model is spread.
        cuts: the stages of each replica.
        speedup: predicted; what streaming weights costs is not in it.
        budgets: by rank, how many bytes of weights stay on the device of a worker that has more of
            them; the others are streamed to it when they are used. Empty: all weights stay.
        weights: how many bytes of them are on each device.
        notes: what was passed over, and why.
    """

    plan: ParallelPlan
    cuts: Cuts
    speedup: float
    budgets: Mapping[int, int] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        plan = self.plan
        devices = ",".join(plan.devices[rank] for rank in plan.order) or ",".join(plan.devices)
        text = (
            f"{plan.replicas} replicas x {plan.stages} stages, stride {plan.stride}, on "
            f"{devices}: predicted speed-up {self.speedup:.2f}x"
        )
        return "; ".join((text, *self.notes))


@dataclass(frozen=True)
class Workload:
    """What a sampling run evaluates.

    Attributes:
        num_conds: conds that each step evaluates: two with classifier-free guidance, else one.
        steps: evaluations per cond.
        num_sync: of these, the synchronous ones.
        latents: of a cond, if each is evaluated by itself: in synchronous evaluations they pass the
            stages one behind the other.
        is_foreseen: its evaluations are known before they come, and can be made of drafts.
    """

    num_conds: int
    steps: int
    num_sync: int
    latents: int = 0
    is_foreseen: bool = False


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
    """How much faster than one device `plan` is on equal devices that have room for everything.

    Args:
        plan: how the model is spread.
        num_conds: as of Workload.
        steps: as of Workload.
        num_sync: as of Workload.
        costs: what each unit costs; nothing else costs anything.
        skips: as for `cuts.cut`.
        predicts: as for `cuts.cut`.
        latents: as of Workload.
    """
    trunk, devices = TrunkCosts(costs, skips, predicts, [0] * len(costs)), Devices()
    cuts = fit(plan, trunk, devices)
    assert cuts is not None  # there is room for everything
    return _speedup(plan, cuts, trunk, devices, Workload(num_conds, steps, num_sync, latents))


def _speedup(
    plan: ParallelPlan, cuts: Cuts, trunk: TrunkCosts, devices: Devices, workload: Workload
) -> float:
    """How much faster than the fastest device alone, which would have room for everything."""
    num_conds, steps = workload.num_conds, workload.steps
    num_sync = min(workload.num_sync, steps)
    conds: float = math.ceil(num_conds / plan.replicas)
    if workload.latents and num_conds == 1:
        # Replicas share the latents.
        conds = math.ceil(workload.latents / plan.replicas) / workload.latents
    passes = max(1, conds * workload.latents)
    total = sum(trunk.costs) or 1.0
    longest = 0.0
    for replica, stages in enumerate(cuts):
        speeds = devices.speeds_of(plan, replica)
        share = slowest(stages, trunk.costs, speeds, predicts=trunk.predicts) / total
        whole = sum(
            sum(trunk.costs[unit] for unit in units_of(stage)) / speed
            for stage, speed in zip(stages, speeds, strict=True)
        )
        sync = ((whole / total or 1.0) + (passes - 1) * share) / passes
        seconds = conds * (num_sync * sync + (steps - num_sync) * share / plan.stride)
        longest = max(longest, seconds)
    return num_conds * steps / longest


def choose(
    request: PlanRequest,
    workload: Workload,
    trunk: TrunkCosts,
    devices: Devices,
    *,
    may_stream: bool = True,
) -> Choice:
    """The fastest plan that `request` allows and that fits.

    Of equally fast ones, that with the most replicas that have something to do; then one whose
    devices take evaluations in time, which is nearer to the synchronous result than stages are; and
    then that with the most stages, which needs the least memory per device. If none fits, the one
    that lacks least: weights that have no room stay in the host's memory, and are streamed.

    Args:
        request: what was asked for.
        workload: what will be evaluated.
        trunk: what its units cost.
        devices: what is known of them.
        may_stream: whether weights may stay in the host's memory.

    Raises:
        PlanError: there are fewer units than stages, or no plan fits and weights may not be
            streamed.
    """
    plans = [p for p in request.candidates() if p.stages <= len(trunk.costs)]
    plans = plans or list(request.candidates()[-1:])
    if workload.is_foreseen and trunk.predicts:
        plans += request.in_time()
    choices, too_large = [], []
    for plan in plans:
        found = [
            Choice(ordered, cuts, speedup, weights=weights_on(ordered, cuts, trunk))
            for ordered in _orders(plan, trunk, devices)
            if (cuts := fit(ordered, trunk, devices)) is not None
            for speedup in [_speedup(ordered, cuts, trunk, devices, workload)]
        ]
        if found:
            choices.append(max(found, key=_as_listed_unless_slower))
        else:
            too_large.append(plan)
    if not choices:
        return _squeezed(too_large, workload, trunk, devices, may_stream=may_stream)

    def merit(choice: Choice) -> tuple[float, int, bool, int]:
        plan = choice.plan
        work = workload.num_conds if workload.num_conds > 1 else max(1, workload.latents)
        in_time = plan.stride > request.stride
        return round(choice.speedup, 6), min(plan.replicas, work), in_time, plan.stages

    best = max(choices, key=merit)
    return dataclasses.replace(best, notes=_notes(too_large, trunk, devices))


def settle(within: Callable[[bool], Choice]) -> Choice:
    """The choice beside all that is needed on the devices from time to time, if that is worth it.

    Args:
        within: makes the choice, beside all that or as if these models had the devices alone.

    Raises:
        PlanError: nothing fits.
    """
    alone = within(False)
    try:
        beside = within(True)
    except PlanError:
        return alone
    return beside if beside.speedup >= WORTH * alone.speedup else alone


def _orders(plan: ParallelPlan, trunk: TrunkCosts, devices: Devices) -> Iterator[ParallelPlan]:
    """The plan, and with its stages on other ones of its devices, if these are unlike."""
    yield plan
    speeds = devices.speeds or [1.0] * plan.num_workers
    kinds = [
        (speed, devices.capacities.get(device))
        for speed, device in zip(speeds, plan.devices, strict=True)
    ]
    if plan.stages == 1 or len(set(kinds)) == 1 or _is_roomy(plan, trunk, devices):
        return
    ranks = tuple(range(plan.num_workers))
    orders: Iterable[tuple[int, ...]] = itertools.permutations(ranks)
    if len(ranks) > MOST_PERMUTED:  # then one of them alone changes its place
        orders = (
            (*rest[:place], rank, *rest[place:])
            for rank in ranks
            for rest in [ranks[:rank] + ranks[rank + 1 :]]
            for place in ranks
        )
    seen = {tuple(kinds)}
    for order in orders:
        key = tuple(kinds[rank] for rank in order)
        if key not in seen:
            seen.add(key)
            yield dataclasses.replace(plan, order=order)


def _is_roomy(plan: ParallelPlan, trunk: TrunkCosts, devices: Devices) -> bool:
    """Whether all devices are equally fast, and none is too small for its stage."""
    if len(set(devices.speeds)) > 1:
        return False
    return fit(plan, trunk, devices) == fit(plan, trunk, Devices(devices.speeds))


def _as_listed_unless_slower(choice: Choice) -> float:
    """Sorts the fastest order last, of nearly equal ones that in which devices are listed."""
    return round(choice.speedup, 6) / (WORTH_AN_ORDER if choice.plan.order else 1.0)


def _squeezed(
    plans: Sequence[ParallelPlan],
    workload: Workload,
    trunk: TrunkCosts,
    devices: Devices,
    *,
    may_stream: bool,
) -> Choice:
    """The plan, of those that do not fit, that lacks the least memory."""

    def lacking(squeezed: tuple[ParallelPlan, Cuts]) -> tuple[int, int]:
        plan, cuts = squeezed
        return sum(lacks(plan, cuts, trunk, devices).values()), -plan.stages

    plan, cuts = min(((plan, squeeze(plan, trunk, devices)) for plan in plans), key=lacking)
    if not may_stream:
        raise PlanError(_no_room(plan, cuts, trunk, devices))
    rooms = devices.rooms(plan)
    budgets, streamed, weights = {}, 0, weights_on(plan, cuts, trunk)
    for place in plan.placements():
        need = trunk.bytes_of(cuts[place.replica][place.stage])
        room = rooms.get(place.rank, need)
        if need > room:
            budgets[place.rank] = max(0, room)
            streamed += need - max(0, room)
            weights[place.device] -= need - max(0, room)
    speedup = _speedup(plan, cuts, trunk, devices, workload)
    others = [other for other in plans if other != plan]
    note = (
        f"no plan fits, so {_gib(streamed)} of the weights stay in the host's memory and are "
        "streamed in each evaluation, which is slow"
    )
    notes = *_notes(others, trunk, devices), note
    return Choice(plan, cuts, speedup, budgets, weights, notes)


def _notes(plans: Sequence[ParallelPlan], trunk: TrunkCosts, devices: Devices) -> tuple[str, ...]:
    """Why these plans were passed over."""
    return tuple(
        f"{plan.replicas} replicas x {plan.stages} stages do not fit "
        f"({_short(plan, squeeze(plan, trunk, devices), trunk, devices)})"
        for plan in plans
    )


def _short(plan: ParallelPlan, cuts: Cuts, trunk: TrunkCosts, devices: Devices) -> str:
    need = weights_on(plan, cuts, trunk)
    return ", ".join(
        f"{device} needs {_gib(need[device])} and has room for {_gib(devices.capacities[device])}"
        for device in lacks(plan, cuts, trunk, devices)
    )


def _no_room(plan: ParallelPlan, cuts: Cuts, trunk: TrunkCosts, devices: Devices) -> str:
    return (
        f"The weights of this model fit no plan: with {plan.replicas} replicas x {plan.stages} "
        f"stages {_short(plan, cuts, trunk, devices)}. Use smaller pictures or batches, which "
        "leave more room for weights; or a file with fewer bytes per weight, as fp8 has; or let "
        "weights that have no room stay in the host's memory, which ComfyUI does without "
        "--highvram and --gpu-only."
    )


def _gib(number: float) -> str:
    return f"{number / 2**30:.1f} GiB"
