"""Run the samplers of workflows on a server, and take their times.

- The seconds are those of the sampler node. Model, prompts and empty latent come from ComfyUI's
  cache and pictures are decoded in a run of their own, so that only the sampler is left, and a node
  that writes its latent to disk (milliseconds). ComfyUI's record of what it ran is checked for
  that.
- A short run goes before, and does not count: it loads weights and starts workers.
- Then each workflow runs three times, with other seeds the first two times, and its fastest run
  counts: what else the machine does can only add time. Workflows that are compared take turns, so
  that a slow minute of the machine is one for all of them. The pictures are those of the last run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file

from demo import pictures
from harness import graphs
from harness.comfy_server import ComfyServer, ComfyServerError, prompt_seconds
from harness.graphs import Workflow

SHORT = {"steps": 5, "seed": 1000}  # the sampler's inputs in a run that does not count
OTHERS = ({"seed": 1001}, {"seed": 1002})  # and in those before the last


class Run(NamedTuple):
    """What a sampler node made, and in which time."""

    seconds: float
    latent: torch.Tensor
    report: dict[str, Any] | None  # what AsyncDiff's workers did, if it was theirs


class Sampled(NamedTuple):
    """The runs of one workflow."""

    cold: Run  # the first, a short one
    fastest: Run
    last: Run
    images: list[Image.Image]  # of the last


def sample(server: ComfyServer, workflows: Sequence[Workflow]) -> list[Sampled]:
    """Run the workflows' samplers: once to load everything, then to measure; and decode."""
    cold = [run_sampler(server, graphs.resampled(flow, **SHORT)) for flow in workflows]
    runs: list[list[Run]] = [[] for _ in workflows]
    for inputs in (*OTHERS, {}):
        for flow, its_runs in zip(workflows, runs, strict=True):
            its_runs.append(run_sampler(server, graphs.resampled(flow, **inputs), cached=True))
    sampled = []
    for flow, first, its_runs in zip(workflows, cold, runs, strict=True):
        files = server.files(server.run(flow))
        images = pictures.load([path for path in files if path.suffix == ".png"])
        sampled.append(Sampled(first, fastest(its_runs), its_runs[-1], images))
    return sampled


def fastest(runs: Sequence[Run]) -> Run:
    return min(runs, key=lambda run: run.seconds)


def run_sampler(server: ComfyServer, workflow: Workflow, *, cached: bool = False) -> Run:
    """Run the workflow up to its latent. With `cached`, nothing but the sampler may have to run."""
    workflow = graphs.without(workflow, "decode", "pictures")
    entry = server.run(workflow)
    messages = dict(entry["status"]["messages"])
    ran = workflow.keys() - set(messages["execution_cached"]["nodes"])
    if cached and ran != {"sampler", "latent"}:
        raise ComfyServerError(f"the time of more than the sampler was taken: {sorted(ran)}")
    [latent] = [path for path in server.files(entry) if path.suffix == ".latent"]
    prompt_id = entry["prompt"][1]
    reports = server.get("/asyncdiff/report")["runs"]
    found = [report for report in reports if report["prompt_id"] == prompt_id]
    return Run(
        prompt_seconds(entry), load_file(latent)["latent_tensor"], found[-1] if found else None
    )
