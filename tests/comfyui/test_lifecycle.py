"""Workers and the life of ComfyUI: cancel, unload, faults, and no process left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from benchmarks.reliability.processes import is_alive, left_of, wait_until
from harness.comfy_server import ComfyServer, ComfyServerError, PromptFailed
from harness.graphs import Workflow
from harness.lab import asyncdiff, last_report, latent, workflow, write_models

from . import sockets


def run_and_get_pids(server: ComfyServer, flow: Workflow) -> list[int]:
    latent(server, flow)
    return [worker["pid"] for worker in last_report(server)["workers"]]


def is_sampling(server: ComfyServer, prompt_id: str) -> bool:
    """Whether some steps of the prompt are done."""
    runs = [group["run"] for group in server.get("/asyncdiff/status")["groups"]]
    return any(run and run["prompt_id"] == prompt_id and run["evaluations"] > 2 for run in runs)


def test_cancel_leaves_the_model_warm(lab: ComfyServer) -> None:
    flow = asyncdiff(workflow("sd15", seed=31, steps=40), warm_up=2)
    expected = latent(lab, flow)
    pids = [worker["pid"] for worker in last_report(lab)["workers"]]
    loads = lab.log_text().count("UNetModel cut into")
    for step in (1, 2, 3, 17):
        again = asyncdiff(workflow("sd15", seed=1000 + step, steps=40), warm_up=2)
        events = sockets.run(lab, again, interrupt_at=step)
        assert "execution_interrupted" in events.names()
        assert events.progress()[-1][0] < 40
    latent(lab, asyncdiff(workflow("sd15", seed=32, steps=5)))
    assert torch.equal(latent(lab, flow), expected)
    assert [worker["pid"] for worker in last_report(lab)["workers"]] == pids
    assert lab.log_text().count("UNetModel cut into") == loads


def test_dead_worker_is_named_and_replaced(lab: ComfyServer) -> None:
    flow = asyncdiff(workflow("sd15", seed=41), warm_up=1)
    expected = latent(lab, flow)
    pids = [worker["pid"] for worker in last_report(lab)["workers"]]
    long_flow = asyncdiff(workflow("sd15", seed=42, steps=200), warm_up=1)
    prompt_id = lab.submit(long_flow)
    assert wait_until(lambda: is_sampling(lab, prompt_id), 60, 0.02)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(PromptFailed) as caught:
        lab.wait(prompt_id, timeout=30)
    assert caught.value.node_type == "AsyncDiffKSampler"
    message = caught.value.exception_message
    assert "worker 1 on cpu was ended by signal SIGKILL" in message
    assert "worker-1.log" in message
    assert left_of(pids, 5) == []
    assert torch.equal(latent(lab, flow), expected)


def test_idle_worker_death_is_noticed_by_the_next_prompt(lab: ComfyServer) -> None:
    flow = asyncdiff(workflow("sd15", seed=51), warm_up=1)
    expected = latent(lab, flow)
    pids = [worker["pid"] for worker in last_report(lab)["workers"]]
    os.kill(pids[0], signal.SIGKILL)
    assert torch.equal(
        latent(lab, asyncdiff(workflow("sd15", seed=52))).isfinite().all(), torch.tensor(True)
    )
    assert torch.equal(latent(lab, flow), expected)


@pytest.mark.parametrize("how", ["stop", "kill", "restart"])
def test_no_worker_outlives_comfyui(comfyui_path: Path, tmp_path: Path, how: str) -> None:
    packs = [Path(__file__).parent / "restart_pack"]
    server = ComfyServer(comfyui_path, tmp_path, env={"OMP_NUM_THREADS": "1"}, more_packs=packs)
    write_models(server.models)
    with server:
        pids = run_and_get_pids(server, asyncdiff(workflow("wan"), workers=3))
        assert len(pids) == 3 and all(is_alive(pid) for pid in pids)
        folders = list(tmp_path.glob("user/asyncdiff/asyncdiff-*"))
        assert len(folders) == 1
        if how == "restart":
            with pytest.raises(ComfyServerError):  # there is nobody any more to answer
                server.get("/test/restart")
        else:
            getattr(server, how)()
        assert left_of(pids, 5) == []
        if how == "restart":
            server.wait_until_ready()
            assert run_and_get_pids(server, asyncdiff(workflow("wan")))
        assert not folders[0].exists()
        if how == "restart":  # those of a program that has ended are the system's to reap
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
