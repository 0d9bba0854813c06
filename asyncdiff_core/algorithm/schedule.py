"""AsyncSchedule: how the evaluations of a lane run. Pure.

The specification is ``docs/algorithm.md``. With C_k the function of stage k, h_k its output and
eps the output of the last stage N, evaluation i is

    sync    h_1(i) = C_1(x_i)    h_k(i) = C_k(h_{k-1}(i))       the unpartitioned model, exactly
    async   h_1(i) = C_1(x_i)    h_k(i) = C_k(h_{k-1}(i - 1))   all stages at the same time

The first `warm_up` evaluations of a lane are sync, the others async. A lane is a stream of
evaluations with the same batch make-up: the same conditionings in the same order, and the same
latent shape. It has its own counter and its own stored activations, and dies with its run.

With a stride S, up to S consecutive evaluations share one round of the trunk. The round b that
begins at evaluation i runs all stages once, on x_i and on the messages of round b-1, with the
timestep of evaluation i+S-1, whose eps it yields; S-1 extra workers run the last stage on the same
messages with the timesteps of evaluations i .. i+S-2 and yield theirs. A round is cut short where
fewer evaluations remain, and an evaluation whose sigma is not the one that was foreseen ends it.

With a time shift, async evaluations get the timestep of the evaluation before their own.

With prediction, what a stage makes in an async round for a later one it makes of the sigma and a
draft of the latent of that later one, see prediction.py.

The last evaluations may be sync as well, a cool-down, and so may any whose error, which is known
before it runs, is beyond a tolerance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ScheduleError
from .prediction import Latent, Predictor, alike, distance

Mode = Literal["sync", "async"]

PREDICTED_FOLD = 2  # a fold works on predicted latents if it has so many stages

AUTO_WARM_UP = 0  # as many as `AsyncSchedule.for_steps` says
DEFAULT_WARM_UP = 3  # chosen from the measurements in docs/quality.md, for runs of some length
_STEPS_PER_WARM_UP = 8


@dataclass(frozen=True)
class AsyncSchedule:
    """What the user chose for a sampling run.

    `warm_up`: synchronous evaluations at the start of every lane, at least 1, since stage k > 1
    has nothing to work on before its predecessor has run once; or AUTO_WARM_UP.
    `time_shift`: async evaluations get the timestep of the evaluation before.
    `prediction`: stages work for later evaluations on drafts of their latents.
    `cool_down`: synchronous evaluations at the end of a run.
    `tolerance`: evaluations with a larger error, or an unknown one, are synchronous, see
    `Lane.next_round`; 0: as many as there are otherwise.
    `split_batch`: each latent of a batch, for each cond, has a lane of its own, so that in
    synchronous evaluations they pass the stages one behind the other.
    """

    warm_up: int = 1
    time_shift: bool = False
    prediction: bool = False
    cool_down: int = 0
    tolerance: float = 0.0
    split_batch: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.warm_up, int) or self.warm_up < AUTO_WARM_UP:
            raise ScheduleError(
                f"warm_up must be a whole number of at least 1, or 0 to have it chosen, but is "
                f"{self.warm_up!r}. The first evaluation is always synchronous."
            )
        if not isinstance(self.cool_down, int) or self.cool_down < 0:
            raise ScheduleError(
                f"cool_down must be a whole number of at least 0, but is {self.cool_down!r}."
            )
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0.0):
            raise ScheduleError(
                f"tolerance must be a number of at least 0, but is {self.tolerance!r}. It is the "
                "error that an evaluation may have; 0 sets no limit."
            )
        if self.prediction and self.time_shift:
            raise ScheduleError(
                "prediction and time_shift exclude each other: the one gives stages the time that "
                "they work for, the other one that is past."
            )

    def for_steps(self, steps: int | None) -> AsyncSchedule:
        """This schedule for a run of so many steps, or of a number that is not known.

        One synchronous evaluation for every eight steps, up to DEFAULT_WARM_UP: three would leave
        little of the four to eight steps of a distilled model to gain from. With a tolerance only
        the first one, since the tolerance says which others.
        """
        if self.warm_up != AUTO_WARM_UP:
            return self
        if self.tolerance:
            return dataclasses.replace(self, warm_up=1)
        chosen = DEFAULT_WARM_UP if steps is None else math.ceil(steps / _STEPS_PER_WARM_UP)
        return dataclasses.replace(self, warm_up=min(max(1, chosen), DEFAULT_WARM_UP))


@dataclass(frozen=True)
class Target:
    """The time whose inputs a stage gets in place of those of the evaluation that begins a round.

    Attributes:
        sigma: whose timestep it is; None: that of the evaluation.
        latent: a draft; None: the latent of the evaluation.
    """

    sigma: float | None = None
    latent: Latent | None = field(default=None, compare=False)


HERE = Target()


@dataclass(frozen=True)
class Work:
    """What a stage before the last one does in a round.

    Attributes:
        goal: the number of the round whose result it is for.
        evaluation: the last one of that round.
        target: what it works on.
    """

    goal: int
    evaluation: int
    target: Target


@dataclass(frozen=True)
class Round:
    """One pass of a lane through the stages.

    Attributes:
        lane: the number of the lane.
        index: the number of the round in its lane.
        evaluation: the number of its first evaluation in the lane.
        mode: whether stages work on this round's messages or on those of rounds before.
        targets: for each evaluation that it yields, what the last stage works on. A round that
            yields none prepares the next ones: the last stage does nothing.
        ahead: what the other stages do, that next to the last one first. None: nothing. Where it
            is empty they all do what the last target says.
    """

    lane: int
    index: int
    evaluation: int
    mode: Mode
    targets: tuple[Target, ...] = (HERE,)
    ahead: tuple[Work | None, ...] = ()
    error: float | None = field(default=None, compare=False)

    @property
    def entering(self) -> Work | None:
        """What the outermost stage of a fold runs its way in for, if that is not its own work.

        In a fold of two stages it is a draft: the stage within works for a later result.
        """
        within = self.ahead[0] if self.ahead else None
        return None if within is None or within.target.latent is None else within

    def work(self, distance: int, lead: int = 0) -> Work | None:
        """What a stage does; None: nothing.

        Args:
            distance: how many stages it lies before the last one.
            lead: how many evaluations older what it yields is, for a copy of the last one.
        """
        if distance and self.ahead:
            return self.ahead[distance - 1]
        number = len(self.targets) - 1 - lead
        if number < 0:
            return None
        return Work(self.index, self.evaluation + number, self.targets[number])


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

    def __post_init__(self) -> None:
        may_predict = not self.is_folded or self.num_stages == PREDICTED_FOLD
        self._predicts = self.schedule.prediction and may_predict
        self._predictor = Predictor(self.stride * self.num_stages)
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
