"""Copies that keep the strides: which kernel works on a tensor, and so its last bits, follow them.

A view into a larger tensor has gaps (the part of a latent that is packed with another one), an
expanded one repeats its elements. Products of matrices on a CPU tell both from dense tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

# A copy with strides is no larger than so many times its elements, so that what is small on the
# wire cannot be huge at its receiver. Beyond it, a copy is dense.
MAX_SPREAD = 16


def place_of(tensor: torch.Tensor) -> Hashable:
    """What is equal for two tensors that show the same memory in the same way.

    As long as both are there. One without memory that it tells of is like none but itself.
    """
    look = tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()
    memory = tensor.data_ptr()
    return (memory, tensor.device, look) if memory else id(tensor)


def kept(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides of a copy of `tensor`.

    Its own, but a gap is no wider than what lies before it: that there is one decides, not how
    wide it is. Where even those are not allowed, the strides of ``torch.clone``.
    """
    stride = list(tensor.stride())
    if tensor.is_contiguous():
        return tuple(stride)
    end = 1
    for dim in sorted(range(tensor.ndim), key=stride.__getitem__):
        if tensor.shape[dim] > 1 and stride[dim]:
            stride[dim] = min(stride[dim], 2 * end)
            end += stride[dim] * (tensor.shape[dim] - 1)
    if is_allowed(tensor.shape, stride):
        return tuple(stride)
    return torch.empty_like(tensor, device="meta").stride()


def is_allowed(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a copy may have these strides: none but repeated elements overlap, gaps are few."""
    numel, repeats, end = 1, 1, 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 0 or step < 0:
            return False
        if size > 1 and step == 0:
            repeats *= size
        elif size > 1:
            if step < end:
                return False
            numel *= size
            end += step * (size - 1)
    return max(end, numel * repeats) <= MAX_SPREAD * numel


def each_once(tensor: torch.Tensor) -> torch.Tensor:
    """A view of `tensor` without its repetitions."""
    for dim, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and step == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def duplicate(tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """A copy of `tensor` on `device`, or on its own, with strides as `kept` has them."""
    if tensor.is_contiguous():  # as most are, in every evaluation
        return tensor.to(device or tensor.device, copy=True)
    return with_strides(tensor, kept(tensor), device or tensor.device)


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` if it is there, otherwise a copy as `duplicate` makes it."""
    return tensor if tensor.device == device else duplicate(tensor, device)


def with_strides(tensor: torch.Tensor, stride: Sequence[int], device: torch.device) -> torch.Tensor:
    """A copy of `tensor`, whose elements are the same where `stride` is zero."""
    copy = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device)
    target = each_once(copy)
    target.copy_(tensor[tuple(slice(size) for size in target.shape)])
    return copy


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a dense tensor in memory order, [bytes] of uint8; the same memory."""
    # A single element may have any stride, and its bytes are wanted all the same.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
