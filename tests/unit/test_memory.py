"""What counts as memory of activations."""

import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from asyncdiff_core.workers import memory as memory_module
from asyncdiff_core.workers.memory import ActivationMemory, forget_pages

MIB = 1 << 20


def some(mebibytes: int) -> torch.Tensor:
    """A tensor of that size, of which every page was written, and which are the system's again as
    soon as it is gone: the heap keeps what fits a hole that other tests have left in it.
    """
    pages = mmap.mmap(-1, mebibytes * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8).fill_(1)


@pytest.fixture
def heap_with_holes() -> Iterator[None]:
    """As tests that ran before in the same process may leave it."""
    small = [bytes(100_000) for _ in range(3000)]
    last = bytes(100_000)
    del small
    yield
    del last


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is Linux's to tell")
@pytest.mark.usefixtures("heap_with_holes")
def test_on_the_cpu_it_is_the_peak_without_the_weights() -> None:
    memory = ActivationMemory(torch.device("cpu"))
    with memory.except_for():
        weights = some(96)
    memory.begin_run()
    del weights  # the process shrinks
    weights = some(96)
    some(64)  # and is freed at once
    assert 60 * MIB < memory.bytes < 80 * MIB
    memory.begin_run()
    assert memory.bytes < 16 * MIB
    with memory.except_for():
        del weights
    some(48)
    assert 44 * MIB < memory.end_run() < 64 * MIB
    other = some(64)
    assert 44 * MIB < memory.bytes < 64 * MIB  # which was after the run
    del other


def test_on_a_gpu_it_is_the_peak_of_what_was_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda:0")
    allocated = peak = 0

    def allocate(number: int) -> None:
        nonlocal allocated, peak
        allocated += number
        peak = max(peak, allocated)

    def reset(on: torch.device) -> None:
        nonlocal peak
        peak = allocated

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda on: allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda on: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)

    memory = ActivationMemory(device)
    with memory.except_for():
        allocate(1500)  # a copy of the weights in another type, for a while
        allocate(-500)
    assert memory.bytes == 0
    memory.begin_run()
    allocate(100)
    allocate(30)
    allocate(-30)
    assert memory.bytes == 130
    with memory.except_for():  # the weights are given back in the middle of the run
        allocate(-1000)
    with memory.except_for():
        allocate(1000)
    assert memory.bytes == 100
    allocate(-100)
    assert memory.end_run() == 100
    allocate(7)
    assert memory.bytes == 100


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """Four MiB of a file, as a loader maps it."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 2**14)
    return torch.from_file(str(path), shared=False, size=2**22, dtype=torch.uint8)


def in_memory(tensor: torch.Tensor) -> int:
    """How many of its pages this process has."""
    size = os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(8 * (tensor.data_ptr() // size))
        pages = file.read(8 * (tensor.nbytes // size))
    return sum(pages[7::8][n] >> 7 for n in range(tensor.nbytes // size))


@pytest.mark.skipif(sys.platform != "linux", reason="does nothing elsewhere")
def test_pages_of_a_file_are_let_go(mapped: torch.Tensor) -> None:
    total = int(mapped.sum(dtype=torch.int64))
    assert in_memory(mapped) == 2**10
    forget_pages(mapped)
    assert in_memory(mapped) == 0
    assert int(mapped.sum(dtype=torch.int64)) == total  # they come back
    part = mapped[2**21 + 100 : 2**21 + 100 + 2**14]
    forget_pages(part)
    # Those that it has alone, and what the system keeps together with them.
    assert in_memory(mapped) <= 2**10 - 3
    assert int(mapped.sum(dtype=torch.int64)) == total


@pytest.mark.skipif(sys.platform != "linux", reason="does nothing elsewhere")
def test_pages_that_are_not_the_files_are_kept(mapped: torch.Tensor) -> None:
    """A write to a private map is in this process alone."""
    mapped[5000] = 7
    expected = mapped.clone()
    forget_pages(mapped)
    assert torch.equal(mapped, expected)
    forget_pages(expected)
    assert torch.equal(mapped, expected)
    forget_pages(expected.view(2**11, 2**11).T)  # has no range of its own
    forget_pages(expected[:10])
    assert torch.equal(mapped, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="does nothing elsewhere")
@pytest.mark.parametrize("tells", ["nothing", "half", "zeros"])
def test_pages_of_which_nothing_is_known_are_kept(
    monkeypatch: pytest.MonkeyPatch, tells: str
) -> None:
    """Sandboxes have their own way with /proc. What is in this process alone would become zeros."""
    told = {"nothing": 0.0, "half": 0.5, "zeros": 1.0}[tells]
    monkeypatch.setattr(
        memory_module, "_page_map", lambda first, last: bytes(int(8 * (last - first) * told))
    )
    weight = some(4)
    forget_pages(weight)
    assert bool((weight == 1).all())
