"""Where to cut a trunk, so that what each device has to hold fits it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..algorithm.stages import Skips, Stage, units_of
from .cuts import cut, cut_within
from .plan import ParallelPlan

Cuts = tuple[tuple[Stage, ...], ...]  # the stages of each replica


@dataclass(frozen=True)
class TrunkCosts:
    """What the units of a trunk cost, in time and in memory.

    Attributes:
        costs: of each unit, in any unit of time.
        skips: by which the trunk may be folded.
        predicts: stages work on predicted latents.
        unit_bytes: the weights of each unit.
        shared_bytes: the weights that every worker has beside its units.
    """

    costs: Sequence[float]
    skips: Skips = ()
    predicts: bool = False
    unit_bytes: Sequence[int] = ()
    shared_bytes: int = 0

    def bytes_of(self, stage: Stage) -> int:
        """The weights of a worker with this stage."""
        return self.shared_bytes + sum(self.unit_bytes[unit] for unit in units_of(stage))


@dataclass(frozen=True)
class Devices:
    """What is known of the devices of a group.

    Attributes:
        speeds: by rank, relative to each other; all alike if there are none.
        capacities: bytes that weights may take on a device, by its name. One that is missing has
            room for all.
    """

    speeds: Sequence[float] = ()
    capacities: Mapping[str, int] = field(default_factory=dict)

    def speeds_of(self, plan: ParallelPlan, replica: int) -> list[float]:
        """Of each stage: that of the slowest worker that has it."""
        slowest = [1.0] * plan.stages
        if self.speeds:
            for place in plan.placements():
                if place.replica == replica:
                    slowest[place.stage] = min(slowest[place.stage], self.speeds[place.rank])
        return slowest

    def rooms(self, plan: ParallelPlan) -> dict[int, int]:
        """What each worker may take, by rank: those on the same device take equal shares of it."""
        sharing = Counter(plan.devices)
        return {
            rank: self.capacities[device] // sharing[device]
            for rank, device in enumerate(plan.devices)
            if device in self.capacities
        }


def weights_on(plan: ParallelPlan, cuts: Cuts, trunk: TrunkCosts) -> dict[str, int]:
    """The bytes of weights on each device."""
    need: Counter[str] = Counter()
    for place in plan.placements():
        need[place.device] += trunk.bytes_of(cuts[place.replica][place.stage])
    return dict(need)


def lacks(plan: ParallelPlan, cuts: Cuts, trunk: TrunkCosts, devices: Devices) -> dict[str, int]:
    """By how many bytes the weights do not fit, by device; only those where they do not."""
    return {
        device: need - devices.capacities[device]
        for device, need in weights_on(plan, cuts, trunk).items()
        if need > devices.capacities.get(device, need)
    }


def fit(plan: ParallelPlan, trunk: TrunkCosts, devices: Devices) -> Cuts | None:
    """The cuts with the fastest slowest stage among those that fit; None if none does.

    What is not short of memory is cut as if there were no limits. Workers that share a device that
    is short each get an equal part of it.

    Raises:
        PlanError: there are fewer units than stages.
    """
    cuts = _cuts(plan, trunk, devices, {})
    assert cuts is not None  # nothing limits them
    if not lacks(plan, cuts, trunk, devices):
        return cuts
    return _cuts(plan, trunk, devices, devices.rooms(plan))


def squeeze(plan: ParallelPlan, trunk: TrunkCosts, devices: Devices) -> Cuts:
    """Cuts for a plan that does not fit: what is missing is shared out as evenly as can be."""
    rooms = devices.rooms(plan)
    most = max(rooms.values(), default=1)
    cuts = []
    for replica in range(plan.replicas):
        parts = [1.0] * plan.stages
        for place in plan.placements():
            if place.replica == replica:
                room = max(1, rooms.get(place.rank, most) - trunk.shared_bytes)
                parts[place.stage] = min(parts[place.stage], room / max(1, most))
        cuts.append(cut([float(size) for size in trunk.unit_bytes], parts, trunk.skips))
    return tuple(cuts)


def _cuts(
    plan: ParallelPlan, trunk: TrunkCosts, devices: Devices, rooms: Mapping[int, int]
) -> Cuts | None:
    cuts = []
    for replica in range(plan.replicas):
        limits: list[float] = [float("inf")] * plan.stages
        for place in plan.placements():
            if place.replica == replica and place.rank in rooms:
                room = rooms[place.rank] - trunk.shared_bytes
                limits[place.stage] = min(limits[place.stage], room)
        stages = cut_within(
            *(trunk.costs, devices.speeds_of(plan, replica), trunk.skips),
            predicts=trunk.predicts,
            sizes=trunk.unit_bytes,
            limits=limits if rooms else (),
        )
        if stages is None:
            return None
        cuts.append(stages)
    return tuple(cuts)
