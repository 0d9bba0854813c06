"""Memory of processes, and running out of it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch

from ..errors import says_out_of_memory


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of the process `pid`, or of this one.

    Returns 0 for a process that is gone, or where the platform does not tell without psutil.
    """
    pid = pid or os.getpid()
    if sys.platform == "linux":
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")
    try:
        import psutil
    except ImportError:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def total_bytes() -> int:
    """Memory of this machine; where the platform does not tell without psutil, 16 GiB."""
    if sys.platform == "linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        import psutil
    except ImportError:
        return 2**34
    return int(psutil.virtual_memory().total)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free on a device, and that this process has there; (0, 0): it is the host's.

    What PyTorch keeps of freed memory counts as this process's.
    """
    if device.type != "cuda":
        return 0, 0
    free, _ = torch.cuda.mem_get_info(device)
    return free, torch.cuda.memory_reserved(device)


class ActivationMemory:
    """The peak of what a worker needs beyond its weights in a sampling run: its activations.

    On a GPU this is what PyTorch had allocated there. On the CPU it is by how much the process has
    grown, with what the allocator keeps of freed activations from run to run. Where the system does
    not tell the peak of a process, the growth is that of the moments in which `bytes` is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rest = self._used()
        self._peak = 0
        self._is_running = False
        self._system_tells = False

    @contextlib.contextmanager
    def except_for(self) -> Iterator[None]:
        """What the process gains or loses in here (its weights) is not counted."""
        give_memory_back()
        kept = self._used() - self._rest if self._is_running else 0
        try:
            yield
        finally:
            give_memory_back()
            self._rest = self._used() - kept
            self._forget_peak()

    def begin_run(self) -> None:
        """From here on it counts."""
        self._is_running = True
        self._forget_peak()

    def end_run(self) -> int:
        """The run is over; its peak, which `bytes` tells until the next one begins."""
        peak = self.bytes
        self._is_running = False
        return peak

    @property
    def bytes(self) -> int:
        """The peak of the run so far, or of the last one. May be asked from any thread."""
        if not self._is_running:
            return self._peak
        if self._device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self._device)
        elif self._system_tells:
            most = _in_status("VmHWM") - _in_status("RssFile", "RssShmem")
        else:
            most = self._used()
        self._peak = max(self._peak, most - self._rest)
        return self._peak

    def _forget_peak(self) -> None:
        self._peak = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # of all that it can, the peak alone
                self._system_tells = True
            except OSError:
                self._system_tells = False

    def _used(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        if sys.platform == "linux":
            return _in_status("RssAnon")  # pages of files come and go by themselves
        return resident_bytes()


def _in_status(*names: str) -> int:
    """The sum of these entries of what Linux tells of this process, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return sum(1024 * int(words[1]) for words in lines if words and words[0][:-1] in names)


def give_memory_back() -> None:
    """Have the C library return what is free to the system, which it otherwise keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def forget_pages(tensor: torch.Tensor) -> None:
    """Have this process let go of the pages of a file that reading `tensor`, a part of its map, has
    brought in.

    They stay in the system's cache, and come back from there when they are read again. Nothing is
    done on systems but Linux, nor where it is not known of each page that is there that it is one
    of a file: any other one would come back as zeros.
    """
    if sys.platform != "linux" or not tensor.is_contiguous():
        return
    size = os.sysconf("SC_PAGE_SIZE")
    first, last = -(-tensor.data_ptr() // size), (tensor.data_ptr() + tensor.nbytes) // size
    pages = _page_map(first, last) if last > first else b""
    if len(pages) != 8 * max(0, last - first):
        return
    # Of each page: whether it is in memory, swapped out, and of a file. See proc_pid_pagemap(5).
    words = numpy.frombuffer(pages, dtype=numpy.uint64)
    is_there, is_swapped, is_of_file = (words & numpy.uint64(1 << bit) != 0 for bit in (63, 62, 61))
    if is_there.any() and not (is_swapped | is_there & ~is_of_file).any():
        place, length = ctypes.c_void_p(first * size), ctypes.c_size_t((last - first) * size)
        ctypes.CDLL(None).madvise(place, length, mmap.MADV_DONTNEED)


def _page_map(first: int, last: int) -> bytes:
    """Eight bytes for each page from `first` up to `last`; fewer where the system does not tell."""
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(8 * first)
            return file.read(8 * (last - first))
    except OSError:
        return b""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError) or says_out_of_memory(error):
        return True
    # torch.AcceleratorError: cudaErrorMemoryAllocation
    return getattr(error, "error_code", None) == 2
