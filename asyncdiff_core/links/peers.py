"""What two workers say to each other, over a socket that only they hold.

ComfyUI's process makes a pair of connected sockets for each two workers and lets each inherit one
end. So there is no address that anybody else could connect to, and nothing to prove.

A link goes one way and belongs to one lane. Its first word is what is told of its messages, and
with it goes the memory in which they lie, if both share some. Then only their numbers cross: that
a message is there, and that one is not needed any more. Where no memory is shared, messages cross
themselves.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..errors import LinkError
from ..wire.descriptors import receive_with, send_with
from .link import link_errors

_HEADER = struct.Struct("<4sIIQ")  # magic, kind, link, number or bytes
_MAGIC = b"ADL2"
_OPEN, _READY, _FREE, _DATA = range(4)
MAX_TOLD = 16 * 2**20  # bytes of what is told of a link; real ones have some thousand


class Count:
    """A number that rises, in one thread, and that another one waits for."""

    def __init__(self, value: int = 0) -> None:
        self._value = value
        self._news: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def rise(self, value: int) -> None:
        self._news.put(value)

    def fail(self, error: Exception) -> None:
        """No more is to come: whoever waits gets `error`."""
        self._news.put(error)

    def wait_for(self, value: int) -> None:
        """Wait until it is `value` or more.

        Raises:
            Exception: the one that it failed with.
        """
        while self._value < value:
            news = self._news.get()
            if isinstance(news, Exception):
                self._news.put(news)  # for who asks next
                raise news
            self._value = max(self._value, news)


@dataclass
class Incoming:
    """A link by which messages come.

    Attributes:
        link: its number among those from there.
        told: what the other end said of it: plain data.
        descriptor: of shared memory, or None.
        ready: how many messages have come.
        buffers: for messages that cross themselves.
    """

    link: int
    told: Any
    descriptor: int | None
    ready: Count = field(default_factory=Count)
    buffers: queue.SimpleQueue[memoryview] = field(default_factory=queue.SimpleQueue)
    num_read: int = 0

    def close(self) -> None:
        """Nobody takes it."""
        if self.descriptor is not None:
            os.close(self.descriptor)


class Arrivals:
    """What a receiving end (link.Receiver) is, wherever its messages lie."""

    def __init__(self, peer: Peer, incoming: Incoming, num_kept: int) -> None:
        self._peer, self._incoming = peer, incoming
        self._num_posted = 0
        self.num_kept = num_kept

    def wait(self, number: int) -> None:
        with link_errors(self._peer.rank):
            self._incoming.ready.wait_for(number + 1)

    def drain(self) -> None:
        self.wait(self._num_posted - 1)
        self._peer.forget(self._incoming.link)


class Peer:
    """This end of the socket to another worker. What comes is read in a thread of its own.

    It is open until its process ends, at which the other end notices.

    Args:
        rank: of the other worker.
        sock: connected to it.
    """

    def __init__(self, rank: int, sock: socket.socket) -> None:
        self.rank = rank
        self._socket = sock
        self._socket.setblocking(True)
        self._lock = threading.Lock()  # for what is sent
        self._sends = ThreadPoolExecutor(1, f"to worker {rank}")  # starts with the first message
        self._opened: queue.SimpleQueue[Incoming | Exception] = queue.SimpleQueue()
        # By the number of a link: those from there, and what is free in those to there.
        self._incoming: dict[int, Incoming] = {}
        self._free: dict[int, Count] = {}
        self._num_links = 0
        self._broken: Exception | None = None
        threading.Thread(target=self._read_all, name=f"from worker {rank}", daemon=True).start()

    # Links to there --------------------------------------------------------------------------

    def open(self, told: Any, descriptors: tuple[int, ...] = ()) -> tuple[int, Count]:
        """Tell of a new link; its number, and how many of its messages are not needed any more.

        Raises:
            LinkError: what is told is too much.
            OSError: the other end is gone.
        """
        data = json.dumps(told).encode()
        if len(data) > MAX_TOLD:
            raise LinkError(f"worker {self.rank} cannot take a description of {len(data)} bytes.")
        link, self._num_links = self._num_links, self._num_links + 1
        self._free[link] = free = Count()
        if self._broken is not None:
            free.fail(self._broken)
        self._send(_OPEN, link, len(data), memoryview(data), descriptors)
        return link, free

    def tell_ready(self, link: int, number: int) -> None:
        """`number` messages of `link` are there."""
        self._send(_READY, link, number)

    def send_data(self, link: int, data: memoryview) -> Future[None]:
        """Start to send a message of `link`, which must stay as it is until that is done."""
        return self._sends.submit(self._send, _DATA, link, len(data), data)

    def end(self, link: int) -> None:
        """Nothing more is sent by `link`."""
        self._free.pop(link, None)

    # Links from there ------------------------------------------------------------------------

    def accept(self) -> Incoming:
        """Wait for the next link.

        Raises:
            OSError, LinkError: the other end is gone, or sent what is no message of a link.
        """
        opened = self._opened.get()
        if isinstance(opened, Exception):
            self._opened.put(opened)
            raise opened
        return opened

    def give_back(self, incoming: Incoming) -> None:
        """It was for the next one who accepts."""
        self._opened.put(incoming)

    def tell_free(self, link: int, number: int) -> None:
        """`number` messages of `link` are not needed any more."""
        self._send(_FREE, link, number)

    def forget(self, link: int) -> None:
        """All messages of `link` have come."""
        self._incoming.pop(link, None)

    # The socket ------------------------------------------------------------------------------

    def _send(
        self,
        kind: int,
        link: int,
        number: int,
        data: memoryview | None = None,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        header = _HEADER.pack(_MAGIC, kind, link, number)
        with self._lock:
            if descriptors:
                header = header[send_with(self._socket, header, descriptors) :]
            if data is None or len(data) < 2**16:
                self._socket.sendall(header + (data or b""))
            else:
                self._socket.sendall(header)
                self._socket.sendall(data)

    def _read_all(self) -> None:
        try:
            while True:
                self._read_one()
        except Exception as error:
            self._broken = error
            self._opened.put(error)
            for count in [*(one.ready for one in self._incoming.values()), *self._free.values()]:
                count.fail(error)

    def _read_one(self) -> None:
        header = memoryview(bytearray(_HEADER.size))
        count, descriptor = receive_with(self._socket, header)
        try:
            if not count:
                raise OSError("its end was closed")
            self._read(header[count:])
            magic, kind, link, number = _HEADER.unpack(header)
            if magic != _MAGIC or (descriptor is not None and kind != _OPEN):
                raise LinkError(f"worker {self.rank} sent something that is no message of a link.")
            if kind == _READY:
                self._known(link).ready.rise(number)
            elif kind == _FREE:
                self._is_free(link, number)
            elif kind == _DATA:
                self._data(link, number)
            elif kind == _OPEN:
                self._open(link, number, descriptor)
                descriptor = None
            else:
                raise LinkError(f"worker {self.rank} sent something that is no message of a link.")
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, link: int, size: int, descriptor: int | None) -> None:
        if size > MAX_TOLD:
            raise LinkError(f"worker {self.rank} sent a description of {size} bytes.")
        try:
            told = json.loads(bytes(self._read(memoryview(bytearray(size)))))
        except (ValueError, RecursionError) as error:
            raise LinkError(f"worker {self.rank} sent a description that is none.") from error
        self._incoming[link] = incoming = Incoming(link, told, descriptor)
        self._opened.put(incoming)

    def _is_free(self, link: int, number: int) -> None:
        free = self._free.get(link)  # this end may have ended it meanwhile
        if free is not None:
            free.rise(number)

    def _data(self, link: int, size: int) -> None:
        incoming = self._known(link)
        into = incoming.buffers.get()
        if size != len(into):
            raise LinkError(f"worker {self.rank} sent {size} bytes where {len(into)} were to come.")
        self._read(into)
        incoming.num_read += 1
        incoming.ready.rise(incoming.num_read)

    def _known(self, link: int) -> Incoming:
        if link not in self._incoming:
            raise LinkError(f"worker {self.rank} sent a message of a link that it did not open.")
        return self._incoming[link]

    def _read(self, into: memoryview) -> memoryview:
        left = into
        while left:
            count = self._socket.recv_into(left)
            if not count:
                raise OSError("its end was closed")
            left = left[count:]
        return into
