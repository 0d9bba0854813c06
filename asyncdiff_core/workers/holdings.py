"""Holdings: what the workers of a group hold, and what is in force on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from ..algorithm.stages import Stage, units_of
from ..log import get_logger
from ..planning.plan import ParallelPlan
from ..wire.requests import Compile, Patch, Unload
from .assignment import Cuts, load_request
from .members import LOAD_SECONDS, Members
from .source import ModelSource

log = get_logger("group")

Setting = Literal["patches", "compilation"]


class _Unknown:
    """Equals nothing else."""


# A request was interrupted: some workers may have done it.
UNKNOWN: Final = _Unknown()


class Holdings:
    """The stages, weight patches and compiled units of all workers.

    Args:
        before_load: called before workers read the files of the model; whatever it raises stops
            them.

    Attributes:
        signature: of the inputs that the stages were cut for.
    """

    def __init__(
        self, members: Members, source: ModelSource, before_load: Callable[[], None]
    ) -> None:
        self._members = members
        self._source = source
        self._before_load = before_load
        self._given_back: Cuts = ()  # what they held when `unload` was called
        self._forget()

    def _forget(self) -> None:
        self._cuts: Cuts = ()  # what they hold
        self._load_going_on: tuple[Cuts, int] | None = None  # and its ticket
        self.signature: Any = None
        # A stage that was just loaded has no patches, and is not compiled.
        self._in_force: dict[Setting, Any] = {"patches": None, "compilation": None}
        for member in self._members:
            member.forget()

    # Stages ----------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the first replica, in units, once they are loaded."""
        return self._cuts[0] if self._cuts else ()

    @property
    def are_loaded(self) -> bool:
        """Whether the workers hold their stages."""
        return bool(self._cuts) and not self._members.broken

    @property
    def are_loading(self) -> bool:
        """Whether the workers are loading their stages."""
        return self._load_going_on is not None

    @property
    def num_loaded(self) -> int:
        """How many workers are done with the load that is going on."""
        going_on = self._load_going_on
        return self._members.exchange.num_answers(going_on[1]) if going_on else 0

    def load(self, plan: ParallelPlan, cuts: Cuts) -> None:
        """Have all workers hold their stages of `cuts`; nothing is done if they do."""
        if cuts == self._cuts:
            return
        started = time.monotonic()
        members = self._members
        going_on, self._load_going_on = self._load_going_on, None
        if going_on is not None and going_on[0] == cuts:
            ticket = going_on[1]  # of a prompt that was canceled meanwhile
        else:
            self._before_load()
            self._members.connect()
            self._forget()
            places, skips = [member.placement for member in members], self._source.skips
            ticket = self._members.post([load_request(plan, p, cuts, skips) for p in places])
        self._load_going_on = cuts, ticket
        answers = self._members.collect(ticket, members, LOAD_SECONDS)
        self._load_going_on = None
        for member, answer in zip(members, answers, strict=True):
            place = member.placement
            member.stage, member.loaded = cuts[place.replica][place.stage], answer
        self._cuts = cuts
        log.info(
            "%s cut into %d stages: %s (%.1f s)",
            self._source.name,
            plan.stages,
            ", ".join(
                f"{m.process.device} {len(list(units_of(m.stage)))} units "
                f"{m.loaded.weight_bytes / 2**20:.0f} MiB"
                f" (process: {m.loaded.resident_bytes / 2**20:.0f} MiB resident)"
                for m in members
            ),
            time.monotonic() - started,
        )

    def unload(self) -> bool:
        """Have all workers give the memory of their weights back; whether they held any."""
        if not (self._cuts or self._load_going_on):
            return False
        self._given_back = self._cuts
        self._forget()
        members = self._members
        ticket = self._members.post([Unload()] * len(members))
        self._members.collect(ticket, members, LOAD_SECONDS, poll=False)
        return True

    def restore(self, plan: ParallelPlan) -> None:
        """Have all workers hold again what they gave back, if that is what they did last."""
        if not self._cuts:
            self.load(plan, self._given_back)

    # What is in force on them ----------------------------------------------------------------

    def set_patches(self, uuid: str, payload: Callable[[Stage], Any]) -> None:
        """Have weight patches in force; nothing is done if they are already.

        Args:
            uuid: of the patches.
            payload: gives the patches for the units of a stage.
        """
        if uuid != self._in_force["patches"]:
            with self._changing("patches", uuid):
                requests = [Patch(payload(m.stage)) for m in self._members]
                self._members.request(requests, LOAD_SECONDS)

    def set_compilation(self, payload: Any) -> None:
        """Have the units compiled as `payload` says, or not if it is None; see Compile.

        Nothing is done if they are already. It is the next evaluation that takes the time.
        """
        if payload != self._in_force["compilation"]:
            with self._changing("compilation", payload):
                requests = [Compile(payload)] * len(self._members)
                self._members.request(requests, LOAD_SECONDS)

    @property
    def may_be_compiled(self) -> bool:
        """Whether the next evaluation may take as long as compiling a unit does."""
        return self._in_force["compilation"] is not None

    @contextmanager
    def _changing(self, setting: Setting, value: Any) -> Iterator[None]:
        self._in_force[setting] = UNKNOWN
        yield
        self._in_force[setting] = value
