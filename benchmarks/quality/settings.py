"""What the laboratory compares: settings of AsyncDiff, and the baselines. Pure."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from asyncdiff_core.algorithm.schedule import DEFAULT_WARM_UP, AsyncSchedule

WARM_UPS = (1, 2, 3, 5)

# ComfyUI's nodes, and thresholds at which the demonstration's model gains with them: LazyCache as
# much as with two to three stages, EasyCache until the pictures are none any more.
CACHES = {"EasyCache": (0.02, 0.03, 0.05), "LazyCache": (0.1, 0.2, 0.4, 0.8)}

FORM = re.compile(
    r"N(?P<stages>\d+) S(?P<stride>\d+)( R(?P<replicas>\d+))? w(?P<warm_up>\d+)"
    r"( c(?P<cool_down>\d+))?( t(?P<tolerance>[\d.]+))?(?P<shift> shift)?"
    r"(?P<prediction> draft)?(?P<reference> reference)?|(?P<steps>\d+) steps"
)
CACHE = re.compile(r"(?P<cache>EasyCache|LazyCache) (?P<reuse_threshold>[\d.]+)")


@dataclass(frozen=True)
class Setting:
    """One way to sample.

    Attributes:
        stages, stride, replicas: the plan; one stage without stride is the stock sampler, or CFG
            replicas of it.
        warm_up, time_shift, prediction, cool_down, tolerance: of the schedule.
        steps: if given, the stock sampler with so many steps: what one can do without AsyncDiff.
        cache, reuse_threshold: if given, with this node of ComfyUI, which leaves out evaluations
            whose results it takes for nearly those before.
        is_reference: follow the reference implementation where its schedule differs: with a
            stride of 2 and an even warm-up, the first evaluation after the warm-up repeats the
            result of the one before.
    """

    stages: int = 1
    stride: int = 1
    replicas: int = 1
    warm_up: int = 1
    time_shift: bool = False
    steps: int | None = None
    is_reference: bool = False
    prediction: bool = False
    cool_down: int = 0
    tolerance: float = 0.0
    cache: str | None = None
    reuse_threshold: float = 0.0

    @classmethod
    def parse(cls, name: str) -> Setting:
        """The setting of a name such as "N2 S1 w3", "N3 S2 R2 w5 shift", "N2 S1 w3 + LazyCache 0.2"
        or "20 steps".

        Raises:
            ValueError: it is not one.
        """
        plan, _, beside = name.strip().rpartition(" + ")
        cached = CACHE.fullmatch(beside)
        match = FORM.fullmatch(plan if cached else name.strip())
        if (match is None and not (cached and not plan)) or (match and match["steps"] and cached):
            raise ValueError(
                f"{name!r} is not like 'N2 S1 w3', 'N3 S2 R2 w5 shift', '20 steps', "
                "'EasyCache 0.2' or 'N2 S1 w3 + EasyCache 0.2'"
            )
        cache: dict[str, Any] = {}
        if cached:
            cache = {"cache": cached["cache"], "reuse_threshold": float(cached["reuse_threshold"])}
        if match is None:
            return cls(**cache)
        if match["steps"]:
            return cls(steps=int(match["steps"]))
        return cls(
            **cache,
            stages=int(match["stages"]),
            stride=int(match["stride"]),
            replicas=int(match["replicas"] or 1),
            warm_up=int(match["warm_up"]),
            time_shift=bool(match["shift"]),
            is_reference=bool(match["reference"]),
            prediction=bool(match["prediction"]),
            cool_down=int(match["cool_down"] or 0),
            tolerance=float(match["tolerance"] or 0.0),
        )

    @property
    def name(self) -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        cache = f"{self.cache} {self.reuse_threshold:g}" if self.cache else ""
        if cache and self.is_stock:
            return cache
        replicas = f" R{self.replicas}" if self.replicas > 1 else ""
        ends = f" c{self.cool_down}" if self.cool_down else ""
        ends += f" t{self.tolerance:g}" if self.tolerance else ""
        ends += " shift" * self.time_shift + " draft" * self.prediction
        ends += " reference" * self.is_reference
        ends += f" + {cache}" * bool(cache)
        return f"N{self.stages} S{self.stride}{replicas} w{self.warm_up}{ends}"

    @property
    def schedule(self) -> AsyncSchedule:
        return AsyncSchedule(
            self.warm_up, self.time_shift, self.prediction, self.cool_down, self.tolerance
        )

    @property
    def is_stock(self) -> bool:
        """Whether the stock sampler gives this result, whatever the number of devices."""
        return self.stages == self.stride == 1

    @property
    def is_baseline(self) -> bool:
        """Whether it is what one can do without AsyncDiff."""
        return self.steps is not None or (self.cache is not None and self.is_stock)

    @property
    def num_devices(self) -> int:
        return self.replicas * (self.stages + self.stride - 1)

    def ideal_speedup(
        self,
        steps: int,
        num_conds: int = 2,
        num_sync: float | None = None,
        num_done: float | None = None,
    ) -> float:
        """How much faster than one device it is with balanced stages and no overhead.

        That of a cache alone follows from the images, see sampling.Bench.num_rows.

        Args:
            steps: evaluations of the full run.
            num_conds: conds in each evaluation; no more replicas than these have work.
            num_sync: the synchronous evaluations, which follow from the images with a tolerance.
            num_done: all that are done, which follow from the images with a cache.
        """
        if self.steps is not None:
            return steps / self.steps
        share = math.ceil(num_conds / self.replicas) / num_conds
        if num_sync is None:
            num_sync = min(self.warm_up + self.cool_down, steps)
        rounds = math.ceil(((steps if num_done is None else num_done) - num_sync) / self.stride)
        return steps / (share * (num_sync + rounds / self.stages))


def default_settings() -> list[Setting]:
    """Plans of two to four devices, on stale latents and on drafts, two of them over warm-ups."""
    plans = [((n, 1, 1), w) for n, w in itertools.product((2, 3), WARM_UPS)]
    others = (4, 1, 1), (2, 2, 1), (3, 2, 1), (2, 1, 2), (1, 2, 1), (1, 3, 1), (1, 4, 1)
    plans += [(plan, DEFAULT_WARM_UP) for plan in others]
    settings = [
        Setting(*plan, warm_up=warm_up, prediction=prediction)
        for plan, warm_up in plans
        for prediction in (False, True)
    ]
    shifted = Setting(3, 1, warm_up=DEFAULT_WARM_UP, time_shift=True)
    caches = [
        Setting(cache=cache, reuse_threshold=threshold)
        for cache, thresholds in CACHES.items()
        for threshold in thresholds
    ]
    drafted = Setting(2, warm_up=DEFAULT_WARM_UP, prediction=True)
    both = [
        dataclasses.replace(drafted, cache="LazyCache", reuse_threshold=threshold)
        for threshold in CACHES["LazyCache"]
    ]
    return [*settings, shifted, Setting(replicas=2), *caches, *both]


def baselines(speedups: Iterable[float], steps: int) -> list[Setting]:
    """For each speed-up the stock sampler with as many steps as fit its time."""
    counts = {equal_time_steps(steps, speedup) for speedup in speedups}
    return [Setting(steps=count) for count in sorted(counts, reverse=True)]


def equal_time_steps(steps: int, ideal_speedup: float) -> int:
    """The number of stock steps that take at least the time of `steps` so much faster."""
    return math.ceil(steps / ideal_speedup - 1e-9)
