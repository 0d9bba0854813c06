"""The devices of this machine."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import psutil
import torch

from ..planning.plan import parse_devices


def available_devices() -> tuple[str, ...]:
    """The devices of this machine that workers can use, GPUs first."""
    if comfy.model_management.cpu_mode() or not torch.cuda.is_available():
        return ("cpu",)
    return (*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu")


def describe_machine() -> dict[str, Any]:
    """The devices with their names and bytes of memory, and what `auto` stands for."""
    names = available_devices()
    return {
        "devices": [_describe(name) for name in names],
        "auto": list(parse_devices("auto", names)),
    }


def _describe(name: str) -> dict[str, Any]:
    if name == "cpu":
        title = f"CPU, {psutil.cpu_count() or 1} cores"
        return {"name": name, "title": title, "memory_bytes": psutil.virtual_memory().total}
    device = torch.device(name)
    return {
        "name": name,
        "title": torch.cuda.get_device_name(device),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
    }
