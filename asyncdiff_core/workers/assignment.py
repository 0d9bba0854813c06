"""Who does what in a group: the cuts for its workers, and what each of them loads and is sent.

Pure: it follows from the plan, the costs and what each worker has said of its device.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..algorithm.stages import Skips, Stage, links_between
from ..planning.cuts import cut
from ..planning.plan import ParallelPlan, Placement
from ..wire import requests

Cuts = tuple[tuple[Stage, ...], ...]  # the stages of each replica


def cuts_for(
    plan: ParallelPlan,
    workers: Sequence[requests.Ready],
    costs: Sequence[float],
    skips: Skips,
    *,
    predicts: bool = False,
) -> Cuts:
    """The stages of each replica. A stage is as fast as the slowest worker that has it.

    Args:
        plan: the places of the workers.
        workers: by rank.
        costs: of each unit.
        skips: by which the trunk may be folded.
        predicts: stages work on predicted latents.
    """
    speeds = relative_speeds(workers)
    cuts = []
    for replica in range(plan.replicas):
        slowest = [1.0] * plan.stages
        for place, speed in zip(plan.placements(), speeds, strict=True):
            if place.replica == replica:
                slowest[place.stage] = min(slowest[place.stage], speed)
        cuts.append(cut(costs, slowest, skips, predicts=predicts))
    return tuple(cuts)


def load_request(plan: ParallelPlan, place: Placement, cuts: Cuts, skips: Skips) -> requests.Load:
    """What the worker at `place` is to load, and its links to others, by their ranks."""

    def ranks(stage: int) -> list[int]:
        # One, or for the last one with a stride several.
        places = plan.placements()
        return [p.rank for p in places if (p.replica, p.stage) == (place.replica, stage)]

    stages = cuts[place.replica]
    incoming, outgoing = [], []
    for link in links_between(stages, skips):
        # Copies of the last stage get what it gets, and send nothing.
        if link.target == place.stage:
            source = (ranks(link.source)[0], plan.stages - 1 - link.source)
            incoming.append((*source, link.units, link.is_fresh))
        if link.source == place.stage and not place.lead:
            distance = plan.stages - 1 - link.target
            outgoing += [(rank, distance, link.units, link.is_fresh) for rank in ranks(link.target)]
    distance = plan.stages - 1 - place.stage
    return requests.Load(
        stages[place.stage], distance, tuple(incoming), tuple(outgoing), place.lead
    )


def relative_speeds(workers: Sequence[requests.Ready]) -> list[float]:
    """How fast each worker's device is, the fastest being 1.

    Devices of the same name count as equally fast, and others in steps of an eighth: more is not
    known of them.
    """
    by_name: dict[str, float] = {}
    for worker in workers:
        by_name[worker.device_name] = max(worker.speed, by_name.get(worker.device_name, 0.0))
    fastest = max(by_name.values())
    return [max(1, round(8 * by_name[w.device_name] / fastest)) / 8 for w in workers]
