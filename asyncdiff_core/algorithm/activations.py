"""Activations: what the output of a unit looks like, and copies of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree


class TensorMeta(NamedTuple):
    """What it takes to allocate a tensor like another one."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorMeta:
        # The memory format decides which kernel works on the tensor next, and with it the bits.
        like = torch.empty_like(tensor, device="meta")
        return cls(tensor.dtype, tuple(tensor.shape), like.stride())

    @property
    def nbytes(self) -> int:
        numel = 1
        for size in self.shape:
            numel *= size
        return numel * self.dtype.itemsize


class OutputMeta(NamedTuple):
    """The structure of a unit's output; `leaves` has a TensorMeta for each tensor."""

    spec: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, output: Any) -> OutputMeta:
        leaves, spec = pytree.tree_flatten(output)
        metas = (TensorMeta.of(x) if isinstance(x, torch.Tensor) else x for x in leaves)
        return cls(spec, tuple(metas))

    def build(self, make: Callable[[TensorMeta], Any]) -> Any:
        """An output of this structure, with `make` giving what stands for each tensor."""
        leaves = [make(x) if isinstance(x, TensorMeta) else x for x in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)

    @property
    def tensors(self) -> list[TensorMeta]:
        return [x for x in self.leaves if isinstance(x, TensorMeta)]


def copy_output(output: Any) -> Any:
    """A deep copy of a unit's output that keeps every tensor's memory format."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, output)
