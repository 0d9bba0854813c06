"""Workers whose shared memory does not do what it should."""

from __future__ import annotations

import errno
import os
from typing import Any

import torch

from asyncdiff_core.links import transport
from asyncdiff_core.links.over_socket import SocketReceiver
from asyncdiff_core.links.ring import RingReceiver, RingSender

from .toys import ToyStageModel


def build(spec: dict[str, Any], device: torch.device) -> ToyStageModel:
    """A toy's model. `spec` has `bad` too: what is wrong with the links of this group.

    - ``corrupt``: one byte of what comes by shared memory is another one;
    - ``silent``: nothing is ever said to be there;
    - ``none``: there is no memory to share;
    - ``all``: no backend gives what was sent.
    """
    bad = spec["bad"]
    if bad == "silent":
        transport.Transport.test.__defaults__ = (1.0,)
        RingSender.send = lambda self, number: None  # type: ignore[method-assign]
    if bad == "none":
        transport.SharedMemory.create = _none  # type: ignore[assignment]
    for ends in {"corrupt": [RingReceiver], "all": [RingReceiver, SocketReceiver]}.get(bad, []):
        ends.wait = _corrupting(ends.wait)  # type: ignore[attr-defined]
    return ToyStageModel(spec, device)


def _none(nbytes: int) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _corrupting(wait: Any) -> Any:
    def corrupted(self: Any, number: int) -> None:
        wait(self, number)
        self.slots[number % len(self.slots)][0] ^= 1

    return corrupted
