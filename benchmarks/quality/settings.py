"""What the laboratory compares: settings of AsyncDiff, and the baselines. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from asyncdiff_core.algorithm.schedule import DEFAULT_WARM_UP

WARM_UPS = (1, 2, 3, 5, 9)

FORM = re.compile(
    r"N(?P<stages>\d+) S(?P<stride>\d+)( R(?P<replicas>\d+))? w(?P<warm_up>\d+)(?P<shift> shift)?"
    r"(?P<prediction> draft)?(?P<reference> reference)?|(?P<steps>\d+) steps"
)


@dataclass(frozen=True)
class Setting:
    """One way to sample.

    Attributes:
        stages, stride, replicas, warm_up, time_shift, prediction: of AsyncDiff; one stage without
            stride is the stock sampler, or CFG replicas of it.
        steps: if given, the stock sampler with so many steps: what one can do without AsyncDiff.
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

    @classmethod
    def parse(cls, name: str) -> Setting:
        """The setting of a name such as "N2 S1 w3", "N3 S2 R2 w5 shift" or "20 steps".

        Raises:
            ValueError: it is not one.
        """
        match = FORM.fullmatch(name.strip())
        if match is None:
            raise ValueError(f"{name!r} is not like 'N2 S1 w3', 'N3 S2 R2 w5 shift' or '20 steps'")
        if match["steps"]:
            return cls(steps=int(match["steps"]))
        return cls(
            stages=int(match["stages"]),
            stride=int(match["stride"]),
            replicas=int(match["replicas"] or 1),
            warm_up=int(match["warm_up"]),
            time_shift=bool(match["shift"]),
            is_reference=bool(match["reference"]),
            prediction=bool(match["prediction"]),
        )

    @property
    def name(self) -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        replicas = f" R{self.replicas}" if self.replicas > 1 else ""
        ends = " shift" * self.time_shift + " draft" * self.prediction
        ends += " reference" * self.is_reference
        return f"N{self.stages} S{self.stride}{replicas} w{self.warm_up}{ends}"

    @property
    def is_stock(self) -> bool:
        """Whether the stock sampler gives this result, whatever the number of devices."""
        return self.stages == self.stride == 1

    @property
    def num_devices(self) -> int:
        return self.replicas * (self.stages + self.stride - 1)

    def ideal_speedup(self, steps: int, num_conds: int = 2) -> float:
        """How much faster than one device it is with balanced stages and no overhead.

        Args:
            steps: evaluations of the full run.
            num_conds: conds in each evaluation; no more replicas than these have work.
        """
        if self.steps is not None:
            return steps / self.steps
        share = math.ceil(num_conds / self.replicas) / num_conds
        warm_up = min(self.warm_up, steps)
        rounds = math.ceil((steps - warm_up) / self.stride)
        return steps / (share * (warm_up + rounds / self.stages))


def default_settings() -> list[Setting]:
    """Plans of two to four devices, the paper's over a range of warm-ups."""
    settings = [Setting(n, s, warm_up=w) for n, s in ((2, 1), (3, 1), (3, 2)) for w in WARM_UPS]
    settings += [Setting(n, s, warm_up=DEFAULT_WARM_UP) for n, s in ((4, 1), (2, 2))]
    settings += [
        Setting(n, s, warm_up=DEFAULT_WARM_UP, time_shift=True) for n, s in ((3, 1), (3, 2))
    ]
    settings += [Setting(3, 2, warm_up=w, is_reference=True) for w in (2, 4)]
    return [*settings, Setting(replicas=2), Setting(2, replicas=2, warm_up=DEFAULT_WARM_UP)]


def with_baselines(settings: Sequence[Setting], steps: int, num_conds: int) -> list[Setting]:
    """`settings`, and for each the stock sampler with as many steps as fit its ideal time."""
    fewer = {equal_time_steps(s, steps, num_conds) for s in settings if not s.is_stock}
    return [*settings, *(Setting(steps=count) for count in sorted(fewer, reverse=True))]


def equal_time_steps(setting: Setting, steps: int, num_conds: int) -> int:
    """The number of stock steps that take at least the ideal time of `setting`."""
    return math.ceil(steps / setting.ideal_speedup(steps, num_conds) - 1e-9)
