"""What binds a worker to ComfyUI's process: it shows that it lives, and ends with it.

Needs nothing but the standard library: it works while torch is imported.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import NoReturn

from ..wire.frames import plain_frame

BEAT_SECONDS = 1.0


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


def end_with_traceback() -> NoReturn:
    """End this process for the exception that is handled, and log it if the disk has room."""
    with contextlib.suppress(Exception):
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)
