"""The diffusion model in the ComfyUI process: its class, its names and shapes, and no weights.

A skeleton keeps everything that ComfyUI asks of a BaseModel (real `model_sampling`,
`latent_format`, conditioning code, parameter names and shapes for LoRA keys) and sends only the
call that computes to where the weights are.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Collection
from typing import Any

import comfy.patcher_extension
import torch

from ...algorithm.evaluator import Inputs, argument, with_argument
from ...workers.memory import give_memory_back
from . import plain_objects  # noqa: F401  (has them cross)
from .absent import make_absent
from .calls import SAMPLED, ModelCall
from .layouts import entry_of, host_parts_of, position_of
from .loading import (
    QUANTISATION,
    Loader,
    as_loaded,
    as_meta,
    deferred_weights,
    load_chosen,
    require_loaded,
)

with contextlib.suppress(ImportError):  # an older ComfyUI has none
    import comfy.model_prefetch

TABLE_BYTES = 16 * 2**20  # SeedVR2 keeps its text embeddings so; SD3's positions are far more

See = Callable[[str, torch.Tensor], None] | None


def build_skeleton(loader: Loader, see: See = None, parts: Collection[str] = ()) -> Any:
    """What `loader` returns, with an AbsentWeight for every parameter of its diffusion model.

    Only headers are read of a safetensors file, and what ComfyUI's own process needs: the parts
    that conditioning code runs (see layouts.HOST_PARTS), and tables that nodes take from a model.

    Args:
        loader: the call that loads the model.
        see: called with each tensor of the file and its name in the diffusion model.
        parts: names of more submodules that are to have their weights.
    """

    def load(base_model: Any, load_whole: Callable[[], Any]) -> None:
        model = base_model.diffusion_model
        here = {*host_parts_of(model), *parts}
        prefixes = tuple(f"{part}." for part in here)

        def choose(
            key: str, tensor: torch.Tensor, like: torch.Tensor | None
        ) -> torch.Tensor | None:
            if see is not None:
                see(key, tensor)
            is_table = key in model._buffers and tensor.nbytes <= TABLE_BYTES
            is_needed = is_table or key.startswith(prefixes) or key.endswith(QUANTISATION)
            return as_loaded(tensor, like) if is_needed else as_meta(tensor, like)

        load_chosen(base_model, load_whole, choose)
        require_loaded({part: model.get_submodule(part) for part in here})

    with deferred_weights(load):
        patcher = loader.without_paging()
    make_absent(patcher.model.diffusion_model, patcher.load_device)
    # Each weight was made for a moment, between small objects that stay.
    give_memory_back()
    return patcher


def without_recording() -> contextlib.AbstractContextManager[Any]:
    """A newer ComfyUI records the allocations of a forward, to repeat them. Those of a remote call
    are no part of that."""
    prefetch = getattr(comfy, "model_prefetch", None)
    pause = getattr(prefetch, "pause_malloc_graph", contextlib.nullcontext)
    paused: contextlib.AbstractContextManager[Any] = pause()
    return paused


def make_remote(diffusion_model: torch.nn.Module, evaluate: Callable[[ModelCall], Any]) -> None:
    """Replace what computes in `diffusion_model` by `evaluate`.

    Wrappers around the diffusion model (EasyCache and its kin) still run here, in the ComfyUI
    process, around `evaluate`.
    """
    entry = entry_of(diffusion_model)
    # Wrappers are written for each model's own parameter order, so positions must be kept.
    index = position_of(diffusion_model, "transformer_options")

    def remote(*args: Any, **kwargs: Any) -> Any:
        inputs = args, kwargs
        options = dict(argument(inputs, index, "transformer_options") or {})
        sampled = options.pop(SAMPLED, None)

        def inputs_with(options: dict[str, Any]) -> Inputs:
            return with_argument(inputs, index, "transformer_options", options)

        with without_recording():
            return evaluate(ModelCall(args[0], options, inputs_with, sampled))

    model = weakref.ref(diffusion_model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        # These classes call no DIFFUSION_MODEL wrappers by themselves.
        options = kwargs.get("transformer_options", {})
        extension = comfy.patcher_extension
        wrappers = extension.get_all_wrappers(extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = extension.WrapperExecutor.new_class_executor(remote, model(), wrappers)
        return executor.execute(*args, **kwargs)

    # On the object: its class stays what it is, for code that tells architectures apart by it.
    setattr(diffusion_model, entry, forward if entry == "forward" else remote)
