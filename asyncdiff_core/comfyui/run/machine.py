"""The devices of this machine."""

from __future__ import annotations

import os
import sys
from typing import Any

import comfy.model_management
import comfyui_version
import psutil
import torch
from comfy.cli_args import args

from ...planning.plan import parse_devices
from ...workers.gpus import Gpu, list_gpus, usable_gpus

# Since this version ComfyUI on Windows shows itself one GPU, unless its command line or the
# environment names GPUs: a process that has touched several may fail to copy to them.
ONE_ON_WINDOWS = (0, 31)


def available_devices() -> tuple[str, ...]:
    """The devices of this machine that workers can use, GPUs first."""
    return (*_gpus(), "cpu")


def hidden_gpus() -> dict[str, str]:
    """The GPUs that workers can use and this process does not see: what makes CUDA see each."""
    if not _sees_one_of_several():
        return {}
    own = torch.cuda.device_count()
    return {name: gpu.uuid for name, gpu in list(_gpus().items())[own:]}


def describe_machine() -> dict[str, Any]:
    """The devices with names, bytes of memory and what is free of it; what `auto` stands for."""
    gpus, ram = _gpus(), psutil.virtual_memory()
    cpu = Gpu("", f"CPU, {psutil.cpu_count() or 1} cores", ram.total, ram.available)
    return {
        "devices": [
            {
                "name": name,
                "title": device.title,
                "memory_bytes": device.memory_bytes,
                "free_bytes": device.free_bytes,
            }
            for name, device in {**gpus, "cpu": cpu}.items()
        ],
        "auto": list(parse_devices("auto", (*gpus, "cpu"))),
    }


def _gpus() -> dict[str, Gpu]:
    """The GPUs that workers can use, by the names that this process has for them."""
    if comfy.model_management.cpu_mode() or not torch.cuda.is_available():
        return {}
    every = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    seen = [Gpu(f"GPU-{getattr(of, 'uuid', '')}", of.name, of.total_memory, None) for of in every]
    return usable_gpus(seen, list_gpus(), hides_others=_sees_one_of_several())


def _sees_one_of_several() -> bool:
    """Whether ComfyUI itself has hidden all GPUs but one from this process."""
    return (
        sys.platform == "win32"
        and args.cuda_device is None
        and args.default_device is None
        and os.environ.get("CUDA_VISIBLE_DEVICES") == "0"
        and _version() >= ONE_ON_WINDOWS
    )


def _version() -> tuple[int, ...]:
    parts = comfyui_version.__version__.split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())
