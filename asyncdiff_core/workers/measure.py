"""How fast a device is: by what it is, so that equal machines give equal answers."""

from __future__ import annotations

import torch

# Floating point operations of a matrix product in float16 that a multiprocessor does in a clock,
# dense, by NVIDIA's compute capability: from the white papers of the architectures.
CUDA_RATES = {
    (5, 0): 256,
    (6, 0): 256,
    (7, 0): 1024,
    (8, 0): 2048,
    (8, 6): 1024,
    (9, 0): 4096,
    (10, 0): 8192,
    (12, 0): 1024,
}
# The same of AMD's compute units, by the beginning of an architecture's name.
ROCM_RATES = {"gfx94": 2048, "gfx95": 4096, "gfx90": 1024, "gfx11": 512, "gfx12": 1024, "gfx": 256}
USUAL_CLOCK = 1_500_000  # kHz, where PyTorch does not tell
CPU_RATE = 5e10  # of a thread


def device_rate(device: torch.device) -> tuple[str, float]:
    """The device's name, and about how many FLOP/s of a matrix product it can do.

    Only the quotient of two of them is used (assignment.relative_speeds).
    """
    if device.type != "cuda":
        number = torch.get_num_threads()
        return f"{device.type} x{number}", CPU_RATE * number
    properties = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "clock_rate", 0) or USUAL_CLOCK
    return properties.name, properties.multi_processor_count * clock * 1e3 * _per_clock(properties)


def _per_clock(properties: object) -> int:
    name = getattr(properties, "gcnArchName", "")
    if torch.version.hip and name:
        return next((rate for start, rate in ROCM_RATES.items() if name.startswith(start)), 256)
    capability = getattr(properties, "major", 0), getattr(properties, "minor", 0)
    # Of one that is not known, the rate of the newest before it.
    known = [rate for least, rate in sorted(CUDA_RATES.items()) if least <= capability]
    return known[-1] if known else 256
