"""The demonstration's workflows in ComfyUI's API format, and their AsyncDiff twins.

A workflow is a dict from node id to `{"class_type": .., "inputs": ..}`; an input is a value or a
link `[node id, output index]`. Where a node stands for a file, its name is an argument: the files
are those of `demo.checkpoints`, or any of the same kind.
"""

from __future__ import annotations

from typing import Any

Node = dict[str, Any]
Workflow = dict[str, Node]

# An AsyncDiff node has all inputs of the stock node it stands for, and a few more.
LOADERS = {
    "CheckpointLoaderSimple": "AsyncDiffCheckpointLoader",
    "UNETLoader": "AsyncDiffDiffusionModelLoader",
}
SAMPLERS = {
    "KSampler": "AsyncDiffKSampler",
    "KSamplerAdvanced": "AsyncDiffKSamplerAdvanced",
}

PROMPT = "a harbour in the morning mist, boats, soft light"
NEGATIVE_PROMPT = "blurry, text"


def node(class_type: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs}


def sd15(
    checkpoint: str, *, width: int = 256, height: int = 256, **sampling: int | float | str
) -> Workflow:
    """Text to image with a checkpoint that holds UNet, text encoder and VAE."""
    return {
        "model": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        **_prompts(clip=["model", 1]),
        "empty": node("EmptyLatentImage", width=width, height=height, batch_size=1),
        "sampler": _sampler(**{"scheduler": "normal", **sampling}),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/sd15"),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="sd15"),
    }


def wan(
    diffusion_model: str,
    checkpoint: str,
    vae: str,
    *,
    width: int = 192,
    height: int = 192,
    length: int = 13,
    **sampling: int | float | str,
) -> Workflow:
    """Text to video of `length` frames; the text encoder is the one in an SD 1.5 checkpoint."""
    size = {"width": width, "height": height, "length": length}
    return {
        "model": node("UNETLoader", unet_name=diffusion_model, weight_dtype="default"),
        "text": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        **_prompts(clip=["text", 1]),
        "empty": node("EmptyHunyuanLatentVideo", **size, batch_size=1),
        "sampler": _sampler(**{"scheduler": "simple", **sampling}),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/wan"),
        "vae": node("VAELoader", vae_name=vae),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "picture": node("SaveImage", images=["decode", 0], filename_prefix="wan"),
    }


def sd3(
    diffusion_model: str,
    checkpoint: str,
    *,
    width: int = 128,
    height: int = 128,
    **sampling: int | float | str,
) -> Workflow:
    """Text to an image's latent; the text encoder is the one in an SD 1.5 checkpoint."""
    return {
        "model": node("UNETLoader", unet_name=diffusion_model, weight_dtype="default"),
        "text": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        **_prompts(clip=["text", 1]),
        "empty": node("EmptySD3LatentImage", width=width, height=height, batch_size=1),
        "sampler": _sampler(**{"scheduler": "simple", **sampling}),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/sd3"),
    }


def _prompts(clip: list[Any]) -> Workflow:
    return {
        "positive": node("CLIPTextEncode", clip=clip, text=PROMPT),
        "negative": node("CLIPTextEncode", clip=clip, text=NEGATIVE_PROMPT),
    }


def _sampler(
    *,
    scheduler: str,
    seed: int = 1,
    steps: int = 30,
    cfg: float = 5.0,
    sampler_name: str = "euler",
    denoise: float = 1.0,
) -> Node:
    return node(
        "KSampler",
        model=["model", 0],
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler_name,
        scheduler=scheduler,
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["empty", 0],
        denoise=denoise,
    )


def asyncdiff(
    workflow: Workflow,
    *,
    devices: str = "auto",
    stages: int = 0,
    replicas: int = 0,
    stride: int = 1,
    warm_up: int = 3,
    time_shift: bool = False,
) -> Workflow:
    """The same workflow with this pack's samplers, and this pack's loaders of their models."""
    plan = {"devices": devices, "stages": stages, "replicas": replicas, "stride": stride}
    schedule = {"warm_up": warm_up, "time_shift": time_shift}
    twin = dict(workflow)
    for name, stock in workflow.items():
        if stock["class_type"] in SAMPLERS:
            twin[name] = node(SAMPLERS[stock["class_type"]], **stock["inputs"], **schedule)
            name = _loader_of(workflow, name)
            stock = workflow[name]
            twin[name] = node(LOADERS[stock["class_type"]], **stock["inputs"], **plan)
    return twin


def _loader_of(workflow: Workflow, name: str) -> str:
    """The node that loads the model which a node gets, perhaps by way of a LoRA's loader."""
    while workflow[name]["class_type"] not in LOADERS:
        name = workflow[name]["inputs"]["model"][0]
    return name


def resampled(workflow: Workflow, **inputs: int | float | str) -> Workflow:
    """The workflow with some of its sampler's inputs changed."""
    sampler = workflow["sampler"]
    return {**workflow, "sampler": node(sampler["class_type"], **{**sampler["inputs"], **inputs})}


def without(workflow: Workflow, *names: str) -> Workflow:
    """The workflow without some of its nodes, on which no other depends."""
    return {name: one for name, one in workflow.items() if name not in names}
