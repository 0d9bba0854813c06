"""Calls of the diffusion model: what ComfyUI gives it, and the parts that replicas get of that.

ComfyUI evaluates several conds (cond and uncond, above all) as one batch. Each replica gets those
of its cond indices as a batch of its own, which is what ComfyUI itself does when it has no memory
for all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ...algorithm.evaluator import Inputs

# In transformer_options, the latent as the sampler evaluates it.
SAMPLED = "asyncdiff_sampled"


def with_sampled(executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrapper around ComfyUI's `apply_model`: a skeleton finds the latent in its options.

    They are the fifth argument behind the latent, or go by their name.
    """
    if len(args) > _OPTIONS:
        options = {**args[_OPTIONS], SAMPLED: x}
        args = (*args[:_OPTIONS], options, *args[_OPTIONS + 1 :])
    else:
        kwargs = {**kwargs, "transformer_options": {**kwargs.get("transformer_options", {})}}
        kwargs["transformer_options"][SAMPLED] = x
    return executor(x, *args, **kwargs)


_OPTIONS = 4  # behind the latent come t, c_concat, c_crossattn and control


@dataclass(frozen=True)
class ModelCall:
    """One call of the diffusion model.

    Attributes:
        x: the latent that it gets; a list of them where a model has several (video and audio).
        options: its transformer_options.
        inputs_with: gives the arguments of its entry method with other options in their place.
        sampled: the latent as the sampler evaluates it, before it is scaled for the model, with the
            batch of `x`; None where that is not known.
    """

    x: Any
    options: dict[str, Any]
    inputs_with: Callable[[Any], Inputs]
    sampled: torch.Tensor | None = None

    @property
    def inputs(self) -> Inputs:
        """The arguments of the entry method."""
        return self.inputs_with(self.options)

    @property
    def latent(self) -> torch.Tensor:
        """The latent, or the first one."""
        latent: torch.Tensor = self.x[0] if isinstance(self.x, list) else self.x
        return latent

    @property
    def conds(self) -> Sequence[int]:
        """The index of the cond of each chunk of the batch."""
        conds: Sequence[int] = self.options.get("cond_or_uncond", ())
        return conds

    @property
    def sigma(self) -> float | None:
        """The sigma of the sampler's step, if it is known."""
        sigmas = self.options.get("sigmas")
        return None if sigmas is None else float(sigmas.flatten()[0])

    @property
    def lane_key(self) -> Hashable:
        """Evaluations of the same batch make-up share a lane."""
        shapes = tuple(tuple(t.shape) for t in (self.x if isinstance(self.x, list) else [self.x]))
        return tuple(self.options.get("uuids", ())), tuple(self.conds), shapes

    def with_options(self, options: dict[str, Any]) -> ModelCall:
        """The same call with other options."""
        return ModelCall(self.x, options, self.inputs_with, self.sampled)

    @property
    def num_latents(self) -> int:
        """How many latents each cond is evaluated for."""
        return int(self.latent.shape[0]) // max(1, len(self.conds))

    def of(self, part: Part) -> ModelCall:
        """The call as ComfyUI would make it for this part of the batch alone.

        Every tensor whose first dimension is that of the batch is a batch; transformer_options are
        not touched, but for what names the conds.
        """
        options = {
            **self.options,
            "cond_or_uncond": [self.options["cond_or_uncond"][chunk] for chunk in part.chunks],
            "uuids": [self.options["uuids"][chunk] for chunk in part.chunks],
        }
        rows = torch.tensor(part.rows(self.num_latents))
        x = pytree.tree_map(lambda part: part[rows.to(part.device)], self.x)
        sampled = None if self.sampled is None else self.sampled[rows.to(self.sampled.device)]
        return ModelCall(x, options, _rows_of(self.inputs_with, rows), sampled)


class Part(NamedTuple):
    """A part of a batch.

    Attributes:
        chunks: of the batch, one for each cond that is evaluated.
        latent: which one of each chunk; None: all.
        replica: that evaluates it.
    """

    chunks: tuple[int, ...]
    latent: int | None = None
    replica: int = 0

    def rows(self, num_latents: int) -> list[int]:
        """Of the batch, whose chunks have so many latents each."""
        latents = range(num_latents) if self.latent is None else (self.latent,)
        return [chunk * num_latents + latent for chunk in self.chunks for latent in latents]


class _Opaque:
    """Keeps a value out of a tree's leaves."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _rows_of(inputs_with: Callable[[Any], Inputs], rows: torch.Tensor) -> Callable[[Any], Inputs]:
    """`inputs_with` of the smaller batch."""

    def inputs_of_rows(options: Any) -> Inputs:
        tree = inputs_with(_Opaque(options))
        batch = next(x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)).shape[0]

        def pick(leaf: Any) -> Any:
            if isinstance(leaf, _Opaque):
                return leaf.value
            if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == batch:
                return leaf[rows.to(leaf.device)]
            return leaf

        picked: Inputs = pytree.tree_map(pick, tree)
        return picked

    return inputs_of_rows


def scatter(conds: Sequence[int], num_replicas: int, num_latents: int = 0) -> list[Part]:
    """Which parts of the batch are evaluated where; replicas without any are left out.

    Args:
        conds: the index of the cond of each chunk.
        num_replicas: that share the conds.
        num_latents: of each chunk, if each of them is to be a part; otherwise what a replica gets
            is one. Where there is one cond alone replicas share its latents.
    """
    indices = sorted(set(conds))
    of_replicas: list[list[int]] = [[] for _ in range(num_replicas)]
    for chunk, cond in enumerate(conds):
        of_replicas[indices.index(cond) % num_replicas].append(chunk)
    if not num_latents:
        return [Part(tuple(c), None, replica) for replica, c in enumerate(of_replicas) if c]
    return [
        Part((chunk,), latent, replica if len(indices) > 1 else latent % num_replicas)
        for replica, chunks in enumerate(of_replicas)
        for chunk in chunks
        for latent in range(num_latents)
    ]


def gather(outputs: Sequence[Any], parts: Sequence[Part], num_latents: int) -> Any:
    """Put the outputs of the parts together again, in the order of the whole batch.

    An output is a tensor, or a list of tensors (video and audio).
    """
    if isinstance(outputs[0], list):
        return [gather(one, parts, num_latents) for one in zip(*outputs, strict=True)]
    rows: dict[int, torch.Tensor] = {}
    for output, part in zip(outputs, parts, strict=True):
        rows.update(zip(part.rows(num_latents), output.split(1), strict=True))
    return torch.cat([rows[row] for row in sorted(rows)])
