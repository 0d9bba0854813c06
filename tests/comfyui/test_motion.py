"""AnimateDiff beyond SD 1.5's motion modules: motion LoRAs, SDXL, files as people have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoints
from harness.comfy_server import ComfyServer, PromptFailed
from harness.features import frames, parallelized
from harness.graphs import Workflow, node, resampled, sampler
from harness.lab import asyncdiff, last_report, latent, workflow
from harness.processes import run
from harness.ways import alone

STEPS = 3


@pytest.fixture(scope="module")
def files(lab: ComfyServer) -> Path:
    """Motion modules, a LoRA for them, and the two as one; in the format of checkpoints too."""
    modules = checkpoints.motion()
    lora = checkpoints.motion_lora(modules)
    merged = dict(modules)
    for key, up in lora.items():
        name = key.replace(".processor", "").replace("_lora.up", "")
        if key.endswith("_lora.up.weight"):
            name = name.replace("to_out.", "to_out.0.")
            merged[name] = modules[name] + up @ lora[key.replace(".up.", ".down.")]
    folders = [lab.models / f"animatediff_{name}" for name in ("models", "motion_lora")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    save_file(modules, folders[0] / "motion.safetensors")
    save_file(merged, folders[0] / "merged.safetensors")
    # With layers of the UNet that it was trained on, as a checkpoint of a training has them.
    trained = {f"module.{k}": v for k, v in modules.items()} | {"conv_out.bias": torch.zeros(4)}
    torch.save({"state_dict": trained, "epoch": 3}, folders[0] / "trained.ckpt")
    save_file({"conv_in.weight": torch.zeros(1), **modules}, folders[0] / "pia.safetensors")
    save_file(lora, folders[1] / "pan.safetensors")
    save_file({"a": torch.zeros(1)}, folders[1] / "other.safetensors")
    more = next(key for key in lora if "to_q" in key).replace("to_q", "ff.net.2")
    save_file({more: torch.zeros(2, 2), **lora}, folders[1] / "more.safetensors")
    return lab.models


def moving(file: str = "motion.safetensors", *loras: tuple[str, float]) -> Workflow:
    flow = frames(2)(workflow("sd15", steps=STEPS, cfg=1.0))
    flow["motion"] = node("AsyncDiffMotionModule", model=["model", 0], motion_model=file)
    last = "motion"
    for number, (name, strength) in enumerate(loras):
        inputs = {"motion_lora": name, "strength": strength}
        flow[f"lora-{number}"] = node("AsyncDiffMotionLora", model=[last, 0], **inputs)
        last = f"lora-{number}"
    return resampled(flow, model=[last, 0])


PAN = "pan.safetensors"
WAYS: tuple[Callable[[Workflow], Workflow], ...] = (
    parallelized,
    alone,
    lambda flow: asyncdiff(flow, warm_up=100),
)


def test_a_motion_lora(lab: ComfyServer, files: Path) -> None:
    plain, stock = latent(lab, moving()), latent(lab, moving("motion.safetensors", (PAN, 1.0)))
    assert not torch.equal(plain, stock)
    for way in WAYS:
        assert torch.equal(latent(lab, way(moving("motion.safetensors", (PAN, 1.0)))), stock)
        assert len(last_report(lab)["workers"]) == 2
    merged = latent(lab, moving("merged.safetensors"))
    assert torch.allclose(stock, merged, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, merged, rtol=1e-2, atol=1e-2)


def test_several_motion_loras(lab: ComfyServer, files: Path) -> None:
    plain = latent(lab, moving())
    several = moving("motion.safetensors", (PAN, 0.5), (PAN, -0.5))
    stock = latent(lab, several)
    assert torch.allclose(stock, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(latent(lab, parallelized(several)), stock)
    assert torch.equal(latent(lab, moving("motion.safetensors", (PAN, 0.0))), plain)


def test_a_checkpoint_of_a_training(lab: ComfyServer, files: Path) -> None:
    assert torch.equal(latent(lab, moving("trained.ckpt")), latent(lab, moving()))


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (lambda: moving("pia.safetensors"), "is a model of PIA"),
        (lambda: moving("motion.safetensors", ("other.safetensors", 1.0)), "is no motion LoRA"),
        (
            lambda: moving("motion.safetensors", ("more.safetensors", 1.0)),
            "no part of a motion LoRA",
        ),
        (
            lambda: {
                **moving("motion.safetensors", (PAN, 1.0)),
                "motion": workflow("sd15")["model"],
            },
            "has no motion modules",
        ),
    ],
)
def test_what_does_not_fit(
    lab: ComfyServer, files: Path, flow: Callable[[], Workflow], words: str
) -> None:
    with pytest.raises(PromptFailed, match=words):
        lab.run(flow())


def test_sdxl(lab: ComfyServer, files: Path) -> None:
    wanted = json.dumps([["sdxl", "fp32", ""]])
    [family] = run("template_models.py", lab.comfyui, lab.models, wanted, timeout=300).values()
    modules = checkpoints.motion(widths=(64, 128), has_middle=False)
    save_file(modules, files / "animatediff_models" / "sdxl.safetensors")
    save_file(
        checkpoints.motion_lora(modules), files / "animatediff_motion_lora" / "sdxl.safetensors"
    )

    def flow(**lora: Any) -> Workflow:
        text = {"width": family["text"], "pooled": family["pooled"], "masked": False}
        made = {
            "model": node("TestDescribedModel", unet_name=family["file"]),
            "motion": node(
                "AsyncDiffMotionModule", model=["model", 0], motion_model="sdxl.safetensors"
            ),
            "lora": node(
                "AsyncDiffMotionLora",
                **{"model": ["motion", 0], "motion_lora": "sdxl.safetensors", "strength": 0.0},
            ),
            "positive": node("TestConditioning", **text, seed=1),
            "negative": node("TestConditioning", **text, seed=2),
            "empty": node("TestLatent", shapes=json.dumps([[2, 4, 8, 8]])),
            "sampler": sampler(model=["lora", 0], steps=STEPS, cfg=1.0),
            "latent": node("TestSaveLatent", samples=["sampler", 0], filename_prefix="motion"),
        }
        made["lora"]["inputs"].update(lora)
        return made

    without = {**flow(), "lora": node("LoraLoaderModelOnly", model=["model", 0])}
    without["lora"]["inputs"].update(lora_name=family["file"], strength_model=0.0)
    results = [latent(lab, without)]
    for strength in (0.0, 1.0):
        stock = latent(lab, flow(strength=strength))
        assert torch.isfinite(stock).all()
        for way in (parallelized, alone):
            assert torch.equal(latent(lab, way(flow(strength=strength))), stock)
            assert len(last_report(lab)["workers"]) == 2
        results.append(stock)
    assert not torch.equal(*results[:2])
    assert not torch.equal(*results[1:])
