"""Small checkpoints of many families, in the stock format: ComfyUI's own detection loads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from demo.comfy_server import ComfyServer
from demo.graphs import Workflow, node, sampler

from .lab import asyncdiff, last_report, saved
from .processes import run

STEPS = 2
NAMES = (
    *("sd2", "vega", "flux", "flux2", "hunyuan-video", "ltx", "ltx-av", "vace"),
    *("cogvideox", "kandinsky", "lens"),
)


@pytest.fixture(scope="module")
def families(server: ComfyServer) -> dict[str, Any]:
    """What stock_format.py wrote into the server's folder, by name."""
    folder = server.models / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    return run("stock_format.py", server.comfyui, folder, timeout=180)


@pytest.fixture(autouse=True)
def released(server: ComfyServer) -> Iterator[None]:
    """The next family gets the memory of the last one."""
    yield
    server.post("/asyncdiff/release", {})


def workflow(name: str, family: dict[str, Any]) -> Workflow:
    """The stock workflow. Saves all parts of the latent as one tensor."""
    text = {"width": family["text"], "pooled": family.get("pooled", 0)}
    file = f"stock-{name}.safetensors"
    return {
        "model": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "positive": node("TestConditioning", **text, seed=1),
        "negative": node("TestConditioning", **text, seed=2),
        "empty": node("TestLatent", shapes=json.dumps(family["latent"])),
        "sampler": sampler(steps=STEPS, cfg=3.0, scheduler="simple"),
        "latent": node("TestSaveLatent", samples=["sampler", 0], filename_prefix=f"stock/{name}"),
    }


def loads_and_equals_stock(server: ComfyServer, name: str, family: dict[str, Any]) -> None:
    """Two workers load the file, and with full warm-up give the bits of the stock loader's model.

    Raises:
        AssertionError: they do not.
    """
    flow = workflow(name, family)
    [stock] = saved(server, server.run(flow))
    assert torch.isfinite(stock).all()
    assert stock.std() > 0
    [ours] = saved(server, server.run(asyncdiff(flow, warm_up=STEPS)))
    assert torch.equal(ours, stock)
    report = last_report(server)
    assert report["model"] == family["class"]
    assert len(report["workers"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_equals_stock(name: str, server: ComfyServer, families: dict[str, Any]) -> None:
    loads_and_equals_stock(server, name, families[name])


def test_no_file_is_left_out(families: dict[str, Any]) -> None:
    assert set(NAMES) == set(families)
