"""The inputs of an evaluation on their way to the workers: what did not change is not sent again.

A sampler hands the model newly made tensors in every step, although most of them (text
conditioning above all) have the content of the step before. Both ends remember, per lane, the last
value of every leaf of the input tree; a tensor equal to it travels as `UNCHANGED`.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..errors import UnsupportedPatchError
from .strides import duplicate, on_device, place_of

UNCHANGED = "\0asyncdiff:unchanged"

_SENDABLE = (
    torch.Tensor,
    *(type(None), bool, int, float, complex, str, bytes),
    *(torch.dtype, torch.device, torch.Size, uuid.UUID),
)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_sendable(leaf: Any) -> bool:
    """Whether `leaf` is a tensor or plain data."""
    return isinstance(leaf, _SENDABLE)


class InputEncoder:
    """The host's end, one per lane."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[tuple[int, ...], torch.Tensor]] = {}
        self._spec: Any = None

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The tree (args, kwargs) with `UNCHANGED` for tensors that the worker has already.

        Raises:
            UnsupportedPatchError: a leaf is neither a tensor nor plain data; its path is named.
        """
        tree = (args, kwargs)
        leaves, spec = pytree.tree_flatten(tree)
        if spec != self._spec:
            self._last.clear()
            self._spec = spec
        for leaf in leaves:
            if not is_sendable(leaf):
                raise UnsupportedPatchError(_refusal(tree, leaf))
        out = []
        copies: dict[Hashable, torch.Tensor] = {}  # what is the same tensor stays one
        for slot, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                stride, last = self._last.get(slot, ((), None))
                if last is not None and leaf.stride() == stride and _same_bits(last, leaf):
                    leaf = UNCHANGED
                else:
                    stride, place = leaf.stride(), place_of(leaf)
                    if place not in copies:  # the caller may write into its tensor later
                        copies[place] = duplicate(leaf.detach())
                    leaf = copies[place]
                    self._last[slot] = stride, leaf
            out.append(leaf)
        return pytree.tree_unflatten(out, spec)


def difference(inputs: Any, variant: Any) -> dict[int, Any]:
    """The leaves of `variant` that differ from those of `inputs`, by position.

    Both are trees (args, kwargs) of the same structure: the inputs of one evaluation, and the same
    with another timestep.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    others, other_spec = pytree.tree_flatten(variant)
    if spec != other_spec:
        raise ValueError(f"the structure changed from {spec} to {other_spec}")
    return {
        slot: other
        for slot, (leaf, other) in enumerate(zip(leaves, others, strict=True))
        if not _equal(leaf, other)
    }


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.stride() == b.stride() and _same_bits(a, b)
    return type(a) is type(b) and bool(a == b)


class InputDecoder:
    """The worker's end, one per lane."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: dict[int, torch.Tensor] = {}

    def decode(
        self, tree: Any, replaced: Mapping[int, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs that were encoded, on this worker's device.

        Every tensor is a fresh copy: some models write into their inputs.

        Args:
            tree: what the encoder gave.
            replaced: leaves that this worker is to take in place of the encoded ones, by position.
        """
        leaves, spec = pytree.tree_flatten(tree)
        out = []
        for slot, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._last[slot] = on_device(leaf, self._device)
            if replaced is not None and slot in replaced:
                other = replaced[slot]
                is_tensor = isinstance(other, torch.Tensor)
                out.append(on_device(other, self._device) if is_tensor else other)
            elif isinstance(leaf, torch.Tensor) or leaf == UNCHANGED:
                out.append(duplicate(self._last[slot]))
            else:
                out.append(leaf)
        args, kwargs = pytree.tree_unflatten(out, spec)
        return args, kwargs


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.device != b.device or a.shape != b.shape:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    bits = _BITS.get(a.dtype.itemsize)
    if bits is not None and a.dtype.is_floating_point:
        a, b = a.view(bits), b.view(bits)  # 0.0 == -0.0, and NaN != NaN
    return torch.equal(a, b)


def _refusal(tree: Any, culprit: Any) -> str:
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        if leaf is culprit:
            where = "".join(str(key) for key in path[1:])
            return (
                f"model input {where} is a {type(leaf).__module__}.{type(leaf).__qualname__}, "
                "which cannot be sent to worker processes."
            )
    raise AssertionError("the leaf is in the tree")
