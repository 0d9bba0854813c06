"""Point-to-point messages between the workers of one group, over torch.distributed.

This module alone knows the backends. NCCL carries tensors from GPU to GPU; gloo carries them
between CPUs, and for workers on GPUs that NCCL cannot serve (Windows, several workers on one GPU)
through pinned host memory. A message has a fixed size, and two slots on either side, so that one
can be filled or read while the other is on its way.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from .errors import LinkError, PlanError

Backend = Literal["gloo", "nccl"]

# A worker that hangs is found by the host, which sees progress; this only bounds a lost host.
LINK_TIMEOUT = timedelta(hours=2)

NUM_SLOTS = 2


def choose_backend(devices: Sequence[str], wanted: str = "auto") -> Backend:
    """The backend that serves `devices`.

    Args:
        devices: one device per worker.
        wanted: ``auto``, ``gloo`` or ``nccl`` (from the environment variable ASYNCDIFF_BACKEND).

    Raises:
        PlanError: NCCL is asked for and cannot serve these devices.
    """
    if wanted not in ("auto", "gloo", "nccl"):
        raise PlanError(f"ASYNCDIFF_BACKEND is {wanted!r}; use auto, gloo or nccl.")
    if wanted == "gloo":
        return "gloo"
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
    return "gloo"


def _loopback_interface() -> str | None:
    """The name of the loopback interface, where the platform's gloo asks for one by name."""
    if sys.platform.startswith("linux"):
        return "lo"
    return "lo0" if sys.platform == "darwin" else None


class Transport:
    """This worker's connection to all others. Made once per process."""

    def __init__(
        self, rank: int, world_size: int, device: torch.device, backend: Backend, rendezvous: Path
    ) -> None:
        interface = _loopback_interface()
        if interface is not None:
            # Even if this machine takes part in something over a network.
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
        self.device = device
        self._staged = backend == "gloo" and device.type != "cpu"
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
            store=dist.FileStore(str(rendezvous), world_size),
            rank=rank,
            world_size=world_size,
            timeout=LINK_TIMEOUT,
        )

    def send_plain(self, value: Any, rank: int) -> None:
        """Send what JSON can hold, and wait until it is taken."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with linked(rank):
            dist.send(torch.tensor([data.numel()]), rank)
            dist.send(data, rank)

    def receive_plain(self, rank: int) -> Any:
        """Wait for what `send_plain` sends."""
        size = torch.zeros(1, dtype=torch.int64)
        with linked(rank):
            dist.recv(size, rank)
            data = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(data, rank)
        return json.loads(data.numpy().tobytes())

    def sender(self, rank: int, nbytes: int) -> Sender:
        """The sending side of the messages of `nbytes` bytes to worker `rank`."""
        return Sender(rank, nbytes, self.device, self._staged)

    def receiver(self, rank: int, nbytes: int) -> Receiver:
        """The receiving side of the messages of `nbytes` bytes from worker `rank`."""
        return Receiver(rank, nbytes, self.device, self._staged)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


@contextlib.contextmanager
def linked(rank: int) -> Iterator[None]:
    """What torch.distributed raises in here becomes a LinkError that names the other worker."""
    try:
        yield
    except RuntimeError as error:
        raise LinkError(f"the link to worker {rank} broke ({error}).") from error


class _Endpoint:
    def __init__(self, rank: int, nbytes: int, device: torch.device, staged: bool) -> None:
        self._rank = rank
        self._work: list[dist.Work | None] = [None] * NUM_SLOTS
        self.slots = [
            torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(NUM_SLOTS)
        ]
        self._wire = self.slots
        if staged:
            pin = device.type == "cuda"
            self._wire = [
                torch.empty(nbytes, dtype=torch.uint8, pin_memory=pin) for _ in range(NUM_SLOTS)
            ]
        self._staged = staged

    def _join(self, slot: int) -> bool:
        work, self._work[slot] = self._work[slot], None
        if work is None:
            return False
        with linked(self._rank):
            work.wait()
        return True


class Sender(_Endpoint):
    """`slots` are filled by the caller, between `free` and `send`."""

    def free(self, slot: int) -> None:
        """Wait until `slots[slot]` may be written again."""
        self._join(slot)

    def send(self, slot: int) -> None:
        """Start to send `slots[slot]`."""
        if self._staged:
            self._wire[slot].copy_(self.slots[slot])  # waits for the device
        if self.slots[slot].numel():
            with linked(self._rank):
                self._work[slot] = dist.isend(self._wire[slot], self._rank)

    def drain(self) -> None:
        """Wait until everything is sent."""
        for slot in range(NUM_SLOTS):
            self._join(slot)


class Receiver(_Endpoint):
    """`slots` are read by the caller, between `wait` and the next `post` of the slot."""

    def post(self, slot: int) -> None:
        """Be ready to receive the next message into `slots[slot]`."""
        self._join(slot)  # of a message that came and was not needed
        if self.slots[slot].numel():
            with linked(self._rank):
                self._work[slot] = dist.irecv(self._wire[slot], self._rank)

    def wait(self, slot: int) -> None:
        """Wait until the message posted for `slots[slot]` is there."""
        if self._join(slot) and self._staged:
            self.slots[slot].copy_(self._wire[slot])

    def drain(self) -> None:
        """Wait for everything that was posted."""
        for slot in range(NUM_SLOTS):
            self._join(slot)
