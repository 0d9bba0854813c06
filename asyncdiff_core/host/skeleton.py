"""The diffusion model in the ComfyUI process: its class, its names and shapes, and no weights.

A skeleton keeps everything that ComfyUI asks of a BaseModel (real `model_sampling`,
`latent_format`, conditioning code, parameter names and shapes for LoRA keys) and sends only the
call that computes to where the weights are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import torch

from ..evaluator import Inputs
from .layouts import entry_of, host_parts_of, position_of
from .loading import Loader, copy_some_weights, deferred_weights, materialise

# (x, transformer_options, what gives the arguments with other transformer_options) -> output
Evaluate = Callable[[Any, dict[str, Any], Callable[[dict[str, Any]], Inputs]], Any]


def build_skeleton(loader: Loader) -> Any:
    """What `loader` returns, with the parameters of its diffusion model on the meta device.

    Only headers are read of a safetensors file, and the parts that ComfyUI's conditioning code runs
    in this process (see layouts.HOST_PARTS).
    """

    def read(base_model: Any, copy_weights: Callable[[], Any]) -> None:
        parts = host_parts_of(base_model.diffusion_model)
        if parts:
            for part in parts:
                materialise(base_model.diffusion_model.get_submodule(part))
            prefixes = tuple(f"{part}." for part in parts)
            copy_some_weights(base_model, copy_weights, lambda key: key.startswith(prefixes))

    with deferred_weights(read):
        return loader.without_paging()


def make_remote(diffusion_model: torch.nn.Module, evaluate: Evaluate) -> None:
    """Replace what computes in `diffusion_model` by `evaluate`.

    `evaluate` gets the latent, the transformer_options, and a function that gives the arguments of
    the model's entry method with other options in their place. Wrappers around the diffusion model
    (EasyCache and its kin) still run here, in the ComfyUI process, around `evaluate`.
    """
    original = type(diffusion_model)
    entry = entry_of(diffusion_model)
    # Wrappers are written for each model's own parameter order, so positions must be kept.
    index = position_of(diffusion_model, "transformer_options")

    def remote(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_positional = index < len(args)
        options = args[index] if is_positional else kwargs.get("transformer_options", {})

        def with_options(options: dict[str, Any]) -> Inputs:
            if is_positional:
                return (*args[:index], options, *args[index + 1 :]), kwargs
            return args, {**kwargs, "transformer_options": options}

        return evaluate(args[0], options, with_options)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # These classes call no DIFFUSION_MODEL wrappers by themselves.
        options = kwargs.get("transformer_options", {})
        extension = comfy.patcher_extension
        wrappers = extension.get_all_wrappers(extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = extension.WrapperExecutor.new_class_executor(
            lambda *a, **k: remote(self, *a, **k), self, wrappers
        )
        return executor.execute(*args, **kwargs)

    members = {
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        entry: forward if entry == "forward" else remote,
    }
    # The same name, for code that tells architectures apart by it; still an instance of its class.
    diffusion_model.__class__ = type(original.__name__, (original,), members)
