"""ModelSource: what workers build their model from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..algorithm.stages import Stage
from ..settings import folds
from ..wire.residuals import Residuals


@dataclass(frozen=True)
class ModelSource:
    """What workers build their model from.

    Attributes:
        name: the model's class, for logs and reports.
        builder: ``module:function``, called in each worker (see StageModel).
        spec: plain data for the builder.
        units: names of the trunk's units, in execution order.
        skips: pairs (source, consumer) of units.
        files: what the weights are read from.
        residuals: where control residuals land; None: all of them go to every worker.
        unit_bytes: the weights of each unit; empty: not known.
        shared_bytes: the weights of the parts outside the trunk, which every worker has.
    """

    name: str
    builder: str
    spec: dict[str, Any]
    units: tuple[str, ...]
    skips: tuple[tuple[int, int], ...] = ()
    files: tuple[str, ...] = ()
    residuals: Residuals | None = None
    unit_bytes: tuple[int, ...] = ()
    shared_bytes: int = 0

    @property
    def nested_skips(self) -> tuple[tuple[int, int], ...]:
        """The skips by which the trunk may be folded."""
        return self.skips if folds() else ()

    def names_of(self, stage: Stage) -> tuple[tuple[str, str], ...]:
        """The names of the first and the last unit of each range of a stage."""
        return tuple((self.units[start], self.units[stop - 1]) for start, stop in stage)
