"""AsyncSchedule, and what a round of it is. Pure.

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
from dataclasses import dataclass, field
from typing import Literal

from ..errors import ScheduleError
from .prediction import Latent

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
    lanes.Lane.next_round; 0: as many as there are otherwise.
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
