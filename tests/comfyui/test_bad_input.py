"""What users get wrong: a clear error on the node that caused it, and the next prompt works."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.comfy_server import ComfyServer, PromptFailed, PromptRejected
from harness.features import LARGE
from harness.graphs import Workflow, node, resampled
from harness.lab import asyncdiff, latent, workflow, write_unsupported


@pytest.fixture(scope="module")
def good(lab: ComfyServer) -> torch.Tensor:
    return latent(lab, workflow("sd15"))


@pytest.fixture(autouse=True)
def next_prompt_works(lab: ComfyServer, good: torch.Tensor) -> Any:
    """After every test here: the server is up and gives the right image."""
    yield
    assert torch.equal(latent(lab, asyncdiff(workflow("sd15"), warm_up=5)), good)


def failure(lab: ComfyServer, flow: Workflow) -> PromptFailed:
    with pytest.raises(PromptFailed) as caught:
        lab.run(flow)
    return caught.value


def with_plan(**plan: Any) -> Workflow:
    flow = asyncdiff(workflow("sd15"))
    flow["model"] = node("AsyncDiffCheckpointLoader", **{**flow["model"]["inputs"], **plan})
    return flow


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"devices": "cuda:7"}, ["unknown device 'cuda:7'", "This machine has: cpu", "auto"]),
        ({"devices": "cuad:0"}, ["unknown device 'cuad:0'", "This machine has: cpu", "auto"]),
        ({"devices": "cpu,,cpu"}, ["unknown device ''"]),
        ({"devices": ""}, ["unknown device ''"]),
        ({"devices": "cpu,cpu", "stages": 3}, ["need 3 devices", "stages=2"]),
        ({"devices": ",".join(["cpu"] * 20)}, ["20 stages need at least 20 units", "at most 15"]),
        ({"devices": "cpu,cpu,cpu", "replicas": 2}, ["need 2 devices, but 3", "replicas=3"]),
        ({"devices": "cpu,cpu,cpu", "stages": 3, "stride": 2}, ["need 4 devices", "stages=2"]),
    ],
)
def test_plans_that_do_not_fit(lab: ComfyServer, plan: dict[str, Any], words: list[str]) -> None:
    error = failure(lab, with_plan(**plan))
    assert error.node_type == "AsyncDiffCheckpointLoader"
    for word in words:
        assert word in error.exception_message


def test_missing_checkpoint(lab: ComfyServer) -> None:
    with pytest.raises(PromptRejected) as caught:
        lab.run(with_plan(ckpt_name="no-such-file.safetensors"))
    assert "model" in caught.value.node_errors


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\xff" * 4096])
def test_corrupt_checkpoint(lab: ComfyServer, content: bytes) -> None:
    path = lab.models / "checkpoints" / f"corrupt-{len(content)}.safetensors"
    path.write_bytes(content)
    error = failure(lab, with_plan(ckpt_name=path.name))
    assert error.node_type == "AsyncDiffCheckpointLoader"


def test_truncated_checkpoint(lab: ComfyServer) -> None:
    whole = lab.models / "checkpoints" / "tiny-sd15.safetensors"
    path = whole.with_name("truncated.safetensors")
    path.write_bytes(whole.read_bytes()[:1_000_000])
    error = failure(lab, with_plan(ckpt_name=path.name))
    assert error.node_type == "AsyncDiffCheckpointLoader"
    assert "truncated.safetensors" in error.exception_message
    assert "download it again" in error.exception_message


def test_architecture_without_a_layout(lab: ComfyServer) -> None:
    """A checkpoint that ComfyUI loads and that this pack does not know how to cut."""
    flow = asyncdiff(workflow("wan"))
    inputs = {**flow["model"]["inputs"], "unet_name": write_unsupported(lab.models)}
    flow["model"] = node("AsyncDiffDiffusionModelLoader", **inputs)
    error = failure(lab, flow)
    assert error.node_type == "AsyncDiffDiffusionModelLoader"
    assert "CausalWanModel" in error.exception_message and "no layout" in error.exception_message


def test_warm_up_below_zero(lab: ComfyServer) -> None:
    with pytest.raises(PromptRejected) as caught:
        lab.run(resampled(asyncdiff(workflow("sd15")), warm_up=-1))
    assert "sampler" in caught.value.node_errors
    assert "warm_up" in str(caught.value)


@pytest.mark.parametrize("name", ["cfg", "denoise"])
def test_numbers_that_are_none(lab: ComfyServer, name: str) -> None:
    error = failure(lab, resampled(asyncdiff(workflow("sd15")), **{name: float("nan")}))
    assert error.node_type == "AsyncDiffKSampler"
    assert f"the input '{name}' is nan" in error.exception_message


def test_a_patch_that_reports_back_is_refused_by_name(lab: ComfyServer) -> None:
    """What it sees in a worker would not reach the function in ComfyUI's process."""
    flow = asyncdiff(workflow("sd15"))
    flow["sag"] = node("SelfAttentionGuidance", model=["model", 0], scale=0.5, blur_sigma=2.0)
    error = failure(lab, resampled(flow, model=["sag", 0]))
    assert error.node_type == "AsyncDiffKSampler"
    assert "SelfAttentionGuidance.execute.<locals>.attn_and_record" in error.exception_message


def test_a_patch_that_draws_random_numbers_is_refused_by_name(lab: ComfyServer) -> None:
    flow = asyncdiff(LARGE(workflow("sd15")))
    tiles = {"tile_size": 32, "swap_size": 4, "max_depth": 1, "scale_depth": False}
    flow["tiles"] = node("HyperTile", model=["model", 0], **tiles)
    error = failure(lab, resampled(flow, model=["tiles", 0]))
    assert "draws random numbers" in error.exception_message
    assert "HyperTile.execute.<locals>.hypertile_in" in error.exception_message


def test_second_model_of_a_merge_is_refused(lab: ComfyServer) -> None:
    flow = asyncdiff(workflow("sd15"))
    flow["stock"] = node("CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors")
    flow["merge"] = node("ModelMergeSimple", model1=["stock", 0], model2=["model", 0], ratio=0.5)
    error = failure(lab, resampled(flow, model=["merge", 0]))
    assert error.node_type == "ModelMergeSimple"
    assert "AsyncDiffParallelize" in error.exception_message


def test_gguf_model(lab: ComfyServer) -> None:
    flow = workflow("sd15")
    flow["gguf"] = node("TestGGUFModel", model=["model", 0])
    plan = {"devices": "cpu,cpu", "stages": 0, "replicas": 0, "stride": 1}
    flow["spread"] = node("AsyncDiffParallelize", model=["gguf", 0], **plan)
    error = failure(lab, resampled(flow, model=["spread", 0]))
    assert error.node_type == "AsyncDiffParallelize"
    assert "comes from a GGUF file" in error.exception_message


def test_a_program_may_leave_out_what_is_advanced(lab: ComfyServer) -> None:
    advanced = {"stages", "replicas", "stride", "time_shift"}
    advanced |= {"prediction", "cool_down", "tolerance", "split_batch"}
    declared = {}
    for name, one in lab.get("/object_info").items():
        if name.startswith("AsyncDiff"):
            optional = one["input"].get("optional", {})
            declared |= optional
            required = one["input"].get("required", {})
            wanted = {key for key, spec in required.items() if spec[1:] and spec[1].get("advanced")}
            assert wanted <= {"weight_dtype"}  # as on the stock node
    assert set(declared) == advanced
    flow = asyncdiff(workflow("sd15"))
    short = {
        name: {**one, "inputs": {k: v for k, v in one["inputs"].items() if k not in advanced}}
        for name, one in flow.items()
    }
    assert short != flow
    assert torch.equal(latent(lab, short), latent(lab, flow))
