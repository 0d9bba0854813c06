"""Measured against predicted time of plans, on CPU workers of one thread each.

    python3 dev.py python -m benchmarks.plans [--steps 20] [--warm-up 1] [--repeats 3]

One model (an SD 1.5 type with fewer blocks and random weights), one process, runs side by side:
stock ComfyUI on one thread, then each plan that the machine has cores for, in turn, several times;
the fastest of each counts, since what else the machine does can only add time. *Predicted* is the
planner's ideal time; *slowest stage* uses, in place of the planner's costs, what the slowest worker
really computed while all of them ran, so what remains between it and the measured time is overhead.
*Step / slowest* is the median step after the warm-up, at the sampler, in units of what the slowest
stage computes in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]
# (stages, stride, replicas)
Plan = tuple[int, int, int]
PLANS: tuple[Plan, ...] = ((2, 1, 1), (1, 1, 2), (3, 1, 1), (4, 1, 1), (3, 2, 1), (2, 1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--plans", nargs="+", type=plan_of, default=PLANS, metavar="N,S,R", help="only these"
    )
    parser.add_argument("--levels", type=int, choices=(2, 3), default=3, help="of the model")
    options = parser.parse_args()
    least = options.warm_up + 1 + max(stride for _, stride, _ in options.plans)
    if options.steps < least:
        parser.error(f"--steps: at least {least}, so that there are two rounds after the warm-up")
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"]
    measure(options.steps, options.warm_up, options.repeats, options.plans, options.levels)


def plan_of(text: str) -> Plan:
    stages, stride, replicas = map(int, text.split(","))
    return stages, stride, replicas


def measure(steps: int, warm_up: int, repeats: int, plans: Sequence[Plan], num_levels: int) -> None:
    """Print the table."""
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.sd
    import torch

    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
    from asyncdiff_core.comfyui.run.history import last_runs
    from asyncdiff_core.comfyui.run.pool import POOL
    from asyncdiff_core.planning.planner import predicted_speedup
    from asyncdiff_core.reports.timeline import (
        slowest_stage_busy_seconds,
        step_seconds_after_warm_up,
    )
    from harness import checkpoints

    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    generator = torch.Generator().manual_seed(0)
    positive = [[torch.randn(1, 77, 768, generator=generator), {}]]
    negative = [[torch.randn(1, 77, 768, generator=generator), {}]]
    latent = torch.zeros(1, 4, 32, 32)
    noise = torch.randn(latent.shape, generator=generator)

    def seconds(model: Any, number: int) -> float:
        inputs = (noise, number, 5.0, "euler", "normal", positive, negative, latent)
        start = time.perf_counter()
        comfy.sample.sample(model, *inputs, seed=1, disable_pbar=True)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = checkpoints.write_sd15(
            Path(folder) / "model.safetensors", levels=checkpoints.THREE_LEVELS[:num_levels]
        )
        stock = comfy.sd.load_checkpoint_guess_config(str(file), False, False)[0]
        subjects: list[tuple[Plan | None, Any]] = [(None, stock)]
        for stages, stride, replicas in plans:
            workers = replicas * (stages + stride - 1)
            if workers <= cores:
                plan = plan_for(",".join(["cpu"] * workers), stages, replicas, stride)
                model = with_schedule(parallelize(stock, plan), AsyncSchedule(warm_up))
                subjects.append(((stages, stride, replicas), model))
        best: dict[Any, float] = {}
        reports: dict[Any, dict[str, Any]] = {}
        for repeat in range(repeats + 1):
            for name, model in subjects:
                if name is not None:
                    seconds(model, warm_up + 2)  # loads, and is not counted
                took = seconds(model, 3 if repeat == 0 else steps)
                if repeat == 0 or took >= best.get(name, float("inf")):
                    continue
                best[name] = took
                if name is not None:
                    reports[name] = last_runs()[-1]
        print(f"\n{steps} steps, warm-up {warm_up}, CFG; stock on one thread: {best[None]:.2f} s\n")
        print("| N, S, R | seconds | speed-up | predicted | slowest stage alone | step / slowest |")
        print("|---|---|---|---|---|---|")
        for name, model in subjects[1:]:
            assert name is not None
            plan = model.remote.request.candidates()[0]
            group = POOL.peek(model.remote.key)
            assert group is not None
            ideal = predicted_speedup(
                plan, num_conds=2, steps=steps, num_sync=warm_up, costs=group.planner.unit_costs
            )
            report = reports[name]
            step = step_seconds_after_warm_up(report)
            stage = slowest_stage_busy_seconds(report)
            assert step is not None and stage is not None
            rounds = warm_up * plan.stages + -(-(steps - warm_up) // plan.stride)
            print(
                f"| {', '.join(map(str, name))} | {best[name]:.2f} | "
                f"{best[None] / best[name]:.2f}x | {ideal:.2f}x ({best[None] / ideal:.2f} s) | "
                f"{rounds * slowest_busy(report):.2f} s | {step / stage:.3f} |"
            )
        POOL.close()


def slowest_busy(report: dict[str, Any]) -> float:
    """Median seconds that the slowest worker computed per round."""
    return max(
        statistics.median(span["compute"] for span in worker["spans"])
        for worker in report["workers"]
    )


if __name__ == "__main__":
    main()
