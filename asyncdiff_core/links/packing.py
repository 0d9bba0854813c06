"""Pack the unit outputs that cross one link into one flat buffer, and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..algorithm.activations import OutputMeta, TensorMeta

# Some CPU kernels give other bits for other alignments; fresh torch memory has this one.
ALIGNMENT = 64


class MessageLayout:
    """Where each tensor of a message lies in its buffer.

    Args:
        outputs: the structure of the output of each unit that crosses the link.
    """

    def __init__(self, outputs: Mapping[int, OutputMeta]) -> None:
        self.outputs = dict(outputs)
        self.nbytes = sum(_padded(t) for meta in self.outputs.values() for t in meta.tensors)

    def views(self, buffer: torch.Tensor) -> dict[int, Any]:
        """The outputs as views into `buffer`, a flat uint8 tensor of `nbytes`."""
        offset = 0

        def view(meta: TensorMeta) -> torch.Tensor:
            nonlocal offset
            flat = buffer[offset : offset + meta.nbytes].view(meta.dtype)
            offset += _padded(meta)
            return flat.as_strided(meta.shape, meta.stride)

        return {unit: meta.build(view) for unit, meta in self.outputs.items()}


def _padded(meta: TensorMeta) -> int:
    return -(-meta.nbytes // ALIGNMENT) * ALIGNMENT


def copy_into(target: Any, output: Any) -> None:
    """Copy every tensor of `output` into its twin in `target`.

    Raises:
        ValueError: the two differ in structure or shape.
    """
    targets, target_spec = pytree.tree_flatten(target)
    sources, source_spec = pytree.tree_flatten(output)
    if target_spec != source_spec:
        raise ValueError(f"the structure changed from {target_spec} to {source_spec}")
    for destination, source in zip(targets, sources, strict=True):
        if not (isinstance(destination, torch.Tensor) and isinstance(source, torch.Tensor)):
            if type(destination) is not type(source) or destination != source:
                raise ValueError(f"part of an activation changed from {destination} to {source}")
            continue
        if destination.shape != source.shape or destination.dtype != source.dtype:
            raise ValueError(
                f"an activation changed from {tuple(destination.shape)} {destination.dtype} to "
                f"{tuple(source.shape)} {source.dtype}"
            )
        destination.copy_(source)
