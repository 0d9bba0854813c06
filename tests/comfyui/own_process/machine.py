"""Run in a process of its own: the GPUs that workers can use, by stand-ins for CUDA and NVML.

    python machine.py COMFYUI PACK

Prints one JSON object: what was asked, and whether the answer was right.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest.mock import patch

VISIBLE = "CUDA_VISIBLE_DEVICES"


def main(comfyui: str, pack: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    from asyncdiff_core.comfyui.run import launch, machine
    from asyncdiff_core.workers.gpus import Gpu

    cards = [Gpu(f"GPU-{n}", name, 24 * 2**30, n * 2**30) for n, name in enumerate("abc")]

    @contextmanager
    def with_gpus(seen: list[int], told: list[Gpu] = cards, **env: str) -> Iterator[None]:
        def properties(index: int) -> SimpleNamespace:
            card = cards[seen[index]]
            return SimpleNamespace(uuid=card.uuid[4:], name=card.title, total_memory=1)

        with ExitStack() as stack:
            for place in (
                patch.object(machine.comfy.model_management, "cpu_mode", lambda: False),
                patch.object(machine, "list_gpus", lambda: tuple(told)),
                patch.object(machine.torch.cuda, "is_available", lambda: True),
                patch.object(machine.torch.cuda, "device_count", lambda: len(seen)),
                patch.object(machine.torch.cuda, "get_device_properties", properties),
                patch.dict(os.environ, env),
            ):
                stack.enter_context(place)
            yield

    @contextmanager
    def on_windows(version: str = "0.46.0", **arguments: object) -> Iterator[None]:
        with (
            patch.object(sys, "platform", "win32"),
            patch.object(machine.comfyui_version, "__version__", version),
            patch.multiple(machine.args, **{"cuda_device": None, **arguments}),
        ):
            yield

    held = {}
    with with_gpus([2, 0, 1]):
        held["all, in CUDA's order"] = [
            (one["name"], one["title"], one["free_bytes"])
            for one in machine.describe_machine()["devices"][:-1]
        ] == [("cuda:0", "c", 2 * 2**30), ("cuda:1", "a", 0), ("cuda:2", "b", 2**30)]
        held["auto"] = machine.describe_machine()["auto"] == ["cuda:0", "cuda:1", "cuda:2"]
        held["none hidden"] = launch.launch().hidden_gpus == {}
    with with_gpus([1], told=[]):
        (gpu, cpu) = machine.describe_machine()["devices"]
        held["without NVML"] = (gpu["title"], gpu["free_bytes"]) == ("b", None)
        held["memory that is free"] = 0 < cpu["free_bytes"] < cpu["memory_bytes"]
    with with_gpus([1], **{VISIBLE: "0"}):
        held["what the user hides"] = machine.available_devices() == ("cuda:0", "cpu")
        with on_windows():
            held["Windows' one"] = machine.available_devices() == (
                "cuda:0",
                "cuda:1",
                "cuda:2",
                "cpu",
            )
            others = {"cuda:1": "GPU-0", "cuda:2": "GPU-2"}
            held["workers of the others"] = launch.launch().hidden_gpus == others
        with on_windows(cuda_device="0"):
            held["what the user wants"] = machine.available_devices() == ("cuda:0", "cpu")
        with on_windows("0.30.4"):
            held["an older one hides nothing"] = launch.launch().hidden_gpus == {}
    with with_gpus([1], **{VISIBLE: "1"}), on_windows():
        held["by the environment"] = machine.available_devices() == ("cuda:0", "cpu")
    with with_gpus([0, 1, 2]), on_windows(cuda_device="all"):
        held["all are seen"] = len(machine.available_devices()) == 4
        held["so none is hidden"] = launch.launch().hidden_gpus == {}
    held["on the CPU"] = machine.available_devices() == ("cpu",)
    print(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
