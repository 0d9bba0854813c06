"""MODELs that come from no file that workers could read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from harness import checkpoints
from harness.comfy_server import ComfyServer, PromptFailed
from harness.features import parallelized, patched
from harness.graphs import Workflow, node
from harness.lab import free, last_report, latent, with_lora, workflow
from harness.ways import alone

STEPS = 3


def made(kind: str, model: str = "wan") -> Workflow:
    """A workflow whose MODEL a pack has made from tensors."""
    flow = workflow(model, steps=STEPS, cfg=1.0)
    flow["model"] = node("TestTensorLoader", unet_name=f"tiny-{model}.safetensors", kind=kind)
    return flow


def on_three(flow: Workflow) -> Workflow:
    flow = parallelized(flow)
    flow["spread"]["inputs"]["devices"] = "cpu,cpu,cpu"
    return flow


@pytest.mark.parametrize("model", ["wan", "sd3"])
@pytest.mark.parametrize("kind", ["plain", "loader replaced"])
def test_workers_get_its_weights(lab: ComfyServer, kind: str, model: str) -> None:
    """Also after ComfyUI has sampled with it, with a LoRA in its weights."""
    checkpoints.write_lora(lab.models / "loras" / "tiny-sd3-lora.safetensors", model="sd3")
    flow = made(kind, model)
    stock = latent(lab, flow)
    changed = latent(lab, with_lora(flow, model))
    assert not torch.equal(stock, changed)
    for way, workers in ((parallelized, 2), (on_three, 3), (alone, 2)):
        assert torch.equal(latent(lab, way(flow)), stock)
        assert len(last_report(lab)["workers"]) == workers
        assert torch.equal(latent(lab, way(with_lora(flow, model))), changed)
    assert torch.equal(latent(lab, flow), stock)  # and itself it is as before


def test_weights_altered_after_the_first_run(lab: ComfyServer) -> None:
    """Workers have those of the file, and then the altered ones of the very same MODEL."""
    flow = workflow("wan", steps=STEPS, cfg=1.0)
    altered = patched("TestWay", way="weights altered in place")(flow)
    # ComfyUI keeps what the next prompt has as well, and nothing else.
    before, after = latent(lab, alone(flow)), latent(lab, alone(altered))
    assert len(last_report(lab)["workers"]) == 2
    stock = latent(lab, flow)  # altered by now
    lab.run({"undo": node("TestUndo", number=2**20)})
    assert torch.equal(after, stock)
    assert not torch.equal(before, after)
    assert torch.equal(latent(lab, flow), before)


def test_asynchronously_too(lab: ComfyServer) -> None:
    """As the same weights from a loader that workers can run."""
    flow = made("plain")
    known = {**flow, "model": node("TestPackLoader", unet_name="tiny-wan.safetensors")}
    known["model"]["inputs"]["needs_server"] = False

    def result(flow: Workflow) -> torch.Tensor:
        flow = on_three(flow)
        flow["schedule"]["inputs"]["warm_up"] = 1
        return latent(lab, flow)

    assert torch.equal(result(flow), result(known))
    assert "async" in {e["mode"] for e in last_report(lab)["evaluations"]}


def test_it_is_gone_with_the_model(lab: ComfyServer) -> None:
    def files() -> int:
        found = Path(f"/proc/{lab.pid}/fd").iterdir()
        return sum("weights.safetensors" in str(f.readlink()) for f in found if f.is_symlink())

    free(lab)
    latent(lab, workflow("sd15", steps=1))
    before = files()
    latent(lab, parallelized(made("plain")))
    assert files() == before + 1
    assert not [*Path("/dev/shm").glob("asyncdiff-*")]
    free(lab)
    latent(lab, workflow("sd15", steps=1))
    assert files() <= before


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("own layer", "head.head.__class__"),
        ("own patcher", "OwnPatcher of adapter_pack"),
    ],
)
def test_what_cannot_be_handed_over(lab: ComfyServer, kind: str, reason: str) -> None:
    """Refused by name where workers were asked for, local where they were not."""
    flow = made(kind)
    stock = latent(lab, flow)
    with pytest.raises(PromptFailed) as caught:
        latent(lab, parallelized(flow))
    assert caught.value.node_type == "AsyncDiffParallelize"
    assert reason in caught.value.exception_message
    before = len(lab.log_text())
    assert torch.equal(latent(lab, alone(flow)), stock)
    assert re.search(re.escape(reason), lab.log_text()[before:])
