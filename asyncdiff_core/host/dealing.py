"""Deal the conds of one batch to the replicas of a pipeline.

ComfyUI evaluates several conds (cond and uncond, above all) as one batch. Each replica gets those
of its cond indices as a batch of its own, which is what ComfyUI itself does when it has no memory
for all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..evaluator import Inputs

WithOptions = Callable[[Any], Inputs]


class _Opaque:
    """Keeps a value out of a tree's leaves."""

    def __init__(self, value: Any) -> None:
        self.value = value


def deal(cond_or_uncond: Sequence[int], num_replicas: int) -> list[list[int]]:
    """Which chunks of the batch each replica gets; replicas without any are left out."""
    indices = sorted(set(cond_or_uncond))
    hands: list[list[int]] = [[] for _ in range(num_replicas)]
    for chunk, cond in enumerate(cond_or_uncond):
        hands[indices.index(cond) % num_replicas].append(chunk)
    return [hand for hand in hands if hand]


def take(with_options: WithOptions, num_chunks: int, hand: Sequence[int]) -> WithOptions:
    """The same inputs with only the chunks of `hand`: `with_options` of that smaller batch.

    Every tensor whose first dimension is that of the batch is a batch; transformer_options are not
    touched.
    """

    def with_options_of_hand(options: Any) -> Inputs:
        tree = with_options(_Opaque(options))
        batch = next(x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)).shape[0]
        size = batch // num_chunks
        rows = torch.tensor([chunk * size + row for chunk in hand for row in range(size)])

        def pick(leaf: Any) -> Any:
            if isinstance(leaf, _Opaque):
                return leaf.value
            if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == batch:
                return leaf[rows.to(leaf.device)]
            return leaf

        dealt: Inputs = pytree.tree_map(pick, tree)
        return dealt

    return with_options_of_hand


def options_of_hand(options: dict[str, Any], hand: Sequence[int]) -> dict[str, Any]:
    """transformer_options as ComfyUI would make them for a batch of these chunks alone."""
    return {
        **options,
        "cond_or_uncond": [options["cond_or_uncond"][chunk] for chunk in hand],
        "uuids": [options["uuids"][chunk] for chunk in hand],
    }


def gather(outputs: Sequence[Any], hands: Sequence[Sequence[int]]) -> Any:
    """Put the outputs of the hands together again, in the order of the whole batch.

    An output is a tensor, or a list of tensors (video and audio).
    """
    if isinstance(outputs[0], list):
        return [gather(parts, hands) for parts in zip(*outputs, strict=True)]
    chunks: dict[int, torch.Tensor] = {}
    for output, hand in zip(outputs, hands, strict=True):
        chunks.update(zip(hand, output.chunk(len(hand)), strict=True))
    return torch.cat([chunks[chunk] for chunk in sorted(chunks)])
