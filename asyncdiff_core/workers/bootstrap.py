"""Where a worker process begins. Run as a program by process.py.

What is imported here is light, so that the worker gives signs of life, and ends with its host,
from the first moment on: importing torch and ComfyUI can take minutes from a cold disk.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import struct
import sys
import traceback
from collections.abc import Sequence

from ..errors import says_out_of_memory, text_of
from ..wire.frames import plain_frame
from .lifeline import Host, SignsOfLife, end_with_traceback

HOST = -1  # stands for the host where workers have their ranks
SHARED = struct.Struct("<iI")  # on Windows, before each socket: its rank, its description's length


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description="A worker of AsyncDiff; started by ComfyUI.", allow_abbrev=False
    )
    parser.add_argument("--sockets", required=True, help="RANK:DESCRIPTOR,... or stdin (Windows)")
    parser.add_argument("--host", type=int, required=True, help="process that starts this one")
    parser.add_argument("--folder", required=True, help="of the group")
    options, host_arguments = parser.parse_known_args(argv)
    # What is left belongs to ComfyUI, whose own parser reads sys.argv when a worker imports it.
    sys.argv = [sys.argv[0], *host_arguments]
    peers = inherited(options.sockets)
    sock = peers.pop(HOST)
    host = Host(options.host, options.folder)
    try:
        with SignsOfLife(sock, host):
            from .worker import run
    except Exception as error:
        with contextlib.suppress(OSError):
            sock.sendall(plain_frame(("Failed", 0, _failure(error))))
        end_with_traceback()
    run(sock, host, peers)


def inherited(description: str) -> dict[int, socket.socket]:
    """The sockets that process.py gives, by the rank at their other end, or HOST."""
    sockets = {}
    if description == "stdin":
        while head := sys.stdin.buffer.read(SHARED.size):
            rank, size = SHARED.unpack(head)
            shared = sys.stdin.buffer.read(size)
            sockets[rank] = socket.fromshare(shared)  # type: ignore[attr-defined]
    else:
        for part in description.split(","):
            rank, descriptor = map(int, part.split(":"))
            sockets[rank] = socket.socket(fileno=descriptor)
            # What this process starts itself must not hold them when it is gone.
            sockets[rank].set_inheritable(False)
    for sock in sockets.values():
        sock.setblocking(True)
    return sockets


def _failure(error: Exception) -> tuple[str, str, str]:
    """The fields of requests.Failed, for an import that failed."""
    kind = "memory" if says_out_of_memory(error) else "error"
    return text_of(error), kind, traceback.format_exc()


if __name__ == "__main__":
    main(sys.argv[1:])
