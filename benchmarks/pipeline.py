"""Synchronous steps of a batch that passes the stages one latent behind the other.

    python3 dev.py python -m benchmarks.pipeline [--steps 8] [--repeats 5] [--scale 3]

The demonstration's model on two workers of one thread each, with a warm-up of all steps, against
ComfyUI alone on one thread; they take turns, and the median of the ratios counts. Every latent must
be the one that ComfyUI makes without batching, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]
CASES = (("4 latents, cfg 1", 4, 1.0), ("1 latent, cond and uncond", 1, 4.0))
WORKERS = 2
# How much larger than the demonstration's the latents are by default: at its own size four of them
# in a batch take a CPU hardly longer than one, which then spends its time reading weights.
SCALE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=int, default=SCALE, help="of the latents' height and width")
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"]
    measure(options.steps, options.repeats, options.scale)


def measure(steps: int, repeats: int, scale: int) -> None:
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.sd
    import torch

    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
    from asyncdiff_core.comfyui.run.pool import POOL
    from demo.shapes import DIFFUSION_MODEL, DIFFUSION_MODELS, text
    from demo.shapes.codec import CHANNELS, PATCH
    from demo.shapes.scenes import SIZE, split

    torch.set_num_threads(1)
    stock = comfy.sd.load_diffusion_model(str(DIFFUSION_MODELS / DIFFUSION_MODEL))
    plan = plan_for(",".join(["cpu"] * WORKERS), stages=WORKERS, replicas=1)
    ours = with_schedule(parallelize(stock, plan), AsyncSchedule(steps, split_batch=True))
    alone = stock.clone()
    alone.get_free_memory = lambda device: 0  # so that ComfyUI evaluates cond and uncond in turn
    positive = [[text.encode(split()[1][0].prompt), {}]]
    negative = [[text.encode(""), {}]]

    def sample(model: Any, noise: Any, cfg: float) -> Any:
        how = steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(noise)
        return comfy.sample.sample(model, noise, *how, seed=1, disable_pbar=True)

    def seconds(model: Any, noise: Any, cfg: float) -> float:
        started = time.perf_counter()
        sample(model, noise, cfg)
        return time.perf_counter() - started

    print(f"{steps} synchronous steps on {WORKERS} workers; stock on one thread: 1.00x\n")
    print("| batch | ideal | measured | equal |\n|---|---|---|---|")
    try:
        with torch.inference_mode():
            for name, number, cfg in CASES:
                side = scale * SIZE // PATCH
                shape = (number, CHANNELS, 1, side, side)
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
                expected = torch.cat([sample(alone, one, cfg) for one in noise.split(1)])
                is_equal = torch.equal(sample(ours, noise, cfg), expected)
                passes = number * (1 if cfg == 1 else 2)
                ideal = passes * WORKERS / (passes + WORKERS - 1)
                seconds(stock, noise, cfg)
                ratios = [
                    seconds(stock, noise, cfg) / seconds(ours, noise, cfg) for _ in range(repeats)
                ]
                measured = sorted(ratios)[repeats // 2]
                print(
                    f"| {name} | {ideal:.2f}x | {measured:.2f}x | {'yes' if is_equal else 'NO'} |"
                )
                if not is_equal:
                    sys.exit("the latents are other ones")
    finally:
        POOL.close()


if __name__ == "__main__":
    main()
