"""The trunk of a model: the ordered list of units that one forward executes.

A unit is the smallest part that is never split (a ResBlock, a SpatialTransformer, a DiT block).
Which attributes of a model hold its units is data, a `TrunkLayout`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LayoutError
from .stages import Range


@dataclass(frozen=True)
class ControlLayout:
    """Which residuals of a ControlNet an architecture adds where.

    Attributes:
        after: pairs (key of the control dict, block list); residual i is added to the output of
            block i of the list.
        before: the same; residual i is added to the skip that block i of the list reads.
        from_end: the model takes the residuals from the end of their list.
    """

    after: tuple[tuple[str, str], ...]
    before: tuple[tuple[str, str], ...] = ()
    from_end: bool = False


@dataclass(frozen=True)
class TrunkLayout:
    """Which attributes of an architecture form its trunk.

    Every unit consumes the output of the one before it. The fields after `layers` name what else
    reaches a unit.

    Attributes:
        blocks: the block lists, in the order in which a forward executes them; names may have
            dots. An attribute that is None in a given model is skipped.
        layers: the units are the layers inside each block, since the model's glue code calls
            those and not the block.
        skips: pairs of block lists; the output of block i of the first is consumed by block
            n-1-i of the second, before that block's first unit. Both may be the same list.
        joins: pairs of block lists; the output of the last block of the first is consumed by the
            first block of the second, where other blocks lie between.
        shared: pairs of block lists; the output of the last block of the first is consumed by
            every block of the second.
        beside: (list, side list, attribute): a second stream of blocks beside the first. The
            attribute maps the index of a block to that of the side block that runs after it.
        control: where control residuals are added; None where that is not known.
    """

    blocks: tuple[str, ...]
    layers: bool = False
    skips: tuple[tuple[str, str], ...] = ()
    joins: tuple[tuple[str, str], ...] = ()
    shared: tuple[tuple[str, str], ...] = ()
    beside: tuple[str, str, str] | None = None
    control: ControlLayout | None = None


@dataclass(frozen=True)
class Unit:
    """One unit: its dotted name inside the model, and the module."""

    name: str
    module: torch.nn.Module


@dataclass(frozen=True)
class Trunk:
    """The units of one model in execution order, and what its layout says about them.

    Attributes:
        skips: as (source, consumer) units.
        spans: block list -> (first, last) unit of each of its blocks.
    """

    units: tuple[Unit, ...]
    skips: tuple[tuple[int, int], ...]
    layout: TrunkLayout
    spans: dict[str, list[Range]]

    @classmethod
    def of(cls, model: torch.nn.Module, layout: TrunkLayout) -> Trunk:
        """Find the trunk of `model`.

        Raises:
            LayoutError: if an attribute of the layout is missing.
        """
        units: list[Unit] = []
        spans: dict[str, list[Range]] = {}

        def add(attribute: str, name: str, block: torch.nn.Module) -> None:
            first = len(units)
            if layout.layers:
                units.extend(Unit(f"{name}.{child}", x) for child, x in block.named_children())
            else:
                units.append(Unit(name, block))
            spans[attribute].append((first, len(units) - 1))

        main, side, mapping = layout.beside or ("", "", "")
        for attribute in layout.blocks:
            spans[attribute] = []
            beside: dict[int, tuple[str, torch.nn.Module]] = {}
            if attribute == main:
                spans[side] = []
                side_blocks = list(_blocks(model, side))
                beside = {at: side_blocks[n] for at, n in _attribute(model, mapping).items()}
            for index, (name, block) in enumerate(_blocks(model, attribute)):
                add(attribute, name, block)
                if index in beside:
                    add(side, *beside[index])
        return cls(tuple(units), tuple(_paths(layout, spans)), layout, spans)


def _paths(layout: TrunkLayout, spans: dict[str, list[Range]]) -> Iterator[tuple[int, int]]:
    """The (source, consumer) units of every path that is not from a unit to the next one."""
    for sources, consumers in layout.skips:
        for source, consumer in zip(spans[sources], reversed(spans[consumers]), strict=True):
            if source[1] < consumer[0]:
                yield source[1], consumer[0]
    for sources, consumers in layout.joins:
        if spans[sources] and spans[consumers]:
            yield spans[sources][-1][1], spans[consumers][0][0]
    for sources, consumers in layout.shared:
        if spans[sources]:
            for consumer in spans[consumers]:
                yield spans[sources][-1][1], consumer[0]
    if layout.beside:
        for stream in layout.beside[:2]:
            for source, consumer in itertools.pairwise(spans[stream]):
                if source[1] + 1 < consumer[0]:
                    yield source[1], consumer[0]


# Lists with less than this share of the largest one's parameters are no part of a guess: every
# stage runs them, as it runs all that stands around the units.
_GUESSED_SHARE = 0.1


def guess_layout(model: torch.nn.Module) -> TrunkLayout:
    """The largest lists of blocks of an unknown architecture, in the order of their definition.

    A guess: whether the forward calls them one after the other is for `chain_check.require_chain`.

    Raises:
        LayoutError: there is no list of at least two blocks.
    """
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{found}.") for found in sizes)
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and not is_inside:
            sizes[name] = sum(p.numel() for p in module.parameters())
    largest = max(sizes.values(), default=0)
    blocks = tuple(n for n, size in sizes.items() if largest and size >= _GUESSED_SHARE * largest)
    if not blocks:
        raise LayoutError(
            f"{type(model).__name__} has no list of blocks that could be spread over devices."
        )
    return TrunkLayout(blocks)


def _attribute(model: torch.nn.Module, name: str) -> Any:
    value: Any = model
    try:
        for part in name.split("."):
            value = getattr(value, part)
    except AttributeError:
        raise LayoutError(
            f"{type(model).__name__} has no attribute {name!r}, in which its blocks are "
            "expected. This ComfyUI version may have renamed it."
        ) from None
    return value


def _blocks(model: torch.nn.Module, attribute: str) -> Iterator[tuple[str, torch.nn.Module]]:
    value = _attribute(model, attribute)
    if value is None:
        return
    if isinstance(value, torch.nn.ModuleList | torch.nn.ModuleDict):
        for name, block in value.named_children():
            yield f"{attribute}.{name}", block
    else:
        yield attribute, value


def parameter_bytes(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of real (not meta) parameters and buffers in `modules`, each tensor once."""
    seen: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if not tensor.is_meta:
                seen[id(tensor)] = tensor_bytes(tensor)
    return sum(seen.values())


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes; a quantised one, which wraps others, those of its parts."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.nbytes
    return sum(tensor_bytes(getattr(tensor, name)) for name in flatten()[0])


def drop_parameters(modules: Iterable[torch.nn.Module]) -> None:
    """Take all parameters and buffers out of `modules`, which can then not run any more."""
    for module in modules:
        for part in module.modules():
            for name in part._parameters:
                part._parameters[name] = None
            for name in part._buffers:
                part._buffers[name] = None
