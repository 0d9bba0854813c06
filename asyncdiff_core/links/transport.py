"""Which links connect the workers of one group, and how they are opened.

On one machine messages lie in memory that two workers share (ring); between GPUs NCCL carries them;
sockets carry them where there is neither.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from ..errors import LinkError, PlanError, text_of
from ..log import get_logger
from ..settings import Backend
from ..wire.shared_memory import SharedMemory
from .engines import Engine
from .link import Receiver, Sender, link_errors
from .over_nccl import NcclReceiver, NcclSender
from .over_socket import NUM_SLOTS, SocketReceiver, SocketSender
from .peers import Incoming, Peer
from .ring import NUM_COMING, RingReceiver, RingSender
from .staging import StagedReceiver, StagedSender

log = get_logger("links")

# A worker that hangs is found by the host, which sees progress; this only bounds a lost host.
LINK_TIMEOUT = timedelta(hours=2)

TEST_BYTES = 8 * 2**20  # of a message by which a link is tested
TEST_SECONDS = 20.0
CLOSE_SECONDS = 5.0


def backends_for(devices: Sequence[str], wanted: str = "auto") -> tuple[Backend, ...]:
    """The backends that may serve `devices`, the best one first.

    Args:
        devices: one device per worker.
        wanted: ``auto``, ``ring``, ``socket`` or ``nccl`` (environment variable ASYNCDIFF_BACKEND).

    Raises:
        PlanError: NCCL is asked for and cannot serve these devices.
    """
    if wanted not in ("auto", "ring", "socket", "nccl"):
        raise PlanError(f"ASYNCDIFF_BACKEND is {wanted!r}; use auto, ring, socket or nccl.")
    if wanted in ("ring", "socket"):
        return (cast(Backend, wanted),)
    obstacle = None
    twice = sorted({d for d in devices if list(devices).count(d) > 1})
    if not all(d.startswith("cuda") for d in devices):
        obstacle = f"NCCL connects CUDA devices only, but the devices are {','.join(devices)}"
    elif twice:
        obstacle = f"NCCL allows one worker per GPU, but {', '.join(twice)} is listed twice"
    elif not sys.platform.startswith("linux") or not dist.is_nccl_available():
        obstacle = "this build of PyTorch has no NCCL"
    if wanted == "nccl":
        if obstacle is not None:
            raise PlanError(f"{obstacle}. Use other devices, or leave ASYNCDIFF_BACKEND at auto.")
        return ("nccl",)
    return ("ring", "socket") if obstacle is not None else ("nccl", "ring", "socket")


class NoMessages:
    """Both ends of a link by which nothing but its description goes."""

    def __init__(self, device: torch.device, num_kept: int) -> None:
        self.num_kept = num_kept
        self.slots = [torch.empty(0, dtype=torch.uint8, device=device)]

    def free(self, number: int) -> None:
        """It always is."""

    send = post = wait = free

    def drain(self) -> None:
        """There is nothing to wait for."""


class Transport:
    """This worker's connection to all others.

    Args:
        peers: the other workers, by rank.
        engine: of this worker's device.
        rendezvous: a file by which workers on NCCL find each other.
        attempt: how many were made before, in all workers; links of those before are not taken for
            one of this.
    """

    def __init__(
        self,
        rank: int,
        peers: Mapping[int, Peer],
        engine: Engine,
        backend: Backend,
        rendezvous: Path,
        attempt: int = 0,
    ) -> None:
        self._rank = rank
        self._attempt = attempt
        self._engine = engine
        self._device = engine.device
        self._peers = peers
        self._backend = backend
        self._is_staged = engine.device.type != "cpu" and backend != "nccl"
        if backend == "nccl":
            # Even if this machine takes part in something over a network.
            os.environ["NCCL_SOCKET_IFNAME"] = "lo"
            dist.init_process_group(
                backend="nccl",
                store=dist.FileStore(str(rendezvous), len(peers) + 1),
                rank=rank,
                world_size=len(peers) + 1,
                timeout=LINK_TIMEOUT,
            )

    def open(self, rank: int, nbytes: int, num_kept: int, told: Any) -> Sender:
        """Open a link to another worker.

        Args:
            rank: of the other worker.
            nbytes: of a message.
            num_kept: how many messages the other worker keeps.
            told: what it is told of the link: what JSON can hold.

        Raises:
            LinkError: the other worker is gone.
        """
        peer = self._peers[rank]
        memory = self._shared(nbytes * (num_kept + NUM_COMING))
        description = {
            "attempt": self._attempt,
            **{"nbytes": nbytes, "name": memory and memory.name, "told": told},
        }
        with link_errors(rank):
            link, is_free = peer.open(description, memory.descriptors if memory else ())
        if not nbytes:
            return NoMessages(self._device, num_kept)
        if self._backend == "nccl":
            return NcclSender(rank, self._slots(nbytes, NUM_SLOTS))
        sender: Sender
        if memory is not None:
            memory.given()
            sender = RingSender(peer, link, is_free, memory, num_kept + NUM_COMING)
        else:
            sender = SocketSender(peer, link, self._slots(nbytes, NUM_SLOTS))
        if not self._is_staged:
            return sender
        return StagedSender(sender, self._engine, [memory.bytes] if memory else sender.slots)

    def accept(self, rank: int, num_kept: int) -> tuple[Receiver, int, Any]:
        """Wait for the next link that another worker opens.

        Args:
            rank: of the other worker.
            num_kept: how many messages this worker keeps.

        Returns:
            the link, the bytes of a message, and what is told of it.

        Raises:
            LinkError: the other worker is gone, or its link is none.
        """
        peer = self._peers[rank]
        with link_errors(rank):
            while True:
                incoming = peer.accept()
                attempt, nbytes, name, told = _description(rank, incoming.told)
                if attempt == self._attempt:
                    break
                if attempt > self._attempt:
                    # What tested this attempt was left behind, and wakes up.
                    peer.give_back(incoming)
                    raise LinkError("another attempt has begun.")
                incoming.close()
            return self._receiver(peer, incoming, num_kept, nbytes, name), nbytes, told

    def test(self, seconds: float = TEST_SECONDS) -> str:
        """Send a message to every other worker, and take one from it, while all do so.

        Returns:
            what is wrong, or "".
        """
        future: Future[str] = Future()

        @torch.inference_mode()
        def test() -> None:
            try:
                future.set_result("; ".join(self._test_all()))
            except Exception as error:
                future.set_exception(error)

        # What hangs is left behind: nothing ends a wait of a backend that does not work.
        threading.Thread(target=test, name="tests links", daemon=True).start()
        try:
            return future.result(seconds)
        except FutureTimeoutError:  # which is TimeoutError from Python 3.11 on
            return f"no message within {seconds:.0f} s"
        except Exception as error:
            return text_of(error)

    def _test_all(self) -> list[str]:
        troubles = []
        # One pair after the other, in one order for all: NCCL connects two only when both ask.
        for one, other in itertools.combinations(sorted([self._rank, *self._peers]), 2):
            for source, target in ((one, other), (other, one)):
                if source == self._rank:
                    sender = self.open(target, TEST_BYTES, 1, None)
                    sender.free(0)
                    sender.slots[0].copy_(self._pattern(source))
                    sender.send(0)
                    sender.drain()
                elif target == self._rank:
                    receiver, *_ = self.accept(source, 1)
                    receiver.post(0)
                    receiver.wait(0)
                    is_whole = torch.equal(receiver.slots[0], self._pattern(source))
                    receiver.drain()
                    if not is_whole:
                        troubles.append(f"what came from worker {source} is not what it sent")
        return troubles

    def _pattern(self, rank: int) -> torch.Tensor:
        # No power of two, so that whatever is moved to another place differs there.
        numbers = torch.arange(251, dtype=torch.uint8, device=self._device) + rank
        return numbers.repeat(TEST_BYTES // 251 + 1)[:TEST_BYTES]

    def _receiver(
        self, peer: Peer, incoming: Incoming, num_kept: int, nbytes: int, name: str | None
    ) -> Receiver:
        num_slots = num_kept + NUM_COMING
        if not nbytes:
            return NoMessages(self._device, num_kept)
        if self._backend == "nccl":
            return NcclReceiver(peer.rank, self._slots(nbytes, num_kept + 1), num_kept)
        receiver: Receiver
        memory = None
        if name is not None:
            memory = SharedMemory.existing(nbytes * num_slots, name, incoming.descriptor)
            receiver = RingReceiver(peer, incoming, memory, num_slots, num_kept)
        else:
            slots = self._slots(nbytes, num_kept + 1)
            receiver = SocketReceiver(peer, incoming, slots, num_kept)
        if not self._is_staged:
            return receiver
        return StagedReceiver(receiver, self._engine, [memory.bytes] if memory else receiver.slots)

    def _slots(self, nbytes: int, number: int) -> list[torch.Tensor]:
        """Memory for messages: where this worker computes, or, if they are staged, of the host."""
        device = torch.device("cpu") if self._is_staged else self._device
        pin = self._is_staged and self._device.type == "cuda"
        return [
            torch.empty(nbytes, dtype=torch.uint8, device=device, pin_memory=pin)
            for _ in range(number)
        ]

    def _shared(self, nbytes: int) -> SharedMemory | None:
        """Memory for a link, or None: its messages are to cross otherwise."""
        if self._backend != "ring" or not nbytes:
            return None
        try:
            return SharedMemory.create(nbytes)
        except OSError as error:
            log.warning(
                "%d bytes of memory cannot be shared with another worker (%s); messages go "
                "through a socket, which is slower.",
                *(nbytes, error),
            )
            return None

    def close(self) -> None:
        """Leave the group."""
        if self._backend == "nccl" and dist.is_initialized():
            # After a failed test that may never end.
            leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
            leaving.start()
            leaving.join(CLOSE_SECONDS)


def _description(rank: int, told: Any) -> tuple[int, int, str | None, Any]:
    """What a worker said of a link, see Transport.open."""
    try:
        attempt, nbytes, name = told["attempt"], told["nbytes"], told["name"]
        if not (type(attempt) is type(nbytes) is int and 0 <= nbytes < 2**44):
            raise ValueError(f"{nbytes!r} bytes in attempt {attempt!r}")
        if not isinstance(name, str | None):
            raise ValueError(f"the name {name!r}")
        return attempt, nbytes, name, told["told"]
    except (KeyError, TypeError, ValueError) as error:
        raise LinkError(f"worker {rank} opened a link that is none ({error}).") from error
