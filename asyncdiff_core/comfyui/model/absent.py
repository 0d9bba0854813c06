"""Weights that are in worker processes, as ComfyUI's process sees them: everything but the values.

A tensor on the meta device would do for names, shapes and types. But PyTorch answers some
operations on a meta and a real tensor with whatever is in memory, and packs ask a weight where it
is to put something beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from ...algorithm.trunk import tensor_bytes
from ...errors import UnsupportedPatchError

_Tensor = torch.Tensor

# What can be said of a tensor without its values.
_LOOKS: frozenset[Any] = frozenset(
    getattr(_Tensor, name).__get__
    for name in (
        *("shape", "dtype", "layout", "ndim", "itemsize", "names"),
        *("is_meta", "is_sparse", "is_quantized", "is_nested", "is_mkldnn", "is_leaf"),
        *("requires_grad", "grad", "grad_fn", "_version", "output_nr"),
    )
    if hasattr(_Tensor, name)
) | frozenset(
    getattr(_Tensor, name)
    for name in (
        *("size", "dim", "ndimension", "numel", "nelement", "element_size", "stride"),
        *("is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_inference"),
        *("is_pinned", "is_shared", "storage_offset", "__len__", "__hash__"),
    )
)


class AbsentWeight(torch.nn.Parameter):
    """A parameter of a skeleton.

    Attributes:
        name: in the diffusion model.
        place: the device on which ComfyUI would have it; this is what `device` says.
        num_bytes: what the weight takes where it is.
    """

    name: str = ""
    place: torch.device = torch.device("cpu")
    num_bytes: int = 0

    @classmethod
    def of(
        cls,
        parameter: torch.Tensor,
        name: str,
        place: torch.device,
        shape: torch.Size | None = None,
    ) -> AbsentWeight:
        """One like `parameter`, which may be quantised; or with another shape."""
        shape = parameter.shape if shape is None else shape
        plain = torch.empty(shape, dtype=parameter.dtype, device="meta")
        weight: AbsentWeight = _Tensor._make_subclass(cls, plain, False)
        weight.name, weight.place = name, place
        weight.num_bytes = tensor_bytes(parameter)
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, AbsentWeight) and func in _ANSWERS:
            return _ANSWERS[func](first)
        if func in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func == _Tensor.to and isinstance(first, _Tensor) and len(args) == 2:
            # A tensor is made like the weight.
            return first.to(device=args[1].place, dtype=args[1].dtype)
        weights = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, AbsentWeight)]
        _refuse(weights[0] if weights else None, func)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"AbsentWeight({self.name}, {tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> AbsentWeight:
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        _refuse(self, self.__reduce_ex__)


def _getter(name: str) -> Any:
    return getattr(_Tensor, name).__get__


_ANSWERS: dict[Any, Callable[[AbsentWeight], Any]] = {
    _getter("device"): lambda weight: weight.place,
    _getter("is_cuda"): lambda weight: weight.place.type == "cuda",
    _getter("is_cpu"): lambda weight: weight.place.type == "cpu",
    _getter("nbytes"): lambda weight: weight.num_bytes,
    _getter("data"): lambda weight: weight,
    _Tensor.detach: lambda weight: weight,
    _Tensor.requires_grad_: lambda weight: weight,
}


def make_absent(model: torch.nn.Module, place: torch.device) -> None:
    """Put an AbsentWeight in place of every parameter of `model` that is on the meta device."""
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                whole = f"{path}.{name}" if path else name
                module._parameters[name] = AbsentWeight.of(parameter, whole, place)


def _refuse(weight: AbsentWeight | None, func: Any) -> NoReturn:
    which = f" ({weight.name})" if weight is not None and weight.name else ""
    name = getattr(func, "__name__", "an operation")
    if name == "__get__":  # of a property
        name = func.__self__.__name__
    raise UnsupportedPatchError(
        f"Something uses weights of the diffusion model{which} in ComfyUI's own process "
        f"({name}), and those of this MODEL are in worker processes. If it is a node that "
        "patches the MODEL, put Parallelize Model (AsyncDiff) behind it, or use the MODEL "
        "without AsyncDiff."
    )
