"""The node, and the patcher of its MODELs."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import gguf
import torch

from .layers import PackedLayers, PackedTensor, is_packed

_paths, _ = folder_paths.folder_names_and_paths["diffusion_models"]
folder_paths.folder_names_and_paths["unet_gguf"] = (_paths, {".gguf"})


class GGUFModelPatcher(comfy.model_patcher.ModelPatcher):
    """Leaves patches of packed weights to the layers, which apply them to what they unpack."""

    def patch_weight_to_device(
        self, key: str, device_to: Any = None, inplace_update: bool = False, **more: Any
    ) -> Any:
        weight = comfy.utils.get_attr(self.model, key)
        if key not in self.patches or not is_packed(weight):
            return super().patch_weight_to_device(key, device_to, inplace_update, **more)
        patched = weight.to(device_to)
        patched.patches = [(self.patches[key], key)]
        return comfy.utils.set_attr_param(self.model, key, patched)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        if unpatch_weights:
            for weight in filter(is_packed, self.model.parameters()):
                weight.patches = []
        return super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)

    def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> Any:
        return super().load(*args, force_patch_weights=True, **kwargs)

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        kind, self.__class__ = self.__class__, GGUFModelPatcher
        made = super().clone(*args, **kwargs)
        made.__class__, self.__class__ = GGUFModelPatcher, kind
        return made


class UnetLoaderGGUF:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"unet_name": (folder_paths.get_filename_list("unet_gguf"),)}}

    def load_unet(self, unet_name: str, dequant_dtype: Any = None) -> tuple[Any]:
        layers = PackedLayers()
        if dequant_dtype is not None:
            layers.Linear.dequant_dtype = getattr(torch, dequant_dtype)
        path = folder_paths.get_full_path("unet", unet_name)
        tensors = {one.name: PackedTensor.of(one) for one in gguf.GGUFReader(path).tensors}
        options = {"custom_operations": layers}
        model = comfy.sd.load_diffusion_model_state_dict(tensors, model_options=options)
        return (GGUFModelPatcher.clone(model),)


NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": UnetLoaderGGUF}
