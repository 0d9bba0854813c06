"""Small checkpoints of many families, in the stock format: ComfyUI's own detection loads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.compatibility import version_of
from demo.comfy_server import REPO_ROOT, ComfyServer
from demo.graphs import Workflow, node, sampler
from dev import DEFAULT_HOST

from .features import parallelized
from .lab import asyncdiff, last_report, saved
from .own_process.stock_format import file_of
from .processes import run
from .ways import alone

STEPS = 2


NAMES = (
    *("sd2", "vega", "flux", "flux2", "hunyuan-video", "hunyuan-video-1.5", "ltx", "ltx-av"),
    *("wan-i2v", "vace", "cogvideox", "kandinsky", "krea2", "joyimage", "hunyuan3d"),
    *("hunyuan3d-2.1", "lens"),
)


# Each family in one of the formats, so that each is there. All of them in all:
# `python3 dev.py python -m benchmarks.compatibility`.
KINDS = (
    *("comfy_quant fp8", "int8", "scaled fp8", "nvfp4", "bf16", "fp8", "mxfp8", "w4a4"),
    *("comfy_quant fp8 e5m2", "comfy_quant fp8, smoothed", "fp32"),
)
# ComfyUI takes sizes of these from layers that such formats pack.
PACKED = {name: ("nvfp4", "w4a4") for name in ("sd2", "vega", "cogvideox")}


def kind_of(name: str) -> str:
    first = NAMES.index(name)
    kinds = (KINDS[(first + n) % len(KINDS)] for n in range(len(KINDS)))
    return next(kind for kind in kinds if kind not in PACKED.get(name, ()))


@pytest.fixture(scope="module")
def families(server: ComfyServer) -> dict[str, Any]:
    """What stock_format.py wrote into the server's folder, by name."""
    return write(server, {name: ["fp32", kind_of(name)] for name in NAMES})


@pytest.fixture(autouse=True)
def released(server: ComfyServer) -> Iterator[None]:
    """The next family gets the memory of the last one."""
    yield
    server.post("/asyncdiff/release", {})


def write(server: ComfyServer, kinds: dict[str, list[str]] | None = None) -> dict[str, Any]:
    wanted = json.dumps(kinds or {})
    return run("stock_format.py", server.comfyui, server.models, wanted, timeout=600)


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


@pytest.mark.parametrize("name", NAMES)
def test_equals_stock(name: str, server: ComfyServer, families: dict[str, Any]) -> None:
    family = families[name]
    if "missing" in family:
        version = version_of(server.comfyui)
        assert version != DEFAULT_HOST
        pytest.skip(f"ComfyUI {version} has no {family['class']}")
    kind = kind_of(name)
    if kind not in family["formats"]:
        version = version_of(server.comfyui)
        assert version != DEFAULT_HOST
        pytest.skip(f"ComfyUI {version} does not know {kind}")
    before = len(server.log_text())
    compare(server, name, family, kind)
    assert not complaints(server.log_text()[before:])


def complaints(log: str) -> list[str]:
    """Lines that look like a fault. ComfyUI says of itself what it had no use for."""
    signs = (
        "warning",
        "error",
        "missing",
        "not loaded",
        "unexpected",
        "uninitialized",
        "traceback",
    )
    lines = (line for line in log.splitlines() if any(sign in line.lower() for sign in signs))
    return [line for line in lines if "unet unexpected" not in line]


@pytest.mark.parametrize("what", ["loaded by skeleton and stages"])
def test_every_file_is(what: str, server: ComfyServer, families: dict[str, Any]) -> None:
    """Key by key and bit by bit, see format_parity.py."""
    came = run("format_parity.py", server.comfyui, REPO_ROOT, server.models, timeout=600)
    files = [(name, kind, held) for name, kinds in came.items() for kind, held in kinds.items()]
    assert len(files) >= 2 * len([f for f in families.values() if "missing" not in f]) - 1
    assert [file for file in files if not all(v is True for v in file[2].values())] == []


def test_no_file_is_left_out(families: dict[str, Any]) -> None:
    assert set(NAMES) == set(families)


def test_every_format_is_tried(families: dict[str, Any]) -> None:
    kinds = {kind_of(name) for name in NAMES if "missing" not in families[name]}
    assert kinds == set(KINDS)
