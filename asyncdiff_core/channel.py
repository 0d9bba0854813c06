"""The private control channel between ComfyUI and one worker: plain data and tensors over a socket.

The socket is one end of a pair that only the two processes hold, so there is no address that
anybody could connect to. A frame is a header with sizes, a pickle of the plain data, and the raw
bytes of every tensor behind it. Tensors are neither pickled nor copied on the way, and arrive on
the CPU.
"""

from __future__ import annotations

import io
import pickle
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from .errors import ChannelClosedError, ChannelDataError, ChannelTimeoutError
from .frames import (
    HEADER,
    MAGIC,
    MAX_PICKLE,
    MAX_TENSOR,
    MAX_TENSORS,
    SIZE,
    PlainUnpickler,
)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return None
        tensor = obj.detach().resolve_conj().resolve_neg().to("cpu")
        if not tensor.is_contiguous():
            # Sent in memory order, so that a channels-last tensor stays one at no cost.
            strides = tensor.stride()
            order = sorted(range(tensor.ndim), key=lambda d: -strides[d])
            dense = tensor.permute(order).contiguous()
        else:
            order, dense = None, tensor
        self.tensors.append(dense)
        return len(self.tensors) - 1, tensor.dtype, tuple(dense.shape), order


class _Unpickler(PlainUnpickler):
    def __init__(self, file: io.BytesIO, storages: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self._storages = storages

    def persistent_load(self, pid: Any) -> torch.Tensor:
        index, dtype, shape, order = pid
        tensor = self._storages[index].view(dtype).view(shape)
        if order is None:
            return tensor
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return tensor.permute(inverse)


def _raw(tensor: torch.Tensor) -> memoryview:
    # A single element may have any stride, and its bytes are wanted all the same.
    flat = tensor.as_strided((tensor.numel(),), (1,))
    array: Any = flat.view(torch.uint8).numpy()
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

    @staticmethod
    def pair() -> tuple[Channel, socket.socket]:
        """A channel, and the socket of its other end, to be given to the worker."""
        ours, theirs = socket.socketpair()
        return Channel(ours), theirs

    def fileno(self) -> int:
        """For `select`."""
        return self._socket.fileno()

    def send(self, message: Any, timeout: float | None = None) -> None:
        """Send `message` within `timeout` seconds.

        Raises:
            ChannelClosedError: the other process is gone.
            ChannelTimeoutError: it did not take the message; the channel is then unusable.
        """
        self.send_frame(encode_frame(message), timeout)

    def send_frame(self, frame: Sequence[memoryview], timeout: float | None = None) -> None:
        """Send what `encode_frame` made; one frame can go to many channels."""
        with self._send_lock:
            deadline = None if timeout is None else time.monotonic() + timeout
            try:
                for part in frame:
                    while part:
                        self._set_timeout(deadline)
                        part = part[self._socket.send(part) :]
            except TimeoutError:
                raise ChannelTimeoutError("the message was not taken in time") from None
            except OSError as error:
                raise ChannelClosedError(f"the other end is gone ({error})") from None

    def receive(self, timeout: float | None = None) -> Any:
        """The next message.

        Raises:
            ChannelClosedError: the other process is gone.
            ChannelTimeoutError: no whole message came within `timeout` seconds.
            ChannelDataError: what came is no message; the channel is then unusable.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            sizes, data = self._read_head(deadline)
            storages = []
            for nbytes in sizes:
                storages.append(_allocate(nbytes))
                if nbytes:
                    self._read_into(_raw(storages[-1]), deadline)
        except TimeoutError:
            raise ChannelTimeoutError("no message came in time") from None
        except OSError as error:
            raise ChannelClosedError(f"the other end is gone ({error})") from None
        try:
            return _Unpickler(io.BytesIO(data), storages).load()
        except Exception as error:  # whatever a damaged pickle leads to
            raise ChannelDataError(
                f"the other end sent something unreadable ({type(error).__name__}: {error})"
            ) from error

    def _read_head(self, deadline: float | None) -> tuple[list[int], bytearray]:
        """The sizes of a frame's tensors, and its pickle."""
        magic, num_tensors, size = HEADER.unpack(self._read(HEADER.size, deadline))
        if magic != MAGIC or num_tensors > MAX_TENSORS or size > MAX_PICKLE:
            raise ChannelDataError("the other end sent something that is no frame")
        numbers = self._read(num_tensors * SIZE.size, deadline)
        sizes = [number for (number,) in SIZE.iter_unpack(numbers)]
        if max(sizes, default=0) > MAX_TENSOR:
            raise ChannelDataError("the other end sent something that is no frame")
        return sizes, self._read(size, deadline)

    def close(self) -> None:
        """Close this end. Wakes a thread that is blocked in `receive`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _set_timeout(self, deadline: float | None) -> None:
        # A timeout of 0 would make the socket non-blocking.
        left = None if deadline is None else max(1e-3, deadline - time.monotonic())
        self._socket.settimeout(left)

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


def encode_frame(message: Any) -> list[memoryview]:
    """The parts of the frame that carries `message`."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(message)
    data = file.getbuffer()
    head = HEADER.pack(MAGIC, len(pickler.tensors), len(data))
    head += b"".join(SIZE.pack(tensor.nbytes) for tensor in pickler.tensors)
    # Small parts travel together: every send of its own costs the receiver a wake-up.
    first = memoryview(head + data)
    return [first, *(_raw(tensor) for tensor in pickler.tensors if tensor.nbytes)]
