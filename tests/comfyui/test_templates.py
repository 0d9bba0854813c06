"""A sample of ComfyUI's official templates, with tiny models: stock, and with this pack's nodes.

All of them: `python3 dev.py python -m benchmarks.templates`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.compatibility import version_of
from benchmarks.templates.judge import Judgement
from benchmarks.templates.run import (
    LOCAL,
    PACKAGE,
    PARALLEL,
    REFUSED,
    Trial,
    judged,
    templates_folder,
    write_models,
)
from dev import DEFAULT_HOST
from harness.comfy_server import ComfyServer

# What comes of each by Parallelize Model, and by the sampler nodes of this pack.
SAMPLE = {
    "default": (PARALLEL, PARALLEL),  # a checkpoint
    "image_z_image_turbo": (PARALLEL, PARALLEL),
    "image_flux2": (PARALLEL, PARALLEL),  # SamplerCustomAdvanced
    "image_qwen_image_edit_2509": (PARALLEL, PARALLEL),  # a LoRA, pictures in the conditioning
    "03_video_wan2_2_14B_i2v_subgraphed": (PARALLEL, PARALLEL),  # two models, LoRAs, subgraphs
    "video_ltx2_t2v_distilled": (PARALLEL, PARALLEL),  # latents of video and audio, two samplers
    "audio_ace_step_1_5_split": (PARALLEL, PARALLEL),
    "image_qwen_image_controlnet_patch": (PARALLEL, PARALLEL),  # a patch with a model of its own
    "image_flux2_klein_9b_kv_image_edit": (PARALLEL, PARALLEL),  # a cache that shortens inputs
    "image_hidream_o1": (PARALLEL, PARALLEL),  # it keeps tokens, but not in workers
    "video_causal_forcing_i2v": (REFUSED, LOCAL),
}


@pytest.fixture(scope="module")
def judgements(server: ComfyServer) -> dict[str, Judgement]:
    folder = templates_folder()
    version = version_of(server.comfyui)
    if folder is None:
        assert version != DEFAULT_HOST
        pytest.skip(f"no {PACKAGE}: ComfyUI {version} came without its templates")
    only = f"^({'|'.join(SAMPLE)})$"
    return judged(server.comfyui, folder, server.get("/object_info"), only)


@pytest.fixture(scope="module")
def trial(server: ComfyServer, judgements: dict[str, Judgement]) -> Trial:
    return Trial(server, write_models(server, judgements.values()))


@pytest.fixture(autouse=True)
def released(server: ComfyServer) -> Iterator[None]:
    """The next template gets the memory of the last one."""
    yield
    server.post("/asyncdiff/release", {})


@pytest.mark.parametrize("name", SAMPLE)
def test_outcome(name: str, trial: Trial, judgements: dict[str, Judgement]) -> None:
    if name not in judgements:
        version = version_of(trial.server.comfyui)
        assert version != DEFAULT_HOST
        pytest.skip(f"ComfyUI {version} came without the template {name}")
    row = trial.row(name, judgements[name])
    assert tuple(outcome.kind for outcome in row.outcomes) == SAMPLE[name], row.outcomes
