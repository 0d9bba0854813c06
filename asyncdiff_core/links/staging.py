"""Links of workers on GPUs through memory of the host.

A message leaves the GPU on a stream of its own while the next units compute, and enters the other
one as soon as it has arrived, before its stage asks for it. No stage waits for a copy that another
one does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from .engines import Engine, Moment
from .link import Receiver, Sender

NUM_SLOTS = 2  # of a sender on the device: one is written while the other is on its way


class StagedSender:
    """See link.Sender. Slots are on the device.

    Args:
        wire: sends what is in memory of the host.
        memory: of its slots.
    """

    def __init__(self, wire: Sender, engine: Engine, memory: Sequence[torch.Tensor]) -> None:
        self._wire, self._engine = wire, engine
        self._unpin = [engine.pin(part) for part in memory]
        self.slots = [_twin(wire.slots[0], engine) for _ in range(NUM_SLOTS)]
        self._jobs = ThreadPoolExecutor(1, "sends")
        self._sent: list[Future[None] | None] = [None] * NUM_SLOTS

    def free(self, number: int) -> None:
        sent = self._sent[number % NUM_SLOTS]
        if sent is not None:
            sent.result()

    def send(self, number: int) -> None:
        written = self._engine.here()
        self._sent[number % NUM_SLOTS] = self._jobs.submit(self._send, number, written)

    @torch.inference_mode()  # as what computes: its tensors cannot be written otherwise
    def _send(self, number: int, written: Moment) -> None:
        self._wire.free(number)
        target = self._wire.slots[number % len(self._wire.slots)]
        self._engine.copy(target, self.slots[number % NUM_SLOTS], [written]).synchronize()
        self._wire.send(number)

    def drain(self) -> None:
        for slot in range(NUM_SLOTS):
            self.free(slot)
        self._jobs.shutdown()
        self._wire.drain()
        for unpin in self._unpin:
            unpin()


class StagedReceiver:
    """See link.Receiver. Slots are on the device.

    Args:
        wire: receives into memory of the host.
        memory: of its slots.
    """

    def __init__(self, wire: Receiver, engine: Engine, memory: Sequence[torch.Tensor]) -> None:
        self._wire, self._engine = wire, engine
        self._unpin = [engine.pin(part) for part in memory]
        self.num_kept = wire.num_kept
        self.slots = [_twin(slot, engine) for slot in wire.slots]
        self._jobs = ThreadPoolExecutor(1, "receives")
        self._arrived: list[Future[Moment] | None] = [None] * len(self.slots)

    def post(self, number: int) -> None:
        past = self._engine.here()  # nothing behind it reads what was in this slot
        slot = number % len(self.slots)
        self._arrived[slot] = self._jobs.submit(self._receive, number, past)

    @torch.inference_mode()
    def _receive(self, number: int, past: Moment) -> Moment:
        self._wire.post(number)
        self._wire.wait(number)
        slot = number % len(self.slots)
        moment = self._engine.copy(self.slots[slot], self._wire.slots[slot], [past])
        moment.synchronize()  # before the next post tells that a slot of the host is free
        return moment

    def wait(self, number: int) -> None:
        arrived = self._arrived[number % len(self.slots)]
        assert arrived is not None
        self._engine.follow(arrived.result())

    def drain(self) -> None:
        for arrived in self._arrived:
            if arrived is not None:
                arrived.result()
        self._jobs.shutdown()
        self._wire.drain()
        for unpin in self._unpin:
            unpin()


def _twin(slot: torch.Tensor, engine: Engine) -> torch.Tensor:
    return torch.empty_like(slot, device=engine.device)
