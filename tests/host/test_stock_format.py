"""Small checkpoints of many families, in the stock format: ComfyUI's own detection loads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.compatibility import version_of
from demo.comfy_server import ComfyServer
from demo.graphs import Workflow, node, sampler
from dev import DEFAULT_HOST

from .lab import asyncdiff, last_report, saved
from .processes import run

STEPS = 2
NAMES = (
    *("sd2", "vega", "flux", "flux2", "hunyuan-video", "hunyuan-video-1.5", "ltx", "ltx-av"),
    *("wan-i2v", "vace", "cogvideox", "kandinsky", "krea2", "joyimage", "hunyuan3d"),
    *("hunyuan3d-2.1", "lens"),
)


@pytest.fixture(scope="module")
def families(server: ComfyServer) -> dict[str, Any]:
    """What stock_format.py wrote into the server's folder, by name."""
    return write(server)


@pytest.fixture(autouse=True)
def released(server: ComfyServer) -> Iterator[None]:
    """The next family gets the memory of the last one."""
    yield
    server.post("/asyncdiff/release", {})


def write(server: ComfyServer) -> dict[str, Any]:
    return run("stock_format.py", server.comfyui, server.models, timeout=180)


def workflow(name: str, family: dict[str, Any], lora: float) -> Workflow:
    """The stock workflow, with a LoRA of that strength. Saves all parts of the latent in one."""
    text = {"width": family["text"], "pooled": family.get("pooled", 0)}
    text["masked"] = family.get("masked", False)
    file = f"stock-{name}.safetensors"
    change = {"lora_name": file, "strength_model": lora}
    return {
        "model": node("UNETLoader", unet_name=file, weight_dtype="default"),
        "changed": node("LoraLoaderModelOnly", model=["model", 0], **change),
        "positive": node("TestConditioning", **text, seed=1),
        "negative": node("TestConditioning", **text, seed=2),
        "empty": node("TestLatent", shapes=json.dumps(family["latent"])),
        "sampler": sampler(model=["changed", 0], steps=STEPS, cfg=3.0, scheduler="simple"),
        "latent": node("TestSaveLatent", samples=["sampler", 0], filename_prefix=f"stock/{name}"),
    }


def compare(server: ComfyServer, name: str, family: dict[str, Any]) -> None:
    """Two workers load the file, and with full warm-up give the bits of the stock loader's model.

    So they do with a LoRA, which changes the result.

    Raises:
        AssertionError: they do not.
    """
    results = []
    for lora in (0.0, 1.0):
        flow = workflow(name, family, lora)
        [stock] = saved(server, server.run(flow))
        assert torch.isfinite(stock).all()
        [ours] = saved(server, server.run(asyncdiff(flow, warm_up=STEPS)))
        assert torch.equal(ours, stock), f"LoRA {lora}"
        results.append(stock)
    assert results[0].std() > 0
    assert not torch.equal(*results)
    report = last_report(server)
    assert report["model"] == family["class"]
    assert len(report["workers"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_equals_stock(name: str, server: ComfyServer, families: dict[str, Any]) -> None:
    family = families[name]
    if "missing" in family:
        version = version_of(server.comfyui)
        assert version != DEFAULT_HOST
        pytest.skip(f"ComfyUI {version} has no {family['class']}")
    compare(server, name, family)


def test_no_file_is_left_out(families: dict[str, Any]) -> None:
    assert set(NAMES) == set(families)
