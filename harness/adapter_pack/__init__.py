"""A node pack of the tests: attention replaced as IP-Adapter does it, by objects with tensors.

ComfyUI loads packs under names that no other process can import.
"""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import folder_paths
import torch

from . import loaders, server_loaders, stand_ins, ways
from .attention import ImageAttention
from .compiling import TestTorchCompile
from .inputs import TestConditioning, TestLatent, TestSaveLatent
from .model_node import ModelNode
from .oracle import TestOracle
from .patch_models import TestControlNet, TestPatchModel
from .tiny import TestDescribedModel

BLOCKS = (("input", 3), ("middle", 0), ("output", 0), ("output", 1))  # of the tests' SD 1.5


class TestImageAdapter(ModelNode):
    """Adds attention to eight tokens of an imaginary image, in blocks of every stage."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",), "weight": ("FLOAT", {"default": 0.5})}}

    def patch(self, model: Any, weight: float) -> tuple[Any]:
        model = model.clone()
        for number, (block, index) in enumerate(BLOCKS):
            model.set_model_attn2_replace(ImageAttention(weight, number), block, index)
        return (model,)


class TestModelPatch(ModelNode):
    """A patch that brings a model of its own."""

    def patch(self, model: Any) -> tuple[Any]:
        model = model.clone()
        devices = {"load_device": model.load_device, "offload_device": model.offload_device}
        own = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), **devices)

        class Patch:
            def __call__(self, args: Any) -> Any:
                return args

            def models(self) -> list[Any]:
                return [own]

        Patch.__name__ = "AnimaLLLitePatch"  # as one of ComfyUI's that workers can have
        model.set_model_patch(Patch(), "post_input")
        return (model,)


class TestWay(ModelNode):
    """One of the ways of ways.py, anew in every prompt."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",), "way": (list(ways.WAYS),)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802 - ComfyUI's name
        return float("nan")

    def patch(self, model: Any, way: str) -> tuple[Any]:
        return (ways.WAYS[way](model),)


class TestUndo:
    """Puts back what ways.py has changed past ComfyUI's patches."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "undo"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"number": ("INT", {"max": 2**31})}}

    def undo(self, number: int) -> Any:
        ways.undo_all()
        return {}


class TestPackLoader:
    """A MODEL by a loader of this pack."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        file = (folder_paths.get_filename_list("diffusion_models"),)
        return {"required": {"unet_name": file, "needs_server": ("BOOLEAN", {"default": False})}}

    def load(self, unet_name: str, needs_server: bool) -> tuple[Any]:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        return ((server_loaders.load if needs_server else loaders.load_weaker)(path, 0.5),)


class TestTensorLoader(TestPackLoader):
    """A MODEL that a pack has made from tensors, as it stands or with something of its own."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        file = (folder_paths.get_filename_list("diffusion_models"),)
        kinds = (["plain", "own layer", "own patcher", "loader replaced"],)
        return {"required": {"unet_name": file, "kind": kinds}}

    def load(self, unet_name: str, kind: str) -> tuple[Any]:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        model = loaders.from_tensors(path, 0.5)
        if kind == "own layer":
            loaders.with_own_layer(model)
        elif kind == "own patcher":
            model = loaders.load_weaker(path, 0.5, disable_dynamic=True)
            model.__class__ = loaders.OwnPatcher
        elif kind == "loader replaced":
            model.cached_patcher_init = (lambda path: loaders.from_tensors(path, 0.5), (path,))
        return (model,)


class TestGGUFModel(ModelNode):
    """A MODEL with the patcher class of ComfyUI-GGUF, whose loader leaves no file name either."""

    def patch(self, model: Any) -> tuple[Any]:
        model = model.clone(disable_dynamic=True)
        model.__class__ = type("GGUFModelPatcher", (type(model),), {})
        model.cached_patcher_init = None
        return (model,)


NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        *(TestImageAdapter, TestModelPatch, TestTorchCompile, TestGGUFModel),
        *(TestConditioning, TestLatent, TestSaveLatent),
        *(TestWay, TestUndo, TestPackLoader, TestTensorLoader),
        *(TestDescribedModel, TestPatchModel, TestControlNet, TestOracle, *stand_ins.NODES),
    )
}
