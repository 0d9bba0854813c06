"""Patches that bring a model of their own, and ControlNets that take parts of the MODEL."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.comfy_server import ComfyServer
from harness.features import parallelized
from harness.graphs import Workflow, node, sampler
from harness.lab import last_report, latent
from harness.processes import run
from harness.ways import alone

STEPS = 2
FAMILIES = ("qwen-image", "anima", "flux-schnell", "wan-t2v", "sd3.5")


@pytest.fixture(scope="module")
def families(server: ComfyServer) -> dict[str, Any]:
    wanted = json.dumps([[name, "fp32", ""] for name in FAMILIES])
    return run("template_models.py", server.comfyui, server.models, wanted, timeout=300)


def workflow(family: dict[str, Any], lora: bool = False) -> Workflow:
    text = {"width": family["text"], "pooled": family.get("pooled", 0), "masked": False}
    change = {"lora_name": family["file"], "strength_model": float(lora)}
    return {
        "model": node("TestDescribedModel", unet_name=family["file"]),
        "lora": node("LoraLoaderModelOnly", model=["model", 0], **change),
        "positive": node("TestConditioning", **text, seed=1),
        "negative": node("TestConditioning", **text, seed=2),
        "empty": node("TestLatent", shapes=json.dumps(family["latent"])),
        "sampler": sampler(model=["lora", 0], steps=STEPS, cfg=1.0, scheduler="simple"),
        "latent": node("TestSaveLatent", samples=["sampler", 0], filename_prefix="patched"),
    }


def patched(flow: Workflow, kind: str, applied: str, **inputs: Any) -> Workflow:
    """With the node `applied`, which gets the model of a patch."""
    return {
        **flow,
        "patch": node("TestPatchModel", kind=kind),
        "applied": node(applied, model=["lora", 0], model_patch=["patch", 0], **inputs),
        "sampler": node("KSampler", **{**flow["sampler"]["inputs"], "model": ["applied", 0]}),
    }


def with_picture(side: int, frames: int = 1) -> Workflow:
    return {
        "picture": node("EmptyImage", width=side, height=side, batch_size=frames, color=0x336699),
        "vae": node("TestVAE", channels=16, dims=3, spatial=8, temporal=4),
    }


def on_three(flow: Workflow) -> Workflow:
    flow = parallelized(flow)
    flow["spread"]["inputs"]["devices"] = "cpu,cpu,cpu"
    return flow


IMAGE = {"image": ["picture", 0]}
RANGE = {"start_percent": 0.0, "end_percent": 1.0}
VAE = {"vae": ["vae", 0]}
PATCHES: dict[str, tuple[str, str, str, dict[str, Any], Workflow]] = {
    "Qwen-Image DiffSynth": (
        *("qwen-image", "qwen", "QwenImageDiffsynthControlnet"),
        {**IMAGE, **VAE, "strength": 0.9},
        with_picture(128),
    ),
    "the same, with a picture of another size": (
        *("qwen-image", "qwen", "QwenImageDiffsynthControlnet"),
        {**IMAGE, **VAE, "strength": 0.9},
        with_picture(100),
    ),
    "Anima LLLite": (
        *("anima", "lllite", "AnimaLLLiteApply"),
        {**IMAGE, **RANGE, "strength": 0.9},
        with_picture(128),
    ),
    "USO": (
        *("flux-schnell", "style", "USOStyleReference"),
        {"clip_vision_output": ["vision", 0]},
        {"vision": node("TestClipVisionOutput", width=8, tokens=6, hidden=8, image_size=16)},
    ),
    "Wan Uni3C": (
        *("wan-t2v", "uni3c", "WanUni3CControlnetApply"),
        {"render_video": ["picture", 0], **VAE, **RANGE, "strength": 0.9},
        with_picture(64, frames=5),
    ),
}


def controlled(flow: Workflow, kind: str, frames: int) -> Workflow:
    """With a ControlNet."""
    inputs = {"positive": ["positive", 0], "negative": ["negative", 0], **IMAGE, **VAE, **RANGE}
    picture = with_picture(128)
    picture["vae"]["inputs"]["dims"] = frames + 2
    made = {
        "control": node("TestControlNet", kind=kind),
        "applied": node(
            "ControlNetApplyAdvanced", control_net=["control", 0], strength=0.7, **inputs
        ),
    }
    conds = {"positive": ["applied", 0], "negative": ["applied", 1]}
    return {
        **flow,
        **picture,
        **made,
        "sampler": node("KSampler", **{**flow["sampler"]["inputs"], **conds}),
    }


def require_same_bits(
    server: ComfyServer, change: Callable[[Workflow], Workflow], family: dict[str, Any]
) -> None:
    """As ComfyUI's own run, with a LoRA as well, which changes the result."""
    results = []
    for lora in (False, True):
        plain = workflow(family, lora)
        flow = change(plain)
        stock = latent(server, flow)
        assert torch.isfinite(stock).all()
        assert not torch.equal(stock, latent(server, plain)), "it does nothing"
        for way, workers in ((parallelized, 2), (on_three, 3), (alone, 2)):
            assert torch.equal(latent(server, way(flow)), stock), (way, lora)
            assert len(last_report(server)["workers"]) == workers
        results.append(stock)
    assert not torch.equal(*results)


@pytest.mark.parametrize("name", PATCHES)
def test_patch(server: ComfyServer, families: dict[str, Any], name: str) -> None:
    """Its model is in each worker."""
    family, kind, applied, inputs, more = PATCHES[name]

    def change(flow: Workflow) -> Workflow:
        return patched({**flow, **more}, kind, applied, **inputs)

    require_same_bits(server, change, families[family])


@pytest.mark.parametrize(
    ("kind", "family", "frames"),
    [("sd3.5, text", "sd3.5", 0), ("sd3.5, picture", "sd3.5", 0), ("qwen fun", "qwen-image", 1)],
)
def test_control(
    server: ComfyServer, families: dict[str, Any], kind: str, family: str, frames: int
) -> None:
    """What it takes of the MODEL is in ComfyUI's process, with the LoRA on it."""
    require_same_bits(server, lambda flow: controlled(flow, kind, frames), families[family])
