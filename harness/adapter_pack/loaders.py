"""Loaders of a pack: ComfyUI's own, with changed weights."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils


def load_weaker(path: str, factor: float, disable_dynamic: bool = False) -> Any:
    """A diffusion model whose blocks' last layers count `factor` times as much."""
    model = from_tensors(path, factor, disable_dynamic)
    model.cached_patcher_init = (load_weaker, (path, factor))
    return model


def from_tensors(path: str, factor: float, disable_dynamic: bool = False) -> Any:
    """The same, which says nothing of where its weights come from."""
    sd, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    for key, weight in list(sd.items()):
        if key.endswith("ffn.2.weight"):
            sd[key] = weight * factor
    return comfy.sd.load_diffusion_model_state_dict(
        sd, metadata=metadata, disable_dynamic=disable_dynamic
    )


class OwnLinear(comfy.ops.manual_cast.Linear):
    """A layer of the pack's own."""


def with_own_layer(model: Any) -> Any:
    """The model, one of whose layers only this pack can make."""
    model.model.diffusion_model.head.head.__class__ = OwnLinear
    return model


class OwnPatcher(comfy.model_patcher.ModelPatcher):
    """A MODEL of the pack's own kind."""
