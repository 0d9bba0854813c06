"""Large tensors of frames in memory that both ends of a channel share."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff_core.errors import ChannelDataError
from asyncdiff_core.wire import blocks
from asyncdiff_core.wire.blocks import MORE_BLOCKS, Lender
from asyncdiff_core.wire.channel import Channel, encode_frame, lend_frame
from asyncdiff_core.wire.frames import BLOCK, BLOCK_MAGIC
from asyncdiff_core.wire.shared_memory import SharedMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux alone")

SECONDS = 20.0
MAX_BLOCKS = 2 + MORE_BLOCKS  # of two workers


class Pair:
    """A host's channels to some workers, and the workers' ends."""

    def __init__(self, number: int) -> None:
        pairs = [Channel.pair() for _ in range(number)]
        self.ours = [ours for ours, _ in pairs]
        self.theirs = [Channel(theirs) for _, theirs in pairs]
        for cell, channel in enumerate(self.theirs):
            channel.borrower.cell = cell
        self.lender = Lender(number)

    def send(self, value: Any, *cells: int) -> int:
        """Send to the workers `cells`; the number of the block."""
        frame, loan = lend_frame(value, self.lender, cells)
        for cell in cells:
            self.ours[cell].send_frame(frame, SECONDS, loan)
        return 0 if loan is None else loan.number

    def receive(self, cell: int) -> Any:
        return self.theirs[cell].receive(SECONDS)

    def held(self) -> list[int]:
        """How many blocks each worker has mapped."""
        return [len(channel.borrower._blocks) for channel in self.theirs]


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(2)
    yield pair
    for channel in (*pair.ours, *pair.theirs):
        channel.close()


def large(seed: int, size: int = 50_000) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "tensors",
    [
        [large(1)],
        [large(1).half(), torch.tensor(3), large(2, 7).double(), torch.empty(0, 4)],
        [large(1, 60_000).view(2, 3, 100, 100).to(memory_format=torch.channels_last)],
        [large(1, 40_000).view(200, 200).T, large(2, 100).bfloat16()],
    ],
)
def test_what_comes_is_what_was_sent(pair: Pair, tensors: list[torch.Tensor]) -> None:
    for _ in range(5):
        assert pair.send({"some": tensors, "n": 3}, 0, 1) > 0
        for cell in (0, 1):
            found = pair.receive(cell)
            assert found["n"] == 3
            for one, other in zip(found["some"], tensors, strict=True):
                assert torch.equal(one, other)
                assert one.dtype == other.dtype and one.stride() == other.stride()


def test_what_came_stays_when_the_block_is_used_again(pair: Pair) -> None:
    pair.send(large(1), 0, 1)
    first = [pair.receive(cell) for cell in (0, 1)]
    for seed in range(2, 8):
        pair.send(large(seed), 0, 1)
        assert torch.equal(pair.receive(0), pair.receive(1))
    assert all(torch.equal(one, large(1)) for one in first)


def test_a_block_is_not_written_while_somebody_reads_it(pair: Pair) -> None:
    """A worker that is late keeps its blocks; when none is free, tensors cross the socket."""
    numbers = [pair.send(large(seed), 0, 1) for seed in range(MAX_BLOCKS)]
    assert sorted(numbers) == sorted(set(numbers)) and 0 not in numbers
    for seed in range(MAX_BLOCKS):
        assert torch.equal(pair.receive(0), large(seed))  # the first worker is done, the second not
    assert pair.send(large(77, 10_000), 0) == 0
    assert torch.equal(pair.receive(0), large(77, 10_000))
    assert torch.equal(pair.receive(1), large(0))
    assert pair.send(large(78), 0) == numbers[0]
    assert torch.equal(pair.receive(0), large(78))
    for seed in range(1, MAX_BLOCKS):
        assert torch.equal(pair.receive(1), large(seed))


def test_who_did_not_get_a_frame_holds_nobody_up(pair: Pair) -> None:
    for seed in range(4 * MAX_BLOCKS):
        assert pair.send(large(seed), 0) > 0
        assert torch.equal(pair.receive(0), large(seed))


def test_every_worker_may_get_a_frame_of_its_own() -> None:
    """Four stages work for four steps: each gets the same residuals with another latent."""
    pair = Pair(4)
    for seed in range(4):
        numbers = [pair.send(large(seed, 10_000 + cell), cell) for cell in range(4)]
        assert 0 not in numbers and len(set(numbers)) == 4
        for cell in range(4):
            assert torch.equal(pair.receive(cell), large(seed, 10_000 + cell))


def test_small_tensors_need_no_block(pair: Pair) -> None:
    assert pair.send([torch.arange(100)], 0) == 0
    assert torch.equal(pair.receive(0)[0], torch.arange(100))


def test_larger_ones_get_larger_blocks(pair: Pair) -> None:
    for size in (20_000, 200_000, 2_000_000, 4_000_000, 20_000):
        assert pair.send(large(size, size), 0, 1) > 0
        assert all(torch.equal(pair.receive(cell), large(size, size)) for cell in (0, 1))
    assert max(pair.held()) <= MAX_BLOCKS


def test_what_is_too_large_crosses_the_socket(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_BYTES", 100_000)
    assert pair.send(large(1, 20_000), 0) > 0
    assert torch.equal(pair.receive(0), large(1, 20_000))
    assert pair.send(large(1, 30_000), 0) == 0
    assert torch.equal(pair.receive(0), large(1, 30_000))


@pytest.mark.parametrize("nbytes", [1, 2**16, 2**16 + 1, 10**6, 107_000_001, 2**29])
def test_a_block_is_hardly_larger_than_what_is_in_it(nbytes: int) -> None:
    assert nbytes <= blocks._rounded(nbytes) <= 2**16 + nbytes * 1.13


def test_blocks_are_given_back(pair: Pair) -> None:
    """At the end of a run; the next frame says so, whatever is in it."""
    for seed in range(3):
        pair.send(large(seed, 10_000 << seed), 0, 1)
        assert pair.receive(0) is not None and pair.receive(1) is not None
    assert pair.held() != [0, 0]
    pair.lender.forget()
    pair.send("the run is over", 0, 1)
    assert [pair.receive(cell) for cell in (0, 1)] == ["the run is over"] * 2
    assert pair.held() == [0, 0]
    gc.collect()
    assert "/memfd:asyncdiff" not in Path("/proc/self/maps").read_text()
    pair.send(large(9), 0, 1)
    assert torch.equal(pair.receive(1), large(9))


def test_runs_leave_no_descriptors(pair: Pair) -> None:
    def run() -> int:
        for seed in range(4):
            pair.send(large(seed), 0, 1)
            assert torch.equal(pair.receive(0), pair.receive(1))
        pair.lender.forget()
        pair.send("the run is over", 0, 1)
        assert pair.receive(0) == pair.receive(1)
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    after_one = run()
    assert [run() for _ in range(5)] == [after_one] * 5


def test_no_memory_to_share(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(nbytes: int) -> SharedMemory:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blocks.SharedMemory, "create", refuse)
    assert pair.send(large(1), 0, 1) == 0
    assert torch.equal(pair.receive(1), large(1))


# What is wrong -------------------------------------------------------------------------------


def refused(pair: Pair, number: int, num_cells: int, *descriptors: int) -> str:
    """What is said of a frame with such a block."""
    head = BLOCK.pack(BLOCK_MAGIC, number, 1, num_cells, 1)
    frame = encode_frame(large(1))[0]  # without the bytes of its tensor
    raw = pair.ours[0]._socket
    if descriptors:
        socket.send_fds(raw, [head], descriptors)
    else:
        raw.sendall(head)
    raw.sendall(frame)
    with pytest.raises(ChannelDataError) as caught:
        pair.receive(0)
    return str(caught.value)


def test_memory_that_was_not_shared(pair: Pair) -> None:
    assert "memory that was not shared" in refused(pair, 7, 1)


def test_less_memory_than_is_named(pair: Pair) -> None:
    memory = SharedMemory.create(8192)
    assert "more shared memory than there is" in refused(pair, 7, 1, *memory.descriptors)


@pytest.mark.parametrize(
    ("num_cells", "text"),
    [(0, "shared with others"), (2**17, "more shared memory"), (2**32 - 1, "more shared memory")],
)
def test_cells_that_cannot_be(pair: Pair, num_cells: int, text: str) -> None:
    memory = SharedMemory.create(2**20)
    assert text in refused(pair, 7, num_cells, *memory.descriptors)


def test_cells_of_memory_of_an_odd_size(pair: Pair) -> None:
    memory = SharedMemory.create(4097)
    assert "more shared memory" in refused(pair, 7, 600, *memory.descriptors)


def test_memory_without_any(pair: Pair) -> None:
    descriptor = os.memfd_create("asyncdiff", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    assert "less than 1 bytes" in refused(pair, 7, 1, descriptor)


def test_what_is_no_memory(pair: Pair) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    assert "memory that was shared cannot be used" in refused(pair, 7, 1, reader)


@pytest.mark.parametrize("number", [0, 7])
def test_a_frame_that_breaks_off_leaves_no_descriptor(pair: Pair, number: int) -> None:
    """Between its memory and its header there is what is no frame."""
    gc.collect()
    memory = SharedMemory.create(2**20)
    before = len(os.listdir("/proc/self/fd"))
    raw = pair.ours[0]._socket
    socket.send_fds(raw, [BLOCK.pack(BLOCK_MAGIC, number, 1, 1, 1)], memory.descriptors)
    raw.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ChannelDataError, match="no frame"):
        pair.receive(0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_that_could_be_made_smaller(pair: Pair) -> None:
    """Whoever read what is then missing would be ended by a signal."""
    descriptor = os.memfd_create("asyncdiff", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 2**20)
    assert "can be made smaller" in refused(pair, 7, 1, descriptor)
    memory = SharedMemory.create(4096)
    (own,) = memory.descriptors
    assert fcntl.fcntl(own, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(own, 10)


def test_a_descriptor_that_nobody_asked_for(pair: Pair) -> None:
    raw = pair.ours[0]._socket
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    frame = b"".join(bytes(part) for part in encode_frame("hello"))
    with open(__file__) as file:
        socket.send_fds(raw, [frame], [file.fileno()])
    with pytest.raises(ChannelDataError, match="no frame"):
        pair.receive(0)
    assert len(os.listdir("/proc/self/fd")) <= before
