"""ControlNets run in the ComfyUI process, and some want weights of the diffusion model there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfy.patcher_extension import WrappersMP

from ...errors import UnsupportedPatchError

KIND, KEY = WrappersMP.PREPARE_SAMPLING, "asyncdiff"

# ComfyUI's classes, by name, since not every version has them all; and what is made of them.
TAKING_WEIGHTS = frozenset({"ControlLora", "ControlNetSD35", "QwenFunControlNet"})


def refuse_taking_weights(
    executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any
) -> Any:
    """A wrapper of `KIND`: goes on if no ControlNet of `conds` takes weights out of the MODEL, or
    if these are in this process.

    Raises:
        UnsupportedPatchError: one does.
    """
    is_here = not hasattr(model, "remote")
    for control in () if is_here else _controls(conds):
        names = TAKING_WEIGHTS.intersection(base.__name__ for base in type(control).__mro__)
        if names:
            raise UnsupportedPatchError(
                f"A ControlNet of the kind {min(names)} takes weights out of the diffusion model, "
                "and those of this MODEL are in worker processes. Use another kind of ControlNet, "
                "or the MODEL without AsyncDiff."
            )
    return executor(model, noise_shape, conds, *args, **kwargs)


def _controls(conds: dict[str, Any]) -> Iterator[Any]:
    for each in conds.values():
        for cond in each or ():
            control = cond.get("control")
            while control is not None:
                yield control
                control = control.previous_controlnet
