"""Whether the blocks of an unknown architecture can be its units, before anything is computed.

The model runs on the meta device, with inputs of the real shapes, and every operation is watched:
which units the tensors come from that it reads. The blocks can be spread if each reads the output
of the one before it and nothing else of the others, for this is what links carry. It holds for
every value, where a comparison of results would hold for the values that were tried.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..algorithm.trunk import Trunk
from ..errors import LayoutError

# What a tensor was made from: (evaluation, unit, whether it is the unit's output). What a unit
# makes and does not return exists on its own stage alone.
Origin = tuple[int, int, bool]
NUM_EVALUATIONS = 2  # the second one sees what the first has left in the model


def require_chain(
    model: torch.nn.Module,
    trunk: Trunk,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    entry: str,
) -> None:
    """Check that the units of `trunk` are called in order, and what each of them reads.

    Args:
        model: the model, its parameters on the meta device.
        trunk: its units.
        args: inputs of one evaluation by position.
        kwargs: those by name.
        entry: the method that an evaluation calls.

    Raises:
        LayoutError: the model cannot be cut between these units; the reason is named.
    """
    flow = _Flow(model, trunk)
    originals = [unit.module.forward for unit in trunk.units]
    for index, unit in enumerate(trunk.units):
        unit.module.forward = flow.watched(index, unit.module.forward)
    try:
        for evaluation in range(NUM_EVALUATIONS):
            flow.evaluate(evaluation, getattr(model, entry), _on_meta((args, kwargs)))
    except LayoutError as error:
        raise LayoutError(f"{_refusal(model, trunk)}: {error}") from error
    except Exception as error:
        raise LayoutError(
            f"{_refusal(model, trunk)}: they cannot be checked without weights "
            f"({type(error).__name__}: {error})."
        ) from error
    finally:
        for unit, original in zip(trunk.units, originals, strict=True):
            unit.module.forward = original


def _refusal(model: torch.nn.Module, trunk: Trunk) -> str:
    lists = dict.fromkeys(unit.name.rpartition(".")[0] for unit in trunk.units)
    return (
        f"{type(model).__name__} cannot be spread over devices. AsyncDiff has no layout for this "
        f"architecture, and its largest lists of blocks ({', '.join(lists)}) are no pipeline"
    )


class _Flow(TorchDispatchMode):
    """Follows what each tensor was made from, by its memory: views share it."""

    def __init__(self, model: torch.nn.Module, trunk: Trunk) -> None:
        super().__init__()
        self._model, self._names = model, [unit.name for unit in trunk.units]
        self._modules = [tuple(unit.module.modules()) for unit in trunk.units]
        self._globals = [_globals_of(modules) for modules in self._modules]
        self._origins: dict[int, frozenset[Origin]] = {}
        self._alive: list[torch.Tensor] = []  # so that no address is used twice
        self._evaluation = 0
        self._due = 0
        self._unit: int | None = None  # that runs now
        self._inputs: Any = None

    def evaluate(self, number: int, forward: Callable[..., Any], inputs: Any) -> None:
        """Run one evaluation."""
        self._evaluation, self._due, self._inputs = number, 0, inputs
        args, kwargs = inputs
        with self:
            result = forward(*args, **kwargs)
        if self._due < len(self._names):
            raise LayoutError(f"{self._names[self._due]} is not called.")
        last = len(self._names) - 1
        self._require("what comes after the last of them", self._read(result), {self._output(last)})

    def watched(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for the forward of a unit."""
        name = self._names[index]

        def unit_forward(*args: Any, **kwargs: Any) -> Any:
            if self._unit is not None or index != self._due:
                names = self._names
                due = names[self._due] if self._due < len(names) else "none of them"
                raise LayoutError(f"{name} is called where {due} is due.")
            before = self._state(index)
            self._unit = index
            output = forward(*args, **kwargs)
            if self._state(index) != before:
                raise LayoutError(f"{name} changes something beside its output.")
            leaves = _tensors(output)
            if len({_memory(leaf) for leaf in leaves}) < len(leaves):
                raise LayoutError(f"parts of the output of {name} share their memory.")
            # As in a stage, later units get memory of their own, which nothing else refers to.
            output = pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, output)
            self._unit = None
            for leaf in _tensors(output):
                self._origins[_memory(leaf)] = frozenset({self._output(index)})
            self._due += 1
            return output

        return unit_forward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = self._read((args, kwargs))
        made = read
        if self._unit is not None:
            inside = (self._evaluation, self._unit, False)
            self._require(self._names[self._unit], read, {self._output(self._unit - 1), inside})
            made = frozenset({inside})
        known = {_memory(x) for x in _tensors((args, kwargs))}
        output = func(*args, **kwargs)
        for tensor in _tensors(output):
            if _memory(tensor) not in known:
                self._origins[_memory(tensor)] = made
                self._alive.append(tensor)
        for tensor in _written(func, args, kwargs):
            self._origins[_memory(tensor)] = self._origins.get(_memory(tensor), frozenset()) | made
            self._alive.append(tensor)
        return output

    def _output(self, unit: int) -> Origin:
        return self._evaluation, unit, True

    def _read(self, value: Any) -> frozenset[Origin]:
        nothing: frozenset[Origin] = frozenset()
        return nothing.union(*(self._origins.get(_memory(x), nothing) for x in _tensors(value)))

    def _require(self, reader: str, read: Iterable[Origin], allowed: set[Origin]) -> None:
        for evaluation, unit, is_output in set(read) - allowed:
            what = "the output of" if is_output else "something inside"
            when = "" if evaluation == self._evaluation else " of the evaluation before"
            raise LayoutError(f"{reader} reads {what} {self._names[unit]}{when}.")

    def _state(self, index: int) -> Any:
        """What a unit could leave behind that is no tensor."""
        leaves, structure = pytree.tree_flatten(self._inputs)
        spaces = map(vars, (self._model, *self._modules[index], *self._globals[index]))
        return structure, [x for x in leaves if _is_plain(x)], [_variables(s) for s in spaces]


def _globals_of(modules: Iterable[torch.nn.Module]) -> list[ModuleType]:
    """The Python modules with the code of these, but for PyTorch's own."""
    names = {base.__module__ for module in modules for base in type(module).__mro__}
    return [
        sys.modules[name]
        for name in sorted(names & sys.modules.keys())
        if name != "builtins" and name.partition(".")[0] != "torch"
    ]


def _variables(space: Mapping[str, Any]) -> dict[str, Any]:
    sized = (list, dict, set, tuple)
    return {
        name: len(value) if isinstance(value, sized) else value
        for name, value in space.items()
        if isinstance(value, sized) or _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _on_meta(value: Any) -> Any:
    # Each time anew: models write into their inputs.
    return pytree.tree_map_only(torch.Tensor, lambda x: torch.empty_like(x, device="meta"), value)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The arguments that an operation writes into."""
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            written += _tensors(value)
    return written
