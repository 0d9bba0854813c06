"""Small checkpoints in the stock format on a live server, and whether workers give their bits."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import torch

from .comfy_server import ComfyServer
from .features import parallelized
from .graphs import Workflow, node, sampler
from .lab import asyncdiff, last_report, saved
from .own_process.stock_format import file_of
from .processes import run
from .ways import alone

STEPS = 2

KINDS = (
    *("comfy_quant fp8", "int8", "scaled fp8", "nvfp4", "bf16", "fp8", "mxfp8", "w4a4"),
    *("comfy_quant fp8 e5m2", "comfy_quant fp8, smoothed", "fp32"),
)
# ComfyUI takes sizes of these from layers that such formats pack.
PACKED = {name: ("nvfp4", "w4a4") for name in ("sd2", "vega", "cogvideox")}


def write(
    server: ComfyServer, kinds: dict[str, list[str]] | None = None, only: Collection[str] = ()
) -> dict[str, Any]:
    """Have stock_format.py write these kinds, by default all, of the families in `only`, or all."""
    wanted = json.dumps(kinds or {})
    return run("stock_format.py", server.comfyui, server.models, wanted, *only, timeout=600)


def workflow(name: str, family: dict[str, Any], lora: float, kind: str = "fp32") -> Workflow:
    """The stock workflow, with a LoRA of that strength. Saves all parts of the latent in one.

    With one cond, so that a sampler node of this pack, which chooses for itself, chooses stages.
    """
    text = {"width": family["text"], "pooled": family.get("pooled", 0)}
    text["masked"] = family.get("masked", False)
    change = {"lora_name": file_of(name, "fp32"), "strength_model": lora}
    return {
        "model": node("UNETLoader", unet_name=file_of(name, kind), weight_dtype="default"),
        "changed": node("LoraLoaderModelOnly", model=["model", 0], **change),
        "positive": node("TestConditioning", **text, seed=1),
        "negative": node("TestConditioning", **text, seed=2),
        "empty": node("TestLatent", shapes=json.dumps(family["latent"])),
        "sampler": sampler(model=["changed", 0], steps=STEPS, cfg=1.0, scheduler="simple"),
        "latent": node("TestSaveLatent", samples=["sampler", 0], filename_prefix=f"stock/{name}"),
    }


def compare(server: ComfyServer, name: str, family: dict[str, Any], kind: str) -> None:
    """Two workers load the file, and with full warm-up give the bits of the stock loader's model.

    So they do with a LoRA, which changes the result; by this pack's loader, by Parallelize Model,
    and with its sampler node alone.

    Raises:
        AssertionError: they do not.
    """
    results = []
    for lora in (0.0, 1.0):
        flow = workflow(name, family, lora, kind)
        [stock] = saved(server, server.run(flow))
        assert torch.isfinite(stock).all()
        for way in (lambda f: asyncdiff(f, warm_up=STEPS), parallelized, alone):
            [ours] = saved(server, server.run(way(flow)))
            assert torch.equal(ours, stock), f"LoRA {lora}"
            report = last_report(server)
            assert report["model"] == family["class"]
            assert len(report["workers"]) == 2
        results.append(stock)
    assert results[0].std() > 0
    assert not torch.equal(*results)
