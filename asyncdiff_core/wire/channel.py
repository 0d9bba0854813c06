"""The private control channel between ComfyUI and one worker: plain data and tensors over a socket.

The socket is one end of a pair that only the two processes hold, so there is no address that
anybody could connect to. A frame is a header with sizes, the plain data (plain.py), and the raw
bytes of every tensor behind it. Tensors are not copied on the way, and arrive on the CPU.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch

from ..errors import ChannelClosedError, ChannelDataError, ChannelTimeoutError
from . import strides
from .blocks import Borrower, Lender, Loan
from .descriptors import receive_with, send_with
from .dtypes import DTYPES, NAMES
from .frames import (
    BLOCK,
    BLOCK_MAGIC,
    HEADER,
    MAGIC,
    MAX_PLAIN,
    MAX_TENSOR,
    MAX_TENSORS,
    SIZE,
)
from .plain import Reader, Writer, register

CPU = torch.device("cpu")
MAX_PARTS = 64  # that are sent by one call; systems allow a thousand
TIMEOUT_STAYS = 0.05  # seconds by which a timeout may be too long


def _write_tensor(writer: Writer, value: torch.Tensor) -> None:
    place = strides.place_of(value)
    if place in writer.places:  # MiniMax H3's inputs have some of them twice
        writer.write_all(b"X", writer.places[place][0])
        return
    tensor = value.detach().resolve_conj().resolve_neg()
    tensor = strides.on_device(tensor, CPU)
    stride = None if tensor.is_contiguous() else strides.kept(tensor)
    dense = tensor
    if stride is not None:
        # Sent in memory order, so that a channels-last tensor stays one at no cost.
        once = strides.each_once(tensor) if 0 in stride else tensor
        dense = once.permute(_memory_order(stride)).contiguous()
    writer.beside.append(dense)
    described = len(writer.beside) - 1, dense.dtype, tuple(tensor.shape), stride
    writer.places[place] = described, value  # it stays, so that no other one takes its place
    writer.write_all(b"X", described)


def _read_tensor(reader: Reader) -> torch.Tensor:
    index, dtype, shape, stride = reader.read_all()
    is_known = isinstance(index, int) and isinstance(dtype, torch.dtype)
    if not (is_known and index >= 0 and isinstance(stride, tuple | None)):
        raise ValueError("a tensor of no known kind")
    flat: torch.Tensor = reader.beside[index].view(dtype)
    if stride is None:
        return flat.view(shape)
    if not (_are_sizes(shape) and _are_sizes(stride) and strides.is_allowed(shape, stride)):
        raise ValueError("a tensor of no possible strides")
    sizes = [1 if step == 0 else size for size, step in zip(shape, stride, strict=True)]
    order = _memory_order(stride)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    once = flat.view([sizes[d] for d in order]).permute(inverse)
    if 1 + sum((size - 1) * step for size, step in zip(sizes, stride, strict=True)) == len(flat):
        return flat.as_strided(shape, stride)
    return strides.with_strides(once.expand(shape), stride, CPU)


def _memory_order(stride: Sequence[int]) -> list[int]:
    return sorted(range(len(stride)), key=lambda d: -stride[d])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(n) is int and n >= 0 for n in value)


def _read_dtype(reader: Reader) -> torch.dtype:
    name = str(reader.take_bytes(), "ascii")
    if name not in DTYPES:
        raise ValueError("a tensor of no known type")
    return DTYPES[name]


register(torch.Tensor, b"X", _write_tensor, _read_tensor, is_open=True)
register(torch.dtype, b"y", lambda w, v: w.write_bytes(b"y", NAMES[v].encode()), _read_dtype)
register(
    torch.device,
    b"v",
    lambda w, v: w.write_bytes(b"v", str(v).encode()),
    lambda r: torch.device(str(r.take_bytes(), "ascii")),
)
register(torch.Size, b"n", lambda w, v: w.write_all(b"n", v), lambda r: torch.Size(r.read_all()))


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a dense tensor on the CPU, in memory order; writing into them is allowed."""
    array: Any = strides.flat_bytes(tensor).numpy()
    return memoryview(array)


def _allocate(nbytes: int) -> torch.Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8)
    except (RuntimeError, MemoryError) as error:
        raise ChannelDataError(f"no memory for a tensor of {nbytes} bytes that was sent") from error


class Channel:
    """One end of the channel. `send` may be called from several threads, `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._send_lock = threading.Lock()
        self.lender: Lender | None = None  # for what `send` sends, if this end has memory to share
        self._lent: set[int] = set()  # blocks that the other end has
        self.borrower = Borrower()
        self._timeout_until: float | None = None  # the deadline that the socket was given, and when
        self._timeout_set = 0.0

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """A channel, and the socket of its other end, to be given to the worker."""
        ours, theirs = socket.socketpair()
        return Channel(ours), theirs

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, value: Any, timeout: float | None = None) -> None:
        """Send `value`, plain data, within `timeout` seconds.

        Raises:
            ChannelClosedError: the other process is gone.
            ChannelTimeoutError: it did not take it; the channel is then unusable.
        """
        if self.lender is None:
            self.send_frame(encode_frame(value), timeout)
        else:
            frame, loan = lend_frame(value, self.lender, (0,))
            self.send_frame(frame, timeout, loan)

    def send_frame(
        self,
        frame: Sequence[memoryview],
        timeout: float | None = None,
        loan: Loan | None = None,
    ) -> None:
        """Send what `encode_frame` or `lend_frame` made; one frame can go to many channels."""
        with self._send_lock:
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                parts = list(frame)
                if loan is not None:
                    parts.insert(0, self._send_descriptors(loan, deadline))
                self._send_parts(parts, deadline)
            except TimeoutError:
                raise ChannelTimeoutError("what was sent was not taken in time") from None
            except OSError as error:
                raise ChannelClosedError(f"the other end is gone ({error})") from None

    def _send_descriptors(self, loan: Loan, deadline: float | None) -> memoryview:
        """Send the memory of a block that the other end does not have; what is left of its head."""
        head = memoryview(loan.head)
        if loan.memory is None or loan.number in self._lent:
            return head
        self._lent = {number for number in self._lent if number >= loan.oldest} | {loan.number}
        self._set_timeout(deadline)
        return head[send_with(self._socket, head, loan.memory.descriptors) :]

    def _send_parts(self, parts: list[memoryview], deadline: float | None) -> None:
        if not hasattr(self._socket, "sendmsg"):  # Windows
            for part in parts:
                while part:
                    self._set_timeout(deadline)
                    part = part[self._socket.send(part) :]
            return
        while parts:
            self._set_timeout(deadline)
            count = self._socket.sendmsg(parts[:MAX_PARTS])
            while parts and count >= len(parts[0]):
                count -= len(parts.pop(0))
            if count:
                parts[0] = parts[0][count:]

    def receive(self, timeout: float | None = None) -> Any:
        """What comes next.

        Raises:
            ChannelClosedError: the other process is gone.
            ChannelTimeoutError: no whole frame came within `timeout` seconds.
            ChannelDataError: what came is no frame; the channel is then unusable.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            storages, data = self._read_frame(deadline)
        except TimeoutError:
            raise ChannelTimeoutError("no answer came in time") from None
        except OSError as error:
            raise ChannelClosedError(f"the other end is gone ({error})") from None
        return Reader(data, storages).read_whole()

    def _read_frame(self, deadline: float | None) -> tuple[list[torch.Tensor], bytearray]:
        """The bytes of the next frame's tensors, and its plain data."""
        head = bytearray(HEADER.size)
        self._set_timeout(deadline)
        count, descriptor = receive_with(self._socket, memoryview(head))
        with contextlib.ExitStack() as unless_taken:
            if descriptor is not None:
                unless_taken.callback(os.close, descriptor)
            if not count:
                raise ChannelClosedError("the other end is gone (end of stream)")
            self._read_into(memoryview(head)[count:], deadline)
            number = num_cells = use = 0
            if head.startswith(BLOCK_MAGIC):
                head += self._read(BLOCK.size - len(head), deadline)
                _, number, oldest, num_cells, use = BLOCK.unpack(head)
                self.borrower.forget_before(oldest)
                head = self._read(HEADER.size, deadline)
            sizes, data = self._read_head(head, deadline)
            if descriptor is not None:
                if not number:
                    raise ChannelDataError("the other end sent something that is no frame")
                unless_taken.pop_all()
                self.borrower.add(number, descriptor)
            if not number:
                return [self._read_tensor(nbytes, deadline) for nbytes in sizes], data
            parts = self.borrower.take(number, num_cells, sizes)
            storages = [
                _allocate(nbytes).copy_(part) for nbytes, part in zip(sizes, parts, strict=True)
            ]
            self.borrower.is_done(number, num_cells, use)
            return storages, data

    def _read_tensor(self, nbytes: int, deadline: float | None) -> torch.Tensor:
        storage = _allocate(nbytes)
        if nbytes:
            self._read_into(raw_bytes(storage), deadline)
        return storage

    def _read_head(self, head: bytearray, deadline: float | None) -> tuple[list[int], bytearray]:
        """The sizes of a frame's tensors, and its plain data."""
        magic, num_tensors, size = HEADER.unpack(head)
        if magic != MAGIC or num_tensors > MAX_TENSORS or size > MAX_PLAIN:
            raise ChannelDataError("the other end sent something that is no frame")
        numbers = self._read(num_tensors * SIZE.size, deadline)
        sizes = [number for (number,) in SIZE.iter_unpack(numbers)]
        if max(sizes, default=0) > MAX_TENSOR:
            raise ChannelDataError("the other end sent something that is no frame")
        return sizes, self._read(size, deadline)

    def close(self) -> None:
        """Close this end. Wakes a thread that is blocked in `receive`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _set_timeout(self, deadline: float | None) -> None:
        now = time.monotonic()
        if deadline is None:
            if self._timeout_until is not None:
                self._socket.settimeout(None)
                self._timeout_until = None
            return
        # Every change is a call of the system, so a timeout that is nearly right stays.
        if self._timeout_until != deadline or now > self._timeout_set + TIMEOUT_STAYS:
            # A timeout of 0 would make the socket non-blocking.
            self._socket.settimeout(max(1e-3, deadline - now))
            self._timeout_until, self._timeout_set = deadline, now

    def _read(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray(size)
        self._read_into(memoryview(data), deadline)
        return data

    def _read_into(self, view: memoryview, deadline: float | None) -> None:
        while view:
            self._set_timeout(deadline)
            count = self._socket.recv_into(view)
            if not count:
                raise ChannelClosedError("the other end is gone (end of stream)")
            view = view[count:]


def encode_frame(value: Any) -> list[memoryview]:
    """The parts of the frame that carries `value`.

    Raises:
        NotPlainError: it has a part that is neither plain data nor a tensor.
    """
    first, tensors = _encode(value)
    return [first, *(raw_bytes(tensor) for tensor in tensors if tensor.nbytes)]


def lend_frame(
    value: Any, lender: Lender, cells: Collection[int]
) -> tuple[list[memoryview], Loan | None]:
    """The same for the receivers `cells` of `lender`, with large tensors in memory that they share.

    Raises:
        NotPlainError: it has a part that is neither plain data nor a tensor.
    """
    first, tensors = _encode(value)
    loan = lender.lend(tensors, cells)
    if loan is not None and loan.number:
        return [first], loan
    return [first, *(raw_bytes(tensor) for tensor in tensors if tensor.nbytes)], loan


def _encode(value: Any) -> tuple[memoryview, list[torch.Tensor]]:
    """All of a frame but the bytes of its tensors, and these."""
    writer = Writer()
    writer.write(value)
    head = HEADER.pack(MAGIC, len(writer.beside), len(writer.data))
    head += b"".join(SIZE.pack(tensor.nbytes) for tensor in writer.beside)
    # Small parts travel together: every send of its own costs the receiver a wake-up.
    return memoryview(head + writer.data), writer.beside
