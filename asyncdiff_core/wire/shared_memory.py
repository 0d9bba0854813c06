"""Memory that two processes on one machine share, and that nobody else can find.

Where the system has descriptors it is a file without a name (`memfd_create`, or a file that is
removed as soon as it is open), whose descriptor crosses the socket between the two: when both have
ended, however, it is gone. Windows has mappings with names, which are gone in the same way; the
name is a random one.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import sys
import tempfile
import weakref

import psutil
import torch

if sys.platform != "win32":
    import fcntl
else:
    fcntl = None


# What is sealed cannot be made smaller, which would end whoever reads what is then missing.
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")
_CAN_SEAL = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class SharedMemory:
    """Flat memory, mapped in this process.

    Attributes:
        is_sealed: nobody can make it smaller.
        bytes: the memory as a tensor, [nbytes] of uint8.
        name: by which the other process maps it on Windows; elsewhere "".
    """

    is_sealed = _CAN_SEAL

    def __init__(self, mapping: mmap.mmap, name: str, descriptor: int | None) -> None:
        self.bytes = torch.frombuffer(mapping, dtype=torch.uint8)
        self.name = name
        self._descriptor = descriptor
        if descriptor is not None:
            self._close = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def create(cls, nbytes: int) -> SharedMemory:
        """New memory of `nbytes` bytes, at least one.

        Raises:
            OSError: there is too little memory, or the system or a sandbox allows none.
        """
        available = psutil.virtual_memory().available
        if nbytes > available:  # where the system would not say no, but end processes
            raise OSError(errno.ENOMEM, f"{available} bytes of memory are free")
        if sys.platform == "win32":
            name = f"asyncdiff-{secrets.token_hex(16)}"
            return cls(mmap.mmap(-1, nbytes, tagname=name), name, None)
        descriptor = _file()
        try:
            # Pages that turn out to be missing when they are written end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, nbytes)
            else:
                os.ftruncate(descriptor, nbytes)
            if _CAN_SEAL:
                seals = sum(getattr(fcntl, seal) for seal in _SEALS)
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return cls(mmap.mmap(descriptor, nbytes), "", descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def existing(cls, nbytes: int | None, name: str, descriptor: int | None) -> SharedMemory:
        """What another process created; all of it if `nbytes` is None. The descriptor is closed.

        Raises:
            OSError: it cannot be mapped, is smaller than `nbytes`, or can be made so.
        """
        if sys.platform == "win32":
            return cls(mmap.mmap(-1, nbytes or 0, tagname=name), name, None)
        if descriptor is None:
            raise OSError("shared memory was told of and did not come")
        try:
            has = os.fstat(descriptor).st_size
            nbytes = max(1, has) if nbytes is None else nbytes
            # Of a file that is too small pages would be missing.
            if has < nbytes:
                raise OSError(f"shared memory has less than {nbytes} bytes")
            if _CAN_SEAL and not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise OSError("shared memory can be made smaller")
            return cls(mmap.mmap(descriptor, nbytes), "", None)
        finally:
            os.close(descriptor)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the other process needs besides the name."""
        return () if self._descriptor is None else (self._descriptor,)

    def given(self) -> None:
        """The other process has the descriptor."""
        if self._descriptor is not None:
            self._close()
            self._descriptor = None


def _file() -> int:
    """The descriptor of an empty file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("asyncdiff", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
