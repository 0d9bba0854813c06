"""Sample the demonstration's model with stock ComfyUI and with AsyncDiff, side by side.

    python -m demo.run --comfyui PATH --out DIR [--devices LIST]

The model draws coloured shapes (docs/demo-model.md); a batch has a picture for each of sixteen
prompts that it was not trained with. Writes into DIR: `comparison.png`; the pictures of every run,
and a timeline of the workers of AsyncDiff's; and `report.json`.

A real ComfyUI runs the workflow, through its HTTP API; `sampling` says how it is timed. A speed-up
compares like with like: the stock run has the resources of one worker: on CPUs one thread, and the
settings of the C library's allocator that workers get. What stock ComfyUI does without these
settings, and with the whole machine, stands beside it, three times what a third of the steps takes.
An AsyncDiff run with all steps synchronous must give the stock run's latent.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from asyncdiff_core.algorithm.schedule import DEFAULT_WARM_UP
from asyncdiff_core.planning.plan import ParallelPlan
from asyncdiff_core.planning.planner import predicted_speedup
from asyncdiff_core.reports.timeline import (
    draw_timeline,
    slowest_stage_busy_seconds,
    step_seconds_after_warm_up,
)
from asyncdiff_core.workers.process import ALLOCATOR
from demo import pictures, shapes
from demo.sampling import OTHERS, SHORT, Run, Sampled, fastest, run_sampler, sample
from demo.shapes import checker
from demo.shapes.scenes import Scene, split
from demo.workflow import shapes_workflow
from harness import graphs
from harness.comfy_server import ComfyServer, ComfyServerError, accelerator
from harness.graphs import Workflow

STARTED = time.monotonic()

NUM_PICTURES, COLUMNS = 16, 4
STEPS = 30

# What is printed of `report.json`.
TABLE = (
    ("AsyncDiff with", "setting", "{}"),
    ("workers", "workers", "{}"),
    ("stock, 1 worker's share", "stock_seconds", "{:.1f} s"),
    ("the same, C library as it is", "stock_default_allocator_seconds", "{:.1f} s"),
    ("stock, whole machine", "stock_whole_machine_seconds", "{:.1f} s"),
    ("AsyncDiff", "asyncdiff_seconds", "{:.1f} s"),
    ("speed-up", "speedup", "{:.2f}x"),
    ("ideal speed-up", "ideal_speedup", "{:.2f}x"),
    ("per step", "step_seconds_after_warm_up", "{:.3f} s"),
    ("slowest stage", "slowest_stage_busy_seconds", "{:.3f} s"),
    ("pictures right", "accuracy", "{:.0%}"),
    ("pictures right, stock", "stock_accuracy", "{:.0%}"),
    ("PSNR", "psnr_db", "{:.1f} dB"),
    ("difference at full warm-up", "max_abs_diff_full_warm_up", "{:g}"),
)


class Setting(NamedTuple):
    """One way to spread the model over workers."""

    name: str  # what its files are called
    stages: int
    stride: int

    @property
    def title(self) -> str:
        return f"N={self.stages}" + (f", stride {self.stride}" if self.stride > 1 else "")

    def plan(self, devices: Sequence[str]) -> ParallelPlan:
        """The devices in turn, and over again where there are fewer than workers."""
        num_workers = self.stages + self.stride - 1
        chosen = islice(cycle(devices), num_workers)
        return ParallelPlan(tuple(chosen), self.stages, stride=self.stride)


SETTINGS = (Setting("n2", stages=2, stride=1), Setting("n2-stride2", stages=2, stride=2))


class Distributed(NamedTuple):
    """AsyncDiff's runs in one setting."""

    setting: Setting
    plan: ParallelPlan
    sampled: Sampled
    exact: Run  # every step synchronous


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--devices",
        default="auto",
        help="the workers' devices, taken in turn; auto: all GPUs if there are several, or the CPU",
    )
    options = parser.parse_args()
    if not (options.comfyui / "main.py").is_file():
        parser.error(f"{options.comfyui} is not ComfyUI's folder: it holds no main.py")
    devices = every_gpu() or ["cpu"] if options.devices == "auto" else options.devices.split(",")
    try:
        demonstrate(options.comfyui, options.out.absolute(), devices)
    except ComfyServerError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def every_gpu() -> list[str]:
    """All CUDA devices, or none if there are not several."""
    if accelerator(sys.executable) != "cuda":
        return []
    count = torch.cuda.device_count()
    return [f"cuda:{i}" for i in range(count)] if count > 1 else []


def demonstrate(comfyui: Path, out: Path, devices: Sequence[str]) -> None:
    """Run everything, and write and print the results."""
    scenes = split()[1][:NUM_PICTURES]
    workflow = shapes_workflow([scene.prompt for scene in scenes], steps=STEPS)
    on_cpu = set(devices) == {"cpu"}
    # The server passes its number of threads on: the workers share it, one each at least.
    one_worker = {"OMP_NUM_THREADS": "1"} if on_cpu else {}

    def comfyui_with(env: dict[str, str]) -> ComfyServer:
        # Workflows take turns, and ComfyUI shall not forget the others' models meanwhile.
        args = ["--cache-lru", "50", *(["--cpu"] if on_cpu else [])]
        return ComfyServer(comfyui, out / "comfyui", args=args, env=env, more_packs=[shapes.PACK])

    def stock_seconds(env: dict[str, str]) -> float:
        with comfyui_with(env) as server:
            say("stock nodes")
            run_sampler(server, graphs.resampled(workflow, **SHORT))
            # A third of the steps: where something else runs as well, its threads wait for each
            # other.
            brief = [graphs.resampled(workflow, steps=STEPS // 3, **inputs) for inputs in OTHERS]
            return 3 * fastest([run_sampler(server, flow) for flow in brief]).seconds

    say("starting ComfyUI with the whole machine")
    others = {"stock_whole_machine_seconds": stock_seconds({})}
    say("starting ComfyUI with one worker's share of the machine")
    others["stock_default_allocator_seconds"] = stock_seconds(one_worker)

    say("starting it again, with a worker's allocator as well")
    with comfyui_with({**ALLOCATOR, **one_worker}) as server:
        plans = [setting.plan(devices) for setting in SETTINGS]
        twins = [distributed(workflow, plan) for plan in plans]
        for setting, plan in zip(SETTINGS, plans, strict=True):
            say(f"AsyncDiff with {setting.title} on {', '.join(plan.devices)}")
        say("stock nodes and these take turns")
        stock, *ours = sample(server, [workflow, *twins])
        say("every step synchronous")
        exact = [run_sampler(server, graphs.resampled(twin, warm_up=STEPS)) for twin in twins]
    runs = [Distributed(*each) for each in zip(SETTINGS, plans, ours, exact, strict=True)]

    results = [figures(run, stock, others, scenes) for run in runs]
    write(out, scenes, stock, runs, results)
    print(f"\n{table(results)}\n")
    for result in results:
        if result["crowding"]:
            print(f"{result['setting']}: {result['crowding']}")
    print(f"comparison.png, pictures, timelines and report.json are in {out}")


def distributed(workflow: Workflow, plan: ParallelPlan) -> Workflow:
    """The workflow's twin on the workers of `plan`, with the nodes' own schedule."""
    return graphs.asyncdiff(
        workflow,
        devices=",".join(plan.devices),
        stages=plan.stages,
        stride=plan.stride,
        warm_up=DEFAULT_WARM_UP,
    )


# Results


def figures(
    run: Distributed, stock: Sampled, others: Mapping[str, float], scenes: Sequence[Scene]
) -> dict[str, Any]:
    """A run's entry in `report.json`."""
    ours, report = run.sampled, run.sampled.fastest.report
    assert report is not None and ours.cold.report is not None
    psnr = pictures.psnr(stock.images, ours.images)
    difference = (run.exact.latent - stock.last.latent).abs().max().item()
    workers = report["workers"]
    # Two conds, cond and uncond; units of equal cost, as a transformer's blocks are.
    workload: dict[str, Any] = {"num_conds": 2, "steps": STEPS, "num_sync": DEFAULT_WARM_UP}
    costs = [1.0] * workers[0]["num_units"]
    return {
        "setting": run.setting.title,
        "model": report["model"],
        "steps": STEPS,
        "warm_up": DEFAULT_WARM_UP,
        "stages": run.plan.stages,
        "stride": run.plan.stride,
        "workers": len(workers),
        "devices": list(run.plan.devices),
        "cpu_count": num_cores(),
        "crowding": crowding(run.plan.devices),
        "stock_seconds": stock.fastest.seconds,
        **others,
        "asyncdiff_seconds": ours.fastest.seconds,
        "speedup": stock.fastest.seconds / ours.fastest.seconds,
        "ideal_speedup": predicted_speedup(run.plan, **workload, costs=costs),
        "step_seconds_after_warm_up": step_seconds_after_warm_up(report),
        "slowest_stage_busy_seconds": slowest_stage_busy_seconds(report),
        "accuracy": share(shown(ours, scenes)),
        "stock_accuracy": share(shown(stock, scenes)),
        "psnr_db": psnr if math.isfinite(psnr) else None,  # JSON knows no infinity
        "max_abs_diff_full_warm_up": difference,
        "weight_bytes_per_worker": [worker["weight_bytes"] for worker in workers],
        "resident_bytes_per_worker": [worker["resident_bytes"] for worker in workers],
        "model_weight_bytes": tensor_bytes(shapes.DIFFUSION_MODELS / shapes.DIFFUSION_MODEL),
        "seconds_to_first_step_cold": ours.cold.report["seconds_to_first_step"],
        "seconds_to_first_step_warm": report["seconds_to_first_step"],
        "latent_shape": list(stock.last.latent.shape),
    }


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def crowding(devices: Sequence[str]) -> str | None:
    """Why a plan cannot be as fast as it should on these devices; None if nothing is known."""
    gpus = [device for device in devices if device != "cpu"]
    for workers, places, kind in (
        (len(devices) - len(gpus), num_cores(), "core"),
        (len(gpus), len(set(gpus)), "GPU"),
    ):
        if workers > places:
            shared = f"{places} {kind}" + ("s" if places > 1 else "")
            return f"{workers} workers share {shared}: the full speed-up cannot show here"
    return None


def shown(sampled: Sampled, scenes: Sequence[Scene]) -> list[bool]:
    """Whether each picture shows what its prompt asks for."""
    return [
        checker.read(np.asarray(image) / 255).shows(scene)
        for image, scene in zip(sampled.images, scenes, strict=True)
    ]


def share(which: Sequence[bool]) -> float:
    return sum(which) / len(which)


def tensor_bytes(path: Path) -> int:
    """The size of the tensors in a safetensors file."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header


def write(
    out: Path,
    scenes: Sequence[Scene],
    stock: Sampled,
    runs: Sequence[Distributed],
    results: Sequence[dict[str, Any]],
) -> None:
    """Write the files of all results."""
    sampled = {"stock": stock, **{run.setting.name: run.sampled for run in runs}}
    right = {name: shown(one, scenes) for name, one in sampled.items()}
    prompts = [
        {"prompt": scene.prompt, **{name: each[index] for name, each in right.items()}}
        for index, scene in enumerate(scenes)
    ]
    report = {"prompts": prompts, "runs": results}
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")

    captions = [stock_caption(results[0]), *map(caption, results)]
    panels = []
    for (name, one), lines in zip(sampled.items(), captions, strict=True):
        grid = pictures.grid(one.images, COLUMNS, [not each for each in right[name]])
        grid.save(out / f"{name}.png")
        panels.append(pictures.Panel(grid, lines))
    pictures.side_by_side(
        "The demonstration's model, on prompts that it was not trained with: "
        f"{STEPS} steps, warm-up {DEFAULT_WARM_UP}",
        panels,
        "The prompts, in the places of their pictures; a picture that does not show its prompt has "
        "a red frame",
        [scene.prompt for scene in scenes],
        COLUMNS,
    ).save(out / "comparison.png")
    for run in runs:
        assert run.sampled.fastest.report is not None
        draw_timeline(run.sampled.fastest.report).save(out / f"{run.setting.name}-timeline.png")


def stock_caption(result: dict[str, Any]) -> list[str]:
    return [
        "Stock ComfyUI",
        f"{result['stock_seconds']:.1f} s with one worker's share of the machine",
        f"{result['stock_whole_machine_seconds']:.1f} s with the whole machine",
        right_in_words(result["stock_accuracy"]),
    ]


def caption(result: dict[str, Any]) -> list[str]:
    psnr = "no difference" if result["psnr_db"] is None else f"PSNR {result['psnr_db']:.1f} dB"
    difference = result["max_abs_diff_full_warm_up"]
    exact = f"up to {difference:g} in the latent" if difference else "no difference at all"
    lines = [
        f"AsyncDiff, {result['setting']}: {result['workers']} workers",
        f"{result['asyncdiff_seconds']:.1f} s on {', '.join(result['devices'])}: "
        f"{result['speedup']:.2f}x as fast as stock (ideal: {result['ideal_speedup']:.2f}x)",
        f"{psnr} against stock; with full warm-up {exact}",
        right_in_words(result["accuracy"]),
    ]
    if result["crowding"]:
        lines.insert(2, result["crowding"])
    return lines


def right_in_words(accuracy: float) -> str:
    return f"{accuracy * NUM_PICTURES:.0f} of {NUM_PICTURES} pictures show what their prompts ask"


def table(results: Sequence[dict[str, Any]]) -> str:
    """The main figures, a column per setting."""
    lines = [
        [heading, *("-" if run[key] is None else form.format(run[key]) for run in results)]
        for heading, key, form in TABLE
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def say(what: str) -> None:
    print(f"[{time.monotonic() - STARTED:4.0f} s] {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
