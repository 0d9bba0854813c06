"""Where workers find code and files: loaders of packs, files that were replaced, relative paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from demo import shapes
from harness.comfy_server import ComfyServer, PromptFailed
from harness.features import parallelized
from harness.graphs import Workflow, node
from harness.lab import ADAPTER_PACK, asyncdiff, last_report, latent, workflow, write_models
from harness.ways import alone

STEPS = 3


def by_pack(needs_server: bool) -> Workflow:
    """A workflow whose loader is a pack's, which changes the weights that it loads."""
    flow = workflow("wan", steps=STEPS, cfg=1.0)
    loader = node("TestPackLoader", unet_name="tiny-wan.safetensors", needs_server=needs_server)
    return {**flow, "model": loader}


@pytest.mark.parametrize("spread", [parallelized, alone])
def test_loader_of_a_pack(lab: ComfyServer, spread: Callable[[Workflow], Workflow]) -> None:
    """Workers run it too: they load the pack under the name that ComfyUI gave it."""
    flow = by_pack(needs_server=False)
    stock = latent(lab, flow)
    assert not torch.equal(stock, latent(lab, workflow("wan", steps=STEPS, cfg=1.0)))
    before = last_report(lab)["ended"] if lab.get("/asyncdiff/report")["runs"] else 0.0
    assert torch.equal(latent(lab, spread(flow)), stock)
    assert last_report(lab)["ended"] > before
    assert len(last_report(lab)["workers"]) == 2


def test_loader_of_a_pack_that_workers_cannot_import(lab: ComfyServer) -> None:
    """Refused by name where workers were asked for, local where they were not."""
    flow = by_pack(needs_server=True)
    stock = latent(lab, flow)
    with pytest.raises(PromptFailed) as caught:
        latent(lab, parallelized(flow))
    assert caught.value.exception_type.endswith("WorkerRefusedError")
    assert "needs ComfyUI's server" in caught.value.exception_message
    before = len(lab.log_text())
    assert torch.equal(latent(lab, alone(flow)), stock)
    assert "needs ComfyUI's server" in lab.log_text()[before:]


def write_changed(lab: ComfyServer, name: str, ending: str, factor: float) -> str:
    """The small Wan, with weights whose names end so `factor` times as large; the file's name.

    A factor below 1 makes them positive too: what is rounded to zero keeps its sign.
    """
    folder = lab.models / "diffusion_models"
    with safe_open(folder / "tiny-wan.safetensors", "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for key, weight in weights.items():
        if key.endswith(ending) and weight.ndim > 1:
            weights[key] = weight.abs() * factor if factor < 1 else weight * factor
    save_file(weights, folder / "part", metadata)
    os.replace(folder / "part", folder / f"{name}.safetensors")
    return f"{name}.safetensors"


def test_weights_that_their_type_rounds_to_zero(lab: ComfyServer) -> None:
    """They are no weights that were lost on their way."""
    name = write_changed(lab, "small", "blocks.1.ffn.2.weight", 1e-6)
    flow = workflow("wan", steps=STEPS, cfg=1.0)
    flow["model"] = node("UNETLoader", unet_name=name, weight_dtype="fp8_e4m3fn")
    assert torch.equal(latent(lab, parallelized(flow)), latent(lab, flow))


def test_file_that_was_replaced(lab: ComfyServer) -> None:
    """The loaded MODEL goes on; workers that would load again say what has happened."""
    name = write_changed(lab, "replaced", "", 1.0)
    flow = workflow("wan", steps=STEPS)
    flow["model"] = node("UNETLoader", unet_name=name, weight_dtype="default")
    spread = parallelized(flow)
    first = latent(lab, spread)
    write_changed(lab, "replaced", "", 1.1)
    assert torch.equal(latent(lab, spread), first)  # loaded already
    lab.post("/asyncdiff/release", {})
    with pytest.raises(PromptFailed, match="has changed") as caught:
        latent(lab, spread)
    assert caught.value.exception_type.endswith("LoaderError")


def test_relative_paths_on_the_command_line(comfyui_path: Path, tmp_path: Path) -> None:
    """They are meant where ComfyUI was started, and workers read the command line too."""
    (tmp_path / "started" / "my-user").mkdir(parents=True)
    server = ComfyServer(
        *(comfyui_path, tmp_path / "base"),
        args=["--user-directory", "my-user"],
        env={"OMP_NUM_THREADS": "1"},
        more_packs=[shapes.PACK, ADAPTER_PACK],
        cwd=tmp_path / "started",
    )
    with server:
        write_models(server.models)
        flow = workflow("wan", steps=STEPS)
        stock = latent(server, flow)
        assert torch.equal(latent(server, asyncdiff(flow, warm_up=STEPS)), stock)
        assert len(last_report(server)["workers"]) == 2
        logs = list((tmp_path / "started" / "my-user").glob("asyncdiff/asyncdiff-*/*.log"))
        assert len(logs) == 2
