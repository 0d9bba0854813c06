"""What the checks of newly loaded weights cost, in the first evaluation that uses them.

    python3 dev.py python benchmarks/tripwire.py [--depth 12]

A worker sees then that no weight is all zeros that is not so in the file, and that every unit gives
numbers. The model is an SD3 of 250 million parameters, by default, on the CPU, as one stage.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--depth", type=int, default=12, help="blocks; the width follows")
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import torch

    from asyncdiff_core.algorithm.stage import Neighbours
    from asyncdiff_core.comfyui.model.loading import Loader
    from asyncdiff_core.comfyui.model.skeleton import build_skeleton
    from asyncdiff_core.comfyui.run.launch import spec_of
    from asyncdiff_core.comfyui.stage_model import build
    from harness import checkpoints

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = checkpoints.write_sd3(Path(folder) / "sd3.safetensors", depth=options.depth)
        loader = Loader("comfy.sd:load_diffusion_model", (str(file), {}))
        stages = build(spec_of(build_skeleton(loader).model, loader), torch.device("cpu"))
        began = time.perf_counter()
        owned, shared, _ = stages.load(((0, options.depth),), None)
        load = time.perf_counter() - began
        model = stages.staged
        width = checkpoints.TEXT_WIDTH
        inputs = (torch.randn(2, 16, 64, 64), torch.full((2,), 500.0))
        context = {"context": torch.randn(2, 77, width), "y": torch.randn(2, width)}

        def evaluate(is_checked: bool) -> Any:
            stage = ((0, options.depth),)
            return model.run_stage(stage, inputs, context, Neighbours(), is_checked=is_checked)

        evaluate(False)  # the first one is slower whatever it does
        checked, plain, verified = [], [], []
        for _ in range(ROUNDS):  # in turn, so that a slow minute is one for both
            verified.append(seconds(stages.verify))
            checked.append(seconds(lambda: evaluate(True)))
            plain.append(seconds(lambda: evaluate(False)))
    verify, with_checks, without = map(statistics.median, (verified, checked, plain))
    print(
        f"{(owned + shared) / 2**20:.0f} MiB of weights, latent 2x16x64x64: loaded in "
        f"{load:.1f} s, looked at in {1e3 * verify:.1f} ms; an evaluation takes "
        f"{with_checks:.3f} s with the checks of its outputs and {without:.3f} s without: "
        f"{with_checks / without:.3f}x"
    )


def seconds(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
