"""In a worker: weights that stay in the host's memory, and go to the device when they are used.

It is ComfyUI's own code that does it (`lowvram_model_memory` of its ModelPatcher): which weights
stay, pinned memory, streams of their own, and LoRAs on them. A worker on the CPU does the same,
which costs it no memory of its own but for one layer: weights of the type that the model has stay
in the mapped file, and are copied from there when they are used.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...workers.memory import forget_pages
from .loading import as_loaded

# ComfyUI takes 0 for "all", and this for "none", as with --novram.
NOTHING = 0.1


class Streaming:
    """What of a stage's weights may stay on its device.

    Args:
        device: of the worker.
        budget: how many bytes; None: all of them.
    """

    def __init__(self, device: torch.device, budget: int | None) -> None:
        self._device = device
        self._budget = budget
        # Parts of the mapped file, by the names of parameters that may be streamed.
        self._in_file: dict[str, torch.Tensor] = {}

    def value(
        self, model: torch.nn.Module, key: str, tensor: torch.Tensor, like: torch.Tensor | None
    ) -> torch.Tensor:
        """What the parameter `key` of `model` is made of `tensor`, of a file; see as_loaded."""
        on_cpu = self._device.type == "cpu"
        if on_cpu and self._budget is not None and like is not None:
            layer, _, name = key.rpartition(".")
            can_cast = hasattr(model.get_submodule(layer), "comfy_cast_weights")
            is_same = (tensor.shape, tensor.dtype) == (like.shape, like.dtype)
            if can_cast and is_same and name in ("weight", "bias"):
                self._in_file[key] = tensor
                return tensor
        # What goes to a GPU needs no second place in the host's memory, nor does what becomes of
        # another type on its way.
        place = self._device if self._budget is None else "cpu"
        value = as_loaded(tensor, like, copy=on_cpu, device=place)
        if on_cpu and value is not tensor:
            forget_pages(tensor)
        return value

    def was_read(self, key: str, value: torch.Tensor) -> None:
        """All of the parameter `key` was read, and nothing of it is needed for now."""
        if self._is_in_file(key, value):
            forget_pages(value)

    def patch(self, patcher: Any) -> None:
        """Have the weights of `patcher`, a ModelPatcher, on the device, with its patches."""
        if self._budget is None:
            patcher.patch_model(device_to=self._device)
        else:
            patcher.patch_model(
                device_to=self._device, lowvram_model_memory=self._budget or NOTHING
            )
            self._take_from_file(patcher.model.diffusion_model)

    def streamed_bytes(self, model: torch.nn.Module) -> int:
        """How many bytes of the weights of `model` are not on the device."""
        if self._device.type == "cpu":
            return sum(p.nbytes for key, p in model.named_parameters() if self._is_in_file(key, p))
        return sum(p.nbytes for p in model.parameters() if p.device != self._device)

    def _take_from_file(self, model: torch.nn.Module) -> None:
        """On the CPU: copy what is not streamed; and have what is copied whenever it is used.

        Nothing is used in the file: a weight at another place in memory gives other last bits.
        """
        for name, module in model.named_modules():
            for own, parameter in list(module.named_parameters(recurse=False)):
                key = f"{name}.{own}"
                if key not in self._in_file:
                    continue
                if hasattr(module, "prev_comfy_cast_weights"):  # ComfyUI streams it
                    place = self._in_file[key]
                    copied = functools.partial(_copied_from, place)
                    getattr(module, f"{own}_function").insert(0, copied)
                    _put(module, own, place)
                elif self._is_in_file(key, parameter):
                    _put(module, own, as_loaded(parameter, parameter))
                    forget_pages(parameter)

    def _is_in_file(self, key: str, parameter: torch.Tensor) -> bool:
        place = self._in_file.get(key)
        return place is not None and place.data_ptr() == parameter.data_ptr()


def _put(module: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    setattr(module, name, torch.nn.Parameter(value, requires_grad=False))


def _copied_from(place: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A function for a layer's weight. Where there is one, ComfyUI copies the weight before."""
    forget_pages(place)
    return weight
