"""The demonstration's model and its nodes in the real ComfyUI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from demo import pictures, shapes
from demo.shapes import checker
from demo.shapes.scenes import SIZE, split
from demo.workflow import shapes_workflow
from harness.comfy_server import ComfyServer, PromptFailed
from harness.graphs import Workflow, node, resampled, without
from harness.lab import asyncdiff, last_report, latent

STEPS = 6
HELD_OUT = split()[1]
PROMPTS = [scene.prompt for scene in HELD_OUT[:3]]


def workflow(**sampling: Any) -> Workflow:
    """The demonstration's workflow, up to the latent."""
    flow = shapes_workflow(PROMPTS, **{"steps": STEPS, **sampling})
    return without(flow, "decode", "pictures")


@pytest.fixture(scope="module")
def stock(server: ComfyServer) -> torch.Tensor:
    return latent(server, workflow())


def test_both_loaders_list_the_model(server: ComfyServer) -> None:
    nodes = server.get("/object_info")
    for name in ("ShapesPrompt", "ShapesLatent", "ShapesDecode"):
        assert nodes[name]["category"] == "AsyncDiff/demo"
    for name in ("UNETLoader", "AsyncDiffDiffusionModelLoader"):
        assert shapes.DIFFUSION_MODEL in str(nodes[name]["input"]["required"]["unet_name"])


def test_the_stock_sampler_makes_pictures(server: ComfyServer) -> None:
    files = server.files(server.run(shapes_workflow(PROMPTS, steps=STEPS)))
    images = pictures.load([path for path in files if path.suffix == ".png"])
    assert [image.size for image in images] == [(SIZE, SIZE)] * len(PROMPTS)
    assert len({image.tobytes() for image in images}) == len(PROMPTS)


def test_latents_are_of_order_one(stock: torch.Tensor) -> None:
    assert stock.shape == (len(PROMPTS), 16, 1, SIZE // 4, SIZE // 4)
    assert stock.isfinite().all() and 0.1 < stock.std() < 10


def test_each_line_is_the_prompt_of_its_own_picture(
    server: ComfyServer, stock: torch.Tensor
) -> None:
    one, two, three = PROMPTS
    swapped = node("ShapesPrompt", text=f"\n{one}\n  \n{three.upper()}\n{two}\n")
    other = latent(server, {**workflow(), "positive": swapped})
    pairs = zip(other, stock, strict=True)
    assert [torch.equal(ours, theirs) for ours, theirs in pairs] == [True, False, False]


@pytest.mark.parametrize(("workers", "stride"), [(2, 1), (3, 1), (3, 2)])
def test_full_warm_up_equals_stock(
    server: ComfyServer, stock: torch.Tensor, workers: int, stride: int
) -> None:
    """ModelSamplingSD3 stands between loader and sampler, and each cond has its own context."""
    ours = latent(server, asyncdiff(workflow(), workers, warm_up=STEPS, stride=stride))
    assert torch.equal(ours, stock)
    assert last_report(server)["model"] == "WanModel"


@pytest.mark.parametrize("plan", [{"workers": 2}, {"workers": 3, "stages": 2, "stride": 2}])
def test_async_differs_and_repeats_exactly(
    server: ComfyServer, stock: torch.Tensor, plan: dict[str, int]
) -> None:
    first = latent(server, asyncdiff(workflow(), warm_up=2, **plan))
    assert first.isfinite().all() and not torch.equal(first, stock)
    latent(server, asyncdiff(workflow(seed=9), warm_up=2, **plan))  # leaves nothing behind
    assert torch.equal(latent(server, asyncdiff(workflow(), warm_up=2, **plan)), first)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a harbour in the mist", ["not like 'two red circles on blue'"]),
        ("two pink circles on blue", ["'pink'", "black, blue, green"]),
        ("two red circles on red", ["shows nothing"]),
    ],
)
def test_a_bad_prompt_is_an_error_that_names_its_line(
    server: ComfyServer, line: str, words: list[str]
) -> None:
    bad = node("ShapesPrompt", text=f"{PROMPTS[0]}\n\n{line}")
    with pytest.raises(PromptFailed) as caught:
        server.run({**workflow(), "positive": bad})
    assert caught.value.node_type == "ShapesPrompt"
    for word in ("line 3:", line, *words):
        assert word in caught.value.exception_message


@pytest.mark.timeout(1200)
def test_the_model_draws_what_it_was_not_trained_with(server: ComfyServer) -> None:
    """At least 36 of 40 held-out prompts, with as many steps as the demonstration has."""
    scenes = HELD_OUT[:40]
    flow = resampled(shapes_workflow([scene.prompt for scene in scenes]), seed=2)
    files = server.files(server.run(flow, timeout=1100))
    images = pictures.load([path for path in files if path.suffix == ".png"])
    wrong = [
        scene.prompt
        for scene, image in zip(scenes, images, strict=True)
        if not checker.read(np.asarray(image) / 255).shows(scene)
    ]
    assert len(wrong) <= 4, wrong
