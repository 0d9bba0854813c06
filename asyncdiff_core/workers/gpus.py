"""The GPUs that NVIDIA's management library (NVML) tells of.

Asking it touches none of them. A process that asks CUDA of a GPU begins to use it, which costs
memory there, and on Windows more than one of them in a process can end in failing copies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..log import get_logger

log = get_logger("devices")


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        uuid: by which CUDA_VISIBLE_DEVICES can name it; empty where nothing tells.
        title: its name.
        memory_bytes: all of its memory.
        free_bytes: what no process uses of that; None where nothing tells.
    """

    uuid: str
    title: str
    memory_bytes: int
    free_bytes: int | None


def list_gpus() -> tuple[Gpu, ...]:
    """All GPUs of this machine, or container, in NVML's order; none where there is no NVML."""
    try:
        import pynvml
    except ImportError:
        _say("nvidia-ml-py is not installed, so it is not known how much of GPUs is in use")
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("no NVML: %s", error)
        return ()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return tuple(_gpu(pynvml, handle) for handle in handles)
    except pynvml.NVMLError as error:
        _say(f"NVML fails ({error}), so it is not known how much of GPUs is in use")
        return ()
    finally:
        pynvml.nvmlShutdown()


@functools.cache
def _say(text: str) -> None:
    """Once: the panel asks for what is free every second."""
    log.warning("%s", text)


def usable_gpus(seen: Sequence[Gpu], told: Iterable[Gpu], *, hides_others: bool) -> dict[str, Gpu]:
    """The GPUs that workers can use, by their names.

    Args:
        seen: those that this process sees, in the order that CUDA gives them, which may be another
            one than NVML's.
        told: those that NVML tells of.
        hides_others: the others may be used as well, though this process does not see them.
    """
    others = {gpu.uuid: gpu for gpu in told}
    gpus = [others.pop(gpu.uuid, gpu) for gpu in seen]
    if hides_others:
        gpus += others.values()
    return {f"cuda:{number}": gpu for number, gpu in enumerate(gpus)}


def _gpu(pynvml: Any, handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    uuid, title = map(_text, (pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)))
    return Gpu(uuid, title, int(memory.total), int(memory.free))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before its version 11.5
