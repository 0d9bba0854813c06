"""A MODEL of this pack against the stock one, in the real ComfyUI, bit for bit."""

from __future__ import annotations

import pytest
import torch

from asyncdiff_core.algorithm.stages import units_of
from harness.comfy_server import ComfyServer
from harness.features import FRAMES, MOTION, chain, custom, write_files
from harness.graphs import Workflow, node, resampled
from harness.lab import (
    KINDS,
    asyncdiff,
    last_report,
    latent,
    with_lora,
    workflow,
    write_unsupported,
)

from . import sockets


@pytest.fixture(scope="module")
def stock(lab: ComfyServer) -> dict[str, torch.Tensor]:
    """What the stock KSampler makes of each kind of model."""
    return {kind: latent(lab, workflow(kind)) for kind in KINDS}


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_full_warm_up_equals_stock(
    lab: ComfyServer, stock: dict[str, torch.Tensor], kind: str, workers: int
) -> None:
    ours = latent(lab, asyncdiff(workflow(kind), workers, warm_up=5))
    assert torch.equal(ours, stock[kind])

    report = last_report(lab)
    assert {e["mode"] for e in report["evaluations"]} == {"sync"}
    assert [w["device"] for w in report["workers"]] == ["cpu"] * workers
    check_weights(report, workers)


@pytest.mark.parametrize("kind", ["sd15", "wan"])
def test_a_split_batch_is_each_latent_alone(lab: ComfyServer, kind: str) -> None:
    flow = workflow(kind, cfg=1.0)
    empty = flow["empty"]["inputs"]
    flow["empty"] = node(flow["empty"]["class_type"], **{**empty, "batch_size": 3})
    ours = latent(lab, asyncdiff(flow, warm_up=5, split_batch=True))
    assert len({e["lane"] for e in last_report(lab)["evaluations"]}) == 3
    for number in range(3):
        alone = {
            **flow,
            "one": node("LatentFromBatch", samples=["empty", 0], batch_index=number, length=1),
        }
        expected = latent(lab, resampled(alone, latent_image=["one", 0]))
        assert torch.equal(ours[number : number + 1], expected)
    # With replicas there are two pipelines of one stage, and each has a part of the latents.
    spread = asyncdiff(flow, warm_up=1, split_batch=True, stages=1, replicas=2)
    assert torch.equal(latent(lab, spread), ours)
    assert len([w for w in last_report(lab)["workers"] if w["spans"]]) == 2


def test_frames_that_are_a_batch_stay_together(lab: ComfyServer) -> None:
    """With motion modules each frame depends on all others."""
    write_files(lab.models)
    flow = chain(FRAMES, MOTION)(workflow("sd15"))
    ours = latent(lab, asyncdiff(flow, warm_up=5, stages=2, split_batch=True))
    assert torch.equal(ours, latent(lab, flow))
    assert len({e["lane"] for e in last_report(lab)["evaluations"]}) == 1


def test_cond_and_uncond_pass_the_stages_one_behind_the_other(lab: ComfyServer) -> None:
    flow = workflow("wan")
    ours = latent(lab, asyncdiff(flow, warm_up=5, stages=2, split_batch=True))
    assert len({e["lane"] for e in last_report(lab)["evaluations"]}) == 2
    replicas = latent(lab, asyncdiff(flow, warm_up=5, stages=1, replicas=2))  # without batching too
    assert torch.equal(ours, replicas)
    predicted = latent(lab, asyncdiff(flow, warm_up=2, stages=2, split_batch=True))
    assert not torch.equal(predicted, ours)


def check_weights(report: dict, workers: int) -> None:
    """No worker holds a full model."""
    held = sorted(unit for worker in report["workers"] for unit in units_of(worker["units"]))
    assert held == list(range(report["workers"][0]["num_units"]))
    total = sum(w["weight_bytes"] + w["shared_bytes"] for w in report["workers"])
    units = sum(w["weight_bytes"] for w in report["workers"])
    (shared,) = {w["shared_bytes"] for w in report["workers"]}
    assert total == units + workers * shared
    assert all(0 < w["weight_bytes"] < units for w in report["workers"])
    assert all(0 < w["activation_bytes"] < w["resident_bytes"] for w in report["workers"])
    for worker in report["workers"]:
        print(
            f"{report['model']} worker {worker['rank']} of {workers}: "
            f"weights {worker['weight_bytes'] / 2**20:.1f} MiB of {units / 2**20:.1f}, "
            f"shared {shared / 2**20:.1f} MiB, resident {worker['resident_bytes'] / 2**20:.0f} MiB"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_async_differs_and_repeats_exactly(
    lab: ComfyServer, stock: dict[str, torch.Tensor], kind: str
) -> None:
    first = latent(lab, asyncdiff(workflow(kind), warm_up=2))
    assert [e["mode"] for e in last_report(lab)["evaluations"]] == ["sync"] * 2 + ["async"] * 3
    assert torch.isfinite(first).all()
    assert not torch.equal(first, stock[kind])
    latent(lab, asyncdiff(workflow(kind, seed=9), warm_up=2))  # leaves nothing behind
    again = latent(lab, asyncdiff(workflow(kind), warm_up=2, time_shift=False))
    assert torch.equal(again, first)


def with_our_sampler(flow: Workflow, warm_up: int) -> Workflow:
    """The workflow with its sampler node replaced, and nothing else."""
    inputs = flow["sampler"]["inputs"]
    sampler = node("AsyncDiffKSampler", **inputs, warm_up=warm_up, time_shift=False)
    return {**flow, "sampler": sampler}


def test_replacing_the_sampler_alone_is_enough(lab: ComfyServer) -> None:
    # With one cond the devices take consecutive evaluations, or else stages.
    for sampler, expected in (("euler", (1, 1, 2)), ("euler_ancestral", (2, 1, 1))):
        flow = workflow("sd15", cfg=1.0, sampler_name=sampler)
        assert torch.equal(latent(lab, with_our_sampler(flow, warm_up=5)), latent(lab, flow))
        plan = last_report(lab)["plan"]
        assert (plan["stages"], plan["replicas"], plan["stride"]) == expected


def test_with_two_conds_the_planner_makes_replicas(lab: ComfyServer) -> None:
    first = latent(lab, with_our_sampler(workflow("sd15"), warm_up=1))
    report = last_report(lab)
    assert (report["plan"]["stages"], report["plan"]["replicas"]) == (1, 2)
    assert "predicted speed-up 2.00x" in lab.log_text()
    # Replicas are exact, so the warm-up makes no difference.
    assert torch.equal(latent(lab, with_our_sampler(workflow("sd15"), warm_up=3)), first)


def test_a_model_that_cannot_be_spread_stays_whole(lab: ComfyServer) -> None:
    """A stock MODEL of an architecture without a layout, and the sampler node of this pack."""
    flow = workflow("wan")
    name = write_unsupported(lab.models)
    flow["model"] = node("UNETLoader", unet_name=name, weight_dtype="default")
    runs = len(lab.get("/asyncdiff/report")["runs"])
    assert torch.equal(latent(lab, with_our_sampler(flow, warm_up=1)), latent(lab, flow))
    assert "has no layout for this architecture" in lab.log_text()
    assert len(lab.get("/asyncdiff/report")["runs"]) == runs


def test_stride_through_the_server(lab: ComfyServer) -> None:
    """Three workers, the paper's strongest kind of plan, and a sampler that allows no stride."""
    plan = {"stages": 2, "stride": 2}
    strided = latent(lab, asyncdiff(workflow("sd15", steps=7), 3, **plan))
    report = last_report(lab)
    assert not report["refused_stride"] and torch.isfinite(strided).all()
    # The first evaluation, and three rounds of two; a span for each range of a folded stage.
    ranges = [len(worker["units"]) for worker in report["workers"]]
    spans = [len(worker["spans"]) for worker in report["workers"]]
    # The stage within has nothing to do in the last round.
    assert ranges == [1, 2, 2] and spans == [3, 2 * 4, 2 * 3]
    full = latent(lab, asyncdiff(workflow("sd15"), 3, warm_up=5, **plan))
    assert torch.equal(full, latent(lab, workflow("sd15")))

    heun = latent(lab, asyncdiff(workflow("sd15", sampler_name="heun"), 3, **plan))
    assert torch.isfinite(heun).all() and last_report(lab)["refused_stride"]
    assert lab.log_text().count("the run goes on with stride 1") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_stride_with_partial_denoising(lab: ComfyServer, kind: str) -> None:
    """Sigmas, not a counter, tell the coming timesteps: also for flow models and denoise < 1."""
    flow = workflow(kind, denoise=0.6, steps=6)
    ours = latent(lab, asyncdiff(flow, 3, stages=2, stride=2))
    assert torch.isfinite(ours).all()
    assert not last_report(lab)["refused_stride"]


def test_one_device_passes_through(lab: ComfyServer, stock: dict[str, torch.Tensor]) -> None:
    runs = len(lab.get("/asyncdiff/report")["runs"])
    assert torch.equal(latent(lab, asyncdiff(workflow("sd15"), workers=1)), stock["sd15"])
    assert len(lab.get("/asyncdiff/report")["runs"]) == runs
    assert "stays in ComfyUI's own process" in lab.log_text()


def parallelized(flow: Workflow, warm_up: int, model: str = "model") -> Workflow:
    """AsyncDiffParallelize and AsyncDiffSchedule in front of the stock sampler."""
    plan = node(
        "AsyncDiffParallelize",
        model=[model, 0],
        devices="cpu,cpu",
        stages=0,
        replicas=0,
        stride=1,
    )
    schedule = node("AsyncDiffSchedule", model=["spread", 0], warm_up=warm_up, time_shift=False)
    sampler = flow["sampler"]
    return {
        **flow,
        "spread": plan,
        "schedule": schedule,
        "sampler": node(sampler["class_type"], **{**sampler["inputs"], "model": ["schedule", 0]}),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_parallelize_and_schedule_with_the_stock_sampler(
    lab: ComfyServer, stock: dict[str, torch.Tensor], kind: str
) -> None:
    assert torch.equal(latent(lab, parallelized(workflow(kind), warm_up=5)), stock[kind])
    asynchronous = latent(lab, parallelized(workflow(kind), warm_up=1))
    assert torch.equal(asynchronous, latent(lab, asyncdiff(workflow(kind), warm_up=1)))


def test_lora(lab: ComfyServer, stock: dict[str, torch.Tensor]) -> None:
    with_it = latent(lab, with_lora(workflow("sd15"), "sd15"))
    assert not torch.equal(with_it, stock["sd15"])

    without = latent(lab, asyncdiff(workflow("sd15"), warm_up=1))
    pids = [worker["pid"] for worker in last_report(lab)["workers"]]
    loads = lab.log_text().count("UNetModel cut into")

    ours = latent(lab, asyncdiff(with_lora(workflow("sd15"), "sd15"), warm_up=5))
    assert torch.equal(ours, with_it)
    half = latent(lab, asyncdiff(with_lora(workflow("sd15"), "sd15", 0.5), warm_up=5))
    assert torch.equal(half, latent(lab, with_lora(workflow("sd15"), "sd15", 0.5)))
    assert torch.equal(latent(lab, asyncdiff(workflow("sd15"), warm_up=1)), without)

    # Neither a new process nor a new load of base weights between.
    assert [worker["pid"] for worker in last_report(lab)["workers"]] == pids
    assert lab.log_text().count("UNetModel cut into") == loads


def test_lora_before_parallelize(lab: ComfyServer) -> None:
    flow = with_lora(workflow("wan"), "wan")
    ours = latent(lab, parallelized(flow, warm_up=5, model="lora"))
    assert torch.equal(ours, latent(lab, flow))


def test_sampler_custom_advanced(lab: ComfyServer) -> None:
    def flow(stock: bool) -> Workflow:
        base = workflow("sd15") if stock else asyncdiff(workflow("sd15"), warm_up=5)
        model = ["model", 0]
        if not stock:
            base["schedule"] = node("AsyncDiffSchedule", model=model, warm_up=5, time_shift=False)
            model = ["schedule", 0]
        base = custom(resampled(base, model=model, scheduler="karras", steps=5))
        return {**base, "kind": node("KSamplerSelect", sampler_name="dpmpp_2m")}

    assert torch.equal(latent(lab, flow(stock=False)), latent(lab, flow(stock=True)))


def test_ksampler_advanced(lab: ComfyServer) -> None:
    def advanced(flow: Workflow) -> Workflow:
        inputs = dict(flow["sampler"]["inputs"])
        seed, _ = inputs.pop("seed"), inputs.pop("denoise")
        inputs |= {"add_noise": "enable", "noise_seed": seed, "start_at_step": 1}
        inputs |= {"end_at_step": 4, "return_with_leftover_noise": "enable"}
        return {**flow, "sampler": node("KSamplerAdvanced", **inputs)}

    flow = advanced(workflow("sd15"))
    assert torch.equal(latent(lab, asyncdiff(flow, warm_up=5)), latent(lab, flow))


def test_several_conditionings_and_areas(lab: ComfyServer) -> None:
    """Regional prompts: lanes of different shapes in one run."""

    def regional(flow: Workflow) -> Workflow:
        flow = resampled(flow, positive=["both", 0])
        flow["empty"] = node("EmptyLatentImage", width=128, height=128, batch_size=1)
        flow["left"] = node(
            "ConditioningSetArea",
            conditioning=["negative", 0],
            width=64,
            height=128,
            x=0,
            y=0,
            strength=1.0,
        )
        flow["both"] = node(
            "ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["left", 0]
        )
        return flow

    stock = latent(lab, regional(workflow("sd15")))
    assert torch.equal(latent(lab, regional(asyncdiff(workflow("sd15"), warm_up=5))), stock)
    assert len({e["lane"] for e in last_report(lab)["evaluations"]}) > 1
    asynchronous = latent(lab, regional(asyncdiff(workflow("sd15"), warm_up=1)))
    assert torch.isfinite(asynchronous).all()


def test_live_previews(lab: ComfyServer) -> None:
    """Previews come while a distributed MODEL samples; they are made in ComfyUI's own process."""
    flow = asyncdiff(workflow("sd15", seed=77), warm_up=1)
    events = sockets.run(lab, flow, preview_method="latent2rgb")
    assert len(events.previews) >= 3
    assert all(image[:2] == b"\xff\xd8" or image[1:4] == b"PNG" for image in events.previews)
    assert events.progress()[-1] == (5, 5)
