"""Links through memory that both workers share.

A message is written where the other worker reads it. What crosses the socket is how many messages
are written, and how many are not needed any more.
"""

from __future__ import annotations

from ..wire.shared_memory import SharedMemory
from .link import link_errors
from .peers import Arrivals, Count, Incoming, Peer

# Beside the messages that are kept: the one that comes, and one that comes early, so that no worker
# waits for one that begins a round a little later.
NUM_COMING = 2


class RingSender:
    """See link.Sender.

    Args:
        link: its number among those to `peer`.
        is_free: how many of its messages are not needed any more.
        memory: of all slots.
    """

    def __init__(
        self, peer: Peer, link: int, is_free: Count, memory: SharedMemory, num_slots: int
    ) -> None:
        self._peer, self._link, self._is_free = peer, link, is_free
        self.slots = list(memory.bytes.chunk(num_slots))

    def free(self, number: int) -> None:
        with link_errors(self._peer.rank):
            self._is_free.wait_for(number + 1 - len(self.slots))

    def send(self, number: int) -> None:
        with link_errors(self._peer.rank):
            self._peer.tell_ready(self._link, number + 1)

    def drain(self) -> None:
        self._peer.end(self._link)  # the other worker has the memory, too


class RingReceiver(Arrivals):
    """See link.Receiver."""

    def __init__(
        self, peer: Peer, incoming: Incoming, memory: SharedMemory, num_slots: int, num_kept: int
    ) -> None:
        super().__init__(peer, incoming, num_kept)
        self.slots = list(memory.bytes.chunk(num_slots))

    def post(self, number: int) -> None:
        self._num_posted = number + 1
        if number > self.num_kept:
            with link_errors(self._peer.rank):
                self._peer.tell_free(self._incoming.link, number - self.num_kept)
