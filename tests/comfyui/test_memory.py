"""Devices that have room for a part of a model, and what is given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints, graphs, lab
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow, node

# GiB. A model of 8 blocks, 285 MiB in fp32, fits once but not twice; one of 10 blocks does not.
MEMORY = "0.4"


@pytest.fixture(scope="module")
def short(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server whose workers may use little memory."""
    env = {"OMP_NUM_THREADS": "1", "ASYNCDIFF_MEMORY": f"cpu={MEMORY}"}
    server = ComfyServer(comfyui_path, tmp_path_factory.mktemp("short"), env=env)
    lab.write_models(server.models)
    for depth in (8, 10):
        weights = {key: value.float() for key, value in checkpoints.sd3(depth).items()}
        save_file(weights, server.models / "diffusion_models" / f"fp32-{depth}-sd3.safetensors")
        del weights
        gc.collect()
    with server:
        yield server


def workflow(depth: int) -> Workflow:
    flow = lab.workflow("sd3", steps=3)
    name = f"fp32-{depth}-sd3.safetensors"
    return {**flow, "model": node("UNETLoader", unet_name=name, weight_dtype="default")}


def said(server: ComfyServer, start: int, text: str) -> list[str]:
    return [line for line in server.log_text()[start:].splitlines() if text in line]


def test_replicas_that_do_not_fit_become_stages(short: ComfyServer) -> None:
    flow = workflow(8)
    start = len(short.log_text())
    ours = lab.latent(short, graphs.asyncdiff(flow, devices="auto", warm_up=3))
    assert torch.equal(ours, lab.latent(short, flow))
    (line,) = said(short, start, "predicted speed-up")
    assert "1 replicas x 2 stages" in line
    assert "2 replicas x 1 stages do not fit (cpu needs 0.6 GiB and has room for 0.3 GiB)" in line
    assert not said(short, start, "MiB streamed")


def test_what_fits_nowhere_is_streamed(short: ComfyServer) -> None:
    flow = workflow(10)
    start = len(short.log_text())
    ours = lab.latent(short, lab.asyncdiff(flow, warm_up=3))
    assert torch.equal(ours, lab.latent(short, flow))
    (line,) = said(short, start, "predicted speed-up")
    assert "stay in the host's memory and are streamed in each evaluation" in line
    (line,) = said(short, start, "cut into 2 stages")
    assert line.count("MiB streamed") == 2
    # The same again by the same plan, and after all was given back.
    twin = lab.asyncdiff(flow, warm_up=1)
    first = lab.latent(short, twin)
    assert torch.equal(lab.latent(short, twin), first)
    lab.free(short)
    assert torch.equal(lab.latent(short, twin), first)
    assert len(said(short, start, "MiB streamed")) == 2  # loaded twice
