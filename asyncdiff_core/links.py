"""One worker's end of the links: what comes in before a stage runs, and what goes out after it.

Each link carries exactly one message per round, in sync and in async rounds alike, so modes may
alternate freely, a run may end at the border of any round, and nothing depends on timing.
The first message of a lane is preceded by its layout.
"""

from __future__ import annotations

from typing import Any

import torch

from .errors import AsyncDiffError
from .packing import MessageLayout, copy_into
from .schedule import Mode
from .stage import OutputMeta, copy_output
from .transport import NUM_SLOTS, Receiver, Sender, Transport


class Inbox:
    """The messages of one lane from one earlier stage."""

    def __init__(self, transport: Transport, rank: int) -> None:
        self._transport = transport
        self._rank = rank
        self._layout: MessageLayout | None = None
        self._receiver: Receiver | None = None
        self._views: list[dict[int, Any]] = []
        self.metas: list[OutputMeta] = []

    def post(self, index: int) -> None:
        """Be ready for message `index` of the lane. The first call waits for the layout."""
        if self._receiver is None:
            outputs, metas = self._transport.receive_plain(self._rank)
            self.metas = [OutputMeta.from_plain(meta) for meta in metas]
            self._layout = MessageLayout({u: OutputMeta.from_plain(meta) for u, meta in outputs})
            self._receiver = self._transport.receiver(self._rank, self._layout.nbytes)
            self._views = [self._layout.views(slot) for slot in self._receiver.slots]
        self._receiver.post(index % NUM_SLOTS)

    def take(self, index: int, mode: Mode) -> dict[int, Any]:
        """The activations that round `index` works on: message `index`, or the one before.

        The model may write into them. Message `index` may be needed once more, by an async round
        after a sync one, so a sync round gets a copy of it.
        """
        assert self._receiver is not None and self._layout is not None
        if mode == "sync":
            slot = index % NUM_SLOTS
            self._receiver.wait(slot)
            return self._layout.views(self._receiver.slots[slot].clone())
        slot = (index - 1) % NUM_SLOTS
        self._receiver.wait(slot)
        return self._views[slot]

    def drain(self) -> None:
        """Wait for the messages that are still on their way."""
        if self._receiver is not None:
            self._receiver.drain()


class Outbox:
    """The messages of one lane to one later stage."""

    def __init__(self, transport: Transport, rank: int) -> None:
        self._transport = transport
        self._rank = rank
        self._sender: Sender | None = None
        self._views: list[dict[int, Any]] = []
        self._first: dict[int, Any] = {}
        self._slot = 0

    def begin(self, index: int) -> None:
        """Prepare for message `index`."""
        self._slot = index % NUM_SLOTS
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
            raise AsyncDiffError(
                f"{error} in the middle of a sampling run. A patch that changes the number of "
                "tokens from step to step cannot be combined with a model spread over workers."
            ) from None

    def send(self, metas: list[OutputMeta]) -> None:
        """Send the message. `metas` describes all units up to this worker's last one."""
        if self._sender is None:
            outputs = {unit: OutputMeta.of(output) for unit, output in self._first.items()}
            plain = [(unit, meta.to_plain()) for unit, meta in outputs.items()]
            self._transport.send_plain((plain, [meta.to_plain() for meta in metas]), self._rank)
            layout = MessageLayout(outputs)
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


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done its work, so that clocks and buffers are honest."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
