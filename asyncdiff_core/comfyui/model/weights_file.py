"""Files by which ComfyUI's process hands weights to workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import folder_paths
import psutil
import torch
from safetensors.torch import save_file

from ...errors import LoaderError, text_of


class WeightsFile:
    """Tensors in a file that is gone as soon as nobody needs it.

    It is in memory where there is room for it, else in ComfyUI's temporary folder. Where the system
    allows that, it has no name, and so ends with this process, however that ends.

    Attributes:
        path: by which other processes open it.

    Raises:
        LoaderError: there is no room for it, or it can't be written.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        folder = Path(tempfile.mkdtemp(prefix="asyncdiff-", dir=_place_for(nbytes)))
        path = folder / "weights.safetensors"
        with contextlib.ExitStack() as undone:
            undone.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                save_file(_to_save(tensors), path)
            except Exception as error:  # the device is full, after all
                raise LoaderError(text_of(error)) from error
            if sys.platform == "linux":
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, descriptor)
                self.path = f"/proc/{os.getpid()}/fd/{descriptor}"
            else:
                weakref.finalize(self, undone.pop_all().close)
                self.path = str(path)


def _place_for(nbytes: int) -> Path:
    """The folder in which a file of that size has room."""
    memory, temporary = Path("/dev/shm"), Path(folder_paths.get_temp_directory())
    temporary.mkdir(parents=True, exist_ok=True)
    # The model itself is in memory too, and what samples needs some.
    if memory.is_dir() and nbytes < 0.5 * psutil.virtual_memory().available:
        with contextlib.suppress(OSError):
            if nbytes < shutil.disk_usage(memory).free and os.access(memory, os.W_OK):
                return memory
    free = shutil.disk_usage(temporary).free
    if nbytes >= free:
        raise LoaderError(
            f"there is no room for them: they take {nbytes / 2**20:,.0f} MiB, and there are "
            f"{free / 2**20:,.0f} MiB free in {temporary}"
        )
    return temporary


def _to_save(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` as a file can have it: dense, in this process's memory, nothing in it twice."""
    seen: set[int] = set()
    saved: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        tensor = value.detach().to("cpu").contiguous()
        saved[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return saved
