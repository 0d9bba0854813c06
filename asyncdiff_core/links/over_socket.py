"""Links that send their messages through the socket between two workers."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import torch

from ..wire.channel import raw_bytes
from .link import link_errors
from .peers import Arrivals, Incoming, Peer

NUM_SLOTS = 2  # one is written while the other is on its way


class SocketSender:
    """See link.Sender."""

    def __init__(self, peer: Peer, link: int, slots: list[torch.Tensor]) -> None:
        self._peer, self._link = peer, link
        self._sent: list[Future[Any] | None] = [None] * len(slots)
        self.slots = slots

    def free(self, number: int) -> None:
        slot = number % len(self.slots)
        sent, self._sent[slot] = self._sent[slot], None
        if sent is not None:
            with link_errors(self._peer.rank):
                sent.result()

    def send(self, number: int) -> None:
        slot = number % len(self.slots)
        self._sent[slot] = self._peer.send_data(self._link, raw_bytes(self.slots[slot]))

    def drain(self) -> None:
        for slot in range(len(self.slots)):
            self.free(slot)
        self._peer.end(self._link)


class SocketReceiver(Arrivals):
    """See link.Receiver."""

    def __init__(
        self, peer: Peer, incoming: Incoming, slots: list[torch.Tensor], num_kept: int
    ) -> None:
        super().__init__(peer, incoming, num_kept)
        self.slots = slots

    def post(self, number: int) -> None:
        self._num_posted = number + 1
        self._incoming.buffers.put(raw_bytes(self.slots[number % len(self.slots)]))
