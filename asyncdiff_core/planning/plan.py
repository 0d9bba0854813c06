"""ParallelPlan: which devices hold which stage of how many replicas. Pure, validates itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlanError

MAX_WORKERS = 64


@dataclass(frozen=True)
class Placement:
    """What one worker is: its place in the plan.

    `lead` counts the last stage's extra copies of a stride > 1: the worker with lead 0 is the
    stage itself, the one with lead j yields the eps that is j evaluations older.
    """

    rank: int
    device: str
    replica: int
    stage: int
    lead: int = 0


@dataclass(frozen=True)
class ParallelPlan:
    """How a model is spread over devices.

    Every replica is a pipeline of `stages` workers; a stride S > 1 adds S - 1 workers per replica,
    each with a second copy of the last stage (AsyncDiff, arXiv 2406.06911, section 3.3).

    Attributes:
        devices: one per worker, by rank.
        stages: of each replica.
        replicas: whole models.
        stride: evaluations of a round.
        order: the worker of each place, in the order replica by replica, stage by stage, copies
            last; empty: in turn. Which device has which stage makes no difference to results.
    """

    devices: tuple[str, ...]
    stages: int
    replicas: int = 1
    stride: int = 1
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stages", "replicas", "stride"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise PlanError(f"{name} must be a whole number of at least 1, but is {value!r}.")
        if len(self.devices) > MAX_WORKERS:
            raise PlanError(f"{len(self.devices)} devices are listed; at most {MAX_WORKERS} work.")
        if self.num_workers != len(self.devices):
            raise PlanError(
                f"{self.replicas} replicas x ({self.stages} stages + {self.stride} stride - 1) "
                f"need {self.num_workers} devices, but {len(self.devices)} are listed "
                f"({','.join(self.devices)}). {self._nearest_fits()}"
            )

        if self.order and sorted(self.order) != list(range(self.num_workers)):
            raise PlanError(f"order has to name each worker once, but is {self.order}.")

    @property
    def workers_per_replica(self) -> int:
        return self.stages + self.stride - 1

    @property
    def num_workers(self) -> int:
        return self.replicas * self.workers_per_replica

    def placements(self) -> tuple[Placement, ...]:
        """One Placement per worker, by rank."""
        placements = []
        for place, rank in enumerate(self.order or range(self.num_workers)):
            replica, position = divmod(place, self.workers_per_replica)
            stage, device = min(position, self.stages - 1), self.devices[rank]
            placements.append(Placement(rank, device, replica, stage, lead=position - stage))
        return tuple(sorted(placements, key=lambda placement: placement.rank))

    def _nearest_fits(self) -> str:
        num = len(self.devices)
        fits = [
            f"stages={num // replicas - self.stride + 1}, replicas={replicas}, stride={self.stride}"
            for replicas in range(1, num + 1)
            if num % replicas == 0 and num // replicas - self.stride + 1 >= 1
        ]
        need = f"list {self.num_workers} devices"
        return f"Either {need}, or set {' or '.join(fits)}." if fits else f"Please {need}."


def parse_devices(text: str, available: Sequence[str]) -> tuple[str, ...]:
    """The devices that `text` names.

    Args:
        text: ``auto`` or a comma-separated list such as ``cuda:0,cuda:1`` or ``cpu,cpu``.
        available: the devices of this machine, GPUs first; the CPU counts as always available.

    Raises:
        PlanError: for an empty list, or a device that this machine does not have.
    """
    names = [part.strip().lower() for part in text.split(",")]
    if names == ["auto"]:
        accelerators = tuple(name for name in available if name != "cpu")
        return accelerators or ("cpu", "cpu")
    known = {*available, "cpu"}
    devices = []
    for name in names:
        full = f"{name}:0" if name and name != "cpu" and ":" not in name else name
        if full not in known:
            raise PlanError(
                f"unknown device {name!r} in devices={text!r}. This machine has: "
                f"{', '.join(sorted(known))}. Use 'auto', or a list such as 'cuda:0,cuda:1' or "
                "'cpu,cpu'."
            )
        devices.append(full)
    return tuple(devices)


def make_plan(
    devices: Sequence[str], *, stages: int = 0, replicas: int = 0, stride: int = 1
) -> ParallelPlan:
    """The plan for `devices`; a 0 for `stages` or `replicas` means that it is chosen here.

    Raises:
        PlanError: if the numbers do not fit, with the nearest ones that do.
    """
    for name, value, least in (
        ("stages", stages, 0),
        ("replicas", replicas, 0),
        ("stride", stride, 1),
    ):
        if value < least:
            raise PlanError(f"{name} must be at least {least}, but is {value}.")
    replicas = replicas or 1
    if not stages:
        stages = max(1, len(devices) // replicas - stride + 1)
    return ParallelPlan(tuple(devices), stages, replicas, stride)
