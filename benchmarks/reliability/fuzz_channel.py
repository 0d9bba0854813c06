"""Damaged and hostile requests and answers on the control channel, in both directions.

Toward ComfyUI: a real WorkerProcess whose worker is replaced by a program that only stands still;
the bytes are written into its end of the channel from outside. Toward a worker: bytes for the
function that its reading thread calls, and then, for a real worker, requests that are well-formed
and make no sense. Allowed are a request that is none the worse, an answer `Failed`, the errors of
this project, and, for a worker, ending in good order.
"""

from __future__ import annotations

import os
import pickle
import random
import socket
import stat
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asyncdiff_core.errors import AsyncDiffError
from asyncdiff_core.wire import requests
from asyncdiff_core.wire.channel import Channel, encode_frame
from asyncdiff_core.wire.frames import HEADER, MAGIC
from asyncdiff_core.wire.requests import from_wire, to_wire
from asyncdiff_core.workers.process import Launch, WorkerProcess, end_all
from harness.groups import LAUNCH

from .bombs import BOMBS
from .descriptors import write_into
from .processes import wait_until, workers_of

PATIENCE = 0.05  # for the rest of a frame that claims to be longer than it is
HANG_SECONDS = 10.0
ENDED = "the worker ended"
HUGE = (2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def samples() -> list[bytes]:
    """Frames as host and workers really send them, one of each type and more."""
    x = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    sent: list[Any] = [
        requests.MeasureCosts((x, x[0]), {"context": x}),
        requests.Import("/pack.part", "/pack", "/pack/__init__.py"),
        requests.Load(((0, 3),), 1, ((0, 2, (1, 2), False),), ((1, 0, (2,), True),)),
        requests.Unload(),
        requests.MeasureMemory(),
        requests.Patch({"key": (1.0, x)}),
        requests.Evaluate(0, 0, "sync", ((x, x[0]), {"context": x.half()}), {}, None, [0]),
        requests.EndRun(),
        requests.Ready(1234, "cpu x1", 1e9, 0),
        requests.Costs((1.0, 2.0)),
        requests.Imported(True),
        requests.Memory(1, 2),
        requests.Loaded(1, 2, 3),
        requests.Done(),
        requests.Result(x),
        requests.RunEnded([(0, 0, "sync", 0.0, 0.0, 0.0, 0.0)], 5, 6),
        requests.Beat(7, "computing", 8),
        requests.Failed("something"),
    ]
    return [frame(to_wire(request, ticket)) for ticket, request in enumerate(sent)]


def frame(wire: Any) -> bytes:
    return b"".join(bytes(part) for part in encode_frame(wire))


class Command:
    """A pickle that runs a command where it is taken apart."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self._canary}'",)


def hostile(data: bytes, chance: random.Random, canary: Path) -> bytes:
    """`data` changed in one of many ways."""
    damage = bytearray(data)
    kind = chance.randrange(10)
    if kind == 0:
        for _ in range(chance.randint(1, 16)):
            damage[chance.randrange(len(damage))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del damage[chance.randrange(len(damage)) :]
    elif kind == 2:  # the number of tensors
        struct.pack_into("<I", damage, 4, chance.choice((1, 7, 2**20, 2**32 - 1)))
    elif kind == 3:  # the size of the pickle
        struct.pack_into("<Q", damage, 8, chance.choice((0, 1, len(damage), *HUGE)))
    elif kind == 4:  # what follows: a tensor's size, or the pickle
        struct.pack_into("<Q", damage, 16, chance.choice((0, 3, *HUGE)))
    elif kind == 5:
        at = chance.randrange(len(damage))
        damage[at:at] = chance.randbytes(chance.randint(1, 64))
    elif kind == 6:
        damage = bytearray(chance.randbytes(chance.randint(0, 512)))
    elif kind == 7:
        bomb = chance.choice(list(BOMBS.values()))
        damage = bytearray(HEADER.pack(MAGIC, 0, len(bomb)) + bomb)
    elif kind == 8:
        damage = bytearray(_pickled(chance.choice((Command(canary), Command, os.system, eval))))
    else:
        damage = bytearray(frame(nonsense(chance)))
    return bytes(damage)


def _pickled(value: Any) -> bytes:
    """A whole frame around a pickle of anything."""
    data = pickle.dumps(("Beat", 0, (1, value)))
    return HEADER.pack(MAGIC, 0, len(data)) + data


def nonsense(chance: random.Random) -> Any:
    """Plain data as a request could be, but is not."""
    values: list[Any] = [
        *(None, True, -1, 2**70, 2**1000, float("nan"), "text", b"bytes", [], {}, ()),
        torch.zeros(0),
        *("sync", [("a", 1)], {"lane": 3}, ((1, 2), {}), "os:system", torch.zeros(2, 3)),
    ]
    names = [*requests._TYPES, "NoSuchRequest", "__class__", "", 3, None]
    name = chance.choice(names)
    fields = tuple(chance.choice(values) for _ in range(chance.choice((0, 1, 2, 3, 5, 6, 10))))
    wire = (name, chance.choice((0, 1, -1, 2**40, "ticket", None)), fields)
    return chance.choice((wire, wire, wire, wire, wire[:2], list(wire), name, (wire,)))


# Toward ComfyUI --------------------------------------------------------------------------------


def to_host(count: int, seed: int, folder: Path) -> Counter[str]:
    """What became of `count` damaged answers from a worker.

    Raises:
        AssertionError: one of them led to anything else than an error of the project's.
    """
    sleeper = folder / "sleeper"
    sleeper.write_text("#!/bin/sh\nkill -STOP $$\n")
    sleeper.chmod(sleeper.stat().st_mode | stat.S_IXUSR)
    launch = Launch(python_path=(), cwd=str(folder), python=str(sleeper))
    chance, frames, found = random.Random(seed), samples(), Counter[str]()
    with _canary(folder) as canary:
        for number in range(count):
            data = hostile(chance.choice(frames), chance, canary)
            worker = WorkerProcess("worker 0", "cpu", launch, 1, folder / "worker-0.log", {})
            try:
                found[_host_takes(worker, data, ends=number % 4 != 0)] += 1
            finally:
                worker.close()
                worker._process.kill()
                end_all([worker])
    return found


def _host_takes(worker: WorkerProcess, data: bytes, ends: bool) -> str:
    (seen,) = _seen(worker)
    write_into(seen.pid, seen.control, data)
    if ends:  # otherwise the rest of it is waited for
        worker._process.kill()
    try:
        while True:
            worker.receive(PATIENCE)
    except AsyncDiffError as error:
        assert "worker 0 on cpu" in str(error), error
        return type(error).__name__


def _seen(worker: WorkerProcess) -> list[Any]:
    found: list[Any] = []

    def look() -> bool:
        found[:] = [w for w in workers_of(os.getpid()) if w.pid == worker.pid]
        return bool(found)

    assert wait_until(look, HANG_SECONDS, 0.001), "the stand-in for the worker did not start"
    return found


# Toward a worker -------------------------------------------------------------------------------


def to_reader(count: int, seed: int, folder: Path) -> Counter[str]:
    """What the function that a worker's reading thread calls makes of `count` damaged requests.

    Raises:
        AssertionError: anything else than a request or an error of the project's.
    """
    chance, frames, found = random.Random(seed), samples(), Counter[str]()
    with _canary(folder) as canary:
        for number in range(count):
            data = hostile(chance.choice(frames), chance, canary)
            channel, theirs = Channel.pair()
            with theirs:
                theirs.sendall(data)
                if number % 4:
                    theirs.shutdown(socket.SHUT_WR)
                try:
                    while True:
                        from_wire(channel.receive(PATIENCE))
                        found["request"] += 1
                except AsyncDiffError as error:
                    found[type(error).__name__] += 1
                finally:
                    channel.close()
    return found


def to_worker(count: int, seed: int, folder: Path) -> Counter[str]:
    """What a real worker makes of `count` requests that are well-formed and make no sense.

    One that is ended by them is started again. The last request is not even well-formed.

    Raises:
        AssertionError: it was ended by a signal, or neither answered nor ended.
    """
    chance, found = random.Random(seed), Counter[str]()
    left = count
    while left > 0:
        with _worker(folder) as worker:
            while left > 0 and worker.is_alive():
                left -= 1
                found[_worker_takes(worker, _request(chance))] += 1
            if not left and worker.is_alive():
                assert _worker_takes(worker, ("Beat", 1, ("many",))) == ENDED
    return found


def _request(chance: random.Random) -> Any:
    """One that the reading thread takes, with nonsense in its fields."""
    while True:
        wire = nonsense(chance)
        try:
            request, _ = from_wire(wire)
        except AsyncDiffError:
            continue
        if not isinstance(request, requests.Stop):
            return wire


def _worker_takes(worker: WorkerProcess, wire: Any) -> str:
    """Send one request, and then one that has an answer, so that the answer marks its end."""
    end = 10**6
    try:
        worker.send_frame(encode_frame(wire), HANG_SECONDS)
        worker.send(requests.EndRun(), HANG_SECONDS, end)
        answer = "nothing"
        deadline = time.monotonic() + HANG_SECONDS
        while time.monotonic() < deadline:
            said, ticket = worker.receive(HANG_SECONDS)
            if ticket == end:
                return answer
            if not isinstance(said, requests.Beat):
                answer = type(said).__name__
        raise AssertionError(f"no answer to {wire}")
    except AsyncDiffError:
        code = worker._process.wait(HANG_SECONDS)
        assert code >= 0, f"{wire} ended the worker with signal {-code}"
        return ENDED


@contextmanager
def _worker(folder: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess("worker 0", "cpu", LAUNCH, 1, folder / "worker-0.log", {})
    try:
        own = Path(tempfile.mkdtemp(dir=folder))
        worker.send(
            requests.Configure(
                rank=0,
                name="worker 0",
                device="cpu",
                num_threads=1,
                builder="harness.toys:build",
                spec={"model": "chain"},
                rendezvous=str(own / "rendezvous"),
            ),
            HANG_SECONDS,
        )
        while worker.ready is None:
            worker.receive(120)
        yield worker
    finally:
        worker.close()
        end_all([worker])


@contextmanager
def _canary(folder: Path) -> Iterator[Path]:
    """A file that a hostile pickle makes if its command is run."""
    canary = folder / "canary"
    yield canary
    assert not canary.exists(), "a command in a request was run"
