"""One worker's end of the links: what comes in from other stages, and what goes out to them.

Each link carries exactly one message per round, in sync and in async rounds alike, so modes may
alternate freely, a run may end at the border of any round, and nothing depends on timing.
The first message of a lane is preceded by its layout.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..algorithm.activations import OutputMeta, copy_output
from ..algorithm.schedule import Mode
from ..algorithm.stage import Neighbours
from ..errors import LayoutError
from ..wire.requests import Load
from . import layout_schema
from .packing import MessageLayout, copy_into
from .transport import NUM_SLOTS, Receiver, Sender, Transport


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
        self._num_kept = 1 if is_fresh else distance
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
            outputs, metas = self._transport.receive_plain(self._rank)
            self.metas = list(map(layout_schema.from_plain, metas))
            self._layout = MessageLayout({u: layout_schema.from_plain(meta) for u, meta in outputs})
            self._receiver = self._transport.receiver(
                self._rank, self._layout.nbytes, 1 + self._num_kept
            )
            self._views = [self._layout.views(slot) for slot in self._receiver.slots]
        self._receiver.post(len(self._goals) % len(self._views))
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
        self._receiver.wait(slot)
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


class Outbox:
    """The messages of one lane to one other stage."""

    def __init__(self, transport: Transport, rank: int) -> None:
        self._transport = transport
        self._rank = rank
        self._sender: Sender | None = None
        self._views: list[dict[int, Any]] = []
        self._first: dict[int, Any] = {}
        self._slot = self._num_begun = 0
        self.nbytes = 0

    def begin(self) -> None:
        """Prepare for the next message."""
        self._slot = self._num_begun % NUM_SLOTS
        self._num_begun += 1
        if self._sender is not None:
            self._sender.free(self._slot)

    def put(self, unit: int, output: Any) -> None:
        """Copy the output of `unit` into the message."""
        if self._sender is None:
            self._first[unit] = copy_output(output)
            return
        try:
            copy_into(self._views[self._slot][unit], output)
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
            self._transport.send_plain(
                (plain, list(map(layout_schema.to_plain, metas))), self._rank
            )
            layout = MessageLayout(outputs)
            self.nbytes = NUM_SLOTS * layout.nbytes
            self._sender = self._transport.sender(self._rank, layout.nbytes)
            self._views = [layout.views(slot) for slot in self._sender.slots]
            for unit, output in self._first.items():
                copy_into(self._views[self._slot][unit], output)
            self._first.clear()
        self._sender.send(self._slot)

    def drain(self) -> None:
        """Wait until everything is sent."""
        if self._sender is not None:
            self._sender.drain()


class Waiting:
    """Whether a worker waits for another one now, and how long it has done so, in seconds."""

    def __init__(self) -> None:
        self.is_on = False
        self.seconds = 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        start = time.perf_counter()
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False
            self.seconds += time.perf_counter() - start


class LaneLinks(Neighbours):
    """All links of a worker in one lane.

    A folded stage has two kinds of each. It begins with what comes from the stage around it, and
    at its turn it sends to the stage within and is ready for what comes from there. Two workers
    so post their receipts and sends in the same order, as NCCL needs it, which has one queue per
    pair of workers for both directions.

    Attributes:
        turned: clock of the turn in this round, and the seconds waited before it. There is one: if
            the way in is run twice, what it gives the second time is not sent.
    """

    def __init__(self, transport: Transport, load: Load, waiting: Waiting) -> None:
        super().__init__()
        self._waiting = waiting
        first = load.stage[0][0]
        self._inboxes = {
            units: Inbox(transport, rank, distance, distance - load.distance, is_fresh)
            for rank, distance, units, is_fresh in load.incoming
        }
        self._outboxes = [
            (Outbox(transport, rank), units, is_fresh, distance)
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
        self.turned: tuple[float, float] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the messages of this lane take here, once the first have come and gone."""
        incoming = sum(inbox.nbytes for inbox in self._inboxes.values())
        return incoming + sum(outbox.nbytes for outbox, *_ in self._outboxes)

    def begin(self, goals: Sequence[int | None], mode: Mode) -> None:
        """A round begins. `goals`: see requests.Evaluate."""
        self._goals, self._mode, self.turned = goals, mode, None
        self._post(self._early)
        self._open = [
            (outbox, units, is_fresh)
            for outbox, units, is_fresh, distance in self._outboxes
            if not is_fresh or goals[distance] is not None
        ]
        with self._waiting():
            for outbox, *_ in self._open:
                outbox.begin()

    def pass_over(self, goals: Sequence[int | None]) -> None:
        """A round goes by in which this worker has nothing to do but receive."""
        self._goals = goals
        self._post([*self._early, *self._late])

    def take(self, unit: int) -> Any:
        if unit not in self._taken:
            inbox = next(inbox for units, inbox in self._inboxes.items() if unit in units)
            with self._waiting():
                self._taken |= inbox.take(self._goals, self._mode)
        return self._taken[unit]

    def give(self, unit: int, output: Any) -> None:
        super().give(unit, output)
        for outbox, units, is_fresh in self._open:
            if unit in units and not (is_fresh and self.turned):
                outbox.put(unit, output)

    def turn(self) -> None:
        if self.turned is not None:
            return
        self._send(is_fresh=True)
        self.turned = time.perf_counter(), self._waiting.seconds
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
        with self._waiting():
            for inbox in inboxes:
                inbox.post(self._goals)
            longest = max((inbox.metas for inbox in inboxes), key=len, default=[])
        if len(longest) > len(self.metas):
            self.metas = list(longest)

    def _send(self, *, is_fresh: bool) -> None:
        for outbox, _, way in self._open:
            if way == is_fresh:
                outbox.send(self.metas)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done its work, so that clocks and buffers are honest."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
