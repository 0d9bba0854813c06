"""A live server with small models in it, and latents as tensors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from demo import checkpoints, graphs
from demo.comfy_server import ComfyServer
from demo.graphs import Workflow, node, without

SD15, WAN, SD3 = "tiny-sd15.safetensors", "tiny-wan.safetensors", "tiny-sd3.safetensors"
LORAS = {"sd15": "tiny-sd15-lora.safetensors", "wan": "tiny-wan-lora.safetensors"}
KINDS = ("sd15", "sd3", "wan")


def write_models(models: Path) -> None:
    """The small models of these tests, in a server's models folder."""
    checkpoints.write_sd15(models / "checkpoints" / SD15, size="tiny")
    checkpoints.write_wan(models / "diffusion_models" / WAN, size="tiny")
    checkpoints.write_sd3(models / "diffusion_models" / SD3)
    for model, name in LORAS.items():
        checkpoints.write_lora(models / "loras" / name, model=model, size="tiny")


def workflow(kind: str, **sampling: Any) -> Workflow:
    """A stock workflow that ends with a saved latent."""
    sampling = {"steps": 5, **sampling}
    if kind == "sd15":
        return without(graphs.sd15(SD15, width=128, height=128, **sampling), "decode", "picture")
    if kind == "sd3":
        return graphs.sd3(SD3, SD15, width=128, height=128, **sampling)
    flow = graphs.wan(WAN, SD15, "none", width=96, height=96, length=5, **sampling)
    return without(flow, "vae", "decode", "picture")


def asyncdiff(flow: Workflow, workers: int = 2, warm_up: int = 1, **options: Any) -> Workflow:
    """The twin of a stock workflow on `workers` CPU workers."""
    devices = ",".join(["cpu"] * workers)
    return graphs.asyncdiff(flow, devices=devices, warm_up=warm_up, **options)


def with_lora(flow: Workflow, kind: str, strength: float = 1.0) -> Workflow:
    """The workflow with a LoRA between its model and its sampler."""
    lora = node(
        "LoraLoaderModelOnly", model=["model", 0], lora_name=LORAS[kind], strength_model=strength
    )
    sampler = flow["sampler"]
    return {
        **flow,
        "lora": lora,
        "sampler": node(sampler["class_type"], **{**sampler["inputs"], "model": ["lora", 0]}),
    }


_runs = itertools.count()


def latent(server: ComfyServer, flow: Workflow) -> torch.Tensor:
    """Run the workflow, from its sampler on, and return the latent that it saves."""
    sampler = flow["sampler"]
    # The first `length` of at most three latents: the same ones, but ComfyUI does not know, and
    # samples again instead of answering from its cache.
    length = 3 + next(_runs) % 60
    samples = sampler["inputs"]["latent_image"]
    flow = {
        **flow,
        "fresh": node("LatentFromBatch", samples=samples, batch_index=0, length=length),
        "sampler": node(
            sampler["class_type"], **{**sampler["inputs"], "latent_image": ["fresh", 0]}
        ),
    }
    entry = server.run(flow)
    (path,) = [path for path in server.files(entry) if path.suffix == ".latent"]
    result = load_file(path)["latent_tensor"]
    path.unlink()
    return result


def last_report(server: ComfyServer) -> dict[str, Any]:
    """What the last sampling run did."""
    report: dict[str, Any] = server.get("/asyncdiff/report")["runs"][-1]
    return report


def write_pixart(path: Path) -> None:
    """What ComfyUI needs to see to take a file for PixArt, and no more."""
    width, depth = 1152, 1
    shapes = {
        "t_block.1.weight": (6 * width, width),
        "y_embedder.y_embedding": (120, 4096),
        "y_embedder.y_proj.fc1.weight": (width, 4096),
        "x_embedder.proj.weight": (width, 4, 2, 2),
        "final_layer.scale_shift_table": (2, width),
        "final_layer.linear.weight": (32, width),
        **{f"blocks.{i}.scale_shift_table": (6, width) for i in range(depth)},
        **{f"blocks.{i}.attn.qkv.weight": (3 * width, width) for i in range(depth)},
    }
    save_file({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, path)
