"""One worker's end of the links: what comes in from other stages, and what goes out to them.

Each link carries exactly one message per round, in sync and in async rounds alike, so modes may
alternate freely, a run may end at the border of any round, and nothing depends on timing.
The first message of a lane is preceded by its layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..algorithm.activations import OutputMeta, copy_output
from ..algorithm.schedule import Mode
from ..algorithm.stage import Neighbours
from ..errors import LayoutError, LinkError
from ..wire.requests import Load
from . import layout_schema
from .engines import Progress, Waits
from .link import Receiver, Sender
from .packing import MessageLayout, copy_into
from .transport import Transport


class Inbox:
    """The messages of one lane from one other stage.

    Args:
        source: how many stages before the last one the other one lies.
        distance: how many before this one. As many messages are kept, since a message for the goal
            of this stage comes so many rounds earlier.
        is_fresh: async rounds too work on the message of the same round, see stages.Link.
    """

    def __init__(
        self, transport: Transport, rank: int, source: int, distance: int, is_fresh: bool
    ) -> None:
        self._transport = transport
        self._rank = rank
        self._source, self._own = source, source - distance
        self._num_kept = messages_kept(distance, is_fresh)
        self._is_fresh = is_fresh
        self._layout: MessageLayout | None = None
        self._receiver: Receiver | None = None
        self._views: list[dict[int, Any]] = []
        self._goals: list[int] = []  # of all messages so far
        self._has_posted = False
        self.metas: list[OutputMeta] = []

    def post(self, goals: Sequence[int | None]) -> None:
        """Be ready for the message of a round, if there is one in a round with these goals.

        The first call waits for the layout.
        """
        goal = self._goal(goals)
        self._has_posted = goal is not None
        if goal is None:
            return
        if self._receiver is None:
            self._receiver, nbytes, told = self._transport.accept(self._rank, self._num_kept)
            outputs, metas = told
            self.metas = list(map(layout_schema.from_plain, metas))
            self._layout = MessageLayout({u: layout_schema.from_plain(meta) for u, meta in outputs})
            if self._layout.nbytes != nbytes:
                raise LinkError(
                    f"worker {self._rank} sends messages of {nbytes} bytes and says that they "
                    f"have {self._layout.nbytes}."
                )
            self._views = [self._layout.views(slot) for slot in self._receiver.slots]
        self._receiver.post(len(self._goals))
        self._goals.append(goal)

    def _goal(self, goals: Sequence[int | None]) -> int | None:
        """What the message of a round is for; None: there is none.

        The way into a fold is run for the stage within.
        """
        return goals[self._own if self._is_fresh else self._source]

    def take(self, goals: Sequence[int | None], mode: Mode) -> dict[int, Any]:
        """The activations that this stage works on in a round whose message is posted.

        That is the message of this round, or in an async one, unless the link is fresh, one from
        before: the last one for the same goal that is kept, or the last one.

        The model may write into them. What may be needed once more is a copy.
        """
        assert self._receiver is not None and self._layout is not None
        last = len(self._goals) - 1
        is_of_this_round = mode == "sync" or self._is_fresh
        number = last
        if not is_of_this_round:
            newest = last - self._has_posted
            kept = range(newest, max(-1, newest - self._num_kept), -1)
            number = next((n for n in kept if self._goals[n] == goals[self._own]), newest)
        slot = number % len(self._views)
        self._receiver.wait(number)
        is_superseded = mode == "async" and self._has_posted
        if self._is_fresh or (is_superseded and self._is_past(number, goals)):
            return self._views[slot]
        return self._layout.views(self._receiver.slots[slot].clone())

    def _is_past(self, number: int, goals: Sequence[int | None]) -> bool:
        """Whether no later round works on a message, now that a newer one is on its way."""
        now = goals[0]  # the number of the round
        return self._num_kept == 1 or (now is not None and self._goals[number] <= now)

    @property
    def nbytes(self) -> int:
        return 0 if self._layout is None else len(self._views) * self._layout.nbytes

    def drain(self) -> None:
        """Wait for the messages that are still on their way."""
        if self._receiver is not None:
            self._receiver.drain()


def messages_kept(distance: int, is_fresh: bool) -> int:
    """How many messages a stage keeps of one `distance` stages before it, see Inbox."""
    return 1 if is_fresh else distance


class Outbox:
    """The messages of one lane to one other stage.

    Args:
        num_kept: how many messages the other one keeps.
    """

    def __init__(self, transport: Transport, rank: int, num_kept: int) -> None:
        self._transport = transport
        self._rank = rank
        self._num_kept = num_kept
        self._sender: Sender | None = None
        self._views: list[dict[int, Any]] = []
        self._first: dict[int, Any] = {}
        self._number = 0  # of the message that is next, or that is being written
        self._is_free = False
        self.nbytes = 0

    def free(self) -> None:
        """Wait until the next message may be written."""
        if self._sender is not None and not self._is_free:
            self._sender.free(self._number)
        self._is_free = True

    @property
    def is_free(self) -> bool:
        """Whether nobody needs to wait for that."""
        return self._is_free or self._sender is None

    def put(self, unit: int, output: Any) -> None:
        """Copy the output of `unit` into the message."""
        if self._sender is None:
            self._first[unit] = copy_output(output)
            return
        try:
            copy_into(self._views[self._number % len(self._views)][unit], output)
        except ValueError as error:
            raise LayoutError(
                f"{error} in the middle of a sampling run. A patch that changes the number of "
                "tokens from step to step cannot be combined with a model spread over workers."
            ) from None

    def send(self, metas: list[OutputMeta]) -> None:
        """Send the message. `metas` describes all units up to this worker's last one."""
        if self._sender is None:
            outputs = {unit: OutputMeta.of(output) for unit, output in self._first.items()}
            plain = [(unit, layout_schema.to_plain(meta)) for unit, meta in outputs.items()]
            layout = MessageLayout(outputs)
            told = plain, list(map(layout_schema.to_plain, metas))
            self._sender = self._transport.open(self._rank, layout.nbytes, self._num_kept, told)
            self._views = [layout.views(slot) for slot in self._sender.slots]
            self.nbytes = len(self._views) * layout.nbytes
            self._sender.free(self._number)
            for unit, output in self._first.items():
                copy_into(self._views[self._number][unit], output)
            self._first.clear()
        self._sender.send(self._number)
        self._number += 1
        self._is_free = False

    def drain(self) -> None:
        """Wait until everything is sent."""
        if self._sender is not None:
            self._sender.drain()


class LaneLinks(Neighbours):
    """All links of a worker in one lane.

    A folded stage has two kinds of each. It begins with what comes from the stage around it, and
    at its turn it sends to the stage within and is ready for what comes from there. Two workers
    so post their receipts and sends in the same order, as NCCL needs it, which has one queue per
    pair of workers for both directions.

    Args:
        turns: called at the turn of a round. There is one: if the way in is run twice, what it
            gives the second time is not sent.
    """

    def __init__(
        self,
        transport: Transport,
        load: Load,
        waits: Waits,
        progress: Progress,
        turns: Callable[[], None],
    ) -> None:
        super().__init__()
        self._waits, self._progress, self._turns = waits, progress, turns
        first = load.stage[0][0]
        self._inboxes = {
            units: Inbox(transport, rank, distance, distance - load.distance, is_fresh)
            for rank, distance, units, is_fresh in load.incoming
        }
        self._outboxes = [
            (
                Outbox(transport, rank, messages_kept(load.distance - distance, is_fresh)),
                *(units, is_fresh, distance),
            )
            for rank, distance, units, is_fresh in load.outgoing
        ]
        # Those by which this round sends: into a fold, if the stage there works.
        self._open: list[tuple[Outbox, tuple[int, ...], bool]] = []
        self._early = [inbox for units, inbox in self._inboxes.items() if units[0] < first]
        self._late = [inbox for inbox in self._inboxes.values() if inbox not in self._early]
        self.consumed = frozenset().union(*self._inboxes)
        self._taken: dict[int, Any] = {}
        self._goals: Sequence[int | None] = ()
        self._mode: Mode = "sync"
        self.has_turned = False

    @property
    def nbytes(self) -> int:
        """Bytes that the messages of this lane take here, once the first have come and gone."""
        incoming = sum(inbox.nbytes for inbox in self._inboxes.values())
        return incoming + sum(outbox.nbytes for outbox, *_ in self._outboxes)

    def begin(self, goals: Sequence[int | None], mode: Mode) -> None:
        """A round begins. `goals`: see requests.Evaluate."""
        self._goals, self._mode, self.has_turned = goals, mode, False
        self._post(self._early)
        self._open = [
            (outbox, units, is_fresh)
            for outbox, units, is_fresh, distance in self._outboxes
            if not is_fresh or goals[distance] is not None
        ]

    def pass_over(self, goals: Sequence[int | None]) -> None:
        """A round goes by in which this worker has nothing to do but receive."""
        self._goals = goals
        self._post([*self._early, *self._late])

    def take(self, unit: int) -> Any:
        if unit not in self._taken:
            inbox = next(inbox for units, inbox in self._inboxes.items() if unit in units)
            with self._waits:
                self._taken |= inbox.take(self._goals, self._mode)
        return self._taken[unit]

    def give(self, unit: int, output: Any) -> None:
        super().give(unit, output)
        self._progress.told()
        for outbox, units, is_fresh in self._open:
            if unit in units and not (is_fresh and self.has_turned):
                self._free(outbox)
                outbox.put(unit, output)

    def turn(self) -> None:
        if self.has_turned:
            return
        self._send(is_fresh=True)
        self.has_turned = True
        self._turns()
        self._post(self._late)

    def finish(self) -> None:
        """The stage has run: send what was not sent at the turn."""
        self._send(is_fresh=False)
        self._taken.clear()

    def drain(self) -> None:
        """Wait for everything that is on its way."""
        for inbox in self._inboxes.values():
            inbox.drain()
        for outbox, *_ in self._outboxes:
            outbox.drain()

    def _post(self, inboxes: list[Inbox]) -> None:
        with self._waits:
            for inbox in inboxes:
                inbox.post(self._goals)
            longest = max((inbox.metas for inbox in inboxes), key=len, default=[])
        if len(longest) > len(self.metas):
            self.metas = list(longest)

    def _send(self, *, is_fresh: bool) -> None:
        for outbox, _, way in self._open:
            if way == is_fresh:
                self._free(outbox)
                outbox.send(self.metas)

    def _free(self, outbox: Outbox) -> None:
        if not outbox.is_free:
            with self._waits:
                outbox.free()
