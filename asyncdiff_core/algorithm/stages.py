"""Stages of a trunk, and the links between them. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Range = tuple[int, int]

# The units of a stage, as ranges (start, stop) in execution order. One range, or two: a stage of a
# folded trunk holds units before and after those of the stages within it.
Stage = tuple[Range, ...]

Skips = Iterable[tuple[int, int]]  # (source, consumer) units


def units_of(stage: Stage) -> Iterator[int]:
    """The units of a stage, in execution order."""
    return itertools.chain.from_iterable(itertools.starmap(range, stage))


@dataclass(frozen=True)
class Link:
    """Stage `source` sends the outputs of `units` to stage `target`, in every round."""

    source: int
    target: int
    units: tuple[int, ...]

    @property
    def is_fresh(self) -> bool:
        """Whether also an async round works on the message of the same round.

        So it is into a fold: the stage around begins a round with the units before those of
        `target`, and needs the output of `target` in its next round only.
        """
        return self.target < self.source


def links_between(stages: Sequence[Stage], skips: Skips) -> tuple[Link, ...]:
    """What crosses the cuts, and nothing else.

    The trunk state goes from each unit's stage to that of the next unit; the output of unit s of
    every skip (s, c) goes from the stage that makes it straight to the stage whose unit c consumes
    it.
    """
    stage_of = {unit: k for k, stage in enumerate(stages) for unit in units_of(stage)}
    crossing: dict[tuple[int, int], set[int]] = {}
    steps = itertools.pairwise(range(len(stage_of)))
    for source, consumer in itertools.chain(steps, skips):
        ends = stage_of[source], stage_of[consumer]
        if ends[0] != ends[1]:
            crossing.setdefault(ends, set()).add(source)
    return tuple(Link(a, b, tuple(sorted(units))) for (a, b), units in sorted(crossing.items()))
