"""ControlNets run in the ComfyUI process, and some want parts of the diffusion model there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfy.patcher_extension import WrappersMP

KIND, KEY = WrappersMP.PREPARE_SAMPLING, "asyncdiff"

# ComfyUI's classes, by name, since not every version has them all, and the parts of a diffusion
# model that they take weights of, or compute with.
TAKEN = {
    "ControlLora": ("input_blocks", "middle_block", "time_embed", "label_emb"),
    "ControlNetSD35": ("x_embedder", "y_embedder"),
    "QwenFunControlNet": ("img_in", "txt_norm", "txt_in", "time_text_embed"),
}


def with_taken_parts(
    executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any
) -> Any:
    """A wrapper of `KIND`: goes on, and then has the parts that ControlNets of `conds` take in this
    process until the run ends, if the model is a distributed one.

    Raises:
        UnsupportedPatchError: they cannot be there as ComfyUI would have them.
    """
    result = executor(model, noise_shape, conds, *args, **kwargs)
    remote = getattr(model, "remote", None)
    if remote is not None:
        kinds = {base.__name__ for control in _controls(conds) for base in type(control).__mro__}
        if parts := {part for kind in kinds & set(TAKEN) for part in TAKEN[kind]}:
            remote.lent_parts.lend(parts, model)
    return result


def _controls(conds: dict[str, Any]) -> Iterator[Any]:
    for each in conds.values():
        for cond in each or ():
            control = cond.get("control")
            while control is not None:
                yield control
                control = control.previous_controlnet
