"""Holdings: what the workers of a group hold, and what is in force on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Literal

from ..algorithm.stages import Stage, units_of
from ..log import get_logger
from ..planning.planner import Choice
from ..wire.requests import Compile, Patch, Unload
from .assignment import load_request
from .members import LOAD_SECONDS, Member, Members
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
    """

    def __init__(
        self, members: Members, source: ModelSource, before_load: Callable[[], None]
    ) -> None:
        self._members = members
        self._source = source
        self._before_load = before_load
        # What they hold, or held before some of them gave it back.
        self._choice: Choice | None = None
        # A load that goes on: of what, its ticket, and who was asked.
        self._going_on: tuple[Choice, int, list[Member]] | None = None

    # Stages ----------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the first replica, in units, once they are loaded."""
        return self._choice.cuts[0] if self._choice and self.are_loaded else ()

    @property
    def are_loaded(self) -> bool:
        """Whether the workers hold their stages."""
        members = list(self._members)
        return bool(members) and not self._members.broken and all(m.stage for m in members)

    def are_on(self, device: str) -> bool:
        """Whether a worker on this device holds its stage."""
        return any(m.stage and m.process.device == device for m in self._members)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over for what they hold, and why."""
        return self._choice.notes if self._choice else ()

    def bytes_on(self, device: str) -> int:
        """What the weights take of this device."""
        held = [m.loaded for m in self._members if m.stage and m.process.device == device]
        return sum(one.weight_bytes + one.shared_bytes - one.streamed_bytes for one in held)

    @property
    def are_loading(self) -> bool:
        """Whether the workers are loading their stages."""
        return self._going_on is not None

    @property
    def num_loaded(self) -> int:
        """How many workers are done with the load that is going on."""
        return self._members.exchange.num_answers(self._going_on[1]) if self._going_on else 0

    def load(self, choice: Choice) -> None:
        """Have all workers hold their stages; those that do already are not asked.

        Raises:
            WorkersGoneError: they were ended.
        """
        self._members.require_whole()
        is_same = _what(choice) == _what(self._choice)
        asked = [member for member in self._members if not (is_same and member.stage)]
        if not asked:
            return
        started = time.monotonic()
        going_on, self._going_on = self._going_on, None
        if going_on is not None and _what(going_on[0]) == _what(choice):
            _, ticket, asked = going_on  # of a prompt that was canceled meanwhile
        else:
            self._before_load()
            self._members.connect()
            self._choice = None
            for member in asked:
                member.forget()
            skips = self._source.skips
            loads = [load_request(choice, member.placement, skips) for member in asked]
            ticket = self._members.post(loads, asked)
        self._going_on = choice, ticket, asked
        answers = self._members.collect(ticket, asked, LOAD_SECONDS)
        self._going_on, self._choice = None, choice
        for member, answer in zip(asked, answers, strict=True):
            place = member.placement
            member.waiting_bytes = 0
            member.stage, member.loaded = choice.cuts[place.replica][place.stage], answer
        log.info(
            "%s cut into %d stages: %s (%.1f s)",
            self._source.name,
            choice.plan.stages,
            ", ".join(map(_said, asked)),
            time.monotonic() - started,
        )

    def unload(self, device: str | None = None) -> int:
        """Have workers give the memory of their weights back; how many bytes they held.

        Args:
            device: of those on this one, where they may wait in the host's memory; None: of all.
        """
        if self._going_on is not None:
            asked, self._going_on = list(self._members), None
        else:
            asked = [
                m
                for m in self._members
                if (m.stage and device in (None, m.process.device))
                or (m.waiting_bytes and device is None)
            ]
        if not asked:
            return 0
        # What is still being loaded is held as well, but nobody knows how much it is.
        devices = {member.process.device for member in asked}
        held = sum(map(self.bytes_on, devices)) or 1
        for member in asked:
            member.forget()
        ticket = self._members.post([Unload(waits=device is not None)] * len(asked), asked)
        answers = self._members.collect(ticket, asked, LOAD_SECONDS, poll=False)
        for member, answer in zip(asked, answers, strict=True):
            member.waiting_bytes = answer.waiting_bytes
        return held

    def restore(self) -> None:
        """Have all workers hold again what they gave back since the last load."""
        if self._choice is not None:
            self.load(self._choice)

    # What is in force on them ----------------------------------------------------------------

    def set_patches(self, uuid: str, payload: Callable[[Stage], Any]) -> None:
        """Have weight patches in force; nothing is done where they are already.

        Args:
            uuid: of the patches.
            payload: gives the patches for the units of a stage.
        """
        self._put_in_force("patches", uuid, lambda member: Patch(payload(member.stage)))

    def set_compilation(self, payload: Any) -> None:
        """Have the units compiled as `payload` says, or not if it is None; see Compile.

        Nothing is done where they are already. It is the next evaluation that takes the time.
        """
        self._put_in_force("compilation", payload, lambda member: Compile(payload))

    @property
    def may_be_compiled(self) -> bool:
        """Whether the next evaluation may take as long as compiling a unit does."""
        return any(member.in_force.get("compilation") is not None for member in self._members)

    def _put_in_force(self, setting: Setting, value: Any, request: Callable[[Member], Any]) -> None:
        # A stage that was just loaded has no patches, and is not compiled.
        asked = [m for m in self._members if m.in_force.get(setting) != value]
        if asked:
            for member in asked:
                member.in_force[setting] = UNKNOWN
            self._members.ask(asked, [request(member) for member in asked], LOAD_SECONDS)
            for member in asked:
                member.in_force[setting] = value


def _what(choice: Choice | None) -> Any:
    """What of a choice decides what workers hold."""
    return choice and (choice.plan, choice.cuts, choice.budgets)


def _said(member: Member) -> str:
    loaded = member.loaded
    weights = f"{loaded.weight_bytes / 2**20:.0f} MiB"
    if loaded.streamed_bytes:
        weights += f", {loaded.streamed_bytes / 2**20:.0f} MiB streamed"
    return (
        f"{member.process.device} {len(list(units_of(member.stage)))} units {weights}"
        f" (process: {loaded.resident_bytes / 2**20:.0f} MiB resident)"
    )
