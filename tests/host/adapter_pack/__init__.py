"""A node pack of the tests: attention replaced as IP-Adapter does it, by objects with tensors.

ComfyUI loads packs under names that no other process can import.
"""

from __future__ import annotations

from typing import Any

from .attention import ImageAttention
from .compiling import TestTorchCompile
from .inputs import TestConditioning, TestLatent, TestSaveLatent

BLOCKS = (("input", 3), ("middle", 0), ("output", 0), ("output", 1))  # of the tests' SD 1.5


class ModelNode:
    """Takes a MODEL and returns a changed one."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("MODEL",)}}


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
        own = model.clone()

        class Patch:
            def __call__(self, args: Any) -> Any:
                return args

            def models(self) -> list[Any]:
                return [own]

        model.set_model_patch(Patch(), "post_input")
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
    )
}
