"""How fast a device is."""

from __future__ import annotations

import time

import torch

from ..links.engines import Engine


def measure_device(engine: Engine) -> tuple[str, float]:
    """The device's name, and its matrix multiplication rate in FLOP/s (best of five)."""
    device = engine.device
    if device.type == "cuda":
        name, size, dtype = torch.cuda.get_device_name(device), 4096, torch.float16
    else:
        name, size, dtype = f"{device.type} x{torch.get_num_threads()}", 256, torch.float32
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):  # the first one warms up
        engine.finish()
        start = time.perf_counter()
        a @ a
        engine.finish()
        best = min(best, time.perf_counter() - start)
    return name, 2 * size**3 / best
