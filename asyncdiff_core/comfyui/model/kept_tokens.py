"""HiDream O1 and its like keep what their blocks made of the prompt; in workers they do not.

With what they keep, blocks get fewer tokens in the second evaluation than in the first, so that
nothing that a stage has stored would fit. ComfyUI's own code keeps nothing where a block is
patched. The prompt is a few hundred of several thousand tokens, and what becomes of them depends
neither on the latent nor on the time: each evaluation computes the same for them once more.
"""

from __future__ import annotations

from typing import Any

import torch

from ...algorithm.evaluator import argument, with_argument
from .layouts import entry_of, position_of

_KEEPERS = {"HiDreamO1Transformer", "QwenImage21Transformer2DModel"}

# As a patch of a block that is none of them.
_NO_BLOCK = ("asyncdiff", 0)


def keep_no_tokens(model: torch.nn.Module) -> None:
    """Have a diffusion model keep nothing from one evaluation to the next, if it would."""
    if type(model).__name__ not in _KEEPERS:
        return
    entry = entry_of(model)
    original = getattr(model, entry)
    position = position_of(model, "transformer_options")

    def keeps_nothing(*args: Any, **kwargs: Any) -> Any:
        if args[0].is_meta and "vinput_mask" in kwargs:
            # Which tokens are those of pictures follows from values; how many there are does not.
            kwargs = {**kwargs, "ref_pixel_values": None, "vinput_mask": None}
        inputs = args, kwargs
        options = _patched(argument(inputs, position, "transformer_options") or {})
        args, kwargs = with_argument(inputs, position, "transformer_options", options)
        return original(*args, **kwargs)

    setattr(model, entry, keeps_nothing)


def _patched(options: dict[str, Any]) -> dict[str, Any]:
    patches = options.get("patches_replace", {})
    return {
        **options,
        "patches_replace": {**patches, "dit": {**patches.get("dit", {}), _NO_BLOCK: None}},
    }
