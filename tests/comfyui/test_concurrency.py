"""Several prompts, several samplers, several MODELs, and ComfyUI's ways to keep results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.comfy_server import ComfyServer
from harness.graphs import Workflow, node
from harness.lab import asyncdiff, fresh, last_report, latent, saved, workflow


def wan(seed: int = 1, steps: int = 4, workers: int = 2) -> Workflow:
    return asyncdiff(workflow("wan", seed=seed, steps=steps), workers=workers)


def refined(flow: Workflow, model: str = "model") -> Workflow:
    """The workflow with a second sampler, which goes on from the latent of the first one."""
    inputs = {**flow["sampler"]["inputs"], "model": [model, 0], "latent_image": ["sampler", 0]}
    second = node(flow["sampler"]["class_type"], **{**inputs, "denoise": 0.5, "seed": 77})
    save = node("SaveLatent", samples=["second", 0], filename_prefix="latents/second")
    return {**flow, "second": second, "second latent": save}


def pids(server: ComfyServer) -> list[int]:
    return [worker["pid"] for worker in last_report(server)["workers"]]


def test_several_prompts_in_the_queue(lab: ComfyServer) -> None:
    flows = [fresh(wan(seed)) for seed in (11, 12, 13, 11)]
    alone = [latent(lab, wan(seed)) for seed in (11, 12, 13)]
    warm = pids(lab)
    ids = [lab.submit(flow) for flow in flows]
    results = [saved(lab, lab.wait(prompt_id)) for prompt_id in ids]
    for (result,), expected in zip(results, [*alone, alone[0]], strict=True):
        assert torch.equal(result, expected)
    assert pids(lab) == warm


def test_a_canceled_prompt_leaves_the_queue_to_the_others(lab: ComfyServer) -> None:
    expected = latent(lab, wan(21))
    first, second = lab.submit(fresh(wan(22, steps=400))), lab.submit(fresh(wan(21)))
    lab.post("/queue", {"delete": [lab.submit(fresh(wan(23, steps=400)))]})
    while not lab.get("/queue")["queue_running"]:
        pass
    lab.post("/interrupt", {"prompt_id": first})
    (result,) = saved(lab, lab.wait(second))
    assert torch.equal(result, expected)


def test_one_model_in_two_samplers(lab: ComfyServer) -> None:
    stock = workflow("wan", seed=31, steps=4)
    expected = saved(lab, lab.run(fresh_first(refined(stock))))
    full = refined(asyncdiff(stock, warm_up=4))
    results = saved(lab, lab.run(fresh_first(full)))
    assert len(results) == 2
    assert all(map(torch.equal, results, expected))


def test_two_distributed_models_in_one_graph(lab: ComfyServer) -> None:
    """Base and refiner: two groups, of two workers and of three, each warm for the next prompt."""
    stock = workflow("wan", seed=41, steps=4)
    expected = saved(lab, lab.run(fresh_first(refined(stock))))
    flow = asyncdiff(stock, warm_up=4)
    loader = flow["model"]
    flow["refiner"] = node(
        loader["class_type"], **{**loader["inputs"], "devices": "cpu,cpu,cpu", "stages": 3}
    )
    flow = refined(flow, model="refiner")
    groups = []
    for _ in range(2):
        assert all(map(torch.equal, saved(lab, lab.run(fresh_first(flow))), expected))
        runs = lab.get("/asyncdiff/report")["runs"][-2:]
        groups.append([[worker["pid"] for worker in run["workers"]] for run in runs])
    assert [len(group) for group in groups[0]] == [2, 3]
    assert groups[0] == groups[1]


def fresh_first(flow: Workflow) -> Workflow:
    """The workflow, to be sampled again: both samplers, since the second follows the first."""
    renewed = fresh({name: one for name, one in flow.items() if name != "second"})
    return {**flow, **renewed}


@pytest.mark.parametrize("flags", [["--cache-none"], ["--cache-lru", "5"], ["--cache-classic"]])
def test_cache_modes(
    lab: ComfyServer, comfyui_path: Path, tmp_path: Path, flags: list[str]
) -> None:
    """A cached MODEL, or one that is made anew for every prompt, finds the same workers."""
    server = ComfyServer(comfyui_path, tmp_path, args=flags, env={"OMP_NUM_THREADS": "1"})
    server.models.symlink_to(lab.models)
    with server:
        first = latent(server, wan(51))
        warm = pids(server)
        latent(server, wan(52))
        assert torch.equal(latent(server, wan(51)), first)
        assert pids(server) == warm
