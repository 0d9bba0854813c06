"""Memory of processes, and running out of it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch


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


def give_memory_back() -> None:
    """Have the C library return what is free to the system, which it otherwise keeps."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if getattr(error, "error_code", None) == 2:  # torch.AcceleratorError: cudaErrorMemoryAllocation
        return True
    signs = ("can't allocate memory", "std::bad_alloc", "Cannot allocate memory")
    return isinstance(error, RuntimeError | OSError) and any(s in str(error) for s in signs)
