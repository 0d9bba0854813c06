"""What every link is: messages of one size from one worker to another, in order.

Message `n` lies in slot `n % len(slots)`, at either end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch

from ..errors import LinkError


class Sender(Protocol):
    """The sending end. The caller writes into a slot between `free` and `send`.

    Every method raises LinkError if the other worker is gone.

    Attributes:
        slots: each [nbytes] of uint8.
    """

    slots: list[torch.Tensor]

    def free(self, number: int) -> None:
        """Wait until the slot of message `number` may be written."""

    def send(self, number: int) -> None:
        """Message `number`, the one after the last, is written."""

    def drain(self) -> None:
        """Wait until everything is sent. Nothing will be sent any more."""


class Receiver(Protocol):
    """The receiving end. The caller reads a slot from `wait` on, and may write into it.

    Every method raises LinkError if the other worker is gone.

    Attributes:
        slots: each [nbytes] of uint8.
        num_kept: how many messages beside the last one that was posted may still be read.
    """

    slots: list[torch.Tensor]
    num_kept: int

    def post(self, number: int) -> None:
        """Be ready for message `number`, the one after the last."""

    def wait(self, number: int) -> None:
        """Wait until message `number`, which is posted, is there."""

    def drain(self) -> None:
        """Wait for everything that was posted. Nothing will be posted any more."""


@contextlib.contextmanager
def link_errors(rank: int) -> Iterator[None]:
    """What a link to worker `rank` raises becomes a LinkError that names it."""
    try:
        yield
    except LinkError:
        raise
    except (RuntimeError, OSError) as error:
        raise LinkError(f"the link to worker {rank} broke ({error}).") from error
