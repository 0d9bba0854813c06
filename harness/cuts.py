"""Every way to cut a trunk, found by trying."""

import itertools
from collections.abc import Collection, Iterator, Sequence

from asyncdiff_core.algorithm.stages import Range, Stage

Stages = tuple[Stage, ...]


def chain(*ranges: Range) -> Stages:
    """Contiguous stages."""
    return tuple((units,) for units in ranges)


def all_chains(num_units: int, num_stages: int) -> Iterator[Stages]:
    """Every way to cut into contiguous stages."""
    for cuts in itertools.combinations(range(1, num_units), num_stages - 1):
        yield chain(*itertools.pairwise((0, *cuts, num_units)))


def all_folds(
    num_units: int, num_stages: int, skips: Collection[tuple[int, int]]
) -> Iterator[Stages]:
    """Every way to cut into stages around each other that no skip leaves."""
    places = range(1, num_units)
    for cuts in itertools.combinations(places, 2 * (num_stages - 1)):
        bounds = (0, *cuts, num_units)
        runs = list(itertools.pairwise(bounds))
        stages = tuple(
            (runs[num_stages - 1],)
            if k == 0
            else (runs[num_stages - 1 - k], runs[num_stages - 1 + k])
            for k in range(num_stages)
        )
        if all(stage_of(stages, source) == stage_of(stages, to) for source, to in skips):
            yield stages


def stage_of(stages: Sequence[Stage], unit: int) -> int:
    """The number of the stage that holds a unit."""
    for k, stage in enumerate(stages):
        if any(start <= unit < stop for start, stop in stage):
            return k
    raise ValueError(f"no stage holds unit {unit}")
