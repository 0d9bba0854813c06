"""PyTorch's switches for a whole process. Packs turn some of them in ComfyUI's, for a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

# Marks, in transformer_options, the switches of an evaluation.
FLAGS_MARK = "asyncdiff_flags"

_MATMUL, _CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
_CUDA = torch.backends.cuda

_ATTRIBUTES: dict[str, tuple[Any, str]] = {
    **{
        f"matmul.{name}": (_MATMUL, name)
        for name in (
            "allow_tf32",
            "allow_fp16_accumulation",
            "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
        )
    },
    **{f"cudnn.{n}": (_CUDNN, n) for n in ("enabled", "benchmark", "deterministic", "allow_tf32")},
}
_FUNCTIONS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "flash": (_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    "memory efficient": (_CUDA.mem_efficient_sdp_enabled, _CUDA.enable_mem_efficient_sdp),
    "cudnn": (_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
    "math": (_CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
}


def flags() -> dict[str, Any]:
    """How the switches of this process are. Those that this PyTorch has not are left out."""
    found: dict[str, Any] = {}
    for name, (owner, attribute) in _ATTRIBUTES.items():
        with contextlib.suppress(AttributeError, RuntimeError):
            found[name] = getattr(owner, attribute)
    found.update({name: get() for name, (get, _) in _FUNCTIONS.items()})
    return found


def with_flags(tree: Any) -> Any:
    """In a worker: have the switches that the arguments `tree` tell, and give the others back."""
    args, kwargs = tree

    def take_out(value: Any) -> Any:
        if not isinstance(value, dict) or FLAGS_MARK not in value:
            return value
        value = dict(value)
        turn(value.pop(FLAGS_MARK))
        return value

    return tuple(map(take_out, args)), {key: take_out(value) for key, value in kwargs.items()}


def turn(wanted: Mapping[str, Any]) -> None:
    """Have the switches of this process as `wanted`."""
    present = flags()
    for name, value in wanted.items():
        if present.get(name, value) != value:
            if name in _FUNCTIONS:
                _FUNCTIONS[name][1](value)
            else:
                setattr(*_ATTRIBUTES[name], value)
