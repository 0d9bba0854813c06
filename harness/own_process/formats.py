"""The formats in which people's files have the weights of linear layers.

`FORMATS` are functions from a state dict and the names of its linear layers to the state dict of
such a file. Needs ComfyUI on the search path. Formats that this ComfyUI does not know are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import comfy.quant_ops
import torch

State = dict[str, torch.Tensor]
Format = Callable[[State, Sequence[str]], State]

FP8 = torch.float8_e4m3fn


def _cast(dtype: torch.dtype) -> Format:
    def write(weights: State, layers: Sequence[str]) -> State:
        return {key: value.to(dtype) for key, value in weights.items()}

    return write


def _quantised(name: str, **more: Any) -> Format:
    """ComfyUI's own format: per layer the parts of the weight, and a text that names its kind."""
    layout = comfy.quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]

    def write(weights: State, layers: Sequence[str]) -> State:
        written = dict(weights)
        for layer in layers:
            weight = written.pop(f"{layer}.weight").float()
            options = {"scale": "recalculate"} if name in ("float8_e4m3fn", "nvfp4") else {}
            quantised = comfy.quant_ops.QuantizedTensor.from_float(
                weight, layout, **options, **more
            )
            parts = quantised.state_dict(f"{layer}.weight")
            written.update({key: value.contiguous() for key, value in parts.items()})
            kind = json.dumps({"format": name, **more}).encode()
            written[f"{layer}.comfy_quant"] = torch.tensor(list(kind), dtype=torch.uint8)
        return written

    return write


def _smoothed(weights: State, layers: Sequence[str]) -> State:
    """fp8 whose inputs are scaled and smoothed before they are quantised, as ModelOpt writes it."""
    written = _quantised("float8_e4m3fn")(weights, layers)
    for layer in layers:
        width = weights[f"{layer}.weight"].shape[1]
        written[f"{layer}.pre_quant_scale"] = 1.0 + 0.1 * torch.arange(width).remainder(3)
        written[f"{layer}.input_scale"] = torch.tensor(0.02)
    return written


def _old_scaled_fp8(weights: State, layers: Sequence[str]) -> State:
    """The older format: a scale per layer, and one key for the whole file."""
    written = dict(weights)
    for layer in layers:
        weight = written.pop(f"{layer}.weight").float()
        scale = weight.abs().max() / torch.finfo(FP8).max
        written[f"{layer}.weight"] = (weight / scale).to(FP8)
        written[f"{layer}.scale_weight"] = scale
    written["scaled_fp8"] = torch.zeros(2, dtype=FP8)
    return written


FORMATS: dict[str, Format] = {
    "fp32": lambda weights, layers: weights,
    "bf16": _cast(torch.bfloat16),
    "fp8": _cast(FP8),
    "scaled fp8": _old_scaled_fp8,
}
_KNOWN = comfy.quant_ops.QUANT_ALGOS
FORMATS |= {
    label: _quantised(name, **more)
    for label, name, more in (
        ("comfy_quant fp8", "float8_e4m3fn", {}),
        ("comfy_quant fp8 e5m2", "float8_e5m2", {}),
        ("int8", "int8_tensorwise", {}),
        ("nvfp4", "nvfp4", {}),
        ("mxfp8", "mxfp8", {}),
        ("w4a4", "convrot_w4a4", {"convrot_groupsize": 64}),
    )
    if name in _KNOWN
}
if "float8_e4m3fn" in _KNOWN:
    FORMATS["comfy_quant fp8, smoothed"] = _smoothed


def layers_of(model: torch.nn.Module, units: Sequence[torch.nn.Module]) -> list[str]:
    """The linear layers that files have quantised: those in the blocks, of even sizes."""
    inside = {id(module) for unit in units for module in unit.modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, comfy.ops.disable_weight_init.Linear)
        and id(module) in inside
        and all(size % 64 == 0 for size in module.weight.shape)
        and module.weight.numel() >= 2**14
    ]
