"""Sample two models with stock ComfyUI and with AsyncDiff, and set the results side by side.

    python -m demo.run --comfyui PATH --out DIR [--devices LIST]

Writes into DIR, for each model: its pictures, a comparison, a timeline of the workers; and for all
of them `report.json`.

How it is measured:

- A real ComfyUI runs the workflows, through its HTTP API. A speed-up compares like with like: the
  stock run has the resources of one worker (on CPUs one thread). What stock ComfyUI does with the
  whole machine stands beside it.
- The seconds are those of the sampler node. Model, text and empty latent come from ComfyUI's cache
  and pictures are decoded in a run of their own, so that only the sampler is left, and a node that
  writes its latent to disk (milliseconds). ComfyUI's record of what it ran is checked for that.
- A short run goes before, and does not count. It loads weights and starts workers; how long that
  takes is in `seconds_to_first_step_cold`.
- Then each workflow runs twice, with another seed the first time, and the faster run counts: what
  else the machine does can only add time. The pictures are those of the second run. Stock ComfyUI
  with the whole machine runs once, since nothing is claimed against it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file

from asyncdiff_core.timeline import (
    draw_timeline,
    slowest_stage_busy_seconds,
    step_seconds_after_warm_up,
)
from demo import checkpoints, graphs, pictures
from demo.comfy_server import ComfyServer, ComfyServerError, accelerator, prompt_seconds
from demo.graphs import Workflow

STARTED = time.monotonic()

STEPS = 30
WARM_UP = 1  # the least there is: the pipeline is full for all other steps
SHORT = {"steps": 3, "seed": 1000}  # the sampler's inputs in a run that does not count
OTHER = {"seed": 1001}  # and in the first of two runs that do

SD15, WAN, VIDEO_VAE = "demo_sd15.safetensors", "demo_wan.safetensors", "demo_taehv.safetensors"

# What is printed of `report.json`.
TABLE = (
    ("model", "model", "{}"),
    ("stock, 1 worker's share", "stock_seconds", "{:.1f} s"),
    ("stock, whole machine", "stock_whole_machine_seconds", "{:.1f} s"),
    ("AsyncDiff", "asyncdiff_seconds", "{:.1f} s"),
    ("speed-up", "speedup", "{:.2f}x"),
    ("per step", "step_seconds_after_warm_up", "{:.3f} s"),
    ("slowest stage", "slowest_stage_busy_seconds", "{:.3f} s"),
    ("PSNR", "psnr_db", "{:.1f} dB"),
    ("difference at full warm-up", "max_abs_diff_full_warm_up", "{:g}"),
)


@dataclass(frozen=True)
class Subject:
    """One model of the demonstration, and the stock workflow that samples it."""

    name: str  # what its files are called
    title: str
    workflow: Workflow
    weights: Path  # the file with the diffusion model, ...
    prefix: str  # ... whose keys begin with this


class Run(NamedTuple):
    """What a sampler node made, and in which time."""

    seconds: float
    latent: torch.Tensor
    prompt_id: str


class Sampled(NamedTuple):
    """The runs of one workflow."""

    cold: Run  # the first, a short one
    fastest: Run
    last: Run


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument(
        "--devices", default="auto", help="one per stage; auto: every GPU, or two CPU workers"
    )
    options = parser.parse_args()
    if not (options.comfyui / "main.py").is_file():
        parser.error(f"{options.comfyui} is not ComfyUI's folder: it holds no main.py")
    try:
        demonstrate(options.comfyui, options.out.absolute(), options.devices)
    except ComfyServerError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def demonstrate(comfyui: Path, out: Path, devices: str) -> None:
    """Run everything, and write and print the results."""
    base_dir = out / "comfyui"
    say("writing the checkpoints, with random weights")
    subjects = write_subjects(base_dir / "models")

    if devices == "auto":
        devices = every_gpu() or "cpu,cpu"
    on_cpu = set(devices.split(",")) == {"cpu"}
    args = ["--cpu"] if on_cpu else []
    # The server passes its number of threads on: the workers share it, one each at least.
    one_worker = {"OMP_NUM_THREADS": "1"} if on_cpu else {}

    say("starting ComfyUI with the whole machine")
    with ComfyServer(comfyui, base_dir, args=args) as server:
        whole_machine = {}
        for subject in subjects:
            say(f"{subject.name}: stock nodes")
            run_sampler(server, graphs.resampled(subject.workflow, **SHORT))
            run = run_sampler(server, subject.workflow, cached=True)
            whole_machine[subject.name] = run.seconds

    say("starting ComfyUI with one worker's share of the machine")
    with ComfyServer(comfyui, base_dir, args=args, env=one_worker) as server:
        results = [
            compare(server, subject, devices, whole_machine[subject.name], out)
            for subject in subjects
        ]

    (out / "report.json").write_text(json.dumps({"runs": results}, indent=2) + "\n")
    print(f"\n{table(results)}\n\nPictures, comparisons, timelines and report.json are in {out}")


def every_gpu() -> str:
    """All CUDA devices as a list, or nothing if there are not several.

    The nodes' own `auto` would make replicas of the pipeline, which have nothing to show: what is
    demonstrated here are stages.
    """
    if accelerator(sys.executable) != "cuda":
        return ""
    count = torch.cuda.device_count()
    return ",".join(f"cuda:{i}" for i in range(count)) if count > 1 else ""


def write_subjects(models: Path) -> list[Subject]:
    """Write the checkpoints where ComfyUI looks for them."""
    sd15 = checkpoints.write_sd15(models / "checkpoints" / SD15)
    wan = checkpoints.write_wan(models / "diffusion_models" / WAN)
    checkpoints.write_video_vae(models / "vae" / VIDEO_VAE)
    return [
        Subject(
            "sd15",
            "SD 1.5 type, fewer blocks, random weights",
            graphs.sd15(SD15, steps=STEPS),
            sd15,
            "model.diffusion_model.",
        ),
        Subject(
            "wan",
            "Wan 2.1 type, small, random weights",
            graphs.wan(WAN, SD15, VIDEO_VAE, steps=STEPS),
            wan,
            "",
        ),
    ]


def compare(
    server: ComfyServer, subject: Subject, devices: str, whole_machine_seconds: float, out: Path
) -> dict[str, Any]:
    """Sample a subject with stock nodes and with AsyncDiff; its entry in `report.json`."""
    say(f"{subject.name}: stock nodes")
    stock = sample(server, subject.workflow)
    stock_frames = decode(server, subject.workflow)

    say(f"{subject.name}: AsyncDiff on {devices}")
    parallel = graphs.asyncdiff(subject.workflow, devices=devices, warm_up=WARM_UP)
    fast = sample(server, parallel)
    report = report_of(server, fast.fastest)
    frames = decode(server, parallel)

    say(f"{subject.name}: AsyncDiff with every step synchronous")
    exact = run_sampler(server, graphs.resampled(parallel, warm_up=STEPS))

    psnr = pictures.psnr(stock_frames, frames)
    result = {
        "model": report["model"],
        "steps": STEPS,
        "warm_up": WARM_UP,
        "workers": len(report["workers"]),
        "stock_seconds": stock.fastest.seconds,
        "stock_whole_machine_seconds": whole_machine_seconds,
        "asyncdiff_seconds": fast.fastest.seconds,
        "speedup": stock.fastest.seconds / fast.fastest.seconds,
        "step_seconds_after_warm_up": step_seconds_after_warm_up(report),
        "slowest_stage_busy_seconds": slowest_stage_busy_seconds(report),
        "max_abs_diff_full_warm_up": (exact.latent - stock.last.latent).abs().max().item(),
        "psnr_db": psnr if math.isfinite(psnr) else None,  # JSON knows no infinity
        "weight_bytes_per_worker": [worker["weight_bytes"] for worker in report["workers"]],
        "resident_bytes_per_worker": [worker["resident_bytes"] for worker in report["workers"]],
        "model_weight_bytes": tensor_bytes(subject.weights, subject.prefix),
        "seconds_to_first_step_cold": report_of(server, fast.cold)["seconds_to_first_step"],
        "seconds_to_first_step_warm": report["seconds_to_first_step"],
        "devices": report["plan"]["devices"],
        "latent_shape": list(stock.last.latent.shape),
        "cpu_count": os.cpu_count(),
    }
    save_pictures(out, f"{subject.name}-stock", stock_frames)
    save_pictures(out, f"{subject.name}-asyncdiff", frames)
    comparison(subject, result, stock_frames, frames).save(out / f"{subject.name}-comparison.png")
    draw_timeline(report).save(out / f"{subject.name}-timeline.png")
    return result


# Running workflows


def sample(server: ComfyServer, workflow: Workflow) -> Sampled:
    """Run the workflow's sampler: once to load everything, then twice to measure."""
    cold = run_sampler(server, graphs.resampled(workflow, **SHORT))
    first = run_sampler(server, graphs.resampled(workflow, **OTHER), cached=True)
    last = run_sampler(server, workflow, cached=True)
    return Sampled(cold, min(first, last, key=lambda run: run.seconds), last)


def run_sampler(server: ComfyServer, workflow: Workflow, *, cached: bool = False) -> Run:
    """Run the workflow up to its latent. With `cached`, nothing but the sampler may have to run."""
    workflow = graphs.without(workflow, "decode", "picture", "vae")
    entry = server.run(workflow)
    messages = dict(entry["status"]["messages"])
    ran = workflow.keys() - set(messages["execution_cached"]["nodes"])
    if cached and ran != {"sampler", "latent"}:
        raise ComfyServerError(f"the time of more than the sampler was taken: {sorted(ran)}")
    [latent] = [path for path in server.files(entry) if path.suffix == ".latent"]
    prompt_id = entry["prompt"][1]
    return Run(prompt_seconds(entry), load_file(latent)["latent_tensor"], prompt_id)


def decode(server: ComfyServer, workflow: Workflow) -> list[Image.Image]:
    """The frames of a workflow whose sampler has just run, and is therefore cached."""
    files = server.files(server.run(workflow))
    return pictures.load([path for path in files if path.suffix == ".png"])


def report_of(server: ComfyServer, run: Run) -> dict[str, Any]:
    """What the workers did in a run."""
    reports = server.get("/asyncdiff/report")["runs"]
    found = [report for report in reports if report["prompt_id"] == run.prompt_id]
    if not found:
        raise ComfyServerError(f"no report of prompt {run.prompt_id}")
    return found[-1]


# Results


def tensor_bytes(path: Path, prefix: str) -> int:
    """The size of those tensors in a safetensors file whose names begin with `prefix`."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    ranges = (
        entry["data_offsets"]
        for name, entry in header.items()
        if name.startswith(prefix) and name != "__metadata__"
    )
    return sum(end - begin for begin, end in ranges)


def save_pictures(out: Path, name: str, frames: list[Image.Image]) -> None:
    """A still picture; a video as a strip of its frames and, to watch, as a WebP."""
    pictures.strip(frames).save(out / f"{name}.png")
    if len(frames) > 1:
        frames[0].save(
            out / f"{name}.webp", save_all=True, append_images=frames[1:], duration=125, loop=0
        )


def comparison(
    subject: Subject,
    result: dict[str, Any],
    stock_frames: list[Image.Image],
    frames: list[Image.Image],
) -> Image.Image:
    """Stock, AsyncDiff and what lies between them, with the figures."""
    stock, fast = pictures.strip(stock_frames), pictures.strip(frames)
    difference, factor = pictures.difference(stock, fast)
    psnr = "no difference" if result["psnr_db"] is None else f"PSNR {result['psnr_db']:.1f} dB"
    remaining = result["max_abs_diff_full_warm_up"]
    remaining = f"{remaining:g} in the latent" if remaining else "none at all"
    panels = (
        pictures.Panel(
            stock,
            (
                "Stock ComfyUI",
                f"{result['stock_seconds']:.1f} s with one worker's share",
                f"{result['stock_whole_machine_seconds']:.1f} s with the whole machine",
            ),
        ),
        pictures.Panel(
            fast,
            (
                f"AsyncDiff, {result['workers']} workers",
                f"{result['asyncdiff_seconds']:.1f} s on {', '.join(result['devices'])}",
                f"{result['speedup']:.2f}x as fast as with one worker's share",
            ),
        ),
        pictures.Panel(
            difference,
            (f"Difference x {factor}", psnr, f"with full warm-up: {remaining}"),
        ),
    )
    title = f"{subject.title}: {result['steps']} steps, warm-up {result['warm_up']}"
    return pictures.side_by_side(title, panels)


def table(results: list[dict[str, Any]]) -> str:
    """The main figures, a column per model."""
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
