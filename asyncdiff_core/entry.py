"""Where a worker process begins. Run as a program by process.py.

What is imported here is light, so that the worker gives signs of life, and ends with its host,
from the first moment on: importing torch and ComfyUI can take minutes from a cold disk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from .errors import says_out_of_memory, text_of
from .frames import plain_frame

BEAT_SECONDS = 1.0
HOST = -1  # stands for the host where workers have their ranks
SHARED = struct.Struct("<iI")  # on Windows, before each socket: its rank, its description's length


@dataclass(frozen=True)
class Host:
    """The process that started this one, and the group's folder, which it owns."""

    pid: int
    folder: str

    @property
    def is_there(self) -> bool:
        """Whether the host runs. Windows doesn't tell: a process there keeps its parent."""
        return os.name != "posix" or os.getppid() == self.pid

    def must_be_there(self) -> None:
        """End this process if the host has, even if another one still has its end of the socket."""
        if not self.is_there:
            self.is_gone()

    def is_gone(self) -> None:
        """End this process, as its host has closed the socket without a word.

        If the host has ended it could not remove the folder, so it is done here, or on Windows by
        the next host.
        """
        deadline = time.monotonic() + 2.0
        while os.name == "posix" and self.is_there and time.monotonic() < deadline:
            time.sleep(0.02)  # it closes its sockets a moment before it is gone
        if not self.is_there:
            shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(0)  # nobody is left to report to


class SignsOfLife:
    """In this context: a beat every second, and the end of the process with that of its host."""

    def __init__(self, sock: socket.socket, host: Host) -> None:
        self._socket, self._host = sock, host
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="signs of life", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()  # from here on somebody else writes to the socket

    def _live(self) -> None:
        beat = plain_frame(("Beat", 0, (0, "computing")))
        try:
            while not self._over.wait(BEAT_SECONDS):
                self._host.must_be_there()
                self._socket.sendall(beat)
        except OSError:
            self._host.is_gone()


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


def end_with_traceback() -> NoReturn:
    """End this process for the exception that is handled, and log it if the disk has room."""
    with contextlib.suppress(Exception):
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


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
    """The fields of messages.Failed, for an import that failed."""
    kind = "memory" if says_out_of_memory(error) else "error"
    return text_of(error), kind, traceback.format_exc()


if __name__ == "__main__":
    main(sys.argv[1:])
