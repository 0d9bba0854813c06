"""Z-Image's Fun ControlNets, whose own blocks follow one another beside those of the model.

The first of them reads what enters the model's first layer, each other one what the one before it
has made, and every second layer or so gets a part of that. The patch keeps it from layer to layer.
So where the trunk is cut, what it keeps crosses with the output of the last unit, and each stage
computes those of its blocks that belong to its own layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ...algorithm.stage import StagedModel

# ComfyUI's class, by its name.
FLOWING = "ZImageControlPatch"

_REFINER, _LAYERS = "noise_refiner", "layers"


class Flow:
    """What these patches of one evaluation keep, see algorithm.stage.Beside.

    Args:
        staged: gives the model that is run.
    """

    def __init__(self, patches: list[Any], staged: Callable[[], StagedModel]) -> None:
        self._patches = patches
        self._staged = staged
        self._first_input: torch.Tensor | None = None  # of the first layer, in another stage

    def leave(self, unit: int, args: tuple[Any, ...]) -> Any:
        """For each patch, how far it is and what it goes on with; and what entered `unit`, if the
        next stage has to compute the first block from that."""
        spans = self._staged().trunk.spans
        # Before the first call of this evaluation a patch has what is left of another one.
        has_begun = unit > spans[_REFINER][0][0]
        kept = (patch.temp_data if has_begun else None for patch in self._patches)
        steps = tuple((state[0], state[1][1]) if state else () for state in kept)
        return steps, args[:1] if unit == spans[_LAYERS][0][0] else ()

    def enter(self, unit: int, left: Any) -> None:
        """Have the patches go on from there."""
        steps, entered = left
        for patch, step in zip(self._patches, steps, strict=True):
            patch.temp_data = (step[0], (None, step[1])) if step else None
        if entered:
            (self._first_input,) = entered

    def of(self, patch: Any) -> Callable[[dict[str, Any]], Any]:
        """What stands for a patch: it does nothing for units whose outputs this stage has not."""

        @functools.wraps(type(patch), updated=())
        def flowing(args: dict[str, Any]) -> Any:
            if self._staged().is_scratch(args["img"]):
                return {}
            is_refiner, block = args.get("block_type") == _REFINER, args["block_index"]
            if is_refiner and block == 0:
                patch.temp_data = None
            if not is_refiner and block == 0 and self._first_input is not None:
                tokens = args["img"].shape[1]  # those of the picture stand behind those of the text
                args = {**args, "img_input": self._first_input[:, -tokens:]}
            return patch(args)

        return flowing


def flow_of(code: dict[str, Any], staged: Callable[[], StagedModel]) -> Flow | None:
    """What flows beside the units with the patches `code`, whose lists get what stands for them."""
    lists = [code.get("patches", {}).get(name, []) for name in ("noise_refiner", "double_block")]
    found = {id(p): p for patches in lists for p in patches if type(p).__name__ == FLOWING}
    if not found:
        return None
    flow = Flow([*found.values()], staged)
    for patches in lists:
        patches[:] = [flow.of(patch) if id(patch) in found else patch for patch in patches]
    return flow
