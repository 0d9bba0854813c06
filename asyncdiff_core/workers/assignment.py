"""Who does what in a group: what each of its workers loads, and how fast its device is.

Pure: it follows from the plan, the costs and what each worker has said of its device.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..algorithm.stages import Skips, links_between
from ..planning.plan import Placement
from ..planning.planner import Choice
from ..wire import requests


def load_request(choice: Choice, place: Placement, skips: Skips) -> requests.Load:
    """What the worker at `place` is to load, and its links to others, by their ranks."""
    plan = choice.plan

    def ranks(stage: int) -> list[int]:
        # One, or for the last one with a stride several, of which the copies come last.
        places = sorted(plan.placements(), key=lambda p: p.lead)
        return [p.rank for p in places if (p.replica, p.stage) == (place.replica, stage)]

    stages = choice.cuts[place.replica]
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
        *(stages[place.stage], distance, tuple(incoming), tuple(outgoing), place.lead),
        budget=choice.budgets.get(place.rank),
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
