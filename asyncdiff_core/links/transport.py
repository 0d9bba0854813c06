"""Point-to-point messages between the workers of one group.

This module alone knows the backends. NCCL carries tensors from GPU to GPU; sockets (peers.py) carry
them between CPUs, and for workers on GPUs that NCCL cannot serve (Windows, several workers on one
GPU) through pinned host memory. A message has a fixed size, and two slots on either side, so that
one can be filled or read while the other is on its way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from ..errors import LinkError, PlanError
from ..settings import Backend
from ..wire.channel import raw_bytes
from .peers import Peer

# A worker that hangs is found by the host, which sees progress; this only bounds a lost host.
LINK_TIMEOUT = timedelta(hours=2)

NUM_SLOTS = 2


def choose_backend(devices: Sequence[str], wanted: str = "auto") -> Backend:
    """The backend that serves `devices`.

    Args:
        devices: one device per worker.
        wanted: ``auto``, ``socket`` or ``nccl`` (environment variable ASYNCDIFF_BACKEND).

    Raises:
        PlanError: NCCL is asked for and cannot serve these devices.
    """
    if wanted not in ("auto", "socket", "nccl"):
        raise PlanError(f"ASYNCDIFF_BACKEND is {wanted!r}; use auto, socket or nccl.")
    if wanted == "socket":
        return "socket"
    obstacle = None
    twice = sorted({d for d in devices if list(devices).count(d) > 1})
    if not all(d.startswith("cuda") for d in devices):
        obstacle = f"NCCL connects CUDA devices only, but the devices are {','.join(devices)}"
    elif twice:
        obstacle = f"NCCL allows one worker per GPU, but {', '.join(twice)} is listed twice"
    elif not sys.platform.startswith("linux") or not dist.is_nccl_available():
        obstacle = "this build of PyTorch has no NCCL"
    if obstacle is None:
        return "nccl"
    if wanted == "nccl":
        raise PlanError(f"{obstacle}. Use other devices, or leave ASYNCDIFF_BACKEND at auto.")
    return "socket"


# Starts to send or receive a tensor; what it gives waits for the end of that.
Begin = Callable[[torch.Tensor], Callable[[], Any]]


class Transport:
    """This worker's connection to all others. Made once per process.

    Args:
        peers: the other workers, by rank.
        rendezvous: a file by which workers on NCCL find each other.
    """

    def __init__(
        self,
        rank: int,
        peers: Mapping[int, Peer],
        device: torch.device,
        backend: Backend,
        rendezvous: Path,
    ) -> None:
        self.device = device
        self._peers = peers
        self._is_nccl = backend == "nccl"
        if self._is_nccl:
            # Even if this machine takes part in something over a network.
            os.environ["NCCL_SOCKET_IFNAME"] = "lo"
            dist.init_process_group(
                backend="nccl",
                store=dist.FileStore(str(rendezvous), len(peers) + 1),
                rank=rank,
                world_size=len(peers) + 1,
                timeout=LINK_TIMEOUT,
            )

    def send_plain(self, value: Any, rank: int) -> None:
        """Send what JSON can hold, and wait until it is taken.

        Raises:
            LinkError: the other worker is gone.
        """
        or_link_error(rank, lambda: self._peers[rank].send_plain(value))

    def receive_plain(self, rank: int) -> Any:
        """Wait for what `send_plain` sends.

        Raises:
            LinkError: the other worker is gone.
        """
        return or_link_error(rank, self._peers[rank].receive_plain)

    def sender(self, rank: int, nbytes: int) -> Sender:
        """The sending side of the messages of `nbytes` bytes to worker `rank`."""
        peer = self._peers[rank]

        def begin(tensor: torch.Tensor) -> Callable[[], Any]:
            if self._is_nccl:
                return cast(dist.Work, dist.isend(tensor, rank)).wait
            return peer.send(raw_bytes(tensor)).result

        return Sender(rank, nbytes, self.device, begin, is_direct=self._is_nccl)

    def receiver(self, rank: int, nbytes: int, num_slots: int = NUM_SLOTS) -> Receiver:
        """The receiving side of the messages of `nbytes` bytes from worker `rank`."""
        peer = self._peers[rank]

        def begin(tensor: torch.Tensor) -> Callable[[], Any]:
            if self._is_nccl:
                return cast(dist.Work, dist.irecv(tensor, rank)).wait
            return peer.receive(raw_bytes(tensor)).result

        return Receiver(
            rank, nbytes, self.device, begin, is_direct=self._is_nccl, num_slots=num_slots
        )

    def close(self) -> None:
        """Leave the group."""
        if self._is_nccl:
            dist.destroy_process_group()


def or_link_error(rank: int, do: Callable[[], Any]) -> Any:
    """What `do` gives; what a link raises becomes a LinkError that names the other worker."""
    try:
        return do()
    except LinkError:
        raise
    except (RuntimeError, OSError) as error:
        raise LinkError(f"the link to worker {rank} broke ({error}).") from error


class _Endpoint:
    def __init__(
        self,
        rank: int,
        nbytes: int,
        device: torch.device,
        begin: Begin,
        *,
        is_direct: bool,
        num_slots: int = NUM_SLOTS,
    ) -> None:
        self._rank = rank
        self._begin = begin
        self._waits: list[Callable[[], Any] | None] = [None] * num_slots
        self.slots = [
            torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(num_slots)
        ]
        self._wire = self.slots
        self._through_host_memory = not is_direct and device.type != "cpu"
        if self._through_host_memory:
            pin = device.type == "cuda"
            self._wire = [
                torch.empty(nbytes, dtype=torch.uint8, pin_memory=pin) for _ in range(num_slots)
            ]

    def _start(self, slot: int) -> None:
        if self.slots[slot].numel():
            self._waits[slot] = or_link_error(self._rank, lambda: self._begin(self._wire[slot]))

    def _join(self, slot: int) -> bool:
        wait, self._waits[slot] = self._waits[slot], None
        if wait is None:
            return False
        or_link_error(self._rank, wait)
        return True


class Sender(_Endpoint):
    """`slots` are filled by the caller, between `free` and `send`."""

    def free(self, slot: int) -> None:
        """Wait until `slots[slot]` may be written again."""
        self._join(slot)

    def send(self, slot: int) -> None:
        """Start to send `slots[slot]`."""
        if self._through_host_memory:
            self._wire[slot].copy_(self.slots[slot])  # waits for the device
        self._start(slot)

    def drain(self) -> None:
        """Wait until everything is sent."""
        for slot in range(len(self.slots)):
            self._join(slot)


class Receiver(_Endpoint):
    """`slots` are read by the caller, between `wait` and the next `post` of the slot."""

    def post(self, slot: int) -> None:
        """Be ready to receive the next message into `slots[slot]`."""
        self._join(slot)  # of a message that came and was not needed
        self._start(slot)

    def wait(self, slot: int) -> None:
        """Wait until the message posted for `slots[slot]` is there."""
        if self._join(slot) and self._through_host_memory:
            self.slots[slot].copy_(self._wire[slot])

    def drain(self) -> None:
        """Wait for everything that was posted."""
        for slot in range(len(self.slots)):
            self._join(slot)
