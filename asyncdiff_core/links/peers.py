"""Messages between two workers over a socket that only they hold.

ComfyUI's process makes a pair of connected sockets for each two workers and lets each inherit one
end. So there is no address that anybody else could connect to, and nothing to prove. Messages
arrive in the order in which they were sent, and both ends know which comes next.
"""

from __future__ import annotations

import json
import queue
import socket
import struct
import threading
from concurrent.futures import Future
from typing import Any

from ..errors import LinkError

_HEADER = struct.Struct("<4sIQ")  # magic, kind, bytes
_MAGIC = b"ADL1"
_DATA, _PLAIN = 0, 1
MAX_PLAIN = 16 * 2**20  # bytes of a description of outputs; real ones have some thousand

# What is to be sent or received, and what becomes of it.
_Item = tuple[memoryview | None, int, "Future[Any]"]


class Peer:
    """This end of the socket to another worker. Sends and receives run in threads of their own.

    It is open until its process ends, at which the other end notices.

    Args:
        rank: of the other worker.
        sock: connected to it.
    """

    def __init__(self, rank: int, sock: socket.socket) -> None:
        self.rank = rank
        self._socket = sock
        self._socket.setblocking(True)
        self._to_send = _Line(self._send, f"to worker {rank}")
        self._to_receive = _Line(self._receive, f"from worker {rank}")

    def send(self, data: memoryview) -> Future[Any]:
        """Start to send `data`, which must stay as it is until the result is there."""
        return self._to_send.put(data, _DATA)

    def receive(self, into: memoryview) -> Future[Any]:
        """Start to receive the next message, which must fill `into`."""
        return self._to_receive.put(into, _DATA)

    def send_plain(self, value: Any) -> None:
        """Send what JSON can hold, and wait until it is taken."""
        data = json.dumps(value).encode()
        if len(data) > MAX_PLAIN:
            raise LinkError(f"worker {self.rank} cannot take a description of {len(data)} bytes.")
        self._to_send.put(memoryview(data), _PLAIN).result()

    def receive_plain(self) -> Any:
        """Wait for what `send_plain` sends."""
        return self._to_receive.put(None, _PLAIN).result()

    def _send(self, data: memoryview | None, kind: int) -> None:
        assert data is not None
        header = _HEADER.pack(_MAGIC, kind, len(data))
        if len(data) < 2**16:
            self._socket.sendall(header + data)
        else:
            self._socket.sendall(header)
            self._socket.sendall(data)

    def _receive(self, into: memoryview | None, kind: int) -> Any:
        magic, its_kind, size = _HEADER.unpack(self._read(memoryview(bytearray(_HEADER.size))))
        if (magic, its_kind) != (_MAGIC, kind):
            raise LinkError(f"worker {self.rank} sent something that is no message of a link.")
        if into is not None:
            if size != len(into):
                raise LinkError(
                    f"worker {self.rank} sent {size} bytes where {len(into)} were to come."
                )
            self._read(into)
            return None
        if size > MAX_PLAIN:
            raise LinkError(f"worker {self.rank} sent a description of {size} bytes.")
        try:
            return json.loads(bytes(self._read(memoryview(bytearray(size)))))
        except (ValueError, RecursionError) as error:
            raise LinkError(f"worker {self.rank} sent a description that is none.") from error

    def _read(self, into: memoryview) -> memoryview:
        left = into
        while left:
            count = self._socket.recv_into(left)
            if not count:
                raise OSError("its end was closed")
            left = left[count:]
        return into


class _Line:
    """One direction: what is put is done one after the other, in a thread that the first starts."""

    def __init__(self, do: Any, name: str) -> None:
        self._do, self._name = do, name
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, data: memoryview | None, kind: int) -> Future[Any]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Any] = Future()
        self._items.put((data, kind, future))
        return future

    def _run(self) -> None:
        broken: Exception | None = None
        while True:
            data, kind, future = self._items.get()
            try:
                if broken is not None:
                    raise broken  # what comes later on this line is lost as well
                future.set_result(self._do(data, kind))
            except Exception as error:
                broken = error
                future.set_exception(error)
