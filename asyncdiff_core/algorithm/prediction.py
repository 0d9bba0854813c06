"""Predicted latents: drafts of those to come, from those that were seen. Pure.

The specification is docs/algorithm.md, "Predicted latents". With `s` the sigmas and `x` the latents
of a lane, and [..] their divided differences, the draft of x(j) that is made at evaluation i is

    x(i) + a d1 + b d2      d1 = (s_j - s_i) [x_i, x_{i-1}]
                            d2 = (s_j - s_i) (s_j - s_{i-1}) [x_i, x_{i-1}, x_{i-2}]

the polynomial through three latents where a = b = 1. The coefficients are those that would have
made the best draft of x(i) as many evaluations ago, drawn towards A and B, and not far from them:
a latent with new noise in every step would be drafted best by a mean, which is no latent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

# What a latent is made of: one tensor, or several (video and audio).
Latent = tuple[torch.Tensor, ...]

A, B = 1.0, 0.5
RIDGE = 0.3  # how much A and B count beside what the last steps have shown
# How many evaluations in a row drafts must have been better than stale latents, for each stage
# beyond the second: a solver of high order answers each change from one to the other, and the more
# so the more stages there are between cause and answer.
PROOF = 3
# Where coefficients may be. A negative b takes the slope over two steps in place of one, which is
# what a solver of high order needs that answers the error of a draft with one of its own.
A_RANGE, B_RANGE = (0.5, 1.5), (-0.5, 1.0)


class Seen(NamedTuple):
    """An evaluation that began: its sigma, and its latent [batch, channels, ...]."""

    sigma: float
    latent: Latent


class Judged(NamedTuple):
    """How far from a latent its draft was, and the latent that a stale stage works on instead.

    Both are L2 norms, relative to that of the latent.
    """

    draft: float
    stale: float


class Predictor:
    """The latents of one lane, drafts of those to come, and how good drafts were.

    Args:
        farthest: drafts may be asked for so many evaluations ahead, less one.
        num_stages: that look ahead, with the one that does not.
    """

    def __init__(self, farthest: int, num_stages: int = 2) -> None:
        self._seen: deque[Seen] = deque(maxlen=farthest + 3)
        # By evaluations ahead: drafts that wait for their latent, and how good the last one was.
        self._drafts: dict[tuple[int, float], Latent] = {}
        self._judged: dict[int, deque[Judged]] = {}
        self._farthest = farthest
        self._num_proofs = 1 + PROOF * max(0, num_stages - 2)

    def see(self, sigma: float, latent: Latent, coming: Sequence[float]) -> None:
        """An evaluation begins: judge the drafts of its latent, and make those of the next ones.

        Args:
            sigma: of the evaluation.
            latent: its latent, which nobody changes from now on.
            coming: the sigmas of the evaluations after it.
        """
        last = self._seen[-1] if self._seen else None
        if last is not None and (sigma >= last.sigma or not alike(last.latent, latent)):
            self.forget()  # another step is no continuation of those before
        for ahead in range(1, self._farthest + 1):
            draft = self._drafts.pop((ahead, sigma), None)
            if draft is not None and ahead <= len(self._seen):
                judged = Judged(
                    distance(draft, latent), distance(self._seen[-ahead].latent, latent)
                )
                self._judged.setdefault(ahead, deque(maxlen=self._num_proofs)).append(judged)
        self._drafts = {key: draft for key, draft in self._drafts.items() if key[1] < sigma}
        self._seen.append(Seen(sigma, latent))
        for ahead, target in enumerate(coming[: self._farthest], start=1):
            made = self._make(target, ahead)
            if made is not None:
                self._drafts[ahead, target] = made

    def forget(self) -> None:
        """What was seen is of no use for what comes."""
        self._seen.clear()
        self._drafts.clear()
        self._judged.clear()

    def draft(self, sigma: float, ahead: int) -> Latent | None:
        """The draft for the evaluation `ahead` evaluations after the last one, or None.

        There is none before the second evaluation, and none where one of the last that were judged
        was no nearer to its latent than the stale latent. As long as none was judged so far ahead,
        those that are nearest to it tell.
        """
        nearest = max((other for other in self._judged if other <= ahead), default=None)
        judged = self._judged[nearest] if nearest is not None else ()
        if not all(one.draft < one.stale for one in judged):
            return None
        return self._drafts.get((ahead, sigma))

    def judged(self, ahead: int) -> Judged | None:
        """How good the last draft was that was made `ahead` evaluations before its latent."""
        return self._judged[ahead][-1] if ahead in self._judged else None

    def _make(self, sigma: float, ahead: int) -> Latent | None:
        terms = _terms(list(self._seen), sigma)
        if terms is None:
            return None
        a, b = self._coefficients(ahead)
        return tuple(
            (x + _rows(a, x) * first + _rows(b, x) * second).to(x.dtype)
            for x, first, second in zip(self._seen[-1].latent, *terms, strict=True)
        )

    def _coefficients(self, ahead: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Those that would have drafted the last latents best, drawn towards A and B: [batch].

        Each latent of a batch has its own, and so the draft that it would have alone.
        """
        *before, last = self._seen
        before = before[: len(before) - ahead + 1]
        size = len(last.latent[0])
        known = torch.full((size,), A), torch.full((size,), B)
        terms = _terms(before, last.sigma) if len(before) >= 3 else None
        if terms is None:
            return known
        first, second = map(_flat, terms)
        rest = _flat(last.latent) - _flat(before[-1].latent) - A * first - B * second
        # The normal equations of two unknowns, each with a weight on staying what it is.
        pairs = (first, first), (first, second), (second, second), (first, rest), (second, rest)
        products = torch.stack([(one * other).sum(1) for one, other in pairs])
        ff, fs, ss, fr, sr = products.cpu().double()  # all at once: a GPU is waited for
        ff, ss = ff * (1.0 + RIDGE), ss * (1.0 + RIDGE)
        determinant = ff * ss - fs * fs
        a = A + (fr * ss - sr * fs) / determinant
        b = B + (sr * ff - fr * fs) / determinant
        found = a.clamp(*A_RANGE).float(), b.clamp(*B_RANGE).float()
        is_known = determinant > 0.0
        return torch.where(is_known, found[0], known[0]), torch.where(is_known, found[1], known[1])


def alike(one: Latent, other: Latent) -> bool:
    """Whether they have the same shapes."""
    return [x.shape for x in one] == [x.shape for x in other]


def distance(one: Latent, latent: Latent) -> float:
    """Of `one` from `latent` (L2), relative to the norm of `latent`."""
    norm = float(_flat(latent).norm())
    distance = float((_flat(one) - _flat(latent)).norm())
    return distance / norm if norm else math.inf


def _terms(seen: Sequence[Seen], sigma: float) -> tuple[Latent, Latent] | None:
    """The two terms of a draft for `sigma`, see the top of this module. None: too few latents."""
    if len(seen) < 2:
        return None
    (s0, x0), (s1, x1) = seen[-2:]
    slopes = [(new.float() - old.float()) / (s1 - s0) for old, new in zip(x0, x1, strict=True)]
    first = tuple((sigma - s1) * slope for slope in slopes)
    if len(seen) < 3:
        return first, tuple(map(torch.zeros_like, first))
    before, x = seen[-3]
    curves = [
        (slope - (new.float() - old.float()) / (s0 - before)) / (s1 - before)
        for slope, old, new in zip(slopes, x, x0, strict=True)
    ]
    return first, tuple((sigma - s1) * (sigma - s0) * curve for curve in curves)


def _rows(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value for each row of a batch, so that it can be multiplied with `like`."""
    return values.to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _flat(latent: Latent) -> torch.Tensor:
    """[batch, everything else]"""
    return torch.cat([x.float().flatten(1) for x in latent], dim=1)
