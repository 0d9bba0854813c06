"""Workflows in ComfyUI's API format, and AsyncDiff twins of them.

A workflow is a dict from node id to `{"class_type": .., "inputs": ..}`; an input is a value or a
link `[node id, output index]`.
"""

from __future__ import annotations

from typing import Any

from asyncdiff_core.algorithm.schedule import DEFAULT_WARM_UP

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


def node(class_type: str, **inputs: Any) -> Node:
    return {"class_type": class_type, "inputs": inputs}


def sampler(**changed: Any) -> Node:
    """A KSampler with the usual inputs, but for those that are given."""
    inputs = {
        "model": ["model", 0],
        "seed": 1,
        "steps": 30,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["empty", 0],
        "denoise": 1.0,
    }
    return node("KSampler", **{**inputs, **changed})


def asyncdiff(
    workflow: Workflow,
    *,
    devices: str = "auto",
    stages: int = 0,
    replicas: int = 0,
    stride: int = 1,
    warm_up: int = DEFAULT_WARM_UP,
    time_shift: bool = False,
    **more: Any,
) -> Workflow:
    """The same workflow with this pack's samplers, and this pack's loaders of their models."""
    plan = {"devices": devices, "stages": stages, "replicas": replicas, "stride": stride}
    schedule = {"warm_up": warm_up, "time_shift": time_shift, **more}
    twin = dict(workflow)
    for name, stock in workflow.items():
        if stock["class_type"] in SAMPLERS:
            twin[name] = node(SAMPLERS[stock["class_type"]], **stock["inputs"], **schedule)
            name = _loader_of(workflow, name)
            stock = workflow[name]
            twin[name] = node(LOADERS[stock["class_type"]], **stock["inputs"], **plan)
    return twin


def _loader_of(workflow: Workflow, name: str) -> str:
    """The node that loads the model which a node gets, perhaps by way of nodes that patch it."""
    while workflow[name]["class_type"] not in LOADERS:
        name = workflow[name]["inputs"]["model"][0]
    return name


def resampled(workflow: Workflow, **inputs: Any) -> Workflow:
    """The workflow with some of its sampler's inputs changed."""
    stock = workflow["sampler"]
    return {**workflow, "sampler": node(stock["class_type"], **{**stock["inputs"], **inputs})}


def without(workflow: Workflow, *names: str) -> Workflow:
    """The workflow without some of its nodes, on which no other depends."""
    return {name: one for name, one in workflow.items() if name not in names}
