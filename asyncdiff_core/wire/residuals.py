"""Control residuals: which of them a stage needs, and the inputs without the others.

A ControlNet runs in the ComfyUI process and gives the model lists of residuals, which the model
adds to what goes from block to block. A stage needs those that are added to what its units read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from ..algorithm.evaluator import Inputs, argument, with_argument
from ..algorithm.stages import Stage, units_of
from ..algorithm.trunk import Trunk


@dataclass(frozen=True)
class Residuals:
    """Where the control residuals of one model land.

    Attributes:
        position, name: of the dict of residuals among the arguments of the model's entry method.
        readers: key of that dict -> for each block that it concerns, in order, the units that
            read what the residual is added to.
        from_end: the model takes the entries from the end of their list.
    """

    position: int
    name: str
    readers: Mapping[str, Sequence[Sequence[int]]]
    from_end: bool = False

    @classmethod
    def of(cls, trunk: Trunk, position: int, name: str = "control") -> Residuals | None:
        """Those of the model with this trunk, or None if its layout does not know them."""
        layout = trunk.layout.control
        if layout is None:
            return None
        last = len(trunk.units) - 1

        def after(unit: int) -> tuple[int, ...]:
            # Behind the last unit stands the head, which belongs to the same stage.
            skips = (consumer for source, consumer in trunk.skips if source == unit)
            return min(unit + 1, last), *skips

        readers = {key: [after(stop) for _, stop in trunk.spans[b]] for key, b in layout.after}
        readers |= {key: [(start,) for start, _ in trunk.spans[b]] for key, b in layout.before}
        return cls(position, name, readers, layout.from_end)

    def for_stage(self, inputs: Inputs, stage: Stage) -> Inputs:
        """`inputs` with None in place of every residual that the units of `stage` do not need.

        Models pass over None. What the layout does not account for stays.
        """
        control = argument(inputs, self.position, self.name)
        if not isinstance(control, Mapping):
            return inputs
        units = frozenset(units_of(stage))
        control = {key: self._cut(key, entries, units) for key, entries in control.items()}
        return with_argument(inputs, self.position, self.name, control)

    def _cut(self, key: str, entries: Any, units: Set[int]) -> Any:
        readers = self.readers.get(key)
        if readers is None or not isinstance(entries, list):
            return entries
        cut = []
        for index, entry in enumerate(entries):
            block = len(entries) - 1 - index if self.from_end else index
            is_known = block < len(readers)
            is_read = is_known and not units.isdisjoint(readers[block])
            cut.append(entry if is_read or not is_known else None)
        return cut
