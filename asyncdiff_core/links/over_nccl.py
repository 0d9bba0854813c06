"""Links between GPUs, by NCCL.

NCCL has one queue per pair of workers for both directions; see lane_links.LaneLinks for the order.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist

from .link import link_errors


class _NcclLink:
    def __init__(self, rank: int, slots: list[torch.Tensor]) -> None:
        self._rank = rank
        self._work: list[dist.Work | None] = [None] * len(slots)
        self.slots = slots

    def _begin(self, number: int, work: dist.Work | None) -> None:
        self._work[number % len(self.slots)] = work

    def _join(self, number: int) -> None:
        """The work of this stream that comes now waits for the message in this slot."""
        slot = number % len(self.slots)
        work, self._work[slot] = self._work[slot], None
        if work is not None:
            with link_errors(self._rank):
                work.wait()

    def drain(self) -> None:
        for slot in range(len(self.slots)):
            self._join(slot)


class NcclSender(_NcclLink):
    """See link.Sender."""

    def free(self, number: int) -> None:
        self._join(number)

    def send(self, number: int) -> None:
        with link_errors(self._rank):
            slot = self.slots[number % len(self.slots)]
            self._begin(number, cast(dist.Work, dist.isend(slot, self._rank)))


class NcclReceiver(_NcclLink):
    """See link.Receiver."""

    def __init__(self, rank: int, slots: list[torch.Tensor], num_kept: int) -> None:
        super().__init__(rank, slots)
        self.num_kept = num_kept

    def post(self, number: int) -> None:
        self._join(number)  # of a message that came and was not needed
        with link_errors(self._rank):
            slot = self.slots[number % len(self.slots)]
            self._begin(number, cast(dist.Work, dist.irecv(slot, self._rank)))

    def wait(self, number: int) -> None:
        self._join(number)
