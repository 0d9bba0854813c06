"""An SDXL of reduced width in ComfyUI's own classes. Workers import this module too."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

UNET_CONFIG = {
    "use_checkpoint": False,
    "image_size": 32,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "in_channels": 4,
    "model_channels": 64,  # 320 in the real one
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 3, 3],  # 0, 0, 2, 2, 10, 10
    "channel_mult": [1, 2, 4],
    "transformer_depth_middle": 3,
    "use_linear_in_transformer": True,
    "context_dim": 128,  # 2048
    "num_head_channels": 32,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 3, 3, 3],
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
    "dtype": torch.float32,
}


def load() -> Any:
    """A ModelPatcher, the same weights every time."""
    config = comfy.supported_models.SDXL(dict(UNET_CONFIG))
    config.unet_config.update(num_head_channels=32)
    model = config.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, value in model.diffusion_model.state_dict().items():
        if value.ndim == 1:
            state[key] = torch.full(value.shape, 1.0 if key.endswith("weight") else 0.01)
        else:
            fan_in = value[0].numel()
            state[key] = torch.randn(value.shape, generator=generator) / fan_in**0.5
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    model.load_model_weights(state, "")
    patcher.cached_patcher_init = (load, ())
    return patcher
