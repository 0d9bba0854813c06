"""Which of the evaluations that look alike belong together. Pure.

A sampler, a guider or a wrapper may evaluate the model several times at one sigma with the same
conditionings: the tiles of a picture, for example. Each of these is a stream of its own, with a
lane of its own, since what a stage has stored of one tile is of no use to another. But a sampler of
higher order also comes back to a sigma, with a latent that it has improved. That one goes on with
what was stored of the latent before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

# A latent that is so much like an earlier one at its sigma is that one, improved. Heun's method and
# its kin come back with 0.98 and more, other tiles of the same picture with about 0.
SAME_LATENT = 0.9


@dataclass
class _AtSigma:
    """The evaluations with one key at the sigma that is the current one."""

    sigma: float
    latents: list[torch.Tensor] = field(default_factory=list)  # the last of each stream
    used: set[int] = field(default_factory=set)  # streams, in the call of the denoiser going on


class Streams:
    """The streams of one sampling run.

    Args:
        capacity: tells how many there may be, over all keys.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._at: dict[Hashable, _AtSigma] = {}
        self._number: dict[Hashable, int] = {}

    def begin_call(self) -> None:
        """The sampler calls the denoiser once more."""
        for at in self._at.values():
            at.used.clear()

    def of(self, key: Hashable, sigma: float | None, latent: torch.Tensor) -> int | None:
        """The stream that an evaluation belongs to, counted from 0 for each key.

        None: to one that has no place. Its evaluations share a lane whose rounds are all sync.

        Args:
            key: what such evaluations have in common.
            sigma: None if it is not known.
            latent: what the model gets.
        """
        at = self._at.get(key)
        if at is None or sigma is None or at.sigma != sigma:
            at = self._at[key] = _AtSigma(float("nan") if sigma is None else sigma)
        free = (n for n, x in enumerate(at.latents) if n not in at.used and _is_same(x, latent))
        stream = next(free, len(at.latents))
        if stream >= self._number.get(key, 0):
            # The first stream of a key has a place always: the run has it anyway.
            if stream and sum(self._number.values()) >= self._capacity():
                return None
            self._number[key] = stream + 1
        at.latents[stream : stream + 1] = [latent]
        at.used.add(stream)
        return stream


def _is_same(before: torch.Tensor, latent: torch.Tensor) -> bool:
    if before.shape != latent.shape or before.device != latent.device:
        return False
    a, b = before.flatten().float(), latent.flatten().float()
    return bool(torch.dot(a, b) >= SAME_LATENT * a.norm() * b.norm())
