"""The trunk of a model: the ordered list of units that one forward executes.

A unit is the smallest part that is never split (a ResBlock, a SpatialTransformer, a DiT block).
Which attributes of a model hold its units is data, a `TrunkLayout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from .errors import LayoutError


@dataclass(frozen=True)
class TrunkLayout:
    """Which attributes of an architecture form its trunk.

    Attributes:
        blocks: the block lists, in the order in which a forward executes them. An attribute that
            is None in a given model is skipped.
        layers: the units are the layers inside each block, since the model's glue code calls
            those and not the block.
        skips: pairs of block lists; the output of block i of the first is consumed by block
            n-1-i of the second, before that block's first unit.
    """

    blocks: tuple[str, ...]
    layers: bool = False
    skips: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Unit:
    """One unit: its dotted name inside the model, and the module."""

    name: str
    module: torch.nn.Module


@dataclass(frozen=True)
class Trunk:
    """The units of one model in execution order, and its skips as (source, consumer) units."""

    units: tuple[Unit, ...]
    skips: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, model: torch.nn.Module, layout: TrunkLayout) -> Trunk:
        """Find the trunk of `model`.

        Raises:
            LayoutError: if an attribute of the layout is missing.
        """
        units: list[Unit] = []
        blocks_of: dict[str, list[tuple[int, int]]] = {}  # list -> (first, last) unit of each block
        for attribute in layout.blocks:
            spans = blocks_of.setdefault(attribute, [])
            for name, block in _blocks(model, attribute):
                first = len(units)
                if layout.layers:
                    units += [Unit(f"{name}.{i}", x) for i, x in enumerate(block.children())]
                else:
                    units.append(Unit(name, block))
                spans.append((first, len(units) - 1))
        skips = []
        for sources, consumers in layout.skips:
            pairs = zip(blocks_of[sources], reversed(blocks_of[consumers]), strict=True)
            skips += [(source[1], consumer[0]) for source, consumer in pairs]
        return cls(tuple(units), tuple(skips))


def _blocks(model: torch.nn.Module, attribute: str) -> Iterator[tuple[str, torch.nn.Module]]:
    try:
        value = getattr(model, attribute)
    except AttributeError:
        raise LayoutError(
            f"{type(model).__name__} has no attribute {attribute!r}, in which its blocks are "
            "expected. This ComfyUI version may have renamed it."
        ) from None
    if value is None:
        return
    if isinstance(value, torch.nn.ModuleList):
        for i, block in enumerate(value):
            yield f"{attribute}.{i}", block
    else:
        yield attribute, value


def parameter_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of real (not meta) parameters and buffers in `modules`, each tensor once."""
    seen: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if not tensor.is_meta:
                seen[id(tensor)] = tensor.nbytes
    return sum(seen.values())


def drop_parameters(modules: Iterable[torch.nn.Module]) -> None:
    """Take all parameters and buffers out of `modules`, which can then not run any more."""
    for module in modules:
        for part in module.modules():
            for name in part._parameters:
                part._parameters[name] = None
            for name in part._buffers:
                part._buffers[name] = None
