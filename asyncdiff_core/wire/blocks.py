"""Large tensors of frames, through memory that both ends of a channel share.

The sender owns a few blocks, and writes the tensors of a frame into one that all receivers are done
with; what crosses the socket is the block's number. Each receiver copies them out as soon as the
frame comes, and says in its cell, at the beginning of the block, how far it is. Nobody ever waits:
where no block is free, or none can be had, tensors cross the socket itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from ..errors import ChannelDataError
from .descriptors import CAN_SEND
from .frames import BLOCK, BLOCK_MAGIC
from .shared_memory import SharedMemory
from .strides import flat_bytes

MIN_BYTES = 32 * 2**10  # what is less crosses the socket as fast
MAX_BYTES = 512 * 2**20  # weights, which come once, are not worth memory that stays
# Beside one for each receiver, since each may get a frame of its own: one is written, and one is
# not read yet by a receiver that is late.
MORE_BLOCKS = 2
ALIGNMENT = 64
_CELL_BYTES = 8


@dataclass(frozen=True)
class Loan:
    """The block of a frame; number 0: there is none.

    Attributes:
        oldest: of the blocks that are in use.
        head: goes before the frame.
        memory: of the block, which receivers need that do not have it yet.
        nbytes: of the tensors in it.
    """

    number: int
    oldest: int
    head: bytes
    memory: SharedMemory | None = None
    nbytes: int = 0


@dataclass
class _Block:
    number: int
    memory: SharedMemory
    num_uses: int = 0
    readers: frozenset[int] = frozenset()  # of the last use


class Lender:
    """The sender's end, for one or several receivers.

    Args:
        num_cells: how many receivers there are; each has a number from 0.
    """

    def __init__(self, num_cells: int) -> None:
        self._data = _aligned(num_cells * _CELL_BYTES)
        self._num_cells = num_cells
        self._blocks: list[_Block] = []
        self._numbers = itertools.count(1)
        self._oldest = 1  # what is older is not used any more
        self._has_news = False
        # Elsewhere memory may be made smaller behind its reader's back, which ends that.
        self._can_lend = CAN_SEND and SharedMemory.is_sealed

    def lend(self, tensors: Sequence[torch.Tensor], cells: Collection[int]) -> Loan | None:
        """Put the bytes of dense `tensors` into a block for the receivers `cells`.

        None: they are to cross the socket, and there is nothing else to tell.
        """
        nbytes = sum(_aligned(tensor.nbytes) for tensor in tensors)
        block = self._free_block(nbytes) if nbytes >= MIN_BYTES else None
        if block is None:
            has_news, self._has_news = self._has_news, False
            return self._loan(0, 0) if has_news else None
        offset = self._data
        for tensor in tensors:
            block.memory.bytes[offset : offset + tensor.nbytes].copy_(flat_bytes(tensor))
            offset += _aligned(tensor.nbytes)
        block.num_uses += 1
        block.readers = frozenset(cells)
        return self._loan(block.number, block.num_uses, block.memory, nbytes)

    def _loan(
        self, number: int, use: int, memory: SharedMemory | None = None, nbytes: int = 0
    ) -> Loan:
        head = BLOCK.pack(BLOCK_MAGIC, number, self._oldest, self._num_cells, use)
        return Loan(number, self._oldest, head, memory, nbytes)

    def forget(self) -> None:
        """Give all blocks back; receivers do so with the next frame."""
        if self._blocks:
            self._oldest = self._blocks[-1].number + 1
            self._blocks.clear()
            self._has_news = True

    def _free_block(self, nbytes: int) -> _Block | None:
        if not self._can_lend or nbytes > MAX_BYTES:
            return None
        need = self._data + nbytes
        free = [block for block in self._blocks if self._is_free(block)]
        fitting = [block for block in free if block.memory.bytes.numel() >= need]
        if fitting:
            return min(fitting, key=lambda block: block.memory.bytes.numel())
        if len(self._blocks) >= self._num_cells + MORE_BLOCKS:
            if not free:
                return None
            self._blocks.remove(free[0])
        try:
            memory = SharedMemory.create(_rounded(need))
        except OSError:
            self._can_lend = False  # a sandbox, or no memory: sockets need none
            return None
        self._blocks.append(_Block(next(self._numbers), memory))
        self._oldest = self._blocks[0].number
        return self._blocks[-1]

    def _is_free(self, block: _Block) -> bool:
        cells = _cells(block.memory, self._num_cells)
        return all(int(cells[cell]) >= block.num_uses for cell in block.readers)


class Borrower:
    """A receiver's end.

    Attributes:
        cell: its number among the receivers.
    """

    def __init__(self) -> None:
        self.cell = 0
        self._blocks: dict[int, SharedMemory] = {}

    def forget_before(self, oldest: int) -> None:
        """Blocks with smaller numbers will not be used any more."""
        for number in [number for number in self._blocks if number < oldest]:
            del self._blocks[number]

    def add(self, number: int, descriptor: int) -> None:
        """The memory of block `number`. The descriptor is closed.

        Raises:
            ChannelDataError: it cannot be used.
        """
        try:
            self._blocks[number] = SharedMemory.existing(None, "", descriptor)
        except OSError as error:
            raise ChannelDataError(f"memory that was shared cannot be used ({error})") from None

    def take(self, number: int, num_cells: int, sizes: Iterable[int]) -> list[torch.Tensor]:
        """The tensors in block `number`, [bytes] of uint8 each: the memory itself.

        Args:
            number: of the block.
            num_cells: how many receivers it has.
            sizes: of the tensors.

        Raises:
            ChannelDataError: there is no such block, or less in it.
        """
        memory = self._blocks.get(number)
        if memory is None:
            raise ChannelDataError("a frame names memory that was not shared")
        if self.cell >= num_cells:
            raise ChannelDataError("a frame names memory that is shared with others")
        offset, found = _aligned(num_cells * _CELL_BYTES), []
        for nbytes in sizes:
            found.append(memory.bytes[offset : offset + nbytes])
            offset += _aligned(nbytes)
        if offset > memory.bytes.numel():
            raise ChannelDataError("a frame names more shared memory than there is")
        return found

    def is_done(self, number: int, num_cells: int, use: int) -> None:
        """What the frame of use `use` has in block `number` is not read any more."""
        _cells(self._blocks[number], num_cells)[self.cell] = use


def _cells(memory: SharedMemory, number: int) -> torch.Tensor:
    return memory.bytes[: number * _CELL_BYTES].view(torch.int64)


def _rounded(nbytes: int) -> int:
    """A size for a block that serves somewhat larger frames too."""
    step = 1 << max(16, nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
