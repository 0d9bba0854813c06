"""GGUF files, by ComfyUI-GGUF where ASYNCDIFF_GGUF_PACK says where it is, else by a stand-in."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints
from harness.comfy_server import ComfyServer
from harness.features import parallelized
from harness.gguf_checkpoints import KINDS, write_flux
from harness.graphs import Workflow, node, sampler
from harness.lab import last_report, saved
from harness.ways import alone

STEPS = 2


@pytest.fixture(scope="module")
def files(server: ComfyServer) -> ComfyServer:
    for kind in KINDS:
        write_flux(server.models / "diffusion_models" / f"flux-{kind}.gguf", kind)
    layers = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "linear1", "linear2", "txt_in")
    changes = checkpoints.lora(checkpoints.flux(), layers=layers)
    (server.models / "loras").mkdir(exist_ok=True)
    save_file(changes, server.models / "loras" / "flux-lora.safetensors")
    return server


def workflow(kind: str, lora: float, **inputs: Any) -> Workflow:
    """One cond, so that a sampler node, which chooses for itself, chooses stages."""
    text = {"width": checkpoints.TEXT_WIDTH, "pooled": checkpoints.TEXT_WIDTH, "masked": False}
    change = {"lora_name": "flux-lora.safetensors", "strength_model": lora}
    return {
        "model": node("UnetLoaderGGUF", unet_name=f"flux-{kind}.gguf", **inputs),
        "changed": node("LoraLoaderModelOnly", model=["model", 0], **change),
        "positive": node("TestConditioning", **text, seed=1),
        "negative": node("TestConditioning", **text, seed=2),
        "empty": node("TestLatent", shapes=json.dumps([[1, 16, 8, 8]])),
        "sampler": sampler(model=["changed", 0], steps=STEPS, cfg=1.0, scheduler="simple"),
        "latent": node("TestSaveLatent", samples=["sampler", 0], filename_prefix="gguf"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_workers_give_the_bits_of_the_packs_own_run(files: ComfyServer, kind: str) -> None:
    """Each unpacks its own stage, with a LoRA as the pack applies it."""
    results = []
    for lora in (0.0, 1.0, 0.0):
        flow = workflow(kind, lora)
        [stock] = saved(files, files.run(flow))
        assert torch.isfinite(stock).all()
        for way in (parallelized, alone):
            [ours] = saved(files, files.run(way(flow)))
            assert torch.equal(ours, stock), f"LoRA {lora}"
            report = last_report(files)
            assert (report["model"], len(report["workers"])) == ("Flux", 2)
        results.append(stock)
    assert not torch.equal(*results[:2])
    assert torch.equal(results[0], results[2])


def test_weights_stay_packed(files: ComfyServer) -> None:
    sizes = {}
    for kind in ("f16", "q8_0", "q4_k"):
        files.run(parallelized(workflow(kind, 0.0)))
        sizes[kind] = sum(worker["weight_bytes"] for worker in last_report(files)["workers"])
    assert sizes["q8_0"] < 0.6 * sizes["f16"]
    assert sizes["q4_k"] < sizes["q8_0"]
