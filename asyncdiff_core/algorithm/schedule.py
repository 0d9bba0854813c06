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
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ScheduleError

Mode = Literal["sync", "async"]

AUTO_WARM_UP = 0  # as many as `AsyncSchedule.for_steps` says
DEFAULT_WARM_UP = 3  # chosen from the measurements in docs/quality.md, for runs of some length
_STEPS_PER_WARM_UP = 8


@dataclass(frozen=True)
class AsyncSchedule:
    """What the user chose for a sampling run.

    `warm_up`: synchronous evaluations at the start of every lane, at least 1, since stage k > 1
    has nothing to work on before its predecessor has run once; or AUTO_WARM_UP.
    `time_shift`: async evaluations get the timestep of the evaluation before.
    """

    warm_up: int = 1
    time_shift: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.warm_up, int) or self.warm_up < AUTO_WARM_UP:
            raise ScheduleError(
                f"warm_up must be a whole number of at least 1, or 0 to have it chosen, but is "
                f"{self.warm_up!r}. The first evaluation is always synchronous."
            )

    def for_steps(self, steps: int | None) -> AsyncSchedule:
        """This schedule for a run of so many steps, or of a number that is not known.

        One synchronous evaluation for every eight steps, up to DEFAULT_WARM_UP: three would leave
        little of the four to eight steps of a distilled model to gain from.
        """
        if self.warm_up != AUTO_WARM_UP:
            return self
        chosen = DEFAULT_WARM_UP if steps is None else math.ceil(steps / _STEPS_PER_WARM_UP)
        return dataclasses.replace(self, warm_up=min(max(1, chosen), DEFAULT_WARM_UP))


@dataclass(frozen=True)
class Round:
    """One pass of a lane through the stages.

    Attributes:
        lane: the number of the lane.
        index: the number of the round in its lane, and of its message on every link.
        evaluation: the number of its first evaluation in the lane.
        mode: whether stages work on this round's messages or on those of the round before.
        sigmas: for each evaluation that it yields, the sigma whose timestep it is computed with.
            The stages use the last one. None stands for the inputs as they are.
    """

    lane: int
    index: int
    evaluation: int
    mode: Mode
    sigmas: tuple[float | None, ...] = (None,)


@dataclass
class Lane:
    """A stream of evaluations with the same batch make-up, and how far it has come.

    `held` has the outputs of the current round that were not asked for yet, with the sigma that
    each was foreseen for.
    """

    number: int
    schedule: AsyncSchedule
    stride: int = 1
    num_evaluations: int = 0
    num_rounds: int = 0
    last_sigma: float | None = None
    sigma_before_round: float | None = None
    held: list[tuple[float, Any]] = field(default_factory=list)
    refused_stride: bool = False

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
        self._advance(sigma)
        return output

    def next_round(
        self, sigma: float | None, coming: Sequence[float] | None = (), *, in_sync: bool = False
    ) -> Round:
        """The round that begins with an evaluation at `sigma`.

        Args:
            sigma: None if the host does not know it.
            coming: the sigmas of the evaluations after this one; None if they cannot be foreseen.
            in_sync: nothing that is stored may be used.
        """
        previous = self.last_sigma
        if coming is None or (sigma is not None and sigma == previous):
            self._refuse_stride()  # `sigma` is between the steps, or it is the same step again
        coming = coming or ()
        # Where sigma jumps up noise was added: what the stages have stored is of another image.
        is_warm = self.num_evaluations >= max(1, self.schedule.warm_up)
        is_sync = in_sync or not is_warm or self._jumps_up(sigma)
        span = 1 if is_sync or sigma is None else min(self.stride, 1 + len(coming))
        timeline = [previous, None, *coming]  # None: this evaluation, whose inputs are at hand
        is_shifted = self.schedule.time_shift and not is_sync and previous is not None
        first = 0 if is_shifted else 1
        round_ = Round(
            lane=self.number,
            index=self.num_rounds,
            evaluation=self.num_evaluations,
            mode="sync" if is_sync else "async",
            sigmas=tuple(timeline[first : first + span]),
        )
        self.num_rounds += 1
        self.sigma_before_round = previous
        self._advance(sigma)
        return round_

    def retract(self, round_: Round) -> None:
        """`round_`, the last one, was refused: no worker has seen it."""
        self.num_rounds, self.num_evaluations = round_.index, round_.evaluation
        self.last_sigma = self.sigma_before_round

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

    def __init__(self, schedule: AsyncSchedule, stride: int = 1) -> None:
        self.schedule = schedule
        self._stride = stride
        self._lanes: dict[Hashable, Lane] = {}

    def lane(self, key: Hashable) -> Lane:
        """The lane `key`, which is opened if it is new."""
        if key not in self._lanes:
            self._lanes[key] = Lane(len(self._lanes), self.schedule, self._stride)
        return self._lanes[key]

    @property
    def refused_stride(self) -> bool:
        """Whether the sampler turned out to allow no stride."""
        return any(lane.refused_stride for lane in self._lanes.values())
