"""Tiny models of classes that ComfyUI's detection knows at full size only.

The file says of itself which class of comfy.supported_models it is for, and with which
configuration; the rest of loading is ComfyUI's.
"""

from __future__ import annotations

import json
import unittest.mock
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch


def load_described(path: str, disable_dynamic: bool = False) -> Any:
    """The MODEL of a file that own_process/template_models.py wrote."""
    sd, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    description = json.loads(metadata["described"])

    config = {
        key: getattr(torch, value[len("torch.") :]) if str(value).startswith("torch.") else value
        for key, value in description["config"].items()
    }

    def described(*_: Any, **__: Any) -> Any:
        made = getattr(comfy.supported_models, description["model"])(config)
        made.unet_config.update(config)  # the class sets some of its own
        return made

    with unittest.mock.patch.object(comfy.model_detection, "model_config_from_unet", described):
        model = comfy.sd.load_diffusion_model_state_dict(sd, disable_dynamic=disable_dynamic)
    model.cached_patcher_init = (load_described, (path,))
    return model


class TestDescribedModel:
    """A MODEL by `load_described`."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"unet_name": (folder_paths.get_filename_list("diffusion_models"),)}}

    def load(self, unet_name: str) -> tuple[Any]:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return (load_described(path),)
