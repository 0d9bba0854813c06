"""Descriptors that cross a socket beside its bytes. Windows has none."""

from __future__ import annotations

import socket
from collections.abc import Sequence

CAN_SEND = hasattr(socket, "send_fds")


def send_with(sock: socket.socket, data: bytes | memoryview, descriptors: Sequence[int]) -> int:
    """Send some of `data`, with `descriptors` beside its first byte; how many bytes were sent."""
    return socket.send_fds(sock, [data], list(descriptors))


def receive_with(sock: socket.socket, into: memoryview) -> tuple[int, int | None]:
    """Receive some bytes; how many, 0 at the end, and the descriptor that came beside them."""
    if not CAN_SEND:
        return sock.recv_into(into), None
    data, descriptors, *_ = socket.recv_fds(sock, len(into), 1)
    into[: len(data)] = data
    return len(data), next(iter(descriptors), None)
