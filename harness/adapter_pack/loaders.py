"""A loader of a pack: ComfyUI's own, with changed weights."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.utils


def load_weaker(path: str, factor: float, disable_dynamic: bool = False) -> Any:
    """A diffusion model whose blocks' last layers count `factor` times as much."""
    sd, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    for key, weight in list(sd.items()):
        if key.endswith("ffn.2.weight"):
            sd[key] = weight * factor
    model = comfy.sd.load_diffusion_model_state_dict(
        sd, metadata=metadata, disable_dynamic=disable_dynamic
    )
    model.cached_patcher_init = (load_weaker, (path, factor))
    return model
