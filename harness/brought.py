"""What brings weights of its own, or has none in a file that workers read as ComfyUI does.

`CASES` is the table behind test_brought.py, test_gguf.py and docs/compatibility.md: MODELs from
GGUF files and from tensors, patches that bring a model, ControlNets that take parts of the MODEL.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import checkpoints
from .comfy_server import ComfyServer
from .features import parallelized
from .graphs import Workflow, node, sampler
from .lab import last_report, saved
from .processes import run
from .ways import alone

STEPS, ASYNC_STEPS = 2, 5
FAMILIES = ("qwen-image", "anima", "flux-schnell", "wan-t2v", "sd3.5", "z-image")
LORA = "brought-lora.safetensors"  # for the Flux of checkpoints.py


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: what people call it.
        model: a family of own_process/template_models.py, or a node that makes the MODEL.
        change: puts the rest into the stock workflow of that MODEL.
    """

    name: str
    model: str | Workflow
    change: Callable[[Workflow], Workflow] = staticmethod(lambda flow: flow)  # noqa: RUF009

    @property
    def adds(self) -> bool:
        """Whether the MODEL alone gives another picture."""
        return isinstance(self.model, str)


@functools.cache
def families(comfyui: Path, models: Path) -> dict[str, Any]:
    """The models of all cases, in a server's folder; those of `FAMILIES` by their names."""
    from .gguf_checkpoints import KINDS, write_flux

    folder = models / "diffusion_models"
    for kind in KINDS:
        write_flux(folder / f"flux-{kind}.gguf", kind)
    checkpoints.write_flux(folder / "brought-flux.safetensors")
    layers = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "linear1", "linear2", "txt_in")
    changes = checkpoints.lora(checkpoints.flux(), layers=layers)
    (models / "loras").mkdir(exist_ok=True)
    save_file(changes, models / "loras" / LORA)
    wanted = json.dumps([[name, "fp32", ""] for name in FAMILIES])
    written: dict[str, Any] = run("template_models.py", comfyui, models, wanted, timeout=300)
    return written


def workflow(server: ComfyServer, case: Case, lora: float = 0.0) -> Workflow:
    """The stock workflow, with a LoRA of that strength, and nothing of the case but its MODEL.

    With one cond, so that a sampler node of this pack, which chooses for itself, chooses stages.
    """
    every = families(server.comfyui, server.models)
    if isinstance(case.model, str):
        family = every[case.model]
        model, file = node("TestDescribedModel", unet_name=family["file"]), family["file"]
    else:
        width = checkpoints.TEXT_WIDTH
        family = {"text": width, "pooled": width, "latent": [[1, 16, 8, 8]]}
        model, file = case.model["model"], LORA
    text = {"width": family["text"], "pooled": family.get("pooled", 0), "masked": False}
    change = {"lora_name": file, "strength_model": lora}
    return {
        "model": model,
        "lora": node("LoraLoaderModelOnly", model=["model", 0], **change),
        "positive": node("TestConditioning", **text, seed=1),
        "negative": node("TestConditioning", **text, seed=2),
        "empty": node("TestLatent", shapes=json.dumps(family["latent"])),
        "sampler": sampler(model=["lora", 0], steps=STEPS, cfg=1.0, scheduler="simple"),
        "latent": node("TestSaveLatent", samples=["sampler", 0], filename_prefix="brought"),
    }


def on_three(flow: Workflow) -> Workflow:
    """`parallelized` over three workers."""
    flow = parallelized(flow)
    flow["spread"]["inputs"]["devices"] = "cpu,cpu,cpu"
    return flow


# What is tried: two workers, three, and a sampler node that chooses for itself.
SPREADS = {"N=2": (parallelized, 2), "N=3": (on_three, 3), "sampler alone": (alone, 2)}


def outcome(
    server: ComfyServer, case: Case, spread: str, loras: tuple[float, ...] = (0.0, 1.0, 0.0)
) -> str:
    """``exact``, as tried now, with a LoRA of these strengths, one after the other.

    Raises:
        AssertionError: it is not, or something does nothing.
    """
    way, workers = SPREADS[spread]
    results: dict[float, torch.Tensor] = {}
    for lora in loras:
        plain = workflow(server, case, lora)
        flow = case.change(plain)
        [stock] = saved(server, server.run(flow))
        assert torch.isfinite(stock).all()
        if case.adds:
            [without] = saved(server, server.run(plain))
            assert not torch.equal(stock, without), f"{case.name} does nothing"
        [ours] = saved(server, server.run(way(flow)))
        assert torch.equal(ours, stock), f"{case.name}, LoRA {lora}"
        assert len(last_report(server)["workers"]) == workers
        assert torch.equal(results.setdefault(lora, stock), stock)
    values = [*results.values()]
    assert not any(torch.equal(values[0], value) for value in values[1:]), "the LoRA does nothing"
    return "exact"


def async_outcome(server: ComfyServer, case: Case) -> str:
    """``exact``: asynchronous evaluations by three workers have the bits of the oracle.

    Raises:
        AssertionError: they have not, or nothing was asynchronous.
    """
    plain = workflow(server, case, lora=1.0)
    plain["sampler"]["inputs"]["steps"] = ASYNC_STEPS
    stock = case.change(plain)
    [expected] = saved(server, server.run(stock))
    flow = on_three(stock)
    flow["schedule"]["inputs"] |= {"warm_up": 1, "prediction": "auto"}
    [ours] = saved(server, server.run(flow))
    assert not torch.equal(ours, expected), "nothing was asynchronous"
    stages = json.dumps([worker["units"] for worker in last_report(server)["workers"]])
    inputs = stock["sampler"]["inputs"]
    judge = node("TestOracle", model=inputs["model"], stages=stages, warm_up=1)
    judged = node("KSampler", **{**inputs, "model": ["oracle", 0]})
    [oracle] = saved(server, server.run({**stock, "oracle": judge, "sampler": judged}))
    assert torch.equal(ours, oracle), case.name
    return "exact"


# Changes ----------------------------------------------------------------------------------------


def patched(
    kind: str, applied: str, more: Workflow, inputs: dict[str, Any]
) -> Callable[[Workflow], Workflow]:
    """With the node `applied`, which gets the model of a patch, and with the nodes `more`."""

    def change(flow: Workflow) -> Workflow:
        return {
            **flow,
            **more,
            "patch": node("TestPatchModel", kind=kind),
            "applied": node(applied, model=["lora", 0], model_patch=["patch", 0], **inputs),
            "sampler": node("KSampler", **{**flow["sampler"]["inputs"], "model": ["applied", 0]}),
        }

    return change


def with_picture(side: int, frames: int = 1, dims: int = 3) -> Workflow:
    """A picture or a video, and a VAE with that many dimensions."""
    return {
        "picture": node("EmptyImage", width=side, height=side, batch_size=frames, color=0x336699),
        "vae": node("TestVAE", channels=16, dims=dims, spatial=8, temporal=4),
    }


def talking(mode: str) -> Callable[[Workflow], Workflow]:
    """A video whose persons speak."""

    def change(flow: Workflow) -> Workflow:
        voice = {"layers": 3, "width": 8, "tokens": 24}
        inputs: dict[str, Any] = {"mode": mode, "model": ["lora", 0], "model_patch": ["patch", 0]}
        inputs |= {"positive": ["positive", 0], "negative": ["negative", 0], **VAE}
        inputs |= {"width": 64, "height": 64, "length": 5, "start_image": ["picture", 0]}
        inputs |= {"audio_encoder_output_1": ["voice", 0], "motion_frame_count": 1}
        more = with_picture(64)
        if mode == "two_speakers":
            left, right = ({"width": 64, "height": 64, "value": value} for value in (0.0, 1.0))
            more |= {"left": node("SolidMask", **left), "right": node("SolidMask", **right)}
            halves = {"x": 32, "y": 0, "operation": "add"}
            more["first"] = node(
                "MaskComposite", destination=["left", 0], source=["right", 0], **halves
            )
            more["second"] = node("InvertMask", mask=["first", 0])
            inputs |= {
                "mode.audio_encoder_output_2": ["voice", 0],
                "mode.mask_1": ["first", 0],
                "mode.mask_2": ["second", 0],
            }
        outputs = {"model": ["applied", 0], "positive": ["applied", 1], "negative": ["applied", 2]}
        return {
            **flow,
            **more,
            "patch": node("TestPatchModel", kind="talk"),
            "voice": node("TestAudioEncoderOutput", **voice),
            "applied": node("WanInfiniteTalkToVideo", **inputs, audio_scale=1.0),
            "sampler": node("KSampler", **{**flow["sampler"]["inputs"], **outputs}),
        }

    return change


def controlled(kind: str, dims: int) -> Callable[[Workflow], Workflow]:
    """With a ControlNet."""

    def change(flow: Workflow) -> Workflow:
        inputs = {"positive": ["positive", 0], "negative": ["negative", 0], **IMAGE, **VAE, **RANGE}
        control = {"control_net": ["control", 0], "strength": 0.7}
        conds = {"positive": ["applied", 0], "negative": ["applied", 1]}
        return {
            **flow,
            **with_picture(128, dims=dims),
            "control": node("TestControlNet", kind=kind),
            "applied": node("ControlNetApplyAdvanced", **inputs, **control),
            "sampler": node("KSampler", **{**flow["sampler"]["inputs"], **conds}),
        }

    return change


def from_tensors(kind: str) -> Workflow:
    """The Flux of checkpoints.py, by a loader of a pack that leaves no word of its file."""
    loader = node("TestTensorLoader", unet_name="brought-flux.safetensors", kind=kind)
    return {"model": loader}


def of_gguf(kind: str) -> Workflow:
    """The same, packed."""
    return {"model": node("UnetLoaderGGUF", unet_name=f"flux-{kind}.gguf")}


IMAGE: dict[str, Any] = {"image": ["picture", 0]}
RANGE: dict[str, Any] = {"start_percent": 0.0, "end_percent": 1.0}
VAE: dict[str, Any] = {"vae": ["vae", 0]}
VISION = {"vision": node("TestClipVisionOutput", width=8, tokens=6, hidden=8, image_size=16)}
DIFFSYNTH = ("qwen", "QwenImageDiffsynthControlnet")

CASES = (
    Case("GGUF Q8_0 (ComfyUI-GGUF)", of_gguf("q8_0")),
    Case("GGUF Q4_K", of_gguf("q4_k")),
    Case("GGUF F16", of_gguf("f16")),
    Case("GGUF BF16", of_gguf("bf16")),
    Case("a MODEL that a pack has made from tensors", from_tensors("plain")),
    Case("the same, by a function that workers cannot import", from_tensors("loader replaced")),
    Case(
        "Qwen-Image DiffSynth ControlNet",
        "qwen-image",
        patched(*DIFFSYNTH, with_picture(128), {**IMAGE, **VAE, "strength": 0.9}),
    ),
    Case(
        "the same, with a picture of another size than the latent",
        "qwen-image",
        patched(*DIFFSYNTH, with_picture(100), {**IMAGE, **VAE, "strength": 0.9}),
    ),
    Case(
        "Anima LLLite",
        "anima",
        patched(
            "lllite", "AnimaLLLiteApply", with_picture(128), {**IMAGE, **RANGE, "strength": 0.9}
        ),
    ),
    Case(
        "USO style reference",
        "flux-schnell",
        patched("style", "USOStyleReference", VISION, {"clip_vision_output": ["vision", 0]}),
    ),
    Case(
        "Wan Uni3C",
        "wan-t2v",
        patched(
            "uni3c",
            "WanUni3CControlnetApply",
            with_picture(64, frames=5),
            {"render_video": ["picture", 0], **VAE, **RANGE, "strength": 0.9},
        ),
    ),
    Case("InfiniteTalk", "wan-t2v", talking("single_speaker")),
    Case("InfiniteTalk, two speakers", "wan-t2v", talking("two_speakers")),
    *(
        Case(
            name,
            "z-image",
            patched(
                kind,
                "ZImageFunControlnet",
                with_picture(side, dims=2),
                {**IMAGE, **VAE, "strength": 0.9},
            ),
        )
        for name, kind, side in (
            ("Z-Image Fun ControlNet", "z-image", 128),
            ("Z-Image Fun ControlNet 2.0", "z-image 2", 128),
            ("Z-Image Fun ControlNet 2.1, with a picture of another size", "z-image 2.1", 100),
        )
    ),
    Case("ControlNet of SD 3.5, text embedder", "sd3.5", controlled("sd3.5, text", 2)),
    Case("ControlNet of SD 3.5, picture embedder", "sd3.5", controlled("sd3.5, picture", 2)),
    Case("ControlNet Fun of Qwen-Image", "qwen-image", controlled("qwen fun", 3)),
)
