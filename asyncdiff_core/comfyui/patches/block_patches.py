"""Patches that stand for a whole block (`patches_replace["dit"]`), and may leave it out.

A stage must see every unit called, in order: it gives stored activations in place of earlier units
and ends behind its own last one. So where a patch does not call its block (Skip Layer Guidance),
the block's unit is called all the same, and gives what the patch gave.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from ...algorithm.stage import StagedModel

Patch = Callable[[Any, dict[str, Any]], Any]


def with_every_unit_called(code: dict[str, Any], staged: Callable[[], StagedModel]) -> None:
    """Wrap the patches in `code` that stand for a whole block.

    Args:
        code: what was kept.
        staged: gives the model that the worker holds now.
    """
    patches = code.get("patches_replace", {}).get("dit", {})
    for block, patch in patches.items():
        patches[block] = _wrapped(patch, staged)


def _wrapped(patch: Patch, staged: Callable[[], StagedModel]) -> Patch:
    # Errors name a patch by its function or its class.
    @functools.wraps(patch if hasattr(patch, "__qualname__") else type(patch), updated=())
    def wrapped(args: Any, extra: dict[str, Any]) -> Any:
        original = extra["original_block"]
        is_called = False

        def original_block(*its_args: Any, **its_kwargs: Any) -> Any:
            nonlocal is_called
            is_called = True
            return original(*its_args, **its_kwargs)

        outcome = patch(args, {**extra, "original_block": original_block})
        if is_called or not isinstance(outcome, dict):
            return outcome
        output = _output_for(outcome, original, args, staged())
        with staged().instead(output):
            return {**outcome, **original(args)}

    return wrapped


def _output_for(
    outcome: dict[str, Any], original: Callable[[Any], dict[str, Any]], args: Any, staged: Any
) -> Any:
    """What the unit must give for its block to give `outcome`: a tensor, or a pair of them.

    The model's glue code takes the output apart by a rule of its own; so it gets a sample.
    """
    sample = _Sample()
    with staged.instead(sample, counts=False):
        names = {id(part): name for name, part in original(args).items()}
    if id(sample) in names:
        return outcome[names[id(sample)]]
    # What the glue code does not use is in no outcome.
    return tuple(outcome[names[id(p)]] if id(p) in names else None for p in sample.parts)


class _Sample:
    """An output whose parts can be told apart, if it is taken apart."""

    def __init__(self) -> None:
        self.parts = object(), object()

    def __iter__(self) -> Iterator[object]:
        return iter(self.parts)
