"""Packed tensors, and layers that unpack them when they are used."""

from __future__ import annotations

import warnings
from typing import Any

import comfy.lora
import comfy.ops
import gguf
import torch

_NUMBERS = {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}


class PackedTensor(torch.Tensor):
    """The bytes of a tensor of a file.

    Attributes:
        tensor_type: how they are packed.
        tensor_shape: of what they stand for; `shape` says this as well.
        patches: to apply to that.
    """

    tensor_type: Any
    tensor_shape: torch.Size
    patches: list[Any]

    @staticmethod
    def of(tensor: Any) -> PackedTensor:
        shape = torch.Size(int(size) for size in reversed(tensor.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody writes into the mapped file
            data = torch.from_numpy(tensor.data)
        if tensor.tensor_type in _NUMBERS:
            data = data.view(shape)
        return data.as_subclass(PackedTensor)._with(tensor.tensor_type, shape, [])

    def _with(self, kind: Any, shape: torch.Size, patches: list[Any]) -> PackedTensor:
        self.tensor_type, self.tensor_shape, self.patches = kind, shape, patches
        return self

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.__dict__.get("tensor_shape", self.size())

    def to(self, *args: Any, **kwargs: Any) -> Any:
        moved = super().to(*args, **kwargs)
        return moved._with(
            getattr(self, "tensor_type", None), self.shape, list(getattr(self, "patches", []))
        )

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def detach(self, *args: Any, **kwargs: Any) -> Any:
        return self


def is_packed(tensor: Any) -> bool:
    return getattr(tensor, "tensor_type", None) not in {None, *_NUMBERS}


def unpacked(tensor: PackedTensor) -> torch.Tensor:
    """What a packed tensor stands for, in fp32, with its patches."""
    data = tensor.cpu().numpy() if is_packed(tensor) else None
    values = tensor.float().as_subclass(torch.Tensor)
    if data is not None:
        values = torch.from_numpy(gguf.quants.dequantize(data, tensor.tensor_type))
        values = values.reshape(tensor.tensor_shape).to(tensor.device)
    for patches, key in getattr(tensor, "patches", []):
        values = comfy.lora.calculate_weight(patches, values, key)
    return values


class _Layer(torch.nn.Module):
    comfy_cast_weights = True
    dequant_dtype: Any = None

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        weight, bias = state.get(f"{prefix}weight"), state.get(f"{prefix}bias")
        if not (is_packed(weight) or isinstance(self, torch.nn.Linear)):
            super()._load_from_state_dict(state, prefix, *args)
            return
        if weight is not None:
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = torch.nn.Parameter(bias, requires_grad=False)

    def forward_comfy_cast_weights(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_packed(self.weight):
            output = super().forward_comfy_cast_weights(input, *args, **kwargs)
            return output.as_subclass(torch.Tensor)
        weight = unpacked(self.weight).to(input.device, self.dequant_dtype).to(input.dtype)
        bias = None if self.bias is None else unpacked(self.bias).to(input.device, input.dtype)
        return torch.nn.functional.linear(input, weight, bias)


class PackedLayers(comfy.ops.manual_cast):
    """ComfyUI's layers, of which the linear ones may be packed."""

    class Linear(_Layer, comfy.ops.manual_cast.Linear):
        def __init__(
            self, in_features: int, out_features: int, bias: bool = True, **_: Any
        ) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight = self.bias = None
