"""Where to cut a trunk into stages: contiguous ones, or folded ones. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from ..algorithm.schedule import PREDICTED_FOLD
from ..algorithm.stages import Range, Skips, Stage
from ..errors import PlanError

# How much slower the slowest folded stage may be than the slowest contiguous one. What a fold
# spares on the links is worth more than this in every UNet; see docs/measurements.md.
FOLD_TOLERANCE = 1.25


def cut(
    costs: Sequence[float], speeds: Sequence[float], skips: Skips = (), *, predicts: bool = False
) -> tuple[Stage, ...]:
    """The stages of a trunk: folded where it has skips that nest, otherwise contiguous.

    Args:
        costs: what each unit costs, in any unit of time, at speed 1.
        speeds: relative speed of each stage's device.
        skips: those that a fold has to keep within one stage; none for a trunk that is no U.
        predicts: stages work on predicted latents.

    Raises:
        PlanError: if there are fewer units than stages.
    """
    stages = cut_within(costs, speeds, skips, predicts=predicts)
    assert stages is not None  # nothing limits them
    return stages


def cut_within(
    costs: Sequence[float],
    speeds: Sequence[float],
    skips: Skips = (),
    *,
    predicts: bool = False,
    sizes: Sequence[int] = (),
    limits: Sequence[float] = (),
) -> tuple[Stage, ...] | None:
    """The same of stages that have room for their units; None if there are no such ones.

    Args:
        costs: as for `cut`.
        speeds: as for `cut`.
        skips: as for `cut`.
        predicts: as for `cut`.
        sizes: bytes of each unit.
        limits: how many bytes of units each stage has room for; nothing limits them if empty.
    """
    skips = tuple(skips)
    ranges = _partition(costs, speeds, sizes, limits)
    contiguous = None if ranges is None else tuple((units,) for units in ranges)
    # Whether it is folded does not depend on `predicts`: that a stage is slower is worth it.
    folded = fold(costs, speeds, skips, sizes=sizes, limits=limits) if skips else None
    if folded is None:
        return contiguous
    if contiguous is not None:
        most = FOLD_TOLERANCE * slowest(contiguous, costs, speeds)
        if slowest(folded, costs, speeds) > most:
            return contiguous
    if predicts:
        folded = fold(costs, speeds, skips, predicts=True, sizes=sizes, limits=limits)
        assert folded is not None  # the same folds are possible
    return folded


def slowest(
    stages: Sequence[Stage],
    costs: Sequence[float],
    speeds: Sequence[float],
    *,
    predicts: bool = False,
) -> float:
    """What the stage that takes longest costs in an async round.

    On predicted latents the outer one of two folded stages runs its way in twice.
    """

    def cost(stage: Stage) -> float:
        ways_in = stage[:1] if predicts and len(stage) > 1 and len(stages) == PREDICTED_FOLD else ()
        return sum(sum(costs[start:stop]) for start, stop in (*stage, *ways_in))

    return max(cost(stage) / speed for stage, speed in zip(stages, speeds, strict=True))


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
    ranges = _partition(costs, speeds, (), ())
    assert ranges is not None  # nothing limits them
    return ranges


def _partition(
    costs: Sequence[float], speeds: Sequence[float], sizes: Sequence[int], limits: Sequence[float]
) -> tuple[Range, ...] | None:
    """`partition` within the limits of `cut_within`; None if there is none."""
    num_units, num_stages = len(costs), len(speeds)
    require_units(num_units, num_stages)
    if min(speeds) <= 0 or min(costs) < 0:
        raise ValueError(f"speeds must be positive and costs not negative: {speeds}, {costs}")
    prefix = [0.0, *itertools.accumulate(costs)]
    fits = _fits_in(sizes, limits)

    # best[k][j]: the slowest of the first k stages, when they hold the first j units, of which the
    # last stage begins at last[k][j].
    infinity = float("inf")
    best = [[infinity] * (num_units + 1) for _ in range(num_stages + 1)]
    last = [[0] * (num_units + 1) for _ in range(num_stages + 1)]
    best[0][0] = 0.0
    for k in range(1, num_stages + 1):
        for j in range(k, num_units - (num_stages - k) + 1):
            for i in range(k - 1, j):
                cost = max(best[k - 1][i], (prefix[j] - prefix[i]) / speeds[k - 1])
                if cost < best[k][j] and fits(k - 1, (i, j)):
                    best[k][j], last[k][j] = cost, i
    if best[num_stages][num_units] == infinity:
        return None
    ranges = []
    stop = num_units
    for k in range(num_stages, 0, -1):
        start = last[k][stop]
        ranges.append((start, stop))
        stop = start
    return tuple(reversed(ranges))


def _fits_in(sizes: Sequence[int], limits: Sequence[float]) -> Callable[..., bool]:
    """Whether stage k has room for the units of some ranges: a function of k and the ranges."""
    if not limits:
        return lambda k, *ranges: True
    before = [0, *itertools.accumulate(sizes)]
    return lambda k, *ranges: sum(before[b] - before[a] for a, b in ranges) <= limits[k]


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


def fold(
    costs: Sequence[float],
    speeds: Sequence[float],
    skips: Sequence[tuple[int, int]],
    *,
    predicts: bool = False,
    sizes: Sequence[int] = (),
    limits: Sequence[float] = (),
) -> tuple[Stage, ...] | None:
    """Cut a U-shaped trunk into stages of which each lies around the one before.

    Stage 0 is the innermost. Every other one has units before and after it, and every skip stays
    within one stage, so that nothing but the trunk state crosses. The slowest stage is as fast as
    it can be (dynamic programming over the places where no skip crosses); of equally good cuts the
    outermost ones are taken.

    Args:
        costs: of each unit, as for `partition`.
        speeds: of each stage's device, as for `partition`.
        skips: (source, consumer) units.
        predicts: stages work on predicted latents.
        sizes: as for `cut_within`.
        limits: as for `cut_within`.

    Returns:
        The stages, or None if the skips do not lie within each other, are too few for so many, or
        no stages have the room.
    """
    num_units = len(costs)
    nested = sorted(set(skips))
    if len(nested) < 2 or nested[-1][0] >= min(consumer for _, consumer in nested):
        return None
    if any(s1 == s2 or c1 <= c2 for (s1, c1), (s2, c2) in itertools.pairwise(nested)):
        return None
    prefix = [0.0, *itertools.accumulate(costs)]
    # Where [start, stop) may be what the inner stages hold.
    inner = [
        (start, stop)
        for start in range(1, num_units)
        for stop in range(start + 1, num_units)
        if all((start <= a < stop) == (start <= b < stop) for a, b in nested)
    ]
    # The slowest of the stages around [start, stop), and the stages.
    best: dict[Range, tuple[float, tuple[Stage, ...]]] = {(0, num_units): (0.0, ())}
    ways_in = 2 if predicts and len(speeds) == PREDICTED_FOLD else 1
    fits = _fits_in(sizes, limits)
    for k, speed in reversed(list(enumerate(speeds))[1:]):
        around, best = best, {}
        for start, stop in inner:
            found: tuple[float, tuple[Stage, ...]] | None = None
            for (first, last), (so_far, stages) in around.items():
                if first < start and stop < last:
                    cost = ways_in * (prefix[start] - prefix[first]) + prefix[last] - prefix[stop]
                    so_far = max(so_far, cost / speed)
                    is_better = found is None or so_far < found[0]
                    if is_better and fits(k, (first, start), (stop, last)):
                        found = so_far, (((first, start), (stop, last)), *stages)
            if found is not None:
                best[start, stop] = found
    if not best:
        return None
    innermost = {
        units: max(so_far, (prefix[units[1]] - prefix[units[0]]) / speeds[0])
        for units, (so_far, _) in best.items()
        if fits(0, units)
    }
    if not innermost:
        return None
    units = min(innermost, key=lambda units: innermost[units])
    return ((units,), *best[units][1])
