"""Lanes: how far each stream of evaluations has come, and which round is next. Pure.

The specification is docs/algorithm.md; schedule.py has the words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .prediction import Latent, Predictor, alike, distance
from .schedule import HERE, PREDICTED_FOLD, AsyncSchedule, Round, Target, Work


@dataclass
class Lane:
    """A stream of evaluations with the same batch make-up, and how far it has come.

    `held` has the outputs of the current round that were not asked for yet, with the sigma that
    each was foreseen for.
    """

    number: int
    schedule: AsyncSchedule
    stride: int = 1
    num_stages: int = 1
    is_folded: bool = False
    num_evaluations: int = 0
    num_rounds: int = 0
    last_sigma: float | None = None
    sigma_before_round: float | None = None
    held: list[tuple[float, Any]] = field(default_factory=list)
    refused_stride: bool = False
    num_drafts: int = 0  # that stages were given

    def __post_init__(self) -> None:
        may_predict = not self.is_folded or self.num_stages == PREDICTED_FOLD
        self._predicts = self.schedule.prediction and may_predict
        self._predictor = Predictor(self.stride * self.num_stages, self.num_stages)
        self._latent: Latent | None = None  # of the evaluation that begins
        # By the number of a round: the latents that stages were given for its result.
        self._given: dict[int, list[Latent]] = {}

    def see(
        self,
        sigma: float,
        latent: Latent,
        coming: Sequence[float] | None,
        *,
        is_replaceable: bool = True,
    ) -> None:
        """An evaluation begins, of this latent. Drafts may be in its place where they are good."""
        self._latent = latent
        if not self._predicts:
            return
        if is_replaceable:
            self._predictor.see(sigma, latent, coming or ())
        else:
            self._predictor.forget()

    def take_held(self, sigma: float | None) -> Any:
        """The output that the current round holds for an evaluation at `sigma`, or None.

        A sampler that asks for another sigma than the one foreseen does not evaluate once per step
        in the order of its sigmas. The round ends there, and the lane goes on without a stride.
        """
        if not self.held:
            return None
        foreseen, output = self.held.pop(0)
        if foreseen != sigma:
            self.held.clear()
            if not self._jumps_up(sigma):
                self._refuse_stride()
            return None
        self._latent = None
        self._advance(sigma)
        return output

    def next_round(
        self,
        sigma: float | None,
        coming: Sequence[float] | None = (),
        *,
        steps_left: int | None = None,
        in_sync: bool = False,
    ) -> Round:
        """The round that begins with an evaluation at `sigma`.

        It is sync in the warm-up and in the cool-down, where sigma jumps up, and where with a
        tolerance its error is larger than that, or not known.

        Args:
            sigma: None if the host does not know it.
            coming: the sigmas of the evaluations after this one; None if they cannot be foreseen.
            steps_left: how many steps the sampler has after this one; None if that is not known.
            in_sync: nothing that is stored may be used.
        """
        previous = self.last_sigma
        if coming is None or (sigma is not None and sigma == previous):
            self._refuse_stride()  # `sigma` is between the steps, or it is the same step again
        coming = coming or ()
        # Where sigma jumps up noise was added: what the stages have stored is of another image.
        error = self._error()
        is_sync = (
            in_sync
            or not self._is_warm
            or self._jumps_up(sigma)
            or (steps_left is not None and steps_left < self.schedule.cool_down)
            or (self.schedule.tolerance > 0.0 and not self._is_within_tolerance(error))
        )
        coming_async = self._before_cool_down(coming)
        span = 1 if is_sync or sigma is None else min(self.stride, 1 + len(coming_async))
        timeline = [previous, None, *coming]  # None: this evaluation, whose inputs are at hand
        is_shifted = self.schedule.time_shift and not is_sync and previous is not None
        first = 0 if is_shifted else 1
        round_ = Round(
            lane=self.number,
            index=self.num_rounds,
            evaluation=self.num_evaluations,
            mode="sync" if is_sync else "async",
            targets=tuple(map(Target, timeline[first : first + span])),
            error=error,
        )
        if self._predicts and not is_sync and sigma is not None:
            round_ = self._predicting(round_, coming_async)
        self._remember(round_)
        self.num_rounds += 1
        self.sigma_before_round = previous
        self._advance(sigma)
        return round_

    def preparing(self, round_: Round, coming: Sequence[float] | None) -> Iterator[Round]:
        """The rounds behind the sync round `round_` in which stages work for the next async ones.

        Those before the last stage have nothing else to do at that time.

        Args:
            round_: the last round.
            coming: the sigmas of the evaluations after it.
        """
        coming = self._before_cool_down(coming or ())
        if not (self._predicts and round_.mode == "sync" and self._is_warm and coming):
            return
        for number in range(1, self.num_stages):
            work = self._work(round_, number, coming, None)
            if work is not None:
                assert work.target.latent is not None
                self._given[work.goal] = [work.target.latent]
                distances = range(1, self.num_stages)
                ahead = tuple(work if distance >= number else None for distance in distances)
                yield dataclasses.replace(round_, targets=(), ahead=ahead)

    @property
    def _is_warm(self) -> bool:
        return self.num_evaluations >= max(1, self.schedule.warm_up)

    def _before_cool_down(self, coming: Sequence[float]) -> Sequence[float]:
        return coming[: max(0, len(coming) - self.schedule.cool_down)]

    def _is_within_tolerance(self, error: float | None) -> bool:
        return error is not None and error <= self.schedule.tolerance

    def _error(self) -> float | None:
        """Of the evaluation that begins, if it is async."""
        given, latent = self._given.pop(self.num_rounds, []), self._latent
        if latent is None or not given or not all(alike(one, latent) for one in given):
            return None
        return max(distance(one, latent) for one in given)

    def _remember(self, round_: Round) -> None:
        """Which latents the stages are given for the next rounds.

        What a stage makes `n` stages before the last one goes into the result `n` rounds later;
        after a sync round all that went before is of no use any more.
        """
        latent, self._latent = self._latent, None
        if round_.mode == "sync":
            self._given.clear()
        if latent is None:
            self._given.clear()
            return
        for number in range(1, self.num_stages):
            work = round_.work(number) if round_.ahead else None
            given = latent if work is None or work.target.latent is None else work.target.latent
            self._given.setdefault(round_.index + number, []).append(given)

    def _predicting(self, round_: Round, coming: Sequence[float]) -> Round:
        """The async round with drafts, where there are some."""
        later = enumerate(coming[: len(round_.targets) - 1], start=1)
        drafts = tuple(Target(sigma, self._predictor.draft(sigma, n)) for n, sigma in later)
        round_ = dataclasses.replace(round_, targets=(HERE, *drafts))
        distances = range(1, self.num_stages)
        stale = round_.work(0)
        ahead = tuple(self._work(round_, distance, coming, stale) for distance in distances)
        return dataclasses.replace(round_, ahead=ahead)

    def _work(
        self, round_: Round, number: int, coming: Sequence[float], stale: Work | None
    ) -> Work | None:
        """Work for the round `number` rounds after `round_`.

        None if there will be none. `stale` if there is no draft for it.
        """
        span = len(round_.targets)
        if span + self.stride * (number - 1) > len(coming):
            return None
        last = min(span - 1 + self.stride * number, len(coming))
        draft = self._predictor.draft(coming[last - 1], last)
        if draft is None:
            return stale
        self.num_drafts += 1
        target = Target(coming[last - 1], draft)
        return Work(round_.index + number, round_.evaluation + last, target)

    def retract(self, round_: Round) -> None:
        """`round_`, the last one, was refused: no worker has seen it."""
        self.num_rounds, self.num_evaluations = round_.index, round_.evaluation
        self.last_sigma = self.sigma_before_round
        self._given.clear()

    def hold(self, outputs: Sequence[Any], coming: Sequence[float]) -> None:
        """Keep what the round yields for the evaluations after its first."""
        self.held = list(zip(coming, outputs, strict=False))

    def _jumps_up(self, sigma: float | None) -> bool:
        return sigma is not None and self.last_sigma is not None and sigma > self.last_sigma

    def _refuse_stride(self) -> None:
        if self.stride > 1:
            self.stride, self.refused_stride = 1, True

    def _advance(self, sigma: float | None) -> None:
        self.num_evaluations += 1
        self.last_sigma = sigma


class Lanes:
    """The lanes of one sampling run, by key."""

    def __init__(self, schedule: AsyncSchedule, stride: int = 1, num_stages: int = 1) -> None:
        self.schedule = schedule
        self._stride = stride
        self._num_stages = num_stages
        self._lanes: dict[Hashable, Lane] = {}

    def lane(self, key: Hashable, *, is_folded: bool = False) -> Lane:
        """The lane `key`, which is opened if it is new.

        Args:
            key: what tells lanes apart.
            is_folded: whether stages lie around each other now.
        """
        if key not in self._lanes:
            self._lanes[key] = Lane(
                *(len(self._lanes), self.schedule, self._stride, self._num_stages, is_folded)
            )
        return self._lanes[key]

    @property
    def refused_stride(self) -> bool:
        """Whether the sampler turned out to allow no stride."""
        return any(lane.refused_stride for lane in self._lanes.values())

    @property
    def num_drafts(self) -> int:
        """How many drafts stages were given."""
        return sum(lane.num_drafts for lane in self._lanes.values())
