"""Where to cut the trunk, and what crosses each cut. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import PlanError

Range = tuple[int, int]


def partition(costs: Sequence[float], speeds: Sequence[float]) -> tuple[Range, ...]:
    """Cut `costs` into ``len(speeds)`` contiguous, non-empty stages, the slowest as fast as can be.

    Stage k, on a device of speed ``speeds[k]``, takes the sum of its units' costs divided by that
    speed. Exact (dynamic programming, O(stages x units^2)); among equally good cuts the earliest
    ones are taken, so that the same input always gives the same cuts.

    Args:
        costs: what each unit costs, in any unit of time, at speed 1.
        speeds: relative speed of each stage's device.

    Returns:
        (start, stop) of each stage, in units.

    Raises:
        PlanError: if there are fewer units than stages.
    """
    num_units, num_stages = len(costs), len(speeds)
    require_units(num_units, num_stages)
    if min(speeds) <= 0 or min(costs) < 0:
        raise ValueError(f"speeds must be positive and costs not negative: {speeds}, {costs}")
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)

    # best[k][j]: the slowest of the first k stages, when they hold the first j units.
    infinity = float("inf")
    best = [[infinity] * (num_units + 1) for _ in range(num_stages + 1)]
    cut = [[0] * (num_units + 1) for _ in range(num_stages + 1)]
    best[0][0] = 0.0
    for k in range(1, num_stages + 1):
        for j in range(k, num_units - (num_stages - k) + 1):
            for i in range(k - 1, j):
                slowest = max(best[k - 1][i], (prefix[j] - prefix[i]) / speeds[k - 1])
                if slowest < best[k][j]:
                    best[k][j], cut[k][j] = slowest, i
    ranges = []
    stop = num_units
    for k in range(num_stages, 0, -1):
        start = cut[k][stop]
        ranges.append((start, stop))
        stop = start
    return tuple(reversed(ranges))


def require_units(num_units: int, num_stages: int) -> None:
    """Every stage needs a unit.

    Raises:
        PlanError: there are too few.
    """
    if num_stages > num_units:
        raise PlanError(
            f"{num_stages} stages need at least {num_stages} units, but the model's trunk has "
            f"{num_units}. Use at most {num_units} stages."
        )


@dataclass(frozen=True)
class Link:
    """Stage `source` sends the outputs of `units` to stage `target`, in every round."""

    source: int
    target: int
    units: tuple[int, ...]


def links(ranges: Sequence[Range], skips: Iterable[tuple[int, int]]) -> tuple[Link, ...]:
    """What crosses the cuts, and nothing else.

    The trunk state goes from each stage to the next; the output of unit s of every skip (s, c)
    goes from the stage that makes it straight to the stage whose unit c consumes it.
    """
    stage_of = {unit: k for k, (start, stop) in enumerate(ranges) for unit in range(start, stop)}
    crossing: dict[tuple[int, int], set[int]] = {}
    for k in range(len(ranges) - 1):
        crossing[k, k + 1] = {ranges[k][1] - 1}
    for source, consumer in skips:
        ends = stage_of[source], stage_of[consumer]
        if ends[0] != ends[1]:
            crossing.setdefault(ends, set()).add(source)
    return tuple(Link(a, b, tuple(sorted(units))) for (a, b), units in sorted(crossing.items()))
