"""What a sampling run calls: the same interface for the worker group and for the oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..log import get_logger
from .lanes import Lanes
from .prediction import Latent
from .schedule import AsyncSchedule, Round, Target

log = get_logger("schedule")

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Output = Callable[[], Any]


def argument(inputs: Inputs, position: int, name: str) -> Any:
    """An argument of the entry method, by position or by name; None if it is not there."""
    args, kwargs = inputs
    return args[position] if position < len(args) else kwargs.get(name)


def with_argument(inputs: Inputs, position: int, name: str, value: Any) -> Inputs:
    """The arguments with another value of one, which stays where it is."""
    args, kwargs = inputs
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


@dataclass(frozen=True)
class Forecast:
    """What the host knows about the time of an evaluation.

    Attributes:
        sigma: of this evaluation.
        coming: of the evaluations after it, in order, if the sampler evaluates once per step;
            None where they cannot be foreseen.
        at: the inputs of this evaluation with the timestep of another sigma, and of another latent
            unless that is None.
        latent: what the sampler evaluates, before it is scaled for the model; None if that is not
            known.
        is_replaceable: whether stages may get drafts in its place.
        steps_left: how many steps the sampler has after this one; None if that is not known.
    """

    sigma: float
    coming: tuple[float, ...] | None
    at: Callable[[float, Latent | None], Inputs]
    latent: Latent | None = None
    is_replaceable: bool = True
    steps_left: int | None = None


@dataclass(frozen=True)
class Call:
    """One evaluation of the model.

    Attributes:
        key: which lane it belongs to.
        args, kwargs: what the model's entry method would be called with.
        forecast: needed for a stride, a time shift, and to notice that sigma jumps up.
        replica: which copy of the pipeline evaluates it.
        in_sync: whatever its lane has stored is of something else.
    """

    key: Hashable
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    forecast: Forecast | None = None
    replica: int = 0
    in_sync: bool = False

    def inputs(self, target: Target) -> Inputs:
        """The inputs of another time, or as they are."""
        if target.sigma is None or self.forecast is None:
            return self.args, self.kwargs
        return self.forecast.at(target.sigma, target.latent)


class Evaluator(ABC):
    """Evaluates a partitioned model under an AsyncSchedule."""

    stride = 1
    num_stages = 1
    is_folded = False
    _lanes: Lanes | None = None
    _said = False

    def begin_run(self, schedule: AsyncSchedule) -> None:
        """Start a sampling run: new lanes, each with its own warm-up."""
        self.begin_lanes(schedule)
        self._said = False

    def begin_lanes(self, schedule: AsyncSchedule) -> None:
        """Forget all lanes, and open new ones from now on."""
        self._lanes = Lanes(schedule, self.stride, self.num_stages)

    def evaluate(
        self,
        key: Hashable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        forecast: Forecast | None = None,
    ) -> Any:
        """One evaluation of the model on the first replica, see Call.

        Returns:
            What the model's entry method would return; in an async evaluation, from activations of
            the round before.
        """
        (output,) = self.evaluate_all([Call(key, args, kwargs, forecast)])
        return output

    def evaluate_all(
        self, calls: Sequence[Call], meanwhile: Callable[[], None] = lambda: None
    ) -> list[Any]:
        """Several evaluations, of different lanes, at the same time; their outputs in order.

        Args:
            calls: one for each evaluation.
            meanwhile: called when all have begun.
        """
        outputs = [self._begin(call) for call in calls]
        meanwhile()
        return [output() for output in outputs]

    def _begin(self, call: Call) -> Output:
        if self._lanes is None:
            raise RuntimeError("evaluate called outside of a sampling run")
        forecast = call.forecast
        sigma = forecast.sigma if forecast else None
        coming = forecast.coming if forecast else None
        # A cond may change its replica within a run; its new workers know nothing of the lane.
        lane = self._lanes.lane((call.replica, call.key), is_folded=self.is_folded)
        if forecast is not None and forecast.latent is not None and not call.in_sync:
            replaceable = forecast.is_replaceable
            lane.see(forecast.sigma, forecast.latent, coming, is_replaceable=replaceable)
        held: Output | None = lane.take_held(sigma)
        if held is not None:
            return held
        left = forecast.steps_left if forecast else None
        round_ = lane.next_round(sigma, coming, steps_left=left, in_sync=call.in_sync)
        if lane.refused_stride and not self._said:
            self._said = True
            log.warning(
                "this sampler does not evaluate the model once per step in the order of its "
                "sigmas, which a stride needs; the run goes on with stride 1"
            )
        try:
            first, *later = self._run_round(round_, call)
        except BaseException:
            lane.retract(round_)
            raise
        lane.hold(later, coming or ())
        for preparing in lane.preparing(round_, coming):
            self._run_round(preparing, call)
        return first

    def end_run(self) -> None:
        """End the sampling run; its lanes die."""
        self._lanes = None

    @abstractmethod
    def _run_round(self, round_: Round, call: Call) -> Sequence[Output]:
        """Start a round; for each evaluation that it yields, what waits for its output."""
