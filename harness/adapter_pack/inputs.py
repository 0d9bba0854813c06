"""Inputs of a sampler for models whose text encoder is too large for a test."""

from __future__ import annotations

import json
from typing import Any

import comfy.nested_tensor
import torch


class TestConditioning:
    """A random prompt of seven tokens; `pooled` 0 leaves the pooled output away.

    `more` has the shapes of further tensors, by the names that their model's text encoder gives
    them: random ones, or for names of tokens small whole numbers.
    """

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        numbers = {k: ("INT", {"min": 0, "max": 2**20}) for k in ("width", "pooled", "seed")}
        optional = {"more": ("STRING", {"default": "{}"})}
        return {"required": {**numbers, "masked": ("BOOLEAN", {})}, "optional": optional}

    def make(
        self, width: int, pooled: int, seed: int, masked: bool, more: str = "{}"
    ) -> tuple[Any]:
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, 7, width, generator=generator)
        others = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        if masked:
            others["attention_mask"] = torch.ones(1, 7, dtype=torch.int64)
        for name, shape in json.loads(more).items():
            if name.endswith("_tokens"):
                name = name.removesuffix("_tokens")
                others[name] = torch.randint(0, 16, shape, generator=generator)
            else:
                others[name] = torch.randn(shape, generator=generator)
        return ([[context, others]],)


class TestLatent:
    """An empty latent of these shapes; of several parts (video and audio) if there are several.

    `number` changes nothing, but ComfyUI does not know.
    """

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        number = ("INT", {"default": 0, "max": 2**31})
        return {"required": {"shapes": ("STRING", {})}, "optional": {"number": number}}

    def make(self, shapes: str, number: int = 0) -> tuple[Any]:
        parts = [torch.zeros(shape) for shape in json.loads(shapes)]
        nested = comfy.nested_tensor.NestedTensor(parts) if len(parts) > 1 else parts[0]
        return ({"samples": nested},)


class TestSaveLatent:
    """Saves the latent, of several parts end to end, as SaveLatent does one of a single part."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"samples": ("LATENT",), "filename_prefix": ("STRING", {})}}

    def save(self, samples: Any, filename_prefix: str) -> Any:
        import nodes

        latent = samples["samples"]
        parts = latent.unbind() if latent.is_nested else [latent]
        flat = torch.cat([part.flatten() for part in parts])
        return nodes.SaveLatent().save({"samples": flat}, filename_prefix)
