"""Run one stage of any model: only the units of the stage compute, the rest is stored or skipped.

The model's own forward runs, so that everything around the units (embeddings, positional
encoding, control residuals, patches) stays the model's own code. Each unit's forward is replaced
on this model instance:

- a unit of the stage runs, and its output is given to the neighbours;
- a unit of another stage returns what the neighbours have sent if this stage consumes it, otherwise
  a scratch tensor of the right shape, whose values reach nothing that the stage computes;
- after the last unit of the stage `StageDone` ends the forward: nothing behind it is computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from ..errors import LayoutError, NumbersError
from .activations import OutputMeta, TensorMeta
from .stages import Stage, units_of
from .trunk import Trunk


class StageDone(Exception):  # noqa: N818 - a control flow signal, not an error
    """Ends a forward after the last unit of a stage."""


class Neighbours:
    """The other stages, as one stage sees them in one evaluation. This class: there are none.

    Attributes:
        consumed: units of other stages whose outputs this stage consumes.
        metas: the structure of the outputs of all units up to some one, in order.
    """

    consumed: Collection[int] = ()

    def __init__(self) -> None:
        self.metas: list[OutputMeta] = []

    def take(self, unit: int) -> Any:
        """The output of `unit`, one of `consumed`. The model may write into it."""
        raise NotImplementedError

    def give(self, unit: int, output: Any) -> None:
        """Called with the output of every unit of the stage, as soon as it is done.

        What is sent must be copied, since the model may write into the output afterwards.
        """
        if unit == len(self.metas):
            self.metas.append(OutputMeta.of(output))

    def turn(self) -> None:
        """Called between the two ranges of a folded stage.

        All has been given that the stages within need. Afterwards `metas` has their units too.
        """


class Beside(Protocol):
    """What flows from unit to unit beside their outputs: in objects that patches hold."""

    def leave(self, unit: int, args: tuple[Any, ...]) -> Any:
        """What there is when `unit`, which got `args`, has computed: tensors and plain values.

        Its structure depends on the unit alone.
        """

    def enter(self, unit: int, left: Any) -> None:
        """Another stage has computed `unit`, and `left` is what there was."""


@dataclass
class _Run:
    own: frozenset[int]
    turn_before: int | None
    stop: int
    neighbours: Neighbours
    is_checked: bool
    next_unit: int = field(default=0)


class StagedModel:
    """A model whose units can be run stage by stage.

    Args:
        model: the model; the `forward` of its units is replaced on the instance.
        trunk: its units.
        entry: the model's method that one evaluation calls.

    Attributes:
        forwards: what each unit computes with; another one may take its place between evaluations.
        beside: what crosses with the outputs of units, if something does.
    """

    def __init__(self, model: torch.nn.Module, trunk: Trunk, entry: str = "forward") -> None:
        self.trunk = trunk
        self._entry = getattr(model, entry)
        self._name = type(model).__name__
        self._run: _Run | None = None
        self._instead: tuple[Any, bool] | None = None
        self._scratch: dict[tuple[TensorMeta, torch.device, bool], torch.Tensor] = {}
        self.beside: Beside | None = None
        self.poisons_scratch = False  # scratch tensors are not numbers, to show where they reach
        self._device = torch.device("cpu")
        self.forwards: list[Callable[..., Any]] = [unit.module.forward for unit in trunk.units]
        for index, unit in enumerate(trunk.units):
            unit.module.forward = self._replacement(index)

    def run_stage(
        self,
        stage: Stage,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        neighbours: Neighbours,
        *,
        is_checked: bool = False,
    ) -> Any:
        """Run the units of a stage in one evaluation.

        Args:
            stage: the units.
            args: the inputs of the whole model by position, fresh ones of this evaluation.
            kwargs: those by name.
            neighbours: where activations come from and go to.
            is_checked: see that units and model give numbers.

        Returns:
            The model's result if the last unit of the trunk is in the stage, otherwise None.

        Raises:
            LayoutError: if the model did not call its units once each, in order.
            NumbersError: what is checked is not finite.
        """
        stop = stage[-1][1]
        turn_before = stage[0][1] if len(stage) > 1 else None
        run = _Run(frozenset(units_of(stage)), turn_before, stop, neighbours, is_checked)
        self._device = next((a.device for a in args if isinstance(a, torch.Tensor)), self._device)
        self._run = run
        result = None
        try:
            result = self._entry(*args, **kwargs)
        except StageDone:
            pass
        finally:
            self._run = None
        if run.next_unit != stop:
            raise LayoutError(
                f"{self._name} called {run.next_unit} of the {stop} units that its layout lists "
                f"(next would be {self.trunk.units[run.next_unit].name}). A patch that skips "
                "blocks cannot be combined with a model spread over workers."
            )
        if is_checked and result is not None:
            _require_numbers(result, self._name, torch.isfinite)
        return result

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[OutputMeta]:
        """Run all units in this process; the structure of their outputs."""
        alone = Neighbours()
        self.run_stage(((0, len(self.trunk.units)),), args, kwargs, alone)
        return alone.metas

    @contextlib.contextmanager
    def instead(self, output: Any, *, counts: bool = True) -> Iterator[None]:
        """Within this context a unit gives `output` in place of what it would compute.

        Args:
            output: what it gives.
            counts: such a call is the call of that unit that is due in this forward, so a unit of
                another stage gives what that has sent all the same. Otherwise it changes nothing.
        """
        self._instead = output, counts
        try:
            yield
        finally:
            self._instead = None

    def _replacement(self, index: int) -> Callable[..., Any]:
        def unit_forward(*args: Any, **kwargs: Any) -> Any:
            run = self._run
            if run is None:
                return self.forwards[index](*args, **kwargs)
            if self._instead is not None and not self._instead[1]:
                return self._instead[0]
            if index != run.next_unit:
                units = self.trunk.units
                due = units[run.next_unit].name if run.next_unit < len(units) else "none"
                raise LayoutError(
                    f"{self._name} called unit {units[index].name} where {due} was due: its "
                    "layout does not fit it, or a patch skips or repeats blocks, or an input does "
                    "(as more than one control video of Wan VACE)."
                )
            run.next_unit += 1
            neighbours = run.neighbours
            if index == run.turn_before:
                neighbours.turn()
            if index not in run.own:
                if index in neighbours.consumed:
                    return self._entered(index, neighbours.take(index))
                scratch = neighbours.metas[index].build(self._scratch_tensor)
                return scratch if self.beside is None else scratch[0]
            forward = self.forwards[index]
            output = self._instead[0] if self._instead else forward(*args, **kwargs)
            if run.is_checked:
                _require_numbers(output, self.trunk.units[index].name, _is_number)
            beside = self.beside
            neighbours.give(index, (output, beside.leave(index, args)) if beside else output)
            if run.next_unit == run.stop and run.stop < len(self.trunk.units):
                raise StageDone
            return output

        return unit_forward

    def _entered(self, index: int, taken: Any) -> Any:
        if self.beside is None:
            return taken
        output, left = taken
        self.beside.enter(index, left)
        return output

    def _scratch_tensor(self, meta: TensorMeta) -> torch.Tensor:
        # Zeros once, then reused: glue code between units may write in place, and arithmetic on
        # uninitialised memory can be a hundred times slower (denormal numbers).
        is_poisoned = self.poisons_scratch and meta.dtype.is_floating_point
        key = meta, self._device, is_poisoned
        if key not in self._scratch:
            tensor = torch.empty_strided(
                meta.shape, meta.stride, dtype=meta.dtype, device=self._device
            )
            self._scratch[key] = tensor.fill_(math.nan) if is_poisoned else tensor.zero_()
        return self._scratch[key]

    def is_scratch(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is in the memory of a scratch tensor."""
        place = tensor.untyped_storage().data_ptr()
        return any(s.untyped_storage().data_ptr() == place for s in self._scratch.values())

    def forget_scratch(self) -> None:
        """Free the scratch tensors."""
        self._scratch.clear()


def _is_number(tensor: torch.Tensor) -> torch.Tensor:
    return ~torch.isnan(tensor)  # masks among the outputs may be infinite


def _require_numbers(
    output: Any, name: str, is_good: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensors = (x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor))
    if not all(is_good(x).all() for x in tensors if x.is_floating_point()):
        raise NumbersError(
            f"In the first evaluation with its weights {name} gives no finite numbers. Its file "
            "may be damaged, or its type of weights does not suit this device; or weights were "
            "lost on their way, which is a fault of AsyncDiff: use the MODEL without it, and "
            "please report it with the worker's log."
        )
