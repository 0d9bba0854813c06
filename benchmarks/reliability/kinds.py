"""The kinds of fault, each of them injected from outside the worker that it befalls."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from .descriptors import cut, write_into
from .processes import WorkerSeen, is_alive, virtual_bytes

SQUEEZE_SECONDS = 1.0
LEFT_BYTES = 2**20


class MissedError(Exception):
    """The moment was over before the fault could be injected."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: for the command line and the table.
        inject: does it to a worker.
        words: of which at least one stands in the error that the user sees.
        blames_either: a link has two ends, and the error may name the worker at either of them.
        may_succeed: where the worker can say what happened, the prompt goes on by another plan.
    """

    name: str
    inject: Callable[[WorkerSeen], None]
    words: tuple[str, ...]
    blames_either: bool = False
    may_succeed: bool = False


def _signal(number: signal.Signals) -> Kind:
    def inject(worker: WorkerSeen) -> None:
        os.kill(worker.pid, number)

    return Kind(number.name, inject, (number.name,))


def _squeeze(worker: WorkerSeen) -> None:
    """Let the worker's address space grow no more, beyond the least that it had for a second.

    Its memory goes up and down with every layer, so that one limit could lie above all of it.
    """
    least = virtual_bytes(worker.pid)
    deadline = time.monotonic() + SQUEEZE_SECONDS
    while time.monotonic() < deadline and is_alive(worker.pid):
        try:
            least = min(least, virtual_bytes(worker.pid))
            limit = least + LEFT_BYTES
            resource.prlimit(worker.pid, resource.RLIMIT_AS, (limit, limit))
        except (OSError, ValueError):
            return  # it is gone already
        time.sleep(0.01)


def _cut_links(worker: WorkerSeen) -> None:
    for descriptor in worker.links:
        cut(worker.pid, descriptor)


def _cut_control(worker: WorkerSeen) -> None:
    cut(worker.pid, worker.control)


def _write_garbage(worker: WorkerSeen) -> None:
    data = random.Random(worker.pid).randbytes(256)
    write_into(worker.pid, worker.control, data)


# As the system, the C library or oneDNN end a process, or a layer, that gets no memory.
ENDED = ("did not start", "was ended by", "could not create a primitive")

KINDS = (
    *map(_signal, (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT, signal.SIGBUS)),
    Kind("hang", lambda worker: os.kill(worker.pid, signal.SIGSTOP), ("made no progress",)),
    Kind(
        *("memory", _squeeze, ("allocate memory", "memory allocation", "MemoryError", *ENDED)),
        may_succeed=True,
    ),
    Kind("link", _cut_links, ("link", "Connection"), blames_either=True),
    Kind("control", _cut_control, ("control channel",)),
    Kind("garbage", _write_garbage, ("sent something",)),
)
