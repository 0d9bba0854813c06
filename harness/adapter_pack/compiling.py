"""torch.compile with more to choose than TorchCompileModel offers."""

from __future__ import annotations

from typing import Any

import torch

from .model_node import ModelNode


def scaled(graph: torch.fx.GraphModule, example_inputs: list[Any], **_: Any) -> Any:
    """A backend whose results show that it was used."""

    def scale(x: Any) -> Any:
        return x * 1.25 if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    def run(*args: Any) -> list[Any]:
        return [scale(x) for x in graph(*args)]

    return run


def broken(graph: torch.fx.GraphModule, example_inputs: list[Any], **_: Any) -> Any:
    raise RuntimeError("there is no compiler for this")


class TestTorchCompile(ModelNode):
    """`keys` are names of modules, with spaces between."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        text = ("STRING", {"default": ""})
        return {"required": {"model": ("MODEL",), "backend": text, "keys": text}}

    def patch(self, model: Any, backend: str, keys: str) -> tuple[Any]:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        own = {"scaled": scaled, "broken": broken}
        model = model.clone(disable_dynamic=True)
        set_torch_compile_wrapper(model, own.get(backend, backend), {}, keys=keys.split())
        return (model,)
