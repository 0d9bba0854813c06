"""A live server with small models in it, and latents as tensors."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from . import checkpoints, graphs
from .comfy_server import ComfyServer
from .graphs import Workflow, node

KINDS = ("sd15", "sd3", "wan")
# Pixels. What a step costs grows with their number, and of what is tested nothing does.
SIDE = 64
EMPTY = {
    "sd15": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
    "sd3": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
    "flux": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1),
    "wan": node("EmptyHunyuanLatentVideo", width=96, height=96, length=5, batch_size=1),
}
ADAPTER_PACK = Path(__file__).parent / "adapter_pack"
# ComfyUI-GGUF where it is at hand, else what stands for it.
GGUF_PACK = Path(os.environ.get("ASYNCDIFF_GGUF_PACK") or Path(__file__).parent / "gguf_pack")
PROMPT = "a harbour in the morning mist, boats, soft light"
NEGATIVE_PROMPT = "blurry, text"


def write_models(models: Path, name: str = "tiny") -> None:
    """The small models of these tests, in a server's models folder.

    Their files are called `name`-sd15.safetensors and so on.
    """
    checkpoints.write_sd15(models / "checkpoints" / f"{name}-sd15.safetensors")
    checkpoints.write_sd3(models / "diffusion_models" / f"{name}-sd3.safetensors")
    checkpoints.write_wan(models / "diffusion_models" / f"{name}-wan.safetensors")
    for kind in ("sd15", "wan"):
        checkpoints.write_lora(models / "loras" / f"{name}-{kind}-lora.safetensors", model=kind)


def workflow(kind: str, name: str = "tiny", **sampling: Any) -> Workflow:
    """A stock workflow that ends with a saved latent. The text encoder is always SD 1.5's."""
    checkpoint = node("CheckpointLoaderSimple", ckpt_name=f"{name}-sd15.safetensors")
    if kind == "sd15":
        loaders, clip = {"model": checkpoint}, ["model", 1]
    else:
        file = f"{name}-{kind}.safetensors"
        model = node("UNETLoader", unet_name=file, weight_dtype="default")
        loaders, clip = {"model": model, "text": checkpoint}, ["text", 1]
    scheduler = "normal" if kind == "sd15" else "simple"
    return {
        **loaders,
        "positive": node("CLIPTextEncode", clip=clip, text=PROMPT),
        "negative": node("CLIPTextEncode", clip=clip, text=NEGATIVE_PROMPT),
        "empty": EMPTY[kind],
        "sampler": graphs.sampler(**{"steps": 5, "scheduler": scheduler, **sampling}),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix=f"latents/{kind}"),
    }


def asyncdiff(flow: Workflow, workers: int = 2, warm_up: int = 1, **options: Any) -> Workflow:
    """The twin of a stock workflow on `workers` CPU workers."""
    devices = ",".join(["cpu"] * workers)
    return graphs.asyncdiff(flow, devices=devices, warm_up=warm_up, **options)


def with_lora(flow: Workflow, kind: str, strength: float = 1.0, name: str = "tiny") -> Workflow:
    """The workflow with a LoRA between its model and its sampler."""
    file = f"{name}-{kind}-lora.safetensors"
    lora = node("LoraLoaderModelOnly", model=["model", 0], lora_name=file, strength_model=strength)
    return {**graphs.resampled(flow, model=["lora", 0]), "lora": lora}


_runs = itertools.count()


def fresh(flow: Workflow) -> Workflow:
    """The workflow, so that ComfyUI samples again instead of answering from its cache."""
    # The first `length` of at most three latents: the same ones, but ComfyUI does not know.
    length = 3 + next(_runs) % 60
    renewed = dict(flow)
    for name, one in flow.items():
        samples = one["inputs"].get("latent_image")
        if samples is not None:
            renewed[f"fresh {name}"] = node(
                "LatentFromBatch", samples=samples, batch_index=0, length=length
            )
            inputs = {**one["inputs"], "latent_image": [f"fresh {name}", 0]}
            renewed[name] = node(one["class_type"], **inputs)
    return renewed


def saved(server: ComfyServer, entry: dict[str, Any]) -> list[torch.Tensor]:
    """The latents that a prompt saved, in the order of their nodes' names. Removes the files.

    ComfyUI tells of the nodes in the order in which they ran, which is not always the same.
    """
    latents = []
    for path in server.files({**entry, "outputs": dict(sorted(entry["outputs"].items()))}):
        if path.suffix == ".latent":
            latents.append(load_file(path)["latent_tensor"])
            path.unlink()
    return latents


def latent(server: ComfyServer, flow: Workflow) -> torch.Tensor:
    """Run the workflow, from its sampler on, and return the latent that it saves."""
    (result,) = saved(server, server.run(fresh(flow)))
    return result


_latents: dict[str, torch.Tensor] = {}


def latent_once(server: ComfyServer, flow: Workflow) -> torch.Tensor:
    """The same of a workflow of the small models that this process has not run yet."""
    key = repr(flow)
    if key not in _latents:
        _latents[key] = latent(server, flow)
    return _latents[key]


def last_report(server: ComfyServer) -> dict[str, Any]:
    """What the last sampling run did."""
    report: dict[str, Any] = server.get("/asyncdiff/report")["runs"][-1]
    return report


def free(server: ComfyServer, seconds: float = 60.0) -> None:
    """Have ComfyUI free its memory, and wait until workers hold no weights any more.

    ComfyUI is asked more than once: what it is asked in the moment in which it begins to wait for
    a prompt, it hears of with the next prompt only.
    """
    deadline = time.monotonic() + seconds
    while True:
        server.post("/free", {"unload_models": True, "free_memory": True})
        again = time.monotonic() + 1
        while time.monotonic() < again:
            groups = server.get("/asyncdiff/status")["groups"]
            if all(group["state"] == "parked" for group in groups):
                return
            time.sleep(0.05)
        if again > deadline:
            raise TimeoutError(f"workers still hold weights {seconds:.0f} s after /free")


def write_unsupported(models: Path) -> str:
    """A model that ComfyUI runs and that has no layout: the autoregressive Wan. The file's name."""
    path = models / "diffusion_models" / "causal-wan.safetensors"
    return checkpoints.write_wan(path, causal_ar=True).name
